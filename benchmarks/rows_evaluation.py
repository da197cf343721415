"""Rows about evaluation: worth and bias, what looks cost a run, the verdicts' command, the check of all references."""

import tempfile
import time
from pathlib import Path

import numpy as np

from bdlbench.metrics.fidelity import Reference, fidelity
from benchmarks.rows_sweep import cost_of_process, timed
from benchmarks.rows_whole import environment, need_hydra
from benchmarks.timing import Options, Row

_CHECK = "import sys; from bdlbench.cli.references import main; sys.exit(main(['check']))"
_COMPARE = "import sys; from bdlbench.cli.results import main; sys.exit(main(sys.argv[1:]))"


def worth(options: Options) -> list[Row]:
    """Worth, bias and the rest of 4,000 draws against 4,000 reference draws at 60 points, the reference's part included."""
    num_draws, num_points = (40, 6) if options.quick else (500, 60)
    rng = np.random.default_rng(0)
    draws, reference = (rng.normal(size=(8, num_draws, num_points)).astype(np.float32) for _ in range(2))
    values = []
    for _ in range(options.repeat + 1):
        start = time.perf_counter()
        fidelity(draws, Reference(reference))
        values.append(time.perf_counter() - start)
    return [Row("worth and bias, 4,000 draws against 4,000 at 60 points", "s", values[1:], 1.0)]


def looks(options: Options) -> list[Row]:
    """The share of a run, compilation left out, that goes into its curve: scores, function values, worth and bias.

    The problem is that of the diabetes reference. The first run of a method compiles and is not counted.
    """
    need_hydra()
    from bdlbench.runs import against, member
    from bdlbench.runs.group import run

    rows = []
    short = ("inference.schedule={num_chains: 2, num_warmup: 20, num_samples: 20, thinning: 1, batch_size: null}",)
    for method in ("nuts", "sgld"):
        shares: list[float] = []
        spent: list[float] = []
        with tempfile.TemporaryDirectory() as store:
            for seed in range(2 if options.quick else 4):
                words = [f"inference={method}", "reference=diabetes", f"seed={seed}", "progress=off"]
                words += [f"store.path={store}", *(short if options.quick else ())]
                with timed({against.Beside: ("values",), member.Member: ("append_curve",)}) as seconds:
                    record = run(words)
                    spent.append(seconds())
                shares.append(
                    100 * spent[-1] / sum(record["seconds"][part] for part in ("warmup", "sample", "predict"))
                )
        what = f"looks with fidelity, share of a run, diabetes 10-10-1, {method}"
        rows.append(Row(what, "%", shares[1:], 5.0, "", {"seconds": spent[1:]}))
    return rows


def verdicts(options: Options) -> list[Row]:
    """``bdlbench-results compare`` over 20 splits, 10 methods and 4 data sets: the whole command, programs compiled before."""
    from bdlbench.store import Store

    methods, sets, splits = (3, 2, 4) if options.quick else (10, 4, 20)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        for data in range(sets):
            for split in range(splits):
                level = rng.normal()
                for method in range(methods):
                    config = {"seed": 0, "data": {"split": split, "test_fraction": 0.1}}
                    with store.writer(f"m{method}-d{data}-s{split}", config) as writer:
                        writer.finish({
                            "status": "complete", "labels": {"data": f"d{data}", "inference": f"m{method}"},
                            "target_id": f"t{data}-{split}", "seconds": {}, "num_grads": {}, "device": "cpu",
                            "metrics": {"lppd": level + 0.01 * method + 0.05 * rng.normal()}, "versions": {}, "warnings": [],
                        })  # fmt: skip
        words = ["compare", "--store", str(store.path), "--metric", "lppd", "--delta", "0.02"]
        env = environment() | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        costs = [cost_of_process(["-c", _COMPARE, *words], env) for _ in range(2 if options.quick else 4)]
    what = f"verdicts, {splits} splits x {methods} methods x {sets} sets: whole command, warm"
    return [Row(what, "s", [cost.wall for cost in costs[1:]], 15.0, "", {"cold": costs[0].wall})]


def check(options: Options) -> list[Row]:
    """``bdlbench-references check`` of all shipped references: checksums and certificates, without sampling."""
    values = [cost_of_process(["-c", _CHECK], environment()).wall for _ in range(1 if options.quick else 3)]
    return [Row("all references' check: whole command", "s", values, 5.0)]
