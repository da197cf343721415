"""Mutants: a module of bdlbench with one changed expression. The test of a law must fail for each of them."""

import importlib
import inspect
import types


def mutate(module: str, old: str, new: str, within: str | None = None) -> types.ModuleType:
    """Execute a module again under its own name, with ``old`` replaced by ``new``, and return it.

    ``old`` must occur exactly once. If ``within`` names a function or class of the module, only its text is searched.
    """
    original = importlib.import_module(module)
    source = inspect.getsource(original)
    part = source if within is None else inspect.getsource(inspect.unwrap(getattr(original, within)))
    assert part.count(old) == 1, f"{old!r} occurs {part.count(old)} times in {within or module}: mend the mutant"
    source = source.replace(part, part.replace(old, new))
    mutant = types.ModuleType(module)
    mutant.__file__ = original.__file__
    exec(compile(source, original.__file__ or module, "exec"), mutant.__dict__)
    return mutant
