"""Metrics, which compute numbers from arrays. They do not depend on methods, configurations or stores.

``mixture`` computes the ingredients of the posterior predictive from a stream of draws. The other modules have plain
functions, whose positional parameters are the names of ingredients. ``evaluate`` calls the functions whose ingredients
exist.
"""
