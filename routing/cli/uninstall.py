"""slash32 uninstall: everything of ours off this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from routing.cli.cni import bin_dir_option, conf_dir_option, network_option
from routing.cli.exits import FINDINGS, Exit
from routing.cli.resources_options import run_dir_option, state_dir_option

if TYPE_CHECKING:
    from routing.uninstalling import Leftovers


@click.command()
@click.option("--yes", is_flag=True, help="Do it; without it only say what would be removed.")
@click.option("--force", is_flag=True, help="Pods that are here lose their network.")
@click.option(
    "--with-store", is_flag=True, help="The embedded store too; other nodes may be using it."
)
@click.option("--keep-sysctls", is_flag=True, help="Leave forwarding on.")
@bin_dir_option
@conf_dir_option
@network_option
@run_dir_option
@state_dir_option
def uninstall(
    yes: bool,
    force: bool,
    with_store: bool,
    keep_sysctls: bool,
    bin_dir: Path,
    conf_dir: Path,
    network: str,
    run_dir: Path,
    state_dir: Path,
) -> None:
    """Take slash32 off this machine: plugin and configuration, routes, nexthop groups, firewall
    rules, sysctls as they were, files. What is not slash32's is left alone.

    First move the pods away and stop the agent and the speaker: while one of them is here nothing
    is removed.

    Exit codes: 0 removed (or would be, without --yes), 1 something is in use or stays, 2 usage.
    """
    from cni.edge import EdgeError
    from cni.install import InstallError
    from cni.wiring_errors import WiringError
    from routing.uninstalling import Leftovers, StillInUse

    try:
        leftovers = Leftovers(
            run_dir=run_dir.absolute(),
            state_dir=state_dir.absolute(),
            with_store=with_store,
            with_sysctls=not keep_sysctls,
        )
        try:
            with leftovers.held():
                pods = leftovers.links()
                if pods and not force:
                    named = ", ".join(str(e.record.pod or e.record.attachment) for e in pods[:5])
                    raise StillInUse(
                        f"{len(pods)} pods are on this node ({named}{', ...' * (len(pods) > 5)}): "
                        "move them away, or --force takes their network"
                    )
                kept = asyncio.run(_remove(leftovers, yes, bin_dir, conf_dir, network))
        finally:
            leftovers.close()
    except (StillInUse, EdgeError, InstallError, WiringError, OSError) as error:
        raise Exit(str(error), FINDINGS) from None
    for words in kept:
        click.echo(f"slash32: stays: {words}", err=True)
    if not yes:
        click.echo("slash32: nothing was removed; --yes does it", err=True)
    if kept and yes:
        raise SystemExit(FINDINGS)


async def _remove(
    leftovers: Leftovers, is_meant: bool, bin_dir: Path, conf_dir: Path, network: str
) -> list[str]:
    """In the order in which nothing new can come: first no runtime calls us any more."""
    from cni import install as installer

    verb = "removed" if is_meant else "would remove"
    done: list[str] = []
    paths = installer.installed_paths(bin_dir=bin_dir, conf_dir=conf_dir, network=network)
    if is_meant:
        removed = installer.uninstall(bin_dir=bin_dir, conf_dir=conf_dir, network=network)
        done += [f"file {path}" for path in removed]
        done += leftovers.remove_links()
    else:
        done += [f"file {path}" for path in (paths.conflist, paths.plugin) if path.exists()]
        done += [f"link {each.ifname}" for each in leftovers.links()]
    routes, kept = await leftovers.routes(remove=is_meant)
    done += routes
    done += leftovers.edge(remove=is_meant)
    done += leftovers.sysctls(remove=is_meant)
    done += leftovers.files(remove=is_meant)
    for words in done:
        click.echo(f"{verb} {words}")
    if not done:
        click.echo("nothing of slash32 is here")
    return [*kept, *map(str, leftovers.strangers())]
