"""Whole runs through ``bdlbench.runs.group``: programs and numbers, identity, divergence, and bad input."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from hydra.errors import HydraException
from jax._src.dispatch import BACKEND_COMPILE_EVENT
from omegaconf.errors import OmegaConfBaseException
from presets import mostly

from bdlbench.runs import configuration
from bdlbench.runs.group import run, run_config, run_group
from bdlbench.runs.job import check_job, make_job
from bdlbench.runs.outcome import sentence
from bdlbench.runs.progress import Silent
from bdlbench.sampling import loop
from bdlbench.store import Store
from bdlbench.types import ConfigError

ROOT = Path(__file__).parents[2]
DATA = ["data=cosine_gap", "data.n_cluster=10", "data.n_test=8"]
SMALL = [*DATA, "network.width=4", "progress=off", "metrics=[lppd,rmse]"]
SHORT = {
    "nuts": [
        "inference.schedule.num_warmup=20",
        "inference.schedule.num_samples=10",
        "inference.schedule.num_chains=2",
    ],
    "sgld": [
        "inference.schedule={num_chains: 2, num_warmup: 20, num_samples: 10, thinning: 2, batch_size: 8}",
        "inference.step_size=1e-4",
    ],
    "svi": ["inference.schedule={num_chains: 1, num_warmup: 50, num_samples: 10, thinning: 0, batch_size: null}"],
    "map": ["inference.schedule={num_chains: 2, num_warmup: 50, num_samples: 1, thinning: 0, batch_size: null}"],
}


def options(method, store, *more):
    """Overrides of a small short run."""
    return [*SMALL, f"store.path={store}", f"inference={method}", *SHORT[method], *more]


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The number of programs given to XLA, including those found in the persistent cache."""
    found: list[str] = []

    def listen(event: str, seconds: float, **facts: object) -> None:
        if event == BACKEND_COMPILE_EVENT:
            found.append(str(facts.get("fun_name", event)))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


NUMBER = {
    "nuts": "inference.target_accept_prob=0.7",
    "sgld": "inference.step_size=2e-4",
    "svi": "inference.optimizer.learning_rate=0.02",
    "map": "inference.optimizer.learning_rate=0.02",
}


@pytest.mark.slow
@pytest.mark.parametrize("method", mostly(SHORT, "svi"))
def test_other_numbers_compile_nothing(method, store_path, monkeypatch):
    """Another seed, split, step size, prior scale or temperature compiles no program and gives other results."""
    monkeypatch.setattr(loop, "_PROGRAMS", loop.ProgramCache(64))  # another test may have run the same
    with compilations() as first:
        records = [run(options(method, store_path))]
    assert first, "the listener hears compilations"
    with compilations() as again:
        for change in ("seed=1", "data.seed=7", NUMBER[method], "prior.weight_scale=2", "temperature=0.5"):
            records.append(run(options(method, store_path, change)))
    assert again == []
    assert {record["status"] for record in records} == {"complete"}
    assert len({record["program_hash"] for record in records}) == 1
    assert len({record["metrics"]["lppd"] for record in records}) == len(records)
    with compilations() as other:
        run(options(method, store_path, "network.width=5"))
    assert other, "another width is another program"


@pytest.mark.slow
@pytest.mark.parametrize("method", mostly(SHORT, "nuts", "svi"))
def test_a_run_is_found_again_and_repeats_bit_for_bit(method, tmp_path):
    """A run with the same id is not repeated. In another store, or with ``rerun``, it has the same bits."""
    first = run(options(method, tmp_path / "a"))
    with compilations() as found:
        assert run(options(method, tmp_path / "a")) == first
    assert found == []
    again = run(options(method, tmp_path / "b"))
    assert again["id"] == first["id"]
    assert again["metrics"] == first["metrics"]
    draws = [Store(tmp_path / name).posterior(first["id"])["posterior"].to_dataset() for name in "ab"]
    assert draws[0].equals(draws[1])
    rerun = run(options(method, tmp_path / "a", "rerun=true"))
    assert rerun["metrics"] == first["metrics"]


@pytest.mark.slow
def test_jobs_of_a_group_are_what_they_are_alone(tmp_path):
    """Runs with three seeds and step sizes have the same bits together and alone."""
    changes = [["seed=0"], ["seed=1", "inference.step_size=2e-4"], ["seed=2", "data.seed=5"]]
    alone = [run(options("sgld", tmp_path / "alone", *change)) for change in changes]
    jobs = [make_job(*configuration.compose(options("sgld", tmp_path / "group", *change))) for change in changes]
    together = run_group(jobs, Store(tmp_path / "group"), Silent())
    for a, b in zip(alone, together, strict=True):
        assert a["id"] == b["id"]
        places = [Store(tmp_path / name) for name in ("alone", "group")]
        one, other = (store.posterior(a["id"])["posterior"].to_dataset() for store in places)
        assert one.equals(other)


def test_an_integer_and_its_float_are_one_run():
    """Values get the types of the factory's annotations before the run gets its id."""
    job = lambda *more: make_job(
        *configuration.compose([*SMALL, "inference=sgld", "inference.schedule.batch_size=8", *more])
    )
    assert job("inference.decay_steps=1").id == job("inference.decay_steps=1.0").id
    assert job("network.width=6").id == job("network.width=6.0").id
    assert job("temperature=1").id == job("temperature=1.0").id
    assert job("prior.weight_scale=2").id != job("prior.weight_scale=3").id


def test_paths_are_no_part_of_a_run():
    """Progress and store are not part of the id either. Seeds, rows and numbers are."""
    job = lambda *more: make_job(*configuration.compose([*SMALL, *more])).id
    one = job()
    for same in ("store.path=elsewhere", "progress=lines", "rerun=true", "metrics=[lppd]"):
        assert job(same) == one
    for other in ("seed=1", "data.seed=1", "network.depth=2", "temperature=0.9"):
        assert job(other) != one


# ---- users' own


def test_the_target_id_names_the_distribution_alone():
    """The id depends on prior, rows and temperature, and not on the method, the seed or the precision."""
    target = lambda *more: make_job(*configuration.compose([*SMALL, *more])).target_id
    one = target()
    for same in (
        "seed=1",
        "inference=sgld",
        "inference=map",
        "inference=mc_dropout",
        "metrics=[lppd]",
        "precision=float64",
        "likelihood=gaussian",  # what auto stands for
    ):
        assert target(same) == one, same
    for other in (
        "prior.weight_scale=3",
        "network.width=7",
        "likelihood=heteroscedastic",
        "data.seed=1",
        "temperature=0.9",
    ):
        assert target(other) != one, other


def test_factories_of_the_package_have_names_of_their_own():
    """A factory is named by section and function, so two modules of a section must not use the same name."""
    found = {}
    for path in sorted(configuration.conf_dir().rglob("*.yaml")):
        section = path.parent.name
        for target in re.findall(r"_target_: *[\"']?(bdlbench[\w.]+)", path.read_text()):
            section = "inference" if section == "tuned" else section
            assert found.setdefault(configuration.name_of_factory(section, target), target) == target


@pytest.mark.quick
def test_a_factory_that_has_moved_is_found_where_it_lies_now(monkeypatch):
    """A stored configuration with the old path of the factory gives a run with the same id."""
    config, labels = configuration.compose([*SMALL])
    new, old = config["network"]["_target_"], "bdlbench.nets.perceptron.MLP"
    stored = {**config, "network": {**config["network"], "_target_": old}}
    with pytest.raises(ConfigError, match="network._target_"):
        make_job(stored, labels)
    monkeypatch.setitem(configuration.MOVED, old, new)
    job = make_job(stored, labels)
    check_job(job)
    assert job.id == make_job(config, labels).id


@pytest.mark.slow
def test_a_linen_network_runs(store_path):
    """``network._target_`` may name a Linen network."""
    own = ["network._target_=models_of_users.LinenMLP", "~network.depth", "~network.activation"]
    record = run(options("nuts", store_path, *own))
    assert record["status"] == "complete"
    posterior = Store(store_path).posterior(record["id"])["posterior"]
    assert posterior["network.Dense_0.kernel"].shape == (2, 10, 1, 4)


@pytest.mark.slow
@pytest.mark.parametrize("method", mostly(SHORT, "svi"))
def test_a_numpyro_model_runs(method, store_path):
    """``model._target_`` may name a NumPyro model, without the groups network, prior and likelihood."""
    composed, labels = configuration.compose(
        [o for o in options(method, store_path) if not o.startswith(("network", "data"))]
        + ["model=eight_schools", "data=eight_schools"]
    )
    composed["data"] = {
        "_target_": "bdlbench.data.generated.linear_regression", "n": 20, "center": 0.0, "half_width": 1.0, "seed": 0,
    }  # fmt: skip
    composed["model"] = {"_target_": "models_of_users.student", "scale": 3.0}
    record = run_config(composed, labels)
    assert record["status"] == "complete", record["reason"]
    assert set(Store(store_path).posterior(record["id"])["posterior"].data_vars) == {"w"}


# ---- law 7


def test_a_diverging_run_says_so(store_path):
    """With a step size of 1e6 all chains diverge. The record has the status and the step, and no averages."""
    record = run(options("sgld", store_path, "inference.step_size=1e6"))
    assert record["status"] == "diverged"
    assert "non-finite in 2 of 2 chains, first at step" in record["reason"]
    assert "warm-up of sgld" in record["reason"]
    assert "lppd" not in record["metrics"]
    assert record["metrics"]["ess_bulk_min"] is None
    assert Store(store_path).record(record["id"])["status"] == "diverged"


@pytest.mark.slow
def test_a_diverging_job_leaves_its_group_alone(store_path):
    """The other records are complete, and each record is the same as that of a run alone."""
    jobs = [
        make_job(*configuration.compose(options("sgld", store_path, f"inference.step_size={size}")))
        for size in ("1e-4", "1e6", "2e-4")
    ]
    records = run_group(jobs, Store(store_path), Silent())
    assert [record["status"] for record in records] == ["complete", "diverged", "complete"]
    taken = (
        records[2]["seconds"]["warmup"] + records[2]["seconds"]["sample"]
    )  # its share, in the curve as in the record
    assert Store(store_path).curve(records[2]["id"])["seconds"].iloc[-1] == pytest.approx(taken)
    apart = store_path.parent / "alone"
    for record, size in zip(records[1:], ("1e6", "2e-4"), strict=True):
        alone = run(options("sgld", apart, f"inference.step_size={size}"))
        for name in ("id", "reason", "metrics", "num_grads", "num_draws", "num_nonfinite", "num_diverging", "warnings"):
            assert record[name] == alone[name], name
        one, other = (
            Store(path).curve(alone["id"]).drop(columns="seconds", errors="ignore") for path in (store_path, apart)
        )
        assert one.equals(other)


@pytest.mark.slow
def test_one_bad_chain_does_not_spoil_the_others(store_path):
    """Chains that fall into the right-hand well of a prior draw's choosing meet NaN; the left ones are kept.

    24 chains start left or right with probability a half: that all go one way happens once in 8 million.
    """
    schedule = "inference.schedule={num_chains: 24, num_warmup: 30, num_samples: 20, thinning: 1, batch_size: null}"
    wanted = ["model=eight_schools", "data=eight_schools", "inference=sgld", "inference.step_size=1e-3", schedule]
    wanted += ["inference.start=prior", "progress=off", f"store.path={store_path}", "metrics=[lppd,rmse]"]
    composed, labels = configuration.compose(wanted)
    composed["model"] = {"_target_": "models_of_users.two_wells", "depth": 30.0}
    record = run_config(composed, labels)
    theta = Store(store_path).posterior(record["id"])["posterior"]["theta"].values
    bad = np.isnan(theta).any(1)
    assert 0 < bad.sum() < 24
    assert np.isnan(theta[bad]).all()
    assert (theta[~bad] < 4).all()
    assert record["status"] == "diverged"
    assert f"non-finite in {bad.sum()} of 24 chains" in record["reason"]
    assert record["num_draws"] == 20 * (~bad).sum()
    assert record["num_nonfinite"] == 20 * bad.sum()
    assert np.isfinite(record["metrics"]["ess_bulk_min"])


# ---- bad input


def folders(store):
    """The names of the folders in a store."""
    return sorted(path.name for path in Path(store).iterdir()) if Path(store).exists() else []


BAD = {
    "unknown option": (["inference.stepsize=1"], "stepsize"),
    "unknown inference": (["inference=nutz"], "nut"),
    "missing value": (["data=csv", "data.target=y"], "data.path is required"),
    "no such file": (["data=csv", "data.path=nowhere.csv", "data.target=y"], "nowhere.csv is no file"),
    "likelihood of another task": (["likelihood=categorical"], "likelihood=auto"),
    "batch larger than the data": (["inference.schedule.batch_size=1000"], "does not fit 20 training rows"),
    "negative step size": (
        ["inference=sgld", "inference.schedule.batch_size=8", "inference.step_size=-1"],
        "step_size",
    ),
    "text for a number": (["inference.target_accept_prob=high"], "must be a number"),
    "fraction of a unit": (["network.width=2.5"], "whole number"),
    "no unit": (["network.width=0"], "width"),
    "unknown activation": (["network.activation=step"], "activation"),
    "target acceptance above one": (["inference.target_accept_prob=1.5"], "strictly between 0 and 1"),
    "no chain": (["inference.schedule.num_chains=0"], "at least 1"),
    "no draw": (["inference.schedule.num_samples=0"], "at least 1"),
    "half a chain": (["inference.schedule.num_chains=1.5"], "whole number"),
    "unknown schedule option": (["+inference.schedule.burnin=3"], "burnin"),
    "unknown batching": (["inference.schedule.batching=random"], "epoch or iid"),
    "zero temperature": (["temperature=0"], "must be a positive finite number"),
    "negative seed": (["seed=-1"], "seed"),
    "negative prior scale": (["prior.weight_scale=-1"], "weight_scale"),
    "unknown guide": (["inference=svi", "inference.guide=normal"], "guide"),
    "a start that is none": (["inference.start=mode"], "prior or network"),
    "batch larger than eight schools": (
        ["model=eight_schools", "data=eight_schools", "inference.schedule.batch_size=9"],
        "does not fit 8 training rows",
    ),
    "nothing for a number": (["likelihood=gaussian_fixed", "likelihood.sigma=null"], "must be a number"),
    "no such factory": (["network._target_=bdlbench.networks.mlp.MPL"], "MPL"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_bad_options_end_in_one_sentence(name, store_path):
    """A sentence names the field before anything is compiled or written."""
    overrides, words = BAD[name]
    usual = [] if any(o.startswith(("data=", "model=")) for o in overrides) else SMALL
    with compilations() as compiled, pytest.raises((ConfigError, HydraException, OmegaConfBaseException)) as caught:
        run([*usual, f"store.path={store_path}", *overrides])
    message = sentence(caught.value)
    assert "\n" not in message
    assert re.search(words, message), message
    assert compiled == []
    assert folders(store_path) == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tuned=null", "a group takes the name of an option, not null: .* ~tuned leaves a group out"),
        ("metrics=3", "a group takes the name of an option, not a value of type int: "),
        (
            "inference.schedule={burnin: 3}",
            "^inference.schedule.burnin is no option here: .* ~inference.schedule and [+]",
        ),
        ("inference.burnin=3", "^inference.burnin is no option here: bdlbench --help"),
    ],
)
def test_what_the_composition_refuses_comes_with_a_remedy(override, words):
    """Hydra's errors about types and structs become sentences about groups and mappings."""
    with pytest.raises((ValueError, HydraException)) as caught:
        configuration.compose([override])
    assert re.search(words, sentence(caught.value)), sentence(caught.value)


def test_the_remedies_work():
    """The named remedies work: a group is left out, and a mapping is replaced as a whole."""
    composed, labels = configuration.compose(["~tuned", "~inference.schedule", "+inference.schedule={num_chains: 1}"])
    assert composed["inference"]["schedule"] == {"num_chains": 1}
    assert "tuned" not in labels


FILES = {
    "NaN in the data": ("a,y\n1,2\nnan,3\n4,5\n6,7\n", r": a is nan in line 3: fill"),
    "text in the data": ("a,y\n1,2\nred,3\n4,5\n6,7\n", r": a is text \('red'\) in line 3: remove"),
    "missing column": ("a,z\n1,2\n2,3\n4,5\n6,7\n", "data.target=y is no column"),
    "constant target": ("a,y\n1,2\n2,2\n4,2\n6,2\n", "data.y is constant"),
    "no rows": ("a,y\n", "no rows"),
    "text in the target": ("a,y\n1,2\n2,3\n4,abc\n6,7\n", r": y is text \('abc'\) in line 4: mend"),
    "infinite target": ("a,y\n1,2\n2,inf\n4,5\n6,7\n", r": y is inf in line 3: fill"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_data_end_in_one_sentence(name, tmp_path):
    """A CSV file without usable data is refused."""
    text, words = FILES[name]
    (tmp_path / "rows.csv").write_text(text)
    store = tmp_path / "store"
    overrides = ["data=csv", f"data.path={tmp_path}/rows.csv", "data.target=y", "data.test_fraction=0"]
    overrides += [f"store.path={store}", "progress=off"]
    with pytest.raises(ConfigError, match=words) as caught:
        run(overrides)
    assert "\n" not in str(caught.value)
    assert folders(store) == []


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    """Arrays x and y of different lengths are refused."""
    np.savez(tmp_path / "rows.npz", x=np.zeros((5, 2)), y=np.arange(4.0))
    with pytest.raises(ConfigError, match="5 rows of inputs but 4 targets"):
        run(["data=npz", f"data.path={tmp_path}/rows.npz", f"store.path={tmp_path}/store"])


def test_an_unwritable_store_is_refused(tmp_path):
    """A file at the path of the store is refused."""
    (tmp_path / "store").write_text("")
    with compilations() as compiled, pytest.raises(ConfigError, match=r"store\.path: cannot write"):
        run([*SMALL, f"store.path={tmp_path}/store/below"])
    assert compiled == []


def command(*arguments):
    """Run the command line in a separate process."""
    program = "import sys; from bdlbench.cli.main import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT
    )


def test_the_command_ends_with_one_sentence_and_code_1(store_path):
    """The output has no traceback."""
    done = command("likelihood=categorical", f"store.path={store_path}")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("Error: likelihood=categorical is for classification")
    assert "Traceback" not in done.stderr
    assert folders(store_path) == []


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_bad_and_a_diverging_job(store_path):
    """One of three jobs is refused, one diverges and one is complete. The exit code is 1."""
    done = command("-m", *options("sgld", store_path), "inference.step_size=1e-4,1e6,-1")
    assert done.returncode == 1, done.stderr
    assert "must be a positive finite number" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(Store(store_path).runs()["status"]) == ["complete", "diverged"]
