"""Libraries that cannot be imported at the top of a module."""

import importlib
from typing import Any

import jax


def blackjax(name: str) -> Any:
    """Import ``blackjax.<name>``.

    BlackJAX creates arrays while it is imported. At the top of a module this would fix the devices before they are
    chosen, so it is imported when a factory is called. Factories are called inside a trace, and these arrays must not
    become tracers of it.
    """
    with jax.ensure_compile_time_eval():
        return importlib.import_module(f"blackjax.{name}")
