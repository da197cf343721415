"""Hydra finds launchers and sweepers only in this namespace package. Their code is in :mod:`bdlbench.cli`."""

from bdlbench.cli import calibration, launcher, trials


class LanesLauncher(launcher.LanesLauncher):
    """See :class:`bdlbench.cli.launcher.LanesLauncher`."""


class GridSweeper(launcher.GridSweeper):
    """See :class:`bdlbench.cli.launcher.GridSweeper`."""


class OptunaSweeper(trials.OptunaSweeper):
    """See :class:`bdlbench.cli.trials.OptunaSweeper`."""


class CalibrationLauncher(calibration.CalibrationLauncher):
    """See :class:`bdlbench.cli.calibration.CalibrationLauncher`."""
