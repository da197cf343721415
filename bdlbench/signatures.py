"""What a factory may be given: the parameters behind partials and classes."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any


def parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters of a function, class or partial by name, without ``self`` and without what a partial has bound.

    ``inspect.signature`` sees only ``(*args, **kwargs)`` through the metaclass of a Flax NNX module.
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
    """Declare float parameters that shape the computation: they are compiled in, not passed as arguments."""

    def mark(factory: Callable[..., Any]) -> Callable[..., Any]:
        setattr(factory, "static", names)  # noqa: B010
        return factory

    return mark


def static_names(factory: Callable[..., Any]) -> tuple[str, ...]:
    """The float parameters of a factory that :func:`static` declares."""
    return getattr(factory, "static", ())
