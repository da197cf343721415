"""Tuning with Optuna: the trials that are asked for, the values that Optuna gets, and the output of the command."""

import math
import re
import subprocess
import sys

import optuna
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from bdlbench.cli.trials import OptunaSweeper, distribution, number, record_of
from bdlbench.errors import ConfigError
from bdlbench.runs.configuration import conf_dir
from bdlbench.runs.outcome import Outcome

PRESET = yaml.safe_load((conf_dir() / "hydra" / "sweeper" / "optuna.yaml").read_text())
LOST = object()
SPACE = ["data=yacht", "x=tag(log, interval(0.01, 1))", "kind=sgd,adam"]


def returned(value):
    """A finished job of Hydra."""
    job = JobReturn(status=JobStatus.COMPLETED)
    job.return_value = value
    return job


class Launcher:
    """A launcher without runs. Its records have a ``metrics.score`` that is a function of the overrides."""

    def __init__(self, score):
        self.score, self.batches = score, []

    def launch(self, jobs, initial_job_idx):
        assert initial_job_idx == sum(map(len, self.batches))
        self.batches.append([dict(word.split("=", 1) for word in job) for job in jobs])
        return [returned(self.record(job)) for job in self.batches[-1]]

    def record(self, job):
        score = self.score(job)
        if score is None:
            return None
        if score is LOST:
            return {"status": "failed", "reason": "Lost: the worker process died (SIGKILL)", "metrics": {}}
        return {
            "status": "diverged" if score == math.inf else "complete",
            "reason": "non-finite" if score == math.inf else None,
            "metrics": {"score": score, "rhat_max": None},
        }


class Loader:
    """A loader in place of Hydra's, which composes every job with one metric."""

    def load_sweep_config(self, master, overrides):
        return OmegaConf.create({"metrics": {"score": {}, "absent": {}}})


def sweeper(score, **options):
    """A sweeper as Hydra makes it, with the launcher above."""
    given = {k: v for k, v in PRESET.items() if not k.startswith("_")} | {"metric": "metrics.score"} | options
    made = OptunaSweeper(**OmegaConf.create(given))
    made.launcher, made.parser, made.loader, made.config = Launcher(score), OverridesParser.create(), Loader(), None
    return made


def distance(job):
    """A score that is best at x = 0.1 with adam."""
    return -abs(math.log(float(job["x"]) / 0.1)) - (job["kind"] == "sgd")


def test_trials_are_asked_in_batches_and_the_best_is_told(capsys):
    made = sweeper(distance, n_trials=23, n_jobs=5)
    study = made.sweep(list(SPACE))
    batches = made.launcher.batches
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert all(job["data"] == "yacht" and 0.01 <= float(job["x"]) <= 1 for batch in batches for job in batch)
    best = max((job for batch in batches for job in batch), key=distance)
    assert study.best_value == distance(best)
    assert f"x={best['x']} kind={best['kind']}" in capsys.readouterr().err


def test_tpe_learns_from_what_it_is_told():
    """The last ten of forty trials have a better median than the first ten, random ones.

    With the opposite direction it is worse.
    """

    def medians(direction):
        made = sweeper(distance, n_trials=40, n_jobs=2, direction=direction)
        made.sweep(list(SPACE))
        scores = [distance(job) for batch in made.launcher.batches for job in batch]
        return sorted(scores[:10])[5], sorted(scores[-10:])[5]

    first, last = medians("maximize")
    assert last > first
    first, last = medians("minimize")
    assert last < first


def test_the_same_command_asks_the_same_trials():
    """The same command asks for the same trials, whose runs are in the store. Another seed asks for others."""
    asked = []
    for seed in (0, 0, 1):
        made = sweeper(distance, n_trials=12, n_jobs=4, seed=seed)
        made.sweep(list(SPACE))
        asked.append(made.launcher.batches)
    assert asked[0] == asked[1] != asked[2]


def test_a_storage_continues_a_study(tmp_path):
    """After six trials, a command for ten trials asks for four more, and repeats none."""
    options = {"storage": f"sqlite:///{tmp_path}/tuning.db", "study_name": "one", "n_jobs": 3}
    first = sweeper(distance, n_trials=6, **options)
    first.sweep(list(SPACE))
    more = sweeper(distance, n_trials=10, **options)
    study = more.sweep(list(SPACE))
    assert [len(batch) for batch in more.launcher.batches] == [3, 1]
    xs = [trial.params["x"] for trial in study.trials]
    assert len(xs) == len(set(xs)) == 10
    for engine in optuna.storages.RDBStorage(options["storage"]).engine, study._storage._backend.engine:
        engine.dispose()


def test_trials_that_were_broken_off_come_first(tmp_path):
    """After a command dies in a batch, the next one runs the open trials first. The study is the same in the end."""
    options = {"storage": f"sqlite:///{tmp_path}/tuning.db", "n_trials": 6, "n_jobs": 3}
    whole = sweeper(distance, study_name="whole", **options).sweep(list(SPACE))
    calls = iter(range(5))  # dies in the second batch

    def dies(job):
        next(calls)
        return distance(job)

    with pytest.raises((StopIteration, RuntimeError)):
        sweeper(dies, study_name="parts", **options).sweep(list(SPACE))
    parts = sweeper(distance, study_name="parts", **options)
    study = parts.sweep(list(SPACE))
    assert [len(batch) for batch in parts.launcher.batches] == [3]
    assert [trial.params for trial in study.trials] == [trial.params for trial in whole.trials]
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    for made in study, whole:
        made._storage._backend.engine.dispose()


def test_a_trial_without_a_value_is_told_as_failed():
    """If a run diverged or was refused, or its metric is null, Optuna gets a failed trial. Other trials count."""
    scores = iter([math.inf, None, 1.0, 2.0])
    made = sweeper(lambda job: next(scores), n_trials=4, n_jobs=4)
    study = made.sweep(list(SPACE))
    states = [trial.state.name for trial in study.trials]
    assert states == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.best_value == 2.0
    with pytest.raises(ConfigError, match="none of 2 trials gave a value"):
        sweeper(lambda job: 1.0, n_trials=2, metric="metrics.rhat_max").sweep(list(SPACE))


@pytest.mark.parametrize("stored", [True, False], ids=["storage", "no storage"])
def test_trials_lost_with_their_workers_are_tried_again(stored, tmp_path):
    """They are no failures of their own: the command ends without asking more in their place, and the same command runs
    them with the same parameters, then those that are left; a trial that diverged stays failed and is not repeated."""
    options = {"storage": f"sqlite:///{tmp_path}/tuning.db", "study_name": "one"} if stored else {}
    fates = iter([LOST, LOST, math.inf, LOST, 1.0])
    first = sweeper(lambda job: next(fates), n_trials=5, n_jobs=2, **options)
    study = first.sweep(list(SPACE))
    asked = [job for batch in first.launcher.batches for job in batch]
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "RUNNING", "FAIL", "RUNNING", "COMPLETE"]
    again = sweeper(distance, n_trials=5, n_jobs=2, **options)
    continued = again.sweep(list(SPACE))
    repeated = [job for batch in again.launcher.batches for job in batch]
    if stored:
        assert repeated == [asked[0], asked[1], asked[3]]
        assert [trial.state.name for trial in continued.trials] == ["COMPLETE"] * 2 + ["FAIL"] + ["COMPLETE"] * 2
        for made in study, continued:
            made._storage._backend.engine.dispose()
    else:
        assert repeated[:2] == asked[:2]


def test_all_trials_lost(tmp_path):
    """The command reports it. The next one asks for new trials, although no trial has ended."""
    options = {"storage": f"sqlite:///{tmp_path}/tuning.db", "study_name": "one", "n_jobs": 2}
    first = sweeper(lambda job: LOST, n_trials=2, **options)
    sentence = "none of 2 trials gave a value: .*; 2 lost with their workers, which the same command tries again"
    with pytest.raises(ConfigError, match=sentence):
        first.sweep(list(SPACE))
    more = sweeper(distance, n_trials=4, **options)
    study = more.sweep(list(SPACE))
    assert more.launcher.batches[0] == first.launcher.batches[0]
    xs = [trial.params["x"] for trial in study.trials]
    assert len(xs) == len(set(xs)) == 4
    study._storage._backend.engine.dispose()


def test_a_trial_with_one_lost_run_and_one_of_its_own_has_failed():
    """Such a trial is not repeated, because it could not get a value."""
    fates = iter([LOST, math.inf, LOST, 1.0, 1.0, 1.0])
    made = sweeper(lambda job: next(fates), n_trials=3, n_jobs=3, mean_over={"split": "range(2)"})
    assert [trial.state.name for trial in made.sweep(list(SPACE)).trials] == ["FAIL", "RUNNING", "COMPLETE"]


def test_a_metric_that_no_record_will_have_is_refused_before_anything_runs():
    made = sweeper(distance, metric="metrics.elpd")
    with pytest.raises(ConfigError, match="metrics.elpd will not be in the records: there are metrics.score"):
        made.sweep(list(SPACE))
    assert made.launcher.batches == []


def test_the_objective_is_a_mean_over_splits():
    """Each trial has three jobs. A trial with one failed job has no value."""
    made = sweeper(
        lambda job: None if job["split"] == "2" and job["kind"] == "sgd" else float(job["x"]) + int(job["split"]),
        n_trials=6,
        n_jobs=2,
        mean_over={"split": "range(3)"},
    )
    study = made.sweep(list(SPACE))
    assert [len(batch) for batch in made.launcher.batches] == [6, 6, 6]
    assert {trial.params["kind"] for trial in study.trials} == {"sgd", "adam"}
    for trial in study.trials:
        assert (trial.state.name == "FAIL") == (trial.params["kind"] == "sgd")
        if trial.params["kind"] == "adam":
            assert trial.value == pytest.approx(trial.params["x"] + 1, rel=1e-12)


def test_several_objectives_have_a_front():
    made = sweeper(distance, n_trials=8, metric=["metrics.score", "metrics.score"], direction=["maximize", "minimize"])
    study = made.sweep(list(SPACE))
    assert len(study.best_trials) == 8  # each is better in one and worse in the other than any other


def test_another_sampler_is_named_by_its_target():
    made = sweeper(distance, n_trials=2, sampler={"_target_": "optuna.samplers.RandomSampler"})
    assert isinstance(made.sweep(list(SPACE)).sampler, optuna.samplers.RandomSampler)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=interval(0.5, 2)", optuna.distributions.FloatDistribution(0.5, 2.0)),
        ("x=tag(log, interval(1e-5, 1))", optuna.distributions.FloatDistribution(1e-5, 1.0, log=True)),
        ("x=int(interval(1, 8))", optuna.distributions.IntDistribution(1, 8)),
        ("x=range(1, 8)", optuna.distributions.IntDistribution(1, 7)),
        ("x=range(10, 35, 10)", optuna.distributions.IntDistribution(10, 30, step=10)),
        ("x=range(0, 1, 0.25)", optuna.distributions.FloatDistribution(0.0, 0.75, step=0.25)),
        ("x=tag(log, range(1, 65))", optuna.distributions.IntDistribution(1, 64, log=True)),
        ("x=a,b", optuna.distributions.CategoricalDistribution(["a", "b"])),
        ("x=choice([1,2],[3])", optuna.distributions.CategoricalDistribution(["[1,2]", "[3]"])),
    ],
)
def test_hydras_sweeps_become_optunas_distributions(text, expected):
    """A range does not include its stop, as on the command line."""
    (override,) = OverridesParser.create().parse_overrides([text])
    assert distribution(override) == expected


@pytest.mark.parametrize(
    ("options", "space", "sentence"),
    [
        ({"n_trials": 0}, SPACE, "hydra.sweeper.n_trials=0 must be at least 1"),
        ({"n_jobs": "many"}, SPACE, "hydra.sweeper.n_jobs='many' must be a whole number"),
        ({"direction": "up"}, SPACE, "hydra.sweeper.direction='up' is unknown: use minimize or maximize"),
        ({"metric": ["metrics.a", "metrics.b"]}, SPACE, "one direction for each metric"),
        ({"storage": "sqlite:///x.db"}, SPACE, "study_name is required with a storage"),
        ({}, ["data=yacht"], "nothing to search"),
        ({}, ["x=tag(log, interval(0, 1))"], "x: "),
        (
            {"metric": "metrics.absent"},
            SPACE,
            "metrics.absent is not in the record: there are metrics.score, metrics.rh",
        ),
        ({"mean_over": {"split": "interval(0,3)"}}, SPACE, "mean_over.split must be a list of values"),
    ],
)
def test_options_are_refused_in_one_sentence(options, space, sentence):
    with pytest.raises(ConfigError, match=sentence):
        sweeper(distance, **options).sweep(list(space))


def test_records_of_any_launcher():
    """The lanes launcher returns the record. Other launchers return the outcome of the command."""
    outcome = Outcome()
    assert record_of(outcome) is None
    outcome.records.append({"metrics": {"a": 1}})
    assert number(record_of(outcome), "metrics.a") == 1
    with pytest.raises(ConfigError, match="is no number"):
        number(outcome.records[0], "metrics")


COMMAND = (
    "data=cosine_gap data.n_cluster=10 data.n_test=8 network.width=4 metrics=[lppd,rmse] progress=off inference=map"
)
SCHEDULE = "inference.schedule={num_chains: 1, num_warmup: 5, num_samples: 1, thinning: 0}"


def bdlbench(*overrides):
    """Run the command in a separate process."""
    command = [sys.executable, "-m", "bdlbench.cli.main", "-m", *COMMAND.split(), SCHEDULE, *overrides]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_tunes(store_path):
    """Four trials run in one program. The best one and a table of all are printed."""
    done = bdlbench(
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.n_jobs=4",
        "inference.optimizer.learning_rate=tag(log,interval(1e-3,1e-1))",
        f"store.path={store_path}",
    )
    assert done.returncode == 0, done.stderr
    assert "Best of 4 trials (0 without a value): metrics.lppd=" in done.stderr
    # Each in its row of the table, and again below it, where the checks are named that could not be made.
    values = re.findall(r"learning_rate=([0-9.e-]+)", done.stdout)  # a narrow table breaks long numbers
    assert len(values) == 8 and len({value[:8] for value in values}) == 4


@pytest.mark.slow
def test_hydras_own_joblib_launcher_keeps_working(store_path):
    """Each job has its own process, without lanes. Records, errors and the exit code are returned from the workers."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = bdlbench("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,-1", f"store.path={store_path}")
    assert done.returncode == 1
    assert "Error: seed=-1 must be a whole number" in done.stderr
    assert "map" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("option", ["hydra.launcher.max_lanes", "hydra.launcher.processes.num_workers"])
def test_an_executors_option_is_refused_by_the_command(option, store_path):
    done = bdlbench("hydra/launcher=lanes_processes", f"{option}=0", f"store.path={store_path}")
    assert done.returncode == 1
    assert done.stderr.strip() == f"Error: {option}=0 must be at least 1, and finite."
    assert not store_path.exists()
