"""The table of an interoperability run, for the terminal and for docs/interop.md. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """What a cell says."""

    OK = "ok"
    LIMIT = "limit"
    FAIL = "FAIL"
    MISSING = "not installed"


@dataclass(frozen=True, slots=True)
class Cell:
    """``text``: the figure of an ok, the reason of a limit, the sentence of a failure."""

    daemon: str
    case: str
    outcome: Outcome
    text: str = ""
    took_s: float = 0.0


def short(cell: Cell | None) -> str:
    """A cell in a few letters."""
    if cell is None:
        return ""
    if cell.outcome is Outcome.OK:
        return f"ok, {cell.text}" if cell.text else "ok"
    return str(cell.outcome.value)


def table(cells: Sequence[Cell], *, titles: Mapping[str, str], daemons: Mapping[str, str]) -> str:
    """Markdown: a row per case, a column per daemon, and a list of what is not ok below.

    Args:
        titles: case -> its words, in the order of the rows.
        daemons: name -> the program's version, in the order of the columns.
    """
    found = {(cell.case, cell.daemon): cell for cell in cells}
    limits = [c for c in cells if c.outcome is Outcome.LIMIT]
    marks = {id(cell): f"limit [{number}]" for number, cell in enumerate(limits, 1)}

    def words(case: str, daemon: str) -> str:
        cell = found.get((case, daemon))
        text = marks.get(id(cell), short(cell))
        return f"**{text}**" if cell is not None and cell.outcome is Outcome.FAIL else text

    lines = [
        "| | " + " | ".join(daemons.values()) + " |",
        "|---|" + "---|" * len(daemons),
    ]
    lines += [
        f"| {title} | " + " | ".join(words(case, name) for name in daemons) + " |"
        for case, title in titles.items()
        if any((case, name) in found for name in daemons)
    ]
    if limits:
        lines += ["", "Limits of the peers, each seen in this run:", ""]
        lines += [
            f"{number}. {daemons[c.daemon]}, {titles[c.case]}: {c.text}"
            for number, c in enumerate(limits, 1)
        ]
    failures = [c for c in cells if c.outcome is Outcome.FAIL]
    if failures:
        lines += ["", "Failures:", ""]
        lines += [f"- {daemons[c.daemon]}, {titles[c.case]}: {c.text}" for c in failures]
    return "\n".join(lines) + "\n"
