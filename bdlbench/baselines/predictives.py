"""Distributions of y that a baseline predicts, one for each row."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from scipy import special, stats

_EDGE = 1e-9
"""How far inside its level an interval of split conformal prediction begins, so that rounding cannot move a row."""


@runtime_checkable
class RealPredictive(Protocol):
    """Distributions of a real y at n rows.

    Every array is (n,). A predictive may lack quantities. ``lacks`` has the name of each with the reason: ``lpd`` (the
    log density), ``variance``, ``crps``.
    """

    @property
    def lacks(self) -> dict[str, str]:
        """The quantities that do not exist, each with the reason."""

    @property
    def mean(self) -> np.ndarray:
        """The mean, or the point that is predicted."""

    def scaled(self, loc: float, scale: float) -> "RealPredictive":
        """The distributions of loc + scale y."""

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the central interval."""

    def cdf(self, y: np.ndarray) -> np.ndarray:
        """P(Y <= y)."""

    def log_density(self, y: np.ndarray) -> np.ndarray:
        """log p(y), if it exists."""

    def variance(self) -> np.ndarray:
        """Var(Y), if it exists."""

    def crps(self, y: np.ndarray) -> np.ndarray:
        """E|Y - y| - E|Y - Y'| / 2, if it is known."""


@dataclasses.dataclass(frozen=True)
class Normal:
    """N(mean, sd^2)."""

    mean: np.ndarray
    sd: np.ndarray
    lacks: dict[str, str] = dataclasses.field(default_factory=dict)

    def scaled(self, loc: float, scale: float) -> "Normal":
        return Normal(loc + scale * self.mean, scale * self.sd)

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        reach = special.ndtri((1 + level) / 2) * self.sd
        return self.mean - reach, self.mean + reach

    def cdf(self, y: np.ndarray) -> np.ndarray:
        return special.ndtr((y - self.mean) / self.sd)

    def log_density(self, y: np.ndarray) -> np.ndarray:
        return stats.norm.logpdf(y, self.mean, self.sd)

    def variance(self) -> np.ndarray:
        return self.sd**2

    def crps(self, y: np.ndarray) -> np.ndarray:
        """s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), z = (y - m) / s (Gneiting & Raftery 2007, section 4.2)."""
        z = (y - self.mean) / self.sd
        density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
        return self.sd * (z * (2 * special.ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))


@dataclasses.dataclass(frozen=True)
class StudentT:
    """Student's t distribution with ``df`` degrees of freedom, shifted by ``mean`` and scaled by ``scale``.

    Its variance needs ``df`` above 2, and its mean and its CRPS need ``df`` above 1.
    """

    df: float
    mean: np.ndarray
    scale: np.ndarray

    @property
    def lacks(self) -> dict[str, str]:
        out = {} if self.df > 2 else {"variance": f"Student's t with {self.df:g} degrees of freedom has no variance"}
        return out if self.df > 1 else out | {"crps": f"Student's t with {self.df:g} degree of freedom has no mean"}

    def scaled(self, loc: float, scale: float) -> "StudentT":
        return StudentT(self.df, loc + scale * self.mean, scale * self.scale)

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        reach = stats.t.ppf((1 + level) / 2, self.df) * self.scale
        return self.mean - reach, self.mean + reach

    def cdf(self, y: np.ndarray) -> np.ndarray:
        return stats.t.cdf((y - self.mean) / self.scale, self.df)

    def log_density(self, y: np.ndarray) -> np.ndarray:
        return stats.t.logpdf(y, self.df, self.mean, self.scale)

    def variance(self) -> np.ndarray:
        return self.scale**2 * self.df / (self.df - 2)

    def crps(self, y: np.ndarray) -> np.ndarray:
        """Jordan, Krueger & Lerch (2019), appendix A: the closed form for Student's t."""
        df, z = self.df, (y - self.mean) / self.scale
        spread = 2 * np.sqrt(df) / (df - 1) * special.beta(0.5, df - 0.5) / special.beta(0.5, df / 2) ** 2
        density, below = stats.t.pdf(z, df), stats.t.cdf(z, df)
        return self.scale * (z * (2 * below - 1) + 2 * density * (df + z**2) / (df - 1) - spread)


@dataclasses.dataclass(frozen=True)
class ConformalIntervals:
    r"""Nested intervals mean +- r_k spread, k = ceil((n + 1) level), of the sorted calibration errors r_1 <= ... <= r_n.

    The interval of a level above n / (n + 1) is the whole line. There is no density, and a distribution function only in
    the sense that it gives these intervals as its central ones: at mean + r spread it is 1/2 + sign(r) q / 2, where q is
    the smallest level whose interval reaches that far.

    Attributes
    ----------
    mean : array (n,)
        The point that is predicted.
    errors : array (m,)
        The sorted sizes of the errors of the m calibration rows.
    """

    mean: np.ndarray
    errors: np.ndarray

    @property
    def lacks(self) -> dict[str, str]:
        why = "split conformal prediction gives intervals, and no density"
        return {"lpd": why, "variance": why, "crps": why}

    def scaled(self, loc: float, scale: float) -> "ConformalIntervals":
        return ConformalIntervals(loc + scale * self.mean, abs(scale) * self.errors)

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        num = len(self.errors)
        rank = int(np.ceil((num + 1) * (level - _EDGE)))
        reach = self.errors[max(rank, 1) - 1] if rank <= num else np.inf
        return self.mean - reach, self.mean + reach

    def cdf(self, y: np.ndarray) -> np.ndarray:
        error = y - self.mean
        inside = np.searchsorted(self.errors, np.abs(error), side="left")
        level = inside / (len(self.errors) + 1) + _EDGE
        return 0.5 + np.sign(error) * level / 2

    def log_density(self, y: np.ndarray) -> np.ndarray:
        raise NotImplementedError(self.lacks["lpd"])

    def variance(self) -> np.ndarray:
        raise NotImplementedError(self.lacks["variance"])

    def crps(self, y: np.ndarray) -> np.ndarray:
        raise NotImplementedError(self.lacks["crps"])


@dataclasses.dataclass(frozen=True)
class Probabilities:
    """Probabilities (n, K) of the classes at n rows."""

    probs: np.ndarray
