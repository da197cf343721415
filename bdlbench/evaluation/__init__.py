"""What is computed from stored runs: predictions at new inputs and comparisons with what is known exactly."""
