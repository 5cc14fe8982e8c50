"""Rows to the terminal: table, wide, json, yaml, name; once, or again and again (--watch).

Tables are for people and for awk: no borders, one line a row. On a terminal the last column is cut
to the width; in a pipe nothing is.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from routing.cli.exits import FINDINGS, HEALTHY, PARTIAL, UNREACHABLE
from routing.cli.options import colour_of
from routing.cli.table import render

Row = Mapping[str, Any]
Cell = Callable[[Row], str]

FORMATS = ("table", "wide", "json", "yaml", "name")
WATCH_S = 2.0
_CLEAR = "\x1b[H\x1b[J"
_BAD_WORDS = frozenset({"missing", "wrong", "stray", "rejected", "link-down", "no-route", "Idle",
                        "Active", "Connect", "unhealthy", "fail", "error"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Columns:
    """Headers and cells; ``wide`` come after the others with -o wide. ``name`` is -o name's."""

    normal: Sequence[tuple[str, Cell]]
    wide: Sequence[tuple[str, Cell]]
    name: Cell


def text(key: str) -> Cell:
    """The cell of one key; None is empty."""

    def cell(row: Row) -> str:
        value = row.get(key)
        if value is None:
            return ""
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)

    return cell


def show(rows: Sequence[Row], columns: Columns, *, output: str, no_headers: bool) -> None:
    """Prints rows in one of FORMATS."""
    if output in ("json", "yaml"):
        show_document(list(rows), output)
        return
    if output == "name":
        for row in rows:
            click.echo(columns.name(row))
        return
    chosen = [*columns.normal, *(columns.wide if output == "wide" else ())]
    cells = [[cell(row) for _, cell in chosen] for row in rows]
    lines = render([header for header, _ in chosen], cells).splitlines()
    for number, line in enumerate(lines[1:] if no_headers else lines):
        click.echo(_painted(_cut(line), is_header=number == 0 and not no_headers))


def _cut(line: str) -> str:
    if not sys.stdout.isatty():
        return line
    width = shutil.get_terminal_size().columns
    return line if len(line) <= width else line[: max(1, width - 1)] + "…"


def _painted(line: str, *, is_header: bool) -> str:
    if is_header or not colour_of(sys.stdout):
        return line
    if _BAD_WORDS.intersection(line.split()):
        return click.style(line, fg="red")
    return line


def show_document(document: Any, output: str) -> None:
    """Prints JSON or YAML."""
    if output == "yaml":
        import yaml

        click.echo(yaml.safe_dump(document, sort_keys=False), nl=False)
    else:
        click.echo(json.dumps(document, indent=2))


def exit_code(*, findings: bool, silent: Mapping[str, str], answered: bool) -> int:
    """What is known to be wrong comes before what is not known."""
    if not answered and silent:
        return UNREACHABLE
    if findings:
        return FINDINGS
    return PARTIAL if silent else HEALTHY


def tell_silent(silent: Mapping[str, str]) -> None:
    """The nodes that did not answer, on stderr."""
    for node, why in sorted(silent.items()):
        click.echo(f"slash32: {node} did not answer: {why}", err=True)


def repeat(once: Callable[[], int], *, watch: bool) -> None:
    """Ends with the exit code of ``once``; with ``watch``, that of the last time before Ctrl-C."""
    code = once()
    while watch:
        try:
            time.sleep(WATCH_S)
            click.echo(_CLEAR if sys.stdout.isatty() else "", nl=not sys.stdout.isatty())
            code = once()
        except KeyboardInterrupt:
            break
    raise SystemExit(code)
