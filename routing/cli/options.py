"""What several commands decide alike: whose node this is, and whether there is colour."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

ANSWER_S = 2.0


def colour_of(stream: TextIO) -> bool:
    """Colour on a terminal only, and not where NO_COLOR is set and not empty (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def node_here(given: str | None, run_dir: Path, nodes: Sequence[str]) -> str | None:
    """The name of the node this machine is, or None.

    As given; as the agent here calls itself (a host's name need not be its node's); or the host's
    own, when it is a node or a silent agent's socket is here.
    """
    if given:
        return given
    name = os.uname().nodename.lower()
    if not (run_dir / "agent.sock").exists():
        return name if name in nodes else None
    return agent_at(run_dir) or name


def agent_at(run_dir: Path) -> str | None:
    """What the agent with this run directory calls its node; None when none answers."""
    from routing.asking import Unreachable, ask

    socket = run_dir / "agent.sock"
    if not socket.exists():
        return None
    try:
        return str(ask(socket, "status", timeout_s=ANSWER_S)["node"])
    except (Unreachable, KeyError, TypeError):
        return None
