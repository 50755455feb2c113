"""WHO RUNS: engines that start replicas and watch them."""
