"""slash32 ipam: pools and their use, an audit, and giving back what a dead node left."""

from __future__ import annotations

from dataclasses import asdict
from ipaddress import ip_network
from typing import Any

import click

from routing.cli.exits import errors_as_exit_codes
from routing.cli.fleet import Where, hear, output_options, where_options
from routing.cli.inspect import merged_blocks
from routing.cli.output import Columns, exit_code, repeat, show, show_document, tell_silent, text
from routing.cli.release import release


@click.group()
def ipam() -> None:
    """Address pools: their use, whether everybody agrees, and what may be given back."""


_POOLS = Columns(
    normal=[
        ("POOL", text("pool")),
        ("CIDR", text("cidr")),
        ("ADDRESSES", text("addresses")),
        ("BLOCKS", text("blocks")),
        ("USED", text("used")),
        ("COOLING", text("cooling")),
        ("FREE-IN-BLOCKS", text("free")),
        ("UNCLAIMED", text("unclaimed")),
    ],
    wide=[],
    name=text("pool"),
)


@ipam.command(name="show")
@output_options
@where_options
def show_(where: Where, output: str, no_headers: bool, watch: bool) -> None:
    """Each pool: blocks claimed, addresses in use, resting, free. Use is of nodes that answer."""

    def once() -> int:
        answers = hear(where, "blocks", ["blocks"])
        cidrs = dict(_pools_of(where)) if not where.local else {}
        rows = pool_rows([dict(row) for row in merged_blocks(answers)], cidrs)
        show(rows, _POOLS, output=output, no_headers=no_headers)
        tell_silent(answers.silent)
        return exit_code(findings=False, silent=answers.silent, answered=bool(answers.by_node))

    repeat(once, watch=watch)


def pool_rows(blocks: list[dict[str, Any]], cidrs: dict[str, str]) -> list[dict[str, Any]]:
    """One row a pool. ``unclaimed``: addresses in no block yet; unknown without the store."""
    found = []
    for pool in sorted({block["pool"] for block in blocks} | cidrs.keys()):
        mine = [block for block in blocks if block["pool"] == pool]
        claimed = sum(ip_network(block["block"]).num_addresses for block in mine)
        size = ip_network(cidrs[pool]).num_addresses if pool in cidrs else None
        found.append(
            {
                "pool": pool,
                "cidr": cidrs.get(pool),
                "addresses": size,
                "blocks": len(mine),
                **{key: sum(b[key] or 0 for b in mine) for key in ("used", "cooling", "free")},
                "unclaimed": None if size is None else size - claimed,
            }
        )
    return found


def _pools_of(where: Where) -> list[tuple[str, str]]:
    from routing.cli.cluster import read_cluster

    with errors_as_exit_codes():
        snapshot, _ = read_cluster(where.store)
    return [(pool.meta.name, str(pool.cidr)) for pool in snapshot.pools]


_PROBLEMS = Columns(
    normal=[
        ("PROBLEM", text("id")),
        ("NODE", text("node")),
        ("WHAT", text("what")),
        ("DETAIL", text("detail")),
    ],
    wide=[],
    name=lambda row: f"{row['id']}/{row['what']}",
)


@ipam.command()
@output_options
@where_options
def check(where: Where, output: str, no_headers: bool, watch: bool) -> None:
    """Whether books, kernels and the store agree on every address. Exit 1 when they do not."""
    from routing.ipam_audit import audit

    def once() -> int:
        answers = hear(where, "ipam", ["ipam", "facts"])
        nodes: list[str] = []
        pools: list[tuple[str, str]] = []
        if not where.local:
            from routing.cli.cluster import read_cluster

            with errors_as_exit_codes():
                snapshot, _ = read_cluster(where.store)
            nodes = [node.meta.name for node in snapshot.nodes]
            pools = [(pool.meta.name, str(pool.cidr)) for pool in snapshot.pools]
        found = [asdict(each) for each in audit(answers.by_node, nodes=nodes, pools=pools)]
        show(found, _PROBLEMS, output=output, no_headers=no_headers)
        tell_silent(answers.silent)
        return exit_code(
            findings=bool(found), silent=answers.silent, answered=bool(answers.by_node)
        )

    repeat(once, watch=watch)


@ipam.command(hidden=True)
@output_options
@where_options
def facts(where: Where, output: str, no_headers: bool, watch: bool) -> None:
    """What this node's agent knows of its addresses, for ``ipam check`` elsewhere."""
    del no_headers, watch
    answers = hear(where, "ipam", ["ipam", "facts"])
    for told in answers.by_node.values():
        show_document(told, "yaml" if output == "yaml" else "json")


ipam.add_command(release)
