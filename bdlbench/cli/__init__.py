"""The commands ``bdlbench`` and ``bdlbench-results``, and the launcher and sweepers that Hydra is given."""
