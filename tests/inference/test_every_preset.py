"""Laws 1 to 5 and 7 for every file of conf/inference, so that none is added untested.

Each preset is run from its own yaml, by way of a configuration, on a Bayesian linear regression (a network of one dense
layer), whose posterior is known, and against the law that it is declared to have: the posterior itself, the law of its
own recursion, its variational optimum, the mode. Beside the good lanes run two whose rows hold a NaN.
"""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.stats
import yaml
from known_posteriors import NOISE, PRIOR_SCALE, Gaussian, Outcome, Verdict, largest_z, linear_job, moments, sample
from linear_recursions import (
    Moments,
    Recursion,
    ascent,
    baoa,
    control_variates,
    heavy_ball,
    langevin,
    moments_of,
    recursion,
    sghmc,
)
from mutation import mutate
from presets import PRESETS, mostly
from test_point import dropout_gradient_z
from test_sghmc import check_thermostat
from test_sgld import check_frozen_preconditioner

from bdlbench.inference.point import mc_dropout
from bdlbench.runs.arrangement import arrange
from bdlbench.runs.configuration import conf_dir, target_of
from bdlbench.sampling import loop
from bdlbench.sampling.programs import NEVER, Shared
from bdlbench.types import Schedule

POISONED = 2
"""Lanes, one a device, whose data have a NaN."""


class Run(NamedTuple):
    """What a verdict is about: the problem, the schedule, and the draws and statistics of the good lanes."""

    problem: Gaussian
    schedule: Schedule
    drawn: Outcome


class Law(NamedTuple):
    """What a preset is held to.

    ``kind`` says it in words; ``options`` make the run short, ``chains`` is its number of good lanes; ``verdict`` looks
    at the run, or (``None``) has a problem of its own. ``deterministic`` names the test of law 1.
    """

    kind: str
    deterministic: str
    chains: int
    options: tuple[str, ...]
    verdict: Callable[[Run], Verdict]


def schedule(num_warmup: int, num_samples: int, thinning: int, batch_size: int | None = None) -> str:
    """An override of the last stage's schedule; batches with replacement, whose law is the simplest."""
    size = "null" if batch_size is None else batch_size
    return (
        f"inference.schedule={{num_warmup: {num_warmup}, num_samples: {num_samples}, thinning: {thinning}, "
        f"batch_size: {size}, batching: iid}}"
    )


def falling(rate: float, steps: int, name: str = "optax.adam") -> str:
    """An optimiser whose rate falls to nothing, so that what is left of its noise is small against the draws' own."""
    decay = f"{{_target_: optax.cosine_decay_schedule, init_value: {rate}, decay_steps: {steps}}}"
    return f"inference.optimizer={{_target_: {name}, learning_rate: {decay}}}"


def mode(steps: int) -> str:
    """A MAP stage that converges to rounding: every direction falls below exp(-steps rate curvature)."""
    descent = "{_target_: optax.sgd, learning_rate: 0.1}"
    plan = f"{{num_warmup: {steps}, num_samples: 0, thinning: 0}}"
    return (
        "inference.before=[{_target_: bdlbench.inference.point.maximum_a_posteriori, "
        f"optimizer: {descent}, schedule: {plan}}}]"
    )


ALONE = ("inference.before=[]", "inference.start=prior")

# ---- verdicts


def posterior(run: Run) -> Verdict:
    """Every first and second moment; the particles of a lane are pooled."""
    draws = run.drawn.draws.reshape(len(run.drawn.draws), -1, run.problem.x.shape[1])
    return moments(draws, run.problem.mean, run.problem.cov)


def mean_field(run: Run) -> Verdict:
    """The posterior's mean, and variances 1 / diag(precision): the optimum among independent normals."""
    return moments(run.drawn.draws, run.problem.mean, np.diag(1 / np.diag(run.problem.precision)))


def at_the_mode(run: Run) -> Verdict:
    """Distance in posterior standard deviations, at most the 1e-3 that single-precision gradients leave."""
    away = run.drawn.draws[:, 0].astype(np.float64) - run.problem.mean
    return Verdict(float(np.sqrt(np.einsum("ci,ij,cj->c", away, run.problem.precision, away)).max()), 1e-3, 0.0)


def centred(run: Run) -> Verdict:
    """First moments alone: on a Gaussian the dynamics do not change under theta -> 2 mean - theta, at any step."""
    draws = run.drawn.draws.astype(np.float64) - run.problem.mean
    white = draws @ np.linalg.cholesky(run.problem.precision)
    z, most = largest_z(white.mean(1), np.zeros(white.shape[-1]))
    return Verdict(z, most, float((white.mean(1).std(0, ddof=1) / len(white) ** 0.5).max()))


def evidence(run: Run) -> Verdict:
    """E_q[p(y, theta) / q(theta)] = p(y), whatever q is; a small standard error says that q is close to the posterior.

    With S ratios over all lanes it is the root of chi^2(p, q) / S.
    """
    x, y = run.problem.x.astype(np.float64), run.problem.y.astype(np.float64)
    # The rows were divided by the noise's scale: so is their density.
    log_p = scipy.stats.multivariate_normal(cov=np.eye(len(y)) + PRIOR_SCALE**2 * x @ x.T).logpdf(y)
    log_p -= len(y) * np.log(NOISE)
    stats = {name: run.drawn.stat(name).astype(np.float64) for name in ("log_density", "log_q")}
    ratio = np.exp(stats["log_density"] - stats["log_q"] - log_p)
    z, most = largest_z(ratio.mean(1, keepdims=True), np.ones(1))
    return Verdict(z, most, float(ratio.mean(1).std(ddof=1) / len(ratio) ** 0.5))


def of_recursion(at: Callable[[Run, int], Recursion], start: Callable[[Run], Moments]) -> Callable[[Run], Verdict]:
    """Moments at the step of each draw, warm-up and all, from those of the start: ``at(run, t)`` is step t."""

    def verdict(run: Run) -> Verdict:
        dim, plan, num_cycles = run.problem.x.shape[1], run.schedule, num_cycles_of(run)
        warm, each = plan.num_warmup // num_cycles, plan.num_samples // num_cycles * plan.thinning
        found, now, last = [], start(run), None
        for t in range(num_cycles * (warm + each)):
            here = at(run, t)
            now, last = here.after(now), here
            since = t % (warm + each) - warm + 1
            if since > 0 and since % plan.thinning == 0:
                found.append(now)
        assert last is not None and len(found) == plan.num_samples
        roots = np.linalg.cholesky(np.stack([m.cov[:dim, :dim] for m in found]))
        away = run.drawn.draws - np.stack([m.mean[:dim] for m in found])
        return moments(np.linalg.solve(roots, away[..., None])[..., 0], np.zeros(dim), np.eye(dim))

    return verdict


def num_cycles_of(run: Run) -> int:
    """Cycles of the two cyclical presets below."""
    return CYCLES if run.schedule.num_samples % CYCLES == 0 and run.schedule.num_warmup == 30 * CYCLES else 1


CYCLES = 10


def cosine(run: Run, t: int) -> float:
    """The factor of a cycle's step size."""
    length = (run.schedule.num_warmup + run.schedule.num_samples * run.schedule.thinning) // CYCLES
    return float((np.cos(np.pi * (t % length) / length) + 1) / 2)


def from_prior(run: Run, momentum: bool) -> Moments:
    """Theta from the prior and, if there is one, a standard normal momentum."""
    dim = run.problem.x.shape[1]
    variances = np.concatenate([np.full(dim, PRIOR_SCALE**2), np.ones(dim * momentum)])
    return moments_of(np.zeros(len(variances)), np.diag(variances))


def constant(make: Callable[[Run], tuple[Any, np.ndarray]]) -> Callable[[Run, int], Recursion]:
    """The same recursion at every step, made once a run."""
    made: dict[int, Recursion] = {}

    def at(run: Run, t: int) -> Recursion:
        if id(run) not in made:
            made.clear()
            made[id(run)] = recursion(run.problem, *make(run), run.schedule.batch_size)
        return made[id(run)]

    return at


def cyclical_langevin(run: Run, t: int) -> Recursion:
    """Gradient ascent in the first 30 steps of a cycle, Langevin's step in the others."""
    length = (run.schedule.num_warmup + run.schedule.num_samples * run.schedule.thinning) // CYCLES
    step = ascent if t % length < 30 else langevin
    return recursion(run.problem, *step(5, 1e-3 * cosine(run, t)), run.schedule.batch_size)


def cyclical_momentum(run: Run, t: int) -> Recursion:
    """h_t^2 follows the cosine, h_t alpha_t = 0.2 stays."""
    length = (run.schedule.num_warmup + run.schedule.num_samples * run.schedule.thinning) // CYCLES
    made = sghmc(5, 0.03 * cosine(run, t) ** 0.5, 0.2, noisy=t % length >= 30)
    return recursion(run.problem, *made, run.schedule.batch_size)


def path_of_sgd(run: Run) -> Verdict:
    """SWAG's draws over paths: Cov(mean) + E[diag s^2] / 2 + E[D D'] / (2 (K - 1)) from the path's autocovariances.

    Points are ``EVERY`` steps of the heavy ball apart, z_(t + k) depends on z_t by E[T]^k, and mean, variances and
    deviations are linear in the points.
    """
    num, every, rank, dim = 200, 25, 20, run.problem.x.shape[1]
    found = recursion(run.problem, *heavy_ball(run.problem, 0.02, 0.9), run.schedule.batch_size)
    step = np.linalg.matrix_power(found.mean_map[:-1, :-1], every)
    lags = [found.stationary().cov]
    for _ in range(num - 1):
        lags.append(step @ lags[-1])
    lag = np.stack([a[:dim, :dim] for a in lags])
    index = np.arange(num)
    apart = index[:, None] - index
    gamma = np.where((apart >= 0)[..., None, None], lag[abs(apart)], lag[abs(apart)].swapaxes(-1, -2))
    quadratic = lambda w: np.einsum("i,ijab,j->ab", w, gamma, w)
    whole = quadratic(np.full(num, 1 / num))
    spread = lag[0] - whole
    kept = np.zeros((dim, dim))
    for n in range(num - rank + 1, num + 1):
        kept += quadratic(np.where(index == n - 1, 1.0, 0.0) - np.where(index < n, 1 / n, 0.0))
    cov = whole + np.diag(np.diag(spread)) / 2 + kept / (2 * (rank - 1))
    return moments(run.drawn.draws, run.problem.mean, cov)


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


def of_its_own(check: Callable[[], Verdict]) -> Callable[[Run], Verdict]:
    """A law with a problem of its own."""
    return lambda run: check()


def dropout() -> Verdict:
    """The mean stochastic gradient is that of Gal and Ghahramani's bound."""
    z, most = dropout_gradient_z(mc_dropout)
    return Verdict(float(z), most, 0.0)


FACTOR = "test_sghmc.py::"
LANGEVIN = of_recursion(constant(lambda run: langevin(5, 5e-4)), lambda run: from_prior(run, False))
MOMENTUM = ("inference.step_size=0.03", "inference.friction=5.0")
SHORT_PATH = (
    schedule(5500, 200, 0, 8),
    "inference.optimizer.learning_rate=0.02",
    "inference.rank=20",
    "inference.collect_after=500",
    "inference.collect_every=25",
    *ALONE,
)
TRAINED = (schedule(0, 300, 0), mode(150))
REVERSIBLE = "test_integrators.py::test_leapfrog_is_reversible"
GUIDE = "test_svi.py::test_log_q_is_the_density_of_the_draw"
MCLACHLAN = "test_mclmc.py::test_mclmc_is_reversible_and_of_second_order"
EXPECTED = "test_laplace.py::test_the_precision_is_the_expected_hessian"
LAWS = {
    "nuts": Law("exact", REVERSIBLE, 64, (schedule(150, 300, 1), *ALONE), posterior),
    "hmc": Law(
        "exact", REVERSIBLE, 64, (schedule(150, 700, 1), "inference.trajectory_length=0.13", *ALONE), posterior
    ),
    "adjusted_mclmc": Law("exact", MCLACHLAN, 64, (schedule(300, 400, 1), *ALONE), posterior),
    "chees": Law("exact", REVERSIBLE, 16, (schedule(150, 100, 1), *ALONE), posterior),
    "smc": Law(
        "exact", REVERSIBLE, 16, (schedule(25, 20, 1), "inference.num_particles=64", *ALONE), posterior
    ),
    "mclmc": Law(
        "symmetric about the mean at any step; its bias in spread falls with the step, which has a test of its own",
        MCLACHLAN, 64, (schedule(1500, 400, 10), *ALONE), centred,
    ),
    "mile": Law(
        "symmetric about the mean at any step; its bias in spread falls with the step, which has a test of its own",
        MCLACHLAN, 64, (schedule(1500, 400, 10), *ALONE), centred,
    ),
    "sgld": Law(
        "own recursion", "test_sgld.py::test_sgld_without_noise_is_gradient_ascent", 64,
        (schedule(20, 250, 40, 8), "inference.step_size=5e-4", *ALONE), LANGEVIN,
    ),
    "sgld_cv": Law(
        "own recursion, from the mode", "test_sgld.py::test_control_variates_are_exact_at_the_anchor", 64,
        (schedule(20, 250, 40, 8), "inference.step_size=5e-4", mode(150)),
        of_recursion(
            constant(lambda run: control_variates(run.problem, 5e-4, run.problem.mean)),
            lambda run: moments_of(run.problem.mean, np.zeros((5, 5))),
        ),
    ),
    "psgld": Law(
        "own recursion, given the frozen preconditioner", "test_sgld.py::test_psgld_without_noise_is_rmsprop", 4,
        (schedule(5, 5, 1, 8), *ALONE), of_its_own(check_frozen_preconditioner),
    ),
    "cyclical_sgld": Law(
        "own recursion at every step of every cycle", "test_schedules.py::test_exploration_has_no_noise", 1400,
        (schedule(30 * CYCLES, 10 * CYCLES, 1, 8), "inference.step_size=1e-3", f"inference.num_cycles={CYCLES}",
         *ALONE),
        of_recursion(cyclical_langevin, lambda run: from_prior(run, False)),
    ),
    "sghmc": Law(
        "own recursion", FACTOR + "test_sghmc_without_noise_is_momentum_descent", 64,
        (schedule(20, 250, 40, 8), *MOMENTUM, *ALONE),
        of_recursion(constant(lambda run: sghmc(5, 0.03, 0.15)), lambda run: from_prior(run, True)),
    ),
    "baoa": Law(
        "own recursion", FACTOR + "test_the_noise_is_the_written_one", 64,
        (schedule(20, 250, 40, 8), *MOMENTUM, *ALONE),
        of_recursion(constant(lambda run: baoa(5, 0.03, 5.0)), lambda run: from_prior(run, True)),
    ),
    "sgnht": Law(
        "equipartition and the virial theorem of its own recursion", FACTOR + "test_the_noise_is_the_written_one", 4,
        (schedule(5, 5, 1, 8), *ALONE), of_its_own(check_thermostat),
    ),
    "cyclical_sghmc": Law(
        "own recursion at every step of every cycle", "test_schedules.py::test_exploration_has_no_noise", 1400,
        (schedule(30 * CYCLES, 10 * CYCLES, 1, 8), "inference.step_size=0.03", "inference.friction=6.6666666666666667",
         f"inference.num_cycles={CYCLES}", *ALONE),
        of_recursion(cyclical_momentum, lambda run: from_prior(run, True)),
    ),
    "svi": Law(
        "variational optimum", GUIDE, 32,
        (schedule(2500, 1000, 0), falling(0.03, 2500), "inference.num_particles=4", *ALONE), mean_field,
    ),
    "svi_lowrank": Law(
        "variational optimum, which is the posterior", GUIDE, 32,
        (schedule(4000, 1000, 0), falling(0.03, 4000), "inference.num_particles=4", "inference.rank=4", *ALONE),
        posterior,
    ),
    "svi_fullrank": Law(
        "variational optimum, which is the posterior", GUIDE, 32,
        (schedule(2500, 1000, 0), falling(0.03, 2500), "inference.num_particles=4", *ALONE), posterior,
    ),
    "svi_flow": Law(
        "a density close to the posterior", GUIDE, 32,
        (schedule(2500, 1000, 0), falling(0.03, 2500), "inference.num_particles=4", *ALONE), evidence,
    ),
    "ivon": Law(
        "variational optimum", "test_ivon.py::test_ivon_log_q_is_the_density_of_the_draw", 64,
        (schedule(6000, 500, 0), "inference.beta2=0.999", "inference.hessian_init=10.0",
         "inference.learning_rate.init_value=0.1", *ALONE),
        mean_field,
    ),
    "laplace": Law("exact on a linear network", EXPECTED, 64, TRAINED, posterior),
    "laplace_lastlayer": Law("exact on a linear network, which is all last layer", EXPECTED, 64, TRAINED, posterior),
    "laplace_diag": Law("variances 1 / diag(precision)", EXPECTED, 64, TRAINED, mean_field),
    "map": Law(
        "mode", "test_point.py::test_map_is_the_plain_optimiser", 4,
        (schedule(3000, 1, 0), falling(0.1, 3000), *ALONE), at_the_mode,
    ),
    "deep_ensemble": Law(
        "mode", "test_point.py::test_a_member_reaches_its_closed_form", 4,
        (schedule(3000, 1, 0), falling(0.1, 3000, "optax.adamw"), *ALONE), at_the_mode,
    ),
    "mc_dropout": Law(
        "stochastic gradients of its bound", "test_point.py::test_dropout_climbs_gal_and_ghahramanis_bound", 4,
        ("network=mlp", "network.width=3", schedule(5, 5, 0, 8)), of_its_own(dropout),
    ),
    "swag": Law(
        "moments of the optimiser's path", "test_swag.py::test_swag_keeps_the_moments_of_the_path", 240,
        SHORT_PATH, path_of_sgd,
    ),
    "multiswag": Law(
        "moments of the optimiser's path", "test_swag.py::test_swag_keeps_the_moments_of_the_path", 240,
        SHORT_PATH, path_of_sgd,
    ),
    "svgd": Law(
        "Stein's equation at rest", "test_svgd.py::test_svgd_moves_along_the_stein_direction", 4,
        (schedule(30000, 1, 0), "inference.optimizer={_target_: optax.sgd, learning_rate: 0.1}",
         "inference.num_particles=6", *ALONE),
        stein,
    ),
}  # fmt: skip


# ---- the tests


def measure(preset: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Verdict, np.ndarray, np.ndarray]:
    """The verdict on the good lanes, and of all lanes the first bad step and whether any draw is not finite."""
    law = LAWS[preset]
    monkeypatch.setattr(loop, "_PROGRAMS", {})  # a mutant has the key of what it mutates
    job, problem = linear_job(path, preset, *law.options, chains=law.chains + POISONED)
    shared, lane, _, _ = arrange([job])
    poisoned = shared.y.copy()
    poisoned[:, ::2] = np.nan  # a batch without one is rare
    both = Shared(np.concatenate([shared.x, shared.x]), np.concatenate([shared.y, poisoned]))
    lane = lane._replace(dataset=(np.arange(len(lane.dataset)) >= law.chains).astype(np.int32))
    drawn = sample(job.program, both, lane, block_seconds=1e9)
    bad = np.min([block.bad_step for block in drawn.blocks], 0)
    lost = ~np.isfinite(drawn.draws.reshape(len(drawn.draws), -1)).all(1)
    kept = [
        block._replace(
            draws=None if block.draws is None else block.draws[: law.chains],
            stats={name: values[: law.chains] for name, values in block.stats.items()},
        )
        for block in drawn.blocks
    ]
    run = Run(problem, job.program.stages[-1].schedule, Outcome(drawn.draws[: law.chains], kept))
    return law.verdict(run), bad, lost


def test_every_preset_has_a_law():
    """A yaml without an entry, and an entry without a yaml."""
    assert sorted(LAWS) == PRESETS


QUICK = ("nuts", "mclmc", "sgld", "sghmc", "svi", "ivon", "laplace", "map", "swag", "svgd")
"""Of most modules one: their kin, and what takes longest, where slow tests run too."""


@pytest.mark.parametrize("preset", mostly(sorted(LAWS), *QUICK))
def test_a_preset_obeys_its_law(preset, tmp_path, monkeypatch):
    """Laws 2 to 4 on the good lanes and, beside them, law 7: every lane with a NaN is found, no other one is."""
    verdict, bad, lost = measure(preset, tmp_path, monkeypatch)
    assert verdict.passes, verdict
    assert (bad[:-POISONED] == NEVER).all()
    assert (bad[-POISONED:] < NEVER).all()
    assert not lost[:-POISONED].any()


@pytest.mark.parametrize("preset", sorted(LAWS))
def test_law_1_has_a_test(preset):
    """The named test of what holds exactly exists."""
    file, name = LAWS[preset].deterministic.split("::")
    tree = ast.parse((Path(__file__).parent / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


# ---- law 5


MUTANTS = {
    "nuts": ("lambda theta: -target.log_density(theta, data)", "lambda theta: -0.8 * target.log_density(theta, data)"),
    "adjusted_mclmc": ("begun.logdensity - kinetic_change", "begun.logdensity"),
    "chees": (
        "lambda theta: target.log_density(theta, data)  # noqa",
        "lambda theta: 0.8 * target.log_density(theta, data)  # noqa",
    ),
    "smc": ("at * target.log_density(theta, data)", "0.8 * at * target.log_density(theta, data)"),
    "mclmc": ("moved.momentum + nu * noise", "moved.momentum + nu * (noise + 0.3)"),
    "sgld": (
        "jnp.sqrt(2 * eps) * noise\n        return State(theta), {",
        "jnp.sqrt(eps) * noise\n        return State(theta), {",
    ),
    "baoa": ("jnp.sqrt(1 - kept**2)", "jnp.sqrt(1 - kept)"),
    "svi_fullrank": (
        "log_q.sum() - target.log_density(theta, data)",
        "0.8 * log_q.sum() - target.log_density(theta, data)",
    ),
    "ivon": ("f = g * away * h * size", "f = g * away * h * size * 1.2"),
    "laplace": ("precision = likelihood + prior", "precision = 1.2 * likelihood + prior"),
    "map": (
        "-grad / data.size)\n        updates, opt_state = optimizer.update(loss_grad, state.optimizer, state.theta)\n        theta = optax.apply_updates(state.theta, updates)\n        return State",
        "-(grad - state.theta) / data.size)\n        updates, opt_state = optimizer.update(loss_grad, state.optimizer, state.theta)\n        theta = optax.apply_updates(state.theta, updates)\n        return State",
    ),
    "swag": ("/ (2 * (rank - 1)) ** 0.5", "/ (rank - 1) ** 0.5"),
    "svgd": ("kernel @ grads + repulsion", "kernel @ grads + 0.9 * repulsion"),
}
"""One expression of each module of methods, changed."""


def module_of(preset: str) -> tuple[str, str]:
    """The module and the name of a preset's factory."""
    module, name = yaml.safe_load((conf_dir() / "inference" / f"{preset}.yaml").read_text())["_target_"].rsplit(".", 1)
    return module, name


def test_every_module_of_methods_has_a_mutant():
    assert {module_of(preset)[0] for preset in MUTANTS} == {module_of(preset)[0] for preset in PRESETS}


@pytest.mark.parametrize("preset", mostly(sorted(MUTANTS), "nuts", "sgld", "svi_fullrank", "laplace"))
def test_a_mutant_does_not_obey_the_law(preset, tmp_path, monkeypatch):
    """The check that passes a preset fails it with one expression changed."""
    module, name = module_of(preset)
    old, new = MUTANTS[preset]
    factory = target_of({"_target_": f"{module}.{name}"}, "inference")
    within = name if preset in ("map", "sgld") else None
    mutant = getattr(mutate(module, old, new, within), name)
    assert factory is not mutant
    monkeypatch.setattr(f"{module}.{name}", mutant)
    verdict, _, _ = measure(preset, tmp_path, monkeypatch)
    assert not verdict.passes, verdict
