"""Mutants: a module of the library with one expression changed, to prove that a law's test would notice."""

import importlib
import inspect
import types


def mutate(module: str, old: str, new: str, within: str | None = None) -> types.ModuleType:
    """The module ``module`` executed again under its own name with ``old``, which must occur once, read as ``new``.

    With ``within``, a function or class of the module, only its own text is searched.
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
