"""A router that announces: as many prefixes as asked for, as fast as the other side reads.

It is no router: it answers OPEN and KEEPALIVE, sends prepared bytes, and notes when what came. The
same for every system under test, so that what differs is theirs.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from cni.netns import inside
from lab.plan import LabFailure

PORT = 179
HOLD_TIME_S = 9
KEEPALIVE_S = 3.0
SESSION_DEADLINE_S = 60.0
MESSAGE_BYTES = 4096
ORIGINS = 250
"""How many attribute blocks there are when each prefix comes alone: the nodes of a cluster."""

_MARKER = b"\xff" * 16
_OPEN, _UPDATE, _NOTIFICATION, _KEEPALIVE = 1, 2, 3, 4

Prefix = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


class NoSession(LabFailure):
    """The system under test did not come, or went."""


@dataclass(frozen=True, slots=True)
class Load:
    """``count`` prefixes of one family; packed as a router does, or one an UPDATE.

    ``origins``: how many paths there are, each with an AS at its end of its own, and each with
    every so many-th prefix. None: one if packed, ORIGINS if not.
    """

    count: int
    version: int = 4
    is_packed: bool = True
    origins: int | None = None

    @property
    def paths(self) -> int:
        """How many there are."""
        wanted = self.origins or (1 if self.is_packed else ORIGINS)
        return min(wanted, self.count)

    @property
    def how(self) -> str:
        """``packed``, ``single`` (an UPDATE each) or ``one-path`` (an UPDATE each, all alike)."""
        return "packed" if self.is_packed else "one-path" if self.origins == 1 else "single"

    def prefix(self, index: int) -> Prefix:
        """The blocks of 10.0.0.0/8, or of fd00::/96."""
        if self.version == 4:
            return IPv4Network((0x0A000000 + 64 * index, 26))
        return IPv6Network(((0xFD00 << 112) + 64 * index, 122))

    def samples(self) -> list[Prefix]:
        """Some of them, with the first and the last."""
        step = max(1, self.count // 15)
        return [self.prefix(i) for i in sorted({*range(0, self.count, step), self.count - 1})]

    def announce(self, next_hop: Address, asn: int, *, detour: tuple[int, ...] = ()) -> bytes:
        """The UPDATEs that announce all, with ``detour`` behind ``asn`` in their paths."""
        entries = [_nlri(self.prefix(index)) for index in range(self.count)]
        paths = self.paths
        said: Iterable[tuple[tuple[int, ...], bytes]]
        if not self.is_packed:
            said = ((_own_path(index, paths), entry) for index, entry in enumerate(entries))
        else:
            # Of one path alone it is the router's own; else an UPDATE never has two paths.
            said = (
                (() if paths == 1 else _own_path(number, paths), part)
                for number in range(paths)
                for part in _parts(entries[number::paths], MESSAGE_BYTES - 150)
            )
        return b"".join(
            _update(
                _attributes((asn, *detour, *own), next_hop, part),
                part if self.version == 4 else b"",
            )
            for own, part in said
        )

    def withdraw(self) -> bytes:
        """The UPDATEs that withdraw all, packed the same way."""
        entries = [_nlri(self.prefix(index)) for index in range(self.count)]
        parts = _parts(entries, MESSAGE_BYTES - 150) if self.is_packed else entries
        if self.version == 4:
            return b"".join(_update(b"", b"", part) for part in parts)
        return b"".join(_update(_attribute(15, b"\x00\x02\x01" + part, 0x90)) for part in parts)


def _own_path(index: int, paths: int) -> tuple[int]:
    """The AS at the end of the path of this prefix: private ones (RFC 6996)."""
    return ((64700 if paths <= ORIGINS else 4_200_000_000) + index % paths,)


def _nlri(prefix: Prefix) -> bytes:
    size = (prefix.prefixlen + 7) // 8
    return bytes([prefix.prefixlen]) + prefix.network_address.packed[:size]


def _parts(entries: Sequence[bytes], most: int) -> list[bytes]:
    per = most // len(entries[0])
    return [b"".join(entries[at : at + per]) for at in range(0, len(entries), per)]


def _attribute(kind: int, value: bytes, flags: int) -> bytes:
    if flags & 0x10:
        return bytes([flags, kind]) + len(value).to_bytes(2, "big") + value
    return bytes([flags, kind, len(value)]) + value


def _attributes(path: Iterable[int], next_hop: Address, part: bytes) -> bytes:
    asns = list(path)
    words = bytes([2, len(asns)]) + b"".join(asn.to_bytes(4, "big") for asn in asns)
    common = _attribute(1, b"\0", 0x40) + _attribute(2, words, 0x40)
    if next_hop.version == 4:
        return common + _attribute(3, next_hop.packed, 0x40)
    return common + _attribute(14, b"\x00\x02\x01\x10" + next_hop.packed + b"\0" + part, 0x90)


def _update(attributes: bytes, announced: bytes = b"", withdrawn: bytes = b"") -> bytes:
    body = len(withdrawn).to_bytes(2, "big") + withdrawn
    return _message(_UPDATE, body + len(attributes).to_bytes(2, "big") + attributes + announced)


def _message(kind: int, body: bytes = b"") -> bytes:
    return _MARKER + (19 + len(body)).to_bytes(2, "big") + bytes([kind]) + body


END_OF_RIB = _update(b"") + _update(_attribute(15, b"\x00\x02\x01", 0x80))
"""Of both families."""


class Announcer:
    """One router in one namespace: it listens, the system under test connects."""

    def __init__(self, netns_fd: int, address: str, asn: int) -> None:
        self.address, self.asn = address, asn
        self.gaps: list[float] = []
        """Times at which a KEEPALIVE or UPDATE came, of the present session."""
        self.heard: list[tuple[float, bytes]] = []
        with inside(netns_fd):
            self._listener = socket.create_server((address, PORT))
        self._listener.settimeout(SESSION_DEADLINE_S)
        self._session: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._sending = threading.Lock()

    def await_session(self) -> None:
        """Returns when a session is Established.

        Raises:
            NoSession: none came up in time.
        """
        end_s = time.monotonic() + SESSION_DEADLINE_S
        while time.monotonic() < end_s:
            try:
                session, _ = self._listener.accept()
            except TimeoutError:
                break
            session.settimeout(SESSION_DEADLINE_S)
            try:
                self._greet(session)
            except (OSError, NoSession):
                session.close()
                continue
            self._session = session
            self.gaps, self.heard = [time.monotonic()], []
            for work in (self._listen, self._keep_alive):
                thread = threading.Thread(target=work, args=(session,), daemon=True)
                thread.start()
                self._threads.append(thread)
            return
        raise NoSession(f"no session with {self.address} within {SESSION_DEADLINE_S:g} s")

    def _greet(self, session: socket.socket) -> None:
        if _receive(session)[0] != _OPEN:
            raise NoSession("the first message is no OPEN")
        capabilities = bytes.fromhex("01040001000101040002000102004104")
        capabilities += self.asn.to_bytes(4, "big")
        body = bytes([4]) + self.asn.to_bytes(2, "big") + HOLD_TIME_S.to_bytes(2, "big")
        body += ip_address(self.address).packed
        option = bytes([2, len(capabilities)]) + capabilities
        session.sendall(_message(_OPEN, body + bytes([len(option)]) + option))
        session.sendall(_message(_KEEPALIVE))
        if _receive(session)[0] != _KEEPALIVE:
            raise NoSession("no KEEPALIVE after OPEN")

    def _listen(self, session: socket.socket) -> None:
        with contextlib.suppress(OSError, NoSession):
            session.settimeout(None)
            while True:
                kind, body = _receive(session)
                now_s = time.monotonic()
                self.gaps.append(now_s)
                if kind == _UPDATE:
                    self.heard.append((now_s, body))
                if kind == _NOTIFICATION:
                    raise NoSession(f"NOTIFICATION {body[:2].hex()}")

    def _keep_alive(self, session: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while session is self._session:
                time.sleep(KEEPALIVE_S)
                self.send(_message(_KEEPALIVE))

    def send(self, data: bytes) -> None:
        """Sends prepared messages, however long the other side takes to read them."""
        with self._sending:
            if self._session is None:
                raise OSError("no session")
            self._session.sendall(data)

    def heard_of(self, prefix: Prefix, *, within_s: float) -> float:
        """When it was announced to us; waits for it.

        Raises:
            NoSession: it was not, in time.
        """
        entry, end_s = _nlri(prefix), time.monotonic() + within_s
        while time.monotonic() < end_s:
            for heard_s, body in reversed(self.heard):
                if entry in body:
                    return heard_s
            time.sleep(0.0005)
        raise NoSession(f"{prefix} was not announced within {within_s:g} s")

    def longest_gap_s(self) -> float:
        """Between two messages of the present session, and until now."""
        times = [*self.gaps, time.monotonic()]
        return max(after - before for before, after in itertools.pairwise(times))

    def end_session(self) -> None:
        """As a router that reboots without a word: the connection is reset."""
        session, self._session = self._session, None
        if session is not None:
            linger = (1).to_bytes(4, "little") + bytes(4)
            with contextlib.suppress(OSError):
                session.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                session.shutdown(socket.SHUT_RD)
            session.close()

    def close(self) -> None:
        """Ends the session and the listening."""
        self.end_session()
        self._listener.close()


def _receive(session: socket.socket) -> tuple[int, bytes]:
    header = _exactly(session, 19)
    return header[18], _exactly(session, int.from_bytes(header[16:18], "big") - 19)


def _exactly(session: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = session.recv(size - len(data))
        if not part:
            raise NoSession("the connection was closed")
        data += part
    return data


def open_netns(name: str) -> int:
    """A descriptor of a named namespace; the caller closes it."""
    return os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
