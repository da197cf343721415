"""The correlated t, the hierarchical model against quadrature, and how often verdicts are false."""

import numpy as np
import pytest
from scipy.stats import norm, ttest_1samp
from scipy.stats import t as student

from bdlbench.errors import ConfigError
from bdlbench.evaluation.verdicts import Difference, Plan, difference, expected_false, hierarchical, plan, verdict
from bdlbench.metrics.resampling import error_factor


def splits(rng, size, mean, sd=1.0, rho=0.1):
    """Differences on ``size`` splits that have the correlation rho."""
    return mean + sd * (np.sqrt(rho) * rng.normal() + np.sqrt(1 - rho) * rng.normal(size=size))


def test_standard_error_is_nadeau_and_bengios():
    """With rho = .1 it is .401 sd at 20 splits and .333 sd at infinitely many. With rho = 0 it is the usual one."""
    d = np.random.default_rng(0).normal(size=20)
    one = difference(d, rho=0.1)
    assert one.se == pytest.approx(one.sd * np.sqrt(1 / 20 + 1 / 9), rel=1e-12)
    assert one.se / one.sd == pytest.approx(0.401, abs=5e-4)
    assert error_factor(10**9, 0.1) == pytest.approx(0.333, abs=5e-4)
    independent = difference(d, rho=0.0)
    usual = ttest_1samp(d, 0.0)
    assert one.mean / independent.se == pytest.approx(usual.statistic)
    assert verdict(independent, 0.0).better == pytest.approx(1 - ttest_1samp(d, 0.0, alternative="greater").pvalue)
    assert (one.num_splits, one.degrees, one.mean) == (20, 19, d.mean())


def test_a_plain_t_test_rejects_a_true_null_of_overlapping_splits_in_26_per_cent():
    """And the correlated form in 5 %: 4,000 repetitions, five binomial standard errors (3.5 and 1.7 %)."""
    rng = np.random.default_rng(1)
    found = [difference(splits(rng, 20, 0.0), rho=0.1) for _ in range(4000)]
    t = np.array([one.mean / one.se for one in found])
    plain = np.array([one.mean / (one.sd / np.sqrt(20)) for one in found])
    limit = student.isf(0.025, 19)
    assert abs(np.mean(np.abs(plain) > limit) - 0.26) < 0.035
    assert abs(np.mean(np.abs(t) > limit) - 0.05) < 0.017


def test_verdict_on_one_set_is_students_t():
    """Probabilities by scipy.stats, the interval, the smallest delta that could be decided, and the word."""
    one = Difference(0.05, 0.04, 0.02, 9.0, 0.1)
    found = verdict(one, 0.02)
    assert found.better == pytest.approx(student.sf(0.02, 9, 0.05, 0.02), rel=1e-9)
    assert found.worse == pytest.approx(student.cdf(-0.02, 9, 0.05, 0.02), rel=1e-9)
    assert found.better + found.equivalent + found.worse == pytest.approx(1)
    assert (found.low, found.high) == pytest.approx(student.interval(0.95, 9, 0.05, 0.02))
    centred = verdict(one._replace(mean=0.0), found.smallest_delta)
    assert centred.equivalent == pytest.approx(0.95)
    assert verdict(one, 0.001).word == "better"
    assert verdict(one._replace(mean=-0.05), 0.001).word == "worse"
    assert verdict(one, 0.2).word == "equivalent"
    assert found.word == "undecided"
    assert found._replace(rhat=1.2, better=1.0).word == "not converged"
    assert found._replace(rhat=np.nan, better=1.0).word == "not converged"


def test_a_method_against_itself_is_equivalent():
    """All splits are 0, and so is the standard error: certain at any delta above 0, undecided at 0."""
    same = difference(np.zeros(5), rho=0.1)
    assert verdict(same, 0.01).word == "equivalent"
    assert verdict(same, 0.01).equivalent == pytest.approx(1)
    assert verdict(same, 0.0)[:3] == (0.0, 1.0, 0.0)
    always = difference(np.full(5, 0.3), rho=0.1)
    assert verdict(always, 0.01).word == "better"
    assert verdict(always, 0.0).word == "better"


@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_few_of_200_nulls_are_decided(rho):
    """Known difference 0, 20 splits, delta a quarter of the standard error, so that no null can be called equivalent.

    Better or worse then has a probability of .06: at most 25 of 200 but once in 3,000 seeds. At three standard errors
    beyond delta better has a probability of .89 and worse none.
    """
    rng = np.random.default_rng(2)
    delta = 0.25 * error_factor(20, rho)
    words = [verdict(difference(splits(rng, 20, 0.0, rho=rho), rho=rho), delta).word for _ in range(200)]
    assert sum(word != "undecided" for word in words) <= 25
    far = delta + 3 * error_factor(20, rho)
    words = [verdict(difference(splits(rng, 20, far, rho=rho), rho=rho), delta).word for _ in range(200)]
    assert words.count("better") > 200 * 0.89 - 5 * np.sqrt(200 * 0.89 * 0.11)
    assert words.count("worse") == 0


# ---- several data sets


def by_quadrature(question, delta, between):
    """P(better), P(worse), mean and sd of mu_0 on a grid of mu_0 and tau, mu_i integrated out on a grid of its own."""
    mean, se, degrees = (np.array([getattr(one, name) for one in question]) for name in ("mean", "se", "degrees"))
    u = np.sqrt(mean.var() + (se**2).mean())
    m0 = mean.mean() + u * np.linspace(-6, 6, 121)
    tau = u * between * np.linspace(0.01, 4.5, 60)
    z, w = np.polynomial.hermite_e.hermegauss(40)
    mu = m0[:, None, None] + tau[None, :, None] * z
    log = norm.logpdf(m0, mean.mean(), 10 * u)[:, None] + norm.logpdf(tau, 0, between * u)
    for m, s, n in zip(mean, se, degrees, strict=True):
        log = log + np.log((student.pdf((mu - m) / s, n) * w).sum(-1))
    density = np.exp(log - log.max()).sum(1)
    density /= density.sum()
    average = density @ m0
    return density @ (m0 > delta), density @ (m0 < -delta), average, np.sqrt(density @ (m0 - average) ** 2)


def questions():
    rng = np.random.default_rng(3)
    return [
        [difference(splits(rng, 20, 0.3 + 0.2 * rng.normal()), rho=0.1) for _ in range(4)],
        [difference(splits(rng, 10, 1.0 + 1.5 * rng.normal(), 0.8), rho=0.1) for _ in range(4)],
        [difference(np.zeros(20), rho=0.1) for _ in range(4)],
        [difference(splits(rng, 20, 3.0, 0.1), rho=0.1) for _ in range(4)],
    ]


@pytest.fixture(scope="module")
def sampled():
    """Four questions on four data sets, which are the lanes of one program: everything below looks at this one."""
    return questions(), hierarchical(questions(), delta=0.2, seed=5)


@pytest.mark.slow
def test_hierarchical_model_is_its_integral(sampled):
    """The NUTS draws of mu_0 against quadrature in two dimensions, for two questions with different spreads.

    2,000 draws have an ESS of 500 at least (R-hat 1.01): a probability then has an error of at most .5 / sqrt(500) = .022,
    five of which are .11, and a mean one of .045 sd, five of which are .22 sd.
    """
    asked, found = sampled
    for question, answer in zip(asked[:2], found[:2], strict=True):
        better, worse, mean, sd = by_quadrature(question, 0.2, 1.0)
        assert answer.overall.better == pytest.approx(better, abs=0.11)
        assert answer.overall.worse == pytest.approx(worse, abs=0.11)
        assert answer.overall.median == pytest.approx(mean, abs=0.3 * sd)
        assert answer.overall.rhat < 1.05


def test_known_differences_are_recovered(sampled):
    """A method against itself is equivalent, one that is 15 deltas better is better, overall and on each set."""
    _, found = sampled
    assert found[2].overall.word == "equivalent"
    assert found[3].overall.word == "better"
    assert all(one.word == "better" for one in found[3].by_data)
    assert found[3].overall.low < 3.0 < found[3].overall.high
    assert found[3].overall.smallest_delta < 0.2 < found[1].overall.smallest_delta
    assert len(found[0].by_data) == 4


def test_sets_borrow_strength_from_one_another(sampled):
    """Each set's median lies between its own mean and that of all, within 5 % of the distance and the draws' error."""
    asked, found = sampled
    for question, answer in zip(asked[:2], found[:2], strict=True):
        means = np.array([one.mean for one in question])
        medians = np.array([one.median for one in answer.by_data])
        assert np.abs(medians - means.mean()).sum() < np.abs(means - means.mean()).sum()
        widths = np.array([one.high - one.low for one in answer.by_data])
        alone = np.array([verdict(one, 0.2).high - verdict(one, 0.2).low for one in question])
        assert widths.mean() < alone.mean()


def test_a_single_set_needs_no_sampling():
    """Its closed form serves for both verdicts."""
    one = Difference(0.05, 0.04, 0.02, 9.0, 0.1)
    (found,) = hierarchical([[one]], delta=0.02)
    assert found.overall == verdict(one, 0.02) == found.by_data[0]


@pytest.mark.slow
def test_few_of_200_hierarchical_nulls_are_decided():
    """Four sets with the known difference 0, sd .3 between sets, 20 splits; delta .05. At most 25 of 200 decided.

    Then 20 with the difference 3 delta and 20 with minus 3 delta on sharp data: all are decided rightly.
    """
    rng = np.random.default_rng(7)
    nulls = [[difference(splits(rng, 20, 0.3 * rng.normal()), rho=0.1) for _ in range(4)] for _ in range(200)]
    assert sum(one.overall.word != "undecided" for one in hierarchical(nulls, delta=0.05)) <= 25
    for sign, word in ((1, "better"), (-1, "worse")):
        sharp = [[difference(splits(rng, 20, 0.15 * sign, 0.02), rho=0.1) for _ in range(4)] for _ in range(16)]
        assert all(one.overall.word == word for one in hierarchical(sharp, delta=0.05))


# ---- what to do next


def test_plan_says_how_many_splits_or_that_none_decide():
    """One set by hand: mean .1, sd .1, delta .02 and five splits, whose half interval is h = 2.78 se = .124 with rho = 0.

    It may be .08 x 1.96 / 1.645 = .0953, so n = 5 (.124 / .0953)^2 = 8.5: 9 splits. With rho = .5, where half of se^2 is
    beyond any number of splits, the same ratio asks for less than that half.
    """
    one = difference([0.1 + 0.1 * z for z in (-1.0, -1.0, 0.0, 1.0, 1.0)], rho=0.0)
    assert one.sd == pytest.approx(0.1)
    assert plan([one], verdict(one, 0.02)) == Plan(9, None)
    assert str(Plan(9, None)) == "9 splits of each data set decide."
    overlapping = difference([0.1 + 0.1 * z for z in (-1.0, -1.0, 0.0, 1.0, 1.0)], rho=0.5)
    assert plan([overlapping], verdict(overlapping, 0.02)) == Plan(None, None)
    assert str(Plan(None, None)) == "No number of splits decides; add data sets."
    # Two sets at .1 -+ .2 with small errors: splits change nothing, and sets count by (h / allowed)^2 = (.4 / .0953)^2.
    two = [Difference(m, 0.1, 0.01, 19.0, 0.0) for m in (-0.1, 0.3)]
    found = verdict(one, 0.02)._replace(median=0.1, smallest_delta=0.4)
    assert plan(two, found) == Plan(None, 36)
    assert str(Plan(None, 36)) == "No number of splits decides; add data sets, up to 36 in all."
    assert plan(two, found._replace(median=0.02)) == Plan(None, None)


def test_expected_number_of_false_verdicts():
    """The sum of 1 - P over those that are pronounced: .03 + .05, and the undecided one does not count."""
    base = verdict(Difference(0.0, 0.0, 0.0, 4.0, 0.1), 0.02)
    better, worse = base._replace(better=0.97, equivalent=0.03), base._replace(better=0.0, equivalent=0.05, worse=0.95)
    undecided = base._replace(better=0.5, equivalent=0.5)
    assert expected_false([better, worse, undecided]) == pytest.approx(0.08)
    assert expected_false([]) == 0


def test_unfit_questions_are_refused():
    """Each in one sentence."""
    for call, match in (
        (lambda: difference([0.1], rho=0.1), "two splits"),
        (lambda: difference([0.1, np.nan], rho=0.1), "split 1 is not finite"),
        (lambda: difference([0.1, 0.2], rho=1.0), "rho is 1.0"),
        (lambda: verdict(Difference(0.0, 1.0, 1.0, 4.0, 0.1), -1.0), "delta is -1.0"),
        (lambda: hierarchical([[]], delta=0.1), "no data set"),
        (lambda: hierarchical([], delta=0.0), "delta is 0.0"),
        (lambda: hierarchical([], delta=0.1, between=0.0), "between is 0.0"),
    ):
        with pytest.raises(ConfigError, match=match):
            call()
