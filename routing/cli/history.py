"""slash32 history and diff: what changed, when and why, from the agents' journals."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from routing.cli.exits import UNREACHABLE, Exit
from routing.cli.fleet import Answers, Where, agent_here, hear_by, output_options, where_options
from routing.cli.output import Columns, Row, exit_code, repeat, show, tell_silent, text
from routing.cli.resources_options import state_dir_option
from routing.cli.status import parse_duration

Entry = dict[str, Any]


def _moment(row: Row) -> str:
    return (
        time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(row["at"])) + f"{row['at'] % 1:.3f}"[1:]
    )


_COLUMNS = Columns(
    normal=[
        ("AT", _moment),
        ("NODE", text("node")),
        ("KIND", text("kind")),
        ("ACTION", text("action")),
        ("PREFIX", lambda row: str(row.get("prefix") or row.get("what") or "")),
        ("PEER", text("peer")),
        ("REASON", text("reason")),
    ],
    wide=[("DETAIL", text("detail"))],
    name=lambda row: f"{row['node']}/{row.get('prefix') or row.get('peer') or row['kind']}",
)


@click.command()
@click.argument("prefix", required=False)
@click.option("--since", default="1h", show_default=True, help="How far back: 10m, 2h, 1d.")
@state_dir_option
@output_options
@where_options
def history(
    where: Where,
    prefix: str | None,
    since: str,
    state_dir: Path,
    output: str,
    no_headers: bool,
    watch: bool,
) -> None:
    """Every change of routes, sessions and announcements, oldest first, with its reason.

    With PREFIX (or an address) only what concerns it. `found` is what a new agent met as it was.
    The journal is bounded: about 20,000 changes
    a node; it is read from disk, so that a dead agent's is there too.
    """
    seconds = parse_duration(since)
    keep = _concerns(prefix)

    def once() -> int:
        answers = _entries(where, state_dir, since, seconds)
        rows = sorted((row for row in answers.rows() if keep(row)), key=lambda row: row["at"])
        show(rows, _COLUMNS, output=output, no_headers=no_headers)
        tell_silent(answers.silent)
        return exit_code(findings=False, silent=answers.silent, answered=bool(answers.by_node))

    repeat(once, watch=watch)


def _entries(where: Where, state_dir: Path, since: str, seconds: float) -> Answers:
    def read_here(node: str) -> Sequence[Entry]:
        from routing.journal import read_journal

        node = node or agent_here(where) or os.uname().nodename.lower()

        try:
            found = read_journal(state_dir / "journal", since=time.time() - seconds)
            return [{**entry, "node": node} for entry in found]
        except OSError as error:
            raise Exit(f"{error.filename}: {error.strerror}", UNREACHABLE) from None

    return hear_by(where, read_here, ["history", "--since", since])


def _concerns(prefix: str | None) -> Callable[[Row], bool]:
    from routing.cli.inspect import concerns

    is_it = concerns(prefix)
    return lambda row: prefix is None or ("prefix" in row and is_it(row["prefix"]))


_DIFF = Columns(
    normal=[
        ("", text("sign")),
        ("NODE", text("node")),
        ("KIND", text("kind")),
        ("WHAT", text("key")),
        ("CHANGES", text("changes")),
        ("LAST-REASON", text("reason")),
    ],
    wide=[("DETAIL", text("detail"))],
    name=lambda row: f"{row['node']}/{row['key']}",
)


@click.command()
@click.option("--since", required=True, help="Against how long ago: 10m, 2h, 1d.")
@state_dir_option
@output_options
@where_options
def diff(
    where: Where, since: str, state_dir: Path, output: str, no_headers: bool, watch: bool
) -> None:
    """What is other than it was: + new, - gone, ~ changed. Exit 1 when anything is.

    Made from the journal: what came and went again in between is not in it (see history).
    """
    seconds = parse_duration(since)

    def once() -> int:
        answers = _entries(where, state_dir, since, seconds)
        rows = net_changes(answers.rows())
        show(rows, _DIFF, output=output, no_headers=no_headers)
        tell_silent(answers.silent)
        return exit_code(findings=bool(rows), silent=answers.silent, answered=bool(answers.by_node))

    repeat(once, watch=watch)


_APPEARS = frozenset({"created", "announced", "up", "rejected", "began"})
_GOES = frozenset({"deleted", "withdrawn", "down", "removed", "ended", "released"})


def net_changes(entries: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """The entries of one thing as one line: what it was before the first, what it is after the
    last. A thing that is as it was is left out."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for entry in sorted(entries, key=lambda each: each["at"]):
        if entry["kind"] in ("journal", "agent") or entry["action"] == "found":
            # A new agent's first look changes nothing.
            continue
        keys = ("node", "kind", "prefix", "peer", "what")
        groups.setdefault(tuple(str(entry.get(key, "")) for key in keys), []).append(entry)
    found = []
    for key, group in groups.items():
        was_there = group[0]["action"] not in _APPEARS
        is_there = group[-1]["action"] not in _GOES
        if not was_there and not is_there:
            continue
        touched = [e for e in group if e["action"] in ("replaced", "changed", "flapped")]
        if was_there and is_there and not touched:
            # Deleted and made again, or put back by a repair.
            continue
        found.append(
            {
                "sign": "~" if was_there and is_there else "+" if is_there else "-",
                "node": key[0],
                "kind": key[1],
                "key": " ".join(part for part in key[2:] if part),
                "changes": len(group),
                "reason": group[-1].get("reason", ""),
                "detail": group[-1].get("detail", ""),
            }
        )
    return found
