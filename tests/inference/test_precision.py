"""``precision=float64``: every preset computes in 64 bits, and runs in 32 bits stay what they were."""

import copy
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from jax.interpreters import partial_eval
from presets import PRESETS, by_family, outcome, shortened

from bdlbench.api import fitting
from bdlbench.errors import ConfigError
from bdlbench.runs import configuration
from bdlbench.runs.arrangement import arrange
from bdlbench.runs.group import run_config
from bdlbench.runs.job import make_job
from bdlbench.runs.outcome import Outcome
from bdlbench.runs.progress import make_progress
from bdlbench.runs.sweep import run_sweep
from bdlbench.sampling.devices import computing_in
from bdlbench.sampling.programs import StagePrograms
from bdlbench.store import Store

DATA = ["data=cosine_gap", "data.n_cluster=20", "data.n_test=4", "progress=off"]
LINEAR = ["network.depth=0", "likelihood=gaussian_fixed"]
SHORT = [*DATA, *LINEAR, *shortened("map", 8, 4, 4), "metrics=[lppd]"]


def composed(preset: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A preset in 64 bits with a tiny schedule on a linear model, without the stages that it can do without."""
    network = ["network.width=2"] if preset == "mc_dropout" else LINEAR
    made, labels = configuration.compose([*DATA, *network, "precision=float64", *shortened(preset, 16, 4, 4)])
    if not preset.startswith("laplace"):
        made["inference"]["before"] = []
    return made, labels


def equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a program and of the programs within it that compute something themselves."""
    for equation in jaxpr.eqns:
        inner = [getattr(part, "jaxpr", part) for value in equation.params.values()
                 for part in (value if isinstance(value, tuple | list) else (value,))]  # fmt: skip
        inner = [part for part in inner if hasattr(part, "eqns")]
        for part in inner:
            yield from equations(part)
        if not inner:
            yield equation


def in_single_precision(function: Any, *args: Any) -> tuple[list[str], int]:
    """Primitives whose result is needed and is an array of 32-bit floats, and how many 64-bit scalars become 32-bit.

    What is not needed is left out: NumPyro draws initial weights for a network whose weights it then replaces.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    arrays, scalars = [], 0
    for equation in equations(jaxpr):
        single = [v.aval for v in equation.outvars if getattr(v.aval, "dtype", None) == np.float32]
        arrays += [equation.primitive.name for aval in single if aval.shape]
        double = any(getattr(v.aval, "dtype", None) == np.float64 for v in equation.invars)
        scalars += sum(double for aval in single if not aval.shape)
    return arrays, scalars


@pytest.mark.parametrize("preset", by_family(PRESETS, "sghmc", "nuts"))
def test_a_preset_computes_in_64_bits_throughout(preset):
    """No array of any function of its last stage has 32-bit floats, and loops carry one type.

    A step may round one number, its count of gradients, which the loop adds up in 32 bits.
    """
    job = make_job(*composed(preset))
    with computing_in(job.precision):
        shared, lane, _, _ = arrange([job])
        lane = lane._replace(active=np.ones(2, bool))
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), lane)
        stage = StagePrograms(job.program, len(job.program.stages) - 1, shared, lane)
        first, finalized = stage.states
        count, theta = jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((stage.dim,), np.float64)
        assert stage.draw_shape.dtype == np.float64
        assert in_single_precision(stage.init, shared, one, theta) == ([], 0)
        if stage.schedule.num_warmup or stage.schedule.thinning:
            arrays, rounded = in_single_precision(stage.block_warmup, shared, count, count, count, one, first)
            assert not arrays
            assert rounded <= 1
        if stage.finalizes:
            assert in_single_precision(stage.finalize, shared, one, first)[0] == []
        if stage.schedule.thinning and stage.two_bodies:
            arrays, rounded = in_single_precision(stage.block_sample, shared, count, count, count, one, finalized)
            assert not arrays
            assert rounded <= 1
        if not stage.schedule.thinning:
            assert in_single_precision(stage.draws, shared, count, one, finalized) == ([], 0)


def assert_double(values: np.ndarray) -> None:
    """Finite, of 64 bits, and no number that 32 bits could hold."""
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    assert not (values.astype(np.float32) == values).any()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["baoa", "deep_ensemble", "hmc", "laplace_lastlayer", "svgd", "svi", "swag"])
def test_draws_have_64_bits(preset):
    """Of methods of each kind: steps, an ensemble, a stage after a mode, particles, a guide, an average."""
    job = make_job(*composed(preset))
    with computing_in(job.precision):
        draws = fitting.sample(job, make_progress("off"))
    assert_double(draws.theta)


@pytest.mark.slow
def test_both_precisions_in_one_sweep(store_path):
    """They share no program: the run in 32 bits has the bits that it has alone, the other one is stored in 64 bits."""
    single, labels = configuration.compose([*SHORT, f"store.path={store_path / 'alone'}"])
    alone = run_config(single, labels)["id"]
    path = str(store_path / "both")
    jobs = [configuration.compose([*SHORT, f"store.path={path}", f"precision={p}"]) for p in ("float64", "float32")]
    found = Outcome()
    records = run_sweep([(*job, "") for job in jobs], found, max_lanes=8)
    assert not found.errors
    double, other = (record["id"] for record in records if record is not None)
    store = Store(path)
    assert other == alone != double
    with store.posterior(double) as tree:
        for group in ("posterior", "log_likelihood_test", "predictions"):
            for values in tree[group].data_vars.values():
                assert_double(values.to_numpy())
    in_32 = outcome(store, other)
    for name, values in outcome(Store(store_path / "alone"), alone).items():
        np.testing.assert_array_equal(values, in_32[name], err_msg=name)
    # Adam amplifies no rounding error of single precision, 6e-8, to more than 1e-3 in 8 steps.
    scores = [record["metrics"]["lppd"] for record in records if record is not None]
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    assert records[0]["target_id"] == records[1]["target_id"]


@pytest.mark.slow
def test_a_run_begins_at_draws_of_another_precision(store_path):
    """The stored draws become numbers of the new run's precision."""
    first, second = "float32", "float64"
    for warm, cold in ((first, second), (second, first)):
        asked = [*SHORT, f"store.path={store_path}"]
        parent = run_config(*configuration.compose([*asked, f"precision={cold}"]))["id"]
        record = run_config(*configuration.compose([*asked, f"precision={warm}", f"warm_start={parent}"]))
        assert record["status"] == "complete", record["reason"]


def test_the_default_leaves_ids_as_they_were():
    """A configuration from before the option, the default and the other precision; the target is the same."""
    made, labels = configuration.compose(SHORT)
    before = {name: value for name, value in made.items() if name != "precision"}
    single, double = make_job(made, labels), make_job({**made, "precision": "float64"}, labels)
    assert make_job(before, labels).id == single.id != double.id
    assert single.target_id == double.target_id
    with jax.enable_x64(True):  # what the process is set to says nothing of the run
        assert make_job(made, labels).id == single.id
    assert double.dataset.train.x.dtype == np.float64
    assert jax.config.jax_enable_x64 is False


@pytest.mark.parametrize("value", ["float16", "double", 64, None, True, ["float32"]])
def test_other_precisions_are_refused(value):
    """One sentence that names the field and what it may be."""
    made, labels = copy.deepcopy(configuration.compose(SHORT))
    made["precision"] = value
    with pytest.raises(ConfigError, match="^precision=.* is unknown: use float32 or float64.$"):
        make_job(made, labels)
