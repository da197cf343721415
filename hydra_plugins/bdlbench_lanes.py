"""Hydra accepts launchers and sweepers from this namespace only; what they do stands in :mod:`bdlbench`."""

from bdlbench.cli import launcher, trials


class LanesLauncher(launcher.LanesLauncher):
    """See :class:`bdlbench.cli.launcher.LanesLauncher`."""


class GridSweeper(launcher.GridSweeper):
    """See :class:`bdlbench.cli.launcher.GridSweeper`."""


class OptunaSweeper(trials.OptunaSweeper):
    """See :class:`bdlbench.cli.trials.OptunaSweeper`."""
