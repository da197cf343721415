"""Energy distances against brute force, closed forms and the figures that exact and wrong draws score."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.integrate import quad
from scipy.signal import lfilter
from scipy.special import erf
from scipy.stats import chi2, ncx2, norm, wasserstein_distance

from bdlbench.metrics import energy, fidelity
from bdlbench.metrics.fidelity import Reference

G = 2 / np.sqrt(np.pi)
"""E|Y - Y'| of N(0, 1)."""


def gaussian_distance(shift, scale):
    """D^2 between N(shift, scale^2) and N(0, 1), by E|N(m, v)| = sqrt(2 v / pi) exp(-m^2 / 2v) + m erf(m / sqrt(2v))."""
    v = 1 + scale**2
    between = np.sqrt(2 * v / np.pi) * np.exp(-(shift**2) / (2 * v)) + shift * erf(shift / np.sqrt(2 * v))
    return 2 * between - G * scale - G


def chains(rng, num_chains, num_draws, num_points, phi=0.0):
    """Stationary AR(1) chains of N(0, 1), independent over points."""
    noise = rng.normal(size=(num_chains, num_draws, num_points))
    noise[:, 0] /= np.sqrt(1 - phi**2)
    return lfilter([np.sqrt(1 - phi**2)], [1, -phi], noise, axis=1)


def brute(x, y, distance):
    """Sums of distances between each two chains, written out."""
    units = [*x, *y]
    return np.array([[sum(distance(u, v) for u in a for v in b) for b in units] for a in units])


@pytest.fixture(scope="module")
def small():
    """Three chains of four draws against two of six at five points, with ties within and between."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(3, 4, 5)).round(1), rng.normal(size=(2, 6, 5)).round(1)
    x[0, 1] = x[0, 0]
    y[1, 2] = x[2, 3]
    return x, y


def test_sums_of_distances_are_those_of_all_pairs(small):
    """By sorting exact to rounding. In float32 one part in 10^6, as the docstring has it, and equal draws below .001."""
    x, y = small
    units, sizes = np.repeat(np.arange(5), [4, 4, 4, 6, 6]), np.array([4.0, 4, 4, 6, 6])
    for point in range(5):
        values = np.concatenate([x[..., point].ravel(), y[..., point].ravel()])
        found = energy.marginal(values, units, sizes, 3).sums
        assert_allclose(found, brute(x[..., point], y[..., point], lambda u, v: abs(u - v)), atol=1e-12)
    flat_x, flat_y, of_x, of_y = x.reshape(-1, 5), y.reshape(-1, 5), np.full(3, 4), np.full(2, 6)
    for shift in (0.0, 1e4):  # far from the origin the units are centred first
        a, b = flat_x + shift, flat_y + shift
        found = energy.assembled(
            energy.joint_sums(a, of_x, a, of_x),
            energy.joint_sums(a, of_x, b, of_y),
            energy.joint_sums(b, of_y, b, of_y),
        )
        expected = brute(x, y, lambda u, v: np.linalg.norm(u - v))
        assert_allclose(found, expected, rtol=1e-6, atol=0.01)


@pytest.mark.parametrize("chunk", [2**18, 1])
def test_blocks_do_not_change_sums(small, chunk, monkeypatch):
    """However many rows a product takes. Equal draws take part, so the limit is their .001 a pair."""
    monkeypatch.setattr(energy, "_CHUNK", chunk)
    x = small[0].reshape(-1, 5)
    expected = [[np.linalg.norm(a[:, None] - b, axis=-1).sum() for b in small[0]] for a in small[0]]
    assert_allclose(energy.joint_sums(x, np.full(3, 4), x, np.full(3, 4)), expected, rtol=1e-6, atol=0.005)


def test_estimators_are_their_definitions(small):
    """All pairs: 2 E|X - Y| - (V) - (U). Apart: pairs of different chains alone. Deleting a chain is leaving it out."""
    x, y = small

    def parts(x, y):
        cross = np.abs(x.ravel()[:, None] - y.ravel()).mean()
        own = [np.abs(a.ravel()[:, None] - a.ravel()) for a in (x, y)]
        between = [
            np.mean([np.abs(a[i][:, None] - a[j]).mean() for i in range(len(a)) for j in range(len(a)) if i != j])
            for a in (x, y)
        ]
        size = y.size
        all_pairs = 2 * cross - own[0].mean() - own[1].sum() / (size * (size - 1))
        return all_pairs, 2 * cross - sum(between)

    pairs = energy.Pairs(
        np.stack([brute(x[..., i], y[..., i], lambda u, v: abs(u - v)) for i in range(5)]),
        np.array([4.0, 4, 4, 6, 6]),
        3,
        ~np.eye(5, dtype=bool),
    )
    expected = np.array([parts(x[..., i], y[..., i]) for i in range(5)])
    assert_allclose(energy.of_all_pairs(pairs).value, expected[:, 0], rtol=1e-12)
    apart = energy.of_pairs_apart(pairs)
    assert_allclose(apart.value, expected[:, 1], rtol=1e-12)
    assert np.isnan(apart.se).all()  # the reference's two chains: without one of them no pair is left
    assert_allclose(np.stack(apart.bounds()), np.array([[-np.inf] * 5, [np.inf] * 5]))


def test_worth_and_bias_are_those_of_the_two_estimators():
    """Worth is G / D^2 from all pairs, and at most the draws of the reference; the bias has pairs of chains alone.

    A reference is compared with itself, shifted so little that G / D^2 is above the number of its draws, and then more.
    """
    rng = np.random.default_rng(7)
    y = rng.normal(size=(4, 30, 1))
    y = (y - y.mean()) / y.std(ddof=1)
    size, flat = y.size, y.ravel()
    spread = np.abs(flat[:, None] - flat).sum() / (size * (size - 1))
    for shift, capped in ((0.12, True), (0.6, False)):
        x = y + shift
        all_pairs = 2 * np.abs(x.ravel()[:, None] - flat).mean() - spread * (size - 1) / size - spread
        assert all_pairs > 0 and capped == (spread / all_pairs > size)
        between = np.mean([np.abs(y[i] - y[j].T).mean() for i in range(4) for j in range(4) if i != j])
        apart = 2 * (np.abs(x.ravel()[:, None] - flat).mean() - between)
        found = fidelity.fidelity(x, y)
        assert found.worth.value == pytest.approx(size if capped else spread / all_pairs, rel=1e-9)
        assert found.bias.squared == pytest.approx(np.sqrt(np.pi) * apart, rel=1e-9)


def test_jackknife_deletes_one_chain_of_either_side():
    """Against deleting the chain from the arrays themselves: (C - 1) / C sum of squared deviations, for both sides."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(4, 5)), rng.normal(size=(5, 6))

    def apart(x, y):
        def pairs_of(a):
            return np.mean(
                [np.abs(a[i][:, None] - a[j]).mean() for i in range(len(a)) for j in range(len(a)) if i != j]
            )

        return 2 * np.abs(x.ravel()[:, None] - y.ravel()).mean() - pairs_of(x) - pairs_of(y)

    without_x = np.array([apart(np.delete(x, i, 0), y) for i in range(4)])
    without_y = np.array([apart(x, np.delete(y, i, 0)) for i in range(5)])
    variance = 3 * without_x.var() + 4 * without_y.var()
    sums = brute(x, y, lambda u, v: abs(u - v))[None]
    pairs = energy.Pairs(sums, np.array([5.0] * 4 + [6.0] * 5), 4, ~np.eye(9, dtype=bool))
    found = energy.of_pairs_apart(pairs)
    assert found.se[0] == pytest.approx(np.sqrt(variance), rel=1e-10)
    degrees = variance**2 / ((3 * without_x.var()) ** 2 / 3 + (4 * without_y.var()) ** 2 / 4)
    assert found.degrees[0] == pytest.approx(degrees, rel=1e-10)


# ---- what exact and wrong draws score


def points_of(x, y):
    """D^2 of all pairs and G at each point, without the joint law, for draws (S, n) and (R, n)."""
    sizes = np.array([len(x), len(y)], float)
    unit = np.repeat([0, 1], [len(x), len(y)])
    sums = np.stack([energy.marginal(v, unit, sizes, 1).sums for v in np.concatenate([x, y]).T])
    pairs = energy.Pairs(sums, sizes, 1, ~np.eye(2, dtype=bool))
    return energy.of_all_pairs(pairs).value, energy.reference_spread(pairs)


def test_exact_draws_are_worth_themselves():
    """S = 1,000 against 4,000: 5 and 95 % quantiles of the worth are .64 and 1.54 S at ten points, .41 and 12 S at one.

    So 5 % of the repetitions should lie beyond each. In a long simulation it was 6, 9, 8 and 5 %. The limits are these
    with five binomial standard errors, of 120 repetitions at ten points (2.6 % at 9 %) and of 1,200 at one (.8 %). A
    distance below 0 is a worth beyond every limit. The mean of D^2 is G / S: five standard errors, since the points
    share nothing.
    """
    rng = np.random.default_rng(0)
    at = np.stack([points_of(rng.normal(size=(1000, 20)), rng.normal(size=(4000, 20)))[0] for _ in range(60)])
    ten, one = 1000 * at.reshape(-1, 10).mean(1) / G, 1000 * at.ravel() / G
    assert np.mean(ten > 1 / 0.64) < 0.17
    assert np.mean(ten < 1 / 1.54) < 0.22
    assert 0.03 < np.mean(one > 1 / 0.41) < 0.12
    assert 0.02 < np.mean(one < 1 / 12) < 0.09
    assert abs(one.mean() - 1) < 5 * one.std() / np.sqrt(one.size)


@pytest.mark.parametrize(
    ("shift", "scale", "figure"), [(0.1, 1.0, 195), (0.3, 1.0, 23), (0.0, 1.1, 390), (0.0, 0.7, 38)]
)
def test_wrong_draws_are_worth_what_their_distance_says(shift, scale, figure):
    """E D^2 = D^2(shift, scale) + scale G / S in closed form: forty points are forty repetitions, five standard errors.

    The figures are those of a mean .1 and .3 sd off and of sd 10 % too large and 30 % too small. They were measured on
    thousands of draws, where the worth of one sample has a relative sd of several per cent: so 5 %, at 8,000 draws.
    """
    rng = np.random.default_rng(1)
    x, y = shift + scale * rng.normal(size=(1000, 40)), rng.normal(size=(2000, 40))
    found, _ = points_of(x, y)
    expected = gaussian_distance(shift, scale) + scale * G / 1000
    assert abs(found.mean() - expected) < 5 * found.std(ddof=1) / np.sqrt(40)
    assert G / (gaussian_distance(shift, scale) + scale * G / 8000) == pytest.approx(figure, rel=0.05)


def test_autocorrelated_draws_are_worth_less():
    """AR(1) at .9, 4,000 draws: 250 to 720. Its mean has 4,000 (1 - .9) / (1 + .9) = 210 effective draws.

    Ranks and tails forget faster. The pooled worth of thirty points is near the middle of the range.
    """
    rng = np.random.default_rng(2)
    found, spread = points_of(chains(rng, 1, 4000, 30, 0.9)[0], rng.normal(size=(4000, 30)))
    assert 250 < spread.sum() / found.sum() < 720


def test_chains_frozen_half_and_half_are_worth_one_draw():
    """Modes d = 1,000 sd apart that weigh .9 and .1: D^2 = 2 (.9 - .5)^2 d and G = 2 (.9)(.1) d, so .18 / .32 = .56.

    The spread within a mode changes both by about 1 / d. The four frozen chains are seen to be biased too.
    """
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4, 500, 3)) + 1000 * np.array([0, 0, 1, 1])[:, None, None]
    mode = rng.permutation(np.repeat(np.arange(10) == 0, 400)).reshape(8, 500)
    found = fidelity.fidelity(x, rng.normal(size=(8, 500, 3)) + 1000 * mode[..., None])
    assert found.worth.value == pytest.approx(0.18 / 0.32, rel=0.01)
    assert found.worth_joint.value == pytest.approx(0.18 / 0.32, rel=0.01)
    assert found.bias.value > 0.3
    assert str(found.worth).startswith("0.6")


def test_intervals_cover():
    """Four AR(1) chains at .5 against eight exact ones, 100 repetitions, at two points.

    The interval of the squared bias covers 0 for exact chains in at least 83 of 100, jointly too, and the truth for
    chains that are .3 sd off: .09, with the closed form. A right 95 % interval falls below 83 once in 10^5. The
    squared bias is unbiased: five standard errors. The interval of the worth covers that of the mean distance.
    """
    rng = np.random.default_rng(6)
    hits = np.zeros(5)
    squares = []
    off = np.sqrt(np.pi) * gaussian_distance(0.3, 1.0)
    for _ in range(100):
        exact, reference = chains(rng, 4, 80, 2, 0.5), Reference(rng.normal(size=(8, 60, 2)))
        found, shifted = (fidelity.fidelity(exact + by, reference) for by in (0.0, 0.3))
        squares.append((found.bias.squared, shifted.bias.squared - off))
        hits += [
            found.bias.squared_low <= 0 <= found.bias.squared_high,
            found.bias_joint.squared_low <= 0 <= found.bias_joint.squared_high,
            shifted.bias.squared_low <= off <= shifted.bias.squared_high,
            found.bias.low == 0,
            shifted.worth.low <= G / (gaussian_distance(0.3, 1.0) + G / 150) <= shifted.worth.high,
        ]
    assert (hits >= 83).all(), hits
    squares = np.array(squares)
    assert (np.abs(squares.mean(0)) < 5 * squares.std(0) / 10).all()


def test_a_small_bias_is_the_shift_in_sd():
    """A Gaussian .3 sd off has the squared bias .09 but for b^4 / 24; jointly 2 D^2 / G, by the noncentral chi law.

    At independent points that is .09 too but for terms in b^4, as E[1 / chi_n] = E[chi_n] / (n - 1). Limits are three half widths of the 95 % interval, so about six standard
    errors. The shift is .3 with an error of sqrt(2 / 4000) at a point and a fifth of it over 20: five of these are .03.
    """
    rng = np.random.default_rng(7)
    found = fidelity.fidelity(0.3 + rng.normal(size=(8, 500, 20)), Reference(rng.normal(size=(8, 500, 20))))
    spread, between = (
        np.sqrt(2) * quad(lambda r, law=law: np.sqrt(r) * law.pdf(r), 0, 120)[0]
        for law in (chi2(20), ncx2(20, 20 * 0.09 / 2))
    )
    joint = 2 * (2 * between - 2 * spread) / spread
    assert joint == pytest.approx(0.09, rel=0.02)
    for bias, expected in ((found.bias, np.sqrt(np.pi) * gaussian_distance(0.3, 1.0)), (found.bias_joint, joint)):
        assert abs(bias.squared - expected) < 3 * (bias.squared_high - bias.squared)
        assert bias.high - bias.low < 0.1
        assert bias.value == pytest.approx(np.sqrt(bias.squared))
    assert found.shift == pytest.approx(0.3, abs=0.03)
    assert found.gradients_per_exact_draw(1e4) == 1e4 / found.worth.value


def test_joint_law_sees_what_points_cannot():
    """Each column permuted on its own: the margins are identical, and at least as good as R; their dependence is gone."""
    rng = np.random.default_rng(0)
    y = np.repeat(rng.normal(size=(2000, 1)), 6, axis=1)
    found = fidelity.fidelity(rng.permuted(y, axis=0)[None], Reference(y[None], independent=True), independent=True)
    assert str(found.worth) == "≥ 2,000 (≥ 2,000 to ≥ 2,000)" or found.worth.value == 2000
    assert found.worth_joint.high < 50
    assert found.bias_joint.low > found.bias.high


# ---- one or two chains, independent draws


def test_one_chain_is_weak_and_too_short_a_one_says_nothing():
    """Blocks five autocorrelation times long stand in for chains. Where four do not fit there is no bias."""
    rng = np.random.default_rng(8)
    reference = Reference(rng.normal(size=(8, 100, 2)))
    long = fidelity.fidelity(chains(rng, 1, 2000, 2, 0.5), reference)
    assert long.weak
    assert long.bias.squared_low <= 0 <= long.bias.squared_high < 1
    short = fidelity.fidelity(chains(rng, 1, 40, 2, 0.95), reference)
    assert short.weak
    assert np.isnan(short.bias.value)
    assert short.worth.value < 40
    independent = fidelity.fidelity(chains(rng, 1, 2000, 2), reference, independent=True)
    assert not independent.weak
    sizes, apart, weak = fidelity.units(chains(rng, 2, 1000, 2), independent=False)
    assert weak
    assert sizes.sum() == 2000
    half = len(sizes) // 2
    assert apart[:half, half:].all()
    assert not apart[0, 1]
    assert apart[0, 2]


def test_one_draw_equal_draws_and_draws_of_the_reference_itself():
    """One draw x: D^2 = 2 E|x - Y| - E|Y - Y'|. A run that stands still has log sd of minus infinity.

    The reference against itself: D^2 is minus G / R, as the U form leaves out what the V form holds: "at least R".
    """
    rng = np.random.default_rng(9)
    y = rng.normal(size=(4, 25, 2))
    reference = Reference(y)
    z = (y.reshape(-1, 2) - y.reshape(-1, 2).mean(0)) / y.reshape(-1, 2).std(0, ddof=1)
    spread = np.abs(z[:, None] - z).sum((0, 1)) / (100 * 99)
    x = (0.5 - y.reshape(-1, 2).mean(0)) / y.reshape(-1, 2).std(0, ddof=1)
    one = fidelity.fidelity(np.full((1, 1, 2), 0.5), reference)
    expected = spread.mean() / (2 * np.abs(x - z).mean(0) - spread).mean()
    assert one.worth.value == pytest.approx(expected, rel=1e-10)
    assert np.isnan(one.bias.value)
    assert np.isnan(one.log_sd)
    still = fidelity.fidelity(np.full((3, 5, 2), 0.5), reference)
    assert still.worth.value == pytest.approx(expected, rel=1e-10)
    assert still.log_sd == np.inf
    assert (still.log_sd_at == -np.inf).all()
    same = fidelity.fidelity(y, reference)
    assert same.worth.value == 100
    assert str(same.worth).startswith("≥ 100 (")
    assert same.w1 == pytest.approx(0, abs=1e-12)
    assert set(same.scalars()) >= {"worth", "worth_low", "bias_joint_high", "squared_bias", "w1_floor", "weak"}


def test_w1_is_scipys_and_its_floor_that_of_exact_draws():
    """W_1 point by point in units of the reference's sd. The floor of 1,000 against 1,000 Gaussian draws is .0576."""
    rng = np.random.default_rng(11)
    x, y = rng.normal(size=(4, 250, 30)), 3 * rng.normal(size=(4, 250, 30))
    found = fidelity.fidelity(x, Reference(y))
    flat_x, flat_y = x.reshape(-1, 30), y.reshape(-1, 30)
    expected = [wasserstein_distance(flat_x[:, i], flat_y[:, i]) / flat_y[:, i].std(ddof=1) for i in range(30)]
    assert found.w1 == pytest.approx(np.mean(expected), rel=1e-10)
    spread, _ = quad(lambda t: np.sqrt(norm.cdf(t) * norm.sf(t)), -12, 12)
    assert np.sqrt(2 / np.pi) * np.sqrt(2 / 1000) * spread == pytest.approx(0.0576, abs=5e-5)
    # The empirical spread of 1,000 draws loses tails beyond them: less than 2 %.
    assert found.w1_floor == pytest.approx(0.0576, rel=0.02)


def test_agreement_and_total_variation_by_hand():
    """Half of |.7 - .4| + |.3 - .6| = .3, and 0. One class is no classification."""
    p, q = [[0.7, 0.3], [0.2, 0.8]], [[0.4, 0.6], [0.2, 0.8]]
    assert fidelity.agreement(p, q) == 0.5
    assert fidelity.total_variation(p, q) == pytest.approx(0.15)
    with pytest.raises(ValueError, match="K of at least 2"):
        fidelity.agreement([[1.0]], [[1.0]])
    with pytest.raises(ValueError, match="same points"):
        fidelity.total_variation(p, q[:1])


def test_unfit_arrays_are_refused():
    """A point where the reference stands still has no unit; shapes and finiteness are checked."""
    y = np.random.default_rng(0).normal(size=(2, 10, 4))
    still = y.copy()
    still[..., 3] = 1.0
    with pytest.raises(ValueError, match="does not vary at point 3"):
        Reference(still)
    with pytest.raises(ValueError, match="must be"):
        Reference(y[0])
    with pytest.raises(ValueError, match="at least two draws"):
        Reference(y[:1, :1])
    with pytest.raises(ValueError, match="3 points and the reference 4"):
        fidelity.fidelity(y[..., :3], Reference(y))
    with pytest.raises(FloatingPointError):
        fidelity.fidelity(y * np.nan, Reference(y))


def test_fidelity_needs_no_jax():
    """Draws of any library are scored where JAX is not installed."""
    code = "import sys, bdlbench.metrics.fidelity; assert not {'jax', 'arviz_stats', 'scipy.stats'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("num_chains", "num_draws"), [(3, 1), (3, 40), (5, 7)])
def test_worth_and_bias_of_a_curve_are_those_of_a_record(num_chains, num_draws):
    """The same sums in another order: equal to rounding, with ties and without the joint law."""
    rng = np.random.default_rng(5)
    x, y = (rng.normal(size=(*shape, 4)).round(1) + 0.3 for shape in ((num_chains, num_draws), (4, 30)))
    y[..., 1] += 1e3  # a point far away
    reference = Reference(y)
    found = fidelity.fidelity(x, reference, joint=False)
    assert_allclose(fidelity.worth_and_bias(x, reference), (found.worth.value, found.bias.value), rtol=1e-9, atol=1e-9)
    assert np.isnan(found.worth_joint.value)
    assert np.isnan(found.bias_joint.value)


def test_a_single_chain_of_a_curve_has_a_bias_only_if_its_draws_are_independent():
    rng = np.random.default_rng(6)
    x, reference = rng.normal(size=(1, 400, 3)) + 1, Reference(rng.normal(size=(4, 250, 3)))
    assert np.isnan(fidelity.worth_and_bias(x, reference)[1])
    worth, bias = fidelity.worth_and_bias(x, reference, independent=True)
    # A shift of 1 sd has worth G / D^2 = 1.128 / .540; the mean of three points of 400 draws is known to .03 sd.
    assert worth == pytest.approx(G / gaussian_distance(1, 1), rel=0.15)
    assert bias == pytest.approx(np.sqrt(gaussian_distance(1, 1) * np.sqrt(np.pi)), rel=0.15)
