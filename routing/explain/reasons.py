"""Why a session is down, as far as this end can know it. Pure.

BGP tells some causes (a NOTIFICATION names them), TCP others by how it fails, and some not at all:
a router that wants another MD5 key drops our segments without a word. What cannot be told apart is
said to be so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bgp.reasons import BEFORE, is_silence
from routing.explain.evidence import KernelEvidence, SessionFacts, TcpFacts
from routing.view import ABSENT

_CODE = re.compile(r"\b([1-7])/(\d{1,2})\b")
SILENT_AFTER = 2
"""SYNs sent again and not answered: three seconds (RFC 6298), longer than any router takes."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why: a token, a sentence, and what to do."""

    fault: str
    sentence: str
    remedy: str


_NOTIFICATIONS: tuple[tuple[tuple[str, ...], str, str, str], ...] = (
    (
        ("(2,2)", "bad peer as", "incorrect asn", "peer as"),
        "peer-wrong-asn",
        "the two ends do not agree on an AS number",
        "compare asNumber of BGPPeer {name} ({asn}) with the router's own, and the router's "
        "remote-as for this node with {local_asn}",
    ),
    (
        ("(2,3)", "bad bgp identifier"),
        "peer-router-id",
        "the peer refuses our BGP identifier",
        "see that no two speakers have the same router id",
    ),
    (
        ("(2,5)", "authentication failure"),
        "peer-authentication",
        "the peer refuses our authentication",
        "compare the passwords at both ends",
    ),
    (
        ("(2,6)", "unacceptable hold time"),
        "peer-hold-time",
        "the peer does not accept our hold time",
        "compare hold times at both ends",
    ),
    (
        ("(4,0)", "hold timer"),
        "peer-silent",
        "nothing came from the peer for the hold time",
        "look at the link and at the router's own CPU and log",
    ),
    (
        ("(6,1)", "maximum number of prefixes"),
        "peer-max-prefix",
        "the peer has closed the session: we announced more prefixes than it allows",
        "raise maximum-prefix on the router, or announce fewer",
    ),
    (
        ("(6,2)", "administrative shutdown", "administratively shutdown"),
        "peer-shut-down",
        "the session was shut down by hand at the other end",
        "ask who runs the router; it is enabled there",
    ),
    (
        ("(6,3)", "de-configured"),
        "peer-not-configured",
        "the router has no configuration for this session any more",
        "configure this node as a neighbour on the router",
    ),
    (
        ("(6,5)", "connection rejected"),
        "peer-rejects",
        "the router refuses a connection from this node",
        "configure this node as a neighbour on the router",
    ),
    (
        ("connection refused", "errno 111"),
        "peer-refuses",
        "TCP is refused: nothing listens on the router's BGP port for this node",
        "see that BGP runs on {peer} and that this node is a neighbour there",
    ),
    (
        ("no route to host", "network is unreachable", "errno 113", "errno 101"),
        "peer-unreachable",
        "this node cannot reach the peer's address",
        "look at the link and the route to {peer}",
    ),
)


def cause_of(
    session: SessionFacts, kernel: KernelEvidence | None, *, speaker: bool = True
) -> Cause:
    """The likeliest reason why ``session`` is not Established."""
    if not speaker:
        return Cause(
            "speaker-down",
            "ExaBGP is not connected to the agent",
            "see that `slash32 speaker` runs on this node, and its log",
        )
    if session.state == ABSENT:
        # There is nothing on the wire to look at: this node does not even try.
        return Cause(
            "peer-down",
            f"this node keeps no session with it: {session.reason}",
            f"see `slash32 status`, and BGPPeer {session.name}",
        )
    # How an earlier session ended says nothing of what keeps this one down.
    now = session.reason.partition(BEFORE)[0]
    told = _with_code(now.lower())
    dead = _dead_neighbour(session.peer, kernel)
    if dead is not None:
        return Cause(
            "neighbour-failed",
            f"{session.peer} does not answer for its address on the link ({dead})",
            f"look at the cable, the VLAN and the router's interface; ip neigh show {session.peer}",
        )
    if is_silence(now):
        if now.startswith("no answer"):
            return _silence(session)
        return Cause(
            "peer-unacknowledged",
            f"{session.peer} opens TCP, and then nothing more gets through: the kernel "
            "at one end drops what comes, as it does when a TTL (GTSM) or an MD5 key is not the "
            "one it expects, or something in between does",
            f"compare ttlSecurity and the password of BGPPeer {session.name} with the router's; "
            "then look for a filter on port 179",
        )
    tcp = _tcp(session.peer, kernel)
    if tcp is not None and tcp.syn_retransmits >= SILENT_AFTER and "ESTABLISHED" not in tcp.states:
        # What a NOTIFICATION said is older than the silence.
        return _silence(session)
    for needles, fault, sentence, remedy in _NOTIFICATIONS:
        if any(needle in told for needle in needles):
            filled = remedy.format(
                name=session.name, asn=session.asn, local_asn=session.local_asn, peer=session.peer
            )
            return Cause(fault, f"{sentence} (last heard: {session.reason})", filled)
    if session.reason:
        return Cause(
            "peer-down", f"the session is {session.state}: {session.reason}", _log_of(session)
        )
    return Cause("peer-down", f"the session is {session.state}", _log_of(session))


def _with_code(told: str) -> str:
    """The text with the code and subcode of a NOTIFICATION in one form; we may write 2/2."""
    found = _CODE.search(told)
    return f"{told} ({found[1]},{found[2]})" if found else told


def cause_of_row(row: Mapping[str, Any], kernel: KernelEvidence | None) -> Cause:
    """The same for a row of ``slash32 peers``."""
    session = SessionFacts(
        peer=str(row["peer"]),
        name=str(row["name"]),
        asn=int(row["asn"]),
        state=str(row["state"]),
        reason=str(row["reason"]),
        local_asn=int(row["local_asn"] or 0),
    )
    return cause_of(session, kernel, speaker="ExaBGP is not connected" not in session.reason)


def _silence(session: SessionFacts) -> Cause:
    """Our SYN is not answered, though the neighbour entry does not say that the peer is dead."""
    ours = "with an MD5 key" if session.has_password else "without an MD5 key"
    return Cause(
        "peer-silent-syn",
        f"{session.peer} does not answer our SYN, which we send {ours}: either the keys differ "
        "(TCP-MD5 drops without a word) or something filters TCP port 179; this end cannot tell "
        "the two apart",
        f"compare the password of BGPPeer {session.name} with the router's; then look for a "
        "filter on port 179",
    )


def _log_of(session: SessionFacts) -> str:
    return f"read the router's log about this node, and `slash32 peers` for {session.peer}"


def _dead_neighbour(peer: str, kernel: KernelEvidence | None) -> str | None:
    for each in kernel.neighbours if kernel else ():
        if each.address == peer and each.state in ("FAILED", "INCOMPLETE"):
            return f"{each.state} on {each.ifname}"
    return None


def _tcp(peer: str, kernel: KernelEvidence | None) -> TcpFacts | None:
    return next((each for each in (kernel.tcp if kernel else ()) if each.peer == peer), None)
