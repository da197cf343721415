"""The bde package's MILE on rows from a file, as JSON; a script for an interpreter that has sklearn-contrib-bde.

That package pins a BlackJAX of its own, so it lives in another environment than the library, and this file imports
nothing of the library. ``python bde_peer.py rows.npz '{"warmup_steps": 500, ...}'``.
"""

import contextlib
import io
import json
import os
import resource
import sys
import time


def main() -> None:
    """Fit, predict the test rows, print seconds, CPU seconds and scores in standardised units."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}"
    import numpy as np
    from scipy.special import logsumexp

    rows, options = np.load(sys.argv[1]), json.loads(sys.argv[2])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from bde import BdeRegressor  # type: ignore[import-not-found]
        from bde.loss import GaussianNLL  # type: ignore[import-not-found]

        model = BdeRegressor(loss=GaussianNLL(), **options)
        start, used = time.perf_counter(), cpu_seconds()
        model.fit(rows["x"], rows["y"][:, None])
        raw = np.asarray(model.predict(rows["x_test"], raw=True), np.float64)
        took, used = time.perf_counter() - start, cpu_seconds() - used
    mean, scale = raw[..., 0].reshape(-1, len(rows["y_test"])), 1e-6 + np.logaddexp(0, raw[..., 1])
    scale, error = scale.reshape(mean.shape), rows["y_test"] - mean
    log_prob = -0.5 * (error / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    nll = -(logsumexp(log_prob, 0) - np.log(len(log_prob))).mean()
    rmse = np.sqrt((error.mean(0) ** 2).mean())
    print(json.dumps({"seconds": took, "cpu_seconds": used, "rmse": float(rmse), "nll": float(nll)}))


def cpu_seconds() -> float:
    """Seconds of all cores that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
