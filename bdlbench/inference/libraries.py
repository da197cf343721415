"""Libraries that cannot be imported at the top of a module."""

import importlib
from typing import Any

import jax


def blackjax(name: str) -> Any:
    """Import ``blackjax.<name>``.

    BlackJAX makes arrays while it is imported. That would fix the devices before they are chosen, so it is imported
    when a factory is called; and factories are called in a trace, whose tracers those arrays must not be.
    """
    with jax.ensure_compile_time_eval():
        return importlib.import_module(f"blackjax.{name}")
