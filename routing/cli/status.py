"""slash32 status: one node on one screen, or a line a node; --wait until all is well."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import click

from routing.cli.exits import HEALTHY, TIMEOUT, UNREACHABLE, Exit
from routing.cli.fleet import Answers, Where, hear, output_options, where_options
from routing.cli.output import (
    Columns,
    exit_code,
    repeat,
    show,
    show_document,
    tell_silent,
    text,
)

WAIT_POLL_S = 0.5
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_UNITS_S = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(words: str) -> float:
    """Seconds of ``10m``, ``90s``, ``1h30m``; a bare number is seconds. Raises UsageError."""
    parts = list(_DURATION.finditer(words))
    if not parts or "".join(part[0] for part in parts) != words:
        raise click.UsageError(f"{words!r} is no duration such as 90s, 10m or 1h30m")
    return sum(float(part[1]) * _UNITS_S[part[2]] for part in parts)


def _fraction(part: Mapping[str, Any]) -> str:
    return f"{part['established']}/{part['configured']}"


_COLUMNS = Columns(
    normal=[
        ("NODE", text("node")),
        ("STATE", lambda row: "healthy" if row["healthy"] else "unhealthy"),
        ("PEERS", lambda row: _fraction(row["peers"])),
        ("ROUTES", lambda row: _count(row["routes"], "ok")),
        ("BLOCKS", lambda row: _count(row["blocks"], "confirmed")),
        ("USED", lambda row: _count(row["addresses"], "used")),
        ("FREE", lambda row: _count(row["addresses"], "free")),
        ("PODS", lambda row: "" if row["pods"] is None else str(row["pods"])),
        ("FINDINGS", lambda row: str(len(row["findings"]))),
    ],
    wide=[("VERSION", text("version")), ("REPORTED", text("reported_at"))],
    name=text("node"),
)


def _count(part: Mapping[str, Any], key: str) -> str:
    return "" if part.get(key) is None else str(part[key])


@click.command()
@click.option(
    "--wait",
    metavar="DURATION",
    is_flag=False,
    flag_value="5m",
    help="Wait until everything is healthy, for so long at most (5m); then exit 5.",
)
@output_options
@where_options
def status(where: Where, wait: str | None, output: str, no_headers: bool, watch: bool) -> None:
    """One node on one screen, or all nodes a line each: sessions, routes, blocks, what is wrong."""
    if wait is not None:
        _wait(where, parse_duration(wait))

    def once() -> int:
        answers = hear(where, "status", ["status"])
        is_single = where.local or where.node is not None
        _print(answers, is_single=is_single, output=output, no_headers=no_headers)
        tell_silent(answers.silent)
        return _code(answers)

    repeat(once, watch=watch)


def _code(answers: Answers) -> int:
    return exit_code(
        findings=any(not row["healthy"] for row in answers.by_node.values()),
        silent=answers.silent,
        answered=bool(answers.by_node),
    )


def _wait(where: Where, longest_s: float) -> None:
    """Returns once all is well. Raises Exit with TIMEOUT, and says what is not."""
    end_s = time.monotonic() + longest_s
    while True:
        try:
            answers = hear(where, "status", ["status"])
            code = _code(answers)
        except Exit as error:
            if vars(error).get("exit_code") != UNREACHABLE:
                raise
            code, answers = UNREACHABLE, Answers(silent={"agent": error.message})
        if code == HEALTHY:
            return
        if time.monotonic() >= end_s:
            told = [f"{node}: {why}" for node, why in answers.silent.items()]
            told += [f for row in answers.by_node.values() for f in row["findings"]]
            raise Exit(f"not healthy after {longest_s:g} s: {'; '.join(told[:5])}", TIMEOUT)
        time.sleep(min(WAIT_POLL_S, max(0.0, end_s - time.monotonic())))


def _print(answers: Answers, *, is_single: bool, output: str, no_headers: bool) -> None:
    rows = [answers.by_node[node] for node in sorted(answers.by_node)]
    if is_single and rows and output in ("table", "wide"):
        _screen(rows[0])
    elif is_single and rows and output in ("json", "yaml"):
        show_document(rows[0], output)
    else:
        show(rows, _COLUMNS, output=output, no_headers=no_headers)
        if output in ("table", "wide"):
            for row in rows:
                for finding in row["findings"]:
                    click.echo(f"{row['node']}: {finding}", err=True)


def _screen(data: Mapping[str, Any]) -> None:
    for name, value in _lines(data):
        click.echo(f"{name + ':':<11} {value}")
    if data["findings"]:
        click.echo(f"Findings:   {len(data['findings'])}")
        for finding in data["findings"]:
            click.echo(f"  - {finding}")
        click.echo("Next: slash32 peers, slash32 routes, slash32 doctor", err=True)
    else:
        click.echo("Findings:   none")


def _lines(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    peers, routes, addresses = data["peers"], data["routes"], data["addresses"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(routes["by_kind"].items()))
    if "reported_at" in data:
        return [
            ("Node", f"{data['node']}  (slash32 {data['version']})"),
            ("Reported", f"by the node itself to the store, {data['reported_at']}"),
            ("Peers", f"{_fraction(peers)} established"),
            ("Routes", f"{routes['ok']}  ({kinds})"),
        ]
    rejected = f", {routes['rejected']} rejected" if routes["rejected"] else ""
    held = f", {routes['held']} held" if routes["held"] else ""
    return [
        ("Node", f"{data['node']}  (slash32 {data['version']})"),
        ("Store", data["store"]["error"] or f"ok  {data['store']['path']}"),
        ("Speaker", "ok" if data["speaker_connected"] else "not connected"),
        ("Peers", f"{_fraction(peers)} established"),
        ("Routes", f"{routes['ok']} ok, {routes['not_ok']} not ok{held}{rejected}  ({kinds})"),
        ("Blocks", f"{data['blocks']['confirmed']} confirmed"),
        (
            "Addresses",
            f"{addresses['used']} used, {addresses['cooling']} cooling, {addresses['free']} free",
        ),
        ("Pods", str(data["pods"])),
    ]
