"""From rows in the source's units to scores and draws in these units: an offset takes no digit away."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import linen, nnx

from bdlbench.evaluation.predictive import predictive
from bdlbench.runs.group import run
from bdlbench.runs.stored_draws import load_job
from bdlbench.store import Store

OFFSET = 2e7
SHORT = [
    "data=npz", "data.test_fraction=0.5", "inference=svi", "inference.schedule.num_chains=1",
    "inference.schedule.num_warmup=200", "inference.schedule.num_samples=20", "progress=off",
]  # fmt: skip


def npz_run(folder: Path, x: np.ndarray, y: np.ndarray, *overrides: str) -> tuple[Store, dict[str, Any]]:
    """Run on an archive of these arrays."""
    folder.mkdir()
    np.savez(folder / "rows.npz", x=x, y=y)
    path = folder / "store"
    record = run([*SHORT, f"data.path={folder / 'rows.npz'}", f"store.path={path}", *overrides])
    assert record["status"] == "complete", record["reason"]
    return Store(path), record


@pytest.mark.slow
def test_an_offset_changes_no_score_and_no_stored_digit(tmp_path: Path) -> None:
    """y = 2e7 + N(0, 1) and inputs as large are scored and stored as they are without the offset, to 1e-6 relative.

    The rows are whole multiples of 2^-10, of which float64 holds sums of 64 at this offset exactly, and 64 is a power of
    two: standardised rows, and so all draws, are the same bits. What is left is the rounding of float64 at the offset,
    4e-9 of the spread.
    """
    rng = np.random.default_rng(0)
    x, noise = (np.rint(1024 * a) / 1024 for a in (rng.normal(size=(128, 2)), rng.normal(size=128)))
    y = x[:, 0] + noise
    plain, without = npz_run(tmp_path / "plain", x, y, "network.width=3")
    far, within = npz_run(tmp_path / "far", x + OFFSET, y + OFFSET, "network.width=3")
    scores = [{k: v for k, v in record["metrics"].items() if isinstance(v, float)} for record in (without, within)]
    assert scores[0].keys() == scores[1].keys() and {"lppd", "rmse", "crps", "coverage_90"} <= scores[0].keys()
    assert scores[1] == pytest.approx(scores[0], rel=1e-6)
    assert within["metrics"]["standardized"] == without["metrics"]["standardized"]

    trees = plain.posterior(without["id"]), far.posterior(within["id"])
    for group, name, moved in (
        ("predictions", "mean", OFFSET), ("predictions", "y", OFFSET), ("predictions_constant_data", "y", OFFSET),
        ("log_likelihood_test", "y", 0.0),
    ):  # fmt: skip
        one, two = (tree[group][name].to_numpy() for tree in trees)
        np.testing.assert_allclose(two - moved, one, rtol=1e-6, atol=2e-8)
    assert trees[1]["predictions"]["mean"].dtype == trees[1]["predictions_constant_data"]["y"].dtype == np.float64
    # the stored targets are the rows of the file
    assert set(np.rint(1024 * (trees[1]["predictions_constant_data"]["y"].to_numpy() - OFFSET)) / 1024) <= set(y)

    new = rng.normal(size=(7, 2))
    one, two = predictive(plain, without["id"], new), predictive(far, within["id"], new + OFFSET)
    for name in ("mean", "quantiles"):
        np.testing.assert_allclose(
            two[name] - OFFSET, one[name], rtol=1e-5, atol=1e-6
        )  # new inputs are no such multiples
    np.testing.assert_allclose(two["variance"], one["variance"], rtol=1e-6)


def linen_embedding(out_features: int) -> linen.Module:
    """A table of vectors, looked up by the only input."""
    return linen.Sequential([linen.Embed(4, out_features), lambda h: h[:, 0, :]])


class Embedding(nnx.Module):
    """The same, of NNX."""

    def __init__(self, out_features: int, rngs: nnx.Rngs) -> None:
        """Four vectors."""
        self.table = nnx.Embed(4, out_features, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Look up the only input."""
        return self.table(x)[:, 0, :]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["linen_embedding", "Embedding"])
def test_indices_of_groups_reach_the_network_as_integers(tmp_path: Path, network: str) -> None:
    """An embedding, which takes integers alone, is trained on an archive of integers; predictions take integers too."""
    groups = np.arange(80) % 4
    y = np.array([-3.0, -1.0, 1.0, 3.0])[groups] + 0.01 * np.random.default_rng(0).normal(size=80)
    store, record = npz_run(
        tmp_path / "groups", groups[:, None], y, "~network", f"+network={{_target_: {__name__}.{network}}}", "inference=map",
        "inference.schedule.num_warmup=2000", "inference.schedule.num_samples=1",
    )  # fmt: skip
    assert record["notes"][-1] == "standardised: y; not: x0"
    assert load_job(store, record["id"], trust=True).dataset.train.x.dtype == np.int32
    assert record["metrics"]["rmse"] < 0.5  # of values that are 2 apart
