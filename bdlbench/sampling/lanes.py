"""Distribute lanes over the devices. No other module does this.

The lanes of a program form one axis, jobs x chains. On a CPU they are sharded over host devices, one for each core, and
each device computes its lanes one after another, so that the bits of a lane do not depend on the other lanes. On an
accelerator the lanes of each device are vmapped.
"""

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "lane"
FEW_AT_A_TIME = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
"""Compiler options for steps of many small operations on a CPU. If more than eight operations are ready, the backend
divides them between threads, whatever their size. For a minibatch step this takes about as long as the gradient itself
(47 us of CPU time in place of 28). The order that saves memory has fewer operations ready at a time."""


@functools.cache
def mesh() -> Mesh:
    """Return the mesh of all devices, with the one axis ``AXIS``.

    A CPU has at least two devices, so that single runs and sweeps compile the same program.
    """
    try:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update("jax_num_cpu_devices", max(2, cores))
    except RuntimeError:
        if jax.default_backend() == "cpu" and jax.device_count() < 2:
            warnings.warn(
                "JAX was already initialised with one CPU device: chains run one after another. "
                "Call bdlbench before any other JAX computation to use all cores.",
                stacklevel=2,
            )
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def sequential() -> bool:
    """Whether the lanes of a device are computed one after another (CPU) and not vmapped (accelerator)."""
    return jax.default_backend() == "cpu"


def padded(num_lanes: int) -> int:
    """Return the smallest number of lanes, at least ``num_lanes``, that is a multiple of the number of devices."""
    size = mesh().size
    return -(-num_lanes // size) * size


def over_lanes(
    function: Callable[..., Any], num_shared: int = 1, donate: tuple[int, ...] = (), *, small: bool = False
) -> Any:
    """Compile ``function(*shared, *lane)``, which is written for one lane, for all lanes.

    Parameters
    ----------
    function : callable
        It gets the shared arguments, and the arguments of one lane.
    num_shared : int
        The number of shared arguments, which come first and are replicated on all devices. All other arguments and all
        results have the lane axis first.
    donate : tuple of int
        The indices of arguments whose buffers the results may reuse.
    small : bool
        Whether the function consists of many small operations, see ``FEW_AT_A_TIME``.
    """

    def device_part(*args: Any) -> Any:
        shared, lane = args[:num_shared], args[num_shared:]
        one = lambda lane: function(*shared, *lane)  # noqa: E731
        return jax.lax.map(one, lane) if sequential() else jax.vmap(one)(lane)

    def sharded(*args: Any) -> Any:
        specs = (P(),) * num_shared + (P(AXIS),) * (len(args) - num_shared)
        return jax.shard_map(device_part, mesh=mesh(), in_specs=specs, out_specs=P(AXIS), check_vma=False)(*args)

    options = FEW_AT_A_TIME if small and sequential() else None
    return jax.jit(sharded, donate_argnums=donate, compiler_options=options)


def place(tree: Any) -> Any:
    """Pad the first axis of every leaf to :func:`padded` lanes with copies of the last lane, and shard it."""

    def one(leaf: Any) -> Any:
        typed = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        host = np.asarray(jax.random.key_data(leaf)) if typed else np.asarray(leaf)
        extra = padded(host.shape[0]) - host.shape[0]
        if extra:
            host = np.concatenate([host, np.repeat(host[-1:], extra, 0)])
        placed = jax.device_put(host, NamedSharding(mesh(), P(AXIS)))
        return jax.random.wrap_key_data(placed) if typed else placed

    return jax.tree.map(one, tree)


def replicate(tree: Any) -> Any:
    """Put a copy of every leaf on every device. Leaves that are replicated already are not copied again."""
    everywhere = NamedSharding(mesh(), P())

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and leaf.sharding == everywhere:
            return leaf
        return jax.device_put(np.asarray(leaf), everywhere)

    return jax.tree.map(one, tree)


def first_of(lane: Any) -> Any:
    """Return the first lane, with a lane axis of length 1. The lanes of one job share numbers and data."""
    return jax.tree.map(lambda leaf: leaf[:1], lane)


def fetch(tree: Any, num_lanes: int) -> Any:
    """Copy results to the host, without the padding lanes."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:num_lanes], jax.block_until_ready(tree))


def active(num_lanes: int) -> np.ndarray:
    """Return a mask (padded lanes,) that is False for padding lanes."""
    return np.arange(padded(num_lanes)) < num_lanes


def where_active(is_active: jax.Array, compute: Callable[[], Any]) -> Any:
    """Return ``compute()``. For a padding lane on a CPU return zeros without computing."""
    if not sequential():
        return compute()
    shapes = jax.eval_shape(compute)
    return jax.lax.cond(is_active, compute, lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))


def steps_here(num_steps: jax.Array, is_active: jax.Array) -> jax.Array:
    """Return ``num_steps``, or 0 for a padding lane on a CPU.

    Under vmap all lanes take as many steps as the longest, so that a count for each lane would save nothing.
    """
    return jnp.where(is_active, num_steps, 0) if sequential() else num_steps
