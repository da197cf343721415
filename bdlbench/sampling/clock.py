"""The clock that measures the seconds of each phase of a run."""

import time


class Clock:
    """Adds up the seconds of each phase, such as ``compile``, ``warmup``, ``sample`` and ``predict``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def measure(self, phase: str) -> "_Measure":
        """Return a context whose duration is added to ``phase``, without the durations of contexts inside it."""
        return _Measure(self, phase)

    def sampling(self) -> float:
        """Return the seconds of warm-up and sampling. Methods are compared by this number."""
        return self.seconds.get("warmup", 0.0) + self.seconds.get("sample", 0.0)


class _Measure:
    def __init__(self, clock: Clock, phase: str) -> None:
        self.clock, self.phase, self.elapsed = clock, phase, 0.0

    def __enter__(self) -> "_Measure":
        self._start, self._inner = time.perf_counter(), dict(self.clock.seconds)
        return self

    def __exit__(self, *exc: object) -> None:
        # The seconds of nested contexts have been counted already.
        nested = sum(s - self._inner.get(k, 0.0) for k, s in self.clock.seconds.items())
        self.elapsed = time.perf_counter() - self._start - nested
        self.clock.seconds[self.phase] = self.clock.seconds.get(self.phase, 0.0) + self.elapsed
