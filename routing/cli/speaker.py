"""slash32 speaker: ExaBGP, kept running."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.option(
    "--run-dir",
    envvar="SLASH32_RUN_DIR",
    default="/run/slash32",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the agent writes exabgp.conf.",
)
def speaker(run_dir: Path) -> None:
    """Run ExaBGP on the agent's configuration until SIGTERM.

    Restarting the agent does not concern it. Stopping it ends the BGP sessions; peers that speak
    graceful restart keep the routes for a while.
    """
    from bgp.supervise import supervise

    sys.exit(supervise(str((run_dir / "exabgp.conf").absolute())))
