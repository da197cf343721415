"""Runs whose posterior is a reference's are compared with it, without being asked."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from bdlbench.metrics import fidelity
from bdlbench.references import artefacts, problems
from bdlbench.runs import against, rescore
from bdlbench.runs.configuration import compose
from bdlbench.runs.group import run_group, with_metrics
from bdlbench.runs.job import check_job, make_job
from bdlbench.runs.progress import make_progress
from bdlbench.store import Store
from tests.support.references import forget, references_in, write_reference

OPTIONS = ("data=linear_regression", "network=linear", "prior=normal", "likelihood=gaussian_uniform_noise")
RUN = (
    "inference=sgld", "~tuned", "metrics=[lppd]", "progress=off", "inference.step_size=1e-4",
    "inference.schedule={num_chains: 3, num_warmup: 50, num_samples: 40, thinning: 5, batch_size: null, batching: epoch}",
)  # fmt: skip
LABELS = [
    *({"quantity": "mean", "kind": "test", "point": i} for i in range(3)),
    *({"quantity": "mean", "kind": "probe", "point": i} for i in (3, 4)),
    {"quantity": "site", "kind": "test", "site": "sigma"},
]
POINTS = np.array([-4.0, 0.0, 4.0, -10.0, 10.0])[:, None]


def job(*more):
    return make_job(*compose([*OPTIONS, *RUN, *more]))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs as lanes of one program, of which the first samples the posterior of a reference; job, store, records."""
    folder = tmp_path_factory.mktemp("references")
    rng = np.random.default_rng(0)
    line = rng.normal([3, 2, 0.5], [0.02, 0.05, 0.04], size=(4, 50, 3))
    values = np.concatenate([line[..., :1] * POINTS[:, 0] + line[..., 1:2], line[..., 2:]], -1)
    with references_in(folder):
        store = Store(folder / "store")
        jobs = [job(f"store.path={store.path}"), job(f"store.path={store.path}", "prior.weight_scale=0.7")]
        write_reference(
            folder,
            "line",
            options=OPTIONS,
            target_id=jobs[0].target_id,
            draws=values,
            points=POINTS,
            labels=LABELS,
            weights=[[0.0, 3, -0.7], [2, 3, -0.7]],
        )
        records = run_group([check_job(one) for one in jobs], store, make_progress("off"))
        yield jobs[0], store, records, values.astype(np.float32)


@pytest.mark.slow
def test_a_run_is_compared_at_the_points_of_its_reference(made):
    """Its stored w x + b and sigma, compared by hand, give the numbers of its record. Another posterior has none."""
    _, store, (record, other), reference = made
    assert "fidelity" not in other
    with store.posterior(record["id"]) as tree:
        sites = {str(name): v.to_numpy().astype(np.float64) for name, v in tree["posterior"].data_vars.items()}
    slope = next(v for name, v in sites.items() if "kernel" in name)[:, :, 0]
    offset = next(v for name, v in sites.items() if "bias" in name)
    values = np.concatenate([slope * POINTS[:, 0] + offset.reshape(*slope.shape), sites["sigma"][..., None]], -1)
    found = record["fidelity"]
    assert (found["reference"], found["certified"], found["num_chains"]) == ("line", True, 3)
    price = sum(record["num_grads"].values())
    for kind, chosen in (("test", [0, 1, 2, 5]), ("probe", [3, 4])):
        expected = fidelity.fidelity(values[..., chosen], reference[..., chosen])
        # Predictions are float32: 1e-6 of a value of 30 in units of an sd of .2.
        for name, value in expected.scalars().items():
            assert found[kind][name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
        assert found[kind]["gradients_per_exact_draw"] == pytest.approx(price / expected.worth.value, rel=1e-3)
        assert found[kind]["worth_at_min"] == pytest.approx(expected.worth_at.min(), rel=1e-3)


def test_the_curve_has_worth_and_bias_at_every_look(made):
    _, store, (record, other), _ = made
    curve = store.curve(record["id"])
    assert curve["num_draws"].tolist() == [3, 6, 15, 30, 60, 120]
    assert np.isfinite(curve[["worth", "bias", "worth_probe", "bias_probe"]]).to_numpy().all()
    for kind, end in (("test", ""), ("probe", "_probe")):
        for name in ("worth", "bias"):
            assert curve[name + end].iloc[-1] == pytest.approx(record["fidelity"][kind][name], rel=1e-6, abs=1e-6)
    assert "worth" not in store.curve(other["id"])


def test_a_stored_run_is_compared_when_it_is_found(made):
    """As after a reference was added, or made again."""
    first, store, (record, other), _ = made
    assert rescore.lacks_fidelity(record) is None
    assert rescore.lacks_fidelity(other) is None
    without = store.amend(record["id"], lambda now: {key: now[key] for key in now if key != "fidelity"})
    assert rescore.lacks_fidelity(without) == "line"
    again = with_metrics(without, first, store)["fidelity"]
    for kind in ("test", "probe"):
        for name, value in record["fidelity"][kind].items():
            assert again[kind][name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    assert store.rows()[0].keys() >= {"fidelity_reference", "fidelity_test_worth", "fidelity_probe_bias"}


def test_a_damaged_reference_is_named(made):
    """It is no reason for the run to fail."""
    first, *_ = made
    path = problems.folder() / "line" / "draws.npz"
    whole = path.read_bytes()
    path.write_bytes(whole + b"x")
    forget()
    try:
        name, fault = against.reference_of(first.target_id)
    finally:
        path.write_bytes(whole)
        forget()
    assert name == "line"
    assert "do not fit the checksum" in fault


def test_the_posterior_is_the_same_in_another_precision(made):
    first, *_ = made
    other = make_job(*compose([*OPTIONS, "precision=float64", "inference=svi", "seed=3"]))
    assert other.target_id == first.target_id


def test_draws_stay_few_and_evenly_spaced(monkeypatch):
    """Whatever the looks are, and after a restart; a draw that is not shown is NaN, and its chain is left out."""
    monkeypatch.setattr(against, "MOST_DRAWS", 20)
    whole = np.arange(2 * 100 * 1, dtype=float).reshape(2, 100, 1)
    shown = np.ones((2, 100), bool)
    for lengths in ([100], [1, 1, 3, 5, 40, 50], [33, 67]):
        kept, start = against.Draws(), 0
        for length in lengths:
            now = slice(start, start + length)
            restored = against.Draws()
            restored.restore(kept.state())
            kept, start = restored, start + length
            kept.add(whole[:, now], shown[:, now])
        assert kept.stride == 16
        assert_allclose(kept.values, whole[:, ::16])
    kept.add(whole[:, :16], np.zeros((2, 16), bool))
    assert np.isnan(kept.values).any()
    assert against.finite(kept.values) is None


def test_classes_spreads_and_sites_in_the_order_of_the_reference():
    from bdlbench.data.dataset import Scaler
    from bdlbench.sampling.predictions import Predictor

    class Told(Predictor):
        """Predictions of two draws of one lane at two points, as they are."""

        def __init__(self):
            pass

        def function(self, draws, anchor=None):
            probs = np.array([[[0.2, 0.8], [0.3, 0.7]], [[0.4, 0.6], [0.5, 0.5]]])[None]
            variance = np.array([[[4.0, 9.0], [1.0, 0.25]]])
            return {"probs": probs, "mean": variance / 2, "variance": variance}

    labels = [
        {"quantity": "probs", "point": 1, "class": 0},
        {"quantity": "log_sd", "point": 0},
        {"quantity": "site", "site": "tau"},
        {"quantity": "mean", "point": 1},
    ]
    reference = artefacts.Reference(problems.problem(problems.names()[0]), {"quantities": labels}, *[np.empty(0)] * 3)
    scaler = Scaler(np.array(10.0), np.array(2.0))
    sites = {"tau": np.array([[[5.0], [6.0]]])}
    found = against.values_at(reference, Told(), scaler, np.zeros((1, 2, 3)), sites=sites)
    assert_allclose(found, [[[0.3, np.log(4), 5, 19], [0.5, np.log(2), 6, 10.25]]])


@pytest.mark.slow
def test_a_ledger_adds_up_to_the_squared_bias(made, capsys):
    """The run repeated, then every intervention on top of those before it, at the price of all of them."""
    from bdlbench.cli.references import main
    from bdlbench.evaluation.ledger import ledger

    _, store, (record, other), _ = made
    found = ledger(store, record["id"])
    changes = {entry.name: entry.change for entry in found.entries}
    assert list(changes) == [
        "the run, repeated", "twice as many draws", "half the step", "full batch", "start at the reference",
    ]  # fmt: skip
    assert changes["full batch"] is None
    known = [change for change in changes.values() if change is not None]
    assert len(known) == 3
    assert found.entries[0].bias.squared - sum(known) == pytest.approx(found.rest, abs=1e-12)
    # Three chains of 50 + 80 x 5 steps of one gradient, then twice with two.
    assert found.num_grads == 3 * (50 + 80 * 5) * (1 + 2 + 2)
    assert main(["ledger", other["id"], "--store", str(store.path)]) == 2
    assert "no reference has the posterior" in capsys.readouterr().err
