"""How the loop cuts and lays out the work changes no bit: blocks, marks, groups of lanes, repetition."""

import numpy as np
import optax
import pytest
from known_posteriors import gaussian, lanes_of, number, nuts_stage, program, rows, sample, stage
from presets import mostly

from bdlbench.inference.point import maximum_a_posteriori
from bdlbench.inference.sgld import sgld
from bdlbench.inference.svi import svi
from bdlbench.sampling import loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.programs import NEVER, Shared
from bdlbench.types import Schedule

PROBLEM = gaussian(3, 5, copies=8)


def stages(name, num_samples=23):
    """A short run of each method; SGLD on batches that do not divide the rows; NUTS after a MAP."""
    map_ = lambda *numbers: stage("map", maximum_a_posteriori, Schedule(1, *numbers), optimizer=optax.adam(0.05))
    return {
        "nuts": (map_(17, 0, 0), nuts_stage(num_samples, 40)),
        "sgld": (stage("sgld", sgld, Schedule(1, 31, num_samples, 3, 7), step_size=0.01, decay=0.6, decay_steps=10.0),),
        "svi": (
            stage(
                "svi",
                svi,
                Schedule(1, 37, num_samples, 0, 7),
                optimizer=optax.adam(0.05),
                guide="mean_field",
                init_scale=0.1,
                num_particles=1,
                rank=None,
            ),
        ),
        "map": (map_(37, min(num_samples, 1), 0),),
    }[name]


METHODS = ("nuts", "sgld", "svi", "map")


def bits(outcome):
    """All results of a run that could depend on the division into blocks."""
    blocks = outcome.blocks
    stats = [b for b in blocks if b.draws is not None]
    return {
        "draws": outcome.draws,
        # In gradients of a batch, which are whole numbers: sums of them do not depend on the order.
        "num_grads": np.round(sum(b.num_grads for b in blocks), 9),
        **{name: np.concatenate([b.stats[name] for b in stats], 1) for name in stats[0].stats},
    }


def same(a, b):
    """Assert that two runs are equal bit by bit."""
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_blocks_and_marks_change_nothing(name):
    """Blocks of single steps, one long block, and blocks that end at marks leave the same bits."""
    one = program(stages(name))
    run = lambda **options: bits(sample(one, rows(PROBLEM), lanes_of(3), **options))
    long = run(block_seconds=1e9)
    assert all(np.isfinite(a).all() for a in long.values())
    same(long, run(block_seconds=0.0))
    same(long, run(block_seconds=1e9, marks=lambda stage, phase: [1, 2, 5, 10, 20]))


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly(METHODS, "nuts", "svi"))
def test_a_chain_does_not_feel_its_neighbours(name):
    """Lanes alone, in a pair and in a group of seven (padded to the devices) have the same bits."""
    one = program(stages(name))
    group = lanes_of(7)
    together = bits(sample(one, rows(PROBLEM), group))
    for some in ([0], [6], [2, 5]):
        part = group._replace(
            key=group.key[np.array(some)],
            dataset=group.dataset[some],
            numbers={n: v[some] for n, v in group.numbers.items()},
        )
        same({n: a[some] for n, a in together.items()}, bits(sample(one, rows(PROBLEM), part)))


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly(METHODS, "sgld", "map"))
def test_a_data_set_of_its_own_changes_nothing(name):
    """A lane has the same bits whether the program has one data set or several."""
    other = gaussian(3, 5, seed=1, copies=8)
    one = program(stages(name))
    alone = bits(sample(one, rows(other), lanes_of(2)))
    both = Shared(np.stack([PROBLEM.x, other.x]), np.stack([PROBLEM.y, other.y]))
    picked = lanes_of(2)._replace(dataset=np.ones(2, np.int32))
    same(alone, bits(sample(one, both, picked)))


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly(METHODS, "sgld", "svi"))
def test_the_same_seed_repeats_and_another_does_not(name):
    """Two compilations with the same keys give the same bits. Other keys give other draws, and all lanes differ."""
    first, again = (bits(sample(program(stages(name)), rows(PROBLEM), lanes_of(3))) for _ in range(2))
    same(first, again)
    other = bits(sample(program(stages(name)), rows(PROBLEM), lanes_of(3, seed=1)))
    assert not np.array_equal(first["draws"], other["draws"])
    assert len({lane.tobytes() for lane in first["draws"]}) == 3


@pytest.mark.slow
def test_more_draws_begin_with_the_same_ones():
    """The number of draws changes none of them, and thinning keeps every k-th state of the same chain. No slot stays empty."""
    plain = lambda samples, thinning: (
        sample(
            program(
                (
                    stage(
                        "sgld", sgld, Schedule(1, 20, samples, thinning, 7), step_size=0.01, decay=0.0, decay_steps=1.0
                    ),
                )
            ),
            rows(PROBLEM),
            lanes_of(2),
        ).draws
    )
    every = plain(60, 1)
    np.testing.assert_array_equal(every[:, :30], plain(30, 1))
    np.testing.assert_array_equal(every[:, 2::3], plain(20, 3))
    assert np.any(every != 0, axis=-1).all()


@pytest.mark.slow
def test_gradients_are_charged():
    """SGLD is charged B / N a step, SVI its particles, and NUTS its leapfrog steps, of every stage."""
    totals = {}
    for name in METHODS:
        outcome = sample(program(stages(name)), rows(PROBLEM), lanes_of(2))
        totals[name] = sum(b.num_grads for b in outcome.blocks)
        if name == "nuts":
            leapfrogs = outcome.stat("n_steps").sum(1)
            sampling = sum(b.num_grads for b in outcome.blocks if b.stage == 1 and b.phase == "sample")
            np.testing.assert_allclose(sampling, leapfrogs)
            first = sum(b.num_grads for b in outcome.blocks if b.stage == 0)
            np.testing.assert_array_equal(first, 17)
    np.testing.assert_allclose(totals["sgld"], (31 + 23 * 3) * 7 / 24, rtol=1e-6)
    np.testing.assert_allclose(totals["svi"], 37 * 7 / 24, rtol=1e-6)
    np.testing.assert_array_equal(totals["map"], 37)


def test_a_lane_that_diverges_is_found_and_the_others_are_not_touched():
    """Law 7: a step size of 1e3 in one of five lanes; its first bad step is reported, the others keep their bits."""
    schedule = Schedule(1, 40, 20, 2)
    step = lambda: stage("sgld", sgld, schedule, step_size=number("step_size"), decay=0.0, decay_steps=1.0)
    one = program((step(),))
    sizes = np.full(5, 0.01, np.float32)
    fine = sample(one, rows(PROBLEM), lanes_of(5, step_size=sizes))
    sizes[3] = 1e3
    blocks = sample(one, rows(PROBLEM), lanes_of(5, step_size=sizes))
    bad = blocks.blocks[-1].bad_step
    assert 0 < bad[3] < 40
    np.testing.assert_array_equal(np.delete(bad, 3), NEVER)
    np.testing.assert_array_equal(np.delete(blocks.draws, 3, 0), np.delete(fine.draws, 3, 0))
    assert not np.isfinite(blocks.draws[3]).any()


def test_the_first_bad_step_is_the_first():
    """Law 7: the reported step is where a log density computed step by step first stops being finite."""
    one = program((stage("sgld", sgld, Schedule(1, 0, 60, 1), step_size=1e3, decay=0.0, decay_steps=1.0),))
    lane = lanes_of(2)
    blocks = list(loop.run(one, rows(PROBLEM), lane, clock=Clock(), block_seconds=0.0))
    log_density = np.concatenate([b.stats["log_density"] for b in blocks], 1)
    reported = blocks[-1].bad_step
    first = np.argmax(~np.isfinite(log_density), 1)
    np.testing.assert_array_equal(reported, first)
    assert len(blocks) == first.max() + 1, "the loop ends when every lane has failed"


@pytest.mark.parametrize(("num_warmup", "first"), [(500, 5), (1_000_000, 100)])
def test_the_first_block_is_short(num_warmup, first):
    """How long a step takes is not known before it: a hundredth of the steps, and 100 at most, stand in the way of
    a signal."""
    one = program((stage("sgld", sgld, Schedule(1, num_warmup, 1, 1), step_size=0.01, decay=0.0, decay_steps=1.0),))
    blocks = loop.run(one, rows(PROBLEM), lanes_of(2), clock=Clock())
    assert next(blocks).steps_done == first
    blocks.close()


def test_steps_after_the_first_bad_one_cost_nothing():
    """In a long block too: a chain is charged up to the step at which its log density stops being finite."""
    one = program((stage("sgld", sgld, Schedule(1, 0, 60, 1), step_size=1e3, decay=0.0, decay_steps=1.0),))
    # The first block has one step, from which the loop knows the rate; the second has all others.
    blocks = list(loop.run(one, rows(PROBLEM), lanes_of(2), clock=Clock(), block_seconds=1e9, marks=lambda *_: [60]))
    assert len(blocks) == 2
    bad = np.min([block.bad_step for block in blocks], axis=0)
    assert (bad < 60).all()
    np.testing.assert_array_equal(np.sum([block.num_grads for block in blocks], axis=0), bad + 1)
