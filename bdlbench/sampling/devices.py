"""The devices, the precision and the compilation cache of a process."""

import functools
import os

import jax

from bdlbench.sampling import lanes


@functools.cache
def setup_jax() -> None:
    """Devices, precision and the compilation cache, once a process and before JAX is used."""
    lanes.mesh()
    # TF32, the default of recent GPUs, breaks Metropolis acceptance.
    jax.config.update("jax_default_matmul_precision", "float32")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        import platformdirs

        jax.config.update("jax_compilation_cache_dir", platformdirs.user_cache_dir("bdlbench") + "/xla")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
