"""Rows about whole runs: what is compiled again, a new process, memory."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.timing import Options, Row, Skipped

COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's event for a program handed to XLA, found in the persistent cache or not."""
REPOSITORY = Path(__file__).resolve().parent.parent
_SHRINK = {
    "nuts": ("inference.schedule.num_warmup=20", "inference.schedule.num_samples=20", "inference.max_tree_depth=4"),
    "svi": ("inference.schedule.num_warmup=200", "inference.schedule.num_samples=20"),
    "sgld": ("inference.schedule.num_warmup=200", "inference.schedule.num_samples=20"),
}


def second_run(options: Options) -> list[Row]:
    """Programs compiled by a run with another seed and another split, after one of each method in this process."""
    need_hydra()
    from bdlbench.runs.group import run

    counted: list[str] = []
    listening = True

    def listen(event: str, duration: float, **more: Any) -> None:
        if listening and event == COMPILED:
            counted.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    values: list[float] = []
    try:
        with tempfile.TemporaryDirectory() as store:
            for method, shrink in _SHRINK.items():
                same = [f"inference={method}", "data=diabetes", "progress=off", f"store.path={store}", *shrink]
                run([*same, "network.width=5"] if options.quick else same)
                first = len(counted)
                run([*same, "seed=1", "data.split=1", *(["network.width=5"] if options.quick else [])])
                values.append(float(len(counted) - first))
    finally:
        listening = False
    detail = {"methods": list(_SHRINK), "programs_in_first_runs": len(counted) - sum(values)}
    what = "programs compiled by a second run, other seed and split (nuts, svi, sgld)"
    return [Row(what, "programs", values, 0.0, "NumPyro compiles each time", detail)]


def new_process(options: Options) -> list[Row]:
    """Wall seconds of one command in a new process with a warm compilation cache, a new store each time."""
    need_hydra()
    shrink = list(_SHRINK["svi"]) if options.quick else []
    with tempfile.TemporaryDirectory() as folder:
        env = environment() | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}

        def once(i: int) -> float:
            start = time.perf_counter()
            command = ["inference=svi", "data=diabetes", f"store.path={folder}/store{i}", *shrink]
            in_process(["-c", "import sys; from bdlbench.cli.main import main; sys.exit(main())", *command], env)
            return time.perf_counter() - start

        cold = once(0)
        values = [once(i) for i in range(1, 1 + max(1, min(5, options.repeat // 3)))]
    what = "bdlbench inference=svi data=diabetes in a new process, compilation cache warm"
    return [Row(what, "s", values, 12.0, "imports alone 8.4 s with everything eager", {"cache_cold_s": cold})]


def memory(options: Options) -> list[Row]:
    """Peak memory of a run against its number of draws."""
    need_hydra()
    width, chains = (5, 2) if options.quick else (200, 4)
    small, large = (20, 200) if options.quick else (1000, 10_000)
    dim = 10 * width + width + width + 1 + 1
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        env = environment() | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        for draws in (small, small, large):  # the first fills the cache: compilers take memory too
            overrides = [
                "inference=sgld", "data=diabetes", "progress=off", f"store.path={folder}/{draws}", "rerun=true",
                f"network.width={width}", f"inference.schedule.num_chains={chains}",
                "inference.schedule.num_warmup=100", f"inference.schedule.num_samples={draws}",
                "inference.schedule.thinning=1",
            ]  # fmt: skip
            code = f"from bdlbench.runs.group import run; print('peak', run({overrides!r})['peak_memory_bytes'])"
            found[draws] = int(in_process(["-c", code], env).split("peak")[-1]) / 2**20
    rows = []
    for draws in (small, large):
        all_draws = 4 * draws * chains * dim / 2**20
        what = f"peak memory, SGLD, {draws:,} draws x {chains} chains x {dim:,} weights ({all_draws:,.0f} MB in all)"
        rows.append(Row(what, "MB", [found[draws]], None, "", {"all_draws_mb": all_draws}))
    return rows


def need_hydra() -> None:
    """Skip the row on a machine without Hydra."""
    try:
        import hydra  # noqa: F401
    except ImportError as error:
        raise Skipped("Hydra is not installed, and whole runs are configured by it") from error


def environment() -> dict[str, str]:
    """Variables of this process, with the checkout in front of its path."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def in_process(arguments: list[str], env: dict[str, str]) -> str:
    """Python in a process of its own; returns what it printed."""
    done = subprocess.run([sys.executable, *arguments], env=env, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)[:200]}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout
