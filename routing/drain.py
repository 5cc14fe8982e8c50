"""Taking a node out of service without losing a packet (RFC 8326), as phases of a clock. Pure.

First everything is announced again with the GRACEFUL_SHUTDOWN community, so that others prefer
other ways while this one still works; then it is withdrawn; then the sessions are closed. Each step
waits for the one before to have gone round the network.
"""

from __future__ import annotations

from enum import Enum

DRAIN_WAIT_S = 10.0
"""How long the first phase lasts, and the second."""


class DrainPhase(Enum):
    """How far a node has left the network."""

    SERVING = "serving"
    SHUTTING = "shutting-down"
    """Announced, with GRACEFUL_SHUTDOWN."""
    WITHDRAWN = "withdrawn"
    CLOSED = "drained"
    """No sessions."""


def drain_phase(for_s: float | None, wait_s: float = DRAIN_WAIT_S) -> DrainPhase:
    """The phase of a node whose drain has been under way ``for_s``; None is no drain."""
    if for_s is None:
        return DrainPhase.SERVING
    if for_s < wait_s:
        return DrainPhase.SHUTTING
    return DrainPhase.WITHDRAWN if for_s < 2 * wait_s else DrainPhase.CLOSED


def next_change_s(for_s: float | None, wait_s: float = DRAIN_WAIT_S) -> float | None:
    """In how many seconds the phase changes; None is never."""
    if for_s is None:
        return None
    return next((at_s - for_s for at_s in (wait_s, 2 * wait_s) if for_s < at_s), None)
