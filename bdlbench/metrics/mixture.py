"""The posterior predictive as a mixture over draws, computed from a stream of draws in constant memory."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from scipy.special import entr

from bdlbench.metrics.checks import Floats

FEWEST_KEPT = 128
"""Smallest limit of the number of draws whose components are kept, for any number of points."""
MOST_VALUES = 2**24
"""Largest number of draws times points of components, if more draws than these are kept."""
_FIELDS = ("log_lik", "mean", "variance", "cdf", "probs")
# 2^64 divided by the golden ratio: multiples of it, modulo 2^64, are the most evenly spread of all rotations.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class PredictiveMixture:
    """Streaming ingredients of p(y | x, data) = (1/S) sum_s p(y | x, theta_s), where s counts draws of all chains.

    Everything is accumulated in float64: the likelihood by a running log-sum-exp, the mean and the variance between
    draws by Chan's update (Chan, Golub & LeVeque, 1983), and all other values by running means. Except for rounding,
    the results do not depend on the division of the draws into blocks.

    CRPS and intervals need the components of the mixture, not only its moments. Of the draws so far, those
    ``max_components`` are kept whose indices i have the smallest i / golden ratio modulo 1. These are all draws if there
    are few. Later they are a subset whose gaps have at most three lengths (the three-gap theorem; Slater, 1967). A
    constant stride is not used: with draws of eight chains in turn, it could keep the draws of one chain only.

    Parameters
    ----------
    max_components : int
        The largest number of draws of which (mean, variance) are kept. With more than 16,777 points the number is
        smaller, so that they take at most 256 MiB, but it is at least 128.
    gaussian : bool
        Whether p(y | x, theta) is Gaussian. Where it is not, ``loc`` and ``scale`` are not offered, since CRPS and
        intervals would take them for Gaussian components.
    each : bool
        Whether the densities of the kept draws are kept too, for scores of several points jointly.
    """

    def __init__(self, *, max_components: int = 1000, gaussian: bool = True, each: bool = False) -> None:
        if max_components < 1:
            raise ValueError(f"max_components is {max_components}, but must be at least 1")
        self.max_components = max_components
        self.gaussian = gaussian
        self.each = each
        self.num_draws = 0
        self._fields: frozenset[str] = frozenset()
        self._shape: tuple[int, ...] = ()
        self._peak: Floats = np.empty(0)
        self._sum: Floats = np.empty(0)
        self._squares: Floats = np.empty(0)
        self._means: dict[str, Floats] = {}
        self._kept_index = np.empty(0, np.int64)
        self._most = max_components
        self._kept: dict[str, Floats] = {}

    def update(self, block: Mapping[str, Any]) -> None:
        """Add S draws at n points.

        Parameters
        ----------
        block : mapping
            ``log_lik`` (S, n): log p(y | x, theta_s) at the observed y. For regression ``mean`` (S, n) and
            ``variance`` (S, n) of p(y | x, theta_s), if they exist, and ``cdf`` (S, n), p(Y <= y | x, theta_s) at
            the observed y. For classification ``probs`` (S, n, K). The fields and n must be the same in all blocks; S
            may be zero.

        Raises
        ------
        FloatingPointError
            If a value is not finite or a variance is not positive. The message names the field and the draw, counted
            from 0 over all blocks. The block is then not added.
        ValueError
            If shapes or fields do not fit, or ``probs`` are not probabilities.
        """
        arrays = self._checked(block)
        log_lik = arrays["log_lik"]
        size = log_lik.shape[0]
        if size == 0:
            return
        if self.num_draws == 0:
            self._start(arrays)
        total = self.num_draws + size

        peak = np.maximum(self._peak, log_lik.max(axis=0))
        self._sum = self._sum * np.exp(self._peak - peak) + np.exp(log_lik - peak).sum(axis=0)
        self._peak = peak

        if "mean" in arrays:
            centre = arrays["mean"].mean(axis=0)
            self._squares += ((arrays["mean"] - centre) ** 2).sum(axis=0)
            self._squares += (centre - self._means["mean"]) ** 2 * (self.num_draws * size / total)
        if "probs" in arrays:
            arrays["entropy"] = entr(arrays["probs"]).sum(axis=-1)
        for name, mean in self._means.items():
            mean += (arrays[name].mean(axis=0) - mean) * (size / total)

        if self._kept:
            self._keep(arrays, size)
        self.num_draws = total

    def ingredients(self) -> dict[str, np.ndarray]:
        """Return the arrays from which metrics are computed, by name.

        Returns
        -------
        dict
            ``num_draws`` () and ``lpd`` (n,) = log (1/S) sum_s p(y | x, theta_s).

            If the draws have means and variances: ``mean`` (n,); ``noise_variance`` (n,), the mean of the draws'
            variances; ``model_variance`` (n,), the variance of the draws' means with divisor S, because the draws are
            the mixture and not a sample of it; ``variance`` (n,), their sum (law of total variance). If y given theta
            is Gaussian, also ``loc`` and ``scale`` (S', n), S' <= ``max_components``, in the order of the draws.

            Where ``each`` was asked for: ``log_lik`` (S', n), log p(y | x, theta_s) of the same draws.

            With cdf: ``pit`` (n,) = (1/S) sum_s p(Y <= y | x, theta_s), the probability integral transform.

            If the draws have ``probs``: ``probs`` (n, K), their mean; ``entropy_of_mean`` (n,) and ``mean_entropy``
            (n,) in nats.

        Raises
        ------
        ValueError
            If no draw has been added.
        """
        if self.num_draws == 0:
            raise ValueError("the predictive mixture holds no draws")
        out: dict[str, np.ndarray] = {"num_draws": np.asarray(self.num_draws)}
        out["lpd"] = self._peak + np.log(self._sum / self.num_draws)
        if self.each:
            out["log_lik"] = self._kept["log_lik"].copy()
        if "mean" in self._fields:
            out["mean"] = self._means["mean"].copy()
            out["model_variance"] = self._squares / self.num_draws
        if "variance" in self._fields:
            out["noise_variance"] = self._means["variance"].copy()
            out["variance"] = out["noise_variance"] + out["model_variance"]
            if not self.gaussian and (out["variance"] <= 0).any():
                del out["variance"]  # a count whose rate has underflown; no normal density has this variance
            if self.gaussian:
                out["loc"] = self._kept["mean"].copy()
                out["scale"] = np.sqrt(self._kept["variance"])
        if "cdf" in self._fields:
            # A running mean of ones may pass 1 by a rounding, and a histogram would lose that point.
            out["pit"] = np.clip(self._means["cdf"], 0, 1)
        if "probs" in self._fields:
            out["probs"] = self._means["probs"].copy()
            out["entropy_of_mean"] = entr(out["probs"]).sum(axis=-1)
            out["mean_entropy"] = self._means["entropy"].copy()
        return out

    def to_original(self, loc: float, scale: float) -> dict[str, np.ndarray]:
        """Return the ingredients in original units y = loc + scale * y_standardised, for regression.

        Means become mean * scale + loc, variances variance * scale^2, and densities lpd - log(scale); ``pit`` has no
        units.

        Parameters
        ----------
        loc, scale : float
            Mean and standard deviation by which the targets were standardised.
        """
        if "probs" in self._fields:
            raise ValueError("only the ingredients of a regression have units")
        if not (np.isfinite(loc) and np.isfinite(scale) and scale > 0):
            raise ValueError(f"loc and scale must be finite and scale positive, got {loc} and {scale}")
        out = self.ingredients()
        for name in ("lpd", "log_lik"):
            if name in out:
                out[name] = out[name] - np.log(scale)
        for name in ("mean", "loc"):
            if name in out:
                out[name] = out[name] * scale + loc
        for name in ("variance", "noise_variance", "model_variance"):
            if name in out:
                out[name] = out[name] * scale**2
        if "scale" in out:
            out["scale"] = out["scale"] * scale
        return out

    def forget(self, names: Collection[str]) -> None:
        """Remove fields, for example the mean and the variance if a draw has shown that they do not exist.

        Without the mean, the variance is removed too.
        """
        names = {*names, *(["variance"] if "mean" in names else [])}
        self._fields -= names
        for name in names:
            self._means.pop(name, None)
        if names & {"mean", "variance"}:
            self._kept = {name: value for name, value in self._kept.items() if name == "log_lik"}
            if not self._kept:
                self._kept_index = np.empty(0, np.int64)

    def state(self) -> dict[str, np.ndarray]:
        """Everything accumulated so far, as arrays by name, for :meth:`restore`."""
        named = {f"means/{name}": value for name, value in self._means.items()}
        named |= {f"kept/{name}": value for name, value in self._kept.items()}
        own = {"peak": self._peak, "sum": self._sum, "squares": self._squares, "kept_index": self._kept_index}
        fields = np.array(sorted(self._fields), dtype=np.str_)
        return {"num_draws": np.array(self.num_draws), "fields": fields, "shape": np.array(self._shape), **own, **named}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what :meth:`state` gave, bit for bit.

        Raises
        ------
        ValueError
            Where densities of single draws are asked for, and those of the state were not kept.
        """
        self.num_draws = int(state["num_draws"])
        self._fields = frozenset(str(name) for name in state["fields"])
        self._shape = tuple(int(size) for size in state["shape"])
        self._peak, self._sum, self._squares = (np.array(state[name]) for name in ("peak", "sum", "squares"))
        self._kept_index = np.array(state["kept_index"])
        self._most = self._room(self._shape[0]) if self._shape else self.max_components
        named = [(name.partition("/"), value) for name, value in state.items()]
        self._means = {name: np.array(value) for (kind, _, name), value in named if kind == "means"}
        kept = {name: value for (kind, _, name), value in named if kind == "kept"}
        if missing := set(self._to_keep() if self.num_draws else ()) - set(kept):
            raise ValueError(f"the state does not hold {', '.join(sorted(missing))} of single draws")
        self._kept = {name: np.array(kept[name]) for name in self._to_keep() if name in kept}

    def _checked(self, block: Mapping[str, Any]) -> dict[str, Floats]:
        unknown = set(block) - set(_FIELDS)
        if unknown or "log_lik" not in block or ("variance" in block and "mean" not in block):
            raise ValueError(f"a block holds log_lik, mean, variance with mean, cdf and probs; got {sorted(block)}")
        arrays = {name: np.asarray(value, np.float64) for name, value in block.items()}
        shape = arrays["log_lik"].shape
        for name, value in arrays.items():
            if value.ndim != (3 if name == "probs" else 2) or value.shape[:2] != shape:
                raise ValueError(f"{name} has shape {value.shape}, log_lik {shape}; expected (S, n), probs (S, n, K)")
        points = arrays["probs"].shape[1:] if "probs" in arrays else shape[1:]
        if self.num_draws and (self._fields != set(block) or self._shape != points):
            raise ValueError(
                f"all blocks must hold the same fields and points: {sorted(self._fields)} at {self._shape} "
                f"before, {sorted(block)} at {points} now"
            )
        for name, value in arrays.items():
            fine = np.isfinite(value)
            if name == "variance" and self.gaussian:
                fine &= value > 0
            bad = np.flatnonzero(~fine.all(axis=tuple(range(1, value.ndim))))
            if bad.size:
                fault = "not finite and positive" if name == "variance" and self.gaussian else "not finite"
                raise FloatingPointError(f"{name} is {fault} in draw {self.num_draws + int(bad[0])}")
        if "cdf" in arrays and ((arrays["cdf"] < -1e-6) | (arrays["cdf"] > 1 + 1e-6)).any():
            raise ValueError("cdf must lie in [0, 1]")
        if "probs" in arrays:
            probs = arrays["probs"]
            if (probs < 0).any() or (np.abs(probs.sum(axis=-1) - 1) > 1e-4).any():
                raise ValueError("probs must be non-negative and sum to one over classes")
        return arrays

    def _start(self, arrays: Mapping[str, Floats]) -> None:
        num_points = arrays["log_lik"].shape[1]
        self._fields = frozenset(arrays)
        self._shape = arrays["probs"].shape[1:] if "probs" in arrays else (num_points,)
        self._peak = np.full(num_points, -np.inf)
        self._sum = np.zeros(num_points)
        self._squares = np.zeros(num_points)
        self._means = {name: np.zeros(arrays[name].shape[1:]) for name in self._fields - {"log_lik"}}
        if "probs" in arrays:
            self._means["entropy"] = np.zeros(num_points)
        self._most = self._room(num_points)
        self._kept = {name: np.empty((0, num_points)) for name in self._to_keep()}

    def _to_keep(self) -> list[str]:
        moments = ["mean", "variance"] if self.gaussian and "variance" in self._fields else []
        return moments + ["log_lik"] * self.each

    def _room(self, num_points: int) -> int:
        return min(self.max_components, max(FEWEST_KEPT, MOST_VALUES // max(1, num_points)))

    def _keep(self, arrays: Mapping[str, Floats], size: int) -> None:
        index = np.concatenate([self._kept_index, np.arange(self.num_draws, self.num_draws + size)])
        priority = index.astype(np.uint64) * _GOLDEN  # wraps modulo 2^64, exactly
        chosen = np.sort(np.argsort(priority)[: self._most])
        old = chosen[chosen < len(self._kept_index)]
        new = chosen[chosen >= len(self._kept_index)] - len(self._kept_index)
        for name, kept in self._kept.items():
            self._kept[name] = np.concatenate([kept[old], arrays[name][new]])
        self._kept_index = index[chosen]
