"""Ranks of one data set against multivariate Student's t, and their agreement with verdicts on pairs."""

import itertools

import numpy as np
import pytest
from scipy.stats import multivariate_t, norm

from bdlbench.errors import ConfigError
from bdlbench.evaluation import verdicts
from bdlbench.evaluation.ranks import NUM_DRAWS, Ranks, ranks, undecided_groups

BINOMIAL = 5 * 0.5 / np.sqrt(NUM_DRAWS)
"""Five standard errors of a probability from independent draws, at most."""


def scores(rng, size, means, sd=1.0):
    """Dependent methods: they share the level of a split, and methods 0 and 1 more than that."""
    noise = sd * rng.normal(size=(size, len(means)))
    noise[:, 1] = 0.8 * noise[:, 0] + 0.6 * noise[:, 1]
    return 3 * rng.normal(size=(size, 1)) + noise + means


def test_one_data_set_is_multivariate_students_t():
    """P(order) against scipy's draws of the multivariate t, and P(ahead) of each pair against its verdict at delta = 0."""
    rng = np.random.default_rng(0)
    values = scores(rng, 12, [0.3, 0.0, 0.2])
    found = ranks({"x": values}, rho={"x": 0.1})
    error = (1 / 12 + 1 / 9) * np.cov(values, rowvar=False)
    drawn = multivariate_t(values.mean(0), error, df=11).rvs(200_000, random_state=1)
    for order in itertools.permutations(range(3)):
        truth = np.mean((np.diff(drawn[:, order], axis=1) < 0).all(1))
        mine = np.mean((np.diff(found.overall[:, order], axis=1) > 0).all(1))
        assert mine == pytest.approx(truth, abs=1.1 * BINOMIAL)
    for a, b in itertools.combinations(range(3), 2):
        pair = verdicts.verdict(verdicts.difference(values[:, a] - values[:, b], rho=0.1), 0.0)
        assert found.ahead[a, b] == pytest.approx(pair.better, abs=BINOMIAL)
    assert found.expected == pytest.approx([1 + found.ahead[:, k].sum() - 0.5 for k in range(3)])
    assert found.probabilities.sum(0) == pytest.approx(np.ones(3))
    assert found.probabilities.sum(1) == pytest.approx(np.ones(3))
    assert found.rhat is None and found.converged
    assert (found.by_data["x"] == found.overall).all()


def test_methods_with_equal_scores_share_their_ranks():
    """In every draw, whatever the third does; one that is far better is always first."""
    rng = np.random.default_rng(1)
    values = scores(rng, 10, [0.0, 0.0, 50.0])
    values[:, 1] = values[:, 0]
    found = ranks({"x": values}, rho={"x": 0.1})
    assert (found.overall == [2.5, 2.5, 1.0]).all()
    assert found.probabilities.tolist() == [[0, 0.5, 0.5], [0, 0.5, 0.5], [1, 0, 0]]
    assert undecided_groups(found) == [[0, 1]]
    everything = ranks({"x": np.ones((4, 3))}, rho={"x": 0.1})
    assert (everything.overall == 2).all()


def test_groups_are_those_of_a_critical_difference_diagram():
    """Neighbours of which no two are told apart; a group within another is left out."""
    certain = np.tile([1.0, 2.0, 3.0, 4.0], (1000, 1))
    assert undecided_groups(Ranks(certain, {}, None)) == []
    swapped = certain.copy()
    swapped[:300] = [2.0, 1.0, 3.0, 4.0]
    swapped[300:600] = [1.0, 3.0, 2.0, 4.0]
    assert undecided_groups(Ranks(swapped, {}, None)) == [[0, 1], [1, 2]]
    mixed = np.random.default_rng(0).permuted(certain, axis=1)
    assert [sorted(group) for group in undecided_groups(Ranks(mixed, {}, None))] == [[0, 1, 2, 3]]


def test_draws_of_methods_are_joined_with_their_dependence(monkeypatch):
    """Normal marginals of two sets, without sampling: P(ahead) is that of the normal law with the covariance of the docstring.

    Methods 0 and 1 are nearly equal on every split, so that 0, ahead by a little, is ahead almost surely. Independent draws
    would say .55.
    """
    rng = np.random.default_rng(3)
    sets = {}
    for name in ("x", "y"):
        sets[name] = scores(rng, 20, [0.0, 0.0, 0.3])
        sets[name][:, 1] = sets[name][:, 0] - 0.2 + 0.05 * rng.normal(size=20)
    rho = dict.fromkeys(sets, 0.1)
    away = {name: values - values.mean(1, keepdims=True) for name, values in sets.items()}
    means = np.array([values.mean(0) for values in away.values()])
    errors = [(1 / 20 + 1 / 9) * np.cov(values, rowvar=False) for values in away.values()]
    total = np.mean(errors, 0) + np.cov(means, rowvar=False, bias=True)

    def normal(questions, **_):
        own = iter(total.diagonal())
        return [
            np.stack([rng.normal(np.mean([d.mean for d in q]), np.sqrt(v), (4, 500))]
                     + [rng.normal(d.mean, d.se, (4, 500)) for d in q], -1)
            for q, v in zip(questions, own, strict=True)
        ]  # fmt: skip

    monkeypatch.setattr(verdicts, "draws", normal)
    found = ranks(sets, rho=rho)
    for a, b in itertools.combinations(range(3), 2):
        sd = np.sqrt(total[a, a] + total[b, b] - 2 * total[a, b])
        assert found.ahead[a, b] == pytest.approx(norm.cdf((means.mean(0)[a] - means.mean(0)[b]) / sd), abs=BINOMIAL)
        for i, name in enumerate(sets):
            sd = np.sqrt(errors[i][a, a] + errors[i][b, b] - 2 * errors[i][a, b])
            ahead = np.mean(found.by_data[name][:, a] < found.by_data[name][:, b])
            assert ahead == pytest.approx(norm.cdf((means[i, a] - means[i, b]) / sd), abs=BINOMIAL)
    assert found.ahead[0, 1] > 0.99


@pytest.mark.slow
def test_several_data_sets_agree_with_the_verdicts_on_pairs():
    """P(ahead) of each of six pairs against the hierarchical verdict; method 3 is better everywhere, 2 is one of them by set.

    Both are of draws with an ESS of 500 at least: each has an error of at most .5 / sqrt(500) = .022, their difference one of
    .032, five of which are .16. What the copula leaves of error must lie within that. At a delta of 1e-6 nothing is
    equivalent.
    """
    rng = np.random.default_rng(2)
    sets = {f"set{i}": scores(rng, 20, [0.4, 0.1, 1.2 * rng.normal(), 4.0], 0.7) for i in range(4)}
    rho = dict.fromkeys(sets, 0.1)
    found = ranks(sets, rho=rho)
    pairs = list(itertools.combinations(range(4), 2))
    questions = [[verdicts.difference(v[:, a] - v[:, b], rho=0.1) for v in sets.values()] for a, b in pairs]
    answers = [one for some in (questions[:4], questions[2:]) for one in verdicts.hierarchical(some, delta=1e-6)]
    by_pair = dict(zip(pairs[:4] + pairs[2:], answers, strict=True))
    for (a, b), answer in by_pair.items():
        assert found.ahead[a, b] == pytest.approx(answer.overall.better, abs=0.16)
    assert found.probabilities[3, 0] > 0.95
    assert found.converged and found.rhat is not None
    assert set(found.by_data) == set(sets)
    for data, values in sets.items():
        alone = np.argsort(-values.mean(0))
        assert found.by_data[data].mean(0)[alone[0]] < found.by_data[data].mean(0)[alone[-1]]


def test_unfit_scores_are_refused():
    with pytest.raises(ConfigError, match="two methods or more"):
        ranks({"x": np.zeros((4, 1))}, rho={"x": 0.1})
    with pytest.raises(ConfigError, match="the same in all data sets"):
        ranks({"x": np.zeros((4, 2)), "y": np.zeros((4, 3))}, rho={"x": 0.1, "y": 0.1})
    with pytest.raises(ConfigError, match="two splits or more"):
        ranks({"x": np.zeros((1, 2))}, rho={"x": 0.1})
