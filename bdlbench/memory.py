"""How many jobs fit into memory together, and whether an error says that they did not."""

from collections.abc import Sequence
from typing import Any


def jobs_that_fit(jobs: Sequence[Any]) -> int:
    """How many of these jobs, which share a program and shapes, run as lanes of one program; at least 1."""
    return max(1, len(jobs))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that host or device memory ran out."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
