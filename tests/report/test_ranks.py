"""Rankings from records of one data set, whose posterior is in closed form, and their diagram."""

import numpy as np
import pytest

from bdlbench.errors import ConfigError
from bdlbench.report import ranks


def run(method, split, lppd, *, data="diabetes", status="complete", scale=1.0, target="t"):
    return {
        "id": f"{method}-{data}-{split}-{scale}",
        "status": status,
        "labels": {"data": data, "inference": method},
        "config": {"seed": 0, "data": {"split": split, "test_fraction": 0.1}, "prior": {"weight_scale": scale}},
        "target_id": f"{target}{data}{split}{scale}",
        "metrics": {"lppd": lppd} if status == "complete" else {},
        "warnings": [],
    }


@pytest.fixture
def records():
    """With a prior scale of 1 NUTS is best and SVI worst; with 3 the other way round. One run of MAP failed."""
    rng, out = np.random.default_rng(0), []
    for scale, sign in ((1.0, 1), (3.0, -1)):
        for split in range(10):
            level = 3 * rng.normal()
            for method, lppd in (("nuts", sign), ("sgld", 0.0), ("svi", -sign)):
                out.append(run(method, split, level + lppd + 0.05 * rng.normal(), scale=scale))
            out.append(run("map", split, level, scale=scale, status="failed" if split == 2 else "complete"))
    return out


def test_ranks_by_a_setting_show_how_far_the_order_depends_on_it(records):
    one, other = ranks.ranking(records, metric="lppd", by="prior.weight_scale")
    assert one.title == "lppd, same posterior, prior.weight_scale=1.0"
    assert one.methods == other.methods == ["nuts", "sgld", "svi"]
    assert one.ranks.expected == pytest.approx([1, 2, 3], abs=1e-9)
    assert other.ranks.expected == pytest.approx([3, 2, 1], abs=1e-9)
    text = ranks.as_markdown([one])
    assert "| nuts | 1.0 | 1 to 1 | 1.00 |" in text
    assert "diabetes (10 splits)" in text and "not ranked: map" in text


def test_the_diagram_names_every_method_and_joins_what_is_not_told_apart(records):
    for record in records:
        if record["labels"]["inference"] == "sgld":
            record["metrics"]["lppd"] = next(
                r["metrics"]["lppd"] for r in records
                if r["labels"]["inference"] == "svi" and r["config"] == record["config"]
            )  # fmt: skip
    one = ranks.ranking(records, metric="lppd", by="prior.weight_scale")[0]
    figure = ranks.figure(one)
    (ax,) = figure.axes
    shown = [text.get_text() for text in ax.texts]
    assert {"nuts (1.0)", "sgld (2.5)", "svi (2.5)"} <= set(shown)
    thick = [lines for lines in ax.collections if lines.get_linewidth()[0] == 3.0]
    assert len(thick) == 1
    assert thick[0].get_segments()[0][:, 0] == pytest.approx([2.46, 2.54])


def test_data_sets_that_a_method_lacks_are_left_out(records):
    """NUTS has further runs on yacht, which must not take the others out of the ranking."""
    more = [run("nuts", split, 0.0, data="yacht") for split in range(3)]
    one = ranks.ranking([r for r in records if r["config"]["prior"]["weight_scale"] == 1.0] + more, metric="lppd")[0]
    assert one.methods == ["nuts", "sgld", "svi"]
    assert list(one.ranks.by_data) == ["diabetes"]
    assert "Without two splits that all methods have, and left out: yacht." in one.notes


def test_unfit_requests_are_refused(records):
    with pytest.raises(ConfigError, match="--by: no run has the setting 'prior.speed'"):
        ranks.ranking(records, metric="lppd", by="prior.speed")
    with pytest.raises(ConfigError, match="--metric: 'coverage_90' does not say"):
        ranks.ranking(records, metric="coverage_90")
    with pytest.raises(ConfigError, match="same splits"):
        ranks.ranking(records[:1], metric="lppd")
