"""SVGD moves along Stein's direction, fits one dimension and collapses in fifty."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from known_posteriors import Verdict, assert_refused
from laws import ALONE, Law, Mutant, PresetLaws, Run, schedule
from mutation import mutate

from bdlbench.inference.svgd import State, svgd
from bdlbench.model.target import make_target
from bdlbench.types import Data, Schedule

# ---- SVGD


def svgd_on_normal(dim, num, steps, factory=svgd, seed=0, scale=0.5):
    """Particles after ``steps`` of plain gradient ascent along phi on N(0, I)."""
    zeros = jnp.zeros((1, dim))

    def model(x, y=None):
        import numpyro
        import numpyro.distributions as dist

        numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([dim]).to_event(1))
        with numpyro.plate("rows", x.shape[0]):
            numpyro.sample("y", dist.Normal(x[:, 0], 1.0), obs=y)

    target = make_target(model, zeros, jnp.zeros(1))
    data = Data(zeros, jnp.zeros(1), 1)
    method = factory(target, Schedule(1, steps, 1, 0), optimizer=optax.sgd(0.5), num_particles=num, init_scale=scale)

    @jax.jit
    def run(key):
        state = method.init(key, jnp.full(dim, 0.3), data)
        return jax.lax.fori_loop(0, steps, lambda t, s: method.step(key, t, s, data)[0], state)

    return np.asarray(method.draw(jax.random.key(0), run(jax.random.key(seed)))), method, data


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_svgd_moves_along_the_stein_direction():
    """One step of rate 1 against the double sum of the paper, N = 1, in double precision."""
    rng = np.random.default_rng(0)
    particles = rng.standard_normal((5, 3))
    squared = ((particles[:, None] - particles[None]) ** 2).sum(-1)
    h = np.median(squared[np.triu_indices(5, 1)]) / np.log(6)
    wanted = np.zeros((5, 3))
    for i in range(5):
        for j in range(5):
            k = np.exp(-squared[i, j] / h)
            wanted[i] += (k * -particles[j] - 2 / h * (particles[j] - particles[i]) * k) / 5
    _, method, data = svgd_on_normal(3, 5, 1)
    state, info = method.step(
        jax.random.key(0), jnp.int32(0), State(jnp.asarray(particles), optax.sgd(0.5).init(particles)), data
    )
    np.testing.assert_allclose(state.particles, particles + 0.5 * wanted, rtol=1e-10)
    assert float(info["num_grads"]) == 5


def test_svgd_fits_one_dimension_and_collapses_in_fifty():
    """Deterministic once the particles have come to rest: near the variance 1 at D = 1, far below it at D = 50.

    The mean is the target's in both, by symmetry.
    """
    one, _, _ = svgd_on_normal(1, 20, 4000)
    fifty, _, _ = svgd_on_normal(50, 20, 4000)
    assert 0.7 < one.var() < 1.2
    assert fifty.var(0).mean() < 0.3
    assert abs(one.mean()) < 0.05
    assert np.abs(fifty.mean(0)).max() < 0.05
    no_repulsion = mutate("bdlbench.inference.svgd", "kernel @ grads + repulsion", "kernel @ grads").svgd
    assert not svgd_on_normal(1, 20, 4000, no_repulsion)[0].var() > 0.7  # they meet in a point, and the kernel is 0 / 0


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("num_particles=20000", r"20000 x 20000 kernel of 4\.\d\d GiB"),
        ("schedule.num_warmup=0", "schedule.num_warmup=0 must be at least 1"),
        ("num_particles=1", "num_particles=1"),
        ("schedule.num_samples=10", "repeat the same particles"),
    ],
)
def test_what_is_refused(option, sentence):
    assert_refused(["inference=svgd", f"inference.{option}"], sentence)


# ---- the presets of this family


def stein(run: Run) -> Verdict:
    """At rest phi vanishes at each particle: the paper's double sum, against the largest of its terms, to 1e-3.

    Gradient steps converge to rounding: 1e-7 of a position, times the precision, is 1e-5 of a term and less.
    """
    worst = 0.0
    for particles in run.drawn.draws[:, 0].astype(np.float64):
        apart = particles[:, None] - particles
        squared = (apart**2).sum(-1)
        h = np.median(squared[np.triu_indices(len(particles), 1)]) / np.log(len(particles) + 1)
        kernel = np.exp(-squared / h)
        drift = kernel @ ((run.problem.mean - particles) @ run.problem.precision)
        repulsion = 2 / h * np.einsum("ij,ijd->id", kernel, apart)
        worst = max(worst, float((abs(drift + repulsion) / (abs(drift) + abs(repulsion)).max()).max()))
    return Verdict(worst, 1e-3, 0.0)


class TestLaws(PresetLaws):
    """SVGD comes to rest where Stein's equation holds."""

    laws = {
        "svgd": Law(
            "Stein's equation at rest",
            "test_svgd_moves_along_the_stein_direction",
            4,
            (
                schedule(30000, 1, 0),
                "inference.optimizer={_target_: optax.sgd, learning_rate: 0.1}",
                "inference.num_particles=6",
                *ALONE,
            ),
            stein,
        )
    }
    mutants = {"svgd": Mutant("kernel @ grads + repulsion", "kernel @ grads + 0.9 * repulsion")}
    small = {"svgd": ("num_particles=4",)}
    not_zero = {"svgd": ("num_warmup", "init_scale")}
