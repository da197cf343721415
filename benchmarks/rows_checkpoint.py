"""What it costs to lose nothing: checkpoints, and looking up a sweep that is done."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows_whole import need_hydra
from benchmarks.timing import Options, Row

EVERY = 30.0
"""Seconds between checkpoints by default."""


def checkpoints(options: Options) -> list[Row]:
    """Seconds of a checkpoint, as a share of the seconds between two: everything from the copy of the state on.

    The runs are short and write one after nearly every block; those written while draws wait for a look are the
    largest.
    """
    need_hydra()
    from bdlbench.runs import checkpoint
    from bdlbench.runs.group import run

    rows = []
    write = checkpoint.Checkpoints.write
    shapes = [("sgld", 5, 2)] if options.quick else [("sgld", 50, 4), ("sgld", 1000, 4), ("nuts", 50, 4)]
    for method, width, chains in shapes:
        costs: list[float] = []
        sizes: list[int] = []

        def timed(self: Any, *arguments: Any) -> None:
            start = time.perf_counter()
            write(self, *arguments)
            costs.append(time.perf_counter() - start)  # noqa: B023
            folder = arguments[0][0].storage.writer.folder
            sizes.append((folder / "checkpoint/state.npz").stat().st_size)  # noqa: B023
            self.wait = 0.0  # as often as can be

        with tempfile.TemporaryDirectory() as store:
            few = "{num_chains: %d, num_warmup: 200, num_samples: 400, thinning: 1, batch_size: %s}"
            schedule = few % (chains, 32 if method == "sgld" else "null")
            overrides = [
                f"inference={method}", "data=diabetes", "progress=off", f"store.path={store}", f"network.width={width}",
                f"inference.schedule={schedule}", "store.checkpoint_seconds=0.01",
                *(["inference.max_tree_depth=4"] if method == "nuts" else []),
            ]  # fmt: skip
            checkpoint.Checkpoints.write = timed  # type: ignore[method-assign]
            try:
                took = time.perf_counter()
                run(overrides)
                took = time.perf_counter() - took
            finally:
                checkpoint.Checkpoints.write = write  # type: ignore[method-assign]
        dim = 10 * width + width + width + 1 + 1
        what = f"a checkpoint every {EVERY:g} s, {method}, {chains} chains x {dim:,} weights"
        detail = {"seconds": costs, "bytes": sizes, "run_seconds": took, "largest": 100 * max(costs) / EVERY}
        rows.append(Row(what, "%", [100 * cost / EVERY for cost in costs], 2.0, "", detail))
    return rows


def repeated_sweep(options: Options) -> list[Row]:
    """Wall seconds to find 1,000 finished runs, each file of them verified."""
    from bdlbench.runs.group import finished
    from bdlbench.store import Store

    number = 20 if options.quick else 1000
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for i in range(number):
            _finished_run(store, f"run-{i}")
        bytes_each = sum(file.stat().st_size for file in (Path(folder) / "run-0").rglob("*") if file.is_file())
        files_each = sum(file.is_file() for file in (Path(folder) / "run-0").rglob("*"))

        def once() -> float:
            again = Store(folder)
            start = time.perf_counter()
            assert all(finished(again, f"run-{i}") is not None for i in range(number))
            return time.perf_counter() - start

        values = [once() for _ in range(3)]
    detail = {"bytes_each": bytes_each, "files_each": files_each}
    return [
        Row(f"find and verify {number:,} finished runs of {bytes_each / 2**20:.1f} MB", "s", values, 20.0, "", detail)
    ]


def _finished_run(store: Any, run_id: str) -> None:
    """A run as NUTS of a small network leaves it: 4 chains x 500 draws, 100 test rows."""
    rng = np.random.default_rng(0)
    record = {"status": "complete", "labels": {}, "metrics": {"lppd": 0.0}, "seconds": {}, "num_grads": {}, "device": "",
              "versions": {}, "warnings": []}  # fmt: skip
    with store.writer(run_id, {"seed": 0}) as writer:
        variables = [("posterior", f"w{i}", (10,)) for i in range(4)]
        variables += [("sample_stats", name, ()) for name in ("lp", "n_steps", "energy", "step_size")]
        variables += [("log_likelihood_test", "y", (40,)), ("predictions", "y", (40,))]
        for group, name, extra in variables:
            dims = ["chain", "draw", *(f"{name}_dim_{axis}" for axis in range(len(extra)))]
            values = rng.normal(size=(4, 500, *extra)).astype("float32")
            writer.allocate(group, name, values.shape, "float32", dims)
            writer.write(group, name, 0, values)
        writer.append_curve({"num_draws": 500})
        writer.finish(record)
