"""Baselines: predictive models that are fitted by a library or in closed form, without a chain of draws of weights."""
