"""The Hydra launcher that turns a sweep into lanes, and a sweeper that does not compose every job twice."""

import atexit
import copy
import functools
import itertools
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bdlbench.options import at_least, coerce
from bdlbench.runs.executors import make_executor
from bdlbench.runs.outcome import Outcome, sentence

OUTCOME: list[Outcome] = []
"""Where a sweep's results go: the command line puts its own outcome here before Hydra starts."""


@functools.cache
def scratch() -> str:
    """A folder of this process's own, readable by its user alone, for what Hydra insists on writing."""
    folder = tempfile.mkdtemp(prefix="bdlbench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# With the plugin, so that a worker process of any launcher has it too.
OmegaConf.register_new_resolver("bdlbench.scratch", scratch, replace=True)


def collect(returns: Iterable[JobReturn]) -> None:
    """Take over what jobs of another launcher came to, perhaps in processes of their own."""
    for returned in returns:
        if isinstance(returned.return_value, Outcome) and OUTCOME:
            OUTCOME[-1].add(returned.return_value)


class GridSweeper(BasicSweeper):
    """Hydra's basic sweeper without its trial composition of each job, which costs a tenth of a second a job."""

    def __init__(self, max_batch_size: int | None, params: Mapping[str, str] | None) -> None:
        # Hydra executes its plugins' modules anew while it looks for them, which breaks the parent's super().
        self.max_batch_size, self.params = max_batch_size, dict(params or {})
        self.overrides = None
        self.batch_index = 0
        self.hydra_context = self.config = self.launcher = None

    def sweep(self, arguments: list[str]) -> Any:
        """Hydra's own sweep; what jobs of other launchers came to in their processes is kept, too."""
        returns = super().sweep(arguments)
        collect(itertools.chain.from_iterable(returns))
        return returns

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """The launcher composes each job, and reports those that cannot be."""


class LanesLauncher(Launcher):
    """Takes all jobs of a multirun, skips what the store has, and runs each group of equal programs as lanes.

    Parameters
    ----------
    max_lanes : int
        Jobs x chains in one program at most.
    executor : str
        Where batches of lanes are computed, see :mod:`bdlbench.runs.executors`.
    processes, slurm, ray : mapping
        The options of the executor of that name.
    """

    def __init__(self, max_lanes: int, executor: str, **options: DictConfig) -> None:
        max_lanes = coerce("hydra.launcher.max_lanes", max_lanes, int)
        at_least("hydra.launcher", 1, max_lanes=max_lanes)
        self.max_lanes, self.executor = max_lanes, executor
        self.options = {name: OmegaConf.to_container(given, resolve=True) for name, given in options.items()}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra once a command."""
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; what they came to goes to the command's outcome."""
        from bdlbench.runs.sweep import run_sweep

        outcome = OUTCOME[-1] if OUTCOME else Outcome()
        executor = make_executor(self.executor, self.options.get(self.executor, {}))  # type: ignore[arg-type]
        composer = Composer(self.context.config_loader, self.config)
        jobs: list[tuple[dict[str, Any], dict[str, str], str] | None] = []
        for overrides in job_overrides:
            try:
                jobs.append((*composer.compose(list(overrides)), shlex.join(overrides)))
            except (HydraException, OmegaConfBaseException, ValueError) as error:
                outcome.errors.append(f"{sentence(error)} ({shlex.join(overrides)})")
                jobs.append(None)
        records = run_sweep(
            [job for job in jobs if job is not None], outcome, max_lanes=self.max_lanes, executor=executor
        )
        done = iter(records)
        return [
            _returned(overrides, None if job is None else next(done))
            for overrides, job in zip(job_overrides, jobs, strict=True)
        ]


def _returned(overrides: Sequence[str], record: Mapping[str, Any] | None) -> JobReturn:
    result = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    result.return_value = record
    return result


class Composer:
    """Composes the jobs of a sweep: by Hydra once for each choice of groups, then by setting values.

    Hydra takes about 0.1 s a job. A job whose overrides only choose groups and change values that exist needs it once
    for its groups; any other (additions, deletions, interpolations) is composed by Hydra itself.
    """

    def __init__(self, loader: Any, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create(config_loader=loader)
        self.bases: dict[tuple[str, ...], tuple[dict[str, Any], dict[str, str], bool]] = {}
        self.groups: dict[str, bool] = {}

    def compose(self, overrides: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """The resolved configuration of one job and the labels of its groups."""
        parsed = self.parser.parse_overrides(overrides)
        choices = tuple(o.input_line or "" for o in parsed if self.is_group(o))
        values = [o for o in parsed if not self.is_group(o)]
        if all(_is_plain(o) for o in values):
            if choices not in self.bases:
                self.bases[choices] = self.load(list(choices))
            config, labels, interpolates = self.bases[choices]
            if not interpolates:
                config = copy.deepcopy(config)
                if all(_set(config, o.key_or_group, o.value()) for o in values):
                    return config, labels
        return self.load(overrides)[:2]

    def load(self, overrides: list[str]) -> tuple[dict[str, Any], dict[str, str], bool]:
        """Compose by Hydra; the last tells whether values refer to one another."""
        from bdlbench.runs import configuration

        configuration.check_tuned(overrides, self.loader.get_group_options("tuned"))
        config = self.loader.load_sweep_config(self.master, overrides)
        choices = dict(config.hydra.runtime.choices)
        config = configuration.without_hydra(config)
        return _plain(config), configuration.labels_of(choices), "${" in OmegaConf.to_yaml(config)

    def is_group(self, override: Override) -> bool:
        """Whether an override chooses an option of a group."""
        name = override.key_or_group
        if name not in self.groups:
            self.groups[name] = bool(self.loader.get_group_options(name))
        return self.groups[name]


def _is_plain(override: Override) -> bool:
    """Whether an override gives one value that refers to no other."""
    line = override.input_line or ""
    return override.type is OverrideType.CHANGE and not override.is_sweep_override() and "${" not in line


def _plain(config: DictConfig) -> dict[str, Any]:
    """Plain containers; a value that is still missing is given by the job, or named when the job is made."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=False)  # type: ignore[return-value]


def _set(config: dict[str, Any], path: str, value: Any) -> bool:
    """Set a value as Hydra does; False, and nothing changed, where there is no such entry: that is Hydra's to judge."""
    *parents, last = path.split(".")
    node: Any = config
    try:
        for key in parents:
            node = node[_index(node, key)]
        at = _index(node, last)
        node[at] = _merged(node[at], value)
    except LookupError:
        return False
    return True


def _index(node: Any, key: str) -> str | int:
    """What a part of a dotted path is in a node."""
    if isinstance(node, list) and key.isdigit() and int(key) < len(node):
        return int(key)
    if isinstance(node, dict) and key in node:
        return key
    raise LookupError(key)


def _merged(old: Any, new: Any) -> Any:
    """As OmegaConf merges: mappings entry by entry, none of them new; anything else is replaced."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old[key], value) for key, value in new.items()}
