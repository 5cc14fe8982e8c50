"""What TCP shows of a peer that opens a connection and says nothing (bgp/exabgp_habits.py)."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from bgp import exabgp_habits


def opened() -> tuple[socket.socket, socket.socket, socket.socket]:
    """Listener, our end, the peer's end, on loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    here = socket.create_connection(listener.getsockname(), timeout=5)
    there, _ = listener.accept()
    return listener, here, there


def until(condition: Callable[[], bool], *, deadline_s: float = 10.0) -> bool:
    end_s = time.monotonic() + deadline_s
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.01)
    return condition()


def test_a_peer_that_says_nothing(monkeypatch):
    """Not at once; after a while; and no more once a word has come (the control)."""
    ends = opened()
    _, here, there = ends
    try:
        here.send(b"OPEN")
        assert exabgp_habits.tcp_problem(here) == ""
        monkeypatch.setattr(exabgp_habits, "WORDLESS_AFTER_MS", 100)
        assert until(lambda: exabgp_habits.tcp_problem(here) == exabgp_habits.WORDLESS)
        monkeypatch.setattr(exabgp_habits, "WORDLESS_AFTER_MS", 60_000)
        there.send(b"OPEN")
        assert until(lambda: exabgp_habits.tcp_problem(here) == "")
    finally:
        for end in ends:
            end.close()


def test_a_socket_that_is_closed():
    """Is none of anybody's."""
    ends = opened()
    for end in ends:
        end.close()
    assert exabgp_habits.tcp_problem(ends[1]) == ""
