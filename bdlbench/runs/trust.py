"""Decide which factories a stored configuration may name, so that loading results of other people is safe.

The configuration of a command comes from the user and is trusted. The configuration of a stored run may come from any
person. Before anything that it names is imported, each ``_target_`` must be one of these: a factory that the
configurations of this package name, an optimiser or schedule of optax, a distribution of NumPyro, or a module of Flax.
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
KEPT = ("bdlbench.model.kept.partly", "bdlbench.model.kept.on_tree")
"""Models that ``bdlbench.fit`` writes into the configuration of a run that it keeps."""
NUMPYRO = re.compile(r"numpyro\.distributions\.[A-Z]\w*")
FLAX = re.compile(r"flax\.(nnx|linen)\.[A-Z]\w*")


@functools.cache
def shipped_targets() -> frozenset[str]:
    """Return the paths of all factories of this package that its configurations name, those of kept fits included."""
    found: set[str] = {*KEPT}
    for path in conf_dir().rglob("*.yaml"):
        found |= set(re.findall(r"_target_:\s*['\"]?(bdlbench\.[\w.]+)", path.read_text(encoding="utf-8")))
    return frozenset(found)


def is_trusted(target: Any) -> bool:
    """Whether a ``_target_`` is a factory that may be called with any options.

    First the name is checked, so that nothing is imported for a name that is refused. For a name in a library the
    object itself is checked next, because the library's module also contains what it has imported from elsewhere.
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
        # Calling a type or an error of optax only sets its fields, and its modules cannot be called.
        own = str(getattr(found, "__module__", "")).split(".")[0] == "optax"
        return own and (inspect.isfunction(found) or inspect.isclass(found))
    if NUMPYRO.fullmatch(target):
        from numpyro.distributions import Distribution

        return inspect.isclass(found) and issubclass(found, Distribution)
    from flax import linen, nnx

    return inspect.isclass(found) and issubclass(found, linen.Module | nnx.Module)


def untrusted(node: Any, path: str = "") -> Iterator[str]:
    """Yield each entry of a stored configuration that is not trusted, as ``path=value``.

    Such entries could run code, or read files from a place that the author of the configuration chose. A stored
    configuration is resolved, so an interpolation in it is no value of a run. OmegaConf could make a factory from it, or
    read a variable of the environment.
    """
    if isinstance(node, str) and "${" in node:
        yield f"{path}={node}"
    elif isinstance(node, Mapping):
        for key, value in node.items():
            place = f"{path}.{key}" if path else str(key)
            if (
                (key == "_target_" and not is_trusted(value))
                or key == "_args_"
                or "${" in str(key)
                or (path == "paths" and value is not None)
            ):
                yield f"{place}={value}"
            else:
                yield from untrusted(value, place)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from untrusted(value, f"{path}.{index}")


def refuse_untrusted(config: Mapping[str, Any], run_id: str) -> None:
    """Raise ConfigError if a stored configuration has an entry that is not trusted.

    The message names the entry, and the option by which the user can trust the run.
    """
    found = next(untrusted(config), None)
    if found is not None:
        raise ConfigError(
            f"id: run '{run_id}' was configured with {found}, which is not bdlbench's own: if you trust who made this "
            "run, give trust=True in Python, or --trust on the command line."
        )
