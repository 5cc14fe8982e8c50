"""slash32 node drain, undrain: taking a node out of service, and back (docs/policy.md)."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from routing.cli.exits import FINDINGS, Exit, errors_as_exit_codes
from routing.cli.fleet import DEFAULT_RUN_DIR
from routing.cli.resources import with_store
from routing.cli.resources_options import store_option
from routing.control import Unreachable, ask
from routing.datastore.snapshot import Conflict, Datastore, NodeResource
from routing.drain import DrainPhase

ATTEMPTS = 5
"""Somebody else may write the same Node at the same moment."""
POLL_S = 0.2


@click.group()
def node() -> None:
    """Take a node out of service without losing a packet, and back."""


def _options(command: Any) -> Any:
    command = click.option(
        "--wait",
        "wait_s",
        type=click.FloatRange(min=0),
        default=0.0,
        metavar="SECONDS",
        help="Wait until this machine's agent is done, this long at most.",
    )(command)
    command = click.option(
        "--run-dir",
        envvar="SLASH32_RUN_DIR",
        default=DEFAULT_RUN_DIR,
        show_default=True,
        type=click.Path(path_type=Path),
        help="The agent's run directory, for --wait (SLASH32_RUN_DIR).",
    )(command)
    return click.argument("name")(store_option(command))


@node.command()
@_options
def drain(name: str, store: str, run_dir: Path, wait_s: float) -> None:
    """Withdraw what node NAME announces, in good order (RFC 8326), then close its sessions.

    Pods that are still there lose their connections at the end: move them first.

    Exit codes: 0 asked for (with --wait: done), 1 no such node or not done in time, 3 store or
    agent unreachable.
    """
    _set(store, name, is_drained=True)
    click.echo(f"node/{name} is being drained")
    if wait_s:
        _wait(name, run_dir, DrainPhase.CLOSED, wait_s)


@node.command()
@_options
def undrain(name: str, store: str, run_dir: Path, wait_s: float) -> None:
    """Put node NAME back into service.

    Exit codes: 0 asked for (with --wait: done), 1 no such node or not done in time, 3 store or
    agent unreachable.
    """
    _set(store, name, is_drained=False)
    click.echo(f"node/{name} serves again")
    if wait_s:
        _wait(name, run_dir, DrainPhase.SERVING, wait_s)


def _set(store: str, name: str, *, is_drained: bool) -> None:
    async def work(opened: Datastore) -> None:
        for left in reversed(range(ATTEMPTS)):
            found = await opened.get("Node", name)
            assert isinstance(found, NodeResource)  # noqa: S101 - get() of a kind gives that kind
            if found.is_drained == is_drained:
                return
            try:
                await opened.update(replace(found, is_drained=is_drained))
            except Conflict:
                if not left:
                    raise
            else:
                return

    with errors_as_exit_codes():
        with_store(store, work)


def _wait(name: str, run_dir: Path, phase: DrainPhase, wait_s: float) -> None:
    deadline_s = time.monotonic() + wait_s
    with errors_as_exit_codes():
        while True:
            row = ask(run_dir / "agent.sock", "status")
            if row["node"] != name:
                raise Unreachable(f"the agent in {run_dir} is node {row['node']}'s, not {name}'s")
            if row["drain"] == phase.value:
                click.echo(f"node/{name} is {phase.value}")
                return
            if time.monotonic() >= deadline_s:
                raise Exit(f"node {name} is {row['drain']} after {wait_s:g} s", FINDINGS)
            time.sleep(POLL_S)
