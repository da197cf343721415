"""The posterior predictive distribution at new rows, in the caller's units."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import entr, logsumexp
from scipy.stats import norm

from bdlbench.api.inputs import Targets
from bdlbench.data.dataset import Scaler
from bdlbench.errors import ConfigError
from bdlbench.metrics.calibration import mixture_quantile
from bdlbench.runs.look import PREDICTED, absent_moments


class Prediction:
    r"""The posterior predictive distribution at n rows, a mixture over S posterior draws, in the caller's units.

    .. math:: p(y | x, \mathcal D) \approx \frac1S \sum_s p(y | x, \theta_s)

    It is made by :meth:`bdlbench.Posterior.predict`. For regression it has ``mean``, ``sd``, ``variance`` with its
    parts ``noise_variance`` and ``model_variance``, ``quantile`` and ``interval``. For classification it has ``probs``,
    ``classes``, ``labels``, ``entropy`` with its parts ``noise_entropy`` and ``mutual_information``. Both have
    ``sample`` and ``log_prob``. For K > 1 targets the arrays of a regression have a last axis of length K, except
    ``log_prob``.

    Attributes
    ----------
    num_draws : int
        S.
    num_rows : int
        n.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        targets: Targets,
        *,
        gaussian: bool,
        again: Callable[..., dict[str, np.ndarray]],
        scored: Callable[[], np.ndarray],
    ) -> None:
        self._arrays, self._targets, self._gaussian, self._again = dict(arrays), targets, gaussian, again
        self._scored = scored
        self.num_draws, self.num_rows = next(iter(arrays.values())).shape[:2]

    def __repr__(self) -> str:
        kind = "amounts" if self._targets.classes is None else f"{len(self._targets.classes)} classes"
        return f"Prediction({self.num_rows} rows, {self.num_draws} draws, {kind})"

    @property
    def num_targets(self) -> int:
        """K, the number of targets of each row."""
        return self._targets.shape[0] if self._targets.shape else 1

    # ---- regression

    def _refuse_classes(self, name: str) -> None:
        if self._targets.classes is not None:
            raise ConfigError(f"{name} belongs to amounts, but these are classes: use probs, entropy or log_prob.")

    def _amount(self, name: str) -> np.ndarray:
        self._refuse_classes(name)
        moment = "mean" if name != "variance" else "variance"
        if moment not in self._arrays or not np.isfinite(self._arrays[moment]).all():
            raise ConfigError(
                f"{name}: y given theta has no finite {moment} under this likelihood: use quantile, sample or log_prob."
            )
        return self._arrays[moment].astype(np.float64)

    @property
    def means(self) -> np.ndarray:
        """E[y | x, theta_s] for each draw, (S, n), or (S, n, K) for K targets, in the caller's units."""
        loc, scale = self._targets.loc_scale
        return self._amount("means") * scale + loc

    @property
    def variances(self) -> np.ndarray:
        """Var[y | x, theta_s] for each draw, (S, n), or (S, n, K) for K targets, in squared caller's units."""
        return self._amount("variance") * np.square(self._targets.loc_scale[1])

    @property
    def mean(self) -> np.ndarray:
        """E[y | x] = mean_s E[y | x, theta_s], (n,), in the caller's units."""
        return self.means.mean(axis=0)

    @property
    def noise_variance(self) -> np.ndarray:
        """mean_s Var[y | x, theta_s], (n,), in squared caller's units: the variance that more data would not remove."""
        return self.variances.mean(axis=0)

    @property
    def model_variance(self) -> np.ndarray:
        """Var_s E[y | x, theta_s] with divisor S, (n,), in squared caller's units.

        It is the part of the variance that more data would remove.
        """
        return self.means.var(axis=0)

    @property
    def variance(self) -> np.ndarray:
        """Var[y | x] = ``noise_variance + model_variance`` (law of total variance), (n,), in squared caller's units."""
        return self.noise_variance + self.model_variance

    @property
    def sd(self) -> np.ndarray:
        """Standard deviation of y, the root of ``variance``, (n,), in the caller's units."""
        return np.sqrt(self.variance)

    def quantile(self, q: float | Sequence[float]) -> np.ndarray:
        """Quantiles of y in the caller's units: (n,) for one level, (Q, n) for Q levels.

        They are exact for the mixture if y given theta is normal. Otherwise they are the empirical quantiles of
        :meth:`sample`, whose error falls with the root of the number of draws.

        Parameters
        ----------
        q : float or sequence of float
            Levels strictly between 0 and 1.
        """
        self._refuse_classes("quantile")
        levels = _levels("q", q)
        if self._gaussian:
            loc, scale = self.means, np.sqrt(self.variances)
            flat = loc.reshape(len(loc), -1), scale.reshape(len(scale), -1)
            out = np.stack([mixture_quantile(*flat, float(level)).reshape(loc.shape[1:]) for level in levels])
        else:
            out = np.quantile(self.sample(), levels, axis=0)
        return out if np.ndim(q) else out[0]

    def interval(self, p: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends (n,), in the caller's units, of the central interval with probability ``p``."""
        if np.ndim(p):
            raise ConfigError(f"p={p!r} must be one number: ask for one interval at a time.")
        level = float(_levels("p", p)[0])
        low, high = self.quantile([(1 - level) / 2, (1 + level) / 2])
        return low, high

    # ---- classification

    def _per_draw(self, name: str) -> np.ndarray:
        if self._targets.classes is None:
            raise ConfigError(f"{name} belongs to classes, but these are amounts: use mean, sd or quantile.")
        probs = self._arrays["probs"].astype(np.float64)
        return probs / probs.sum(axis=-1, keepdims=True)

    @property
    def classes(self) -> np.ndarray:
        """The caller's labels (K,), in the order of ``probs``."""
        self._per_draw("classes")
        assert self._targets.classes is not None
        return self._targets.classes

    @property
    def probs(self) -> np.ndarray:
        """P(y = k | x), (n, K): the mean over draws. The probabilities of each draw are normalised in float64."""
        return self._per_draw("probs").mean(axis=0)

    @property
    def labels(self) -> np.ndarray:
        """The most probable class of each row (n,); if several are equally probable, the first of them."""
        return self.classes[self.probs.argmax(axis=-1)]

    @property
    def entropy(self) -> np.ndarray:
        """H[y | x] = -sum_k p_k log p_k of the mean probabilities ``probs``, (n,), in nats."""
        return entr(self.probs).sum(axis=-1)

    @property
    def noise_entropy(self) -> np.ndarray:
        """mean_s H[y | x, theta_s], (n,), in nats: the part of the entropy that more data would not remove."""
        return entr(self._per_draw("noise_entropy")).sum(axis=-1).mean(axis=0)

    @property
    def mutual_information(self) -> np.ndarray:
        """I[y; theta | x] = ``entropy - noise_entropy``, (n,), in nats (Houlsby et al. 2011).

        It is the part of the entropy that more data would remove.
        """
        return np.maximum(self.entropy - self.noise_entropy, 0.0)

    # ---- both

    def sample(self, num_samples: int | None = None, *, seed: int = 0) -> np.ndarray:
        """Draws of y from the predictive distribution, in the caller's units, (S, n), or (num_samples, n).

        Parameters
        ----------
        num_samples : int, optional
            Number of draws of y. Each uses a posterior draw chosen at random; none is used twice while there are
            enough. None takes one draw of y from each posterior draw.
        seed : int
            Seed of the noise of y given theta.
        """
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
            raise ConfigError(f"seed={seed!r} must be a whole number from 0 to 2^32 - 1.")
        arrays = self._arrays if seed == 0 else self._again(None, int(seed))
        if "sample" not in arrays:
            raise ConfigError(
                "sample: draws of y are not known under this likelihood: use log_prob, or mean and variance."
            )
        y = arrays["sample"]
        if num_samples is not None:
            if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
                raise ConfigError(f"num_samples={num_samples!r} must be a whole number, at least 1.")
            rng = np.random.default_rng(seed)
            order = [rng.permutation(len(y))]
            # More draws of y than posterior draws: the same posterior draws with noise of their own.
            pool = [y]
            while len(pool) * len(y) < num_samples:
                pool.append(self._again(None, seed + len(pool) * 2**16 + 1)["sample"])
                order.append(rng.permutation(len(y)) + len(y) * len(order))
            y = np.concatenate(pool)[np.concatenate(order)[:num_samples]]
        if self._targets.classes is not None:
            return self._targets.classes[y.astype(int)]
        loc, scale = self._targets.loc_scale
        return y.astype(np.float64) * scale + loc

    def log_prob(self, y: Any) -> np.ndarray:
        """Log predictive density (or probability) of y at each row, log (1/S) sum_s p(y | x, theta_s), (n,).

        It is in the caller's units: the density of a standardised target is divided by its scale (the Jacobian). For
        several targets it is the joint density; ``output(k).log_prob`` is the density of target k alone.

        Raises
        ------
        ConfigError
            If the number of rows differs, or a class was not seen by the fit.
        """
        codes = self._targets.standardised(y, self.num_rows)
        log_lik = self._again(codes, 0)["log_lik"].astype(np.float64)
        jacobian = np.broadcast_to(np.log(self._targets.loc_scale[1]), (self.num_targets,)).sum()
        return logsumexp(log_lik, axis=0) - np.log(len(log_lik)) - jacobian

    def output(self, k: int) -> "Prediction":
        """The prediction of target k alone, counted from 0. It exists only if y given theta is normal."""
        targets = self._targets
        if not targets.shape or not 0 <= k < targets.shape[0]:
            raise ConfigError(
                f"k={k} is none of the targets, of which there are {targets.shape[0] if targets.shape else 1}."
            )
        if not self._gaussian:
            raise ConfigError(
                "output is for targets that are normal given theta: the marginals of others are not known."
            )
        scaler = targets.scaler
        own = None if scaler is None else Scaler(np.asarray(scaler.loc)[k], np.asarray(scaler.scale)[k])
        arrays = {name: values[..., k] for name, values in self._arrays.items()}

        def again(y: np.ndarray | None, seed: int) -> dict[str, np.ndarray]:
            if y is None:
                return {"sample": self._again(None, seed)["sample"][..., k]}
            mean, sd = arrays["mean"].astype(np.float64), np.sqrt(arrays["variance"].astype(np.float64))
            return {**arrays, "log_lik": norm.logpdf(y, mean, sd), "cdf": norm.cdf(y, mean, sd)}

        return Prediction(
            arrays,
            Targets("regression", None, own, name=f"{targets.name}[{k}]"),
            gaussian=True,
            again=again,
            scored=self._scored,
        )

    def ingredients(self, y: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The arguments of the metrics: y in the form that metrics take, and the arrays of the predictive mixture.

        Rows that a mask of the model hides are left out.
        See :class:`bdlbench.metrics.mixture.PredictiveMixture`.
        """
        from bdlbench.metrics.mixture import PredictiveMixture

        if self._targets.shape:
            raise ConfigError("metrics are of one target: take output(k) of the prediction, or score_table.")
        codes = self._targets.standardised(y, self.num_rows)
        scored = self._scored()
        arrays = {name: values[:, scored] for name, values in self._again(codes, 0).items()}
        codes = codes[scored]
        mixture = PredictiveMixture(gaussian=self._gaussian, each=True)
        as_chain = {name: values[None] for name, values in arrays.items()}
        every = np.ones((1, len(arrays["log_lik"])), bool)
        absent = frozenset() if self._gaussian else absent_moments(as_chain, every)
        mixture.update({name: arrays[name] for name in PREDICTED if name in arrays and name not in absent})
        if self._targets.classes is not None:
            return codes, mixture.ingredients()
        original = np.asarray(y, np.float64).reshape(-1)[scored]
        if self._targets.scaler is None:
            return original, mixture.ingredients()
        loc, scale = self._targets.loc_scale
        return original, mixture.to_original(float(loc), float(scale))

    def frame(self, quantiles: Sequence[float] = (0.05, 0.5, 0.95)) -> Any:
        """A table with one line for each row: mean, sd and quantiles, or the probabilities of the classes.

        Returns
        -------
        pandas.DataFrame
        """
        import pandas as pd

        if self._targets.classes is not None:
            columns = {f"p({label})": column for label, column in zip(self.classes, self.probs.T, strict=True)}
            return pd.DataFrame({"label": self.labels, **columns})
        if self._targets.shape:
            raise ConfigError("frame is for one target, but there are several: read mean, sd and quantile.")
        levels = {f"q{100 * q:g}": values for q, values in zip(quantiles, self.quantile(list(quantiles)), strict=True)}
        return pd.DataFrame({"mean": self.mean, "sd": self.sd, **levels})


def _levels(name: str, given: Any) -> np.ndarray:
    """Probabilities strictly between 0 and 1 as an array (Q,)."""
    try:
        levels = np.atleast_1d(np.asarray(given, np.float64))
    except (TypeError, ValueError):
        raise ConfigError(f"{name}={given!r} must be a number, or several, between 0 and 1.") from None
    if not ((levels > 0) & (levels < 1)).all():
        raise ConfigError(f"{name}={given!r} must lie strictly between 0 and 1.")
    return levels
