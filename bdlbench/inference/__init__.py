"""Inference methods, one family a file: a factory, its state and its pure functions."""
