"""A user's likelihood and its record: hidden rows, moments that do not exist, and values outside the support."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

from bdlbench.data.dataset import Dataset, make_dataset
from bdlbench.metrics.mixture import PredictiveMixture
from bdlbench.report.tables import comparison, comparison_markdown
from bdlbench.runs import configuration
from bdlbench.runs.configuration import default_metrics
from bdlbench.runs.group import run_config
from bdlbench.runs.job import check_job, make_job
from bdlbench.runs.look import PREDICTED, Look, absent_moments, finite_predictions
from bdlbench.runs.rescore import metric_options, rescore
from bdlbench.runs.scores import lacking, scores
from bdlbench.runs.storage import Storage
from bdlbench.sampling.predictions import describe
from bdlbench.store import RunWriter, Store
from bdlbench.types import ConfigError

ROWS = 30


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows with amounts, counts and three classes."""
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, 2))
    y = x.sum(1) + 0.1 * rng.standard_normal(ROWS)
    for name, target in {"amounts": y, "counts": np.round(np.exp(y)), "classes": np.arange(ROWS) % 3}.items():
        np.savez(folder / f"{name}.npz", x=x, y=target)
    return folder


def composed(
    archives: Path, model: str, target: str, *more: str, **options: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration of two short chains of SGLD on a user's model."""
    task = "classification" if target == "classes" else "regression"
    short = "{num_chains: 2, num_warmup: 4, num_samples: 8, thinning: 1, batch_size: 8, batching: epoch}"
    data = ["data=npz", f"data.path={archives}/{target}.npz", f"data.task={task}", "data.test_fraction=0.4"]
    made, labels = configuration.compose(
        [*data, "inference=sgld", "inference.step_size=1e-4", f"inference.schedule={short}", "progress=off", *more]
    )
    made["model"] = {"_target_": f"models_of_users.{model}", **options}
    return made, labels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "target", "more", "options", "sentence"),
    [
        (
            "poisson", "counts", [], {"scale": 1.0},
            r"takes whole numbers of at least 0, but y is .* in training row \d+, as y is standardised: use "
            r"data\.standardize=x",
        ),
        ("poisson", "amounts", [], {"scale": 1.0}, "as y is standardised: choose a likelihood that allows"),
        ("two_classes", "classes", [], {}, r"takes 0 or 1, but y is 2 in training row \d+: choose"),
        ("hidden", "amounts", [], {"above": 50.0}, "mask of its y depends on an option"),
        ("centred", "amounts", [], {}, "another likelihood alone than beside other rows"),
        ("centred", "amounts", [], {"rows_interact": "perhaps"}, "model.rows_interact='perhaps' must be true or false"),
        ("crossed", "amounts", [], {}, r"has shape \(\d+, \d+\), but one number for each"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_take_is_refused_beforehand(
    archives: Path, store_path: Path, model: str, target: str, more: list[str], options: dict[str, Any], sentence: str
) -> None:
    """The message is one sentence, and nothing is written."""
    made, labels = composed(archives, model, target, *more, f"store.path={store_path}", **options)
    with pytest.raises(ConfigError, match=sentence) as refused:
        check_job(make_job(made, labels))
    assert "\n" not in str(refused.value)
    assert not store_path.exists()


def test_counts_and_declared_rows_are_taken(archives: Path) -> None:
    """The remedies that refusals name work, and a declaration of the model becomes a note."""
    check_job(make_job(*composed(archives, "poisson", "counts", "data.standardize=x", scale=1.0)))
    job = check_job(make_job(*composed(archives, "centred", "amounts", rows_interact=True)))
    assert any("rows_interact is declared" in note for note in job.dataset.notes)


@pytest.mark.slow
def test_hidden_rows_are_not_scored(archives: Path, store_path: Path) -> None:
    """The scores are those of the rows that the mask of x shows, and are found again from the stored draws."""
    made, labels = composed(archives, "masked", "amounts", f"store.path={store_path}")
    whole = make_job(made, labels).dataset
    assert whole.test is not None and whole.y_scaler is not None
    shown = whole.test.x[:, 0] > 0
    assert 0 < shown.sum() < len(shown)
    record = run_config(made, labels)
    assert record["status"] == "complete", record["reason"]
    assert record["num_scored_rows"] == shown.sum()
    hidden = (~shown).sum()
    assert f"the model's mask hides {hidden} of {len(shown)} test rows, which are not scored" in record["notes"]
    assert any("training rows, which do not enter the likelihood" in note for note in record["notes"])
    assert any("no prior is given for 'shift'" in note for note in record["notes"])
    with Store(store_path).posterior(record["id"]) as tree:
        w = tree["posterior"]["w"].to_numpy().reshape(-1, 2).astype(np.float64)
        stored = tree["predictions_constant_data"]["y"].to_numpy()
    x, y = whole.test.x[shown].astype(np.float64), whole.test.y[shown]
    np.testing.assert_allclose(stored, whole.y_scaler.original(y), rtol=1e-6)
    means = w @ x.T + 0.5
    lpd = np.logaddexp.reduce(scipy.stats.norm.logpdf(y, means, 1.0), 0) - np.log(len(means))
    scale = float(whole.y_scaler.scale)
    assert record["metrics"]["lppd"] == pytest.approx(lpd.mean() - np.log(scale), rel=1e-4)
    error = np.sqrt(np.mean((means.mean(0) - y) ** 2)) * scale
    assert record["metrics"]["rmse"] == pytest.approx(error, rel=1e-4)
    again = rescore(Store(store_path), record["id"], metric_options(["rmse", "lppd"]), trust=True)
    assert again["metrics"]["rmse"] == pytest.approx(error, rel=1e-4)
    assert again["num_scored_rows"] == record["num_scored_rows"]


@pytest.mark.slow
def test_a_heavy_tail_is_scored_by_its_likelihood(archives: Path, store_path: Path) -> None:
    """Student's t with learned degrees of freedom has a mean and no variance.

    The run is complete and its record says so.
    """
    made, labels = composed(archives, "learned_tail", "amounts", f"store.path={store_path}")
    record = run_config(made, labels)
    assert record["status"] == "complete", record["reason"]
    assert record["num_nonfinite"] == 0
    assert np.isfinite(record["metrics"]["lppd"]) and np.isfinite(record["metrics"]["rmse"])
    assert not {"lppd_gaussian", "crps"} & set(record["metrics"])
    assert "no finite, positive variance" in record["not_existing"]["lppd_gaussian"]
    assert "normal y given theta" in record["not_existing"]["crps"]
    assert "rmse" not in record["not_existing"]


FAMILIES = {
    "Cauchy": (lambda: dist.Cauchy(jnp.zeros(3), 1.0), {"rmse": "no mean", "lppd_gaussian": "no mean"}, {"coverage_90"}),
    "StudentT(1.5)": (
        lambda: dist.StudentT(1.5, jnp.zeros(3), 1.0), {"lppd_gaussian": "no finite, positive variance"},
        {"rmse", "coverage_90"},
    ),
    "right censored": (
        lambda: dist.RightCensoredDistribution(dist.LogNormal(jnp.zeros(3), 1.0), jnp.array([True, False, True])),
        {"rmse": "no mean", "coverage_90": "its distribution function is not known"}, set(),
    ),
    "left censored": (
        lambda: dist.LeftCensoredDistribution(dist.LogNormal(jnp.zeros(3), 1.0), jnp.array([True, False, True])),
        {"rmse": "no mean"}, set(),
    ),
    "truncated normal": (lambda: dist.TruncatedNormal(jnp.zeros(3), 1.0, low=0.0), {"crps": "normal"}, {"rmse", "coverage_90"}),
    "truncated Student": (lambda: dist.LeftTruncatedDistribution(dist.StudentT(3.0, jnp.zeros(3), 1.0), 0.0), {"rmse": "no mean"}, set()),
    "Poisson": (lambda: dist.Poisson(jnp.array([1e-45, 1.0, 2.0])), {"coverage_90": "discrete"}, {"rmse"}),
    "normal": (lambda: dist.Normal(jnp.zeros(3), 1.0), {}, {"lppd_gaussian", "rmse", "crps", "coverage_90", "interval_width_90"}),
}  # fmt: skip


@functools.cache
def three_rows() -> Dataset:
    """Test rows for three predictions."""
    part = np.arange(3.0)[:, None], np.array([0.0, 1.0, 2.0])
    return make_dataset(name="three", task="regression", train=part, test=part, standardize=False)


SLOW = ("StudentT(1.5)", "truncated Student", "left censored")
"""Incomplete beta functions, and what another case covers."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FAMILIES])
def test_a_score_that_does_not_exist_says_so(name: str) -> None:
    """Every likelihood has its LPPD. Any other score exists or is named with the reason, and none is NaN."""
    make, missing, there = FAMILIES[name]
    y = jnp.array([0.5 if "censored" in name else 0.0, 1.0, 2.0])
    one = describe(make(), y, jax.random.key(0), "regression")
    block = {key: np.stack([np.asarray(value)] * 4)[None] for key, value in one.items()}
    gaussian = name == "normal"
    absent = frozenset() if gaussian else absent_moments(block, np.ones((1, 4), bool))
    block = {key: value for key, value in block.items() if key not in absent}
    assert finite_predictions(block, gaussian=gaussian).all()
    mixture = PredictiveMixture(gaussian=gaussian)
    mixture.update({key: block[key][0] for key in PREDICTED if key in block})
    metrics = default_metrics()
    found, none = scores(metrics, mixture, three_rows()), lacking(metrics, mixture, "regression")
    assert {"lppd"} | there <= set(found) and all(map(np.isfinite, found.values()))
    assert ("sample" in one) == (name != "truncated Student")
    assert found["lppd"] == pytest.approx(float(make().log_prob(y).mean()), rel=1e-5)
    assert set(found) | set(none) == set(metrics) - {"accuracy", "brier", "ece"}
    assert not set(found) & set(none)
    for metric, why in missing.items():
        assert why in none[metric]


def test_a_mixture_forgets_a_moment() -> None:
    """If one draw has no variance, the whole mixture keeps only its mean, in both units and after a restore."""
    mixture = PredictiveMixture(gaussian=False)
    block = {"log_lik": np.zeros((2, 3)), "mean": np.arange(6.0).reshape(2, 3), "variance": np.ones((2, 3))}
    mixture.update(block)
    mixture.forget({"variance"})
    other = PredictiveMixture(gaussian=False)
    other.restore(mixture.state())
    for one in (mixture, other):
        one.update({name: block[name] for name in ("log_lik", "mean")})
        found = one.to_original(10.0, 2.0)
        assert {"variance", "noise_variance"}.isdisjoint(found)
        np.testing.assert_allclose(found["mean"], 10 + 2 * block["mean"].mean(0))
        np.testing.assert_allclose(found["model_variance"], 4 * block["mean"].var(0))
        one.forget({"mean"})
        assert set(one.ingredients()) == {"num_draws", "lpd"}


def test_the_table_says_what_does_not_exist() -> None:
    """The cell says that the score does not exist, and the reason is below the table."""
    record = {
        "labels": {"data": "d", "inference": "nuts"}, "metrics": {"lppd": -1.0}, "status": "complete", "warnings": [],
        "not_existing": {"rmse": "y given theta has no mean", "crps": "not shown"}, "num_grads": {}, "seconds": {},
        "config": {}, "notes": [],
    }  # fmt: skip
    text = comparison_markdown([record, {**record, "metrics": {"lppd": -1.0, "rmse": 2.0}, "not_existing": {}}])
    assert "| does not exist |" in text and "| 2 |" in text
    assert "RMSE does not exist: y given theta has no mean" in text and "not shown" not in text
    cells = [cell for column in comparison([record]).columns for cell in column.cells]
    assert "does\nnot exist" in cells


def test_class_probabilities_are_diagnosed() -> None:
    """R-hat is large if chains agree on the label's probability and differ in the class that competes with it."""
    rng = np.random.default_rng(0)
    part = np.arange(4.0)[:, None], np.array([0, 1, 2, 0])
    dataset = make_dataset(name="three", task="classification", train=part, test=part, num_classes=3)
    label = rng.uniform(0.4, 0.6, (2, 100, 4))
    for apart in (False, True):
        share = rng.uniform(0.2, 0.3, label.shape)
        share[1] = 1 - share[1] if apart else share[1]
        probs = np.empty((*label.shape, 3))
        for row, k in enumerate(part[1]):
            one, other = (j for j in range(3) if j != k)
            probs[:, :, row, k] = label[:, :, row]
            probs[:, :, row, one] = (1 - label[:, :, row]) * share[:, :, row]
            probs[:, :, row, other] = (1 - label[:, :, row]) * (1 - share[:, :, row])
        storage = Storage(Memory(), dataset, 100, 4, {})
        good = np.ones((2, 100), bool)
        seen = {"log_lik": np.log(label), "probs": probs, "sample": np.zeros(label.shape, np.int32)}
        storage.write(Look(0, 1, good, good, frozenset(), {}, {}, {"": seen}))
        found = storage.mixing([0, 1], 100)
        # Of independent draws R-hat^2 is about 1 + (F - 1) / 50, F the ratio of variances between the four halves of 50
        # draws and within them, with 3 degrees of freedom: R-hat of 1.2 is F = 23, whose probability is below 1e-13.
        assert (found["rhat_max"] > 1.5) == apart, found
        assert found["rhat_max"] < 1.2 or apart


class Memory(RunWriter):
    """A store in memory: arrays by group and name, without a folder."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[str, str], np.ndarray] = {}

    def allocate(self, group: str, name: str, shape: Any, dtype: Any, dims: Any, *rest: Any, **more: Any) -> None:
        """Make room."""
        self.arrays[group, name] = np.empty(shape, dtype)

    def write(self, group: str, name: str, start_draw: int, array: Any) -> None:
        """Keep a block of draws."""
        self.arrays[group, name][:, start_draw : start_draw + array.shape[1]] = array

    def read_columns(self, group: str, name: str, start: int, stop: int) -> np.ndarray:
        """Columns of the last axis."""
        return self.arrays[group, name][..., start:stop]


def test_a_module_that_is_hidden_by_an_installed_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message for a network in the user's random.py differs from that for a module that does not exist."""
    monkeypatch.chdir(tmp_path)
    node = {"_target_": "random.net"}
    with pytest.raises(ConfigError) as plain:
        configuration.target_of(node, "network")
    (tmp_path / "random.py").write_text("def net(): ...\n")
    with pytest.raises(
        ConfigError, match=r"random\.py in the working folder has the name of an installed module.*rename"
    ):
        configuration.target_of(node, "network")
    assert "rename" not in str(plain.value)
