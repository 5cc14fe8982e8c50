"""What is fuzzed: a function of bytes that raises when something is wrong, and where to begin."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Target:
    """One reader of what others wrote.

    Attributes:
        run: takes any bytes; returns whether they were accepted, as far as that can be said.
            Whatever it raises is a finding: refusals that are promised it keeps to itself.
        seeds: inputs to begin with, well-made ones above all.
        tokens: words that a mutation may put in.
        floor: the share of the corpus that ``run`` must accept, so that a target whose inputs are
            all refused at the door does not pass for a test.
    """

    name: str
    what: str
    run: Callable[[bytes], bool]
    seeds: Callable[[], Iterable[bytes]]
    tokens: tuple[bytes, ...] = field(default=())
    floor: float = 0.02
    weight: int = 10
    """Its part of a campaign's cases; less for what takes milliseconds a case."""
    missing: Callable[[], str | None] = lambda: None
    """What this machine lacks for it, as a sentence; None when nothing."""
    reached: Callable[[bytes], frozenset[int]] = lambda _data: frozenset()
    """What of it that is no Python an input reaches, to choose what is kept."""
    guide: Callable[[Callable[[Callable[..., None]], Callable[..., None]]], None] | None = None
    """Is given what makes a Python function visible to the fuzzer, when there is such a part."""


class Broken(AssertionError):
    """A promise that does not hold, in a sentence."""
