"""The table of mutants of the library fits the library; ``make test-mutants`` applies the mutants."""

import ast
import functools
from pathlib import Path

import pytest
from mutants import MUTANTS
from mutation import replaced
from presets import PRESETS

from bdlbench.runs.configuration import conf_dir

ROOT = Path(__file__).parents[1]
EVERY = [mutant for mutants in MUTANTS.values() for mutant in mutants]


@functools.cache
def functions(path):
    """The names of the functions of a test file, as pytest writes them."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    methods = [(node.name, child) for node in tree.body if isinstance(node, ast.ClassDef) for child in node.body]
    named = [*((f"{name}::", child) for name, child in methods), *(("", node) for node in tree.body)]
    return {prefix + node.name for prefix, node in named if isinstance(node, ast.FunctionDef)}


def test_each_mutant_changes_one_place():
    """Its text occurs once in its file, so that the table cannot become old, and the changed module is still Python."""
    for mutant in EVERY:
        source = (ROOT / mutant.file).read_text(encoding="utf-8")
        ast.parse(replaced(source, mutant.old, mutant.new, mutant.file))
    places = [(mutant.file, mutant.old, mutant.new) for mutant in EVERY]
    assert len(set(places)) == len(places) >= 60


def test_each_mutant_names_tests_that_exist():
    """A file of tests, or a function in it, with or without its parameters."""
    for mutant in EVERY:
        assert mutant.tests, mutant
        for test in mutant.tests:
            path, _, name = test.partition("::")
            assert (ROOT / path).is_file(), test
            inherited = name.startswith("TestLaws::")  # of tests/support/laws.py
            assert not name or inherited or name.partition("[")[0] in functions(path), test


@pytest.mark.parametrize("preset", PRESETS)
def test_each_factory_of_a_method_has_a_mutant(preset):
    """At least one mutant changes the text of the factory of each preset, or of the module for the only factory of it."""
    import yaml

    path = conf_dir() / "inference" / f"{preset}.yaml"
    module, name = yaml.safe_load(path.read_text())["_target_"].rsplit(".", 1)
    file = f"{module.replace('.', '/')}.py"
    source = (ROOT / file).read_text(encoding="utf-8")
    (node,) = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == name]
    text = "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno])
    assert any(mutant.file == file and mutant.old in text for mutant in EVERY), f"{file}: {name} has no mutant"
