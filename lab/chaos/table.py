"""The matrix as a person reads it: a line for each row, and the document. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from lab.chaos.rows import Result

HEAD = """# Reliability, measured

Made by `make chaos` (`lab/chaos/`): every row is an experiment in a lab of network namespaces on
one machine, with the real agent, the real ExaBGP, the real kernel and a real BIRD as router. Probes
go every 10 ms; `ip monitor` records every route change on nodes and routers; after each row the
oracle compares runtime, kernel and address book. A row that promises zero has passed only if its
control showed loss. Figures are of one run; run it on your machine.
"""


COLUMNS = "| row | done | owed | measured | passed |\n|---|---|---|---|---|\n"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def line(result: Result) -> str:
    """One line for the terminal."""
    mark = "pass" if result.passed else "FAIL"
    text = "; ".join(result.measured) or "-"
    if result.problems:
        text += f" | PROBLEM: {'; '.join(result.problems)}"
    return f"{mark}  {result.row.id:<4} {result.row.what}: {text} ({result.took_s:.0f} s)"


def document(results: Sequence[Result]) -> str:
    """docs/reliability.md."""
    passed = sum(result.passed for result in results)
    parts = [HEAD, f"\n{passed} of {len(results)} rows passed in this run.\n"]
    for group, rows in groupby(results, key=lambda result: result.row.group):
        parts.append(f"\n## {group.name}: {group.value}\n\n")
        parts.append(COLUMNS)
        parts += [_table_row(result) for result in rows]
    return "".join(parts)


def inserted(text: str, results: Sequence[Result]) -> str:
    """``text`` with the table between its two markers.

    Raises:
        ValueError: it does not have them.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no place for a table: {BEGIN} and {END} are needed")
    rows = "".join(_table_row(result) for result in results)
    return f"{before}{begin}\n{COLUMNS}{rows}{end}{after}"


def _table_row(result: Result) -> str:
    row = result.row
    measured = "; ".join(result.measured) or "-"
    verdict = "yes" if result.passed else f"**no**: {'; '.join(result.problems)}"
    owed = row.expected + (f" (control: {row.control})" if row.control else "")
    cells = (row.id, row.what, owed, measured, verdict)
    return "| " + " | ".join(_cell(text) for text in cells) + " |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
