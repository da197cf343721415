"""A run that was killed repeatedly without progress is skipped, and the message says how to try it again."""

import json
import shlex

import pytest

from bdlbench.runs.configuration import compose
from bdlbench.runs.job import make_job
from bdlbench.runs.outcome import Outcome
from bdlbench.runs.progress import Silent
from bdlbench.runs.sweep import Plan
from bdlbench.store.writer import ATTEMPT

SHORT = ["inference=map", "progress=off", "network.width=3"]


def planned(store_path, deaths, *more, seeds=(0, 1, 2)):
    """The plan of a sweep over seeds whose first run has died this many times."""
    asked = [[*SHORT, f"store.path={store_path}", *more, f"seed={seed}"] for seed in seeds]
    composed = [(*compose(one), shlex.join(one)) for one in asked]
    run_id = make_job(*composed[0][:2]).id
    if deaths:
        (store_path / run_id).mkdir(parents=True)
        (store_path / run_id / ATTEMPT).write_text(json.dumps({"deaths": deaths - 1, "checkpoint": None}))
    outcome = Outcome()
    return Plan(composed, outcome, Silent()), outcome, run_id


@pytest.mark.parametrize(
    ("more", "passed_over"), [((), True), (("limits.attempts=null",), False), (("rerun=true",), False)]
)
def test_three_deaths_are_enough(more, passed_over, store_path):
    """The other runs are done. The message has the command that tries the run again, and this command works."""
    plan, outcome, run_id = planned(store_path, 3, *more)
    assert plan.num_runs == 3 - passed_over
    assert outcome.exit_code == int(passed_over)
    if passed_over:
        (said,) = outcome.errors
        assert said.startswith(f"{run_id} was killed 3 times without progress")
        assert (
            f"'bdlbench inference=map progress=off network.width=3 store.path={store_path} seed=0 limits.attempts=null'"
            in said
        )


def test_what_died_is_tried_alone_and_last(store_path):
    """A kill ends all runs of a group, so it is not known which run caused it."""
    plan, outcome, run_id = planned(store_path, 1)
    assert not outcome.errors
    assert [[job.id == run_id for _, job in group] for group in plan.groups.values()] == [[False, False], [True]]


def test_none_is_set_apart_without_a_death(store_path):
    """Runs with equal programs form one group if none of them died."""
    plan, _, _ = planned(store_path, 0)
    assert [len(group) for group in plan.groups.values()] == [3]
