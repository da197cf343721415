"""Equal runs in one sweep, files that change, and options that nothing reads."""

import numpy as np
import pytest

from bdlbench.errors import ConfigError
from bdlbench.runs import group as group_module
from bdlbench.runs.configuration import compose
from bdlbench.runs.group import finished, run
from bdlbench.runs.job import check_job, make_job
from bdlbench.runs.outcome import Outcome
from bdlbench.runs.sweep import run_sweep

SHORT = ["inference=map", "inference.schedule.num_warmup=3", "progress=off", "network.width=3"]


def write(path, scale):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 2))
    rows = np.column_stack([x, scale * (x @ [1.0, -2.0] + rng.standard_normal(30))])
    np.savetxt(path, rows, delimiter=",", header="a,b,y", comments="")


@pytest.mark.slow
def test_a_file_that_changes_is_another_run(tmp_path, store_path):
    """Loaded data are kept in memory only until their file changes."""
    path = tmp_path / "my.csv"
    asked = [*SHORT, "data=csv", f"data.path={path}", "data.target=y", f"store.path={store_path}"]
    write(path, 1.0)
    first = run(asked)
    write(path, 100.0)
    second = run(asked)
    assert first["id"] != second["id"]
    assert second["metrics"]["rmse"] == pytest.approx(100 * first["metrics"]["rmse"], rel=1e-3)


def test_equal_runs_of_one_sweep_are_one_run(store_path):
    """``n_train=null`` and the number of all rows give the same data.

    Both jobs get one run, without waiting for a lock.
    """
    size = len(make_job(*compose(SHORT)).dataset.train.y)
    options = [[*SHORT, f"store.path={store_path}", f"data.n_train={n}"] for n in ("null", size)]
    outcome = Outcome()
    records = run_sweep([(*compose(o), " ".join(o)) for o in options], outcome, max_lanes=8)
    assert not outcome.errors
    assert records[0]["id"] == records[1]["id"]
    assert sum(path.is_dir() for path in store_path.iterdir()) == 1


def test_a_run_that_another_process_has_finished_is_taken(store_path, monkeypatch):
    """The run is missing at first, and another process finishes it before this process gets the lock."""
    asked = [*SHORT, f"store.path={store_path}"]
    done = run(asked)
    looked = []

    def missing_at_first(store, run_id, note=None):
        looked.append(run_id)
        return None if len(looked) == 1 else finished(store, run_id, note)

    monkeypatch.setattr(group_module, "finished", missing_at_first)
    assert run(asked) == done
    assert looked == [done["id"]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["inference.optimizer.learning_rate=-1"], "learning_rate=-1.0 must be a positive finite number"),
        (["rerun=maybe"], "rerun='maybe' must be true or false"),
        (["progress=foo"], "progress='foo' is unknown"),
        (["store.predictive_rows=-1"], "predictive_rows=-1 must be a whole number, at least 1"),
        (["inference.schedule.num_chains=1.5"], "num_chains=1.5 must be a whole number"),
        (["inference.schedule=3"], "inference.schedule=3 must be a schedule"),
        (["inference.before=3"], "inference.before must be a list of stages"),
        (["inference=sgld", "inference.schedule.thinning=0"], "thinning=0 would keep one state"),
    ],
)
def test_options_are_refused_before_anything_is_written(options, sentence, store_path):
    """The message is one sentence, and no store is made."""
    asked = ["inference=map", *options, f"store.path={store_path}"]
    with pytest.raises(ConfigError, match=sentence):
        check_job(make_job(*compose(asked)))
    assert not store_path.exists()


MODE = (
    "{_target_: bdlbench.inference.point.maximum_a_posteriori, optimizer: {_target_: optax.adam, learning_rate: 0.01}, "
    "schedule: {num_warmup: 5, num_samples: 0, thinning: 0}}"
)
SMC = "{_target_: bdlbench.inference.smc.smc, num_particles: 8, target_ess: 0.5, num_moves: 1, num_leapfrog_steps: 2, "
SMC += "initial_step_size: 0.2, target_accept_prob: 0.8, schedule: {num_warmup: 5, num_samples: 1, thinning: 1}}"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["inference=mile", "model=eight_schools", "data=eight_schools"],
            "inference.before.0.schedule.batch_size=32 does not fit 8 training rows",
        ),
        (
            ["inference=laplace", "inference.before.0.schedule.num_samples=5"],
            "inference.before.0.schedule.num_samples=5 does not fit map",
        ),
        (
            ["inference=nuts", f"inference.before=[{MODE},{MODE.replace('num_samples: 0', 'num_samples: 2')}]"],
            "inference.before.1.schedule.num_samples=2 does not fit map",
        ),
        (["inference=mile", "inference.l_factor=-1"], "inference.l_factor=-1.0 must be"),
        (["inference=smc", f"inference.before=[{MODE}]"], "inference.before has a stage before smc"),
        (["inference=nuts", f"inference.before=[{MODE},{SMC}]"], "inference.before has a stage before smc"),
        (
            ["inference=laplace", "inference.before=[]"],
            "inference.before has no stage that finds the mode that laplace",
        ),
        (["inference=laplace_diag", "inference.before=[]"], "inference.before has no stage that finds the mode"),
        (["inference=laplace_lastlayer", "inference.before=[]"], "inference.before has no stage that finds the mode"),
    ],
)
def test_refusals_of_stages_name_their_own_fields(options, sentence):
    """Messages name an option of a stage by the path that the user wrote. Stages in a wrong place are refused."""
    with pytest.raises(ConfigError) as refused:
        check_job(make_job(*compose(["data=diabetes", *options])))
    assert str(refused.value).startswith(sentence)


def test_a_term_that_reads_the_rows_is_not_estimated_from_batches():
    """Such a term is not a likelihood, so it is not known how to estimate it from a batch."""
    composed, labels = compose(["data=diabetes", "inference=sgld", "inference.schedule.batch_size=32"])
    composed["model"] = {"_target_": "models_of_users.small_outputs"}
    for section in ("network", "prior", "likelihood"):
        composed.pop(section, None)
    with pytest.raises(
        ConfigError, match="^inference.schedule.batch_size=32: a numpyro.factor of the model reads the rows"
    ):
        check_job(make_job(composed, labels))
    composed["inference"]["schedule"]["batch_size"] = None
    composed["inference"]["before"] = []
    check_job(make_job(composed, labels))


def test_a_sampler_from_the_prior_may_come_first():
    """A method that chooses its own start may be the first stage before any other method."""
    check_job(make_job(*compose(["inference=nuts", "network.width=3", f"inference.before=[{SMC}]"])))


def test_a_stored_run_stands_for_the_stages_before(store_path):
    """A stored mode replaces the stages before Laplace.

    Methods with their own start refuse a stored run, as they refuse stages.
    """
    parent = run([*SHORT, f"store.path={store_path}"])["id"]
    asked = ["network.width=3", f"store.path={store_path}", f"warm_start={parent}"]
    check_job(make_job(*compose(["inference=laplace", *asked])))
    with pytest.raises(ConfigError, match="finds the mode"):  # the same program from no run is another question
        check_job(make_job(*compose(["inference=laplace", "inference.before=[]", *asked[:2]])))
    with pytest.raises(ConfigError, match=f"^warm_start={parent} cannot be used with smc"):
        check_job(make_job(*compose(["inference=smc", *asked])))


@pytest.mark.slow
def test_dead_chains_cost_nothing_more(store_path):
    """The cost of a diverged run ends at the first bad step of each chain, whether it runs alone or with others."""
    asked = [
        "inference=sgld",
        "progress=off",
        "inference.schedule.num_warmup=200",
        "inference.schedule.num_samples=5",
        "inference.schedule.num_chains=2",
    ]
    alone = run([*asked, "inference.step_size=1", f"store.path={store_path / 'alone'}"])
    outcome = Outcome()
    both = [[*asked, f"inference.step_size={s}", f"store.path={store_path / 'both'}"] for s in (1, 1e-5)]
    beside = run_sweep([(*compose(o), " ".join(o)) for o in both], outcome, max_lanes=8)[0]
    assert alone["status"] == beside["status"] == "diverged"
    assert alone["num_grads"] == beside["num_grads"]
