"""Make tables and figures from stored runs."""
