"""Which routes may be deleted now: nothing is on half knowledge. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection

from routing.desired import Desired
from routing.report import STORE_OUT_OF_SYNC
from routing.routes import Address, Route


def deletion_gate(
    wanted: Desired,
    *,
    in_sync: bool,
    is_connected: bool,
    was_complete: Collection[Address],
    age_s: float,
) -> Callable[[Route], str | None]:
    """A function that says why a route may not be deleted now, or None.

    A route that was learned stays until every peer has told its whole table once, or the longest
    restart time is over (RFC 4724 section 4.2).

    Args:
        in_sync: the store was read in this pass.
        is_connected: the speaker is there.
        was_complete: peers that have sent End-of-RIB since the agent started.
        age_s: since the agent started.
    """
    longest_s = max((p.graceful_restart_s for p in wanted.peers.values()), default=0)
    learned: str | None = None
    if age_s < longest_s:
        missing = next((peer for peer in wanted.peers if peer not in was_complete), None)
        if not is_connected:
            learned = "speaker-not-connected"
        elif missing is not None:
            learned = f"no-end-of-rib-from-{missing}"

    def closed(route: Route) -> str | None:
        if not in_sync:
            return STORE_OUT_OF_SYNC
        if route.is_blackhole or all(hop.gateway is None for hop in route.next_hops):
            return None
        return learned

    return closed
