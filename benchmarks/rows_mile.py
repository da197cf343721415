"""Rows about ensembles: MILE beside the bde package, whole runs in new processes; a deep ensemble's step."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdlbench.data.fetch import files_at
from bdlbench.data.uci import airfoil
from bdlbench.inference import point
from bdlbench.model import likelihoods, priors
from bdlbench.model.bnn import bnn
from bdlbench.networks.mlp import MLP
from bdlbench.sampling import lanes
from bdlbench.types import Data, Schedule, Stage
from benchmarks import problems
from benchmarks.rows_whole import REPOSITORY, environment, in_process, need_hydra
from benchmarks.timing import Options, Row, Skipped, in_blocks, in_turns, ratio_row, steady

MEMBERS, BATCH = 10, 32
LENGTHS = {"full": (50_000, 1000), "short": (5000, 100), "quick": (100, 10)}
"""Warm-up steps and draws, of which every tenth step leaves one."""
PEER = "BDE_PYTHON"
"""The environment variable that names an interpreter with sklearn-contrib-bde."""
_OURS = """
import json, resource, sys, time
from bdlbench.runs.group import run
cpu = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
start, used = time.perf_counter(), cpu()
record = run(json.loads(sys.argv[1]))
took, used = time.perf_counter() - start, cpu() - used
print("found", json.dumps({"seconds": took, "cpu_seconds": used, "phases": record["seconds"],
                           "metrics": record["metrics"], "status": record["status"]}))
"""


def mile(options: Options) -> list[Row]:
    """MILE on airfoil, here and in the bde package: compiling, training, warm-up, draws and predictions, imports apart.

    Same split, standardisation, prior, network, likelihood and schedule. The bde package trains a member on all rows at
    once for up to 1,200 steps; ours on batches, as the paper does; both stop early and sample given all training rows.
    """
    need_hydra()
    length = "quick" if options.quick else "full" if options.full else "short"
    num_warmup, num_samples = LENGTHS[length]
    members = 2 if options.quick else MEMBERS
    data = airfoil(files=files_at(), split=0, test_fraction=0.2, validation_fraction=0.0, n_train=None)
    assert data.test is not None
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            "data=airfoil", "inference=mile", "network.width=16", "network.depth=4", "network.activation=relu",
            "likelihood=heteroscedastic", "likelihood.min_scale=1e-6", "prior=iid", "progress=off",
            f"store.path={folder}/store", f"inference.schedule.num_chains={members}",
            f"inference.schedule.num_warmup={num_warmup}", f"inference.schedule.num_samples={num_samples}",
            *(["inference.before.0.schedule.num_warmup=100"] if options.quick else []),
        ]  # fmt: skip
        env = environment() | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        ours = json.loads(in_process(["-c", _OURS, json.dumps(overrides)], env).split("found")[-1])
        rows = f"{folder}/rows.npz"
        np.savez(rows, x=data.train.x, y=data.train.y, x_test=data.test.x, y_test=data.test.y)
        theirs = _bde(rows, members, num_warmup, 10 * num_samples, 20 if options.quick else 1200)
    scores = ours["metrics"]["standardized"]
    ours |= {"rmse": scores["rmse"], "nll": -scores["lppd"]}
    what = f"MILE on airfoil, {members} members, warm-up {num_warmup:,}, {num_samples:,} draws thinned by 10"
    if isinstance(theirs, str):
        return [Row(f"{what} (the bde package: {theirs})", "s", [ours["seconds"]], None, "", ours)]
    both = {"ours": ours, "bde": theirs}
    return [
        Row(f"{what} / the bde package, wall seconds", "x", [ours["seconds"] / theirs["seconds"]], 0.5,
            f"bde {theirs['seconds']:.0f} s", both),
        Row("  the same, CPU seconds", "x", [ours["cpu_seconds"] / theirs["cpu_seconds"]], 0.5,
            f"bde {theirs['cpu_seconds']:.0f} s"),
        Row("  RMSE on test rows, standardised", "", [ours["rmse"]], theirs["rmse"], f"bde {theirs['rmse']:.3f}"),
        Row("  negative log score of the mixture, standardised", "", [ours["nll"]], theirs["nll"],
            f"bde {theirs['nll']:.3f}"),
    ]  # fmt: skip


def _bde(rows: str, members: int, num_warmup: int, num_steps: int, epochs: int) -> dict[str, float] | str:
    """What the bde package needs and reaches, or why it could not be run."""
    python = os.environ.get(PEER, sys.executable)
    try:
        found = subprocess.run([python, "-c", "import bde"], capture_output=True, check=False).returncode == 0
    except OSError:
        found = False
    if not found:
        return f"not importable; it pins a BlackJAX of its own: name an interpreter that has it in {PEER}"
    settings = {
        "n_members": members, "hidden_layers": [16] * 4, "activation": "relu", "seed": 0, "epochs": epochs,
        "patience": 20, "validation_split": 0.15, "lr": 1e-3, "weight_decay": 1e-3, "warmup_steps": num_warmup,
        "n_samples": num_steps, "n_thinning": 10,
    }  # fmt: skip
    command = [python, str(Path(REPOSITORY) / "benchmarks" / "bde_peer.py"), rows, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1:]}"
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def deep_ensemble(options: Options) -> list[Row]:
    """A training step of ten members over ten bare gradients of one fixed batch, laid out over the devices alike."""
    if jax.default_backend() != "cpu":
        raise Skipped("lanes are laid out for a CPU")
    problem, least = _airfoil(options.quick), max(options.least, 0.01 if options.quick else 0.5)
    total = 2000 if options.quick else 2_000_000
    share = BATCH / len(problem.y)
    measures: dict[str, Callable[[], float]] = {
        "bare": steady(_bare_gradients(problem, MEMBERS), least),
        "one": steady(problems.bare_gradient(problem, BATCH), options.least),
    }
    settings: dict[str, Any] = {
        "last theta": {"validate_every": None, "patience": None, "validation_fraction": None},
        # Patience without end: every step counted is a step taken.
        "early stopping": {"validate_every": 50, "patience": total, "validation_fraction": 0.15},
    }
    for name, hyper in settings.items():
        make = functools.partial(
            point.deep_ensemble, optimizer=optax.adamw(1e-3, weight_decay=1e-3), objective="posterior", **hyper
        )
        stage = Stage(name, lambda target, schedule, numbers, make=make: make(target, schedule),
                      Schedule(MEMBERS, total, 1, 0, BATCH))  # fmt: skip
        run = problems.blocks(problem, (stage,), MEMBERS, block_seconds=least)
        measures[name] = in_blocks(run, 0, "warmup", lambda b: float(b.num_grads.sum()) / share, least)
    found = in_turns(measures, options.repeat)
    rows = [
        ratio_row(f"deep ensemble of {MEMBERS} on airfoil, {name}, a step / bare gradient of a fixed batch of {BATCH}",
                  found, name, "bare", 1.2)
        for name in settings
    ]  # fmt: skip
    rows.append(ratio_row("  ten members' bare gradients on all devices / on one", found, "bare", "one"))
    return rows


def _airfoil(quick: bool) -> problems.Problem:
    """Airfoil's training rows with the network and likelihood of MILE's protocol; noise in their place where quick."""
    model = functools.partial(
        bnn,
        network=functools.partial(MLP, width=16, depth=4, activation="relu"),
        prior=priors.iid(scale=1.0),
        likelihood=likelihoods.heteroscedastic("regression", 1, min_scale=1e-6),
    )
    if quick:
        noise = np.random.default_rng(0).standard_normal((100, 6)).astype(np.float32)
        return problems.Problem("noise 5-16-16-16-16-2", model, noise[:, :5], noise[:, 5])
    data = airfoil(files=files_at(), split=0, test_fraction=0.2, validation_fraction=0.0, n_train=None)
    return problems.Problem("airfoil 5-16-16-16-16-2", model, data.train.x, data.train.y)


def _bare_gradients(problem: problems.Problem, members: int) -> Callable[[int], Any]:
    """As :func:`benchmarks.problems.bare_gradient`, for all members over the devices; n is the number in all."""
    x, y, size = jnp.asarray(problem.x[:BATCH]), jnp.asarray(problem.y[:BATCH]), len(problem.y)
    keys = jax.random.split(jax.random.key(0), members)
    thetas = lanes.place(jax.jit(jax.vmap(lambda key: problem.target(x, y).init_params(key)))(keys))
    shared = lanes.replicate((x, y))

    def one(rows: Any, count: Any, theta: Any) -> Any:
        target = problem.target(*rows)

        def move(i: Any, carry: Any) -> Any:
            value, grad = target.value_and_grad(carry[0], Data(*rows, size))
            return carry[0] + 1e-9 * grad, carry[1] + value

        return jax.lax.fori_loop(0, count, move, (theta, jnp.zeros(())))

    over = lanes.over_lanes(one, 2)

    def gradients(count: int) -> Any:
        each = lanes.replicate(np.int32(max(1, count // members)))
        return over(shared, each, thetas)

    return gradients
