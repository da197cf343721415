"""What a command prints when its runs are done. A report is a function of the records, chosen by ``report`` in conf."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any


def comparison(records: Sequence[Mapping[str, Any]], *, aggregate: bool) -> None:
    """Print the comparison table; ``aggregate`` gives methods over splits and seeds a row each."""
    from rich.console import Console

    from bdlbench.report import tables

    # A pipe has no width of its own; the table needs about 100 columns.
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(tables.comparison(records, aggregate=aggregate))
