"""One line in the log for each session that comes or goes, and for ExaBGP itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address

import structlog

from bgp.paths import PeerStatus
from routing.routes import Address

log = structlog.get_logger("routing.sessions")


def log_change(reason: str, sessions: Callable[[], Mapping[Address, PeerStatus]]) -> None:
    """Tells of a change, as the speaker's ``on_change`` names it; most are none for the log.

    Args:
        sessions: asked only when there is something to tell: a full table's UPDATEs come here too.
    """
    event, _, peer = reason.partition(":")
    if event == "session_up":
        log.info("session_up", peer=peer)
    elif event == "session_down":
        status = sessions().get(ip_address(peer))
        why = status.last_reason if status else ""
        log.warning("session_down", peer=peer, reason=why, flaps=status.flaps if status else 0)
    elif event == "session_attempt":
        status = sessions().get(ip_address(peer))
        if status is not None and status.attempt:
            log.warning("session_not_opened", peer=peer, reason=status.reason)
    elif event == "speaker_lost":
        log.warning("speaker_lost")
    elif event == "speaker_read_back":
        log.info("speaker_read_back")
