"""What a trial is worth under the rule of its league. No number here knows a test row."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bdlbench.store import Store

Record = dict[str, Any]
GOOD_RHAT = 1.05
MARGINS = {"lppd": 0.01, "elbo": 1.0, "mixing": 0.1, "distance": 0.05}
"""By how much a trial must beat the preset to replace it: nats a row, nats, and shares of the preset's value."""


class Score(NamedTuple):
    """A trial's numbers; None where it has none."""

    status: str
    grads: float
    """Gradients that it spent, whatever became of it."""
    lppd: float | None
    rhat: float | None
    ess: float | None
    elbo: float | None
    distance: float | None
    mean_off: float | None
    sd_ratio: float | None


def function_draws(store: Store, run_id: str) -> np.ndarray:
    """Draws of the function (S, columns): means of regression, or class probabilities."""
    with store.posterior(run_id) as tree:
        group = tree["predictions"]
        values = (group["probs"] if "probs" in group.data_vars else group["mean"]).to_numpy()
    flat = values.reshape(values.shape[0] * values.shape[1], -1).astype(np.float64)
    return flat[np.isfinite(flat).all(1)]


def moments(store: Store, run_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the function at each held-out row (and class)."""
    draws = function_draws(store, run_id)
    return draws.mean(0), draws.std(0)


def distance(
    own: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, np.ndarray]
) -> tuple[float, float, float]:
    r"""How far marginals of the function are from the reference's, in units of the reference's sd.

    .. math:: d^2 = \frac{\sum_i (m_i - m_i^*)^2 + (s_i - s_i^*)^2}{\sum_i s_i^{*2}}

    the 2-Wasserstein distance of normals with these moments, pooled over rows (and classes). n independent draws of the
    reference itself have about 1 / sqrt(n). Returns d, the means' part of it, and sqrt(sum s^2 / sum s*^2).
    """
    (mean, sd), (mean_0, sd_0) = own, reference
    unit = float((sd_0**2).sum())
    off, wide = float(((mean - mean_0) ** 2).sum()), float(((sd - sd_0) ** 2).sum())
    return math.sqrt((off + wide) / unit), math.sqrt(off / unit), math.sqrt(float((sd**2).sum()) / unit)


def elbo(store: Store, run_id: str) -> float:
    """Mean over the guide's draws of log p(y, theta) - log q(theta)."""
    with store.posterior(run_id) as tree:
        stats = tree["sample_stats"]
        ratio = stats["lp"].to_numpy().astype(np.float64) - stats["log_q"].to_numpy()
    return float(ratio.mean())


def score(store: Store, record: Record | None, reference: tuple[np.ndarray, np.ndarray] | None) -> Score:
    """All numbers of a trial."""
    if record is None:
        return Score("refused", 0.0, *[None] * 7)
    found = record["metrics"]
    grads = float(sum(record["num_grads"].values()))
    status = record["status"]
    if any("not to be ranked" in warning for warning in record.get("warnings", [])):
        status = "diverging"
    if status != "complete":
        return Score(status, grads, *[None] * 7)
    where = (None, None, None) if reference is None else distance(moments(store, record["id"]), reference)
    bound = elbo(store, record["id"]) if "psis_khat" in found else None
    return Score(status, grads, found.get("lppd"), found.get("rhat_max"), found.get("ess_bulk_min"), bound, *where)


def value(rule: str, scores: Sequence[Score]) -> list[float]:
    """The trials' worth, larger is better; minus infinity for those that cannot be chosen.

    ``mixing``: ESS a gradient among trials with R-hat of at most 1.05; where there is none, minus R-hat's excess over 1.
    """
    if rule == "mixing":
        mixes = [s.rhat is not None and s.rhat <= GOOD_RHAT for s in scores]
        if any(mixes):
            return [
                s.ess / s.grads if ok and s.ess and s.grads else -math.inf for s, ok in zip(scores, mixes, strict=True)
            ]
        return [-math.inf if s.rhat is None else 1 - s.rhat for s in scores]
    if rule == "distance":
        return [-math.inf if s.distance is None else -s.distance for s in scores]
    return [-math.inf if v is None or not math.isfinite(v) else v for v in (getattr(s, rule) for s in scores)]


def choose(rule: str, scores: Sequence[Score]) -> int | None:
    """Index of the trial to take: the best, or the first, which is the preset, where none beats it by a margin."""
    worth = value(rule, scores)
    best = int(np.argmax(worth))
    if worth[best] == -math.inf:
        return None
    margin = MARGINS[rule] * (abs(worth[0]) if rule in ("mixing", "distance") else 1.0)
    return 0 if math.isfinite(worth[0]) and worth[best] <= worth[0] + margin else best


def sentence(rule: str, s: Score) -> str:
    """A trial's numbers in a few words, those that its rule looks at first."""
    if s.status != "complete":
        return s.status
    parts = []
    if s.rhat is not None:
        parts.append(f"R-hat {s.rhat:.3f}")
    if s.ess is not None:
        parts.append(f"ESS {s.ess:.0f}")
    if rule == "mixing" and s.ess and s.grads:
        parts.append(f"{1e6 * s.ess / s.grads:.0f} a million gradients")
    if rule == "distance" and s.distance is not None:
        parts.insert(0, f"distance {s.distance:.2f} (mean off {s.mean_off:.2f}, sd x {s.sd_ratio:.2f})")
    if rule == "elbo" and s.elbo is not None:
        parts.append(f"ELBO {s.elbo:.1f}")
    if rule in ("lppd", "elbo"):
        parts.append(f"LPPD {s.lppd:.3f}")
    return ", ".join(parts)
