"""slash32 controller: what one process does for the whole cluster."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import click

from routing.cli.exits import errors_as_exit_codes
from routing.settings import KUBERNETES


@click.command()
@click.option(
    "--store",
    envvar="SLASH32_STORE",
    default=KUBERNETES,
    show_default=True,
    type=click.Choice([KUBERNETES]),
    help="Only the Kubernetes API needs a controller.",
)
@click.option(
    "--kubeconfig",
    envvar="KUBECONFIG",
    type=click.Path(path_type=Path),
    help="How to reach the API server; default: the service account of this pod.",
)
@click.option("--identity", envvar="SLASH32_IDENTITY", help="Default: host name and process id.")
@click.option(
    "--grace",
    type=click.FloatRange(60, 86400),
    default=900.0,
    show_default=True,
    help="Seconds a node without Node object must show no life before its blocks are marked, and "
    "seconds they stay marked before they are taken back.",
)
@click.option(
    "--log-format", type=click.Choice(["console", "json"]), default="console", show_default=True
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
def controller(
    store: str,
    kubeconfig: Path | None,
    identity: str | None,
    grace: float,
    log_format: str,
    log_level: str,
) -> None:
    """Run the cluster's controller until SIGTERM; of several, one works.

    It takes back blocks of nodes that are gone, and writes how IPPools and BGPPeers stand. Without
    it nodes claim, announce and serve as always.
    """
    from routing.controller.running import run_controller
    from routing.telemetry import configure_logging

    del store
    configure_logging(level=log_level, style=log_format)
    with errors_as_exit_codes():
        name = identity or f"{socket.gethostname()}-{os.getpid()}"
        asyncio.run(run_controller(kubeconfig, identity=name, grace_s=grace))
