"""How long things took, as cumulative histograms that cost a microsecond to fill.

Plain values, so that a process of its own can hand its own to another, and whoever renders metrics
needs nothing of this package. A key is a tuple of label values. Keys are bounded: what comes after
``KEYS_MAX`` different ones is counted under ``OTHER``.
"""

from __future__ import annotations

import inspect
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

T = TypeVar("T")
Key = tuple[str, ...]

BOUNDS_S = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Upper bounds of the buckets; one more has no bound. From a route to a verb's deadline."""

KEYS_MAX = 256
OTHER = "other"
OK = "ok"
ERROR = "error"


@dataclass(frozen=True, slots=True)
class Histogram:
    """``counts`` by bucket (not cumulative), one longer than the bounds; the sum in seconds."""

    counts: tuple[int, ...]
    sum_s: float

    @property
    def count(self) -> int:
        return sum(self.counts)

    def __add__(self, other: Histogram) -> Histogram:
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Histogram(counts, self.sum_s + other.sum_s)


class Timings:
    """Histograms by key. Any thread may call it: removals of links run in threads."""

    def __init__(self, bounds_s: Sequence[float] = BOUNDS_S) -> None:
        self.bounds_s = tuple(bounds_s)
        self._counts: dict[Key, list[int]] = {}
        self._sums_s: dict[Key, float] = {}
        self._lock = threading.Lock()

    def observe(self, key: Key, duration_s: float) -> None:
        """One more thing of this kind took ``duration_s``."""
        bucket = bisect_left(self.bounds_s, duration_s)
        with self._lock:
            counts = self._counts.get(key)
            if counts is None:
                if len(self._counts) >= KEYS_MAX:
                    key = (OTHER,) * len(key)
                counts = self._counts.setdefault(key, [0] * (len(self.bounds_s) + 1))
            counts[bucket] += 1
            self._sums_s[key] = self._sums_s.get(key, 0.0) + duration_s

    def empty(self) -> Histogram:
        """Nothing yet, in our buckets."""
        return Histogram((0,) * (len(self.bounds_s) + 1), 0.0)

    def read(self) -> Mapping[Key, Histogram]:
        """What there is so far, by key."""
        with self._lock:
            return {
                key: Histogram(tuple(counts), self._sums_s[key])
                for key, counts in self._counts.items()
            }


class Delegate:
    """A port that passes everything on, except what a subclass (or its maker) puts in the way."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def timed(
    port: T,
    phases: Mapping[str, str],
    timings: Timings,
    clock: Callable[[], float] = time.perf_counter,
) -> T:
    """``port`` with some of its methods measured, under the key (phase, ok or error).

    Measuring is around a port and not inside a verb, so that the verbs can be rebuilt without it.

    Args:
        port: anything with methods, plain or coroutine functions.
        phases: method's name -> the phase's.

    Raises:
        AttributeError: the port has no such method; a phase that would never be seen is a mistake.
    """
    delegate = Delegate(port)
    for method, phase in phases.items():
        inner = getattr(port, method)
        wrap = _timed_coroutine if inspect.iscoroutinefunction(inner) else _timed_call
        vars(delegate)[method] = wrap(inner, phase, timings, clock)
    return cast(T, delegate)


def _timed_call(
    inner: Callable[..., Any], phase: str, timings: Timings, clock: Callable[[], float]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        began_s, result = clock(), ERROR
        try:
            answer = inner(*args, **kwargs)
            result = OK
        finally:
            timings.observe((phase, result), clock() - began_s)
        return answer

    return call


def _timed_coroutine(
    inner: Callable[..., Any], phase: str, timings: Timings, clock: Callable[[], float]
) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        began_s, result = clock(), ERROR
        try:
            answer = await inner(*args, **kwargs)
            result = OK
        finally:
            timings.observe((phase, result), clock() - began_s)
        return answer

    return call
