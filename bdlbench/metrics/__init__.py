"""Arrays to numbers. Nothing here knows of methods, configs or stores.

``mixture`` turns a stream of draws into the ingredients of the posterior predictive; the other modules are plain
functions whose positional parameters are the names of those ingredients, and ``evaluate`` matches the two.
"""
