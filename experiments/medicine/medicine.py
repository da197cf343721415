"""A screening decision from few patients: which method's probabilities make the cheapest decisions?

python -m experiments.medicine.medicine --size small|medium|full

``small`` prints its table. ``medium`` and ``full`` write results/tables/medicine.csv, from which README.md and the
notebook are made. A run that was stopped goes on where it was.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import cells
from experiments.cells import Cell, Cells, Summary

TEST_ROWS, TRAINING_SETS, SET_ROWS = 269, 5, 60
ALL_ROWS = TRAINING_SETS * SET_ROWS
MISSED, FALSE_ALARM = 10.0, 1.0
"""The cost of a missed cancer and of a false alarm."""
REFERRAL = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""The prices c of a referral to a person, who is always right. At c = 1 nobody is referred."""
WIDTH = 20
BY = ("rows", "method")
AGAINST = "logistic regression, C = 1"
RESAMPLES = 1000

LINEAR = {"prior.scale": 2.0**-0.5}
"""With two outputs, the log odds then have the weights N(0, 1): the posterior whose mode is ``AGAINST``."""
NETWORK = {"network.width": WIDTH}
WIDE = NETWORK | {"prior.weight_scale": 3.0}


class Method(NamedTuple):
    """How probabilities are made: a classifier of scikit-learn by name, or a fit of bdlbench with its options."""

    kind: str
    inference: str | None
    options: Mapping[str, Any]


class Size(NamedTuple):
    """What a size of the experiment computes.

    Attributes
    ----------
    training_sets, seeds : int
        Number of training sets of 60 rows, and of seeds of a method that draws random numbers.
    all_rows : bool
        Whether the methods are trained on all 300 rows too.
    methods : dict of Method
    cpu_minutes : float
        The estimated price in minutes of one core, with all programs compiled.
    """

    training_sets: int
    seeds: int
    all_rows: bool
    methods: Mapping[str, Method]
    cpu_minutes: float


SIMPLE = {
    AGAINST: Method("logistic", None, {}),
    "logistic regression, C by cross-validation": Method("logistic_cv", None, {}),
    "random forest": Method("forest", None, {}),
    "boosting": Method("boosting", None, {}),
    "boosting, calibrated": Method("boosting_calibrated", None, {}),
}


def _methods(nuts: Mapping[str, Any], svi: Mapping[str, Any], sghmc: Mapping[str, Any]) -> dict[str, Method]:
    return SIMPLE | {
        "Bayesian logistic regression, NUTS": Method("linear", "nuts", LINEAR | nuts),
        "network, MAP": Method("network", "map", NETWORK),
        "network, MAP, prior scale 3": Method("network", "map", WIDE),
        "network, MAP, calibrated": Method("calibrated", "map", NETWORK),
        "network, ensemble of 10": Method("network", "deep_ensemble", NETWORK),
        "network, SVI": Method("network", "svi", NETWORK | svi),
        "network, SGHMC": Method("network", "sghmc", NETWORK | sghmc),
        "network, NUTS": Method("network", "nuts", NETWORK | nuts),
        "network, NUTS, prior scale 3": Method("network", "nuts", WIDE | nuts),
    }


SIZES = {
    "small": Size(
        2,
        1,
        False,
        {name: SIMPLE[name] for name in (AGAINST, "boosting")}
        | {"network, MAP": Method("network", "map", NETWORK | {"num_warmup": 500})},
        0.3,
    ),
    "medium": Size(
        TRAINING_SETS,
        1,
        True,
        _methods({"num_warmup": 300, "num_samples": 300}, {"num_warmup": 10000}, {"num_warmup": 10000}),
        15.0,
    ),
    "full": Size(
        TRAINING_SETS,
        10,
        True,
        _methods({"num_warmup": 1000, "num_samples": 1000}, {}, {"thinning": 50}),
        300.0,
    ),
}


class Rows(NamedTuple):
    """Features in their own units, and y = 1 for a malignant tumour."""

    x: np.ndarray
    y: np.ndarray


@functools.cache
def patients() -> tuple[Rows, Rows]:
    """The 300 rows for training, whose k-th sixty are training set k, and the 269 test rows; the order is that of split 0."""
    from bdlbench.data.sklearn_sets import breast_cancer

    total = TEST_ROWS + ALL_ROWS
    made = breast_cancer(
        split=0, test_fraction=TEST_ROWS / total, validation_fraction=0.0, n_train=None, standardize=False
    )
    assert made.test is not None
    assert (len(made.train.y), len(made.test.y)) == (ALL_ROWS, TEST_ROWS)
    train, test = (
        Rows(np.asarray(part.x, np.float64), (np.asarray(part.y) == 0).astype(int)) for part in (made.train, made.test)
    )
    return train, test


def training_rows(training_set: int | None) -> Rows:
    """The rows of one training set; of None all."""
    train, _ = patients()
    chosen = slice(None) if training_set is None else slice(SET_ROWS * training_set, SET_ROWS * (training_set + 1))
    return Rows(train.x[chosen], train.y[chosen])


# ---- methods


def _sklearn(kind: str, seed: int) -> Any:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    boosting = GradientBoostingClassifier(random_state=seed)
    return {
        "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=5000)),
        "logistic_cv": lambda: make_pipeline(
            StandardScaler(), LogisticRegressionCV(Cs=np.logspace(-3, 2, 11), cv=5, scoring="neg_log_loss", max_iter=5000)
        ),
        "forest": lambda: RandomForestClassifier(500, random_state=seed),
        "boosting": lambda: boosting,
        "boosting_calibrated": lambda: CalibratedClassifierCV(boosting, method="sigmoid", cv=5),
    }[kind]()  # fmt: skip


def _fit(method: Method, rows: Rows, seed: int) -> Any:
    import bdlbench as bdl

    network, prior = ("linear", "iid") if method.kind == "linear" else ("mlp", "fan_in")
    return bdl.fit(
        network, rows.x, rows.y, prior=prior, likelihood="categorical", inference=method.inference, seed=seed,
        progress=False, options=dict(method.options),
    )  # fmt: skip


def temperature(log_odds: np.ndarray, y: np.ndarray) -> float:
    """The T that minimises the NLL of sigmoid(log_odds / T), between 1/20 and 20 (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar

    sign = 2.0 * y - 1.0

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0.0, -sign * log_odds / np.exp(log_t)).mean())

    found = minimize_scalar(loss, bounds=(-np.log(20.0), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


def _log_odds(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return np.log(p) - np.log1p(-p)


def calibrated(method: Method, rows: Rows, seed: int, x: np.ndarray) -> np.ndarray:
    """Probabilities of a network with the temperature that five held-out fifths of its training rows ask for."""
    from sklearn.model_selection import StratifiedKFold

    held = np.empty(len(rows.y))
    for fit, out in StratifiedKFold(5, shuffle=True, random_state=seed).split(rows.x, rows.y):
        held[out] = _fit(method, Rows(rows.x[fit], rows.y[fit]), seed).predict(rows.x[out]).probs[:, 1]
    t = temperature(_log_odds(held), rows.y)
    p = _fit(method, rows, seed).predict(x).probs[:, 1]
    return 1 / (1 + np.exp(-_log_odds(p) / t))


def run_cell(cell: Cell, methods: Mapping[str, Method]) -> dict[str, Any]:
    """Train one method on one training set; its probabilities of a malignant tumour at the test rows."""
    rows, (_, test), method, seed = (
        training_rows(cell["training_set"]),
        patients(),
        methods[cell["method"]],
        cell["seed"],
    )
    rhat = None
    if method.kind == "calibrated":
        p = calibrated(method, rows, seed, test.x)
    elif method.inference is None:
        p = _sklearn(method.kind, seed).fit(rows.x, rows.y).predict_proba(test.x)[:, 1]
    else:
        posterior = _fit(method, rows, seed)
        p = posterior.predict(test.x).probs[:, 1]
        rhat = posterior.diagnostics["rhat_max"] if method.inference in ("nuts", "sghmc") else None
    return {"p": [float(f"{value:.6g}") for value in p], "rhat": rhat}


def every_cell(size: Size) -> list[Cell]:
    """The cells of a size in the order in which they are computed."""
    parts: list[list[int | None]] = [list(range(size.training_sets)), [None] if size.all_rows else []]
    return [
        {"method": name, "training_set": k, "seed": seed, "options": {"kind": method.kind, **method.options}}
        for sets in parts
        for name, method in size.methods.items()
        for k in sets
        for seed in range(1 if method.kind.startswith("logistic") else size.seeds)
    ]


# ---- decisions and their summary


def decision_costs(p: np.ndarray, y: np.ndarray, c: float) -> np.ndarray:
    """The cost at each row of the decision with the smallest expected cost.

    Parameters
    ----------
    p : array (..., n)
        Probability that the tumour is malignant.
    y : array (n,)
        1 for malignant.
    c : float
        Cost of a referral. "Benign" is expected to cost 10 p, "malignant" 1 - p, and a referral costs c.
    """
    benign, malignant = MISSED * p, FALSE_ALARM * (1 - p)
    refer = np.minimum(benign, malignant) > c
    said_benign = ~refer & (benign <= malignant)
    said_malignant = ~refer & ~said_benign
    return c * refer + MISSED * (said_benign & (y == 1)) + FALSE_ALARM * (said_malignant & (y == 0))


def per_row(p: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Quantities (sets, n) whose mean over rows is a score: NLL in nats, errors, costs and referrals."""
    q = np.clip(np.where(y == 1, p, 1 - p), 1e-12, 1.0)
    out = {"nll": -np.log(q), "errors": ((p > 0.5) != (y == 1)).astype(float)}
    for c in REFERRAL:
        out[f"cost {c:g}"] = decision_costs(p, y, c)
        out[f"referred {c:g}"] = (np.minimum(MISSED * p, FALSE_ALARM * (1 - p)) > c).astype(float)
    # At c = 1 everyone is told benign or malignant.
    out["missed"] = ((MISSED * p <= FALSE_ALARM * (1 - p)) & (y == 1)).astype(float)
    return out


def resampled(sets: int, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Weights (B, sets) and (B, rows) of a bootstrap over training sets and test rows (the pigeonhole bootstrap, Owen 2007)."""
    a = rng.multinomial(sets, np.full(sets, 1 / sets), RESAMPLES) / sets
    b = rng.multinomial(rows, np.full(rows, 1 / rows), RESAMPLES) / rows
    return a, b


def summary(every: Sequence[Cell], results: Sequence[Mapping[str, Any]]) -> list[Summary]:
    """Scores of each method with 95 % intervals, and differences to ``AGAINST`` on the same training sets and test rows.

    Seeds are averaged within a training set first: the score is the mean over seeds of the score of a seed.
    """
    from bdlbench.metrics.uncertainty import augrc

    _, test = patients()
    out = []
    for name, wanted in ((f"{SET_ROWS}", False), (f"{ALL_ROWS}", True)):
        groups: dict[str, dict[int | None, list[Mapping[str, Any]]]] = {}
        for cell, result in zip(every, results, strict=True):
            if (cell["training_set"] is None) == wanted:
                groups.setdefault(cell["method"], {}).setdefault(cell["training_set"], []).append(result)
        if not groups:
            continue
        sets = max(len(group) for group in groups.values())
        a, b = resampled(sets, TEST_ROWS, np.random.default_rng(0))

        def line(method: str, metric: str, values: np.ndarray, name: str = name, a: Any = a, b: Any = b) -> Summary:
            draws = np.einsum("bs,sn,bn->b", a, values, b, optimize=True)
            low, high = np.quantile(draws, [0.025, 0.975])
            return Summary((name, method), metric, float(values.mean()), float(low), float(high), len(values))

        scores: dict[str, dict[str, np.ndarray]] = {}
        for method, group in groups.items():
            ps = [np.array([result["p"] for result in seeds]) for seeds in group.values()]
            each = [per_row(p, test.y) for p in ps]
            scores[method] = {metric: np.stack([e[metric].mean(0) for e in each]) for metric in each[0]}
            out += [line(method, metric, values) for metric, values in scores[method].items()]
            areas = [np.mean([augrc(test.y, np.stack([1 - p, p], 1)) for p in seeds]) for seeds in ps]
            rhats = [r["rhat"] for seeds in group.values() for r in seeds if r["rhat"] is not None]
            price = [np.mean([r["cpu_seconds"] for r in seeds]) for seeds in group.values()]
            out.append(Summary((name, method), "augrc", *cells.interval(areas), sets))
            out.append(Summary((name, method), "cpu_seconds", *cells.interval(price), sets))
            if rhats:
                out.append(Summary((name, method), "rhat", *cells.interval(rhats), len(rhats)))
        for method, found in scores.items():
            if method != AGAINST:
                out += [
                    line(method, f"{metric} - {AGAINST}", found[metric] - scores[AGAINST][metric]) for metric in found
                ]
    return out


# ---- tables

TABLE = cells.TABLES / "medicine.csv"
SHOWN = (0.05, 0.2, 1.0)


def table(rows: str, file: Path = TABLE) -> str:
    """Costs at three prices of a referral, NLL, AUGRC and missed cancers of the methods, as Markdown."""
    found = cells.read(file)
    header = [
        "method", *(f"cost at c = {c:g}" for c in SHOWN), "referred at 0.05", "missed", "errors", "NLL", "AUGRC",
    ]  # fmt: skip
    lines = []
    for group in found.groups():
        if group[0] == rows:
            show = functools.partial(found.shown, group)
            lines.append(
                [
                    group[1], *(show(f"cost {c:g}", 3, with_interval=True) for c in SHOWN), show("referred 0.05", 2),
                    show("missed", 3), show("errors", 3), show("nll", 3, with_interval=True), show("augrc", 4),
                ]
            )  # fmt: skip
    return cells.markdown(header, lines, 1)


def differences(rows: str, file: Path = TABLE) -> str:
    """Paired differences to logistic regression on the same training sets and test rows; below 0 is better."""
    found = cells.read(file)
    header = ["method", *(f"cost at c = {c:g}" for c in SHOWN), "NLL"]
    lines = []
    for group in found.groups():
        if group[0] == rows and group[1] != AGAINST:
            metrics = [*(f"cost {c:g}" for c in SHOWN), "nll"]
            lines.append([group[1], *(found.shown(group, f"{m} - {AGAINST}", 3, with_interval=True) for m in metrics)])
    return cells.markdown(header, lines, 1)


def few_table() -> str:
    """The table of training sets of 60 rows."""
    return table(f"{SET_ROWS}")


def all_table() -> str:
    """The table of all 300 training rows."""
    return table(f"{ALL_ROWS}")


def few_differences() -> str:
    """Paired differences with training sets of 60 rows."""
    return differences(f"{SET_ROWS}")


def all_differences() -> str:
    """Paired differences with all 300 training rows."""
    return differences(f"{ALL_ROWS}")


def price_table(file: Path = TABLE) -> str:
    """R-hat and the price of a fit of 60 and of 300 rows."""
    found = cells.read(file)
    lines = []
    for method in dict.fromkeys(group[1] for group in found.groups()):
        groups = [group for group in found.groups() if group[1] == method]
        words = [
            " / ".join(found.shown(group, metric, digits) for group in groups)
            for metric, digits in (("rhat", 3), ("cpu_seconds", 1))
        ]
        lines.append([method, *words])
    return cells.markdown(["method", "R-hat", "seconds of one core"], lines, 1)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    cells.add_options(parser)
    given = parser.parse_args(argv)
    size = SIZES[given.size]
    run: Callable[[Cell], dict[str, Any]] = functools.partial(run_cell, methods=size.methods)
    kept = Cells(given.cells / f"medicine-{given.size}.jsonl")
    every, results = cells.compute(every_cell(size), kept, run, size.cpu_minutes, only_kept=given.kept)
    small = given.size == "small"
    file = given.cells / "medicine-small.csv" if small else given.tables / "medicine.csv"
    cells.write(file, BY, given.size, summary(every, results))
    for rows in (f"{SET_ROWS}", *([f"{ALL_ROWS}"] if size.all_rows else [])):
        print(f"\nTrained on {rows} rows\n\n{table(rows, file)}\n\n{differences(rows, file)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
