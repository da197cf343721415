"""bdlbench compares inference methods for Bayesian neural networks.

All methods use the same models and the same sampling loop, their costs are counted in the same units, and every run is
stored. ``docs/architecture.md`` describes the parts of the package and the reasons for them. ``docs/python.md`` shows
the use from Python: ``fit``, ``load`` and ``score_table``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdlbench.api import Posterior, Prediction, fit, load, score_table

__version__ = "0.1.0"
__all__ = ["Posterior", "Prediction", "fit", "load", "score_table"]


def __getattr__(name: str) -> Any:
    # Functions that need JAX and Flax are imported when they are first used, so that `import bdlbench` is fast.
    if name in __all__:
        return getattr(importlib.import_module("bdlbench.api"), name)
    raise AttributeError(f"module 'bdlbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
