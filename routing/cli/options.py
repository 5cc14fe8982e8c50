"""What several commands decide alike: whose node this is, and whether there is colour."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO


def colour_of(stream: TextIO) -> bool:
    """Colour on a terminal only, and not where NO_COLOR is set and not empty (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def node_here(given: str | None, run_dir: Path, nodes: Sequence[str]) -> str | None:
    """The name of the node this machine is: as given, or the host's own when it is a node or an
    agent's socket is here; else None."""
    if given:
        return given
    name = os.uname().nodename.lower()
    return name if name in nodes or (run_dir / "agent.sock").exists() else None
