"""Step sizes that follow an optax schedule: a step takes its value at t, and all that hangs on the step size follows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from known_posteriors import gaussian, lanes_of, program, rows, sample, silence, stage, target_of
from linear_recursions import baoa, langevin, sghmc
from presets import mostly

from bdlbench.inference import sghmc as momentum
from bdlbench.inference import sgld
from bdlbench.runs import configuration
from bdlbench.runs.group import run
from bdlbench.runs.job import check_job, make_job
from bdlbench.types import ConfigError, Schedule

STEPS = Schedule(1, 8, 4, 3)


FALLING = optax.exponential_decay(0.02, transition_steps=4, decay_rate=0.5)


METHODS = {
    "sgld": (sgld.sgld, {"decay": 0.6, "decay_steps": 5.0}),
    "psgld": (sgld.psgld, {"averaging": 0.99, "damping": 0.01}),
    "sgld_cv": (sgld.sgld_cv, {}),
    "sghmc": (momentum.sghmc, {"friction": 2.0}),
    "baoa": (momentum.baoa, {"friction": 2.0}),
    "sgnht": (momentum.sgnht, {"friction": 2.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_step_takes_the_schedule_at_its_own_t(name):
    """The bits, noise included, of the method whose number is the schedule's value at t; a constant is the number."""
    factory, options = METHODS[name]
    target, data = target_of(gaussian(3, 5))
    key = jax.random.key(3)
    for rate in (FALLING, optax.constant_schedule(0.02)):
        followed = factory(target, STEPS, step_size=rate, **options)
        state = followed.init(key, jnp.ones(3), data)
        for t in jnp.arange(0, 20, 6):
            number = factory(target, STEPS, step_size=rate(t), **options)
            for one in ("step", "warm"):
                steps = [getattr(method, one) or method.step for method in (followed, number)]
                moved, same = (step(key, t, state, data)[0] for step in steps)
                for a, b in zip(moved, same, strict=True):
                    np.testing.assert_array_equal(a, b)
        late = factory(target, STEPS, step_size=FALLING(0), **options).step(key, jnp.int32(12), state, data)[0]
        assert (rate is FALLING) == bool((late.theta != followed.step(key, jnp.int32(12), state, data)[0].theta).any())


RECURSIONS = {
    "sgld": lambda dim, h: langevin(dim, h),
    "sghmc": lambda dim, h: sghmc(dim, h, 2.0 * h),
    "baoa": lambda dim, h: baoa(dim, h, 2.0),
}


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", RECURSIONS)
def test_the_path_is_that_of_the_recursion_at_each_step(name, monkeypatch):
    """Without noise, twelve steps of the affine recursion at h_t: the damping 1 - h_t alpha falls with the step."""
    factory, options = METHODS[name]
    options = {**options, "decay": 0.0} if "decay" in options else options
    target, data = target_of(gaussian(3, 5))
    grad = lambda theta: np.asarray(target.value_and_grad(jnp.asarray(theta), data)[1])
    method = factory(target, STEPS, step_size=FALLING, **options)
    state = method.init(jax.random.key(0), jnp.ones(3), data)
    z = np.concatenate([np.asarray(part) for part in state])
    silence(monkeypatch)
    for t in range(12):
        z = RECURSIONS[name](3, 0.02 * 0.5 ** (t / 4))[0](grad, z)
        state, _ = method.step(jax.random.key(0), jnp.int32(t), state, data)
        # The schedule's own numbers are single precision: twelve relative errors of 6e-8 in a step.
        np.testing.assert_allclose(np.concatenate(state), z, rtol=1e-5, atol=1e-6)


SCHEDULES = {
    "sgld": "{_target_: optax.exponential_decay, init_value: 1e-4, transition_steps: 10, decay_rate: 0.5}",
    "sghmc": "{_target_: optax.warmup_cosine_decay_schedule, init_value: 1e-4, peak_value: 1e-3, warmup_steps: 5, "
    "decay_steps: 50}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly(SCHEDULES, "sghmc"))
def test_a_run_follows_a_schedule(name, store_path):
    """From the command line; also where optax branches on a number in Python, so that it cannot be traced."""
    small = ["data=cosine_gap", "data.n_cluster=10", "data.n_test=4", "network.width=3", f"store.path={store_path}"]
    schedule = "inference.schedule={num_chains: 1, num_warmup: 5, num_samples: 3, thinning: 2, batch_size: 5}"
    record = run([*small, f"inference={name}", schedule, f"inference.step_size={SCHEDULES[name]}", "progress=off"])
    assert record["status"] == "complete"


@pytest.mark.parametrize(
    ("name", "step_size", "sentence"),
    [
        (
            "sgld",
            "{_target_: optax.linear_schedule, init_value: 1e-4, end_value: -1e-4, transition_steps: 4}",
            "never negative",
        ),
        ("sgld_cv", "{_target_: optax.constant_schedule, value: 0.0}", "not zero throughout"),
        (
            "sghmc",
            "{_target_: optax.linear_schedule, init_value: 1e-3, end_value: 0.1, transition_steps: 100}",
            "friction=.* times step_size=0.1 must be below 1",
        ),
        ("cyclical_sgld", "{_target_: optax.constant_schedule, value: 0.1}", "must be a number"),
    ],
)
def test_schedules_that_are_none_are_refused(name, step_size, sentence):
    """In one sentence, before anything is compiled: at all steps of the stage, not at its first alone."""
    with pytest.raises(ConfigError, match=f"inference.*{sentence}"):
        check_job(make_job(*configuration.compose([f"inference={name}", f"inference.step_size={step_size}"])))


FALLS_BELOW = "{_target_: optax.linear_schedule, init_value: 0.01, end_value: -0.01, transition_steps: 40}"


MAP = "_target_: bdlbench.inference.point.maximum_a_posteriori, schedule: {num_warmup: 40, num_samples: 0, thinning: 0}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "path"),
    [
        (["inference=map", f"inference.optimizer.learning_rate={FALLS_BELOW}"], "inference.optimizer.learning_rate"),
        (
            ["inference=nuts", f"inference.before=[{{{MAP}, optimizer: {{_target_: optax.adam, learning_rate: LR}}}}]"],
            "inference.before.0.optimizer.learning_rate",
        ),
        (
            [
                "inference=map",
                "~inference.optimizer",
                "+inference.optimizer={_target_: optax.chain, _args_: [{_target_: optax.scale_by_adam}, "
                "{_target_: optax.scale_by_learning_rate, learning_rate: LR}]}",
            ],
            "inference.optimizer._args_.1.learning_rate",
        ),
        (["inference=ivon", "~inference.learning_rate", "+inference.learning_rate=LR"], "inference.learning_rate"),
    ],
)
def test_learning_rates_that_fall_below_zero_are_refused(options, path):
    """At step 20 of 40 the rate is exactly 0, which is allowed; from 21 it is -0.01 / 20 and the stage would climb down.

    With 21 steps the same schedule passes.
    """
    options = [option.replace("LR", FALLS_BELOW) for option in options]
    place = path.partition("optimizer")[0].removesuffix(".").removesuffix(".learning_rate")
    for steps, good in ((40, False), (21, True)):
        last = [] if place == "inference" else ["inference.schedule.num_warmup=40"]
        plan = [f"{place}.schedule.num_warmup={steps}", f"{place}.schedule.thinning=0", *last]
        job = make_job(*configuration.compose([*options, *plan]))
        if good:
            check_job(job)
        else:
            with pytest.raises(ConfigError, match=rf"^{re.escape(path)} is -0.0005\d* at step 21: "):
                check_job(job)


@pytest.mark.parametrize(
    ("rate", "sentence"),
    [
        ("{_target_: optax.constant_schedule, value: 0.0}", "not zero throughout"),
        (
            "{_target_: optax.polynomial_schedule, init_value: 0.1, end_value: 0.0, power: -1, transition_steps: 9}",
            "is (inf|nan)",
        ),
        ("{_target_: optax.adam, learning_rate: 0.1}", "must be a number or a schedule"),
        ("{init_value: 0.1}", "must be a number or a schedule"),
    ],
)
def test_learning_rates_that_are_none_are_refused(rate, sentence):
    """Nothing at all, not finite, no schedule."""
    options = ["inference=map", f"inference.optimizer.learning_rate={rate}"]
    with pytest.raises(ConfigError, match=f"^inference.optimizer.learning_rate.*{sentence}"):
        check_job(make_job(*configuration.compose(options)))


def test_learning_rates_that_begin_and_end_at_zero_pass():
    """A warm-up from 0 and a cosine's end; and a stage of no steps has no rate to be wrong."""
    rate = (
        "{_target_: optax.warmup_cosine_decay_schedule, init_value: 1e-9, peak_value: 0.01, warmup_steps: 5, "
        "decay_steps: 20, end_value: 0.0}"
    )
    linear = "{_target_: optax.linear_schedule, init_value: 1e-9, end_value: 0.0, transition_steps: 4}"
    for warmup, given in ((40, rate), (40, linear), (0, FALLS_BELOW)):
        options = [f"inference.optimizer.learning_rate={given}", f"inference.schedule.num_warmup={warmup}"]
        check_job(make_job(*configuration.compose(["inference=map", *options])))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "options", "power"),
    [
        (sgld.cyclical_sgld, {"step_size": 0.01}, 1.0),
        (momentum.cyclical_sghmc, {"step_size": 0.05, "friction": 2.0}, 0.5),
    ],
)
def test_draws_come_from_every_cycle(factory, options, power):
    """Four cycles of 30 + 5 x 4 steps: each draw's step size is the cosine's at the step before it."""
    problem = gaussian(2, 4, copies=6)
    schedule = Schedule(1, 120, 20, 4, 8, "epoch")
    drawn = sample(program((stage("cycles", factory, schedule, num_cycles=4, **options),)), rows(problem), lanes_of(2))
    assert drawn.draws.shape == (2, 20, 2)
    t = np.concatenate([c * 50 + 30 + np.arange(3, 20, 4) for c in range(4)])
    wanted = options["step_size"] * ((np.cos(np.pi * (t % 50) / 50) + 1) / 2) ** power
    np.testing.assert_allclose(drawn.stat("step_size")[0], wanted, rtol=1e-5)
    sampling = [b for b in drawn.blocks if b.phase == "sample"]
    assert [b.first_draw for b in sampling] == list(np.cumsum([0] + [b.draws.shape[1] for b in sampling[:-1]]))
    assert drawn.blocks[-1].steps_done == 200
    assert sum(float(b.num_grads[0]) for b in drawn.blocks) == pytest.approx(200 * 8 / len(problem.y), rel=1e-5)
    assert {b.phase for b in drawn.blocks[:2]} <= {"warmup"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["cyclical_sgld", "cyclical_sghmc"])
def test_exploration_has_no_noise(name):
    """Two keys move alike in warm-up, apart in sampling."""
    target, data = target_of(gaussian(4, 10, copies=3))
    made = {
        "cyclical_sgld": (sgld.cyclical_sgld, {}),
        "cyclical_sghmc": (momentum.cyclical_sghmc, {"friction": 1.0}),
    }
    factory, options = made[name]
    method = factory(target, Schedule(1, 8, 4, 2), step_size=0.01, num_cycles=2, **options)
    state = method.init(jax.random.key(0), jnp.ones(4), data)
    for phase, same in ((method.warm, True), (method.step, False)):
        a, b = (phase(jax.random.key(k), jnp.int32(1), state, data)[0] for k in (1, 2))
        assert all(bool((u == v).all()) for u, v in zip(a, b, strict=True)) is same
    assert not method.markov
