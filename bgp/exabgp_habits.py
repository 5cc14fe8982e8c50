"""Habits of ExaBGP 5.0.15 that a node cannot live with, changed. Loaded by exabgp_tuned.py.

Each change is one function below, with its reason.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

FINGERPRINTS = {
    "exabgp.reactor.delay:Delay.increase": "9e348b6f1e113f0e",
    "exabgp.reactor.loop:Reactor._pending_adjribout": "1eca799614b5b01c",
    "exabgp.reactor.loop:Reactor._listen_for_neighbors": "ab813846666eacde",
    "exabgp.reactor.listener:Listener.incoming": "c95257c15ffba6cf",
    "exabgp.reactor.listener:Listener._listen": "bbf085510e08a64e",
    "exabgp.reactor.listener:Listener.close_unwanted": "712b4fcd1ef152a7",
    "exabgp.reactor.listener:set_accepted_ttl": "87c1dc1ff2882e4b",
    "exabgp.reactor.network.outgoing:Outgoing._connect": "3db8c6cc77142e8a",
    "exabgp.reactor.network.outgoing:Outgoing._setup": "52b32df410800231",
    "exabgp.reactor.network.outgoing:Outgoing.establish": "b446acdd89740c10",
    "exabgp.reactor.network.tcp:create": "377b758f77868620",
    "exabgp.reactor.network.tcp:ready": "b668ada85c801560",
    "exabgp.reactor.peer:Peer.handle_connection": "ecb82811d4b5461a",
    "exabgp.reactor.peer:Peer.run": "c00bb5613e406b4f",
    "exabgp.reactor.peer:Peer._run": "a514d2f5f0bb3364",
    "exabgp.reactor.peer:Peer._reset": "4f709dbfce076cda",
    "exabgp.reactor.peer:Peer._close": "942fc729d7b67f45",
    "exabgp.reactor.peer:Peer.stopping": "482c8154d8eb60a4",
    "exabgp.rib.outgoing:OutgoingRIB.replace_reload": "d6e1e00e4f45ee6a",
    "exabgp.reactor.api.command.command:Command.register": "d25d155bb0a14551",
    "exabgp.reactor.api.command.limit:extract_neighbors": "4c3484fbdab46dc4",
    "exabgp.reactor.api.command.limit:match_neighbors": "fb09040781fd15ba",
}
"""module:function to the first 16 digits of the SHA-256 of its source text."""

RETRY_MAX_S = 3
"""Between two attempts to connect. ExaBGP's own grows to 60 s, and a link that is back must not
wait a minute for it."""
CONNECT_SYN_RETRIES = 1
"""The kernel's default keeps one attempt alive for two minutes, with a SYN every 32 s at the end; a
link that is back is noticed by the next SYN. With one retry an attempt ends after 3 s."""
BIND_RETRY_S = 1.0
OURS_MAY_TAKE_S = 3.0
"""How long our own connection, once it is open, is preferred to one that the peer has opened."""
RECONNECT_SETTLED_S = 1.0
"""A second connection that outlives a collision by this is no collision."""

SILENT = "no answer"
"""Nothing came back to our SYN."""
UNACKNOWLEDGED = "not acknowledged"
"""TCP is open, and the peer's kernel does not acknowledge what we send."""
UNACKNOWLEDGED_AFTER = 2
"""Segments sent again (0.2 s, 0.4 s; RFC 6298): once is a lost packet."""
WORDLESS = "no word"
"""TCP is open, and nothing has come from the peer for WORDLESS_AFTER_MS."""
WORDLESS_AFTER_MS = 3000
"""A peer that has taken a connection says OPEN at once, and answers ours at once."""
_TCP_INFO_BYTES = 104
_TCP_ESTABLISHED = 1

_peer: Any = None
_loop: Any = None
_listener: Any = None
_outgoing: Any = None
_tcp: Any = None
_errors: Any = None

_connect_problems: dict[str, str] = {}
"""By peer address: what the last attempt to open a session came to, if not to words of the peer."""
_listen_problems: dict[tuple[str, int], str] = {}
"""By (address, port): why we cannot listen there."""


# -- connecting ------------------------------------------------------------------------------------


def _bounded_backoff() -> None:
    delay = importlib.import_module("exabgp.reactor.delay").Delay
    increase = delay.increase

    def bounded(self: Any) -> None:
        increase(self)
        self._next = min(self._next, RETRY_MAX_S)

    delay.increase = bounded


def _attempts_that_end() -> None:
    """A failed attempt is one: it is reported, and it waits for its turn like any other.

    ExaBGP takes a refused connection for an open one and finds out at the first message; and tries
    one that fails at once (no route, no such source address) again a hundred times a second.
    """
    create = _outgoing.create

    def short(afi: Any, interface: Any = None) -> Any:
        made = create(afi, interface)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, CONNECT_SYN_RETRIES)
        return made

    connect = _outgoing.Outgoing._connect

    def reported(self: Any) -> None:
        problem = connect(self)
        if problem is not None:
            _connect_problems[self.peer] = str(problem)
            raise _errors.NotConnected(str(problem))
        _waiting_for[id(self.io)] = self.peer

    import select

    def ready(io: Any) -> Iterator[tuple[bool, str]]:
        peer = _waiting_for.pop(id(io), "")
        poller = select.poll()
        poller.register(io, select.POLLOUT)
        while not poller.poll(0):
            yield False, "waiting"
        code = io.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            text = SILENT if code == errno.ETIMEDOUT else os.strerror(code)
            _connect_problems[peer] = text
            raise _errors.NotConnected(text)
        if _connect_problems.get(peer) not in (UNACKNOWLEDGED, WORDLESS):
            # These are for the next look: whoever has opened TCP has had no word of BGP yet.
            _connect_problems.pop(peer, None)
        yield True, "connected"

    reset = _peer.Peer._reset

    def answered(self: Any, message: str = "", error: Any = "") -> None:
        if message.startswith("notification received"):
            # The peer speaks: its words are the reason, not what an attempt before this came to.
            _connect_problems.pop(str(self.neighbor["peer-address"]), None)
        reset(self, message, error)

    _peer.Peer._reset = answered
    _outgoing.create = short
    _outgoing.Outgoing._connect = reported
    _outgoing.ready = ready


_waiting_for: dict[int, str] = {}


# -- listening -------------------------------------------------------------------------------------


def _listening_that_heals() -> None:
    """A port that is taken, or an address that is not there yet, costs what would come in there.

    ExaBGP refuses to start at all. Here the start goes on, the reason is kept for ``show slash32``,
    and binding is tried again every second.

    The listening socket is shared by all peers of an address, so a minimum TTL (GTSM) on it would
    apply to peers that do not have one; it is set on what was accepted instead, and on the
    listening socket only when all its peers have one.
    """
    installed_keys: dict[tuple[str, int], set[str]] = {}

    def listen_for_neighbors(self: Any) -> bool:
        wanted: dict[tuple[str, int], list[Any]] = {}
        for neighbor in self.configuration.neighbors.values():
            if neighbor["listen"]:
                key = neighbor["md5-ip"].top(), int(neighbor["listen"])
                wanted.setdefault(key, []).append(neighbor)
        self.listener.close_unwanted(set(wanted))
        for key in [*_listen_problems, *installed_keys]:
            if key not in wanted:
                _listen_problems.pop(key, None)
                installed_keys.pop(key, None)
        for key, neighbors in wanted.items():
            problem = bind(self.listener, key, neighbors)
            if problem:
                _listen_problems[key] = problem
            else:
                _listen_problems.pop(key, None)
        return True

    def bind(listener: Any, key: tuple[str, int], neighbors: list[Any]) -> str:
        try:
            for neighbor in neighbors:
                address = neighbor["peer-address"]
                password, encoding = neighbor["md5-password"], neighbor["md5-base64"]
                listener._listen(neighbor["md5-ip"], address, key[1], password, encoding, None)
        except (_errors.NetworkError, OSError) as error:
            return str(error)
        (bound,) = [s for s, entry in listener._sockets.items() if entry[:2] == key]
        keyed = {n["peer-address"].top() for n in neighbors if n["md5-password"]}
        for gone in installed_keys.get(key, set()) - keyed:
            _tcp.md5(bound, gone, 0, None, False)
        installed_keys[key] = keyed
        limits = [int(n["incoming-ttl"] or 0) for n in neighbors]
        _minimum_ttl(bound, min(limits))
        if max(limits):
            # A peer with GTSM looks at our SYN-ACK too, which has the listening socket's TTL.
            _sending_ttl(bound, 255)
        return ""

    incoming = _listener.Listener.incoming
    last_s = [0.0]

    def incoming_or_bind(self: Any) -> Any:
        if _listen_problems and time.monotonic() - last_s[0] >= BIND_RETRY_S:
            last_s[0] = time.monotonic()
            self._reactor._listen_for_neighbors()
        return incoming(self)

    accepted_ttl = _listener.set_accepted_ttl

    def set_accepted_ttl(connection: Any, neighbor: Any) -> None:
        accepted_ttl(connection, neighbor)
        if connection.io is not None:
            _minimum_ttl(connection.io, int(neighbor["incoming-ttl"] or 0))

    _loop.Reactor._listen_for_neighbors = listen_for_neighbors
    _listener.Listener.incoming = incoming_or_bind
    _listener.set_accepted_ttl = set_accepted_ttl


def _minimum_ttl(io: Any, value: int) -> None:
    if io.family == socket.AF_INET6:
        io.setsockopt(socket.IPPROTO_IPV6, _tcp.IPV6_MINHOPCOUNT, value)
    else:
        io.setsockopt(socket.IPPROTO_IP, _tcp.ip_minttl(), value)


def _sending_ttl(io: Any, value: int) -> None:
    if io.family == socket.AF_INET6:
        io.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, value)
    else:
        io.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, value)


# -- collisions ------------------------------------------------------------------------------------


class _Parked:
    """A connection that the peer opened while we are opening one."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.since_s = time.monotonic()

    def peek(self) -> bytes | None:
        """The beginning of the peer's OPEN, left where it is; None: closed; empty: nothing yet."""
        if self.connection.io is None:
            return None
        try:
            seen: bytes = self.connection.io.recv(29, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        except OSError:
            return None
        if not seen:
            return None
        return seen if len(seen) == 29 and seen[18] == 1 else b""


def _collisions() -> None:
    """Of two connections the one that the speaker of the higher identifier opened stays (RFC 4271
    section 6.8, RFC 6286 section 2.3), and both sides see it the same way.

    ExaBGP takes the peer's connection and closes its own, whatever the identifiers; two of them
    that connect at once close both, and again, and again. The identifier is in the peer's OPEN,
    which is looked at without being read: the connection that loses is not touched.

    A connection to an established session is refused, unless graceful restart was negotiated and
    the newcomer stays: then the peer has lost the old one (RFC 4724 section 4.2).
    """
    handle = _peer.Peer.handle_connection
    run = _peer.Peer.run
    fsm = _peer.FSM

    def handle_connection(self: Any, connection: Any) -> Any:
        # A neighbour that does not listen there has no MD5 key on that socket: whatever comes in
        # is not signed, and must not pass for it.
        port = connection.io.getsockname()[1] if connection.io is not None else 0
        if not self.neighbor["listen"] or int(self.neighbor["listen"]) != port:
            connection.close()
            return True
        is_opening = bool(self.generator) and not self.neighbor["passive"]
        is_ours = self.proto is not None and self.proto.connection.direction == "outgoing"
        is_undecided = self.fsm in (fsm.IDLE, fsm.ACTIVE, fsm.CONNECT, fsm.OPENSENT)
        if self.stopping():
            return handle(self, connection)
        if is_undecided and (is_ours or (self.proto is None and is_opening)):
            park(self, connection)
            return None
        if self.fsm == fsm.ESTABLISHED and has_graceful_restart(self):
            park(self, connection)
            return None
        return handle(self, connection)

    def park(self: Any, connection: Any) -> None:
        before = getattr(self, "_slash32_parked", None)
        if before is not None:
            before.connection.close()
        self._slash32_parked = _Parked(connection)

    def settle(self: Any, parked: _Parked) -> None:
        seen = parked.peek()
        if seen is None or self.stopping():
            parked.connection.close()
            self._slash32_parked = None
            return
        age_s = time.monotonic() - parked.since_s
        if self.fsm == fsm.ESTABLISHED:
            if not has_graceful_restart(self):
                parked.connection.close()
                self._slash32_parked = None
            elif seen and age_s >= RECONNECT_SETTLED_S:
                self._close("graceful restart: the peer has connected anew")
                self.neighbor.reset_rib()
                take(self, parked)
            return
        is_open = self.proto is not None
        if is_open and self.proto.connection.direction != "outgoing":
            parked.connection.close()
            self._slash32_parked = None
        elif not self.generator or (seen and theirs_wins(self, seen)) or age_s >= OURS_MAY_TAKE_S:
            take(self, parked)

    def take(self: Any, parked: _Parked) -> None:
        self._slash32_parked = None
        if self.proto is not None:
            self._close("the peer's own connection takes the place of ours")
        self.proto = _peer.Protocol(self).accept(parked.connection)
        self.generator = None
        self._delay.reset()
        # run() would take these for the state of the connection that is gone.
        self.fsm.change(fsm.IDLE)

    def theirs_wins(self: Any, seen: bytes) -> bool:
        neighbor = self.neighbor
        ours = neighbor["router-id"].pack(), neighbor["local-address"].pack()
        return (seen[24:28], neighbor["peer-address"].pack()) > ours

    def run_settled(self: Any) -> Any:
        parked = getattr(self, "_slash32_parked", None)
        if parked is not None:
            settle(self, parked)
        return run(self)

    _peer.Peer.handle_connection = handle_connection
    _peer.Peer.run = run_settled


def has_graceful_restart(peer: Any) -> bool:
    """Whether the peer of an established session has sent the capability, and we have."""
    return bool(peer.neighbor["capability"]["graceful-restart"]) and _graceful(peer) is not None


def _graceful(peer: Any) -> Any:
    received = peer.proto.negotiated.received_open if peer.proto else None
    if received is None:
        return None
    return received.capabilities.get(_peer.Capability.CODE.GRACEFUL_RESTART)


# -- reloading -------------------------------------------------------------------------------------


def _reloads_that_happen() -> None:
    """A reload is not thrown away because some neighbour has a route that it could not send.

    That neighbour may be out of reach for ever, and with it every change of the peers.
    """
    _loop.Reactor._pending_adjribout = lambda _reactor: False


def _reloads_that_repeat_nothing() -> None:
    """The routes in the file are what the API has announced already; they are not sent again."""
    outgoing = importlib.import_module("exabgp.rib.outgoing").OutgoingRIB

    def replace_reload(self: Any, previous: list[Any], new: list[Any]) -> None:
        stay = {change.index() for change in new}
        for change in new:
            self.add_to_rib(change)
        announced = {change.index() for change in self.cached_changes(self.families)}
        for change in previous:
            if change.index() not in stay and change.index() in announced:
                self.del_from_rib(change)

    outgoing.replace_reload = replace_reload


# -- commands --------------------------------------------------------------------------------------


def _commands() -> None:
    """``show slash32`` (and ``show slash32-marks``: of it the marks alone, one a line) and
    ``neighbor <ip> slash32-close <subcode> <text in hex, or ->``.

    The marks are in ``show neighbor configuration`` too, which takes 2 s with 250 neighbours.
    ExaBGP's ``teardown`` sends no NOTIFICATION when graceful restart is on, and connects again at
    once. ``slash32-close`` sends Cease with the text (RFC 9003) and stays away until a reload.
    """
    command = importlib.import_module("exabgp.reactor.api.command").Command
    limit = importlib.import_module("exabgp.reactor.api.command.limit")

    def show(self: Any, reactor: Any, service: str, line: str, use_json: bool) -> bool:
        def callback() -> Iterator[bool]:
            reactor.processes.write(service, json.dumps(_state(reactor)))
            yield True
            reactor.processes.answer_done(service)

        reactor.asynchronous.schedule(service, line, callback())
        return True

    def show_marks(self: Any, reactor: Any, service: str, line: str, use_json: bool) -> bool:
        def callback() -> Iterator[bool]:
            for mark in _marks(reactor):
                reactor.processes.write(service, mark)
                yield True
            reactor.processes.answer_done(service)

        reactor.asynchronous.schedule(service, line, callback())
        return True

    def close(self: Any, reactor: Any, service: str, line: str, use_json: bool) -> bool:
        try:
            descriptions, rest = limit.extract_neighbors(line)
            _, subcode, text = rest.split(" ")
            words = b"" if text == "-" else bytes.fromhex(text)
            notify = _notify(int(subcode), words)
        except ValueError:
            reactor.processes.answer_error(service)
            return False
        for key in limit.match_neighbors(reactor.peers(service), descriptions):
            peer = reactor._peers[key]
            if peer.established():
                peer.generator = _farewell(peer, notify)
            else:
                peer._restart = False
                peer.generator = iter(())
            peer.neighbor.rib.uncache()
        reactor.processes.answer_done(service)
        return True

    command.register("show slash32", False, None, True)(show)
    command.register("show slash32-marks", False, None, False)(show_marks)
    command.register("slash32-close", True, None, False)(close)


def _notify(subcode: int, words: bytes) -> Any:
    if subcode in (2, 4):
        return _peer.Notify(6, subcode, bytes([len(words)]) + words)
    return _peer.Notify(6, subcode, b"")


def _farewell(peer: Any, notify: Any) -> Iterator[int]:
    peer._restart = False
    try:
        for _ in peer.proto.new_notification(notify):
            yield _peer.ACTION.NOW
    except _errors.NetworkError:
        pass
    peer._reset(f"notification sent (6,{notify.subcode})", notify)


def _problem(address: str, peer: Any) -> str:
    """What keeps the session from coming up, as far as TCP shows it; empty when nothing does."""
    io = peer.proto.connection.io if peer.proto and peer.proto.connection else None
    if peer.established():
        _connect_problems.pop(address, None)
    elif io is not None and (found := tcp_problem(io)):
        _connect_problems[address] = found
    return _connect_problems.get(address, "")


def tcp_problem(io: Any) -> str:
    """UNACKNOWLEDGED where the kernel keeps sending the same again, WORDLESS where nothing has come
    for long, else nothing. Of struct tcp_info: tcpi_state, tcpi_retransmits, and of 32 bits
    tcpi_unacked at octet 24 and tcpi_last_data_recv, in ms, at 52."""
    try:
        info = io.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return ""
    if info[2] >= UNACKNOWLEDGED_AFTER and any(info[24:28]):
        return UNACKNOWLEDGED
    is_open = info[0] == _TCP_ESTABLISHED
    if is_open and int.from_bytes(info[52:56], sys.byteorder) >= WORDLESS_AFTER_MS:
        return WORDLESS
    return ""


def _marks(reactor: Any) -> list[str]:
    return sorted({n["description"] for n in reactor.configuration.neighbors.values()})


def _state(reactor: Any) -> dict[str, Any]:
    peers = {}
    for peer in reactor._peers.values():
        address = str(peer.neighbor["peer-address"])
        graceful = _graceful(peer) if peer.established() else None
        peers[address] = {
            "established": peer.established(),
            "problem": _problem(address, peer),
            "graceful-restart": None
            if graceful is None
            else {
                "flags": graceful.restart_flag,
                "time": graceful.restart_time,
                "families": {f"{afi} {safi}": flags for (afi, safi), flags in graceful.items()},
            },
        }
    return {
        "marks": _marks(reactor),
        "peers": peers,
        "listen": [[host, port, why] for (host, port), why in _listen_problems.items()],
    }


def install() -> None:
    """Makes all changes. Called once, before ExaBGP's own main, with the fingerprints checked."""
    global _peer, _loop, _listener, _outgoing, _tcp, _errors
    _peer = importlib.import_module("exabgp.reactor.peer")
    _loop = importlib.import_module("exabgp.reactor.loop")
    _listener = importlib.import_module("exabgp.reactor.listener")
    _outgoing = importlib.import_module("exabgp.reactor.network.outgoing")
    _tcp = importlib.import_module("exabgp.reactor.network.tcp")
    _errors = importlib.import_module("exabgp.reactor.network.error")
    _bounded_backoff()
    _attempts_that_end()
    _listening_that_heals()
    _collisions()
    _reloads_that_happen()
    _reloads_that_repeat_nothing()
    _commands()
