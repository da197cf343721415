"""Tests of data: they read files from the mirror or the cache, never from the internet, and skip what is not there."""

from collections.abc import Generator

import pytest

from bdlbench.data import fetch

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the public address at nobody, so that no test leaves this machine."""
    monkeypatch.setattr(fetch, "BASE_URL", NOWHERE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Skip a test, with the reason, whose file is neither in the mirror nor in the cache.

    Tests of fetching itself bring their own server: there the error is a failure.
    """
    try:
        yield
    except fetch.NotFetchedError as error:
        if item.path.name == "test_fetch.py":
            raise
        hint = "BDLBENCH_MIRROR lacks" if fetch.files_at().mirror else "neither BDLBENCH_MIRROR nor a filled cache has"
        pytest.skip(f"{hint} {str(error).split(' could ')[0].rsplit('/', 1)[-1]}")
