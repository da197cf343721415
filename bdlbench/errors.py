"""Errors that a user should read, apart from everything heavy: reading the store needs no JAX."""


class ConfigError(ValueError):
    """The user asked for what cannot be done. The message is one sentence: the field, the fault, the remedy."""
