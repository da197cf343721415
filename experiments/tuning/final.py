"""What the tuned settings come to on split 0's test rows: a report, by which nothing is chosen.

python -m experiments.tuning.final [--only DATA METHOD] [--store PATH] [--table]
"""

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from bdlbench.runs import group
from bdlbench.runs.configuration import compose
from bdlbench.runs.job import make_job
from bdlbench.sampling.devices import setup_jax
from bdlbench.store import Store
from experiments.tuning import trials
from experiments.tuning.spaces import DATA, METHODS

Record = dict[str, Any]
SCORES = ("LPPD", "RMSE or accuracy", "R-hat", "ESS", "k-hat", "gradients", "tuning", "seconds")
COLUMNS = ("data", "method", *SCORES, "remarks")


def configuration(data: str, method: str, path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What ``bdlbench data=<data> inference=<method>`` composes."""
    return compose([f"data={data}", f"inference={method}", f"store.path={path}", "progress=off"])


def cell(value: Any, form: str) -> str:
    return "–" if value is None else format(value, form)


def row(data: str, method: str, record: Record, price: float | None) -> list[str]:
    """A line of the table; scores in original units, and what the search spent, also where the preset was best."""
    found = record["metrics"]
    remarks = [record["reason"]] if record["reason"] else []
    remarks += [w for w in record.get("warnings", []) if "R-hat" not in w and "bulk ESS" not in w and "k-hat" not in w]
    return [
        data,
        method,
        cell(found.get("lppd"), ".3f"),
        cell(found.get("accuracy", found.get("rmse")), ".3f"),
        cell(found.get("rhat_max"), ".3f"),
        cell(found.get("ess_bulk_min"), ".0f"),
        cell(found.get("psis_khat"), ".1f"),
        cell(sum(record.get("num_grads", {}).values()), ",.0f"),
        cell(price, ",.0f"),
        cell(sum(v for k, v in record["seconds"].items() if k in ("warmup", "sample")), ".0f"),
        "; ".join(remarks),
    ]


def table(rows: Iterable[list[str]]) -> str:
    """Markdown, numbers to the right."""
    lines = [list(COLUMNS), ["---", "---", *["---:"] * len(SCORES), "---"], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="data sets and methods, any number of each")
    parser.add_argument("--store", default="results/store", help="where the runs are kept")
    parser.add_argument("--table", action="store_true", help="run nothing, print the table of what the store has")
    arguments = parser.parse_args(argv)
    store, rows, searches = Store(arguments.store), [], trials.in_force(trials.read())
    setup_jax()
    for data in [name for name in DATA if name in arguments.only] or DATA:
        for method in [name for name in METHODS if name in arguments.only] or METHODS:
            if (data, method) not in searches:
                continue
            config, labels = configuration(data, method, arguments.store)
            if arguments.table:
                record = group.finished(store, make_job(config, labels).id)
            else:
                record = group.run_config(config, labels)
                print(f"{data} {method}: {record['status']}", file=sys.stderr, flush=True)
            if record is not None:
                rows.append(row(data, method, record, searches[data, method][0].search_num_grads))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
