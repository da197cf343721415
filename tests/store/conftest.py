"""A store in a temporary folder, and records such as a run makes."""

from collections.abc import Callable
from typing import Any

import pytest

from bdlbench.store import Store

CONFIG = {
    "seed": 3,
    "data": {"_target_": "bdlbench.data.diabetes", "split": 1},
    "inference": {"step_size": 1e-5, "schedule": {"num_chains": 2}},
}


def record_of(inference: str = "nuts", **changes: Any) -> dict[str, Any]:
    """A complete record with some fields changed."""
    record = {
        "status": "complete",
        "labels": {"data": "diabetes", "model": "bnn", "network": "mlp", "inference": inference},
        "metrics": {"lppd": -5.5, "rmse": 55.0, "coverage_90": 0.9, "standardized": {"lppd": -1.2}},
        "seconds": {"setup": 0.1, "compile": 1.0, "warmup": 2.0, "sample": 3.0, "predict": 0.1},
        "num_grads": {"warmup": 1000, "sample": 2000},
        "device": "cpu",
        "versions": {"jax": "0.12"},
        "warnings": [],
    }
    return record | changes


@pytest.fixture(name="record_of")
def record_of_fixture() -> Callable[..., dict[str, Any]]:
    """The function :func:`record_of` as a fixture."""
    return record_of


@pytest.fixture
def config() -> dict[str, Any]:
    """A small resolved configuration."""
    return CONFIG


@pytest.fixture
def store(tmp_path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def make_run(store) -> Callable[..., dict[str, Any]]:
    """A function that writes a finished run without draws and returns its record."""

    def make(id: str, inference: str = "nuts", config: dict[str, Any] = CONFIG, **changes: Any) -> dict[str, Any]:
        with store.writer(id, config) as writer:
            return writer.finish(record_of(inference, **changes))

    return make
