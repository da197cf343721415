"""Every number of a record, computed again from the stored weights and the rows in the source's units.

Nothing of the library is used for it but the store that is read: the network, its likelihood, the mixture and the scores
are written out here in double precision. What is compared was computed in single precision: log likelihoods are some
units large, with an error of 1e-6 of the squares that enter them, and scores are means of such numbers. 1e-4 of a number
is more than all this, and less than any factor, sign, shift by one row or exchange of two parts would change.
"""

import itertools

import numpy as np
import pytest
from arviz_stats.base import array_stats
from models_of_users import rows_of_four_parts
from scipy.special import log_softmax, logsumexp
from scipy.stats import lognorm, norm

from bdlbench.runs import configuration
from bdlbench.runs.group import run_config
from bdlbench.store import Store

CHAINS, DRAWS, BATCH, THINNING, WARMUP = 2, 40, 8, 2, 60
CLASSES = 3
SETTINGS = {
    "hmc": [
        "inference=hmc", "inference.before=[]", "inference.trajectory_length=0.3", "inference.max_leapfrog_steps=15",
        f"inference.schedule={{num_chains: {CHAINS}, num_warmup: {WARMUP}, num_samples: {DRAWS}}}",
        "prior=normal", "prior.weight_scale=1.5", "prior.bias_scale=0.8", "likelihood=gaussian",
    ],
    "sgld": [
        "inference=sgld", "inference.before=[]", "inference.step_size=1e-3", "inference.decay=0",
        f"inference.schedule={{num_chains: {CHAINS}, num_warmup: {WARMUP}, num_samples: {DRAWS}, thinning: {THINNING}, "
        f"batch_size: {BATCH}}}",
    ],
}  # fmt: skip


def recorded(method, classes, path):
    """The record of a short run, its stored tree and the rows."""
    wanted = [
        "data=cosine_gap",
        "network=mlp",
        "network.width=3",
        "network.depth=1",
        "network.activation=tanh",
        "~tuned",
    ]
    composed, labels = configuration.compose([*wanted, *SETTINGS[method], "progress=off", f"store.path={path}"])
    composed["data"] = {"_target_": "models_of_users.four_parts", "classes": classes}
    record = run_config(composed, labels)
    assert record["status"] == "complete", record["reason"]
    return record, Store(path), rows_of_four_parts(classes)


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    return recorded("hmc", 0, tmp_path_factory.mktemp("regression"))


@pytest.fixture(scope="module")
def classification(tmp_path_factory):
    return recorded("sgld", CLASSES, tmp_path_factory.mktemp("classification"))


def outputs(tree, parts):
    """The network's outputs (C, S, n, K) at the rows of each part, and the inputs' scaled form."""
    site = {name: tree["posterior"][name].to_numpy().astype(np.float64) for name in tree["posterior"].data_vars}
    hidden, output = ("network.hidden.0", "network.output")
    centre, spread = parts["train"][0].mean(0), parts["train"][0].std(0)
    out = {}
    for part, (x, _) in parts.items():
        h = np.tanh(((x - centre) / spread) @ site[f"{hidden}.kernel"] + site[f"{hidden}.bias"][:, :, None])
        out[part] = h @ site[f"{output}.kernel"] + site[f"{output}.bias"][:, :, None]
    return out, site


def pooled(values):
    """Chains and draws (C, S, ...) as one axis."""
    return values.reshape(-1, *values.shape[2:])


def expected_distance(m, s):
    """E|Z| of Z ~ N(m, s^2)."""
    return 2 * s * norm.pdf(m / s) + m * (2 * norm.cdf(m / s) - 1)


def scores_of(y, mean, sd, log_lik):
    """Scores of an equally weighted mixture of normals with means and sds (S, n)."""
    variance = (sd**2).mean(0) + mean.var(0)
    pairs = expected_distance(mean[:, None] - mean, np.sqrt(sd[:, None] ** 2 + sd**2)).mean((0, 1))
    u = norm.cdf(y, mean, sd).mean(0)
    return {
        "lppd": (logsumexp(log_lik, axis=0) - np.log(len(log_lik))).mean(),
        "lppd_gaussian": norm.logpdf(y, mean.mean(0), np.sqrt(variance)).mean(),
        "rmse": np.sqrt(((y - mean.mean(0)) ** 2).mean()),
        "crps": (expected_distance(y - mean, sd).mean(0) - pairs / 2).mean(),
        **{f"coverage_{level}": (np.abs(u - 0.5) <= level / 200).mean() for level in (50, 80, 90, 95)},
    }


def detection(known, unknown):
    """AUROC, average precision and FPR95 of scores that should be larger at unknown rows, by comparing all pairs."""
    auroc = np.mean([np.sign(b - a) / 2 + 0.5 for a, b in itertools.product(known, unknown)])
    found = [
        ((unknown >= t).mean(), (known >= t).sum(), (unknown >= t).sum()) for t in sorted({*unknown}, reverse=True)
    ]
    share = np.diff([0, *(recall for recall, _, _ in found)])
    precision = sum(gain * true / (true + false) for gain, (_, false, true) in zip(share, found, strict=True))
    alarms = min(false for recall, false, _ in found if recall >= 0.95) / len(known)
    return {"auroc": auroc, "aupr": precision, "fpr95": alarms}


def assert_mixing(found, *functions):
    """The worst of ArviZ's numbers over the columns of all functions (C, S, n); the typical one is the median."""
    of = {"chain_axis": 0, "draw_axis": 1}
    bulk = [array_stats.ess(values, method="bulk", **of) for values in functions]
    tail = [array_stats.ess(values, method="tail", prob=(0.05, 0.95), **of) for values in functions]
    rhat = [array_stats.rhat(values, method="rank", **of) for values in functions]
    expected = {
        "ess_bulk_min": np.concatenate(bulk).min(),
        "ess_tail_min": np.concatenate(tail).min(),
        "ess_bulk_median": np.median([np.median(values) for values in bulk]),
        "rhat_max": np.concatenate(rhat).max(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def assert_close(found, expected):
    """Each expected number is there."""
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_regression(regression):
    """Stored predictions, densities and draws of y; scores in both units and at shifted rows; detection; mixing."""
    record, store, parts = regression
    found = record["metrics"]
    loc, scale = parts["train"][1].mean(), parts["train"][1].std()
    with store.posterior(record["id"]) as tree:
        f, site = outputs(tree, parts)
        stored = {name: tree["predictions"][name].to_numpy() for name in ("mean", "y")}
        stored_log_lik = tree["log_likelihood_test"]["y"].to_numpy()
        observed = tree["predictions_constant_data"]["y"].to_numpy()
        stats = {name: tree["sample_stats"][name].to_numpy() for name in ("lp", "energy", "n_steps")}
        trained = tree["posterior"]["sigma"].to_numpy().shape
    assert trained == (CHAINS, DRAWS) and record["num_draws"] == CHAINS * DRAWS
    mean = {part: loc + scale * values[..., 0] for part, values in f.items()}
    sd = np.broadcast_to(scale * site["sigma"][:, :, None], mean["test"].shape)
    log_lik = {part: norm.logpdf(parts[part][1], mean[part], sd) for part in ("test", "far")}
    np.testing.assert_allclose(observed, parts["test"][1], rtol=1e-6)
    np.testing.assert_allclose(stored["mean"], mean["test"], rtol=0, atol=1e-4 * scale)
    np.testing.assert_allclose(stored_log_lik, log_lik["test"], rtol=1e-4, atol=1e-4)
    # The noise of draws of y is normal: of 960 squares the mean is 1 with a standard error of sqrt(2 / 960) = 0.046.
    noise = (stored["y"] - stored["mean"]) / sd
    assert abs((noise**2).mean() - 1) < 6 * np.sqrt(2 / noise.size) and abs(noise.mean()) < 6 / np.sqrt(noise.size)

    for part, own in (("test", found), ("far", found["shifted"]["far"])):
        args = parts[part][1], pooled(mean[part]), pooled(sd), pooled(log_lik[part])
        assert_close(own, scores_of(*args))
        y, m, s, density = args
        plain = scores_of((y - loc) / scale, (m - loc) / scale, s / scale, density + np.log(scale))
        assert own["standardized"].keys() == {"lppd", "lppd_gaussian", "rmse", "crps"}
        assert_close(own["standardized"], {name: plain[name] for name in own["standardized"]})
    spread = {part: pooled(values).var(0) for part, values in mean.items()}
    assert_close(found["ood"]["out"], detection(spread["test"], spread["out"]))
    assert found["ood"]["out"]["auroc"] != pytest.approx(0.5), "the two directions can be told apart"
    assert_mixing(found, stored_log_lik.astype(np.float64), (stored["mean"] - loc) / scale)

    # The statistics belong to the draw beside which they stand.
    train = norm.logpdf((parts["train"][1] - loc) / scale, f["train"][..., 0], site["sigma"][:, :, None])
    sigma = site.pop("sigma")
    prior = sum(
        norm.logpdf(values, 0, 0.8 if name.endswith("bias") else 1.5).reshape(CHAINS, DRAWS, -1).sum(-1)
        for name, values in site.items()
    )
    of_sigma = lognorm.logpdf(sigma, 1.0, scale=np.exp(-1.0)) + np.log(sigma)  # and the Jacobian of its logarithm
    np.testing.assert_allclose(stats["lp"], train.sum(-1) + prior + of_sigma, rtol=1e-4, atol=1e-3)
    assert (stats["energy"] > -stats["lp"]).all(), "the energy holds the kinetic energy too"


def test_the_price_of_a_regression(regression):
    """Gradients on all rows, each chain's: the leapfrog steps of each transition."""
    record, store, _ = regression
    with store.posterior(record["id"]) as tree:
        steps = tree["sample_stats"]["n_steps"].to_numpy()
    assert record["num_grads"]["sample"] == steps.sum()
    assert CHAINS * WARMUP <= record["num_grads"]["warmup"] <= CHAINS * WARMUP * 15, (
        "1 to 15 leapfrog steps a transition"
    )
    curve = store.curve(record["id"])
    assert curve["num_grads"].iloc[-1] == sum(record["num_grads"].values())
    assert curve["num_draws"].tolist() == [CHAINS * n for n in (1, 2, 5, 10, 20, 40)]
    assert curve["lppd"].iloc[-1] == record["metrics"]["lppd"]


@pytest.mark.slow
def test_a_classification(classification):
    """Probabilities of three classes, their scores, detection by entropy, and mixing of the likelihood and of a class."""
    record, store, parts = classification
    found = record["metrics"]
    with store.posterior(record["id"]) as tree:
        f, _ = outputs(tree, parts)
        stored = tree["predictions"]["probs"].to_numpy()
        stored_log_lik = tree["log_likelihood_test"]["y"].to_numpy()
        drawn = tree["predictions"]["y"].to_numpy()
    log_probs = {part: log_softmax(values, axis=-1) for part, values in f.items()}
    np.testing.assert_allclose(stored, np.exp(log_probs["test"]), rtol=1e-4, atol=1e-6)
    y = parts["test"][1]
    np.testing.assert_allclose(stored_log_lik, log_probs["test"][..., np.arange(len(y)), y], rtol=1e-4, atol=1e-5)
    # The share of each class among 960 draws of y against its mean probability: 6 standard errors of at most a half.
    shares = [(drawn == k).mean() for k in range(CLASSES)]
    np.testing.assert_allclose(shares, stored.mean((0, 1, 2)), rtol=0, atol=3 / np.sqrt(drawn.size))
    mean = {part: np.exp(pooled(values)).mean(0) for part, values in log_probs.items()}
    for part, own in (("test", found), ("far", found["shifted"]["far"])):
        label, probs = parts[part][1], mean[part]
        hit = np.eye(CLASSES)[label]
        assert_close(
            own,
            {
                "lppd": np.log(probs[hit == 1]).mean(),
                "accuracy": (probs.argmax(-1) == label).mean(),
                "brier": ((probs - hit) ** 2).sum(-1).mean(),
            },
        )
    entropy = {part: -(probs * np.log(probs)).sum(-1) for part, probs in mean.items()}
    assert_close(found["ood"]["out"], detection(entropy["test"], entropy["out"]))
    assert found["ood"]["out"]["auroc"] != pytest.approx(0.5), "the two directions can be told apart"
    others = np.where(np.eye(CLASSES)[y] == 1, -1, stored.astype(np.float64).mean((0, 1))).argmax(-1)
    competing = stored[..., np.arange(len(y)), others].astype(np.float64)
    assert_mixing(found, stored_log_lik.astype(np.float64), competing)


def test_the_price_of_a_classification(classification):
    """B / N of a gradient for each step of each chain, thinned ones too."""
    record, store, parts = classification
    rate = CHAINS * BATCH / len(parts["train"][1])
    assert record["num_grads"] == pytest.approx({"warmup": WARMUP * rate, "sample": DRAWS * THINNING * rate})
    assert record["num_rows"] == {"train": 24, "test": 12} and record["num_scored_rows"] == 12
    assert store.curve(record["id"])["num_grads"].iloc[-1] == pytest.approx(sum(record["num_grads"].values()))
