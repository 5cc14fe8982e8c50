"""Who has a turn in ExaBGP's loop: its own Reactor and Peer, with sessions that do as told."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from exabgp.bgp.fsm import FSM
from exabgp.logger import log
from exabgp.reactor.api import API
from exabgp.reactor.api.command import limit
from exabgp.reactor.asynchronous import ASYNC
from exabgp.reactor.keepalive import KA
from exabgp.reactor.loop import Reactor
from exabgp.reactor.peer import ACTION, Peer
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.exabgp_sessions import load

NEVER_S = 1000
KEEPALIVE = b"\xff" * 16 + b"\0\x13\x04"
REPLACED = [
    (Reactor, "active_peers"), (Reactor, "_wait_for_io"), (Reactor, "reload"), (Reactor, "restart"),
    (Peer, "run"), (Peer, "handle_connection"), (KA, "__init__"), (KA, "__call__"),
    (API, "process"), (ASYNC, "run"),
    (limit, "match_neighbor"),
]  # fmt: skip


_opened: list[socket.socket] = []


class Told(Peer):  # type: ignore[misc] # ExaBGP has no types
    """An established session that says what it is told, LATER without a word, and counts."""

    def __init__(self) -> None:
        self.io, self.router = socket.socketpair()
        _opened.extend((self.io, self.router))
        self.io.setblocking(False)
        self.turns = 0
        self.seen, self.is_reading = b"", True
        self.words: deque[int] = deque()
        self.generator: Iterator[int] = self._turns()
        self.fsm = FSM(self, FSM.ESTABLISHED)
        self.fsm.state = FSM.ESTABLISHED
        self._teardown: int | None = None
        self._neighbor = None
        self._restart = True
        self._delay = SimpleNamespace(backoff=lambda: False)
        self.queued: list[int] = []
        outgoing = SimpleNamespace(pending=lambda: bool(self.queued))
        self.neighbor: Any = SimpleNamespace(
            rib=SimpleNamespace(outgoing=outgoing),
            eor=deque(),
            refresh=deque(),
            messages=deque(),
            api={},
        )
        self.recv_timer = SimpleNamespace(holdtime=NEVER_S, last_read=int(time.time()))
        self.connection = SimpleNamespace(
            slash32_buffer=bytearray(), io=self.io, defensive=False, writer=self._written
        )
        self.stats = {"receive-keepalive": 0, "send-keepalive": 0}
        self.proto: Any = SimpleNamespace(
            connection=self.connection,
            fd=self.io.fileno,
            negotiated=SimpleNamespace(holdtime=SimpleNamespace(keepalive=lambda: NEVER_S)),
        )
        self.keepalive: Any = KA(lambda: "outgoing-1", self.proto)
        self.reactor = SimpleNamespace(processes=SimpleNamespace(broken=lambda _: False))

    def _written(self, data: bytes) -> Iterator[bool]:
        assert self.io.send(data) == len(data)
        yield True

    def read(self) -> bytes:
        """What there is, as the tuned reader takes it: first of its buffer."""
        found = bytes(self.connection.slash32_buffer) if self.is_reading else b""
        if self.is_reading:
            self.connection.slash32_buffer.clear()
        return found or self.io.recv(1000)

    def _turns(self) -> Iterator[int]:
        while True:
            self.turns += 1
            self.queued.clear()
            self.keepalive()
            try:
                self.seen += self.read()
                yield ACTION.NOW
            except BlockingIOError:
                yield self.words.popleft() if self.words else ACTION.LATER


class Loop:
    """Rounds of the reactor, as its run() makes them."""

    def __init__(self, *peers: Told) -> None:
        reactor: Any = Reactor.__new__(Reactor)
        reactor._peers = dict(enumerate(peers))
        reactor._poller = select.poll()
        reactor.listener = None
        reactor.asynchronous = ASYNC()
        reactor.signal = SimpleNamespace(received=0)
        reactor.processes = SimpleNamespace(fds=[])
        reactor._busyspin, reactor.max_loop_time, reactor._sleep_time = {}, 1, 0.01
        for peer in peers:
            peer.neighbor = _Settings(**vars(peer.neighbor))
        self.reactor = reactor
        self.peers = peers

    def round(self) -> float:
        """One; returns for how long it slept."""
        sleep_ms = 10
        for key in list(self.reactor.active_peers()):
            peer = self.reactor._peers[key]
            action = peer.run()
            if action == ACTION.LATER and peer.socket() != -1:
                self.reactor._poller.register(peer.socket(), select.POLLIN)
            elif action == ACTION.NOW:
                sleep_ms = 0
        self.reactor.asynchronous.run()
        began_s = time.monotonic()
        assert list(self.reactor._wait_for_io(sleep_ms)) == []
        return time.monotonic() - began_s

    def settle(self) -> list[int]:
        """Until everybody rests; returns who has had how many turns."""
        self.reactor.active_peers()
        for peer in self.peers:
            peer.run()
            self.reactor._poller.register(peer.socket(), select.POLLIN)
        return [peer.turns for peer in self.peers]


class _Settings(SimpleNamespace):
    def __getitem__(self, name: str) -> bool:
        return False


@pytest.fixture(autouse=True)
def _turns(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(log, "debug", staticmethod(lambda *_, **__: None))
    before = [(owner, name, getattr(owner, name)) for owner, name in REPLACED]
    wakeup = signal.set_wakeup_fd(-1)
    load("exabgp_turns").install()
    yield
    for owner, name, function in before:
        setattr(owner, name, function)
    signal.set_wakeup_fd(wakeup)
    while _opened:
        _opened.pop().close()


def test_only_the_session_that_something_came_for_has_a_turn():
    """A hundred others cost nothing."""
    loop = Loop(Told(), Told(), Told())
    before = loop.settle()
    loop.peers[1].router.send(b"x")
    loop.round()  # nobody's turn: it sleeps until the byte is there
    loop.round()
    after = [peer.turns for peer in loop.peers]
    assert after[1] > before[1]
    assert [after[0], after[2]] == [before[0], before[2]]


def test_what_comes_ends_the_sleep():
    """Latency must not be the price of idleness: the sleep may last a second."""
    loop = Loop(Told())
    loop.settle()
    threading.Timer(0.05, lambda: loop.peers[0].router.send(b"x")).start()
    before = loop.peers[0].turns
    end_s = time.monotonic() + 10
    while loop.peers[0].turns == before:
        loop.round()
        assert time.monotonic() < end_s


def test_a_hold_timer_that_runs_out_is_a_turn():
    """Else a dead peer would not be noticed."""
    peer = Told()
    loop = Loop(peer)
    now = int(time.time())
    peer.recv_timer = SimpleNamespace(holdtime=1, last_read=now)
    (before,) = loop.settle()
    end_s = time.monotonic() + 10
    while peer.turns == before:
        loop.round()
        assert time.monotonic() < end_s
    # Not before its second, and hardly after it has begun.
    assert 2 <= time.time() - now < 3.5


def test_a_session_at_rest_keeps_alive_without_a_turn():
    """One out when it is due, and one in: its hold timer and counters know of both."""
    peer = Told()
    loop = Loop(peer)
    now = int(time.time())
    timer = peer.keepalive.send_timer
    timer.keepalive, timer.last_sent = 2, now
    peer.recv_timer = SimpleNamespace(holdtime=60, last_read=now - 50)
    before = loop.settle()
    peer.router.sendall(KEEPALIVE * 2)
    peer.router.setblocking(False)
    said, end_s = b"", time.monotonic() + 10
    while not said:
        loop.round()
        with contextlib.suppress(BlockingIOError):
            said = peer.router.recv(1000)
        assert time.monotonic() < end_s
    assert said == KEEPALIVE
    # Not before its second, and hardly after it has begun.
    assert 2 <= time.time() - now < 3.5
    assert timer.last_sent >= now + 2
    assert peer.recv_timer.last_read >= now
    assert peer.stats == {"receive-keepalive": 2, "send-keepalive": 1}
    assert (loop.settle(), peer.seen) == ([before[0] + 1], b"")


@pytest.mark.parametrize(
    "came",
    [
        KEEPALIVE[:10], KEEPALIVE + KEEPALIVE[:1], KEEPALIVE[:18] + b"\x02", b"\0" * 19,
        KEEPALIVE[:17] + b"\x14\x04x", KEEPALIVE * 2 + b"\xff" * 16 + b"\0\x15\x03\x06\x02",
    ],
)  # fmt: skip
def test_what_is_not_a_keepalive_is_for_the_session_to_see(came: bytes):
    """To the last byte, and in its turn; nothing of it counts."""
    peer = Told()
    loop = Loop(peer)
    peer.recv_timer.last_read = 5
    loop.settle()
    peer.router.sendall(came)
    end_s = time.monotonic() + 10
    while not peer.seen:
        loop.round()
        assert time.monotonic() < end_s
    assert peer.seen == came
    assert peer.stats["receive-keepalive"] == 0
    assert peer.recv_timer.last_read == 5


def test_the_end_of_a_connection_is_for_the_session_to_see():
    """It reads it again."""
    peer = Told()
    loop = Loop(peer)
    (before,) = loop.settle()
    peer.router.close()
    end_s = time.monotonic() + 10
    while peer.turns == before:
        loop.round()
        assert time.monotonic() < end_s


def test_a_keepalive_that_was_sent_in_part_is_finished_before_anything_else():
    """The rest goes out in the session's turn, which it has at once; it does not rest before."""
    peer = Told()
    loop = Loop(peer)
    loop.settle()
    timer = peer.keepalive.send_timer
    timer.keepalive, timer.last_sent = 1, 0
    real = peer.io

    class Narrow:
        def send(self, data: bytes, flags: int) -> int:
            return real.send(data[:7], flags)

    peer.connection.io = Narrow()
    turns = load("exabgp_turns")
    assert not turns.keeps_alive(peer, int(time.time()))
    assert peer.keepalive.slash32_is_sending
    assert not turns.may_rest(peer, FSM.ESTABLISHED)
    peer.run()
    assert not peer.keepalive.slash32_is_sending
    assert peer.router.recv(1000) == KEEPALIVE
    assert peer.stats["send-keepalive"] == 1


@pytest.mark.parametrize("what", ["route", "eor", "refresh", "generator", "teardown"])
def test_what_a_command_gave_somebody_is_a_turn(what):
    """For one session or for all: it is looked for with each of them."""
    loop = Loop(Told(), Told())
    before = loop.settle()
    peer = loop.peers[0]

    def command() -> Iterator[None]:
        yield
        if what == "route":
            peer.queued.append(1)
        elif what == "generator":
            peer.generator = iter([ACTION.LATER])
        elif what == "teardown":
            peer._teardown = 3
        else:
            getattr(peer.neighbor, what).append(1)

    loop.reactor.asynchronous._async.append(("agent", command()))
    assert loop.round() < 0.5
    assert loop.reactor.active_peers() == {0}
    assert loop.peers[1].turns == before[1]


def test_a_message_in_the_buffer_is_work():
    """The socket says nothing about what has been read from it already."""
    peer = Told()
    loop = Loop(peer)
    peer.is_reading = False
    peer.connection.slash32_buffer += b"\xff" * 16 + b"\0\x13\x04"
    peer.words.append(ACTION.LATER)
    loop.settle()
    assert loop.reactor.active_peers() == {0}
    peer.connection.slash32_buffer = bytearray(b"\xff" * 16 + b"\0\x14\x02")  # one byte is missing
    loop.settle()
    assert loop.reactor.active_peers() == set()


def test_who_is_not_established_has_a_turn_in_each_round():
    """As in the original: the opening is a matter of milliseconds, and full of timers."""
    peer = Told()
    loop = Loop(peer)
    peer.fsm.state = FSM.OPENSENT
    for _ in range(3):
        before = peer.turns
        assert loop.round() < 0.5
        assert peer.turns == before + 1


def test_a_signal_ends_the_sleep():
    """SIGTERM is not made to wait for a second."""
    loop = Loop(Told())
    loop.settle()
    loop.round()
    caught: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: caught.append(number))
    try:
        for _ in range(3):  # one of them may meet the beginning of a second
            caught.clear()
            threading.Timer(0.02, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
            slept_s = loop.round()
            end_s = time.monotonic() + 10
            while not caught:
                assert time.monotonic() < end_s
                slept_s = loop.round()
            if slept_s < 0.5:
                return
        pytest.fail("a signal was slept through")
    finally:
        signal.signal(signal.SIGUSR1, before)


WORDS = st.sampled_from(
    ["neighbor 10.0.0.1", "neighbor 10.0.0.11", "neighbor *", "local-as 65001", "local-as 65", " "]
)


@given(st.lists(WORDS, max_size=3), st.lists(WORDS, max_size=4), st.sampled_from([" ", ",", ", "]))
def test_a_neighbour_is_matched_as_in_the_original(description, words, between):
    """Only faster."""
    original = load("exabgp_turns").importlib.import_module(limit.__name__).match_neighbor
    unhooked = original.__closure__[0].cell_contents
    name = between.join(words)
    assert original(description, name) == unhooked(description, name)
