"""The error that tells a user what to change. It stands apart so that reading a store needs no JAX."""


class ConfigError(ValueError):
    """The user asked for what cannot be done. The message is one sentence: the field, the fault, the remedy."""
