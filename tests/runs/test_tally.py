"""From blocks to a tally: lanes and populations are cut apart once, and what has been gathered can be put down and taken up."""

import numpy as np
import pytest

from bdlbench.metrics.diagnostics import psis_khat
from bdlbench.metrics.mixture import PredictiveMixture
from bdlbench.runs import configuration
from bdlbench.runs.job import make_job
from bdlbench.runs.look import Look, as_chains, look_at
from bdlbench.runs.record import common_fields, failed_record
from bdlbench.runs.scores import detection
from bdlbench.runs.tally import Tally
from bdlbench.sampling.loop import Block
from bdlbench.sampling.programs import NEVER

LANES, DRAWS, PARTICLES, ROWS, DIM = 6, 8, 3, 5, 2
OWN = slice(2, 4)


def group_block(population: int, *, bad: int | None = None) -> tuple[Block, dict[str, np.ndarray]]:
    """A block of draws of six lanes with predictions at five rows; lane 2 is lost before draw ``bad``."""
    rng = np.random.default_rng(population)
    shape = (LANES, DRAWS, DIM) if population == 1 else (LANES, DRAWS, population, DIM)
    flat = (LANES, DRAWS * population, ROWS)
    predicted = {"log_lik": rng.normal(size=flat), "mean": rng.normal(size=flat), "variance": rng.uniform(1, 2, flat)}
    bad_step = np.full(LANES, NEVER)
    if bad is not None:
        bad_step[2] = 10 + 2 * bad  # ten steps of warm-up, two a draw
    stats = {"energy": rng.normal(size=(LANES, DRAWS)), "reached_max_treedepth": np.ones((LANES, DRAWS), bool)}
    block = Block(
        stage=0, phase="sample", steps_done=10 + 2 * DRAWS, first_draw=0, draws=rng.normal(size=shape), stats=stats,
        num_grads=np.ones(LANES), num_diverging=np.zeros(LANES, int), bad_step=bad_step, seconds=1.0, provisional=None,
        anchor=None,
    )  # fmt: skip
    return block, predicted


def own_look(population: int, **options) -> Look:
    block, predicted = group_block(population, **options)
    return look_at(block, OWN, 2, {}, {"": predicted})


def test_particles_are_followed_through_the_draws():
    """Row c P + p of a look holds particle p of chain c, draw after draw."""
    block, predicted = group_block(PARTICLES)
    look = look_at(block, OWN, 2, {}, {"": predicted})
    assert look.good.shape == look.shown.shape == (2 * PARTICLES, DRAWS) and look.shown.all()
    for chain in range(2):
        for particle in range(PARTICLES):
            found = look.predictions[""]["mean"][chain * PARTICLES + particle]
            np.testing.assert_array_equal(found, predicted["mean"][2 + chain, particle::PARTICLES])
    assert as_chains(predicted["mean"], 1) is predicted["mean"]


@pytest.mark.parametrize("population", [1, PARTICLES])
def test_draws_after_a_bad_step_do_not_count(population):
    """The chain of lane 2 is lost at the step that leads to draw 5: draws 0 to 4 are good, for each of its particles."""
    good = own_look(population, bad=5).good
    assert good[:population].sum(1).tolist() == [5] * population
    assert good[population:].all()


def test_only_the_draws_of_good_chains_are_pooled():
    """The mean of a mixture is that of the draws that are shown, to the rounding of sums in double precision."""
    look = own_look(PARTICLES, bad=5)
    mixture = PredictiveMixture()
    look.pool("", mixture)
    assert mixture.num_draws == look.shown.sum() < look.shown.size
    expected = look.predictions[""]["mean"][look.shown].mean(0)
    np.testing.assert_allclose(mixture.ingredients()["mean"], expected, rtol=1e-12, atol=1e-13)


def test_what_is_unknown_is_the_variance_of_the_mean():
    """Rows of large noise on which all draws agree are no out-of-distribution rows, and rows of disagreement are."""
    draws = np.array([[-1.0], [1.0]]) * np.ones((2, ROWS))
    inside, outside = PredictiveMixture(), PredictiveMixture()
    for mixture, mean, noise in ((inside, 0.1 * draws, 9.0), (outside, draws, 1.0)):
        mixture.update({"log_lik": draws, "mean": mean, "variance": np.full((2, ROWS), noise)})
    assert detection(inside, outside, "regression")["auroc"] == 1.0


@pytest.mark.parametrize("population", [1, PARTICLES])
def test_a_tally_that_is_put_down_goes_on_as_if_it_had_not_been(population):
    """State and restore after the first of two looks: all that is gathered is equal, array by array."""
    block, predicted = group_block(population, bad=5)
    first = look_at(block, OWN, 2, {}, {"": predicted})
    second = first._replace(first_draw=DRAWS)
    one, other = (Tally(2, ["shifted"], gaussian=True) for _ in range(2))
    one.charge(block.of(OWN), 20, last=True)
    one.add(first)
    other.restore(one.state())
    for tally in (one, other):
        tally.add(second)
    found, expected = other.state(), one.state()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    assert one.row_grads == {"warmup": 0, "sample": 40} and one.drawn == 2 * DRAWS
    assert one.num_draws + one.num_nonfinite == 2 * 2 * population * DRAWS
    assert one.capped == {"reached_max_treedepth": 2 * 2 * DRAWS}
    assert one.sound_chains() == list(range(population, 2 * population))


def test_nothing_of_a_block_belongs_to_two_jobs():
    """The blocks of a group's jobs, side by side, are the group's."""
    block, _ = group_block(1)
    parts = [block.of(slice(i, i + 2)) for i in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate([part.draws for part in parts]), block.draws)
    np.testing.assert_array_equal(np.concatenate([part.stats["energy"] for part in parts]), block.stats["energy"])
    np.testing.assert_array_equal(np.concatenate([part.bad_step for part in parts]), block.bad_step)


def test_a_failed_record_has_the_common_fields_whoever_asks_for_it(tmp_path):
    """Without seconds, with those of a group, and with the jobs that shared its memory: the same fields."""
    small = ["data=cosine_gap", "data.n_cluster=10", "data.n_test=4", "network.width=3", f"store.path={tmp_path}"]
    job = make_job(*configuration.compose([*small, "inference=hmc", "inference.schedule.num_chains=2"]))
    alone = failed_record(job, OSError("no disk"))
    shared = failed_record(job, OSError("no disk\nat all"), {"sample": 2.0}, 3, [job])
    assert alone.keys() == shared.keys() == {*common_fields(job, {}, 1), "status", "reason", "traceback", "metrics"}
    assert alone["reason"] == shared["reason"] == "OSError: no disk" and alone["status"] == "failed"
    assert alone["seconds"] == dict.fromkeys(("setup", "compile", "warmup", "sample", "predict"), 0.0)
    assert shared["seconds"]["sample"] == 2.0 and (alone["lanes"], shared["lanes"]) == (2, 6)
    assert (alone["id"], alone["config"]) == (job.id, dict(job.config))


def test_gradients_of_earlier_stages_are_those_of_warm_up():
    """A block of sampling in a stage before the last is no sampling, and a chain that is lost costs nothing more."""
    block, _ = group_block(1)
    own = block.of(OWN)._replace(bad_step=np.array([NEVER, 12]))
    tally = Tally(2, [], gaussian=True)
    tally.charge(own, 20, last=False)
    assert tally.row_grads == {"warmup": 40, "sample": 0} and tally.bad == {1: (12, "sample", 0)}
    tally.charge(own, 20, last=True)
    assert tally.row_grads == {"warmup": 40, "sample": 20}


def test_the_largest_khat_of_the_chains_counts():
    """Ratios p / q of one chain are all equal, whose k-hat is minus infinity; those of the other follow Pareto's law."""
    heavy = np.log(np.random.default_rng(0).pareto(1.0, 400) + 1)  # of shape 1
    one, block = Tally(2, [], gaussian=True), own_look(1)
    log_q = np.linspace(-1, 1, 400)
    stats = {"log_density": log_q + np.stack([np.zeros(400), heavy]), "log_q": np.stack([log_q, log_q])}
    every = np.ones((2, 400), bool)
    one.add(block._replace(good=every, shown=every, stats=stats, predictions={}))
    assert one.khat(400) == pytest.approx(psis_khat(heavy), rel=1e-9) and 0.6 < psis_khat(heavy) < 1.4
    assert psis_khat(np.zeros(400)) == -np.inf
