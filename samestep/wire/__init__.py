"""HOW BYTES MOVE: one protocol and the transports that speak it."""
