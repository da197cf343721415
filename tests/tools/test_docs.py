"""What the documents say is so: links lead somewhere, commands compose, recipes run, no machine's paths are named."""

import ast
import importlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from bdlbench.errors import ConfigError
from bdlbench.runs import configuration
from bdlbench.runs.job import check_job, make_job
from bdlbench.runs.start import with_init
from bdlbench.store import Store
from tools import readme

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "tests" / "adding" / "examples"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("experiments/*/README.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, *languages: str) -> list[str]:
    """Fenced blocks of a document in these languages."""
    return [body for language, body in FENCE.findall(text_of(name)) if language in languages]


def commands(name: str) -> Iterator[list[str]]:
    """Words of each shell line of a document, and of each command line within backticks."""
    inline = re.findall(r"(?<!`)`((?:make|bdlbench|bdlbench-results) [^`]+)`(?!`)", FENCE.sub("", text_of(name)))
    for line in [*"".join(blocks(name, "sh", "bash")).splitlines(), *inline]:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # an environment variable before the command
            words = words[1:]
        if words:
            yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


def anchors(markdown: str) -> set[str]:
    """The anchors that a renderer gives a document's headings."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", markdown), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_somewhere(name: str) -> None:
    """Files, folders, pictures and headings that a document points at are there."""
    document = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(name))):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        place = (document.parent / path).resolve() if path else document
        assert place.exists(), f"{name}: {target}"
        assert place.is_relative_to(ROOT), f"{name}: {target} leaves the project"
        if anchor:
            assert anchor in anchors(place.read_text(encoding="utf-8")), f"{name}: {target}"


def targets() -> set[str]:
    """What the Makefile makes."""
    return set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.M))


def subcommands() -> set[str]:
    """What bdlbench-results does."""
    from bdlbench.cli.results import _parser

    (group,) = (action for action in _parser()._actions if action.dest == "==SUPPRESS==" or action.choices)
    return set(group.choices or ())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str) -> None:
    """Make targets are in the Makefile, subcommands in the parser, and each ``bdlbench`` line composes as it stands."""
    for words in commands(name):
        if words[0] == "make":
            wanted = {word for word in words[1:] if "=" not in word and word != "..."}
            assert wanted <= targets(), f"{name}: {' '.join(words)}"
        elif words[0] == "bdlbench-results":
            assert set(words[1].split("|")) <= subcommands(), f"{name}: {' '.join(words)}"
        elif words[0] == "bdlbench":
            check_bdlbench(name, words[1:])


def check_bdlbench(name: str, words: list[str]) -> None:
    options = {word.split("=")[0] for word in words if word.startswith("-")}
    assert options <= {"-m", "--multirun", "--help", "--cfg", "--config-dir"}, f"{name}: {words}"
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    if "--config-dir" in options:  # a folder of the reader's, whose files the document shows
        assert any("myconf/" in block for block in blocks(name, "yaml")), f"{name}: {words}"
        return
    for one in each_job(OverridesParser.create().parse_overrides(overrides)):
        config, labels = configuration.compose(one)
        assert "data" in labels, f"{name}: {one}"
        assert "_target_" in config["inference"], f"{name}: {one}"


def values_of(override: Override) -> list[str]:
    """The values of a sweep; of an interval, where it begins."""
    if override.is_interval_sweep():
        return [str(override.value().start)]
    return list(override.sweep_string_iterator())


def each_job(overrides: list[Override]) -> Iterator[list[str]]:
    """Overrides without sweeps: each value that a sweep takes, once, the other sweeps at their first."""
    swept = [(o, values_of(o) if o.is_sweep_override() else None) for o in overrides]

    def line(chosen: int, index: int) -> list[str]:
        return [
            str(o.input_line) if values is None else f"{o.get_key_element()}={values[index if i == chosen else 0]}"
            for i, (o, values) in enumerate(swept)
        ]

    sweeps = [(i, values) for i, (_, values) in enumerate(swept) if values is not None]
    if not sweeps:
        yield line(-1, 0)
    for i, values in sweeps:
        for index in range(len(values)):
            yield line(i, index)


def test_a_sweep_is_taken_apart() -> None:
    """The helper above yields every value of every sweep."""
    parsed = OverridesParser.create().parse_overrides(["a=1,2", "b=x", "c=range(3)"])
    jobs = list(each_job(parsed))
    assert jobs[0] == ["a=1", "b=x", "c=0"]
    assert jobs[1] == ["a=2", "b=x", "c=0"]
    assert [job[2] for job in jobs[2:]] == ["c=0", "c=1", "c=2"]


@pytest.mark.parametrize("name", NAMES)
def test_python_blocks_import_what_exists(name: str) -> None:
    """Python blocks parse, and what they import from bdlbench is there."""
    for block in blocks(name, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bdlbench"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{name}: {node.module}.{alias.name}"


@pytest.mark.parametrize("name", NAMES)
def test_functions_in_tables_exist(name: str) -> None:
    """A cell `` `name` in [`file.py`](...) `` names something that the file defines."""
    for names, path in re.findall(r"((?:`[\w.]+`(?:, | and )?)+) in \[`[^`]+\.py`\]\(([^)]+)\)", text_of(name)):
        tree = ast.parse((ROOT / name).parent.joinpath(path).read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for dotted in re.findall(r"`([\w.]+)`", names):
            assert set(dotted.split(".")) <= defined, f"{name}: {dotted} in {path}"


@pytest.mark.slow
def test_the_recipes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of CONTRIBUTING.md, put at their paths, make one complete run: method, data, network, prior, metric.

    That each was used is seen in the record: the labels, the metric, and the gradients of 40 + 20 steps of B = 32 of
    N = 100 rows in 2 chains, 2 * 60 * .32 = 38.4, summed in float32 (60 terms: relative error below 60 * 2^-24).
    """
    from bdlbench.runs.group import run

    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / "bdlbench").rglob("*.py"):
        package = importlib.import_module(".".join(file.parent.relative_to(tmp_path).parts))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(file.parent)])
    monkeypatch.setattr(configuration, "conf_dir", lambda: tmp_path / "conf")
    new = ["inference=constant_sgd", "data=steps", "network=residual", "prior=laplace"]
    schedule = {"num_chains": 2, "num_warmup": 40, "num_samples": 10, "thinning": 2}
    record = run(
        [
            *new,
            "metrics=[lppd,mae]",
            *(f"inference.schedule.{key}={value}" for key, value in schedule.items()),
            f"store.path={tmp_path / 'store'}",
            "progress=off",
        ]
    )
    assert record["status"] == "complete"
    assert {f"{group}={record['labels'][group]}" for group in ("inference", "data", "network", "prior")} == set(new)
    assert record["metrics"]["mae"] > 0
    assert sum(record["num_grads"].values()) == pytest.approx(38.4, rel=60 * 2**-24)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["network", "model"])
def test_what_a_reader_brings_along_is_taken(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's own network and own NumPyro model, written out as shown, make a job that traces without a fault."""
    shutil.copytree(ROOT / "conf", tmp_path / "myconf")
    for block in blocks("README.md", "python", "yaml"):
        path, _, body = block.removeprefix("# ").partition("\n")
        if re.fullmatch(r"[\w/]+\.(py|yaml)", path):
            (tmp_path / path).write_text(body, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(configuration, "conf_dir", lambda: tmp_path / "myconf")
    (words,) = (
        w for w in commands("README.md") if "--config-dir=myconf" in w and any(o.startswith(f"{group}=") for o in w)
    )
    job = make_job(*configuration.compose([word for word in words[1:] if not word.startswith("-")]))
    check_job(job)
    assert (ROOT / "conf" / group / f"{job.labels[group]}.yaml").exists() is False


# ---- the README's table


def record_of(method: str, **changes: Any) -> dict[str, Any]:
    """A record of ``make compare``, as far as the table needs it."""
    config, labels = configuration.compose([f"inference={method}", "reference=diabetes"])
    config["inference"] = with_init(config["inference"])  # as a run stores it
    return {
        "status": "complete",
        "config": config,
        "labels": labels,
        "metrics": {"lppd": -5.4, "rmse": 54.0, "coverage_90": 0.9, "ess_bulk_min": None, "rhat_max": None},
        "seconds": dict.fromkeys(("setup", "compile", "warmup", "sample", "predict"), 1.0),
        "num_grads": {"warmup": 1.0, "sample": 1.0},
        "device": "cpu x 2",
        "versions": {"bdlbench": "0", "jax": "0", "numpyro": "0"},
        "warnings": [],
    } | changes


def write(store: Store, id: str, record: dict[str, Any]) -> None:
    with store.writer(id, record["config"]) as run:
        run.finish({key: value for key, value in record.items() if key != "config"})


def test_the_readme_has_its_markers() -> None:
    """``make readme`` finds where to write, and the picture has its place."""
    text = text_of("README.md")
    assert readme.replaced(text, "x").count("\nx\n") == 1
    assert re.search(r"<!-- picture -->\n!\[[^]]+\]\(docs/img/\w+\.png\)", text)


@pytest.mark.slow
def test_the_table_is_written_from_the_runs_as_shipped(tmp_path: Path) -> None:
    """Runs with other settings do not enter; writing twice changes nothing; a missing run is one sentence."""
    store = Store(tmp_path / "results" / "store")
    for method in ("nuts", "svi"):
        write(store, method, record_of(method))
    with pytest.raises(ConfigError, match="lacks the diabetes run of sgld"):
        readme.compared(store)
    write(store, "sgld", record_of("sgld"))
    config, _ = configuration.compose(["inference=sgld", "reference=diabetes", "inference.step_size=1e-3"])
    config["inference"] = with_init(config["inference"])
    write(store, "other", record_of("sgld", config=config, created="2999-01-01T00:00:00+00:00"))
    assert [r["id"] for r in readme.compared(store)] == ["nuts", "svi", "sgld"]

    file = tmp_path / "README.md"
    file.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    assert readme.main([str(file)]) == 0
    once = file.read_text()
    assert "old" not in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert all(f"| {method} |" in once for method in readme.METHODS)
    assert readme.main([str(file)]) == 0
    assert file.read_text() == once


@pytest.mark.parametrize("text", ["", readme.BEGIN, f"{readme.END} {readme.BEGIN}", f"{readme.BEGIN}{readme.END}" * 2])
def test_a_readme_without_markers_is_left_alone(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, one sentence, the file unchanged."""
    monkeypatch.setattr(readme, "compared", lambda store: [])
    monkeypatch.setattr(readme, "section", lambda records: "table")
    file = tmp_path / "README.md"
    file.write_text(text)
    assert readme.main([str(file)]) == 1
    assert file.read_text() == text
    assert "must each stand there once" in capsys.readouterr().err


# ---- the whole checkout


def tracked() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_machine() -> None:
    """No home or working folder of a machine, and no host of a package index, in any committed text."""
    place = re.compile(
        r"(?<![\w.~/}-])/(?:root|work|home|Users|mnt|scratch)/\w|--(?:extra-)?index-url[ =]\S|-i +https?:"
    )
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = place.search(text)
        assert found is None, (
            f"{path.relative_to(ROOT)}: {found and text[max(0, found.start() - 40) : found.end() + 40]}"
        )


def test_tools_call_what_is_there() -> None:
    """The workflow and .ci/run call targets of the Makefile; hooks run the project's own tools."""
    workflow = yaml.safe_load(text_of(".github/workflows/ci.yml"))
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    called = {word for run in runs for word in run.split()[1:] if "=" not in word}
    assert called == {"test", "test-slow", "test-faults", "test-adding", "lint"} <= targets()
    assert "make test" in text_of(".ci/run")
    hooks = yaml.safe_load(text_of(".pre-commit-config.yaml"))
    local = {hook["id"] for repo in hooks["repos"] if repo["repo"] == "local" for hook in repo["hooks"]}
    assert local == {"ruff", "ruff-format", "mypy"}


def test_version_is_said_once() -> None:
    """Package, citation and changelog name one version."""
    from bdlbench import __version__

    assert yaml.safe_load(text_of("CITATION.cff"))["version"] == __version__
    assert re.search(rf"^## \[?{re.escape(__version__)}\]? - ", text_of("CHANGELOG.md"), re.M)
