"""Flax networks. A network is any Flax module, of NNX or Linen; :mod:`bdlbench.networks.mlp` shows the pattern."""
