"""Priors, likelihoods and networks become a NumPyro model; any NumPyro model becomes a target density."""
