"""Lanes meet hardware here and nowhere else.

What runs side by side is one axis: jobs x chains. On a CPU lanes are sharded over host devices, one a core, and taken
one after another within each, so that a lane's bits do not depend on its neighbours. On an accelerator they are
vmapped within each device.
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
"""Compiler options for steps of many small operations on a CPU. The backend's threads split the work where more than
eight operations are ready, whatever their size, and a minibatch step pays for it with as much as its gradient costs
(47 us of CPU time against 28). Ordered for memory, fewer are ready at a time."""


@functools.cache
def mesh() -> Mesh:
    """All devices in a row. On a CPU there are at least two, so that a solo run and a sweep compile alike."""
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
    """Whether lanes of one device are taken one after another (CPU) or vmapped (accelerator)."""
    return jax.default_backend() == "cpu"


def padded(num_lanes: int) -> int:
    """The number of lanes that fills every device equally."""
    size = mesh().size
    return -(-num_lanes // size) * size


def over_lanes(
    function: Callable[..., Any], num_shared: int = 1, donate: tuple[int, ...] = (), *, small: bool = False
) -> Any:
    """Jit ``function(*shared, *lane)`` over lanes: the first ``num_shared`` arguments are replicated, the others carry
    the lane axis in front, as do all results. ``small`` says that it is made of many small operations.
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
    """Pad the leading axis of every leaf to fill the devices (by repeating the last lane) and shard it over them."""

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
    """Put a copy of every leaf on every device; what lies there already is left as it is."""
    everywhere = NamedSharding(mesh(), P())

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and leaf.sharding == everywhere:
            return leaf
        return jax.device_put(np.asarray(leaf), everywhere)

    return jax.tree.map(one, tree)


def first_of(lane: Any) -> Any:
    """The first of several lanes, still with the lane axis: of one job's lanes, whose numbers and data are the same."""
    return jax.tree.map(lambda leaf: leaf[:1], lane)


def fetch(tree: Any, num_lanes: int) -> Any:
    """Copy results to the host without the padding."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:num_lanes], jax.block_until_ready(tree))


def active(num_lanes: int) -> np.ndarray:
    """Which of the padded lanes are real."""
    return np.arange(padded(num_lanes)) < num_lanes


def where_active(is_active: jax.Array, compute: Callable[[], Any]) -> Any:
    """What ``compute`` gives; zeros for a padding lane where that saves time."""
    if not sequential():
        return compute()
    shapes = jax.eval_shape(compute)
    return jax.lax.cond(is_active, compute, lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))


def steps_here(num_steps: jax.Array, is_active: jax.Array) -> jax.Array:
    """Padding lanes take no step where that saves time; under vmap a per-lane count would only cost selects."""
    return jnp.where(is_active, num_steps, 0) if sequential() else num_steps
