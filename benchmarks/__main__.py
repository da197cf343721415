"""``python -m benchmarks``: measure, print the table, keep the figures."""

import argparse
import datetime
import json
import platform
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from bdlbench.runs.provenance import git_commit, versions
from bdlbench.sampling.devices import setup_jax
from benchmarks import rows_checkpoint, rows_evaluation, rows_loop, rows_methods, rows_mile, rows_sweep, rows_whole
from benchmarks.timing import Options, Row, Skipped

ROWS: dict[str, Callable[[Options], list[Row]]] = {
    "nuts": rows_loop.nuts_one_chain,
    "nuts_chains": rows_loop.nuts_four_chains,
    "recompile": rows_whole.second_run,
    "sgld": rows_loop.sgld_step,
    "svi": rows_loop.svi_step,
    **rows_methods.ROWS,
    "linear_regression": rows_loop.linear_regression,
    "new_process": rows_whole.new_process,
    "memory": rows_whole.memory,
    "checkpoints": rows_checkpoint.checkpoints,
    "found": rows_checkpoint.repeated_sweep,
    "lanes": rows_loop.many_lanes,
    "deep_ensemble": rows_mile.deep_ensemble,
    "mile": rows_mile.mile,
    "sweep_nuts": rows_sweep.nuts_splits,
    "sweep_sgld": rows_sweep.sgld_jobs,
    "sweep_growth": rows_sweep.growth,
    "sweep_overhead": rows_sweep.overhead,
    "sweep_repeat": rows_sweep.repeated,
    "store_table": rows_sweep.table,
    "worth": rows_evaluation.worth,
    "looks": rows_evaluation.looks,
    "verdicts": rows_evaluation.verdicts,
    "references": rows_evaluation.check,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the rows asked for; the exit code does not depend on the figures."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="NAME", help=", ".join(ROWS)
    )
    parser.add_argument("--repeat", type=int, default=Options().repeat, help="pairs of measurements a ratio")
    parser.add_argument("--lanes", action="store_true", help="many lanes on a CPU too")
    parser.add_argument("--full", action="store_true", help="MILE at its published length: minutes")
    parser.add_argument("--quick", action="store_true", help="tiny problems: walks through, the figures mean nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON")
    args = parser.parse_args(argv)
    setup_jax()
    options = Options(args.repeat, 0.01 if args.quick else Options().least, args.quick, args.lanes, args.full)

    measured: dict[str, list[Row] | str] = {}
    for name in args.only:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        try:
            measured[name] = ROWS[name](options)
        except Skipped as why:
            measured[name] = str(why)
        except Exception as error:
            measured[name] = f"failed: {type(error).__name__}: {error}"
    show(measured)
    print(f"kept in {keep(measured, options, args.out)}")
    return 0


def show(measured: dict[str, list[Row] | str]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{device()}, JAX {jax.__version__}")
    table.add_column("what", overflow="fold", min_width=24)
    for column in ("median [min-max]", "limit", "met"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("today's best elsewhere", overflow="fold")
    for name, rows in measured.items():
        if isinstance(rows, str):
            # The reason of a failure is long, and only the last column is made for that.
            state, _, reason = rows.partition(": ") if rows.startswith("failed") else ("skipped", "", rows)
            table.add_row(name, state, "", "", " ".join(reason.split()))
            continue
        for row in rows:
            spread = f" [{row.values and min(row.values):.3g}-{max(row.values):.3g}]" if len(row.values) > 1 else ""
            limit = "" if row.limit is None else f"{row.limit:g} {row.unit}"
            met = {None: "", True: "yes", False: "NO"}[row.met]
            table.add_row(row.what, f"{row.median:.3g}{spread} {row.unit}", limit, met, row.elsewhere)
    console = Console()
    Console(width=max(console.width, 140)).print(table)


def keep(measured: dict[str, list[Row] | str], options: Options, folder: Path) -> Path:
    """Write everything measured, all repeats, to ``<device>-<date>.json``."""
    now = datetime.datetime.now(datetime.UTC)
    record: dict[str, Any] = {
        "created": now.isoformat(timespec="seconds"),
        "device": device(),
        "num_devices": jax.device_count(),
        "backend": jax.default_backend(),
        "versions": versions(),
        "git_commit": git_commit(),
        "options": options._asdict(),
        "rows": {
            name: rows if isinstance(rows, str) else [{**r._asdict(), "median": r.median, "met": r.met} for r in rows]
            for name, rows in measured.items()
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', device().lower()).strip('-')}-{now:%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    return path


def device() -> str:
    """What computes: the accelerator, or the processor's model and number of cores in use."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() != "cpu":
        return f"{kind} x {jax.device_count()}"
    return f"{platform.machine()} {kind} x {jax.device_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
