"""Inference methods, one family in each file, with the factory of the method, its state and its pure functions."""
