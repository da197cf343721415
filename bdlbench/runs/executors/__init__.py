"""Executors compute the batches of lanes of a sweep: in this process, in worker processes, with SLURM or with Ray.

One batch is one task of an executor, so that each cluster job computes many lanes on its device. An executor does not
depend on runs or stores. It gets a function and a list of arguments, and returns the result or the error of each call.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from bdlbench.errors import ConfigError
from bdlbench.options import coerced
from bdlbench.runs.executors.base import Executor

EXECUTORS = {
    "local": "bdlbench.runs.executors.local.Local",
    "processes": "bdlbench.runs.executors.processes.Processes",
    "slurm": "bdlbench.runs.executors.slurm.Slurm",
    "ray": "bdlbench.runs.executors.ray.Ray",
}
"""The class of each executor by name. Its keyword-only parameters are the options ``hydra.launcher.<name>.*``."""


def make_executor(name: str, options: Mapping[str, Any]) -> Executor:
    """Make the executor that ``hydra.launcher.executor=<name>`` chooses.

    Raises
    ------
    ConfigError
        If the executor is unknown or an option does not fit.
    """
    if name not in EXECUTORS:
        raise ConfigError(f"hydra.launcher.executor={name!r} is unknown: use {', '.join(EXECUTORS)}.")
    module, _, title = EXECUTORS[name].rpartition(".")
    kind = getattr(importlib.import_module(module), title)
    node = {"_target_": f"the executor {name}", **options}
    given = coerced(node, f"hydra.launcher.{name}", kind)
    return kind(**{key: value for key, value in given.items() if key != "_target_"})
