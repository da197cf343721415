"""Which method is first, second, ... over data sets, as a posterior of ranks from the model of the verdicts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from bdlbench.errors import ConfigError
from bdlbench.evaluation import verdicts
from bdlbench.evaluation.verdicts import LEVEL, MAX_RHAT
from bdlbench.metrics import diagnostics
from bdlbench.metrics.checks import Floats
from bdlbench.metrics.resampling import error_factor

NUM_DRAWS = verdicts.NUM_CHAINS * verdicts.NUM_SAMPLES


class Ranks(NamedTuple):
    """Draws of the ranks of K methods; 1 is the best, and methods that are equal share the mean of their ranks.

    Attributes
    ----------
    overall : array (S, K)
        Ranks of the means over data sets like these.
    by_data : dict of arrays (S, K)
        Ranks on each data set.
    rhat : float or None
        The largest of the sampled means; None for one data set, whose posterior is in closed form.
    """

    overall: Floats
    by_data: dict[str, Floats]
    rhat: float | None

    @property
    def expected(self) -> Floats:
        """Expected overall ranks (K,)."""
        return self.overall.mean(axis=0)

    @property
    def interval(self) -> Floats:
        """Lower and upper ends (2, K) of the central 95 % interval of the overall ranks."""
        return np.quantile(self.overall, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=0)

    @property
    def probabilities(self) -> Floats:
        """P(method k has overall rank r), (K, K) with k first. A shared rank counts in equal parts for those it covers."""
        num = self.overall.shape[1]
        least, most = (rankdata(self.overall, method=ends, axis=1) for ends in ("min", "max"))
        place = np.arange(1, num + 1)
        covered = (least[..., None] <= place) & (place <= most[..., None])
        return (covered / covered.sum(-1, keepdims=True)).mean(axis=0)

    @property
    def ahead(self) -> Floats:
        """P(method k is ahead of method l over data sets like these), (K, K). Equal methods count one half."""
        first, second = self.overall[:, :, None], self.overall[:, None, :]
        return ((first < second) + 0.5 * (first == second)).mean(axis=0)

    @property
    def converged(self) -> bool:
        """Whether the chains agree: R-hat is at most 1.05."""
        return self.rhat is None or self.rhat <= MAX_RHAT


def ranks(scores: Mapping[str, ArrayLike], *, rho: Mapping[str, float], between: float = 1.0, seed: int = 0) -> Ranks:
    r"""The posterior of the ranks of K methods from their scores on the splits of one or several data sets.

    The score of a method is taken less the mean of all methods on the same split. These deviations are questions to the
    model of :func:`bdlbench.evaluation.verdicts.hierarchical`, one a method, and the mean mu_0 of each is drawn from its
    posterior, so that the marginal posteriors are those of verdicts. One data set has a multivariate Student's t, whose
    posterior of each pair's difference is that of :func:`bdlbench.evaluation.verdicts.verdict`. With several data sets the
    draws of the methods are put in an order (Iman & Conover 1982), because errors of methods on the same rows are
    dependent. It has the ranks of normal draws with covariance

    .. math:: \frac1I \sum_i \left(\frac1{n_i} + \frac{\rho_i}{1 - \rho_i}\right) S_i + B ,

    where S_i is the covariance of the methods' deviations over splits and B that of their means over the I data sets:
    the matrix with the u^2 of the verdicts on its diagonal. For two methods this is exact. For more it is a normal
    copula, and the probability that one method is ahead of another can differ a little from the verdict on that pair.

    Parameters
    ----------
    scores : mapping of arrays (n_i, K)
        By data set: a row for each split, a column for each method; more is better. K and n_i are 2 or more.
    rho : mapping of floats
        By data set: the correlation of two splits.
    between : float
        Width of the prior of the sd between sets; see :func:`bdlbench.evaluation.verdicts.hierarchical`.
    seed : int

    Raises
    ------
    ConfigError
        As :func:`bdlbench.evaluation.verdicts.difference`, and where the scores of the sets are not of the same methods.
    """
    arrays = {data: np.asarray(values, np.float64) for data, values in scores.items()}
    if not arrays or len({values.shape[1:] for values in arrays.values()}) != 1:
        raise ConfigError("scores must have a column for each method, the same in all data sets, and one set at least.")
    (num,) = next(iter(arrays.values())).shape[1:] or (0,)
    if num < 2:
        raise ConfigError("ranks need two methods or more: run another method on the same splits.")
    away = {data: values - values.mean(axis=1, keepdims=True) for data, values in arrays.items()}
    questions = [
        [verdicts.difference(values[:, k], rho=rho[data]) for data, values in away.items()] for k in range(num)
    ]
    means = np.array([[one.mean for one in question] for question in questions])
    rng = np.random.default_rng(seed)
    errors = [error_factor(len(values), rho[data]) ** 2 * np.cov(values, rowvar=False) for data, values in away.items()]
    # Methods with the same scores are one question, so that no difference of their draws decides between them.
    same = [next(j for j in range(k + 1) if all((v[:, j] == v[:, k]).all() for v in away.values())) for k in range(num)]
    if len(arrays) == 1:
        (data,) = arrays
        degrees = questions[0][0].degrees
        scale = np.sqrt(degrees / rng.chisquare(degrees, size=(NUM_DRAWS, 1)))
        drawn = means[:, 0] + scale * _normal(errors[0], rng) * [question[0].se for question in questions]
        overall = _ranked(drawn[:, same])
        return Ranks(overall, {data: overall}, None)
    # draws() takes a standard error below 1e-3 of this for that, because zero has no density.
    largest = float(np.ptp(means, axis=0).max())
    asked = sorted(set(same))
    found = verdicts.draws([questions[k] for k in asked], delta=largest or 1.0, between=between, seed=seed)
    by_method = dict(zip(asked, found, strict=True))
    rhat = max(_rhat(draws[..., :1]) for draws in found)
    total = np.mean(errors, axis=0) + np.cov(means, bias=True)

    def ordered(column: int, covariance: Floats) -> Floats:
        normal = _normal(covariance, rng)
        place = normal.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
        marginal = [np.sort(by_method[same[k]][..., column].reshape(-1))[place[:, same[k]]] for k in range(num)]
        return _ranked(np.stack(marginal, axis=1))

    by_data = {data: ordered(1 + i, errors[i]) for i, data in enumerate(arrays)}
    return Ranks(ordered(0, total), by_data, rhat)


def undecided_groups(found: Ranks) -> list[list[int]]:
    """Largest runs of methods, neighbours in the order of their expected ranks, of which no two are told apart.

    Two methods are told apart where one is ahead with a probability of .95. These are the bars of a critical-difference
    diagram (Demsar 2006). Runs of one method are left out.
    """
    order: Sequence[int] = np.argsort(found.expected, kind="stable").tolist()
    ahead = found.ahead
    out: list[list[int]] = []
    reached = 0
    for start in range(len(order)):
        stop = start + 1
        while stop < len(order) and all(ahead[order[k], order[stop]] < LEVEL for k in range(start, stop)):
            stop += 1
        if stop - start > 1 and stop > reached:
            out.append(list(order[start:stop]))
            reached = stop
    return out


def _normal(covariance: Floats, rng: np.random.Generator) -> Floats:
    """Draws (S, K) with unit variance and the correlations of a covariance that may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    sd = np.sqrt((root**2).sum(axis=1))
    return rng.normal(size=(NUM_DRAWS, len(root))) @ (root / np.where(sd > 0, sd, 1.0)[:, None]).T


def _ranked(drawn: Floats) -> Floats:
    return rankdata(-drawn, axis=1)


def _rhat(drawn: Floats) -> float:
    found = diagnostics.function_diagnostics(
        lambda start, stop: drawn, 1, num_chains=drawn.shape[0], num_draws=drawn.shape[1]
    )["rhat_max"]
    return float("inf") if found is None else float(found)
