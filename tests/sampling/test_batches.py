"""Minibatches: each row once an epoch, uniform orders, and gradients whose mean is the whole gradient."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax import random
from known_posteriors import FAMILY_WISE
from presets import mostly
from small_networks import network_target

from bdlbench.sampling.batches import check, permute, rows_of_step
from bdlbench.types import ConfigError, Data, Schedule


@pytest.mark.slow
@pytest.mark.parametrize(("num_rows", "batch"), [(24, 8), (24, 24), (24, 7), (25, 10), (23, 1)])
@pytest.mark.usefixtures("x64")
def test_minibatch_gradients_average_to_the_full_gradient(num_rows, batch):
    """Over a cycle of whole epochs, tempered or not, the mean is exact but for rounding: 1e-5 asked, 1e-12 given."""
    schedule = Schedule(1, 0, 1, 1, batch, "epoch")
    steps = num_rows // np.gcd(num_rows, batch)
    target, data = network_target(num_rows, temperature=0.5)
    theta = target.sample_prior(random.key(4))
    index = jax.vmap(lambda t: rows_of_step(random.key(5), t, num_rows, schedule))(jnp.arange(steps))
    grads = jax.vmap(lambda i: target.value_and_grad(theta, Data(data.x[i], data.y[i], num_rows))[1])(index)
    full = target.value_and_grad(theta, data)[1]
    np.testing.assert_allclose(grads.mean(0), full, rtol=1e-5, atol=1e-5 * float(jnp.abs(full).max()))


# ---- minibatches


@pytest.mark.slow
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 7, 16, 17, 100, 101, 320, 353, 1021, 4097, 45_730])
def test_permute_is_a_bijection(num_rows):
    """For several keys each row occurs once, and different keys give different orders."""
    orders = [np.asarray(permute(random.key(seed), jnp.arange(num_rows), num_rows)) for seed in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(num_rows))
    if num_rows > 16:
        assert not (orders[0] == orders[1]).all()


@pytest.mark.parametrize("num_rows", mostly([2, 3, 5, 8, 13, 30, 64, 65, 72, 90], 2, 13, 72))
def test_permute_is_uniform(num_rows):
    """Over 200,000 keys each position's image is uniform, and so is the pair of images of two positions.

    Chi-square limits at the family-wise level; N images, N (N - 1) pairs.
    """
    num_keys, pairs = 200_000, list(itertools.pairwise(range(num_rows)))[:30]
    keys = jax.vmap(lambda i: random.fold_in(random.key(9), i))(jnp.arange(num_keys))
    images = np.asarray(jax.jit(jax.vmap(lambda k: permute(k, jnp.arange(num_rows), num_rows)))(keys))
    num_tests = num_rows + len(pairs)
    for position in range(num_rows):
        counts = np.bincount(images[:, position], minlength=num_rows)
        most = scipy.stats.chi2.isf(FAMILY_WISE / num_tests, num_rows - 1)
        assert scipy.stats.chisquare(counts).statistic <= most, position
    if num_rows > 2:
        for first, second in pairs:
            counts = np.bincount(images[:, first] * num_rows + images[:, second], minlength=num_rows**2)
            counts = counts.reshape(num_rows, num_rows)[~np.eye(num_rows, dtype=bool)]
            most = scipy.stats.chi2.isf(FAMILY_WISE / num_tests, num_rows * (num_rows - 1) - 1)
            assert scipy.stats.chisquare(counts).statistic <= most, (first, second)


@pytest.mark.slow
@pytest.mark.parametrize(("num_rows", "size"), [(12, 4), (12, 5), (12, 12), (13, 1), (10, 7), (353, 32), (7, 6)])
def test_each_epoch_sees_each_row_once(num_rows, size):
    """Successive batches form one permutation of the rows in each epoch, also if B does not divide N."""
    schedule = Schedule(1, 0, 1, 1, size, "epoch")
    epochs = 2 * size
    steps = num_rows * epochs // size
    seen = jax.jit(jax.vmap(lambda t: rows_of_step(random.key(1), t, num_rows, schedule)))(jnp.arange(steps))
    assert seen.shape == (steps, size)
    laid = np.asarray(seen).reshape(epochs, num_rows)
    np.testing.assert_array_equal(np.sort(laid, 1), np.tile(np.arange(num_rows), (epochs, 1)))
    if num_rows > 9:
        assert len({tuple(order) for order in laid}) == epochs


def test_iid_batches_are_uniform():
    """Rows with replacement: counts over all positions and steps are multinomial."""
    schedule = Schedule(1, 0, 1, 1, 5, "iid")
    seen = jax.jit(jax.vmap(lambda t: rows_of_step(random.key(1), t, 13, schedule)))(jnp.arange(40_000))
    counts = np.bincount(np.asarray(seen).ravel(), minlength=13)
    assert scipy.stats.chisquare(counts).statistic <= scipy.stats.chi2.isf(FAMILY_WISE, 12)


@pytest.mark.parametrize("size", [0, 101])
def test_a_batch_larger_than_the_data_is_refused(size):
    """Batches that are larger than the data, and empty batches, are refused."""
    with pytest.raises(ConfigError, match=f"batch_size={size} does not fit 100"):
        check(Schedule(1, 0, 1, 1, size), 100)


def test_a_batch_whose_counter_would_overflow_is_refused():
    """B N / gcd(B, N) positions must fit 32 bits."""
    check(Schedule(1, 0, 1, 1, 4096), 2**20)
    with pytest.raises(ConfigError, match="overflows"):
        check(Schedule(1, 0, 1, 1, 4099), 2**20 + 1)
