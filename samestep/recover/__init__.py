"""WHAT SURVIVES: the journal and digests."""
