"""The expected cost with referral against a loop over rows and decisions, and against the best of all rules."""

import itertools

import numpy as np
import pytest

from bdlbench.errors import ConfigError
from bdlbench.metrics.decisions import referral_cost

pytestmark = pytest.mark.quick
COSTS = [[0.0, 2.0, 5.0], [1.0, 0.0, 1.0], [9.0, 3.0, -1.0]]
RNG = np.random.default_rng(3)
PROBS = RNG.dirichlet(np.ones(3), 50)
Y = RNG.integers(0, 3, 50)


def by_hand(y, probs, costs, referral):
    total = 0.0
    for label, p in zip(y, probs, strict=True):
        expected = [sum(p[j] * costs[j][k] for j in range(3)) for k in range(3)]
        best = expected.index(min(expected))
        total += referral if expected[best] > referral else costs[label][best]
    return total / len(y)


@pytest.mark.parametrize("referral", [0.0, 0.4, 100.0])
def test_each_row_takes_its_bayes_decision(referral):
    found = referral_cost(Y, PROBS, costs=COSTS, referral=referral)
    assert found == pytest.approx(by_hand(Y, PROBS, COSTS, referral), rel=1e-12)
    errors = [[float(j != k) for k in range(3)] for j in range(3)]
    found = referral_cost(Y, PROBS, costs=None, referral=min(referral, 1.0))
    assert found == pytest.approx(by_hand(Y, PROBS, errors, min(referral, 1.0)), rel=1e-12)


def test_without_a_referral_it_is_the_share_of_errors_and_a_free_referral_costs_nothing():
    assert referral_cost(Y, PROBS, costs=None, referral=1.0) == pytest.approx(np.mean(PROBS.argmax(1) != Y))
    assert referral_cost(Y, PROBS, costs=None, referral=0.0) == 0.0


def test_no_rule_is_cheaper_where_the_probabilities_are_right():
    """Two rows stand for all classes with their probabilities: the expectation over y, and each of the 16 pairs of rules."""
    two, c = PROBS[:2], 0.7
    mean = sum(
        two[0, a] * two[1, b] * referral_cost([a, b], two, costs=COSTS, referral=c)
        for a, b in itertools.product(range(3), repeat=2)
    )
    price = np.column_stack([two @ np.array(COSTS), [c, c]])  # the expected cost of each decision, the referral last
    rules = [(price[0, a] + price[1, b]) / 2 for a, b in itertools.product(range(4), repeat=2)]
    assert mean == pytest.approx(min(rules), rel=1e-12)


def test_ties():
    """Equal costs go to the lowest class, and a row whose expected cost is that of a referral is decided."""
    assert referral_cost([1], [[0.5, 0.5]], costs=None, referral=0.5) == 1.0
    assert referral_cost([0], [[0.5, 0.5]], costs=None, referral=0.5) == 0.0
    assert referral_cost([0], [[0.5, 0.5]], costs=None, referral=0.25) == 0.25


@pytest.mark.parametrize(
    ("costs", "referral", "said"),
    [
        ([[0.0, 1.0]], 0.1, "3 lists of 3"), ([[0, 1], [1]], 0.1, "3 lists of 3"), (COSTS, -1.0, "referral=-1"),
        (COSTS, float("nan"), "referral=nan"), ([[0.0, 1.0, float("inf")]] * 3, 0.1, "finite"),
    ],
)  # fmt: skip
def test_costs_that_fit_no_classes_are_refused(costs, referral, said):
    with pytest.raises(ConfigError, match=said):
        referral_cost(Y, PROBS, costs=costs, referral=referral)
