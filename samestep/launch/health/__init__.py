"""IS IT FIT: what a machine has is gathered here, and judged by pure functions before a run meets it."""
