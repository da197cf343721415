"""The stream of draws against the same numbers computed at once, and the choice of components."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import entr, logsumexp, softmax
from scipy.stats import norm

from bdlbench.metrics.mixture import PredictiveMixture

NUM_DRAWS, NUM_POINTS, NUM_CLASSES = 97, 11, 3
PARTITIONS = [[97], [1] * 97, [50, 47], [3, 0, 90, 4], [96, 1]]


def regression_block(seed=0, num_draws=NUM_DRAWS, num_points=NUM_POINTS):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=num_points)
    mean = rng.normal(size=(num_draws, num_points))
    sd = np.exp(0.3 * rng.normal(size=(num_draws, num_points)))
    return y, {
        "log_lik": norm.logpdf(y, mean, sd),
        "mean": mean,
        "variance": sd**2,
        "cdf": norm.cdf(y, mean, sd),
    }


def classification_block(seed=0):
    rng = np.random.default_rng(seed)
    probs = softmax(2 * rng.normal(size=(NUM_DRAWS, NUM_POINTS, NUM_CLASSES)), axis=-1)
    return {"log_lik": np.log(probs[..., 0]), "probs": probs}


def streamed(block, sizes, **options):
    mixture = PredictiveMixture(**options)
    start = 0
    for size in sizes:
        mixture.update({name: value[start : start + size] for name, value in block.items()})
        start += size
    assert start == len(block["log_lik"])
    return mixture


@pytest.mark.parametrize("sizes", PARTITIONS, ids=str)
def test_regression_stream_equals_batch(sizes):
    """Sums of 97 terms of order one: rounding of at most 97 x 2.2e-16 each, far below 1e-12."""
    _, block = regression_block()
    got = streamed(block, sizes).ingredients()
    mean, variance = block["mean"], block["variance"]
    expected = {
        "num_draws": NUM_DRAWS,
        "lpd": logsumexp(block["log_lik"], axis=0) - np.log(NUM_DRAWS),
        "mean": mean.mean(axis=0),
        "noise_variance": variance.mean(axis=0),
        "model_variance": mean.var(axis=0),
        "variance": (mean**2 + variance).mean(axis=0) - mean.mean(axis=0) ** 2,
        "pit": block["cdf"].mean(axis=0),
        "loc": mean,
        "scale": np.sqrt(variance),
    }
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert_allclose(got[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("sizes", PARTITIONS, ids=str)
def test_classification_stream_equals_batch(sizes):
    """As for regression."""
    block = classification_block()
    got = streamed(block, sizes).ingredients()
    probs = block["probs"].mean(axis=0)
    expected = {
        "num_draws": NUM_DRAWS,
        "lpd": np.log(probs[:, 0]),
        "probs": probs,
        "entropy_of_mean": entr(probs).sum(axis=-1),
        "mean_entropy": entr(block["probs"]).sum(axis=-1).mean(axis=0),
    }
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert_allclose(got[name], value, rtol=1e-12, atol=1e-12, err_msg=name)
    assert (got["entropy_of_mean"] >= got["mean_entropy"]).all()


def test_two_gaussian_draws_by_hand():
    """(1/2) (N(1; 0, 1) + N(1; 2, 4)), densities .24197072 and .17603266 of the normal table."""
    mean, sd, y = np.array([[0.0], [2.0]]), np.array([[1.0], [2.0]]), np.array([1.0])
    mixture = PredictiveMixture()
    mixture.update({"log_lik": norm.logpdf(y, mean, sd), "mean": mean, "variance": sd**2})
    got = mixture.ingredients()
    assert_allclose(got["lpd"], np.log(0.5 * (0.24197072 + 0.17603266)), atol=1e-7)
    assert_allclose([got["mean"][0], got["noise_variance"][0], got["model_variance"][0]], [1.0, 2.5, 1.0], rtol=1e-15)
    assert "pit" not in got


def test_log_likelihoods_beyond_the_range_of_exp():
    """exp(-1e6) underflows and exp(1e6) overflows: only differences may be exponentiated."""
    log_lik = np.array([[-1e6, 1e6], [-1e6 + 1, 1e6 - 1], [-2e6, 0.0]])
    for order in ([0, 1, 2], [2, 1, 0]):
        mixture = PredictiveMixture()
        for draw in order:
            mixture.update({"log_lik": log_lik[[draw]]})
        assert_allclose(mixture.ingredients()["lpd"], logsumexp(log_lik, axis=0) - np.log(3), rtol=1e-15)


def test_variance_is_stable_far_from_zero():
    """Draws at 1e8 +- 1: E[m^2] - E[m]^2 would lose all digits. Means near 1e8 carry an error of 1e-8."""
    mean = 1e8 + np.array([-1.0, 1.0] * 50)[:, None]
    mixture = streamed({"log_lik": np.zeros((100, 1)), "mean": mean, "variance": np.ones((100, 1))}, [1] * 100)
    assert_allclose(mixture.ingredients()["model_variance"], 1.0, rtol=1e-7)


def test_float32_draws_are_summed_in_float64():
    """A float32 sum of a million ones and tenths would be off by 1e-2; here only the inputs are rounded."""
    variance = np.full((1000, 1), 0.1, np.float32)
    mixture = PredictiveMixture()
    for _ in range(100):
        mixture.update({"log_lik": np.zeros((1000, 1), np.float32), "mean": 0 * variance, "variance": variance})
    assert_allclose(mixture.ingredients()["variance"], np.float64(np.float32(0.1)), rtol=1e-12)


def kept_draws(num_draws, sizes, max_components):
    index = np.arange(num_draws, dtype=float)[:, None]
    block = {"log_lik": 0 * index, "mean": index, "variance": 0 * index + 1}
    return streamed(block, sizes, max_components=max_components).ingredients()["loc"][:, 0].astype(int)


@pytest.mark.parametrize("num_draws", [5, 128, 129, 1000, 10_000])
def test_components_are_bounded_and_free_of_the_partition(num_draws):
    """All draws while they fit, then exactly ``max_components`` of them, the same ones however they came."""
    whole = kept_draws(num_draws, [num_draws], 128)
    assert len(whole) == min(num_draws, 128)
    cut = [7] * (num_draws // 7) + [num_draws % 7]
    assert_array_equal(whole, kept_draws(num_draws, cut, 128))
    assert (np.diff(whole) > 0).all()


@pytest.mark.parametrize("num_draws", [1000, 1234, 4000, 10_000])
def test_components_have_at_most_three_gaps(num_draws):
    """Returns of a rotation to an interval take at most three lengths, the longest the sum of the others (Slater)."""
    gaps = np.unique(np.diff(kept_draws(num_draws, [num_draws], 128)))
    assert len(gaps) <= 3
    if len(gaps) == 3:
        assert gaps[2] == gaps[0] + gaps[1]


@pytest.mark.parametrize(("num_chains", "factor"), [(2, 2), (3, 2), (4, 2), (8, 2), (16, 4)])
@pytest.mark.parametrize("num_draws", [1024, 4096, 16_384])
def test_components_come_from_all_chains(num_chains, factor, num_draws):
    """Chains side by side, draw i of chain i mod C: a stride of 8 would keep one chain of 8.

    Each chain has its share, 128 / C, to within a factor that is a property of these numbers: nothing is random.
    """
    chain = kept_draws(num_draws, [num_draws], 128) % num_chains
    counts = np.bincount(chain, minlength=num_chains)
    share = 128 / num_chains
    assert share / factor <= counts.min() <= counts.max() <= share * factor


def test_original_units_equal_a_mixture_in_original_units():
    """Standardised draws rescaled, against draws given in original units: rounding only."""
    loc, scale = -3.0, 7.5
    y, block = regression_block()
    original = {
        "log_lik": norm.logpdf(y * scale + loc, block["mean"] * scale + loc, np.sqrt(block["variance"]) * scale),
        "mean": block["mean"] * scale + loc,
        "variance": block["variance"] * scale**2,
        "cdf": block["cdf"],
    }
    got = streamed(block, [NUM_DRAWS]).to_original(loc, scale)
    expected = streamed(original, [NUM_DRAWS]).ingredients()
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert_allclose(got[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("field", ["log_lik", "mean", "variance", "cdf"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_draw_is_named_and_nothing_is_added(field, value):
    """The second block's draw 2 is draw 12 of the stream."""
    _, block = regression_block()
    mixture = PredictiveMixture()
    mixture.update({name: array[:10] for name, array in block.items()})
    before = mixture.ingredients()
    bad = {name: array[10:20].copy() for name, array in block.items()}
    bad[field][2, 4] = value
    with pytest.raises(FloatingPointError, match=f"{field} is not finite.* in draw 12"):
        mixture.update(bad)
    assert mixture.num_draws == 10
    for name, array in mixture.ingredients().items():
        assert_array_equal(array, before[name])


def test_variance_must_be_positive():
    """A variance that underflowed to zero has no density."""
    with pytest.raises(FloatingPointError, match="variance is not finite and positive in draw 1"):
        PredictiveMixture().update({"log_lik": np.zeros((2, 1)), "mean": np.zeros((2, 1)), "variance": [[1.0], [0.0]]})


def test_components_are_withheld_where_not_gaussian():
    """CRPS and intervals would take them for Gaussian."""
    _, block = regression_block()
    got = streamed(block, [NUM_DRAWS], gaussian=False)
    assert {"loc", "scale"}.isdisjoint(got.ingredients())
    assert {"loc", "scale"}.isdisjoint(got.to_original(0.0, 2.0))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"mean": np.zeros((1, 2))}, "a block holds"),
        ({"log_lik": np.zeros((1, 2)), "variance": np.ones((1, 2))}, "a block holds"),
        ({"log_lik": np.zeros((1, 2)), "margin": np.zeros((1, 2))}, "a block holds"),
        ({"log_lik": np.zeros(2)}, "shape"),
        ({"log_lik": np.zeros((1, 2)), "cdf": np.zeros((1, 3))}, "shape"),
        ({"log_lik": np.zeros((1, 2)), "cdf": np.full((1, 2), 1.5)}, "cdf must lie"),
        ({"log_lik": np.zeros((1, 2)), "probs": np.full((1, 2, 2), 0.6)}, "sum to one"),
    ],
)
def test_unfit_blocks_are_refused(block, message):
    """Wrong fields, shapes or ranges."""
    with pytest.raises(ValueError, match=message):
        PredictiveMixture().update(block)


def test_blocks_must_agree_and_units_need_a_regression():
    """Fields and points are fixed by the first block; nothing comes from nothing."""
    mixture = PredictiveMixture()
    with pytest.raises(ValueError, match="holds no draws"):
        mixture.ingredients()
    mixture.update({"log_lik": np.zeros((1, 2))})
    for other in ({"log_lik": np.zeros((1, 3))}, {"log_lik": np.zeros((1, 2)), "cdf": np.zeros((1, 2))}):
        with pytest.raises(ValueError, match="same fields and points"):
            mixture.update(other)
    assert set(mixture.to_original(0.0, 1.0)) == {"num_draws", "lpd"}  # of a likelihood without moments
    classes = PredictiveMixture()
    classes.update({"log_lik": np.zeros((1, 2)), "probs": np.full((1, 2, 2), 0.5)})
    with pytest.raises(ValueError, match="regression"):
        classes.to_original(0.0, 1.0)


@pytest.mark.parametrize("gaussian", [True, False])
def test_densities_of_the_kept_draws_are_those_of_their_components(gaussian):
    """On demand, whether or not y is normal, and also where mean and variance turn out not to exist."""
    y, block = regression_block(num_draws=300)
    mixture = streamed(block, [100, 1, 199], max_components=50, gaussian=gaussian, each=True)
    found = mixture.ingredients()
    assert found["log_lik"].shape == (50, NUM_POINTS)
    if gaussian:
        assert_allclose(found["log_lik"], norm.logpdf(y, found["loc"], found["scale"]), rtol=1e-12)
    assert_allclose(mixture.to_original(3.0, 2.0)["log_lik"], found["log_lik"] - np.log(2.0))
    assert "log_lik" not in streamed(block, [300]).ingredients()
    mixture.forget({"mean"})
    mixture.update({name: block[name] for name in ("log_lik", "cdf")})
    after = mixture.ingredients()
    assert after["log_lik"].shape == (50, NUM_POINTS) and "loc" not in after


def test_a_state_without_densities_of_single_draws_is_refused_where_they_are_asked_for():
    """Otherwise those of the draws before the checkpoint would be missing from a score."""
    _, block = regression_block()
    with pytest.raises(ValueError, match="does not hold log_lik of single draws"):
        PredictiveMixture(each=True).restore(streamed(block, [NUM_DRAWS]).state())
    whole = streamed(block, [NUM_DRAWS], each=True)
    for each in (True, False):
        again = PredictiveMixture(each=each)
        again.restore(whole.state())
        assert ("log_lik" in again.ingredients()) == each
        again.update(block)
        assert_array_equal(again.ingredients()["loc"][:NUM_DRAWS], whole.ingredients()["loc"])
