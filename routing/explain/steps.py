"""A chain of steps: what was looked at, what was found, and what is the first thing wrong. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """``UNKNOWN`` is said where there is no evidence; nothing is guessed."""

    OK = "ok"
    WRONG = "wrong"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Step:
    """One link of the chain.

    Attributes:
        id: a token that stays the same between versions (docs/explain.md lists them).
        place: where it was looked at: the store, a node, a router, a pod.
        title: what must hold, in a few words.
        evidence: what was found, a sentence.
        fault: what is wrong, as a token; "" unless ``verdict`` is WRONG.
        remedy: what to do, a sentence; "" unless WRONG (or something could be found out).
    """

    id: str
    place: str
    title: str
    verdict: Verdict
    evidence: str
    fault: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The whole answer. ``subject`` is what was asked, ``route`` from where to where."""

    subject: str
    source: str
    destination: str
    steps: tuple[Step, ...]

    @property
    def first_wrong(self) -> Step | None:
        return next((step for step in self.steps if step.verdict is Verdict.WRONG), None)

    @property
    def unknown(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.verdict is Verdict.UNKNOWN)

    @property
    def conclusion(self) -> str:
        """The last line: the first thing that is wrong and its remedy."""
        wrong = self.first_wrong
        if wrong is not None:
            return f"{wrong.fault} at {wrong.place}: {wrong.evidence}. Remedy: {wrong.remedy}"
        if self.unknown:
            names = ", ".join(f"{step.id} at {step.place}" for step in self.unknown)
            return f"nothing wrong was found, but not everything could be seen: {names}"
        return "everything on the way there and back is as it should be"


class Chain:
    """Collects steps. ``ok``, ``wrong`` and ``unknown`` add one and return nothing."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    def __iter__(self) -> Iterator[Step]:
        return iter(self._steps)

    def ok(self, id_: str, place: str, title: str, evidence: str) -> None:
        """It holds."""
        self._steps.append(Step(id_, place, title, Verdict.OK, evidence))

    def wrong(
        self, id_: str, place: str, title: str, evidence: str, *, fault: str, remedy: str
    ) -> None:
        """It does not hold."""
        self._steps.append(Step(id_, place, title, Verdict.WRONG, evidence, fault, remedy))

    def unknown(self, id_: str, place: str, title: str, evidence: str, *, remedy: str = "") -> None:
        """Nobody who could be asked knows."""
        self._steps.append(Step(id_, place, title, Verdict.UNKNOWN, evidence, remedy=remedy))
