"""Set the devices, the precision and the compilation cache of JAX."""

import contextlib
import os
from collections.abc import Iterator

import jax

from bdlbench.sampling import lanes
from bdlbench.types import Precision


def setup_jax() -> None:
    """Set the devices, the precision and the compilation cache of JAX for the whole process.

    The number of devices can be set only before JAX is used for the first time.
    """
    lanes.mesh()
    _settings()


def _settings() -> None:
    # TF32, the default of recent GPUs, breaks Metropolis acceptance.
    jax.config.update("jax_default_matmul_precision", "float32")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        import platformdirs

        jax.config.update("jax_compilation_cache_dir", platformdirs.user_cache_dir("bdlbench") + "/xla")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


SETTINGS = (
    "jax_default_matmul_precision",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
"""The settings of JAX that :func:`setup_jax` changes, apart from the devices."""


@contextlib.contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """Make JAX compute in ``float32`` or ``float64`` inside this context, for any value of ``jax_enable_x64`` outside.

    The setting is local to the thread and ends with the context, so that runs of both precisions may follow each other
    in one process.
    """
    with jax.enable_x64(precision == "float64"):
        yield


@contextlib.contextmanager
def settings(precision: Precision = "float32") -> Iterator[None]:
    """Apply the settings of :func:`setup_jax` and a precision inside this context, and restore the caller's afterwards.

    It is for code that a user calls as a library: the user's own computations keep their precision and their cache.
    Only the number of devices is not restored, because it can be set only once in a process.
    """
    from jax.experimental.compilation_cache import compilation_cache

    before = {name: getattr(jax.config, name) for name in SETTINGS}
    lanes.mesh()
    _settings()
    changed = jax.config.jax_compilation_cache_dir != before["jax_compilation_cache_dir"]
    if changed:  # JAX reads the setting of the folder only once
        compilation_cache.reset_cache()
    try:
        with computing_in(precision):
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        if changed:
            compilation_cache.reset_cache()
