"""The records and errors of one command, and one-sentence messages for errors."""

import difflib
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
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
    """The message of an error as one sentence. Errors of Hydra get its own hint, or the most similar existing names."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:  # Hydra's first line names the place and the second the fault
        text = f"{text} {lines[1]}"
    text = re.sub(r"^In '[^']+': ", "", text)
    unread = getattr(error, "override", None)
    if isinstance(unread, str):
        return (
            f"{unread!r} cannot be read as key=value: put a value with special characters into quotes of its own, as in "
            f"'data.path=\"my file.csv\"' ({lines[-1][:1].lower()}{lines[-1][1:]})."
        )
    several = re.search(r"Ambiguous value for argument '(.*)'$", text)
    if several:
        return (
            f"{several[1]} has several values: to sweep over them, add --multirun (-m) to your command line, to use them "
            "as a list, write key=[value1,value2], and to use them as a string, quote them, key='value1,value2'."
        )
    missing = re.search(r"Could not (?:find|load) '([\w/]+)/([^']*)'", text)
    if missing:
        group, name = missing.groups()
        return no_option(group, name.removesuffix("."), (options or shipped_options)(group))
    kind = re.search(r"Config group override must be a string or a list. Got (\w+)", text)
    if kind:
        given = {"NoneType": "null"}.get(kind[1], f"a value of type {kind[1]}")
        return (
            f"a group takes the name of an option, not {given}: inference=svi chooses one, ~tuned leaves a group out."
        )
    twice = re.search(r"^(\S+) appears more than once in|^Multiple values for (\S+)\. ", text)
    if twice:
        name = twice[1] or twice[2]
        return f"{name} is chosen already: leave out the +, as in {name}=<option>."
    there = re.search(r"Could not append to config. An item is already at '([^']+)'", text)
    if there:
        return f"{there[1]} is there already: leave out the +, as in {there[1]}=<value>."
    left_out = re.search(r"Could not delete (?:from config[.] )?'([^']+)'", text)
    if left_out:
        names = [name for name in top_level() if name != left_out[1]]
        return (
            f"~{left_out[1]} names nothing that can be left out: {offer(left_out[1], names, 'give it a value instead')}"
        )
    tied = re.search(r"Error resolving interpolation '([^']+)'", text)
    if tied:
        return (
            f"{' and '.join(re.findall(r'[$]{([^}]+)}', tied[1]))} must each be one option: choose one, as in "
            "inference=svi, without ~ and without a list."
        )
    unknown = re.search(r"(Interpolation key|Environment variable) '([^']+)' not found", text)
    if unknown:
        return f"${{...}} asks for {unknown[2]}, which does not exist: name one that does, or give the value itself."
    entry = re.fullmatch(r"(.+)\[(\d+)\]", str(getattr(error.__cause__, "full_key", None)))
    if entry and isinstance(error.__cause__, IndexError):
        return no_entry(entry[1], entry[2])
    index = re.search(r"^Index '(.*)' \(str\) is not an int$|^invalid literal for int\(\) with base 10: '(.*)'$", text)
    if index:
        return (
            f"'{index[1] or index[2]}' is no entry of a list: name an entry by its number, counted from 0, as in "
            "inference.before.0.schedule.num_warmup=<value>."
        )
    override = re.search(r"Could not override '([^']+)'", text)
    inside = re.search(r"full_key: (\S+)", str(error.__cause__))
    if override and inside and inside[1].startswith(f"{override[1]}."):
        name = override[1]
        return f"{inside[1]} is no option here: to replace all of {name}, give ~{name} and +{name}={{...}}."
    if override:
        *_, last = override[1].split(".")
        parent = getattr(error.__cause__, "parent_node", None)
        names = [str(key) for key in parent] if "." in override[1] and isinstance(parent, Mapping) else top_level()
        help = "bdlbench --help names the groups, bdlbench --cfg job the options."
        return f"{override[1]} is no option here: {offer(last, names, help)}"
    return text


def offer(name: str, names: Sequence[str], otherwise: str) -> str:
    """The end of a sentence: the names that are similar to this one, or else another remedy."""
    near = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"{otherwise.removesuffix('.')}."


def no_option(group: str, name: str, names: Sequence[str]) -> str:
    """The sentence for an option that a group does not have."""
    return f"{group}={name} does not exist: {offer(name, names, f'there are {", ".join(names)}')}"


def no_entry(path: str, name: str, size: int | None = None) -> str:
    """The sentence for an entry that the list at ``path`` of ``size`` entries does not have; None if unknown."""
    has = {None: "does not have so many entries", 0: "is empty", 1: "has the entry 0 alone"}.get(
        size, f"has the entries 0 to {(size or 0) - 1}"
    )
    return f"{path}.{name} is no option here: {path} {has}: name one that is there, or give the whole list as {path}."


def shipped_options(group: str) -> list[str]:
    """Return the options of a configuration group that are part of bdlbench."""
    from bdlbench.runs.configuration import conf_dir

    return sorted(path.stem for path in Path(conf_dir() / group).glob("*.yaml"))


def top_level() -> list[str]:
    """The names of the groups, and of the options that are in no group."""
    from bdlbench.runs.configuration import sections

    return [*sections()]
