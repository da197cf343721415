"""Uncertainty scores against hand-computed values, scikit-learn and closed forms."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import roc_auc_score

from bdlbench.metrics import uncertainty
from bdlbench.metrics.mixture import PredictiveMixture

RNG = np.random.default_rng(7)


def binary(confidence, wrong):
    """Return labels and probabilities with these confidences in class 0, right or wrong."""
    confidence = np.asarray(confidence)
    return np.asarray(wrong, int), np.stack([confidence, 1 - confidence], axis=1)


def test_mutual_information_by_hand():
    """Two sure draws that contradict each other: entropy ln 2, all of it disagreement; two equal draws: none."""
    mixture = PredictiveMixture()
    mixture.update({"log_lik": np.zeros((2, 2)), "probs": np.array([[[1, 0], [0.5, 0.5]], [[0, 1], [0.5, 0.5]]])})
    got = mixture.ingredients()
    assert_allclose(got["entropy_of_mean"] - got["mean_entropy"], [np.log(2), 0], atol=1e-15)
    total, noise = got["entropy_of_mean"], got["mean_entropy"]
    assert uncertainty.mutual_information(total, noise) == pytest.approx(np.log(2) / 2, rel=1e-15)
    assert uncertainty.predictive_entropy(total) == pytest.approx(np.log(2), rel=1e-15)


def test_model_variance_share_by_hand():
    """1 / (3 + 1) and 2 / (2 + 2)."""
    assert uncertainty.model_variance_share([3.0, 2.0], [1.0, 2.0]) == pytest.approx(0.375)


def test_ood_auroc_is_the_probability_of_ranking_right():
    """P(out > in) + P(equal) / 2 over all pairs, ties included."""
    inside, outside = RNG.integers(0, 6, size=30), RNG.integers(3, 9, size=20)
    pairs = [(a < b) + 0.5 * (a == b) for a, b in itertools.product(inside, outside)]
    assert uncertainty.ood_auroc(inside, outside) == pytest.approx(np.mean(pairs), rel=1e-13)


def test_ood_aupr_by_hand():
    """Ranking out, in, out: precision 1 at recall 1/2, then 2/3 at recall 1: average precision 5/6."""
    assert uncertainty.ood_aupr([0.5], [0.9, 0.1]) == pytest.approx(5 / 6)


def test_ood_fpr95_by_hand():
    """20 unfamiliar inputs at 1..20, so the threshold 2 finds 95 %; of the familiar -5..4 three (2, 3, 4) pass it."""
    assert uncertainty.ood_fpr95(np.arange(-5, 5), np.arange(1, 21)) == pytest.approx(0.3)
    assert uncertainty.ood_fpr95([0.0, 1.0], [2.0, 3.0]) == 0.0


def test_selective_scores_by_hand():
    """Confidences in falling order, errors at ranks 2 and 4 of 4.

    AURC (0 + 1/2 + 1/3 + 2/4) / 4; AUGRC by trapezoids of 0 0 1 1 2 (over 4): (0 + .5 + 1 + 1.5) / 16.
    """
    y, probs = binary([0.9, 0.8, 0.7, 0.6], [0, 1, 0, 1])
    assert uncertainty.aurc(y, probs) == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert uncertainty.augrc(y, probs) == pytest.approx(3 / 16)
    assert uncertainty.error_at_coverage(y, probs, coverage=0.75) == pytest.approx(1 / 3)
    assert uncertainty.error_at_coverage(y, probs, coverage=0.8) == pytest.approx(2 / 4)


@pytest.mark.parametrize("levels", [1000, 5, 1])
def test_augrc_is_the_closed_form_of_the_paper(levels):
    """(1 - AUROC_f) a (1 - a) + (1 - a)^2 / 2, also with few levels of confidence (ties); an identity."""
    confidence = np.round(RNG.uniform(0.5, 1, size=300) * levels) / levels
    confidence = np.clip(confidence, 0.5, 1)
    wrong = RNG.random(300) > 0.4 + 0.5 * confidence
    y, probs = binary(confidence, wrong & (confidence > 0.5))
    wrong = probs.argmax(axis=1) != y
    accuracy = 1 - wrong.mean()
    expected = (1 - roc_auc_score(~wrong, confidence)) * accuracy * (1 - accuracy) + 0.5 * (1 - accuracy) ** 2
    assert uncertainty.augrc(y, probs) == pytest.approx(expected, rel=1e-12)


def test_ties_count_as_the_average_over_orders():
    """Three points of one confidence behind a surer one: the mean over all six orders of the three."""
    y, probs = binary([0.9, 0.7, 0.7, 0.7], [0, 1, 0, 0])
    scores = []
    for order in itertools.permutations([1, 0, 0]):
        _, untied = binary([0.9, 0.73, 0.72, 0.71], [0, *order])
        scores.append(uncertainty.aurc(np.array([0, *order]), untied))
    assert uncertainty.aurc(y, probs) == pytest.approx(np.mean(scores), rel=1e-14)


@pytest.mark.parametrize("num_points", [5, 10, 20])
def test_coverage_of_points_is_not_rounded_up_by_float_error(num_points):
    """.7 * 10 is 7.000000000000001 and must keep 7 points, here all right; the others are wrong."""
    kept = int(np.ceil(0.7 * num_points - 1e-6))
    y, probs = binary(np.linspace(0.99, 0.6, num_points), np.arange(num_points) >= kept)
    assert uncertainty.error_at_coverage(y, probs, coverage=0.7) == 0.0


def test_full_coverage_ends_at_the_error_rate():
    """The last point of either curve is 1 - accuracy: AURC of equal confidences is that everywhere."""
    probs = np.full((10, 2), 0.5)
    y = np.array([0] * 7 + [1] * 3)
    assert uncertainty.aurc(y, probs) == pytest.approx(0.3)
    assert uncertainty.augrc(y, probs) == pytest.approx(0.15)


def test_probabilities_are_checked():
    """Logits are not probabilities."""
    with pytest.raises(ValueError, match="sum to one"):
        uncertainty.aurc([0, 1], RNG.normal(size=(2, 3)))
