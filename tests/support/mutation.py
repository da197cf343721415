"""Mutants: a module of bdlbench with one changed expression. A test that is named for a mutant must fail for it."""

import importlib
import inspect
import types


def replaced(source: str, old: str, new: str, where: str) -> str:
    """Return a source with ``old`` replaced by ``new``. ``old`` must occur exactly once, otherwise AssertionError."""
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {where}: mend the mutant"
    return source.replace(old, new)


def mutate(module: str, old: str, new: str, within: str | None = None) -> types.ModuleType:
    """Execute a module again under its own name, with ``old`` replaced by ``new``, and return it.

    ``old`` must occur exactly once. If ``within`` names a function or class of the module, only its text is searched.
    """
    original = importlib.import_module(module)
    source = inspect.getsource(original)
    part = source if within is None else inspect.getsource(inspect.unwrap(getattr(original, within)))
    source = source.replace(part, replaced(part, old, new, within or module))
    mutant = types.ModuleType(module)
    mutant.__file__ = original.__file__
    exec(compile(source, original.__file__ or module, "exec"), mutant.__dict__)
    return mutant
