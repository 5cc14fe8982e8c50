"""When each session of ExaBGP 5.0.15 has its turn. Loaded by exabgp_tuned.py.

ExaBGP's loop wakes a hundred times a second, and at every KEEPALIVE of any session, and each time
it gives every session a turn: a turn asks the kernel whether something has come and looks at two
timers. With 100 sessions that is a fifth of a core for nothing. Here a session that has said it has
no work (``ACTION.LATER``) **rests**, and has a turn again when there is something for it:

* its socket is readable;
* one of its timers (hold time, keepalive) may have run out: they count whole seconds of the wall
  clock, so they are looked at when such a second begins;
* something is queued for it, which is looked at whenever the API was given a command or a scheduled
  command did a step;
* the configuration was loaded, or a connection of the peer came in for it.

Only established sessions and those between two attempts rest, and only with nothing queued and no
whole message in the buffer; all others (connecting, opening, closing, being changed) have a turn
in every round, as in the original. With nobody awake the loop sleeps until one of these happens
instead of a hundredth of a second; the listening sockets and signals wake it too.

What is left of an idle session is a KEEPALIVE in and one out, and a turn for each is a dozen
generators and four system calls. So those of a session that rests are read and sent here, by one
system call each, and it goes on resting: a KEEPALIVE and nothing else is taken, its timer set and
its counter raised; anything else that comes is put where its own reader looks first, and is its
turn. So is whatever goes wrong, which the session then finds out for itself.

What is replaced: ``Reactor.active_peers`` (who has a turn in this round) and
``Reactor._wait_for_io`` (for how long to sleep, and whom what came is for). ``Peer.run``,
``Peer.handle_connection``, ``KA.__init__``, ``KA.__call__``, ``Reactor.reload``,
``Reactor.restart``, ``API.process`` and ``ASYNC.run`` are listened to. Two things cost more for
each command than what they do: ``ASYNC.run`` makes an event loop to step through generators, which
need none, and ``match_neighbor`` a regular expression for each peer, though the text is in the name
of one.

Nothing of ExaBGP is copied and nothing of ours is imported; it is shaped so that it can be offered
upstream.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from types import GeneratorType
from typing import Any

FINGERPRINTS = {
    "exabgp.reactor.loop:Reactor.__init__": "160faec7d6929ebc",
    "exabgp.reactor.loop:Reactor.active_peers": "163a6e3b7080e056",
    "exabgp.reactor.loop:Reactor._wait_for_io": "abe9694fbe6f8686",
    "exabgp.reactor.loop:Reactor._prevent_spin": "b62712c6242b5ff4",
    "exabgp.reactor.loop:Reactor.run": "2be669a4812a5c6d",
    "exabgp.reactor.loop:Reactor.reload": "9d31059186ff3252",
    "exabgp.reactor.loop:Reactor.restart": "5340ee405a611dc9",
    "exabgp.reactor.loop:Reactor.shutdown": "b6636731b873b730",
    "exabgp.reactor.peer:Peer._main": "e5ea2fecea84afed",
    "exabgp.reactor.peer:Peer._read_ka": "a85e7e322c837f89",
    "exabgp.reactor.peer:Peer.run": "c00bb5613e406b4f",
    "exabgp.reactor.peer:Peer.handle_connection": "ecb82811d4b5461a",
    "exabgp.reactor.peer:Peer.stopping": "482c8154d8eb60a4",
    "exabgp.reactor.delay:Delay.backoff": "5a974c949dc74c61",
    "exabgp.reactor.keepalive:KA.__init__": "b46e3ff6a74ba814",
    "exabgp.reactor.keepalive:KA._keepalive": "94db9911569c774e",
    "exabgp.reactor.keepalive:KA.__call__": "927107b0538c5f94",
    "exabgp.reactor.protocol:Protocol.new_keepalive": "ebf49e0c5a493920",
    "exabgp.reactor.protocol:Protocol.write": "eadd58f53fe06bbf",
    "exabgp.reactor.network.connection:Connection.writer": "c7cb346b75b1a522",
    "exabgp.bgp.timer:ReceiveTimer.check_ka": "03e775485ebefd43",
    "exabgp.bgp.timer:ReceiveTimer.check_ka_timer": "49f33e41e133bc45",
    "exabgp.bgp.timer:SendTimer.need_ka": "fc4b0e9f439ac331",
    "exabgp.reactor.api:API.process": "577ac15463d05088",
    "exabgp.reactor.asynchronous:ASYNC._run_async": "7640837abdd9df3e",
    "exabgp.reactor.asynchronous:ASYNC.run": "b19e41c01689bade",
    "exabgp.rib.outgoing:OutgoingRIB.pending": "b3f88dc7b3096abf",
    "exabgp.reactor.api.command.limit:match_neighbor": "dca3aaac8c0cb734",
}
"""module:function to the first 16 digits of the SHA-256 of its source text."""

AFTER_SECOND_S = 0.002
"""After a second has begun: a clock that is read a moment too early has not got there."""
_EVENTS = select.POLLIN | select.POLLPRI | select.POLLHUP | select.POLLNVAL | select.POLLERR
_HEADER_BYTES = 19
_KEEPALIVE = b"\xff" * 16 + b"\x00\x13\x04"
_RECEIVE_BYTES = 64 * 1024
_NEVER = 1 << 62


class Turns:
    """Who is awake, and until when the others rest. Times are of the monotonic clock."""

    def __init__(self) -> None:
        self.is_everybodys = True
        self.is_work_looked_for = False
        """Somebody who rests may have been given work."""
        self.awake: set[Any] = set()
        self.rested_with: dict[Any, Any] = {}
        """Each peer's generator when it came to rest: a command may have given it another."""
        self.by_socket: dict[int, Any] = {}
        """Which peer rests on this socket."""
        self.second_ends_s = 0.0
        self.due: dict[Any, int] = {}
        """The second of the wall clock in which a timer of an established session runs out."""
        self.backoff_ends_s: dict[Any, float] = {}
        """Peers between two attempts."""
        self.listening: set[int] = set()

    def begin_round(self, now_s: float, established: int) -> None:
        """Wakes whose time has come, but for who only has a KEEPALIVE to send: it is sent."""
        if now_s >= self.second_ends_s:
            wall_s = time.time()
            self.second_ends_s = now_s + 1 - wall_s % 1 + AFTER_SECOND_S
            for peer in [peer for peer, due in self.due.items() if due <= wall_s]:
                if self.rests(peer, established) and keeps_alive(peer, int(wall_s)):
                    self.due[peer] = _next_timer(peer)
                else:
                    self.awake.add(peer)
        for peer in [p for p, end_s in self.backoff_ends_s.items() if now_s >= end_s]:
            del self.backoff_ends_s[peer]
            self.awake.add(peer)

    def rests(self, peer: Any, established: int) -> bool:
        """Whether it is an established session that rests and has nothing to do."""
        generator = peer.generator
        return (
            peer not in self.awake
            and peer.fsm == established
            and self.rested_with.get(peer) is generator
            and may_rest(peer, established)
        )

    def forget(self, peer: Any) -> None:
        """It is finished."""
        self.awake.discard(peer)
        for known in (self.rested_with, self.due, self.backoff_ends_s):
            known.pop(peer, None)

    def sleep_ms(self, now_s: float) -> int:
        """Until the next thing that is known beforehand."""
        wake_s = min([self.second_ends_s, *self.backoff_ends_s.values()])
        return max(0, int((wake_s - now_s) * 1000) + 1)


def _has_work(peer: Any) -> bool:
    """Whether an established session would find something to do without anything coming in."""
    neighbor = peer.neighbor
    if neighbor.rib.outgoing.pending() or neighbor.eor or neighbor.refresh or neighbor.messages:
        return True
    # What a read brought beyond the message that was asked for.
    buffer = getattr(peer.proto.connection, "slash32_buffer", b"")
    size = len(buffer)
    return size >= _HEADER_BYTES and size >= (buffer[16] << 8) | buffer[17]


def may_rest(peer: Any, established: int) -> bool:
    """Whether this peer, which has just said that it has no work, has none until it is woken."""
    if peer._teardown or peer._neighbor or getattr(peer, "_slash32_parked", None) is not None:
        return False
    if peer.fsm == established:
        keepalive = getattr(peer.proto, "slash32_keepalive", None)
        if keepalive is not None and keepalive.slash32_is_sending:
            return False
        return bool(peer.generator) and peer.proto is not None and not _has_work(peer)
    if peer.generator is None:
        return bool(peer._delay.backoff())
    # Closed for good, until a reload.
    return peer.generator is False and not peer._restart


def _next_timer(peer: Any) -> int:
    """The second of the wall clock in which the first of an established session's timers ends."""
    keepalive = getattr(peer.proto, "slash32_keepalive", None)
    receiving = peer.recv_timer
    if keepalive is None or receiving is None:
        return 0
    sending = keepalive.send_timer
    ends = []
    if sending.keepalive:
        ends.append(sending.last_sent + sending.keepalive)
    if receiving.holdtime:
        ends.append(receiving.last_read + receiving.holdtime + 1)
    return int(min(ends, default=_NEVER))


def hears_only_keepalives(peer: Any) -> bool:
    """Reads for a session that rests. False: what has come is for itself to see."""
    connection = peer.proto.connection
    buffer = getattr(connection, "slash32_buffer", None)
    timer = peer.recv_timer
    if (
        buffer is None
        or buffer
        or connection.defensive
        or not timer.holdtime
        or peer.neighbor.api.get("receive-keepalive", False)
    ):
        return False
    try:
        data = connection.io.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
    except OSError:
        return False
    count, rest = divmod(len(data), _HEADER_BYTES)
    if rest or not count or data != _KEEPALIVE * count:
        # The end of the connection it is told again.
        buffer += data
        return False
    peer.stats["receive-keepalive"] += count
    timer.last_read = int(time.time())
    return True


def keeps_alive(peer: Any, now: int) -> bool:
    """Sends the KEEPALIVE of a session that rests, if it is due at this second of the wall clock.
    False: its hold time is over, or it could not be sent."""
    keepalive = getattr(peer.proto, "slash32_keepalive", None)
    receiving, connection = peer.recv_timer, peer.proto.connection
    if keepalive is None or receiving is None or connection.defensive:
        return False
    if receiving.holdtime and now - receiving.last_read > receiving.holdtime:
        return False
    sending = keepalive.send_timer
    if not sending.keepalive or sending.last_sent + sending.keepalive > now:
        return True
    if peer.neighbor.api.get("send-keepalive", False):
        return False
    try:
        sent = connection.io.send(_KEEPALIVE, socket.MSG_DONTWAIT)
    except OSError:
        return False
    sending.last_sent = now
    peer.stats["send-keepalive"] += 1
    if sent == len(_KEEPALIVE):
        return True
    # The rest before anything else.
    keepalive._generator = _rest_first(connection.writer(_KEEPALIVE[sent:]), keepalive._generator)
    keepalive.slash32_is_sending = True
    return False


def _rest_first(writer: Iterator[bool], then: Iterator[bool]) -> Iterator[bool]:
    """What ``KA`` steps through: True while a KEEPALIVE is under way."""
    for is_sent in writer:
        if not is_sent:
            yield True
    yield from then


def _turns(turns: Turns) -> None:
    """Listens to the turns, and notes who rests after his."""
    module = importlib.import_module("exabgp.reactor.peer")
    peer_class, action = module.Peer, module.ACTION
    established, opening = module.FSM.ESTABLISHED, module.FSM.OPENCONFIRM
    run, handle = peer_class.run, peer_class.handle_connection

    def noted_run(self: Any) -> Any:
        said = run(self)
        if said == action.NOW and self.fsm == established:
            # Mostly it has read one KEEPALIVE and rests: that is not worth another round.
            said = run(self)
        if said == action.CLOSE:
            turns.forget(self)
        elif said != action.NOW and may_rest(self, established):
            turns.awake.discard(self)
            turns.rested_with[self] = self.generator
            if self.fsm == established:
                turns.due[self] = _next_timer(self)
            elif self.generator is None:
                turns.backoff_ends_s[self] = time.monotonic() + self._delay._time - time.time()
            if (fd := self.socket()) != -1:
                turns.by_socket[fd] = self
        else:
            turns.awake.add(self)
            if said == action.NOW and self.fsm == opening:
                # It waits for the peer's first KEEPALIVE, and would not let the loop sleep.
                return action.LATER
        return said

    def noted_connection(self: Any, connection: Any) -> Any:
        turns.awake.add(self)
        return handle(self, connection)

    keepalive = importlib.import_module("exabgp.reactor.keepalive").KA
    make, step = keepalive.__init__, keepalive.__call__

    def noted_timer(self: Any, session: Any, proto: Any) -> None:
        make(self, session, proto)
        self.slash32_is_sending = False
        proto.slash32_keepalive = self

    def noted_step(self: Any) -> Any:
        said = step(self)
        self.slash32_is_sending = said is not False
        return said

    keepalive.__init__, keepalive.__call__ = noted_timer, noted_step
    peer_class.run, peer_class.handle_connection = noted_run, noted_connection


def _commands(turns: Turns) -> None:
    """After whatever may have given work to anybody, it is looked for."""
    reactor = importlib.import_module("exabgp.reactor.loop").Reactor
    api = importlib.import_module("exabgp.reactor.api").API
    scheduler = importlib.import_module("exabgp.reactor.asynchronous").ASYNC
    process, step = api.process, scheduler.run

    def everybodys(function: Any) -> Any:
        def loaded(self: Any) -> Any:
            turns.is_everybodys = True
            return function(self)

        return loaded

    def noted_process(self: Any, *arguments: Any) -> Any:
        turns.is_work_looked_for = True
        return process(self, *arguments)

    def run(self: Any) -> Any:
        if not self._async:
            return False
        turns.is_work_looked_for = True
        if any(type(callback) is not GeneratorType for _, callback in self._async):
            return step(self)
        steps = self._run_async()
        try:
            steps.send(None)
        except StopIteration as end:
            return end.value
        # It waits for something after all; nothing here has anything to wait for.
        raise RuntimeError("a generator of the API awaits")

    reactor.reload, reactor.restart = everybodys(reactor.reload), everybodys(reactor.restart)
    api.process, scheduler.run = noted_process, run


def _rounds(turns: Turns) -> None:
    reactor = importlib.import_module("exabgp.reactor.loop").Reactor
    established = importlib.import_module("exabgp.reactor.peer").FSM.ESTABLISHED
    everybody = reactor.active_peers
    woken = _Woken()

    def active_peers(self: Any) -> set[str]:
        turns.begin_round(time.monotonic(), established)
        active: set[str]
        if turns.is_everybodys:
            turns.is_everybodys = False
            turns.is_work_looked_for = False
            active = everybody(self)
            turns.awake = {self._peers[key] for key in active}
            for known in (turns.rested_with, turns.due):
                known.clear()
            return active
        if turns.is_work_looked_for:
            turns.is_work_looked_for = False
            turns.awake.update(
                peer
                for peer, generator in turns.rested_with.items()
                if peer.generator is not generator or not may_rest(peer, established)
            )
        if not turns.awake:
            return set()
        awake = [(key, peer) for key, peer in self._peers.items() if peer in turns.awake]
        if all(peer.proto for _, peer in awake):
            return {key for key, _ in awake}
        active = everybody(self)
        return {key for key, _ in awake if key in active}

    def wait_for_io(self: Any, sleep_ms: int) -> Iterator[int]:
        if (
            turns.is_everybodys
            or turns.is_work_looked_for
            or self.asynchronous._async
            or self.signal.received
        ):
            sleep_ms = 0
        elif sleep_ms and not turns.awake:
            sleep_ms = turns.sleep_ms(time.monotonic())
        listen(self)
        woken.watch(self._poller)
        is_resting = bool(sleep_ms) and not turns.awake
        is_spinning = False
        try:
            while True:
                events = self._poller.poll(sleep_ms)
                others = [(fd, event) for fd, event in events if not is_for_one_at_rest(fd, event)]
                is_spinning = attend(self, others)
                if not is_resting or others or not events:
                    break
                sleep_ms = turns.sleep_ms(time.monotonic())
        except KeyboardInterrupt:
            self._termination("^C received", self.Exit.normal)
        except OSError:
            is_spinning = True
        if is_spinning:
            self._prevent_spin()
        # The original would only add them to a set that is made anew at once.
        return iter(())

    def is_for_one_at_rest(fd: int, event: int) -> bool:
        """Whether it was KEEPALIVEs, and has been dealt with."""
        peer = turns.by_socket.get(fd)
        return (
            peer is not None
            and event == select.POLLIN
            and peer.socket() == fd
            and turns.rests(peer, established)
            and hears_only_keepalives(peer)
        )

    def attend(self: Any, events: Iterable[tuple[int, int]]) -> bool:
        """Wakes whom something has come for; whether any of it is nobody's."""
        is_spinning = False
        for fd, event in events:
            if event & select.POLLNVAL and fd not in self.processes.fds:
                # Closed; the original would poll it for ever.
                self._poller.unregister(fd)
                turns.listening.discard(fd)
                turns.by_socket.pop(fd, None)
                continue
            if fd == woken.fd:
                woken.forget()
                continue
            peer = turns.by_socket.get(fd)
            if peer is not None and peer.socket() == fd:
                turns.awake.add(peer)
            if not event & (select.POLLIN | select.POLLPRI):
                is_spinning = True
        return is_spinning

    def listen(self: Any) -> None:
        sockets = self.listener._sockets if self.listener else {}
        wanted = {each.fileno() for each in sockets}
        for fd in wanted - turns.listening:
            self._poller.register(fd, _EVENTS)
        turns.listening = wanted

    reactor.active_peers, reactor._wait_for_io = active_peers, wait_for_io


class _Woken:
    """A signal ends the sleep: a byte in a pipe that is polled."""

    fd = -1

    def watch(self, poller: Any) -> None:
        if self.fd == -1:
            self.fd, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            signal.set_wakeup_fd(write, warn_on_full_buffer=False)
            poller.register(self.fd, select.POLLIN)

    def forget(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)


def _quick_match() -> None:
    limit: Any = importlib.import_module("exabgp.reactor.api.command.limit")
    match = limit.match_neighbor

    def match_neighbor(description: list[str], name: str) -> bool:
        for text in description:
            if text.strip() == "neighbor *":
                break
            if text not in name:
                return False
        return bool(match(description, name))

    limit.match_neighbor = match_neighbor


def install() -> None:
    """Makes all changes, after those of exabgp_habits.py, with the fingerprints checked."""
    turns = Turns()
    _turns(turns)
    _commands(turns)
    _rounds(turns)
    _quick_match()
