"""What a stored configuration may name: reading somebody's results must not run somebody's code.

The configuration of a command is the user's own and is trusted. That of a stored run may come from anybody. Before
anything of it is imported, each ``_target_`` in it must be a factory that the configurations of this package name, an
optimiser or schedule of optax, a distribution of NumPyro or a module of Flax.
"""

import functools
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from bdlbench.errors import ConfigError
from bdlbench.runs.configuration import MOVED, conf_dir

OPTAX = re.compile(r"optax(\.(schedules|contrib))?\.[A-Za-z]\w*")
NUMPYRO = re.compile(r"numpyro\.distributions\.[A-Z]\w*")
FLAX = re.compile(r"flax\.(nnx|linen)\.[A-Z]\w*")


@functools.cache
def shipped_targets() -> frozenset[str]:
    """Every factory of this package that its configurations name."""
    found: set[str] = set()
    for path in conf_dir().rglob("*.yaml"):
        found |= set(re.findall(r"_target_:\s*['\"]?(bdlbench\.[\w.]+)", path.read_text(encoding="utf-8")))
    return frozenset(found)


def is_trusted(target: Any) -> bool:
    """Whether a ``_target_`` is a factory that may be called with whatever options stand beside it.

    The name is looked at first, so that nothing is imported for a name that is refused. The object behind the name of a
    library is looked at then: a library's module also holds what it imports itself.
    """
    if not isinstance(target, str):
        return False
    if MOVED.get(target, target) in shipped_targets():
        return True
    if not any(pattern.fullmatch(target) for pattern in (OPTAX, NUMPYRO, FLAX)):
        return False
    module, _, name = target.rpartition(".")
    found = getattr(importlib.import_module(module), name, None)
    if OPTAX.fullmatch(target):
        # Optax's types and errors are called with nothing but their own fields, and its modules are no callables.
        own = str(getattr(found, "__module__", "")).split(".")[0] == "optax"
        return own and (inspect.isfunction(found) or inspect.isclass(found))
    if NUMPYRO.fullmatch(target):
        from numpyro.distributions import Distribution

        return inspect.isclass(found) and issubclass(found, Distribution)
    from flax import linen, nnx

    return inspect.isclass(found) and issubclass(found, linen.Module | nnx.Module)


def untrusted(node: Any, path: str = "") -> Iterator[str]:
    """What in a stored configuration could run code, or read from where its author chose: ``path=value`` each."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            place = f"{path}.{key}" if path else str(key)
            if (
                (key == "_target_" and not is_trusted(value))
                or key == "_args_"
                or (path == "paths" and value is not None)
            ):
                yield f"{place}={value}"
            else:
                yield from untrusted(value, place)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from untrusted(value, f"{path}.{index}")


def refuse_untrusted(config: Mapping[str, Any], run_id: str) -> None:
    """Raise ConfigError where a stored configuration names what this package does not ship.

    Raises
    ------
    ConfigError
        One sentence that names what was found and how to say that it is trusted.
    """
    found = next(untrusted(config), None)
    if found is not None:
        raise ConfigError(
            f"id: run '{run_id}' was configured with {found}, which is not bdlbench's own: if you trust who made this "
            "run, give trust=True in Python, or --trust on the command line."
        )
