"""The import of bdlbench is fast and changes no setting of the process."""

import subprocess
import sys

import pytest

import bdlbench

LOOK = """
import sys, bdlbench
assert not {"jax", "flax", "numpyro", "hydra", "pandas", "sklearn"} & set(sys.modules), "imported at once"
assert {"fit", "load", "score_table", "Posterior", "Prediction"} <= set(dir(bdlbench))
"""


def test_the_import_alone_takes_nothing_with_it():
    """The import loads neither JAX, whose settings could then not be changed, nor any other slow library."""
    subprocess.run([sys.executable, "-c", LOOK], check=True)


@pytest.mark.slow
def test_api_and_scikit_learn_change_no_setting_of_jax():
    """Importing all parts starts no device and changes no precision, cache or x64 setting.

    A fit restores all of them.
    """
    code = """
import jax
names = ["jax_enable_x64", "jax_default_matmul_precision", "jax_compilation_cache_dir", "jax_num_cpu_devices",
         "jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes"]
before = {name: getattr(jax.config, name) for name in names}
import bdlbench, bdlbench.sklearn
bdlbench.fit, bdlbench.load
from jax._src import xla_bridge

import pytest
assert not xla_bridge._backends, "an import started JAX"
assert {name: getattr(jax.config, name) for name in names} == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_found_and_others_are_not():
    """Names that are imported lazily are found, and unknown names raise AttributeError, as in any module."""
    from bdlbench import api

    assert bdlbench.fit is api.fit
    assert not hasattr(bdlbench, "fitt")
