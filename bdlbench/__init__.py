"""bdlbench compares inference methods for Bayesian neural networks.

One model, one loop, one price list, every run kept. See ``docs/architecture.md`` for the house and its reasons.
"""

__version__ = "0.1.0"
