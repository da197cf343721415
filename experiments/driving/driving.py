"""Braking distance beyond the speeds that were measured: which prior, and which method, says how uncertain it is?

python -m experiments.driving.driving --size small|medium|full

``small`` prints its table. ``medium`` and ``full`` write results/tables/driving.csv and driving_bands.csv, from which
README.md and the notebook are made. A run that was stopped goes on where it was.
"""

import argparse
import csv
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import cells
from experiments.cells import Cell, Cells, Summary

FRICTION, REACTION, NOISE, ROWS = 0.7, 1.0, 1.0, 40
TRUTHS = {"physics": 0.0, "physics and reaction": REACTION}
"""The two laws: the driver's seconds of reaction, during which the car keeps its speed."""
NETWORKS = {
    "tanh network, scale 1": ("tanh", 1.0),
    "tanh network, scale 3": ("tanh", 3.0),
    "ReLU network, scale 1": ("relu", 1.0),
    "ReLU network, scale 3": ("relu", 3.0),
}
MODELS = (
    *NETWORKS,
    "v^2 / (2 mu g)",
    "v^2 / (2 mu g) + t v",
    "v^2 / (2 mu g) + tanh network",
    "v^2 / (2 mu g) + ReLU network",
)
LEAST_SQUARES = ("v^2", "v, v^2")
"""The regressors of the two baselines of least squares, without a constant."""
BY = ("truth", "model", "method")
METRICS = (
    *("coverage", "width", "nll", "rmse", "near_coverage", "near_nll", "near_rmse"),
    *("mu", "mu_inside", "rhat", "num_grads", "cpu_seconds"),
)
GRID = np.linspace(5.0, 40.0, 15)
LEVEL = 0.9
WIDTH = 20


class Size(NamedTuple):
    """What a size of the experiment computes.

    Attributes
    ----------
    data_sets : int
    truths : tuple of str
    fits : tuple of (model, method)
        In the order in which they are computed: those that share a program follow each other.
    methods : dict
        The options of each method.
    cpu_minutes : float
        The estimated price in minutes of one core, with all programs compiled.
    """

    data_sets: int
    truths: tuple[str, ...]
    fits: tuple[tuple[str, str], ...]
    methods: Mapping[str, Mapping[str, Any]]
    cpu_minutes: float


METHODS = ("map", "deep_ensemble", "svi", "nuts")
FITS = tuple(
    (model, method)
    for model in (
        "v^2 / (2 mu g)",
        "v^2 / (2 mu g) + t v",
        "ReLU network, scale 3",
        "ReLU network, scale 1",
        "v^2 / (2 mu g) + tanh network",
        "tanh network, scale 1",
        "tanh network, scale 3",
        "v^2 / (2 mu g) + ReLU network",
    )
    for method in METHODS
    if not (method == "deep_ensemble" and model in ("v^2 / (2 mu g)", "v^2 / (2 mu g) + t v"))
)
"""Without ensembles of physics alone, whose members would find the same mode."""
POINT = {"map": {"num_warmup": 3000}, "deep_ensemble": {"num_chains": 5, "num_warmup": 3000, "batch_size": None}}
PATIENT = {"optimizer.learning_rate": 1e-3, "num_warmup": 20000}
"""For models in metres and seconds: at the preset's learning rate of 0.01, Adam's jitter in log mu is a metre at 40 m/s."""
SIZES = {
    "small": Size(
        2,
        ("physics and reaction",),
        (("tanh network, scale 1", "map"), ("v^2 / (2 mu g) + t v", "nuts")),
        {"map": {"num_warmup": 1000}, "nuts": {"num_warmup": 200, "num_samples": 200, "max_tree_depth": 5}},
        0.5,
    ),
    "medium": Size(
        20,
        tuple(TRUTHS),
        FITS,
        POINT
        | {
            "svi": {"num_warmup": 10000, "num_samples": 500},
            "nuts": {"num_warmup": 300, "num_samples": 300, "max_tree_depth": 7},
        },
        30.0,
    ),
    "full": Size(
        20,
        tuple(TRUTHS),
        FITS,
        POINT | {"svi": {"num_warmup": 40000, "num_samples": 1000}, "nuts": {"num_warmup": 1500, "num_samples": 1500}},
        160.0,
    ),
}


class Rows(NamedTuple):
    """One data set: training rows, test rows between 5 and 25 m/s and between 30 and 40 m/s; x is (n, 1) in m/s."""

    x: np.ndarray
    y: np.ndarray
    near_x: np.ndarray
    near_y: np.ndarray
    far_x: np.ndarray
    far_y: np.ndarray


def rows(data_set: int, truth: str) -> Rows:
    """Draw data set number ``data_set`` of a law. The two laws share their speeds and their noise."""
    from bdlbench.data.physics import braking

    made = braking(
        n=ROWS, n_test=300, friction=FRICTION, noise=NOISE, seed=data_set, validation_fraction=0.0, n_train=None,
        standardize=False,
    )  # fmt: skip
    fast = made.shifted["fast"]
    asked = fast.x[:, 0] >= 30.0
    parts = (made.train.x, made.train.y, made.test.x, made.test.y, fast.x[asked], fast.y[asked])
    x, y, near_x, near_y, far_x, far_y = (np.asarray(part, np.float64) for part in parts)
    late = TRUTHS[truth]
    return Rows(x, y + late * x[:, 0], near_x, near_y + late * near_x[:, 0], far_x, far_y + late * far_x[:, 0])


def law(v: np.ndarray, truth: str) -> np.ndarray:
    """The distance in metres without noise at speeds v in m/s."""
    from bdlbench.data.physics import GRAVITY

    return v**2 / (2 * FRICTION * GRAVITY) + TRUTHS[truth] * v


# ---- models


def physics(x: Any, y: Any = None, *, reaction: bool, activation: str | None) -> None:
    """Distance = v^2 / (2 mu g) + t v + r(v) + noise, in metres, with or without t and r.

    mu ~ LogNormal(log 0.5, 0.5), t ~ HalfNormal(2 s), noise sd ~ HalfNormal(5 m). r is 10 m times a network of one hidden
    layer of (v - 15) / 6 with the prior ``fan_in`` at scale 1.
    """
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    from bdlbench.data.physics import GRAVITY
    from bdlbench.model.bnn import random_network
    from bdlbench.model.priors import fan_in
    from bdlbench.networks.mlp import MLP

    v = x[:, 0]
    distance = v**2 / (2 * numpyro.sample("mu", dist.LogNormal(jnp.log(0.5), 0.5)) * GRAVITY)
    if reaction:
        distance = distance + numpyro.sample("reaction", dist.HalfNormal(2.0)) * v
    if activation is not None:
        seen = (x - 15.0) / 6.0
        network = functools.partial(MLP, width=WIDTH, depth=1, activation=activation)
        prior = fan_in(weight_scale=1.0, bias_scale=1.0)
        distance = distance + 10.0 * random_network(network, prior, seen, 1)(seen)[:, 0]
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    numpyro.sample("y", dist.Normal(distance, sigma), obs=y)


# One object for each model: fits with the same object share their compiled program.
PROGRAMS = {
    "v^2 / (2 mu g)": functools.partial(physics, reaction=False, activation=None),
    "v^2 / (2 mu g) + t v": functools.partial(physics, reaction=True, activation=None),
    "v^2 / (2 mu g) + tanh network": functools.partial(physics, reaction=False, activation="tanh"),
    "v^2 / (2 mu g) + ReLU network": functools.partial(physics, reaction=False, activation="relu"),
}


def fit(model: str, method: str, options: Mapping[str, Any], data: Rows, seed: int) -> Any:
    """The posterior of a model by a method."""
    import bdlbench as bdl

    if model in PROGRAMS:
        return bdl.fit(
            model=PROGRAMS[model], x=data.x, y=data.y, inference=method, standardize=False, seed=seed, progress=False,
            options=dict(options),
        )  # fmt: skip
    activation, scale = NETWORKS[model]
    network = {"network.width": WIDTH, "network.activation": activation, "prior.weight_scale": scale}
    return bdl.fit(
        "mlp", data.x, data.y, likelihood="gaussian", inference=method, seed=seed, progress=False,
        options=network | dict(options),
    )  # fmt: skip


# ---- cells


def scores(y: np.ndarray, mean: np.ndarray, low: np.ndarray, high: np.ndarray, lpd: np.ndarray) -> dict[str, float]:
    """Coverage and width in metres of the 90 % interval, NLL in nats a row and RMSE in metres."""
    return {
        "coverage": float(((low <= y) & (y <= high)).mean()),
        "width": float((high - low).mean()),
        "nll": float(-lpd.mean()),
        "rmse": float(np.sqrt(((mean - y) ** 2).mean())),
    }


def scored(data: Rows, mean: np.ndarray, low: np.ndarray, high: np.ndarray, lpd: np.ndarray) -> dict[str, Any]:
    """Scores of predictions at the rows far away, near, and on the grid, in this order; with the bands on the grid."""
    ends = np.cumsum([len(data.far_y), len(data.near_y)])
    far, near, grid = (slice(0, ends[0]), slice(ends[0], ends[1]), slice(ends[1], None))
    inside = scores(data.near_y, mean[near], low[near], high[near], lpd[near])
    bands = {name: np.round(a[grid], 3).tolist() for name, a in (("mean", mean), ("low", low), ("high", high))}
    return {
        **scores(data.far_y, mean[far], low[far], high[far], lpd[far]),
        **{f"near_{name}": value for name, value in inside.items()},
        "bands": bands,
    }


def run_cell(cell: Cell) -> dict[str, Any]:
    """Fit one model by one method to one data set, and score it."""
    data = rows(cell["data_set"], cell["truth"])
    x = np.concatenate([data.far_x, data.near_x, GRID[:, None]])
    y = np.concatenate([data.far_y, data.near_y, law(GRID, cell["truth"])])
    if cell["method"] == "least squares":
        return least_squares(cell["model"], data, x[:, 0], y)
    posterior = fit(cell["model"], cell["method"], cell["options"], data, cell["data_set"])
    # The number of rows varies with the data set: filled up to one number, one program predicts them all.
    filled = np.concatenate([x, np.repeat(x[-1:], 700 - len(x), axis=0)])
    filled_y = np.concatenate([y, np.repeat(y[-1:], 700 - len(y))])
    seen = posterior.predict(filled, num_draws=1000)
    low, high = seen.interval(LEVEL)
    n = len(x)
    out = scored(data, seen.mean[:n], low[:n], high[:n], seen.log_prob(filled_y)[:n])
    found = posterior.diagnostics
    out["rhat"] = found["rhat_max"]
    out["num_grads"] = sum(found["num_grads"].values())
    if "mu" in posterior.sites:
        mu = posterior.sites["mu"].reshape(-1)
        out["mu"] = float(mu.mean())
        if len(mu) > 1:
            ends = np.quantile(mu, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            out["mu_inside"] = float(ends[0] <= FRICTION <= ends[1])
    return out


def least_squares(model: str, data: Rows, v: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Least squares without a constant; prediction intervals by Student's t, which are exact if the law is right.

    y* | data ~ f(v)' b + s sqrt(1 + f(v)' (F'F)^-1 f(v)) t_(n - p), with s^2 the residual variance, and mu = 1 / (2 g b)
    from the coefficient b of v^2 and its own interval.
    """
    from scipy.stats import t

    from bdlbench.data.physics import GRAVITY

    def features(v: np.ndarray) -> np.ndarray:
        return np.stack([v**2] if model == "v^2" else [v**2, v], axis=1)

    design = features(data.x[:, 0])
    freedom = len(data.y) - design.shape[1]
    inverse = np.linalg.inv(design.T @ design)
    weights = inverse @ design.T @ data.y
    s = np.sqrt(((data.y - design @ weights) ** 2).sum() / freedom)
    asked = features(v)
    mean, scale = asked @ weights, s * np.sqrt(1 + np.einsum("np,pq,nq->n", asked, inverse, asked))
    quantile = t.ppf((1 + LEVEL) / 2, freedom)
    low, high = mean - quantile * scale, mean + quantile * scale
    out = scored(data, mean, low, high, t.logpdf(y, freedom, mean, scale))
    half = quantile * s * np.sqrt(inverse[0, 0])
    ends = 1 / (2 * GRAVITY * (weights[0] + np.array([half, -half])))
    return out | {
        "mu": float(1 / (2 * GRAVITY * weights[0])),
        "mu_inside": float(ends[0] <= FRICTION <= ends[1]),
        "rhat": None,
        "num_grads": None,
    }


def options(size: Size, model: str, method: str) -> dict[str, Any]:
    """The options of a fit; models in metres that an optimiser fits get more and smaller steps."""
    return dict(size.methods[method]) | (PATIENT if model in PROGRAMS and method != "nuts" else {})


def every_cell(size: Size) -> list[Cell]:
    """The cells of a size in the order in which they are computed: five data sets of all fits, then five more."""
    fits = [{"model": model, "method": method, "options": options(size, model, method)} for model, method in size.fits]
    baselines = [{"model": model, "method": "least squares", "options": {}} for model in LEAST_SQUARES]
    return [
        {"truth": truth, **one, "data_set": data_set}
        for start in range(0, size.data_sets, 5)
        for one in [*baselines, *fits]
        for truth in size.truths
        for data_set in range(start, min(start + 5, size.data_sets))
    ]


# ---- tables


TABLE = cells.TABLES / "driving.csv"
BANDS = cells.TABLES / "driving_bands.csv"
SHORT = {"map": "MAP", "deep_ensemble": "ensemble of 5", "svi": "SVI", "nuts": "NUTS", "least squares": "least squares"}


def table(truth: str, file: Path = TABLE) -> str:
    """The rows of one truth, asked at 30-40 m/s, as Markdown."""
    found = cells.read(file)
    number = max(line.n for (group, _), line in found.lines.items() if group[0] == truth)
    header = ["model", "method", "coverage of 90 %", "width, m", "NLL", "RMSE, m", "RMSE at 5-25", "mu", "mu inside"]
    lines = []
    for group in found.groups():
        if group[0] == truth:
            show = functools.partial(found.shown, group)
            lines.append(
                [
                    group[1], SHORT[group[2]], show("coverage", 2, with_interval=True, most=1.0), show("width", 1),
                    show("nll", 1, with_interval=True), show("rmse", 1, with_interval=True), show("near_rmse", 2),
                    show("mu", 3), show("mu_inside", 2),
                ]
            )  # fmt: skip
    return f"{cells.markdown(header, lines, 2)}\n\nSize {found.size}, {number} data sets."


def physics_table() -> str:
    """The table of the law without reaction."""
    return table("physics")


def reaction_table() -> str:
    """The table of the law with a second of reaction."""
    return table("physics and reaction")


def chains_table(file: Path = TABLE) -> str:
    """The largest R-hat of function values and the price of each model and method, mean over data sets and truths."""
    found = cells.read(file)
    lines = []
    for model in MODELS:
        for method in METHODS:
            groups = [group for group in found.groups() if group[1:] == (model, method)]
            if groups:
                words = [
                    " / ".join(found.shown(group, metric, digits) for group in groups)
                    for metric, digits in (("rhat", 3), ("num_grads", 0), ("cpu_seconds", 1))
                ]
                lines.append([model, SHORT[method], *words])
    return cells.markdown(["model", "method", "R-hat", "gradients", "seconds of one core"], lines, 2)


def write_bands(file: Path, size: str, every: list[Cell], results: list[dict[str, Any]]) -> None:
    """The bands of the first data set on the grid of speeds."""
    with file.open("w", newline="", encoding="utf-8") as out:
        lines = csv.writer(out, lineterminator="\n")
        lines.writerow(["size", *BY, "speed", "mean", "low", "high"])
        for cell, result in zip(every, results, strict=True):
            if cell["data_set"] == 0:
                band = result["bands"]
                for i, v in enumerate(GRID):
                    ends = (f"{band[name][i]:.2f}" for name in ("mean", "low", "high"))
                    lines.writerow([size, *(cell[name] for name in BY), f"{v:g}", *ends])


def summary(size: Size, every: list[Cell], results: list[dict[str, Any]]) -> list[Summary]:
    """All lines of the summary, ordered by truth and model."""
    lines = cells.summarise(every, results, BY, METRICS)
    models = [*LEAST_SQUARES, *MODELS]
    return sorted(lines, key=lambda line: (size.truths.index(line.group[0]), models.index(line.group[1])))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    cells.add_options(parser)
    parser.add_argument("--data-sets", type=int, help="only so many data sets, from the first")
    given = parser.parse_args(argv)
    size = SIZES[given.size]
    if given.data_sets is not None:
        if not 2 <= given.data_sets <= size.data_sets:
            parser.error(f"--data-sets={given.data_sets}: the size {given.size} has {size.data_sets}, give 2 or more.")
        share = given.data_sets / size.data_sets
        size = size._replace(data_sets=given.data_sets, cpu_minutes=share * size.cpu_minutes)
    file = given.cells / f"driving-{given.size}.jsonl"
    every, results = cells.compute(every_cell(size), Cells(file), run_cell, size.cpu_minutes, only_kept=given.kept)
    folder = given.cells if given.size == "small" else given.tables
    stem = "driving-small" if given.size == "small" else "driving"
    file = folder / f"{stem}.csv"
    cells.write(file, BY, given.size, summary(size, every, results))
    write_bands(folder / f"{stem}_bands.csv", given.size, every, results)
    for truth in size.truths:
        print(f"\nTruth: {truth}\n\n{table(truth, file)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
