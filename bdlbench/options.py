"""Checks of the options of factories: their names, their types and the ranges of their numbers.

Each factory calls the range checks on its arguments. Before compilation it is called with the numbers themselves, which
are checked. While a program is traced it is called with tracers. These pass every check, because their numbers have
been checked before.
"""

import difflib
import functools
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from bdlbench.errors import ConfigError


def parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function, class or partial by name, without ``self`` and without bound arguments.

    For a class the signature of ``__init__`` is read: for a Flax NNX module ``inspect.signature`` of the class gives
    only ``(*args, **kwargs)``, because of its metaclass.
    """
    if isinstance(factory, functools.partial):
        found = dict(parameters(factory.func))
        for name in [*list(found)[: len(factory.args)], *factory.keywords]:
            found.pop(name, None)
        return found
    if inspect.isclass(factory):
        own = factory.__init__ is not object.__init__
        found = dict(inspect.signature(factory.__init__).parameters) if own else {}
        found.pop("self", None)
        return found
    return inspect.signature(factory).parameters


def static(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare float parameters of a factory that are constants of the compiled program.

    Other floats are arguments of the compiled program. A float on which Python code branches must be declared here.
    """

    def mark(factory: Callable[..., Any]) -> Callable[..., Any]:
        setattr(factory, "static", names)  # noqa: B010
        return factory

    return mark


BRANCHING = {
    "cosine_onecycle_schedule": ("pct_start", "div_factor", "final_div_factor"),
    "exponential_decay": ("decay_rate",),
    "linear_onecycle_schedule": ("pct_start", "pct_final", "div_factor", "final_div_factor"),
    "warmup_cosine_decay_schedule": ("peak_value",),
    "warmup_exponential_decay_schedule": ("decay_rate",),
}
"""Float parameters on which optax's schedules branch in Python."""


def static_names(factory: Callable[..., Any]) -> tuple[str, ...]:
    """Return the float parameters of a factory that are constants of the compiled program.

    These are the names given to :func:`static`, and for a schedule of optax those in ``BRANCHING``.
    """
    if getattr(factory, "__module__", "").startswith("optax."):
        return BRANCHING.get(getattr(factory, "__name__", ""), ())
    return getattr(factory, "static", ())


def coerced(
    node: Mapping[str, Any],
    path: str,
    factory: Callable[..., Any],
    *,
    reserved: Collection[str] = (),
    provided: Collection[str] = (),
) -> dict[str, Any]:
    """Return ``node`` with its values converted to the types that ``factory`` declares for its parameters.

    Parameters
    ----------
    node : dict
        Options by name.
    path : str
        The path of the node in the configuration, for error messages.
    reserved : names
        Entries of ``node`` that are not options of the factory. ``_target_``, ``_args_`` and ``_partial_`` are not either.
    provided : names
        Parameters that the caller supplies later, so that ``node`` need not have them.

    Raises
    ------
    ConfigError
        If an option is unknown to the factory, a required option is missing, or a value has the wrong type.
    """
    known = parameters(factory)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    out = dict(node)
    for key, value in node.items():
        if key.startswith("_") and key not in ("_target_", "_args_", "_partial_"):
            raise ConfigError(f"{path}.{key}={value!r} is no option of a factory: leave it out.")
        if key.startswith("_") or key in reserved:
            continue
        if key not in known and not open_ended:
            names = [n for n, p in known.items() if p.kind is p.KEYWORD_ONLY] or list(known)
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(
                f"{path}.{key} is unknown: {hint}{node['_target_']} takes {', '.join(names) or 'no options'}."
            )
        if key in known:
            out[key] = coerce(f"{path}.{key}", value, known[key].annotation)
    for key, parameter in known.items():
        required = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
        if required and key not in node and key not in provided:
            raise ConfigError(f"{path}.{key} is missing: {node['_target_']} needs it.")
    return out


def _is_built(annotation: Any) -> bool:
    """Whether an annotation is a class whose objects a factory must make, such as an optimiser or a distribution."""
    if not inspect.isclass(annotation) or annotation in (Any, inspect.Parameter.empty):
        return False
    is_array = hasattr(annotation, "dtype") or hasattr(annotation, "dtypes")  # NumPy's and JAX's, and jaxtyping's
    return annotation.__module__ != "builtins" and not is_array and not issubclass(annotation, os.PathLike)


def coerce(path: str, value: Any, annotation: Any) -> Any:
    """Convert a number to the type of the annotation (int or float) and return any other value unchanged.

    Raises
    ------
    ConfigError
        If a value is not a number where one is required, is not one of the choices of a ``Literal``, or is a plain
        value where an object is required that a factory must make. The message names ``path``.
    """
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = set(typing.get_args(annotation)) if union else {annotation}
    if typing.get_origin(annotation) is typing.Literal and value not in typing.get_args(annotation):
        choices = ", ".join(map(str, typing.get_args(annotation)))
        raise ConfigError(f"{path}={value!r} is unknown: choose one of {choices}.")
    if _is_built(annotation) and (value is None or isinstance(value, str | bool | int | float | list)):
        raise ConfigError(f"{path}={value!r} must be built by a factory: give {path}._target_ and its options.")
    missing = value is None and type(None) not in kinds
    if float in kinds and str not in kinds and (missing or isinstance(value, str | bool | list)):
        raise ConfigError(f"{path}={value!r} must be a number.")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    plain = {str: "text", bool: "true or false", type(None): "null"}
    if kinds <= plain.keys() and kinds != {type(None)} and type(value) not in kinds:
        if str in kinds and isinstance(value, int) and not isinstance(value, bool):  # a column named 3, say
            return str(value)
        raise ConfigError(f"{path}={value!r} must be {' or '.join(plain[kind] for kind in plain if kind in kinds)}.")
    if float in kinds and number and not (int in kinds and isinstance(value, int)):
        return float(value)
    if kinds & {int, float} and kinds <= {int, float, type(None)} and not (value is None and type(None) in kinds):
        if number and float(value).is_integer():
            return int(value)
        raise ConfigError(f"{path}={value!r} must be {'a number' if float in kinds else 'a whole number'}.")
    return value


# ---- range checks

MOST_BYTES = 2**31
"""The largest state of one chain in bytes. A larger one is refused."""


def _each(values: dict[str, Any]) -> list[tuple[str, float]]:
    return [(n.replace("__", "."), v) for n, v in values.items() if isinstance(v, int | float)]


def positive(section: str, **values: Any) -> None:
    """Raise ConfigError unless every value is finite and > 0. The message shows the name ``a__b`` as ``a.b``."""
    for name, value in _each(values):
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{section}.{name}={value} must be a positive finite number.")


def non_negative(section: str, **values: Any) -> None:
    """Raise ConfigError unless every value is finite and >= 0."""
    for name, value in _each(values):
        if not (value >= 0 and math.isfinite(value)):
            raise ConfigError(f"{section}.{name}={value} must be zero or a positive finite number.")


def fraction(section: str, **values: Any) -> None:
    """Raise ConfigError unless every value lies strictly between 0 and 1."""
    for name, value in _each(values):
        if not 0 < value < 1:
            raise ConfigError(f"{section}.{name}={value} must lie strictly between 0 and 1.")


def at_least(section: str, smallest: int, **values: Any) -> None:
    """Raise ConfigError unless every value is finite and >= ``smallest``."""
    for name, value in _each(values):
        if not (value >= smallest and math.isfinite(value)):
            raise ConfigError(f"{section}.{name}={value} must be at least {smallest}, and finite.")


def at_most(section: str, largest: int, **values: Any) -> None:
    """Raise ConfigError unless every value is <= ``largest``."""
    for name, value in _each(values):
        if value > largest:
            raise ConfigError(f"{section}.{name}={value} must be at most {largest}.")


def fits(section: str, num_bytes: float, what: str, remedy: str, *, limit: float = MOST_BYTES, **values: Any) -> None:
    """Raise ConfigError if a state needs more than ``limit`` bytes for each chain. Call it before the allocation.

    Parameters
    ----------
    section : str
        The section of the configuration, for the message.
    num_bytes : float
        Bytes that one chain needs.
    what : str
        The object that needs them, such as "a 3 x 3 matrix".
    remedy : str
        What the user can do instead.
    limit : float
        The largest number of bytes that is allowed.
    values
        The options that make the state so large, by name.
    """
    if num_bytes > limit:
        given = " and ".join(f"{section}.{name}={value}" for name, value in values.items())
        raise ConfigError(
            f"{given} needs {what} of {num_bytes / 2**30:,.2f} GiB a chain, more than {limit / 2**30:g} GiB: {remedy}."
        )


def full_data(section: str, method: str, batch_size: int | None) -> None:
    """Raise ConfigError if batches are configured for a method that compares the log densities of different steps."""
    if batch_size is not None:
        raise ConfigError(
            f"{section}.schedule.batch_size={batch_size} does not fit {method}, whose steps compare log densities of all "
            "rows: use null."
        )
