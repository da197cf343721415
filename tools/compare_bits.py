"""Compare the draws that two checkouts give, bit for bit: ``python -m tools.compare_bits OTHER_CHECKOUT``.

Each checkout runs one preset of each family, a sweep whose jobs are lanes of one program, and a run that is stopped in
the middle and resumed. The configurations and seeds are the same. Every stored array is then compared by its bytes.
Hashes are not kept, because bits depend on the machine and on the versions of the libraries.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bdlbench.store import Store

FAMILIES = (
    "nuts", "hmc", "chees", "mclmc", "adjusted_mclmc", "sgld", "sgld_cv", "psgld", "cyclical_sgld", "sghmc", "baoa",
    "sgnht", "svi", "svi_fullrank", "svgd", "ivon", "map", "deep_ensemble", "mc_dropout", "swag", "laplace", "smc", "mile",
)  # fmt: skip
"""One preset of each family, and the other presets that have code of their own."""
SHORTER = {"mile": ("inference.before.0.schedule.num_warmup=200",)}
"""More overrides that shorten a preset, because it has more than one schedule."""
SMALL = ("data=cosine_gap", "network.width=8", "progress=off", "~tuned")
SHORT = ("inference.schedule.num_warmup=60", "inference.schedule.num_samples=20", "inference.schedule.num_chains=2")


def command(checkout: Path, store: Path, *overrides: str, multirun: bool = False) -> list[str]:
    """The command line of a checkout. Its module may be at the old or at the new place."""
    module = "bdlbench.cli.main" if (checkout / "bdlbench/cli/main.py").exists() else "bdlbench.cli"
    return [sys.executable, "-m", module, *(["-m"] if multirun else []), f"store.path={store}", *SMALL, *overrides]


def environment(checkout: Path) -> dict[str, str]:
    """The environment variables with which Python imports the package of this checkout."""
    return {**os.environ, "PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}


def run_all(checkout: Path, store: Path, presets: Sequence[str]) -> None:
    """Run the presets, the sweep and the resumed run of one checkout into a store."""
    options = {"cwd": checkout, "env": environment(checkout), "capture_output": True, "text": True}
    for preset in presets:
        done = subprocess.run(
            command(checkout, store, f"inference={preset}", *SHORT, *SHORTER.get(preset, ())), check=False, **options
        )
        if done.returncode:
            print(f"{checkout.name}: {preset} ends with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    subprocess.run(
        command(checkout, store, "inference=sgld", *SHORT, "seed=1,2,3", "inference.step_size=1e-4,2e-4", multirun=True),
        check=True, **options,
    )  # fmt: skip
    long = ("inference=nuts", "inference.schedule.num_samples=20000", "seed=7", "store.checkpoint_seconds=0.5")
    process = subprocess.Popen(command(checkout, store, *long), cwd=checkout, env=environment(checkout))
    left = time.monotonic() + 120
    while not list(store.glob("*s7*/checkpoint/*")) and process.poll() is None and time.monotonic() < left:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    stopped = process.wait()
    subprocess.run(command(checkout, store, *long), check=True, **options)
    print(f"{checkout.name}: the run that was stopped had exit code {stopped} and was resumed")


def runs_by_setting(path: Path) -> dict[str, str]:
    """The id of each run by its settings, because two checkouts may form ids in different ways."""
    found = {}
    for folder in sorted(path.iterdir()):
        if not (folder / "run.json").exists():
            continue
        record = json.loads((folder / "run.json").read_text())
        step = record["config"]["inference"].get("step_size")
        samples = record["config"]["inference"]["schedule"]["num_samples"]
        found[f"{record['labels']['inference']} seed {record['seed']} step size {step} draws {samples}"] = record["id"]
    return found


def differences(one: Path, other: Path) -> Iterator[str]:
    """A line for each difference between two stores of runs with the same settings."""
    left, right = runs_by_setting(one), runs_by_setting(other)
    for setting in sorted({*left, *right}):
        if setting not in left or setting not in right:
            yield f"{setting}: only in {'the first' if setting in left else 'the second'}"
            continue
        with Store(one).posterior(left[setting]) as a, Store(other).posterior(right[setting]) as b:
            for group in ("posterior", "sample_stats", "predictions", "log_likelihood_test"):
                mine, theirs = (tree[group].data_vars if group in tree.children else {} for tree in (a, b))
                for name in sorted({*mine, *theirs}):
                    same = name in mine and name in theirs and np.array_equal(mine[name], theirs[name], equal_nan=True)
                    if not same:
                        yield f"{setting}: {group}/{name} differs"
    print(f"compared {len(left)} and {len(right)} runs")


def main() -> int:
    """Run both checkouts and print what differs; the exit code is 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout, a worktree of an earlier commit for example")
    parser.add_argument("--presets", nargs="+", default=FAMILIES)
    parser.add_argument("--keep", type=Path, help="a folder for the two stores, which are not removed then")
    options = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        for name, checkout in (("here", here), ("other", options.other.resolve())):
            run_all(checkout, folder / name, options.presets)
        found = list(differences(folder / "here", folder / "other"))
    for line in found:
        print(line)
    print("the bits differ" if found else "every stored array has the same bits")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
