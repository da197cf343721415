"""bdlbench compares inference methods for Bayesian neural networks.

One model, one loop, one price list, every run kept. See ``docs/architecture.md`` for the house and its reasons, and
``docs/python.md`` for the use from Python: ``fit``, ``load`` and ``score_table``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdlbench.api import Posterior, Prediction, fit, load, score_table

__version__ = "0.1.0"
__all__ = ["Posterior", "Prediction", "fit", "load", "score_table"]


def __getattr__(name: str) -> Any:
    # What needs JAX and Flax is imported when it is used: `import bdlbench` alone stays quick.
    if name in __all__:
        return getattr(importlib.import_module("bdlbench.api"), name)
    raise AttributeError(f"module 'bdlbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
