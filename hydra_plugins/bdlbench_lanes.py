"""Hydra accepts launchers and sweepers from this namespace only; what they do stands in :mod:`bdlbench.launcher`."""

from bdlbench import launcher


class LanesLauncher(launcher.LanesLauncher):
    """See :class:`bdlbench.launcher.LanesLauncher`."""


class GridSweeper(launcher.GridSweeper):
    """See :class:`bdlbench.launcher.GridSweeper`."""
