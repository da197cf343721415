"""The records and errors of one command, and one-sentence messages for errors."""

import difflib
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Outcome:
    """The records and errors of one command."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.report: dict[str, Any] | None = None
        self.parts = {uuid.uuid4().hex}

    def add(self, other: "Outcome") -> None:
        """Add the outcome of a job, unless it has been added before.

        The same outcome can arrive twice: from this process, and as the return value of a launcher.
        """
        if not other.parts <= self.parts:
            self.parts |= other.parts
            self.records += other.records
            self.errors += other.errors
            self.report = self.report or other.report

    @property
    def exit_code(self) -> int:
        """0 if every run is complete and there is no error, otherwise 1."""
        return int(bool(self.errors) or any(record["status"] != "complete" for record in self.records))

    def closing(self, most: int = 20) -> list[str]:
        """Return the closing lines of the command.

        The first line counts the runs, if there are several. Then follow the id, status and reason of each run that is
        not complete, for at most ``most`` runs. Call it while ``errors`` contains exactly one message for each refused
        run.
        """
        bad = [record for record in self.records if record["status"] != "complete"]
        lines = [f"  {record['id']}: {record['status']}: {record['reason']}" for record in bad[:most]]
        if len(bad) > most:
            lines.append(f"  and {len(bad) - most} more: bdlbench-results list --status failed diverged")
        if len(self.records) + len(self.errors) > 1:
            complete = len(self.records) - len(bad)
            lines.insert(0, f"{complete} complete, {len(bad)} failed or diverged, {len(self.errors)} refused")
        return lines


def sentence(error: BaseException, options: Callable[[str], list[str]] | None = None) -> str:
    """Return the message of an error as one sentence. For an unknown option of a group it suggests similar names.

    Parameters
    ----------
    error : exception
    options : (group) -> list of str, optional
        The options of a configuration group; those of bdlbench where None.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:  # Hydra's first line names the place and the second the fault
        text = f"{text} {lines[1]}"
    text = re.sub(r"^In '[^']+': ", "", text)
    missing = re.search(r"Could not (?:find|load) '([\w/]+)/([^']*)'", text)
    if missing:
        group, name = missing.groups()
        name = name.removesuffix(".")
        names = (options or shipped_options)(group)
        near = difflib.get_close_matches(name, names, n=3)
        offer = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}."
        return f"{group}={name} does not exist: {offer}"
    kind = re.search(r"Config group override must be a string or a list. Got (\w+)", text)
    if kind:
        given = {"NoneType": "null"}.get(kind[1], f"a value of type {kind[1]}")
        return (
            f"a group takes the name of an option, not {given}: inference=svi chooses one, ~tuned leaves a group out."
        )
    override = re.search(r"Could not override '([^']+)'", text)
    inside = re.search(r"full_key: (\S+)", str(error.__cause__))
    if override and inside and inside[1].startswith(f"{override[1]}."):
        name = override[1]
        return f"{inside[1]} is no option here: to replace all of {name}, give ~{name} and +{name}={{...}}."
    if override:
        return f"{override[1]} is no option here: bdlbench --help names the groups, bdlbench --cfg job the options."
    return text


def shipped_options(group: str) -> list[str]:
    """Return the options of a configuration group that are part of bdlbench."""
    from bdlbench.runs.configuration import conf_dir

    return sorted(path.stem for path in Path(conf_dir() / group).glob("*.yaml"))
