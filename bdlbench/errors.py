"""The error for wrong input of a user. It has its own module, so that reading a store does not import JAX."""


class ConfigError(ValueError):
    """The input of the user cannot be used. The message is one sentence that names the field, the fault and the remedy."""
