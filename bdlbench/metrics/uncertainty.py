"""Metrics of predictive uncertainty: its parts, the detection of out-of-distribution inputs, and selective prediction.

Scores for detection are larger for inputs that seem to be out of distribution. These inputs are the positive class.
"""

import numpy as np
from numpy.typing import ArrayLike

from bdlbench.metrics.checks import Floats, fraction, labels, per_point, probabilities


def predictive_entropy(entropy_of_mean: ArrayLike) -> float:
    """Mean predictive entropy (1/n) sum_i H[(1/S) sum_s p_s(. | x_i)], in nats.

    Parameters
    ----------
    entropy_of_mean : array (n,)
    """
    (entropy,) = per_point(entropy_of_mean=entropy_of_mean)
    return float(entropy.mean())


def mutual_information(entropy_of_mean: ArrayLike, mean_entropy: ArrayLike) -> float:
    """Mean information that a label would give about theta, (1/n) sum_i (H[mean_s p_s] - mean_s H[p_s]), in nats.

    It is the part of the predictive entropy that more data could remove. Source: Houlsby et al. (2011), BALD.

    Parameters
    ----------
    entropy_of_mean, mean_entropy : array (n,)
    """
    total, noise = per_point(entropy_of_mean=entropy_of_mean, mean_entropy=mean_entropy)
    return float((total - noise).mean())


def model_variance_share(noise_variance: ArrayLike, model_variance: ArrayLike) -> float:
    """Mean share of the predictive variance that comes from differences between draws, (1/n) sum_i m_i / (m_i + v_i).

    v_i = mean_s Var[y | x_i, theta_s] is the noise variance and m_i = Var_s E[y | x_i, theta_s] the model variance.
    Source: law of total variance; Depeweg et al. (2018).

    Parameters
    ----------
    noise_variance, model_variance : array (n,)
    """
    noise, model = per_point(noise_variance=noise_variance, model_variance=model_variance)
    return float((model / (noise + model)).mean())


def ood_auroc(score_in: ArrayLike, score_out: ArrayLike) -> float:
    """Area under the ROC curve, P(score_out > score_in) + P(equal)/2. Source: Hendrycks & Gimpel (2017); scikit-learn.

    Parameters
    ----------
    score_in : array (n,)
        Scores of inputs from the training distribution.
    score_out : array (m,)
        Scores of other inputs.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_detection(score_in, score_out)))


def ood_aupr(score_in: ArrayLike, score_out: ArrayLike) -> float:
    """Average precision sum_k (R_k - R_{k-1}) P_k, out-of-distribution positive, without interpolation (scikit-learn).

    Its chance level is m / (n + m), so it is compared only at one mixing ratio.

    Parameters
    ----------
    score_in : array (n,)
    score_out : array (m,)
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_detection(score_in, score_out)))


def ood_fpr95(score_in: ArrayLike, score_out: ArrayLike) -> float:
    """False positive rate at 95 % true positive rate (FPR95).

    It is the smallest share of ``score_in`` above a threshold that at least 95 % of ``score_out`` reach.

    Parameters
    ----------
    score_in : array (n,)
    score_out : array (m,)
    """
    from sklearn.metrics import roc_curve

    # All thresholds are needed. By default scikit-learn leaves out points on straight parts of the curve.
    false_rate, true_rate, _ = roc_curve(*_detection(score_in, score_out), drop_intermediate=False)
    return float(false_rate[true_rate >= 0.95].min())


def aurc(y: ArrayLike, probs: ArrayLike) -> float:
    """Area under the risk-coverage curve: (1/n) sum_k (errors among the k most confident) / k.

    Confidence is the largest probability. For points of equal confidence, the mean over random orders is taken. Source:
    Geifman, Uziel & El-Yaniv (2019).

    Parameters
    ----------
    y : integer array (n,)
    probs : array (n, K)
    """
    errors = _accumulated_errors(y, probs)
    return float(np.mean(errors / np.arange(1, errors.size + 1)))


def augrc(y: ArrayLike, probs: ArrayLike) -> float:
    """Area under the generalised risk-coverage curve, by trapezoids from (0, 0).

    The generalised risk at coverage k/n is (errors among the k most confident) / n, the probability of a silent
    failure. With accuracy a and the AUROC of telling right from wrong by confidence, equal to
    (1 - AUROC) a (1 - a) + (1 - a)^2 / 2. Source: Traub et al. (2024), arXiv 2407.01032.

    Parameters
    ----------
    y : integer array (n,)
    probs : array (n, K)
    """
    errors = _accumulated_errors(y, probs)
    return float((errors.sum() - 0.5 * errors[-1]) / errors.size**2)


def error_at_coverage(y: ArrayLike, probs: ArrayLike, *, coverage: float) -> float:
    """Share of wrong predictions among the ceil(coverage n) most confident points; ties as in :func:`aurc`.

    Parameters
    ----------
    y : integer array (n,)
    probs : array (n, K)
    coverage : float
        Share of points predicted, 0.8 for 80 %.
    """
    errors = _accumulated_errors(y, probs)
    # Rounded first: .7 * 10 is 7.000000000000001.
    kept = int(np.ceil(np.round(fraction("coverage", coverage) * errors.size, 9)))
    return float(errors[kept - 1] / kept)


def _detection(score_in: ArrayLike, score_out: ArrayLike) -> tuple[Floats, Floats]:
    (inside,), (outside,) = per_point(score_in=score_in), per_point(score_out=score_out)
    positive = np.concatenate([np.zeros(inside.size), np.ones(outside.size)])
    return positive, np.concatenate([inside, outside])


def _accumulated_errors(y: ArrayLike, probs: ArrayLike) -> Floats:
    """Return the expected number of errors (n,) among the k = 1..n most confident points, ties in random order."""
    probs = probabilities(probs)
    wrong = (probs.argmax(axis=1) != labels(y, probs.shape[1], len(probs))).astype(np.float64)
    _, group, size = np.unique(-probs.max(axis=1), return_inverse=True, return_counts=True)
    rate = np.bincount(group, weights=wrong) / size
    return np.cumsum(np.repeat(rate, size))
