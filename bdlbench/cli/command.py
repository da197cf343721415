"""The command ``bdlbench``: Hydra composes the configuration, and each job gives a record or an error message.

The exit code is 0 only if every run is complete.
"""

import os
import re
import shlex
import sys
import traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from bdlbench.cli import launcher
from bdlbench.errors import ConfigError
from bdlbench.runs import configuration
from bdlbench.runs.outcome import Outcome, sentence
from bdlbench.store.errors import StoreError


def execute(argv: list[str] | None = None) -> int:
    """Run the command with the arguments in ``argv``, or in ``sys.argv`` if None, and return the exit code."""
    outcome = Outcome()
    launcher.OUTCOME.append(outcome)
    sys.argv = ["bdlbench", *each_alone([at_home(one) for one in (sys.argv[1:] if argv is None else argv)])]
    # A user's own networks and models lie where the command is given. Last, so that no library finds them in place of a
    # module of its own.
    sys.path.append(os.getcwd())
    # Hydra raises instead of printing and leaving, so that one sentence can be made of what it says.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    @hydra.main(version_base="1.3", config_path=str(configuration.conf_dir().resolve()), config_name="config")
    def app(config: DictConfig) -> Outcome:
        done = job(config)
        outcome.add(done)
        return done

    failed: list[str] = []
    try:
        app()
        if outcome.report is not None and outcome.records:
            configuration.call(outcome.report, "report")(outcome.records)
    except (ConfigError, StoreError, HydraException, OmegaConfBaseException, ValueError, TypeError, OSError) as error:
        if os.environ.get("BDLBENCH_TRACEBACK"):
            traceback.print_exc()
        failed.append(sentence(ours(error)))
    for line in outcome.closing():
        print(line, file=sys.stderr)
    outcome.errors += failed
    for message in dict.fromkeys(outcome.errors):
        print(f"Error: {message}", file=sys.stderr)
    return outcome.exit_code


def at_home(argument: str) -> str:
    """Replace ``~`` by the user's home in an argument ``key=~/path``. A shell does this only at the start of a word."""
    found = re.fullmatch(r"(\+{0,2}[\w./@]+)=(~[\w.-]*(?:/.*)?)", argument)
    if found is None:
        return argument
    place = os.path.expanduser(found[2])
    plain = re.fullmatch(r"[\w./+-]+", place, re.ASCII)
    return f"{found[1]}={place}" if plain else f"{found[1]}='{place}'"


def each_alone(arguments: list[str]) -> list[str]:
    """Return the arguments of a sweep over the options of a group, with values inside that group as one-value sweeps.

    Hydra first composes the configuration without the swept options, for example with the default method. This method
    may lack an option that all methods of the sweep have. As a ``choice()`` of one value, the option is set only in each
    job, together with its method.
    """
    if not {"-m", "--multirun"} & {*arguments} or "hydra/sweeper=optuna" in arguments:
        return arguments
    pairs = [(one, *one.partition("=")) for one in arguments]
    swept = {key for _, key, equals, value in pairs if equals and re.fullmatch(r"\w+", key) and "," in value}
    return [
        f"{key}=choice({value})"
        if equals and key.split(".")[0] in swept and "." in key and value and not _is_sweep(value)
        else one
        for one, key, equals, value in pairs
    ]


def _is_sweep(value: str) -> bool:
    """Whether a value is, or may be, a sweep over several values. It must then stay unchanged."""
    return bool(re.match(r"(choice|range|interval|glob|shuffle|sort|tag)\(", value)) or (
        "," in re.sub(r"\[.*\]|\{.*\}|'[^']*'|\"[^\"]*\"|\(.*\)", "", value)
    )


def ours(error: BaseException) -> BaseException:
    """Return the ConfigError that caused an error, or the error itself.

    Hydra wraps an error that is raised while it makes a launcher or a sweeper.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConfigError):
        cause = cause.__cause__
    return cause or error


def job(config: DictConfig) -> Outcome:
    """Compute a single run, or one job of a launcher that is not ours, and return its outcome."""
    from bdlbench.runs.sweep import run_sweep

    resolved, labels = configuration.composed(config)
    outcome = Outcome()
    overrides = shlex.join(HydraConfig.get().overrides.task)
    run_sweep([(resolved, labels, overrides)], outcome, max_lanes=1)
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        outcome.errors = [message.removesuffix(f" ({overrides})") for message in outcome.errors]
    return outcome
