"""What a command prints when its runs are done. A report is a function of the records, chosen by ``report`` in conf."""

from collections.abc import Mapping, Sequence
from typing import Any


def comparison(records: Sequence[Mapping[str, Any]], *, aggregate: bool) -> None:
    """Print the comparison table; ``aggregate`` gives methods over splits and seeds a row each."""
    from rich.console import Console

    from bdlbench.report import tables

    console = Console()
    console.print(tables.comparison(records, aggregate=aggregate))
