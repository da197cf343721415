"""The rules of the code, tested by reading it: imports go one way, and yamls have all options of their factories."""

import ast
import graphlib
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bdlbench.options import parameters
from bdlbench.runs import configuration
from bdlbench.runs.configuration import STAGE_KEYS, conf_dir, target_of

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bdlbench"
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    """Dotted module name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Every module that a file imports anywhere; ``from package import name`` counts as package and package.name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(module):
    """The part of the package to which a module belongs: ``data``, ``config``, ..."""
    return module.split(".")[1] if "." in module else "bdlbench"


ORDER = (
    {"errors"},
    {"types", "options", "signals"},
    {"data", "networks", "metrics", "references", "store", "sampling"},
    {"model", "inference"},
    {"baselines"},
    {"runs"},
    {"evaluation", "api"},
    {"report", "sklearn"},
    {"cli"},
)
"""The parts of the package from the ground up. A part imports parts of lower layers, or of its own without a circle."""
LAYER = {part: layer for layer, parts in enumerate(ORDER) for part in parts}


def imported_parts(path):
    """The other parts of the package that a file imports."""
    found = {part_of(module) for module in imports_of(path) if module.startswith("bdlbench.")}
    return {other for other in found if (PACKAGE / other).exists() or (PACKAGE / f"{other}.py").exists()}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_one_way(path):
    """No file imports a part of a higher layer."""
    part = part_of(name_of(path))
    if part == "bdlbench":
        return
    assert part in LAYER, f"{part} has no place in the order of the packages: give it one in ORDER"
    above = {other for other in imported_parts(path) if LAYER[other] > LAYER[part]}
    assert not above, f"{part} imports {above}, which stand above it"


def test_parts_do_not_import_each_other_in_a_circle():
    """The parts of a layer can be ordered so that imports go one way."""
    arrows = {}
    for path in FILES:
        part = part_of(name_of(path))
        if part != "bdlbench":
            arrows.setdefault(part, set()).update(imported_parts(path) - {part, "bdlbench"})
    list(graphlib.TopologicalSorter(arrows).static_order())


HYDRA = {"bdlbench.runs.configuration", "bdlbench.cli.command", "bdlbench.cli.launcher", "bdlbench.cli.trials"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_hydra_stays_at_the_door(path):
    """Only the module that reads configurations and the commands import Hydra and OmegaConf."""
    roots = {module.split(".")[0] for module in imports_of(path)}
    if name_of(path) not in HYDRA:
        assert not roots & {"hydra", "omegaconf"}


FAMILIES = {
    yaml.safe_load(path.read_text())["_target_"].rsplit(".", 1)[0] for path in (conf_dir() / "inference").glob("*.yaml")
}
"""Modules of methods; other files of inference are what several of them share."""
METHOD_FILES = sorted(path for path in (PACKAGE / "inference").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", METHOD_FILES, ids=name_of)
def test_no_method_imports_another(path):
    """Code that two methods share must be in a file of its own."""
    assert not imports_of(path) & (FAMILIES - {name_of(path)})


def test_nobody_knows_a_method_by_name():
    """Outside of inference, no import and no string literal names the file or yaml of a method."""
    names = {family.rsplit(".", 1)[-1] for family in FAMILIES} | {
        path.stem for path in (conf_dir() / "inference").glob("*.yaml")
    }
    for path in FILES:
        if part_of(name_of(path)) in {"data", "metrics", "model", "networks", "runs", "sampling", "store"}:
            assert not imports_of(path) & FAMILIES, path
            literals = {
                node.value
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            assert not literals & names, path


def test_there_is_no_drawer_for_odds_and_ends():
    """No module is named utils, helpers or common."""
    assert not {path.stem for path in FILES} & {"utils", "util", "helpers", "common", "misc"}


def test_reading_a_store_needs_no_jax():
    """Tables, records and draws of a store are read without importing JAX, which takes seconds."""
    program = "import sys, bdlbench.store; assert not {'jax', 'numpyro', 'flax'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_importing_computes_nothing():
    """No import initialises a JAX backend. An array that is created at import would do so and fix the devices."""
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()"
    )
    names = [name_of(path) for path in FILES if path.name != "__main__.py"]
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


# ---- yamls


def nodes(node, path):
    """Yield every dict with a ``_target_``, with its path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from nodes(value, f"{path}.{i}")


YAMLS = sorted(
    path
    for group in ("data", "network", "prior", "likelihood", "inference", "model", "metrics")
    for path in (conf_dir() / group).glob("*.yaml")
)


LATER = {"standardize": True}
"""Options that stored configurations of before do not have, with the value that such a run had."""


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_a_yaml_is_the_whole_record(path):
    """The keys of a yaml are the keyword-only parameters of its factory, which have no defaults.

    Nested factories exist.
    """
    group = path.parent.name
    for place, node in nodes(yaml.safe_load(path.read_text()), group):
        factory = target_of(node, place)
        keys = {key for key in node if not key.startswith("_") and key != "defaults"}
        known = parameters(factory)
        if not factory.__module__.startswith("bdlbench"):
            assert keys <= set(known), f"{place}: {node['_target_']}"
            continue
        if group == "inference":
            keys -= set(STAGE_KEYS)
        wanted = {name for name, p in known.items() if p.kind is p.KEYWORD_ONLY}
        if group == "model":
            wanted -= set(configuration.PROGRAM_SECTIONS)
        if group == "data":
            wanted -= {"files"}  # the places of files are known to the run
        assert keys == wanted, place
        for name in keys:
            expected = LATER.get(name, inspect.Parameter.empty)
            assert known[name].default is expected, f"{place}.{name} has a hidden default"
            assert known[name].annotation is not inspect.Parameter.empty, f"{place}.{name} cannot be coerced"


def test_every_factory_of_a_yaml_is_documented():
    """Every factory has a docstring with a first line."""
    for path in YAMLS:
        for place, node in nodes(yaml.safe_load(path.read_text()), path.parent.name):
            factory = target_of(node, place)
            if factory.__module__.startswith("bdlbench"):
                assert inspect.getdoc(factory), place


def test_importlib_agrees_with_the_files():
    """Every file of the package is importable by its name (checked types and shapes switched on)."""
    for path in FILES:
        if path.name != "__main__.py":
            importlib.import_module(name_of(path))
