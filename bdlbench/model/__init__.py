"""Build a NumPyro model from a network, a prior and a likelihood, and a target density from any NumPyro model."""
