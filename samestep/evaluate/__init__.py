"""IS IT GOOD: held-out loss."""
