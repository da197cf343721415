"""Networks are Flax modules, of NNX or Linen. The module :mod:`bdlbench.networks.mlp` is an example."""
