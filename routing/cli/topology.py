"""slash32 topology: the cluster's BGP as a picture, in one file."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import click
from click.core import ParameterSource

from routing.cli.cluster import read_cluster
from routing.cli.exits import FINDINGS, PARTIAL, Exit, errors_as_exit_codes
from routing.cli.fleet import Answers, Where, hear, where_options
from routing.datastore.snapshot import Snapshot
from routing.picture.model import Picture, Report, State


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Choice(["svg", "html", "dot"]),
    default="svg",
    show_default=True,
    help="One SVG file, one HTML page with tables, or Graphviz.",
)
@click.option("--pool", help="Draw this IPPool as a grid of its blocks instead; svg only.")
@where_options
def topology(where: Where, output: str, pool: str | None) -> None:
    """Routers, nodes, blocks and the sessions between, drawn; on standard output.

    Sessions have a shape, a line and a colour by state, with prefixes received, accepted and
    announced. What does not fit together is marked and listed. A node that cannot be heard is drawn
    as configured.

    Exit codes: 0 all well, 1 a mismatch or a session that is not up, 3 store unreachable, 4 nothing
    wrong was found but not every node was heard.
    """
    if pool is not None and output != "svg":
        raise click.UsageError(f"--pool is drawn as svg alone, not as {output}")
    with errors_as_exit_codes():
        snapshot, _ = read_cluster(where.store)
        reports = _hear(where)
    if pool is not None:
        click.echo(_heatmap(snapshot, reports, pool))
        return
    picture = _compose(snapshot, reports)
    click.echo(_rendered(picture, output), nl=False)
    problems = picture.all_problems()
    for problem in problems:
        click.echo(f"slash32: {problem}", err=True)
    if problems or any(s.state is State.DOWN for node in picture.nodes for s in node.sessions):
        raise SystemExit(FINDINGS)
    if not picture.is_healthy():
        raise SystemExit(PARTIAL)


def _hear(where: Where) -> dict[str, Report]:
    from routing.picture.reports import from_views

    source = click.get_current_context().get_parameter_source("node")
    if source is not ParameterSource.COMMANDLINE:
        # SLASH32_NODE says where we are; what is drawn is the cluster.
        where = replace(where, node=None)
    status = hear(where, "status", ["status"])
    for node, why in sorted(status.silent.items()):
        click.echo(f"slash32: {node} was not heard: {why}", err=True)
    peers, blocks = hear(where, "peers", ["peers"]), hear(where, "blocks", ["blocks"])
    return {
        node: from_views(_rows(where, peers, node), _rows(where, blocks, node), row)
        for node, row in status.by_node.items()
    }


def _rows(where: Where, answers: Answers, node: str) -> list[dict[str, Any]]:
    if where.local:
        # The only one who was asked; rows about others must not pass for theirs.
        return [row for rows in answers.by_node.values() for row in rows]
    return list(answers.by_node.get(node, ()))


def _compose(snapshot: Snapshot, reports: dict[str, Report]) -> Picture:
    from routing.picture.compose import compose

    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    heard = sum(node.meta.name in reports for node in snapshot.nodes)
    return compose(
        snapshot,
        reports,
        title="slash32: BGP of the cluster",
        caption=f"{now}; {heard} of {len(snapshot.nodes)} nodes heard",
    )


def _heatmap(snapshot: Snapshot, reports: dict[str, Report], name: str) -> str:
    from routing.picture.heatmap import to_heatmap

    pool = next((each for each in snapshot.pools if each.meta.name == name), None)
    if pool is None:
        known = ", ".join(each.meta.name for each in snapshot.pools) or "none"
        raise Exit(f"no IPPool {name!r}; there is: {known}", FINDINGS)
    use = {
        block.cidr: report.use[str(block.cidr)]
        for block in snapshot.blocks
        for report in reports.values()
        if str(block.cidr) in report.use
    }
    return to_heatmap(pool, snapshot.blocks, use, with_style=True)


def _rendered(picture: Picture, output: str) -> str:
    if output == "dot":
        from routing.picture.dot import to_dot

        return to_dot(picture)
    if output == "html":
        from routing.picture.page import to_html

        return to_html(picture)
    from routing.picture.layout import to_svg

    return to_svg(picture)
