"""What CNI STATUS answers (specification 1.1, section 2, STATUS), from what is in memory. Pure.

A runtime asks every few seconds and takes the node out of service on a refusal, so each of the two
codes stands for something a pod would feel:

  * 50: an ADD would fail now.
  * 51: pods that run are cut off too: peers are configured, no session is up, and no route learned
    from one is kept either. Routes are kept while a speaker is away or restarts (graceful restart,
    RFC 4724): the pods are reachable, and so the node is ready.

51 says more than 50, so it wins where both hold; its sentence then tells of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bgp.paths import PeerStatus, SessionState
from cni.attach import Unready
from routing.routes import Address
from routing.topology import PeerName

NOT_AVAILABLE = 50
LIMITED_CONNECTIVITY = 51

SETTLING_S = 30.0
"""For how long after its start an agent's probe waits for every session."""
PEERS_TOLD_MAX = 4
"""Peers one sentence names; the others are counted."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the agent knows at this moment.

    Attributes:
        unread_store: why the store has not been read since the start, or None when it has been.
        shortage: why an address could not be given, or None.
        edge_error: why pods could not be kept in bounds, or None.
        peers: those configured for this node.
        sessions: what is known of their sessions, by address.
        is_speaker_connected: whether ``sessions`` is so now; else it was when the speaker went.
        has_learned_routes: whether a route learned by BGP is in the kernel, stale ones included.
    """

    unread_store: str | None = None
    shortage: str | None = None
    edge_error: str | None = None
    peers: Sequence[PeerName] = ()
    sessions: Mapping[Address, PeerStatus] = field(default_factory=dict)
    is_speaker_connected: bool = True
    has_learned_routes: bool = False


def readiness(seen: Seen) -> Unready | None:
    """Why STATUS must refuse, or None when the node serves."""
    cannot_add = list(_cannot_add(seen))
    cut_off = _cut_off(seen)
    if cut_off is not None:
        return Unready(LIMITED_CONNECTIVITY, "; ".join([cut_off, *cannot_add]))
    if cannot_add:
        return Unready(NOT_AVAILABLE, "; ".join(cannot_add))
    return None


def probe(seen: Seen, *, age_s: float, kernel_errors: Sequence[str]) -> Unready | None:
    """What the readiness probe says: STATUS's answer, and what a rollout has to wait for.

    A rollout that goes on as soon as one of two sessions is up takes the second away from the
    next node too; so for ``SETTLING_S`` after the start all of them are waited for. Later one is
    enough: a router that is down is no fault of the node's.

    Args:
        age_s: how long the agent has been running.
        kernel_errors: routes that the kernel should have and has not, and why.
    """
    unready = readiness(seen)
    if unready is not None:
        return unready
    if kernel_errors:
        others = f" and {len(kernel_errors) - 1} more" if len(kernel_errors) > 1 else ""
        return Unready(
            LIMITED_CONNECTIVITY, f"the kernel is not in sync: {kernel_errors[0]}{others}"
        )
    down = [peer for peer in seen.peers if not _is_up(seen.sessions.get(peer.address))]
    if down and age_s < SETTLING_S:
        return Unready(LIMITED_CONNECTIVITY, f"waiting for the sessions with {_names(down)}")
    return None


def _is_up(status: PeerStatus | None) -> bool:
    return status is not None and status.state is SessionState.ESTABLISHED


def _cannot_add(seen: Seen) -> Iterator[str]:
    if seen.unread_store is not None:
        # Nothing is known of pools then: what lacks there is not worth telling.
        yield f"the datastore has not been read: {seen.unread_store}"
    elif seen.shortage is not None:
        yield seen.shortage
    if seen.edge_error is not None:
        yield f"pods cannot be kept in bounds: {seen.edge_error}"


def _cut_off(seen: Seen) -> str | None:
    if not seen.peers or seen.has_learned_routes:
        return None
    if not seen.is_speaker_connected:
        return (
            f"no BGP session is known to be up with {_names(seen.peers)}: "
            "ExaBGP is not connected to the agent, and no route learned before is kept"
        )
    statuses = [(peer, seen.sessions.get(peer.address)) for peer in seen.peers]
    if any(status and status.state is SessionState.ESTABLISHED for _, status in statuses):
        return None
    told = [f"{_name(peer)} ({_reason(status)})" for peer, status in statuses[:PEERS_TOLD_MAX]]
    return f"no BGP session is up: {', '.join(told)}{_others(seen.peers)}"


def _reason(status: PeerStatus | None) -> str:
    if status is None:
        return "not in ExaBGP's configuration yet"
    return status.reason or "never up so far"


def _name(peer: PeerName) -> str:
    return f"{peer.name} {peer.address}"


def _names(peers: Sequence[PeerName]) -> str:
    return ", ".join(map(_name, peers[:PEERS_TOLD_MAX])) + _others(peers)


def _others(peers: Sequence[PeerName]) -> str:
    others = len(peers) - PEERS_TOLD_MAX
    return f" and {others} more" if others > 0 else ""
