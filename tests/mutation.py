"""Mutants: a module of the library with one expression changed, to prove that a law's test would notice."""

import importlib
import inspect
import types


def mutate(module: str, old: str, new: str) -> types.ModuleType:
    """The module ``module`` executed again under its own name with ``old``, which must occur once, read as ``new``."""
    original = importlib.import_module(module)
    source = inspect.getsource(original)
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {module}: mend the mutant"
    mutant = types.ModuleType(module)
    mutant.__file__ = original.__file__
    exec(compile(source.replace(old, new), original.__file__ or module, "exec"), mutant.__dict__)
    return mutant
