"""Hydra accepts launchers and sweepers from this namespace only; what they do stands in :mod:`bdlbench`."""

from bdlbench import launcher, trials


class LanesLauncher(launcher.LanesLauncher):
    """See :class:`bdlbench.launcher.LanesLauncher`."""


class GridSweeper(launcher.GridSweeper):
    """See :class:`bdlbench.launcher.GridSweeper`."""


class OptunaSweeper(trials.OptunaSweeper):
    """See :class:`bdlbench.trials.OptunaSweeper`."""
