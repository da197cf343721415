"""The provenance of a result: versions of packages, commit, device and memory."""

import contextlib
import functools
import importlib.metadata
import resource
import subprocess
import sys
from pathlib import Path

VERSIONED = ("bdlbench", "jax", "jaxlib", "numpyro", "flax", "optax", "blackjax", "numpy")


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes.

    On Linux ``/proc`` is read first, because ``ru_maxrss`` of a new process starts at the peak of its parent.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": sys.version.split()[0]}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def git_commit() -> str | None:
    """Return the commit of the git checkout that bdlbench runs from, or None if it is installed elsewhere."""
    here = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = ["git", "-C", str(here), "rev-parse", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    return None


def device() -> str:
    """Return the kind and the number of JAX's devices, such as ``cpu x 2``."""
    import jax

    return f"{jax.devices()[0].device_kind} x {jax.device_count()}"
