"""slash32 speaker: ExaBGP, kept running."""

from __future__ import annotations

from pathlib import Path

import click

from routing.cli.resources_options import run_dir_option


@click.command()
@run_dir_option
def speaker(run_dir: Path) -> None:
    """Run ExaBGP on the agent's configuration until SIGTERM.

    Restarting the agent does not concern it. Stopping it ends the BGP sessions; peers that speak
    graceful restart keep the routes for a while.
    """
    from bgp.supervise import become

    become(str((run_dir / "exabgp.conf").absolute()))
