"""The matrix as a person reads it: a line for each row, and the document. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from lab.chaos.rows import Group, Result, Row

HEAD = """# Reliability, measured

Made by `make chaos` (`lab/chaos/`): every row is an experiment in a lab of network namespaces on
one machine, with the real agent, the real ExaBGP, the real kernel and a real BIRD as router. Probes
go each 8 ms or so; `ip monitor` records every route change on nodes and routers; after each row the
oracle compares runtime, kernel and address book. A row that promises zero has passed only if its
control showed loss. Figures are of one run of each row: a run replaces the lines of the rows that
it ran. What a machine lacks something for (memory cgroups for O10, a kube-apiserver for S9) is
skipped there, which is no pass, and keeps its line. Run it on your machine.

O11, thousands of pods coming and going while launchers and agents are killed, runs by its id alone
or as `make soak`; its figures: [soak.md](soak.md), its plot:

![Memory, descriptors, links, routes, namespaces over the run](soak.svg)

Hostile input by the million: [fuzzing.md](fuzzing.md).
"""


COLUMNS = "| row | done | owed | measured | passed |\n|---|---|---|---|---|\n"
_LINE = re.compile(r"^\| ([A-Z]\d+[a-z]?) \|.*\|$", re.MULTILINE)
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def line(result: Result) -> str:
    """One line for the terminal."""
    mark = "FAIL" if result.failed else "skip" if result.skipped else "pass"
    text = "; ".join(result.measured) or result.skipped or "-"
    if result.problems:
        text += f" | PROBLEM: {'; '.join(result.problems)}"
    return f"{mark}  {result.row.id:<4} {result.row.what}: {text} ({result.took_s:.0f} s)"


def document(results: Sequence[Result], rows: Sequence[Row] = (), before: str = "") -> str:
    """docs/reliability.md.

    Args:
        results: of this run.
        rows: the whole matrix, in its order; the results' own rows when it is not given.
        before: the document as it was; a row that did not run keeps its line of there.
    """
    kept = {found[1]: found[0] + "\n" for found in _LINE.finditer(before)}
    kept |= {
        result.row.id: _table_row(result)
        for result in results
        # Skipped is not run: a line of a machine that could says more.
        if not (result.skipped and result.row.id in kept)
    }
    present = [row for row in rows or [r.row for r in results] if row.id in kept]
    passed = sum(kept[row.id].endswith("| yes |\n") for row in present)
    parts = [HEAD, f"\n{passed} of {len(present)} rows passed when they were last run.\n"]
    for group, members in groupby(sorted(present, key=lambda row: row.order), _group):
        parts.append(f"\n## {group.name}: {group.value}\n\n")
        parts.append(COLUMNS)
        parts += [kept[row.id] for row in members]
    return "".join(parts)


def _group(row: Row) -> Group:
    return row.group


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
    if result.skipped:
        verdict = f"**skipped**: {result.skipped}"
    owed = row.expected + (f" (control: {row.control})" if row.control else "")
    cells = (row.id, row.what, owed, measured, verdict)
    return "| " + " | ".join(_cell(text) for text in cells) + " |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
