"""One line a session that comes or goes; UPDATEs cost nothing."""

from __future__ import annotations

from ipaddress import ip_address

from structlog.testing import capture_logs

from bgp.paths import PeerStatus, SessionState
from routing.session_log import log_change

PEER = ip_address("2001:db8::1")


def logged(reason: str) -> list[dict[str, object]]:
    status = PeerStatus(PEER, SessionState.IDLE, last_reason="hold timer expired", flaps=2)
    with capture_logs() as lines:
        log_change(reason, lambda: {PEER: status})
    return [dict(line) for line in lines]


def test_a_session_that_goes_is_a_warning_with_its_reason():
    """IPv6 addresses have colons of their own."""
    assert logged(f"session_down:{PEER}") == [
        {
            "event": "session_down",
            "log_level": "warning",
            "peer": str(PEER),
            "reason": "hold timer expired",
            "flaps": 2,
        }
    ]


def test_a_session_that_comes_is_told():
    """And ExaBGP's own coming and going."""
    assert [line["event"] for line in logged(f"session_up:{PEER}")] == ["session_up"]
    assert [line["log_level"] for line in logged("speaker_lost")] == ["warning"]
    assert [line["event"] for line in logged("speaker_read_back")] == ["speaker_read_back"]


def test_nothing_else_is_a_line_nor_asks_for_the_sessions():
    """A router that restarts sends a hundred thousand UPDATEs."""

    def never():
        raise AssertionError("asked")

    with capture_logs() as lines:
        for reason in (f"update:{PEER}", f"end_of_rib:{PEER}", "peers_loaded", f"complete:{PEER}"):
            log_change(reason, never)
    assert lines == []
