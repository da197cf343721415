"""What an import costs, and what it leaves alone."""

import subprocess
import sys

import bdlbench

LOOK = """
import sys, bdlbench
assert not {"jax", "flax", "numpyro", "hydra", "pandas", "sklearn"} & set(sys.modules), "imported at once"
assert {"fit", "load", "score_table", "Posterior", "Prediction"} <= set(dir(bdlbench))
"""


def test_the_import_alone_takes_nothing_with_it():
    """Neither JAX, of which no setting can then change, nor anything else that takes long."""
    subprocess.run([sys.executable, "-c", LOOK], check=True)


def test_names_are_found_and_others_are_not():
    """As a module of its own would have them."""
    from bdlbench import api

    assert bdlbench.fit is api.fit
    assert not hasattr(bdlbench, "fitt")
