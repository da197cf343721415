"""Where a sweep's batches of lanes are computed: here, in processes of this machine, by SLURM, or by Ray.

One batch is one task of an executor, so that a cluster job fills its device with lanes. An executor knows nothing of runs
or stores: it is handed a function and its arguments, and tells what each call came to.
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
"""Name of each executor and its class; its keyword-only parameters are the options ``hydra.launcher.<name>.*``."""


def make_executor(name: str, options: Mapping[str, Any]) -> Executor:
    """The executor ``hydra.launcher.executor=<name>``.

    Raises
    ------
    ConfigError
        For an unknown executor, an option that does not fit, or a package that is not installed.
    """
    if name not in EXECUTORS:
        raise ConfigError(f"hydra.launcher.executor={name!r} is unknown: use {', '.join(EXECUTORS)}.")
    module, _, title = EXECUTORS[name].rpartition(".")
    kind = getattr(importlib.import_module(module), title)
    node = {"_target_": f"the executor {name}", **options}
    given = coerced(node, f"hydra.launcher.{name}", kind)
    return kind(**{key: value for key, value in given.items() if key != "_target_"})
