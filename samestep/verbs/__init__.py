"""One file a verb: where the parts are put together."""
