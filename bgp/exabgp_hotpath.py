"""What makes ExaBGP 5.0.15 read UPDATEs as fast as BIRD sends them. Loaded by exabgp_tuned.py.

ExaBGP decodes every UPDATE in full and writes one JSON line for each; at one route an UPDATE that
is ten times what BIRD takes. Three of its functions are replaced. None of its code is copied,
nothing of ours is imported, and each change is shaped so that it can be offered upstream:

* ``Connection.reader``: one large recv into a buffer, and messages cut from it. The original asks
  the kernel four times a message: poll and recv, for the header and for the body. What is refused
  (marker, length) and how is the same.
* ``Protocol.read_message``: UPDATEs at the head of that buffer that are *known good* are handed on
  together, undecoded, in one line ``{"slash32":"updates","peer":...,"ebgp":...,"raw":...}``. Known
  good: the attributes, byte by byte, have passed ExaBGP's own full decoder in this very session
  without any remark, in a message with the same fields in use, or exabgp_certain.py, where that is
  installed, has found that they could not but pass; all are of types that our decoder
  reads or may ignore; and the prefixes are whole (no length beyond the family's, nothing left
  over). Everything else, also every first of its kind, End-of-RIB and every other message type,
  takes the original's way, in order. So whatever would make the original send a NOTIFICATION,
  discard an attribute or treat an UPDATE as a withdrawal, still does.
* ``log.debug``: nothing, where the level is above DEBUG anyway. The original builds two closures
  and a call a message only to find that out.

Most UPDATEs of a cluster say one long prefix, and it stands at the end: what precedes it is looked
up as a whole, between one marker and the next, and only what is not known so is taken apart. Every
node is a path of its own: what differs from something certain in AS numbers alone is as certain.

Nothing is held back: what is read is written at once, at most BATCH_BYTES of it, and then the other
sessions have their turn.

ExaBGP must not keep an Adj-RIB-In of its own (``adj-rib-in false``), for it does not see the
routes; where it is asked to keep one, the original does all the work. So it does for peers without
four-byte AS numbers or with ADD-PATH.
"""

from __future__ import annotations

import importlib
import os
import socket
from binascii import b2a_base64
from collections.abc import Iterator
from typing import Any

RECEIVE_BYTES = 256 * 1024
BATCH_BYTES = 48 * 1024
"""Of messages in one line; the pipe to the bridge holds 1 MiB."""
KNOWN_BYTES = 4 * 1024 * 1024
"""Of known attributes a session; beyond, it starts to learn anew."""

FINGERPRINTS = {
    "exabgp.reactor.network.connection:Connection.reader": "f24e4d410e05b858",
    "exabgp.reactor.network.connection:Connection._reader": "1a78401f968206d6",
    "exabgp.reactor.protocol:Protocol.__init__": "e7a3799acdc5d73c",
    "exabgp.reactor.protocol:Protocol.read_message": "1266df3f50c763ff",
    "exabgp.reactor.peer:Peer._main": "e5ea2fecea84afed",
    "exabgp.reactor.api.processes:Processes.write": "59a9a5eb6dfdcd34",
    "exabgp.reactor.api.processes:Processes.packets": "b31f1cd5fc2d33d6",
    "exabgp.bgp.message.update:Update.split": "abffa3894f7895b9",
    "exabgp.bgp.message.update:Update.unpack_message": "0dbbe84626d1243a",
    "exabgp.bgp.message.update.attribute.attributes:Attributes.unpack": "c458a61a25563c46",
    "exabgp.bgp.message.update.attribute.attributes:Attributes.parse": "5c6fd3aa6a92f530",
    "exabgp.bgp.message.update.attribute.mprnlri:MPRNLRI.unpack": "9096c8e9b92c315c",
    "exabgp.bgp.message.update.attribute.mpurnlri:MPURNLRI.unpack": "3352a7bc8f3273ec",
    "exabgp.bgp.message.update.nlri.inet:INET.unpack_nlri": "f3a2f4e158406eae",
    "exabgp.logger:log.logger": "3a63592d6ee91cb7",
}
"""The functions replaced and those whose behaviour is relied on; see exabgp_tuned.py."""

_HEADER_BYTES = 19
_MARKER = b"\xff" * 16
_UPDATE = 2
_MP_REACH, _MP_UNREACH = 14, 15
_EXTENDED_LENGTH = 0x10
_PLAIN_TYPES = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 32, 35})
"""Attributes that do not change what others mean; AS4_PATH, for one, would."""
_IPV6 = b"\x00\x02\x01"
_ONE_V4, _ONE_V6 = 5, 17
"""Octets of a prefix as long as they are in a cluster."""
_HEAD_BYTES = 7
"""From a message's length on, up to its attributes, where it withdraws nothing before them."""
_ONE_GONE, _GONE = b"\x00\x1c\x02\x00\x05", (b"w-", b"")
"""Of a message that withdraws one, what precedes its prefix; and its shape."""
_LENGTHS_OF = {_ONE_V4: range(25, 33), _ONE_V6: range(121, 129)}
_LONGEST = {b"\x00\x01\x01": 32, b"\x00\x02\x01": 128}
"""Bits of the longest prefix of each family that may be known good, by AFI and SAFI."""


# -- known good ------------------------------------------------------------------------------------


Shape = tuple[bytes, ...]


def shape_of(body: bytes) -> Shape | None:
    """What of an UPDATE's body decides, prefixes apart, how ExaBGP decodes it.

    None: it is of a kind that is never known good. Otherwise its prefixes are whole: each length
    within its family's, none cut short.
    """
    plain = _plain_shape(body)
    if plain is None:
        return None
    at = _multiprotocol_at(plain[1])
    if at == -1:
        # No prefix at all is End-of-RIB, or attributes for nobody.
        return plain if plain[0] != b"--" else None
    return None if at is None else _multiprotocol_shape(*plain, at)


def _plain_shape(body: bytes) -> tuple[bytes, bytes] | None:
    """Which of the two fields of RFC 4271 are in use, and the attributes."""
    size = len(body)
    if size < 5:
        return None
    withdrawn = (body[0] << 8) | body[1]
    start = 4 + withdrawn
    if start > size:
        return None
    end = start + ((body[start - 2] << 8) | body[start - 1])
    if end > size:
        return None
    if (withdrawn and not _are_whole(body[2 : 2 + withdrawn], 32)) or (
        end < size and not _are_whole(body[end:], 32)
    ):
        return None
    return (b"w" if withdrawn else b"-") + (b"a" if end < size else b"-"), body[start:end]


def _multiprotocol_at(block: bytes) -> int | None:
    """Where MP_REACH_NLRI or MP_UNREACH_NLRI begins; -1: nowhere; None: not to be told."""
    offset, size, found = 0, len(block), -1
    while offset < size:
        if offset + 3 > size:
            return None
        kind = block[offset + 1]
        if kind in (_MP_REACH, _MP_UNREACH):
            if found != -1:
                return None
            found = offset
        elif kind not in _PLAIN_TYPES:
            return None
        if block[offset] & _EXTENDED_LENGTH:
            if offset + 4 > size:
                return None
            offset += 4 + ((block[offset + 2] << 8) | block[offset + 3])
        else:
            offset += 3 + block[offset + 2]
    return found if offset == size else None


def _multiprotocol_shape(fields: bytes, block: bytes, at: int) -> Shape | None:
    if block[at] & _EXTENDED_LENGTH:
        start, size = at + 4, (block[at + 2] << 8) | block[at + 3]
    else:
        start, size = at + 3, block[at + 2]
    value = block[start : start + size]
    longest = _LONGEST.get(value[:3])
    if longest is None:
        return None
    head = 3
    if block[at + 1] == _MP_REACH:
        if size < 5:
            return None
        head = 5 + value[3]
    prefixes = value[head:]
    if not prefixes or not _are_whole(prefixes, longest):
        return None
    # Flags and type, family and next hop; the lengths and the prefixes may differ.
    return fields, block[:at], block[at : at + 2], value[:head], block[start + size :]


def _are_whole(prefixes: bytes, longest: int) -> bool:
    first = prefixes[0]
    step = 1 + ((first + 7) >> 3)
    count, rest = divmod(len(prefixes), step)
    if not rest and first <= longest and prefixes[::step].count(first) == count:
        return True
    offset, size = 0, len(prefixes)
    while offset < size:
        length = prefixes[offset]
        if length > longest:
            return False
        offset += 1 + ((length + 7) >> 3)
    return offset == size


def one_prefix_at_the_end(body: bytes, shape: Shape) -> int:
    """How many octets of the body are its only prefix, when that is the last thing in it and a long
    one, so that whatever whole prefix of that size stands there, all else is as it was; else 0."""
    if len(shape) == 2:
        size, rest = _ONE_V4, 4 + len(shape[1]) + _ONE_V4 - len(body)
        is_that = shape[0] == b"-a"
    else:
        _fields, before, kind, head, after = shape
        value = 4 if kind[0] & _EXTENDED_LENGTH else 3
        size = _ONE_V6
        rest = 4 + len(before) + value + len(head) + _ONE_V6 - len(body)
        is_that = shape[0] == b"--" and not after and head[:3] == _IPV6
    return size if is_that and not rest and body[-size] in _LENGTHS_OF[size] else 0


class Known:
    """The shapes that passed the full decoder in one session.

    Args:
        numbered: what exabgp_certain.py knows of this session apart from AS numbers; None where it
            is not installed.

    Attributes:
        heads: what precedes the only prefix in a message of those, from its length on; by the
            octets of that prefix.
    """

    def __init__(self, numbered: Any = None) -> None:
        self.numbered = numbered
        self._shapes: set[Shape] = set()
        self._bytes = 0
        self.heads: dict[int, set[bytes]] = {_ONE_V4: set(), _ONE_V6: set()}

    def has(self, body: bytes) -> bool:
        """Whether this UPDATE needs no decoding."""
        plain = _plain_shape(body)
        # Only shapes without multiprotocol attributes have two parts, and they are most.
        return plain in self._shapes or (
            plain is not None and bool(self._shapes) and shape_of(body) in self._shapes
        )

    def add(self, shape: Shape) -> None:
        """Of an UPDATE that the full decoder had no remark on."""
        self._count(200 + sum(map(len, shape)))
        self._shapes.add(shape)

    def _count(self, more: int) -> None:
        self._bytes += more
        if self._bytes > KNOWN_BYTES:
            self._shapes, self._bytes = set(), more
            for heads in self.heads.values():
                heads.clear()

    def is_alike(self, message: bytes) -> bool:
        """Whether a message, from its length on, needs no decoding: found at a glance, where it has
        one long prefix."""
        return (
            (message[:-_ONE_V4] in self.heads[_ONE_V4] and 25 <= message[-_ONE_V4] <= 32)
            or (message[:-_ONE_V6] in self.heads[_ONE_V6] and 121 <= message[-_ONE_V6] <= 128)
            or (
                message[:5] == _ONE_GONE
                and message[10:] == b"\0\0"
                and 25 <= message[5] <= 32
                and _GONE in self._shapes
            )
        )

    def has_shape(self, shape: Shape) -> bool:
        """Whether an UPDATE of this shape needs no decoding."""
        return shape in self._shapes

    def remember(self, message: bytes, shape: Shape) -> None:
        """Of a message that needs no decoding: the like of it are then found at a glance."""
        self._remember(message, one_prefix_at_the_end(message[3:], shape))

    def _remember(self, message: bytes, size: int) -> None:
        if size:
            self._count(100 + len(message))
            self.heads[size].add(message[:-size])

    def differs_in_numbers(self, message: bytes, longest: int) -> bool:
        """Whether a message, from its length on, is like one that was certain but for its AS
        numbers, and so needs no decoding either. It is remembered."""
        at = 0 if self.numbered is None else self.numbered.prefixes_at(message)
        if not at or not (message[0] << 8 | message[1]) == len(message) + len(_MARKER) <= longest:
            return False
        prefixes = message[at:]
        # Behind all attributes, or the last thing in them.
        is_v4 = at == _HEAD_BYTES + (message[5] << 8 | message[6])
        if not prefixes or not _are_whole(prefixes, 32 if is_v4 else 128):
            return False
        if is_v4 and len(prefixes) == _ONE_V4 and prefixes[0] in _LENGTHS_OF[_ONE_V4]:
            self._remember(message, _ONE_V4)
        elif not is_v4 and len(prefixes) == _ONE_V6 and prefixes[0] in _LENGTHS_OF[_ONE_V6]:
            self._remember(message, _ONE_V6)
        return True


# -- reading ---------------------------------------------------------------------------------------


_connection: Any = None
"""exabgp.reactor.network.connection"""


def _receive(connection: Any) -> bool:
    """Whether anything came into the connection's buffer. Errors are the original's."""
    module = _connection
    if not connection.io:
        connection.close()
        raise module.NotConnected("Trying to read on a closed TCP connection")
    try:
        # It does not wait, so there is no need to ask first.
        read = connection.io.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
    except OSError as error:
        if error.args[0] in module.error.block:
            return False
        if error.args[0] in module.error.fatal:
            connection.close()
            reason = f"issue reading on the socket: {module.errstr(error)}"
            raise module.LostConnection(reason) from None
        reason = f"Problem while reading data from the network ({module.errstr(error)})"
        raise module.NetworkError(reason) from None
    if not read:
        connection.close()
        raise module.LostConnection("the TCP connection was closed by the remote end")
    _buffer_of(connection).extend(read)
    return True


def _buffer_of(connection: Any) -> bytearray:
    buffer: bytearray | None = getattr(connection, "slash32_buffer", None)
    if buffer is None:
        buffer = connection.slash32_buffer = bytearray()
    return buffer


def _has_message(buffer: bytearray, longest: int) -> bool:
    """Whether a message is there as a whole, or a header that will be refused."""
    if len(buffer) < _HEADER_BYTES:
        return False
    length = (buffer[16] << 8) | buffer[17]
    return len(buffer) >= length or length > longest


def _buffered_reader() -> None:
    global _connection
    module = _connection = importlib.import_module("exabgp.reactor.network.connection")
    original = module.Connection.reader
    nothing = 0, 0, b"", b"", None

    def reader(self: Any) -> Iterator[tuple[Any, ...]]:
        if self.defensive:
            yield from original(self)
            return
        buffer = _buffer_of(self)
        while len(buffer) < _HEADER_BYTES:
            if not _receive(self):
                yield nothing
        header = bytes(buffer[:_HEADER_BYTES])
        kind = header[18]
        length = (header[16] << 8) | header[17]
        refused = None
        if header[:16] != _MARKER:
            length, kind = 0, 0
            refused = module.NotifyError(1, 1, "The packet received does not contain a BGP marker")
        elif (
            length < _HEADER_BYTES
            or length > self.msg_size
            or not module.Message.Length.get(kind, lambda _: _ >= _HEADER_BYTES)(length)
        ):
            name = module.Message.CODE.name(kind)
            refused = module.NotifyError(1, 2, f"{name} has an invalid message length of {length}")
            kind = 0
        if refused is not None:
            del buffer[:_HEADER_BYTES]
            yield length, kind, header, b"", refused
            return
        while len(buffer) < length:
            if not _receive(self):
                yield nothing
        body = bytes(buffer[_HEADER_BYTES:length])
        del buffer[:length]
        self.slash32_last = kind, body
        yield length, kind, header, body, None

    module.Connection.reader = reader


def _known_good_at_once() -> None:
    module = importlib.import_module("exabgp.reactor.protocol")
    original = module.Protocol.read_message
    code = module.Attribute.CODE
    remarks = (code.INTERNAL_TREAT_AS_WITHDRAW, code.INTERNAL_DISCARD)
    taken = module.Update([], b"")

    def read_message(self: Any) -> Iterator[Any]:
        known = getattr(self, "slash32_known", None)
        if known is None:
            known = self.slash32_known = Known(getattr(self, "slash32_numbered", None))
        if not is_eligible(self):
            yield from original(self)
            return
        connection = self.connection
        buffer = _buffer_of(connection)
        while not _has_message(buffer, connection.msg_size):
            if not _receive(connection):
                yield module._NOP
        raw, count = take(self, buffer, known)
        if count:
            self.peer.stats["receive-update"] += count
            write(self, raw)
            yield taken
            return
        for message in original(self):
            if message.TYPE == module.Update.TYPE:
                learn(self, known, message)
            yield message

    def is_eligible(self: Any) -> bool:
        api = self.neighbor.api
        return bool(
            api.get("receive-update", False)
            and api["receive-parsed"]
            and not api["receive-packets"]
            and not api["receive-consolidate"]
            and not api.get("negotiated", False)
            and not self.neighbor["adj-rib-in"]
            and not self.connection.defensive
            and not self.log_routes
            and self.negotiated.asn4
        )

    def take(self: Any, buffer: bytearray, known: Known) -> tuple[bytearray, int]:
        """The known good UPDATEs at the head of the buffer, each after its length."""
        longest = self.connection.msg_size
        messages = list(known_at_the_head(self, buffer, known))
        raw = bytearray().join([each[:2] + each[3:] for each in messages])
        count = len(messages)
        offset = len(raw) + 17 * count
        size = len(buffer)
        most = min(size, BATCH_BYTES) - _HEADER_BYTES
        while offset <= most and buffer[offset + 18] == _UPDATE:
            length = (buffer[offset + 16] << 8) | buffer[offset + 17]
            end = offset + length
            if end > size or length > longest or buffer[offset : offset + 16] != _MARKER:
                break
            body = bytes(buffer[offset + _HEADER_BYTES : end])
            if not known.has(body):
                shape = shape_of(body)
                if shape is None or not is_certain(self, known, shape):
                    break
            raw += buffer[offset + 16 : offset + 18]
            raw += body
            count += 1
            offset = end
        del buffer[:offset]
        return raw, count

    def known_at_the_head(self: Any, buffer: bytearray, known: Known) -> Iterator[bytes]:
        """Most of them, from their lengths on. What is between two markers is a message where its
        length says so too; what is not (a prefix that ends as a marker begins), the rest is for."""
        first, *messages = bytes(buffer[:BATCH_BYTES]).split(_MARKER)
        if first:
            return
        heads, longest = known.heads[_ONE_V4], self.connection.msg_size
        for message in messages:
            if (
                (message[:-_ONE_V4] in heads and 25 <= message[-_ONE_V4] <= 32)
                or known.is_alike(message)
                or known.differs_in_numbers(message, longest)
            ):
                yield message
            elif (
                len(message) > 3
                and message[2] == _UPDATE
                and (message[0] << 8 | message[1]) == len(message) + len(_MARKER) <= longest
                and (shape := shape_of(message[3:])) is not None
                and (known.has_shape(shape) or is_certain(self, known, shape, message))
            ):
                known.remember(message, shape)
                yield message
            else:
                return

    def is_certain(self: Any, known: Known, shape: Shape, message: bytes = b"") -> bool:
        judge = getattr(self, "slash32_is_certainly_sound", None)
        if judge is None or not judge(shape):
            return False
        known.add(shape)
        if known.numbered is not None and message:
            known.numbered.add(message, shape)
        return True

    def write(self: Any, raw: bytearray) -> None:
        processes = self.peer.reactor.processes
        if processes.silence:
            return
        neighbor = self.peer.neighbor
        text = b2a_base64(raw, newline=False).decode("ascii")
        ebgp = "false" if neighbor["local-as"] == neighbor["peer-as"] else "true"
        head = f'"peer":"{neighbor["peer-address"]}","ebgp":{ebgp}'
        line = f'{{"slash32":"updates",{head},"raw":"{text}"}}'
        for process in neighbor.api["receive-update"]:
            processes.write(process, line, neighbor)

    def learn(self: Any, known: Known, message: Any) -> None:
        if type(message) is not module.Update or any(
            remark in message.attributes for remark in remarks
        ):
            return
        for family in self.negotiated.families:
            if self.negotiated.addpath.receive(*family):
                return
        kind, body = getattr(self.connection, "slash32_last", (0, b""))
        shape = shape_of(body) if kind == _UPDATE else None
        if shape is not None:
            known.add(shape)

    module.Protocol.read_message = read_message


def _no_debug_log() -> None:
    module = importlib.import_module("exabgp.logger")
    if os.environ.get("exabgp.log.level", "") not in ("", "DEBUG"):  # noqa: SIM112 - its name
        module._log.debug = staticmethod(lambda message, source="", level="DEBUG": None)


def install() -> None:
    """Replaces the three. Called once, before ExaBGP's own main, with the fingerprints checked."""
    _buffered_reader()
    _known_good_at_once()
    _no_debug_log()
