"""Evaluate stored runs: predict at new inputs, and compare posteriors with those that are known exactly."""
