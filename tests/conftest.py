"""Before anything of the library is imported: shapes checked at run time, devices as in a run, a compilation cache.

Every function of the library runs under jaxtyping's import hook with beartype, so an argument or result whose type or
shape is not what its annotation says fails the test that passed it.
"""

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning

# Compiled programs are kept between sessions: the tests compile some hundred, a second and more each. Subprocesses too.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))

jaxtyping.install_import_hook("bdlbench", "typechecking.checked")

with warnings.catch_warnings():
    # OmegaConf's DictConfig, an annotation of the library, derives from typing's deprecated MutableMapping.
    warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
    from bdlbench.sampling.devices import setup_jax


def pytest_configure(config: pytest.Config) -> None:
    """Make the devices before the first JAX computation, as a run does: at least two on a CPU."""
    ignored = BeartypeDecorHintPep585DeprecationWarning
    config.addinivalue_line("filterwarnings", f"ignore::{ignored.__module__}.{ignored.__name__}")
    setup_jax()


QUICK = (
    "metrics/",
    "report/test_tables.py",
    "runs/test_progress.py",
    "store/test_arrays.py",
    "store/test_runs.py",
    "test_design.py",
    "test_signals.py",
)
"""Files whose tests compile nothing: ``make test-quick`` runs them beside tests that are marked ``quick``."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests as quick by their file. Single tests of other files are marked in these files."""
    folder = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(folder).as_posix()
        if place.startswith(QUICK) and "slow" not in item.keywords:
            item.add_marker(pytest.mark.quick)
        if "slow" in item.keywords and re.search("mutant|caught", item.name.split("[")[0]):
            item.add_marker(pytest.mark.long)


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """The path for the runs of a test: a store that does not exist yet."""
    return tmp_path / "store"


@pytest.fixture
def x64() -> Iterator[None]:
    """Use double precision in one test."""
    import jax

    with jax.enable_x64(True):
        yield
