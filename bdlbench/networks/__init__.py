"""Flax networks. A network is any Flax module (NNX or Linen); see :mod:`bdlbench.networks.mlp` for the pattern."""
