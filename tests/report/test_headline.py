"""The metric that a table has if none is named."""

import pytest

from bdlbench.data import catalogue
from bdlbench.errors import ConfigError
from bdlbench.report.headline import headline
from bdlbench.report.verdicts import DIRECTIONS

pytestmark = pytest.mark.quick


def of(*sets):
    return [{"labels": {"data": name}} for name in sets]


def test_a_set_with_few_values_of_the_target_has_crps():
    """And any other, also that of a user, has LPPD. Declared metrics say which method is better."""
    assert headline(of("wine", "naval", "wine")) == "crps"
    assert headline(of("yacht", "mine")) == "lppd"
    declared = {entry.name: entry.headline for entry in catalogue() if entry.headline}
    assert declared == {"wine": "crps", "naval": "crps"}
    assert set(declared.values()) <= set(DIRECTIONS)


def test_sets_with_different_headlines_need_a_choice():
    with pytest.raises(ConfigError, match="crps for wine; lppd for yacht"):
        headline(of("wine", "yacht"))
