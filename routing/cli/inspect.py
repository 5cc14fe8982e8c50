"""peers, routes, blocks, pods: what agents believe, of this node, another, or all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from routing.cli.fleet import Answers, Where, hear, output_options, where_options
from routing.cli.output import Columns, Row, exit_code, repeat, show, tell_silent, text
from routing.cli.table import age

Rows = Sequence[Row]


def _run(
    where: Where,
    *,
    view: str,
    command: Sequence[str],
    columns: Columns,
    output: str,
    no_headers: bool,
    watch: bool,
    is_bad: Callable[[Row], bool],
    keep: Callable[[Row], bool] = lambda _row: True,
    must_match: bool = False,
    arguments: Mapping[str, Any] | None = None,
    mend: Callable[[Answers], Rows] = lambda answers: answers.rows(),
) -> None:
    """One view of everybody: asked, filtered, printed; ends with the exit code."""

    def once() -> int:
        answers = hear(where, view, command, arguments)
        rows = [row for row in mend(answers) if keep(row)]
        show(rows, columns, output=output, no_headers=no_headers)
        tell_silent(answers.silent)
        return exit_code(
            findings=any(is_bad(row) for row in rows) or (must_match and not rows),
            silent=answers.silent,
            answered=bool(answers.by_node),
        )

    repeat(once, watch=watch)


# -- peers -------------------------------------------------------------------------------------


def _up(row: Row) -> str:
    return age(row["since_s"]) if row["state"] == "Established" else "-"


_PEERS = Columns(
    normal=[
        ("NODE", text("node")),
        ("PEER", text("peer")),
        ("NAME", text("name")),
        ("ASN", text("asn")),
        ("STATE", text("state")),
        ("UP", _up),
        ("RECV", text("received")),
        ("ACC", text("accepted")),
        ("ADV", text("advertised")),
        ("REASON", lambda row: str(row.get("cause") or row["reason"])),
    ],
    wide=[
        ("LOCAL-AS", text("local_asn")),
        ("LOCAL-IP", text("local_address")),
        ("HOLD", lambda row: f"{row['hold_time_s']}s" if row["hold_time_s"] else ""),
        ("FLAPS", text("flaps")),
        ("LAST-ERROR", text("reason")),
        ("REPORTED", text("reported_at")),
    ],
    name=lambda row: f"{row['node']}/{row['peer']}",
)


@click.command()
@output_options
@where_options
def peers(where: Where, output: str, no_headers: bool, watch: bool) -> None:
    """BGP sessions: state, prefixes received, accepted, announced, and why one is down.

    Exit 1 when one that is configured is not Established.
    """
    _run(
        where,
        view="peers",
        command=["peers"],
        columns=_PEERS,
        output=output,
        no_headers=no_headers,
        watch=watch,
        is_bad=lambda row: row["state"] != "Established",
        mend=lambda answers: _with_causes(answers.rows(), is_here=where.local),
    )


def _with_causes(rows: list[dict[str, Any]], *, is_here: bool) -> Rows:
    """What is likeliest wrong, for sessions that are down; by this kernel where it is ours."""
    down = [row for row in rows if row["state"] != "Established" and not row.get("cause")]
    if not down:
        return rows
    from routing.explain.reasons import cause_of_row

    kernel = None
    if is_here:
        from routing.explain.kernel import gather_peers

        try:
            kernel = gather_peers([row["peer"] for row in down])
        except OSError:
            # Not root: what BGP itself said is left.
            kernel = None
    for row in down:
        cause = cause_of_row(row, kernel)
        row["cause"], row["remedy"] = f"{cause.fault}: {cause.sentence}", cause.remedy
    return rows


# -- routes ------------------------------------------------------------------------------------


def _hops(row: Row) -> str:
    hops = row["next_hops"]
    if not hops:
        return "blackhole" if row["state"] != "rejected" else ""
    return ",".join(hop["gateway"] or "link" for hop in hops)


def _devices(row: Row) -> str:
    return ",".join(dict.fromkeys(hop["ifname"] or "-" for hop in row["next_hops"]))


def _as_path(row: Row) -> str:
    return " ".join(map(str, row["as_path"]))


def _prefix_name(row: Row) -> str:
    return f"{row['node']}/{row['prefix']}"


_ROUTES = Columns(
    normal=[
        ("NODE", text("node")),
        ("PREFIX", text("prefix")),
        ("KIND", text("kind")),
        ("NEXT-HOP", _hops),
        ("DEV", _devices),
        ("FROM", text("from")),
        ("STATE", text("state")),
        ("DETAIL", text("detail")),
    ],
    wide=[("AS-PATH", _as_path)],
    name=_prefix_name,
)
_LEARNED = Columns(
    normal=[
        ("NODE", text("node")),
        ("PREFIX", text("prefix")),
        ("FROM", text("from")),
        ("NEXT-HOP", text("next_hop")),
        ("STATE", lambda row: row["state"] + (",stale" if row["stale"] else "")),
        ("REASON", text("reason")),
        ("DETAIL", text("detail")),
    ],
    wide=[
        ("AS-PATH", _as_path),
        ("LOCAL-PREF", text("local_pref")),
        ("MED", text("med")),
        ("COMMUNITIES", text("communities")),
    ],
    name=_prefix_name,
)
_ADVERTISED = Columns(
    normal=[
        ("NODE", text("node")),
        ("PREFIX", text("prefix")),
        ("TO", text("to")),
        ("STATE", text("state")),
        ("DETAIL", text("detail")),
    ],
    wide=[],
    name=_prefix_name,
)
_KERNEL = Columns(
    normal=[
        ("NODE", text("node")),
        ("PREFIX", text("prefix")),
        ("NEXT-HOPS", text("next_hops")),
        ("METRIC", text("metric")),
        ("TABLE", text("table")),
        ("STATE", text("state")),
    ],
    wide=[],
    name=_prefix_name,
)


def _is_bad_route(row: Row) -> bool:
    return row["state"] in {"missing", "wrong"}


@click.command()
@click.argument("prefix", required=False)
@click.option("--learned", "table", flag_value="paths", help="Adj-RIB-In, and what became of it.")
@click.option("--advertised", "table", flag_value="advertised", help="Adj-RIB-Out.")
@click.option("--kernel", "table", flag_value="kernel", help="Our routes in the kernel.")
@click.option("--rejected", "table", flag_value="rejected", help="Paths refused, with the reason.")
@click.option("--stale", "table", flag_value="stale", help="Paths kept while a session is gone.")
@output_options
@where_options
def routes(
    where: Where,
    prefix: str | None,
    table: str | None,
    output: str,
    no_headers: bool,
    watch: bool,
) -> None:
    """Routes: wanted ones and whether the kernel has them, and learned paths that were rejected.

    With PREFIX (or an address) only those that concern it. Exit 1 when a wanted route is not in
    the kernel as wanted, a wanted announcement is missing, or PREFIX matches nothing.
    """
    is_concerned = concerns(prefix)
    is_learned = table in ("paths", "rejected", "stale")
    view = "paths" if is_learned else table or "routes"
    columns = {"paths": _LEARNED, "advertised": _ADVERTISED, "kernel": _KERNEL}.get(view, _ROUTES)

    def keep(row: Row) -> bool:
        if table == "rejected" and row["state"] != "rejected":
            return False
        return is_concerned(row["prefix"]) and (table != "stale" or row["stale"])

    flag = {"paths": "--learned"}.get(table or "", f"--{table}")
    _run(
        where,
        view=view,
        command=["routes", *([flag] if table else []), *([prefix] if prefix else [])],
        arguments={"prefix": prefix} if prefix else None,
        columns=columns,
        output=output,
        no_headers=no_headers,
        watch=watch,
        keep=keep,
        is_bad=_is_bad_route,
        must_match=prefix is not None,
    )


def concerns(text_: str | None) -> Callable[[str], bool]:
    """Whether a prefix has, or is in, what was asked for."""
    if text_ is None:
        return lambda _prefix: True
    from ipaddress import ip_network

    try:
        wanted = ip_network(text_, strict=False)
    except ValueError as error:
        raise click.UsageError(f"PREFIX: {error}") from None

    def overlaps(prefix: str) -> bool:
        network = ip_network(prefix)
        return network.version == wanted.version and wanted.overlaps(network)

    return overlaps


# -- blocks and pods ---------------------------------------------------------------------------

_BLOCKS = Columns(
    normal=[
        ("BLOCK", text("block")),
        ("POOL", text("pool")),
        ("NODE", text("node")),
        ("STATE", text("state")),
        ("USED", text("used")),
        ("COOLING", text("cooling")),
        ("FREE", text("free")),
        ("ANNOUNCED-TO", text("announced_to")),
    ],
    wide=[],
    name=text("block"),
)


def merged_blocks(answers: Answers) -> Rows:
    """Every node knows all blocks, and the use of its own: each block once, by its owner's word."""
    found: dict[str, Mapping[str, Any]] = {}
    for node, rows in answers.by_node.items():
        for row in rows:
            if row["block"] not in found or row["node"] == node:
                found[row["block"]] = row
    return sorted(found.values(), key=lambda row: _address_order(row["block"]))


def _address_order(prefix: str) -> tuple[int, int, int]:
    from ipaddress import ip_network

    network = ip_network(prefix)
    return network.version, int(network.network_address), network.prefixlen


@click.command()
@output_options
@where_options
def blocks(where: Where, output: str, no_headers: bool, watch: bool) -> None:
    """Address blocks of the cluster and who owns them; use is known of nodes that answer."""
    _run(
        where,
        view="blocks",
        command=["blocks"],
        columns=_BLOCKS,
        output=output,
        no_headers=no_headers,
        watch=watch,
        is_bad=lambda _row: False,
        mend=merged_blocks,
    )


def _pod_name(row: Row) -> str:
    return str(row["pod"] or row["container_id"][:12])


def _pod_state(row: Row) -> str:
    if not row["up"]:
        return "link-down"
    return "ok" if row["routed"] else "no-route"


_PODS = Columns(
    normal=[
        ("NODE", text("node")),
        ("NAMESPACE", text("namespace")),
        ("POD", _pod_name),
        ("ADDRESSES", text("addresses")),
        ("IF", text("ifname")),
        ("HOST-IF", text("host_ifname")),
        ("STATE", _pod_state),
    ],
    wide=[
        ("MTU", text("mtu_bytes")),
        ("NETWORK", text("network")),
        ("CONTAINER", text("container_id")),
    ],
    name=lambda row: f"{row['namespace'] or ''}/{_pod_name(row)}",
)


@click.command()
@output_options
@where_options
def pods(where: Where, output: str, no_headers: bool, watch: bool) -> None:
    """Pods, their addresses and links. Exit 1 when one has no host route or its link is down."""
    _run(
        where,
        view="pods",
        command=["pods"],
        columns=_PODS,
        output=output,
        no_headers=no_headers,
        watch=watch,
        is_bad=lambda row: _pod_state(row) != "ok",
    )
