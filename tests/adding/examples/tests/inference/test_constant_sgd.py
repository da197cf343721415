"""SGD at a constant rate: its step, and the law of its own recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bdlbench.inference.constant_sgd import State, constant_sgd
from known_posteriors import gaussian, target_of
from laws import ALONE, Law, Mutant, PresetLaws, schedule
from linear_recursions import ascent
from recursion_laws import constant, from_prior, of_recursion

from bdlbench.types import Schedule


@pytest.mark.usefixtures("x64")
def test_a_step_is_optaxs():
    """theta + rate g / N is optax's plain step on -log density / N, to rounding."""
    target, data = target_of(gaussian(4, 10, copies=3))
    theta = jnp.ones(4)
    method = constant_sgd(target, Schedule(1, 0, 1, 1), learning_rate=0.1)
    moved, _ = method.step(jax.random.key(0), jnp.int32(0), State(theta), data)
    optimizer = optax.sgd(0.1)
    update, _ = optimizer.update(-target.value_and_grad(theta, data)[1] / data.size, optimizer.init(theta))
    np.testing.assert_allclose(moved.theta, optax.apply_updates(theta, update), rtol=1e-12)


class TestLaws(PresetLaws):
    """The noise of the batches is all that spreads the draws: gradient ascent on batches, rate / N a step."""

    laws = {
        "constant_sgd": Law(
            "own recursion",
            "test_a_step_is_optaxs",
            64,
            (schedule(20, 250, 40, 8), "inference.learning_rate=0.02", *ALONE),
            of_recursion(constant(lambda run: ascent(5, 0.02 / len(run.problem.y))), from_prior),
        )
    }
    mutants = {"constant_sgd": Mutant("learning_rate * grad", "1.2 * learning_rate * grad")}
