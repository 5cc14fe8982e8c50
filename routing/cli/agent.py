"""slash32 agent: the node's daemon."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import click

from routing.cli.exits import FINDINGS, Exit, errors_as_exit_codes
from routing.cli.main import version
from routing.cli.resources_options import run_dir_option, state_dir_option
from routing.settings import (
    HTTP_PORT,
    KUBERNETES,
    InvalidSettings,
    Settings,
    default_node_name,
)


@click.command()
@click.option("--node", envvar="SLASH32_NODE", help="This node's name; default: the host's name.")
@run_dir_option
@state_dir_option
@click.option(
    "--store",
    envvar="SLASH32_STORE",
    default="/var/lib/slash32/store.db",
    show_default=True,
    help="The embedded store's path, or kubernetes.",
)
@click.option(
    "--kubeconfig",
    envvar="KUBECONFIG",
    type=click.Path(path_type=Path),
    help="How to reach the API server; default: the service account of this pod.",
)
@click.option("--mtu", type=int, help="MTU of pod links in bytes; default: that of the uplink.")
@click.option(
    "--cooldown",
    type=click.FloatRange(0, 86400),
    default=30.0,
    show_default=True,
    help="Seconds a released address rests before it is given out again.",
)
@click.option(
    "--http-port",
    envvar="SLASH32_HTTP_PORT",
    type=click.IntRange(0, 65535),
    default=HTTP_PORT,
    show_default=True,
    help="Metrics, probes and the live page, on 127.0.0.1; 0 for none.",
)
@click.option(
    "--metrics-address",
    envvar="SLASH32_METRICS_ADDRESS",
    metavar="ADDRESS",
    help="An address of this node where /metrics (alone) is served besides, at the same port.",
)
@click.option(
    "--proc-sys-net",
    envvar="SLASH32_PROC_SYS_NET",
    default="/proc/sys/net",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where sysctls are written; a mount of the host's in a container that is not privileged.",
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
def agent(
    node: str | None,
    run_dir: Path,
    state_dir: Path,
    store: str,
    kubeconfig: Path | None,
    mtu: int | None,
    cooldown: float,
    http_port: int,
    metrics_address: str | None,
    proc_sys_net: Path,
    log_format: str,
    log_level: str,
) -> None:
    """Run this node's routing agent until SIGTERM.

    Stopping it leaves pods, routes and BGP sessions as they are.
    """
    from routing.allocation import settle_allocation
    from routing.lean_start import leave_out

    settle_allocation()
    leave_out()
    from routing.agent import AlreadyRunning, run_agent
    from routing.telemetry import configure_logging

    configure_logging(level=log_level, style=log_format)
    with errors_as_exit_codes():
        settings = Settings(
            node=node or default_node_name(),
            run_dir=run_dir,
            state_dir=state_dir,
            store=None if store == KUBERNETES else Path(store),
            kubeconfig=kubeconfig,
            mtu_bytes=mtu,
            cooldown_s=cooldown,
            http_port=http_port or None,
            metrics_address=_address(metrics_address),
            proc_sys_net=proc_sys_net,
        )
        try:
            asyncio.run(run_agent(settings, version=version()))
        except AlreadyRunning as error:
            raise Exit(str(error), FINDINGS) from None


def _address(text: str | None) -> IPv4Address | IPv6Address | None:
    if not text:
        return None
    try:
        return ip_address(text)
    except ValueError:
        raise InvalidSettings(f"metrics_address = {text!r}: must be an IP address") from None
