"""``bdlbench-results predict``: predict the rows of a CSV file with a stored run."""

import argparse
import sys
from pathlib import Path

from bdlbench.errors import ConfigError


def predict(arguments: argparse.Namespace) -> None:
    """Write the predictions as CSV, one line for each row, in original units.

    The columns are mean, standard deviation and the 5, 50 and 95 % quantiles for regression, and the probabilities of
    the classes for classification.

    Raises
    ------
    ConfigError
        If the file cannot be read as a table, a column is missing, a value is not a number, or the folder of the output
        does not exist.
    """
    import pandas as pd

    from bdlbench.api import load

    file = Path(arguments.rows)
    if not file.is_file():
        raise ConfigError(f"rows={str(file)!r} is no file: give a CSV file with a header line.")
    output = None if arguments.output is None else Path(arguments.output)
    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigError(f"-o {output}: there is no folder '{output.parent}': make it, or choose another file.")
    try:
        table = pd.read_csv(file, skipinitialspace=True, encoding="utf-8")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(f"rows={str(file)!r} cannot be read as a table ({reason}): give a CSV file.") from None
    table.columns = [str(name).strip() for name in table.columns]
    found = load(arguments.id, store=arguments.store, trust=arguments.trust).predict(table).frame()
    found.to_csv(sys.stdout if output is None else output, index=False)
