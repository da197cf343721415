"""The table of runs as a pandas data frame, and the answers of DuckDB to queries about it."""

import json
import math
from typing import TYPE_CHECKING, Any

from bdlbench.errors import ConfigError
from bdlbench.store.records import COST, IDENTITY, PREFIXES

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


def frame(rows: list[Row]) -> "pd.DataFrame":
    """Rows as a data frame. A value that a row does not have is missing: None, or NaN in a column of numbers."""
    import pandas as pd

    return pd.DataFrame({name: [row.get(name) for row in rows] for name in _columns(rows)})


def answer(rows: list[Row], query: str) -> "pd.DataFrame":
    """DuckDB's answer to a query of the table ``runs``; see :meth:`bdlbench.store.Store.sql`."""
    import duckdb
    import pandas as pd

    columns, select = {}, []
    for place, name in enumerate(_columns(rows)):
        values = [row.get(name) for row in rows]
        quoted = '"' + name.replace('"', '""') + '"'
        columns[name] = _sql_column(values)
        if any(isinstance(value, float) and math.isnan(value) for value in values):
            # DuckDB reads NaN in a frame as NULL, as is right for a missing value. A flag marks NaNs that were stored.
            columns[f"nan {place}"] = [isinstance(value, float) and math.isnan(value) for value in values]
            quoted = f"CASE WHEN \"nan {place}\" THEN 'NaN'::DOUBLE ELSE {quoted} END AS {quoted}"
        select.append(quoted)
    # The text of a query may come from anyone, so the query can read the table and nothing else on this machine.
    guarded: dict[str, Any] = {"enable_external_access": "false", "python_enable_replacements": "false"}
    with duckdb.connect(config=guarded) as connection:
        connection.register("records", pd.DataFrame(columns))
        connection.execute(f"CREATE VIEW runs AS SELECT {', '.join(select)} FROM records")
        connection.execute("SET lock_configuration = true")
        try:
            return connection.execute(query).df()
        except duckdb.Error as error:
            first_line = str(error).split("\n")[0]
            raise ConfigError(f"sql: the query cannot be answered ({first_line}); its table is 'runs'.") from error


def _columns(rows: list[Row]) -> list[str]:
    """The columns of all rows, ordered by section: identity, metrics, seconds, gradients, cost, configuration."""

    def section(name: str) -> int:
        if name in IDENTITY or name in COST:
            return 0 if name in IDENTITY else 4
        return {"fidelity_": 1, "seconds_": 2, "num_grads_": 3, "config.": 5}.get(
            _prefix(name), 1
        )  # the rest are metrics

    names = dict.fromkeys((*IDENTITY, *COST))
    for row in rows:
        names.update(dict.fromkeys(row))
    return sorted(names, key=section)


def _prefix(name: str) -> str:
    return next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")


def _sql_column(values: list[Any]) -> Any:
    """A column of one type: bools, integers or floats, else text, in which values that are not text are JSON."""
    import numpy as np
    import pandas as pd

    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pd.array(values, dtype="boolean")
    if kinds == {int}:
        return pd.array(values, dtype="Int64")
    if kinds and kinds <= {int, float}:
        return np.array([np.nan if value is None else value for value in values], dtype="float64")
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pd.Series(texts, dtype=object)
