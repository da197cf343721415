"""Cyclical step sizes: where a cycle's draws fall, and that it explores without noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_posteriors import gaussian, lanes_of, program, rows, sample, stage, target_of

from bdlbench.inference import sghmc as momentum
from bdlbench.inference import sgld as langevin
from bdlbench.types import Schedule


@pytest.mark.parametrize(
    ("factory", "options", "power"),
    [
        (langevin.cyclical_sgld, {"step_size": 0.01}, 1.0),
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
        "cyclical_sgld": (langevin.cyclical_sgld, {}),
        "cyclical_sghmc": (momentum.cyclical_sghmc, {"friction": 1.0}),
    }
    factory, options = made[name]
    method = factory(target, Schedule(1, 8, 4, 2), step_size=0.01, num_cycles=2, **options)
    state = method.init(jax.random.key(0), jnp.ones(4), data)
    for phase, same in ((method.warm, True), (method.step, False)):
        a, b = (phase(jax.random.key(k), jnp.int32(1), state, data)[0] for k in (1, 2))
        assert all(bool((u == v).all()) for u, v in zip(a, b, strict=True)) is same
    assert not method.markov
