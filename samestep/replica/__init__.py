"""ONE REPLICA: the training loop and the state it moves."""
