"""A row of the fault matrix, and what came of running it.

A row is an experiment: it does something to a lab, measures, and holds each figure against what is
owed. A row that promises zero names its control, an experiment that must show loss; a zero counts
for nothing while its control does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.chaos.world import World


class Skipped(Exception):
    """Raised by an experiment that this machine cannot make; says what is missing. Not a pass."""


class Stage(Enum):
    """The lab that a row wants; rows of one stage share one lab."""

    ONE_TOR = "three nodes, one BIRD"
    TWO_TORS = "two nodes, two BIRDs"
    REFLECTORS = "three nodes, two route reflectors (BIRD)"
    MESH = "three nodes, no router"
    FRR_TOR = "two nodes, one FRR"
    KUBERNETES = "three nodes, one BIRD, a Kubernetes API"
    NO_LAB = "no lab"


class Group(Enum):
    """The letter of a row's id."""

    R = "restart, upgrade, failover"
    L = "links and peers"
    B = "hostile or broken BGP input"
    K = "kernel state"
    A = "allocation"
    C = "CNI executable"
    O = "control plane, operations"  # noqa: E741 - the letter of the matrix
    S = "security"
    T = "topologies and policy"


@dataclass
class Verdict:
    """What was measured, and what of it is not as owed. Filled by a row while it runs."""

    measured: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """A figure for the table."""
        self.measured.append(text)

    def must(self, holds: bool, otherwise: str) -> None:
        """``otherwise`` is a problem unless ``holds``."""
        if not holds:
            self.problems.append(otherwise)


Experiment = Callable[["World", Verdict], None] | Callable[[object, Verdict], None]
"""Does its damage to the world and fills the verdict. A row without a lab takes any object."""


@dataclass(frozen=True, slots=True)
class Row:
    """One experiment.

    Attributes:
        id: a letter of Group and a number, with a lower-case letter for a variant.
        what: what is done, for the table.
        expected: what is owed, with its figures.
        control: the row that must show loss for this one's zero to count, or None.
        is_quick: it runs in ``make test`` too.
        is_long: it runs only when it is asked for by its id.
        leaves_lab: False when the lab must be built anew after it.
    """

    id: str
    what: str
    expected: str
    stage: Stage
    run: Experiment
    control: str | None = None
    is_quick: bool = False
    is_long: bool = False
    leaves_lab: bool = True

    @property
    def group(self) -> Group:
        return Group[self.id[0]]

    @property
    def order(self) -> tuple[int, int, str]:
        """Its place in the table: by letter as in the matrix, then by number."""
        digits = "".join(c for c in self.id if c.isdigit())
        return list(Group).index(self.group), int(digits), self.id


@dataclass(frozen=True, slots=True)
class Result:
    """What a row came to. ``took_s`` is wall time; ``skipped`` why it could not be run here."""

    row: Row
    measured: tuple[str, ...]
    problems: tuple[str, ...]
    took_s: float
    skipped: str = ""

    @property
    def passed(self) -> bool:
        return not self.problems and not self.skipped

    @property
    def failed(self) -> bool:
        return bool(self.problems)


def judge_controls(results: list[Result]) -> list[Result]:
    """A zero whose control did not show its loss, or did not run, has not passed. Pure."""
    by_id = {result.row.id: result for result in results}
    judged = []
    for result in results:
        control = result.row.control
        if control is None or result.skipped:
            judged.append(result)
            continue
        found = by_id.get(control)
        if found is not None and found.passed:
            judged.append(result)
            continue
        words = "was not run" if found is None else "did not show what it must"
        judged.append(
            Result(
                result.row,
                result.measured,
                (*result.problems, f"its control {control} {words}"),
                result.took_s,
            )
        )
    return judged


def with_controls(wanted: list[Row], everything: list[Row]) -> list[Row]:
    """The rows asked for, and the controls that they name. In table order. Pure."""
    by_id = {row.id: row for row in everything}
    needed = {row.id for row in wanted} | {row.control for row in wanted if row.control}
    return sorted((by_id[name] for name in needed), key=lambda row: row.order)
