"""The rules by which tuned settings are found: rows that no trial may see, the distance, and who is chosen."""

import math

import numpy as np
import pytest

from bdlbench.data.dataset import checksum
from bdlbench.errors import ConfigError
from bdlbench.runs.configuration import call, compose
from experiments.tuning import rows, scores, spaces
from experiments.tuning.scores import Score, choose


def originals(dataset, part):
    """Rows of a part in original units, one tuple each, to the four decimals that the source has."""
    rows = getattr(dataset, part)
    return {tuple(np.round(row, 4)) for row in dataset.x_scaler.original(rows.x)}


def test_a_trial_has_no_test_row():
    """What it learns from and is scored on are together the training rows, exactly."""
    whole = call(compose(["data=diabetes"])[0]["data"], "data", partial=False)
    tuning = call(spaces.base("diabetes", "nuts", {})[0]["data"], "data", partial=False)
    assert originals(tuning, "train") | originals(tuning, "test") == originals(whole, "train")
    assert not originals(tuning, "train") & originals(tuning, "test")
    assert not originals(tuning, "test") & originals(whole, "test")
    assert len(tuning.test.y) == round(spaces.VALIDATION_FRACTION * len(whole.train.y))
    assert tuning.validation is None


def test_tuning_rows_are_a_data_set_of_their_own():
    """Its checksum, which names runs, is that of its own arrays: never one of the data set it was cut from."""
    node = compose(["data=diabetes", "data.validation_fraction=0.2"])[0]["data"]
    whole = call(node, "data", partial=False)
    tuning = rows.held_out(of=whole)
    assert tuning.checksum != whole.checksum
    assert tuning.checksum != checksum({"train": whole.train, "test": whole.test})


def test_rows_without_validation_are_refused():
    whole = call(compose(["data=diabetes"])[0]["data"], "data", partial=False)
    with pytest.raises(ConfigError, match="validation_fraction > 0"):
        rows.held_out(of=whole)


def test_distance_has_its_closed_form():
    """Means off by a sds and sds off by a factor b: d^2 = a^2 + (b - 1)^2, whatever the rows' own sds."""
    mean, sd = np.array([0.0, 3.0, -1.0]), np.array([0.5, 2.0, 1e-9])
    assert scores.distance((mean, sd), (mean, sd)) == (0, 0, 1)
    far, off, wide = scores.distance((mean + 0.3 * sd, 1.4 * sd), (mean, sd))
    assert off == pytest.approx(0.3)
    assert wide == pytest.approx(1.4)
    assert far == pytest.approx(0.5)


def a_score(**numbers):
    return Score(**(dict.fromkeys(Score._fields) | {"status": "complete", "grads": 1000.0} | numbers))


@pytest.mark.parametrize(
    ("rule", "field", "preset", "near", "far"),
    [
        ("lppd", "lppd", -1.0, -0.995, -0.98),
        ("elbo", "elbo", -100.0, -99.5, -98.0),
        ("distance", "distance", 0.5, 0.48, 0.4),
        ("mixing", "ess", 500.0, 540.0, 600.0),
    ],
)
def test_the_preset_stays_unless_it_is_beaten_by_a_margin(rule, field, preset, near, far):
    def trials(*values):
        return [a_score(rhat=1.01, **{field: v}) if field != "rhat" else a_score(rhat=v) for v in values]

    assert choose(rule, trials(preset, near)) == 0
    assert choose(rule, trials(preset, near, far)) == 2
    assert choose(rule, [Score("diverged", 0.0, *[None] * 7), *trials(near, far)]) == 2


def test_mixing_asks_for_agreement_before_speed():
    quick_and_wrong, slow_and_right = a_score(ess=900.0, rhat=1.3), a_score(ess=100.0, rhat=1.02)
    assert choose("mixing", [quick_and_wrong, slow_and_right]) == 1
    assert choose("mixing", [quick_and_wrong, a_score(ess=10.0, rhat=1.1)]) == 1  # none agrees: the least disagreement


def test_nothing_is_chosen_where_nothing_is_complete():
    assert choose("lppd", [Score("diverged", 0.0, *[None] * 7)]) is None
    assert choose("elbo", [a_score(elbo=math.nan)]) is None


@pytest.mark.slow
@pytest.mark.parametrize("method", spaces.METHODS)
def test_a_space_is_of_options_that_exist(method):
    """And rules that are known; as many distinct trials as the grid has points, or one more for the preset."""
    for data in spaces.DATA:
        node = spaces.space(data, method)
        if "refused" in node:
            continue
        assert node["rule"] in scores.MARGINS
        inference = compose([f"inference={method}", "~tuned"])[0]["inference"]
        shapes = [spaces.applied(inference, spaces.fixed(data, method) | each) for each in spaces.trials(data, method)]
        assert all(set(each) == set(inference) for each in shapes)
        assert len(shapes) >= 2
