"""The command ``bdlbench``: Hydra composes, every job ends in a record or in one sentence, the exit code tells."""

import difflib
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bdlbench import config as configuration
from bdlbench.errors import ConfigError


class Outcome:
    """What the jobs of one command came to."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.report: dict[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        """0 if every run is complete."""
        return int(bool(self.errors) or any(record["status"] != "complete" for record in self.records))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    outcome = Outcome()
    if argv is not None:
        sys.argv = ["bdlbench", *argv]
    # Hydra raises instead of printing and leaving, so that one sentence can be made of what it says.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    OmegaConf.register_new_resolver("bdlbench.scratch", scratch, replace=True)

    @hydra.main(version_base="1.3", config_path=str(configuration.conf_dir().resolve()), config_name="config")
    def app(config: DictConfig) -> None:
        job(config, outcome)

    try:
        app()
        if outcome.report is not None and outcome.records:
            configuration.call(outcome.report, "report")(outcome.records)
    except KeyboardInterrupt:
        print("Interrupted: finished runs are kept, the same command goes on.", file=sys.stderr)
        return 130
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        outcome.errors.append(sentence(error))
    for message in dict.fromkeys(outcome.errors):
        print(f"Error: {message}", file=sys.stderr)
    return outcome.exit_code


def job(config: DictConfig, outcome: Outcome) -> None:
    """One job of a command. In a sweep a job that cannot be done does not stop the others."""
    from bdlbench.run import run_config
    from bdlbench.store.errors import RunBusy, StoreError

    try:
        resolved, labels = configuration.composed(config)
        outcome.report = resolved["report"]
        outcome.records.append(run_config(resolved, labels))
        return
    except (ConfigError, OmegaConfBaseException, StoreError, RunBusy) as error:
        message = sentence(error)
    except Exception as error:
        message = f"{type(error).__name__}: {sentence(error)} (BDLBENCH_TRACEBACK=1 shows where)"
        if os.environ.get("BDLBENCH_TRACEBACK"):
            traceback.print_exc()
    overrides = " ".join(HydraConfig.get().overrides.task)
    outcome.errors.append(f"{message} ({overrides})" if HydraConfig.get().mode == RunMode.MULTIRUN else message)


def sentence(error: BaseException) -> str:
    """One sentence of what an error says; of Hydra's, with the nearest names that exist."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    missing = re.search(r"Could not find '([\w/]+)/([^']+)'", text)
    if missing:
        group, name = missing.groups()
        names = options(group)
        near = difflib.get_close_matches(name, names, n=3)
        offer = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}."
        return f"{group}={name} does not exist: {offer}"
    override = re.search(r"Could not override '([^']+)'", text)
    if override:
        return f"{override[1]} is no option here: bdlbench --help names the groups, bdlbench --cfg job the options."
    return text


def scratch() -> str:
    """A folder of this user's for what Hydra insists on writing."""
    return str(Path(tempfile.gettempdir()) / f"bdlbench-{os.getuid()}")


def options(group: str) -> list[str]:
    """The options of a configuration group."""
    return sorted(path.stem for path in Path(configuration.conf_dir() / group).glob("*.yaml"))


if __name__ == "__main__":
    sys.exit(main())
