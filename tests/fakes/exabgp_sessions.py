"""ExaBGP's own Protocol object on one end of a socket pair, stock or with our hot path.

It is ExaBGP 5.0.15 imported, which the product never does. What it writes to its API is kept, and
so is how the reading ended.
"""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from exabgp.bgp.message import Update
from exabgp.bgp.message.direction import Direction
from exabgp.bgp.message.open import Open
from exabgp.bgp.message.update.attribute.attributes import Attributes
from exabgp.configuration.configuration import Configuration
from exabgp.environment import getenv
from exabgp.logger import log
from exabgp.logger.option import option
from exabgp.reactor.api.response import Response
from exabgp.reactor.network.connection import Connection
from exabgp.reactor.protocol import Protocol

from bgp.exabgp_api import RawUpdates, decode
from bgp.paths import Event
from bgp.update_decoder import UpdateDecoder
from tests.fakes.said import in_words

BGP = Path(__file__).parent.parent.parent / "bgp"

CONF = """
process agent {{ run /bin/true; encoder json; }}
neighbor 192.0.2.2 {{
  router-id 192.0.2.1; local-address 192.0.2.1; local-as 64601; peer-as {asn}; hold-time 9;
  adj-rib-in false; manual-eor true;
  family {{ ipv4 unicast; ipv6 unicast; }}
  capability {{ route-refresh enable; }}
  api {{ processes [ agent ]; neighbor-changes; receive {{ parsed; open; update; }} }}
}}
"""


def load(name: str) -> ModuleType:
    """One of the launcher's files, as it loads them itself."""
    spec = importlib.util.spec_from_file_location(f"tested_{name}", BGP / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def hot_path() -> Iterator[ModuleType]:
    """The three replacements, taken back at the end."""
    before = Connection.reader, Protocol.read_message, log.__mro__[1].__dict__["debug"]
    module = load("exabgp_hotpath")
    module.install()
    try:
        yield module
    finally:
        Connection.reader, Protocol.read_message, log.__mro__[1].debug = before


@contextmanager
def certain() -> Iterator[ModuleType]:
    """With the hot path: what need not be decoded even once is not; taken back at the end."""
    module = load("exabgp_certain")
    module.install()
    try:
        yield module
    finally:
        del Protocol.slash32_is_certainly_sound


@contextmanager
def rfc_7606() -> Iterator[ModuleType]:
    """Malformed attributes judged by us before ExaBGP's decoder; taken back at the end."""
    before = Attributes.parse
    module = load("exabgp_attributes")
    module.install()
    try:
        yield module
    finally:
        Attributes.parse = before


@cache
def _neighbor(peer_asn: int) -> Any:
    """As ExaBGP reads it from its configuration. No session changes it, and reading it takes three
    times as long as a session of one UPDATE."""
    log.init(getenv())
    configuration = Configuration([CONF.format(asn=peer_asn)], text=True)
    assert configuration.reload(), configuration.error
    (neighbor,) = configuration.neighbors.values()
    return neighbor


class Session:
    """One established session: bytes in, what reached the API and how it ended out."""

    def __init__(self, *, peer_asn: int = 64512, asn4: bool = True) -> None:
        neighbor = _neighbor(peer_asn)
        option.logit = {}  # says nothing, whatever the level
        self.lines: list[str] = []
        encoder = Response.JSON("5.0.0")
        processes = SimpleNamespace(
            silence=False, write=lambda _process, line, *_rest: self.lines.append(line)
        )
        processes.message = self._parsed
        self._encoder = encoder
        peer = SimpleNamespace(
            neighbor=neighbor,
            stats={"receive-update": 0, "receive-keepalive": 0, "receive-notification": 0,
                   "receive-open": 0, "receive-refresh": 0, "receive-operational": 0},
            reactor=SimpleNamespace(processes=processes),
        )  # fmt: skip
        self.protocol = Protocol(peer)
        connection = Connection(neighbor["peer-address"].afi, "192.0.2.2", "192.0.2.1")
        connection.io, self.ours = socket.socketpair()
        connection.io.setblocking(False)
        self.protocol.connection = connection
        negotiated = self.protocol.negotiated
        capabilities = bytes.fromhex("0206010400010001020601040002000102020200")
        if asn4:
            capabilities += b"\x02\x06\x41\x04" + peer_asn.to_bytes(4, "big")
        asn = min(peer_asn, 23456) if peer_asn > 65535 else peer_asn
        for name, number, router in (("sent", 64601, 1), ("received", asn, 2)):
            body = bytes([4]) + number.to_bytes(2, "big") + bytes([0, 9, 192, 0, 2, router])
            message = Open.unpack_message(
                body + bytes([len(capabilities)]) + capabilities, Direction.IN, negotiated
            )
            getattr(negotiated, name)(message)
        self.negotiated = negotiated

    def feed(self, stream: bytes, cuts: list[int]) -> str:
        """Sends ``stream`` cut at ``cuts``; reads after each piece until nothing is left, then
        closes. Returns how it ended, in words."""
        pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        turns = self.protocol.read_message()
        try:
            for piece in pieces:
                if piece:
                    self.ours.sendall(piece)
                turns = self._read(turns)
            self.ours.close()
            self._read(turns)
        except Exception as error:
            code = getattr(error, "code", None)
            if code is None:
                return type(error).__name__
            return f"{type(error).__name__} {code}/{error.subcode} {error.data!r}"  # type: ignore[attr-defined]
        finally:
            self.ours.close()
            self.protocol.connection.close()
        return "open"

    def _read(self, turns: Any) -> Any:
        idle = 0
        while idle < 3:
            message = next(turns, None)
            if message is None:
                turns = self.protocol.read_message()
            elif message.TYPE == b"\x00" or message.ID == 0:
                idle += 1
        return turns

    def _parsed(self, _kind: int, neighbor: Any, direction: str, message: Any, *_: Any) -> None:
        if message.TYPE == Update.TYPE:
            words = neighbor, direction, message, None, b"", b""
            self.lines.append(self._encoder.update(*words))

    def events(self) -> list[Event]:
        """What the agent makes of the lines."""
        found: list[Event] = []
        decoder = UpdateDecoder()
        for line in self.lines:
            said = decode(line.encode())
            if isinstance(said, RawUpdates):
                found += in_words(decoder.decode(said.peer, said.raw, is_ebgp=said.is_ebgp))
            else:
                assert isinstance(said, tuple)
                found += said
        return found
