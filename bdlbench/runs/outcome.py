"""What the runs of one command came to, and how an error is said in one sentence."""

import difflib
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Outcome:
    """Records and errors of one command."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.report: dict[str, Any] | None = None
        self.parts = {uuid.uuid4().hex}

    def add(self, other: "Outcome") -> None:
        """Take over what a job came to, once: it may come by two ways, in this process and from a worker's."""
        if not other.parts <= self.parts:
            self.parts |= other.parts
            self.records += other.records
            self.errors += other.errors
            self.report = self.report or other.report

    @property
    def exit_code(self) -> int:
        """0 if every run is complete."""
        return int(bool(self.errors) or any(record["status"] != "complete" for record in self.records))

    def closing(self, most: int = 20) -> list[str]:
        """One line of several runs, and one for each of those that are not complete, at most so many, with its reason.

        To be asked while ``errors`` are of runs that were refused, one each.
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
    """One sentence of what an error says; of Hydra's, with the nearest names that exist."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:  # Hydra says where in the first line and what in the second
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
    """The options of a configuration group that come with bdlbench."""
    from bdlbench.runs.configuration import conf_dir

    return sorted(path.stem for path in Path(conf_dir() / group).glob("*.yaml"))
