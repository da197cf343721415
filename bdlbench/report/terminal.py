"""Reports that a command prints when its runs are done. The group ``report`` in conf chooses the function."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any


def comparison(records: Sequence[Mapping[str, Any]], *, aggregate: bool) -> None:
    """Print the comparison table. With ``aggregate`` the runs of a method over splits and seeds share one row."""
    from rich.console import Console

    from bdlbench.report import tables

    # A pipe has no width, so one is set. The table needs about 100 characters.
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(tables.comparison(records, aggregate=aggregate))
