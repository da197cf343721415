"""The commands ``bdlbench`` and ``bdlbench-results``, and the launcher and the sweepers for Hydra."""
