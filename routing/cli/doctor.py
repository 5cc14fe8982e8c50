"""slash32 doctor: what is wrong with this machine, or would be, before and after installing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from routing.cli.exits import FINDINGS, HEALTHY
from routing.cli.fleet import output_options
from routing.cli.output import Columns, repeat, show, text
from routing.cli.resources_options import run_dir_option, state_dir_option, store_option

if TYPE_CHECKING:
    from routing.doctor.facts import Facts


@click.command()
@click.option("--pre-install", is_flag=True, help="Only what has a meaning without an agent.")
@output_options
@click.option(
    "--conf-dir",
    default="/etc/cni/net.d",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The runtime's CNI configuration directory.",
)
@run_dir_option
@state_dir_option
@store_option
def doctor(
    pre_install: bool,
    output: str,
    no_headers: bool,
    watch: bool,
    conf_dir: Path,
    run_dir: Path,
    state_dir: Path,
    store: str,
) -> None:
    """Check this machine: sysctls, what eats foreign routes, other networks, pools, MTU, ports,
    clock, agent and sessions. Each finding has an id, evidence and a remedy.

    Exit 1 when there is an error; warnings may be meant so.
    """

    def once() -> int:
        return _look(
            pre_install, output, no_headers, conf_dir=conf_dir, run_dir=run_dir,
            state_dir=state_dir, store=store,
        )  # fmt: skip

    repeat(once, watch=watch)


_COLUMNS = Columns(
    normal=[("ID", text("id")), ("SEVERITY", text("severity")), ("EVIDENCE", text("evidence"))],
    wide=[("REMEDY", text("remedy"))],
    name=text("id"),
)


def _look(
    pre_install: bool,
    output: str,
    no_headers: bool,
    *,
    conf_dir: Path,
    run_dir: Path,
    state_dir: Path,
    store: str,
) -> int:
    """One look; its exit code."""
    from routing.doctor.checks import Severity, diagnose
    from routing.doctor.gather import gather

    facts = gather(root=Path("/"), run_dir=run_dir, state_dir=state_dir, conf_dir=conf_dir)
    found = diagnose(_with_pools(facts, store), pre_install=pre_install)
    rows = [
        {"id": f.id, "severity": f.severity.value, "evidence": f.evidence, "remedy": f.remedy}
        for f in found
    ]
    if output == "name":
        rows = [row for row in rows if row["severity"] == "error"]
    show(rows, _COLUMNS, output=output, no_headers=no_headers)
    if output == "table":
        for row in rows:
            if row["remedy"]:
                click.echo(f"{row['id']}: {row['remedy']}")
    return FINDINGS if any(f.severity is Severity.ERROR for f in found) else HEALTHY


def _with_pools(facts: Facts, store: str) -> Facts:
    from routing.cli.cluster import read_cluster
    from routing.datastore.snapshot import StoreError
    from routing.doctor.facts import Pool

    try:
        snapshot, _ = read_cluster(store)
    except StoreError as error:
        return replace(facts, store_error=str(error))
    return replace(facts, pools=tuple(Pool(p.meta.name, str(p.cidr)) for p in snapshot.pools))
