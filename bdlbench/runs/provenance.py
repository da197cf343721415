"""Where and with what numbers came about: versions, commit, device, memory."""

import contextlib
import functools
import importlib.metadata
import resource
import subprocess
import sys
from pathlib import Path

VERSIONED = ("bdlbench", "jax", "jaxlib", "numpyro", "flax", "optax", "blackjax", "numpy")


def peak_memory() -> int:
    """Peak resident bytes of this process. Linux's ``ru_maxrss`` begins with the parent's peak, so it comes second."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    found = {"python": sys.version.split()[0]}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout that bdlbench runs from, if it is one."""
    here = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = ["git", "-C", str(here), "rev-parse", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    return None


def device() -> str:
    """What computes, and how many of it."""
    import jax

    return f"{jax.devices()[0].device_kind} x {jax.device_count()}"
