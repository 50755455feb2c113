"""WHAT HAPPENED: the live panel and the summary of a run."""
