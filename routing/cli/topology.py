"""slash32 topology: the cluster's BGP as a picture, in one file."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from routing.cli.exits import FINDINGS, Exit, errors_as_exit_codes
from routing.cli.resources import store_option, with_store
from routing.control import Unreachable, ask
from routing.datastore.local import LocalStore
from routing.datastore.snapshot import NodeStatusResource, Snapshot
from routing.picture.model import Picture, Report

DEFAULT_RUN_DIR = "/run/slash32"


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Choice(["svg", "html", "dot"]),
    default="svg",
    show_default=True,
    help="One SVG file, one HTML page with tables, or Graphviz.",
)
@click.option(
    "--run-dir",
    "run_dirs",
    multiple=True,
    envvar="SLASH32_RUN_DIR",
    type=click.Path(path_type=Path),
    help=f"An agent's run directory (SLASH32_RUN_DIR); repeatable. Default: {DEFAULT_RUN_DIR}.",
)
@click.option("--pool", help="Draw this IPPool as a grid of its blocks instead; svg only.")
@store_option
def topology(output: str, run_dirs: tuple[Path, ...], pool: str | None, store: str) -> None:
    """Routers, nodes, blocks and the sessions between, drawn; on standard output.

    Sessions have a shape, a line and a colour by state, with prefixes received, accepted and
    announced. What does not fit together is marked and listed. Nodes are heard through their
    agents' sockets here, and else by their NodeStatus in the store; a node that was not heard is
    drawn as configured.

    Exit codes: 0 all well, 1 a mismatch or a session that is not up, 3 store unreachable.
    """
    if pool is not None and output != "svg":
        raise click.UsageError(f"--pool is drawn as svg alone, not as {output}")
    with errors_as_exit_codes():
        snapshot, statuses = with_store(store, _read)
    reports = _hear(statuses, run_dirs or (Path(DEFAULT_RUN_DIR),))
    if pool is not None:
        click.echo(_heatmap(snapshot, reports, pool))
        return
    picture = _compose(snapshot, reports)
    click.echo(_rendered(picture, output), nl=False)
    if not picture.is_healthy():
        for problem in picture.all_problems():
            click.echo(f"slash32: {problem}", err=True)
        raise SystemExit(FINDINGS)


async def _read(opened: LocalStore) -> tuple[Snapshot, list[NodeStatusResource]]:
    statuses = [r for r in await opened.list("NodeStatus") if isinstance(r, NodeStatusResource)]
    return await opened.snapshot(), statuses


def _hear(statuses: list[NodeStatusResource], run_dirs: tuple[Path, ...]) -> dict[str, Report]:
    from routing.picture.reports import from_status, from_views

    reports: dict[str, Report] = {each.meta.name: from_status(each) for each in statuses}
    for run_dir in run_dirs:
        socket = run_dir / "agent.sock"
        try:
            views = (ask(socket, "peers"), ask(socket, "blocks"), ask(socket, "status"))
        except Unreachable as error:
            click.echo(f"slash32: {error}", err=True)
            continue
        node, report = from_views(*views)
        reports[node] = report
    return reports


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
