"""status, peers, routes, blocks, pods: what this node's agent believes, asked on its socket."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from routing.cli.exits import FINDINGS, errors_as_exit_codes
from routing.cli.table import age, render
from routing.control import ask

Row = dict[str, Any]

DEFAULT_RUN_DIR = "/run/slash32"


def _options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="Output format.",
    )(command)
    return click.option(
        "--run-dir",
        envvar="SLASH32_RUN_DIR",
        default=DEFAULT_RUN_DIR,
        show_default=True,
        type=click.Path(path_type=Path),
        help="The agent's run directory (SLASH32_RUN_DIR).",
    )(command)


def _ask(run_dir: Path, view: str) -> Any:
    with errors_as_exit_codes():
        return ask(run_dir / "agent.sock", view)


def _finish(findings: bool) -> None:
    if findings:
        raise SystemExit(FINDINGS)


def _print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2))


@click.command()
@_options
def status(run_dir: Path, output: str) -> None:
    """This node on one screen: sessions, routes, blocks, pods, and what is wrong."""
    data: Row = _ask(run_dir, "status")
    if output == "json":
        _print_json(data)
        _finish(not data["healthy"])
        return
    peers_, routes_, addresses = data["peers"], data["routes"], data["addresses"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(routes_["by_kind"].items()))
    rejected = f", {routes_['rejected']} rejected" if routes_["rejected"] else ""
    held = f", {routes_['held']} held" if routes_["held"] else ""
    lines = [
        ("Node", f"{data['node']}  (slash32 {data['version']})"),
        ("Store", data["store"]["error"] or f"ok  {data['store']['path']}"),
        ("Speaker", "ok" if data["speaker_connected"] else "not connected"),
        ("Peers", f"{peers_['established']}/{peers_['configured']} established"),
        ("Routes", f"{routes_['ok']} ok, {routes_['not_ok']} not ok{held}{rejected}  ({kinds})"),
        ("Blocks", f"{data['blocks']['confirmed']} confirmed"),
        (
            "Addresses",
            f"{addresses['used']} used, {addresses['cooling']} cooling, {addresses['free']} free",
        ),
        ("Pods", str(data["pods"])),
    ]
    for name, value in lines:
        click.echo(f"{name + ':':<11} {value}")
    if data["findings"]:
        click.echo(f"Findings:   {len(data['findings'])}")
        for finding in data["findings"]:
            click.echo(f"  - {finding}")
        click.echo("Next: slash32 peers, slash32 routes", err=True)
    else:
        click.echo("Findings:   none")
    _finish(not data["healthy"])


@click.command()
@_options
def peers(run_dir: Path, output: str) -> None:
    """BGP sessions of this node. Exit 1 when one that is configured is not Established."""
    rows: list[Row] = _ask(run_dir, "peers")
    if output == "json":
        _print_json(rows)
    else:
        headers = ["NODE", "PEER", "NAME", "ASN", "STATE", "UP", "RECV", "ACC", "ADV", "REASON"]
        click.echo(
            render(
                headers,
                [
                    [
                        row["node"],
                        row["peer"],
                        row["name"],
                        str(row["asn"]),
                        row["state"],
                        age(row["since_s"]) if row["state"] == "Established" else "-",
                        str(row["received"]),
                        str(row["accepted"]),
                        str(row["advertised"]),
                        row["reason"],
                    ]
                    for row in rows
                ],
            )
        )
    _finish(any(row["state"] != "Established" for row in rows))


@click.command()
@click.argument("prefix", required=False)
@_options
def routes(run_dir: Path, output: str, prefix: str | None) -> None:
    """Routes of this node; with PREFIX (or an address) only those that concern it.

    Exit 1 when a wanted route is not in the kernel as wanted, or PREFIX matches nothing.
    """
    rows: list[Row] = _ask(run_dir, "routes")
    if prefix is not None:
        rows = _matching(rows, prefix)
    if output == "json":
        _print_json(rows)
    else:
        headers = ["NODE", "PREFIX", "KIND", "NEXT-HOP", "DEV", "FROM", "STATE", "DETAIL"]
        table = []
        for row in rows:
            none = "-" if row["state"] == "rejected" else "blackhole"
            hops = row["next_hops"] or [{"gateway": none, "ifname": None}]
            for index, hop in enumerate(hops):
                first = index == 0
                table.append(
                    [
                        row["node"],
                        row["prefix"],
                        row["kind"],
                        hop["gateway"] or "link",
                        hop["ifname"] or "-",
                        ",".join(row["from"]) if first else "",
                        row["state"],
                        row["detail"] if first else "",
                    ]
                )
        click.echo(render(headers, table))
    bad = any(row["state"] in {"missing", "wrong"} for row in rows)
    _finish(bad or (prefix is not None and not rows))


def _matching(rows: list[Row], text: str) -> list[Row]:
    from ipaddress import ip_network

    try:
        wanted = ip_network(text, strict=False)
    except ValueError as error:
        raise click.UsageError(f"PREFIX: {error}") from None
    found = []
    for row in rows:
        network = ip_network(row["prefix"])
        if network.version != wanted.version:
            continue
        if wanted.subnet_of(network) or network.subnet_of(wanted):  # type: ignore[arg-type]
            found.append(row)
    return found


@click.command()
@_options
def blocks(run_dir: Path, output: str) -> None:
    """Address blocks of the cluster, as this node knows them; use is shown for its own."""
    rows: list[Row] = _ask(run_dir, "blocks")
    if output == "json":
        _print_json(rows)
        return
    headers = ["BLOCK", "POOL", "NODE", "STATE", "USED", "COOLING", "FREE", "ANNOUNCED-TO"]
    click.echo(
        render(
            headers,
            [
                [
                    row["block"],
                    row["pool"],
                    row["node"],
                    row["state"],
                    *("" if row[k] is None else str(row[k]) for k in ("used", "cooling", "free")),
                    ",".join(row["announced_to"]),
                ]
                for row in rows
            ],
        )
    )


@click.command()
@_options
def pods(run_dir: Path, output: str) -> None:
    """Pods of this node. Exit 1 when one has no host route or its link is down."""
    rows: list[Row] = _ask(run_dir, "pods")
    if output == "json":
        _print_json(rows)
    else:
        headers = ["NODE", "NAMESPACE", "POD", "ADDRESSES", "IF", "HOST-IF", "STATE"]
        click.echo(
            render(
                headers,
                [
                    [
                        row["node"],
                        row["namespace"] or "",
                        row["pod"] or row["container_id"][:12],
                        ",".join(row["addresses"]),
                        row["ifname"],
                        row["host_ifname"],
                        _pod_state(row),
                    ]
                    for row in rows
                ],
            )
        )
    _finish(any(_pod_state(row) != "ok" for row in rows))


def _pod_state(row: Row) -> str:
    if not row["up"]:
        return "link-down"
    return "ok" if row["routed"] else "no-route"
