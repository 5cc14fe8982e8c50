"""What comes from ExaBGP: its lines, and UPDATEs of peers that it hands on undecoded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import Any

from bgp import exabgp_api as api
from bgp.conversation import Conversation, ConversationLost
from bgp.exabgp_conf import announced_in
from bgp.nlri import prefix_of
from bgp.paths import Family, Path, RouteBatch, Update
from bgp.update_decoder import UpdateDecoder
from tests.fakes import bgp_wire as wire
from tests.fuzz.draw import Draw
from tests.fuzz.target import Broken, Target

GOLDEN = FilePath(__file__).parent.parent / "golden" / "exabgp-5.0.15"
PEER = ip_address("192.0.2.2")
WORDS = (
    '"exabgp"', '"slash32"', '"type": "update"', '"neighbor"', '"message"', '"update"', '"eor"',
    '"announce"', '"withdraw"', '"ipv4 unicast"', '"ipv6 unicast"', '"attribute"', '"as-path"',
    "done", "error",
)  # fmt: skip


def lines() -> list[bytes]:
    """Recorded of the real ExaBGP."""
    names = ("events.txt", "adj-rib-out.txt", "neighbors.txt")
    return [line for name in names for line in (GOLDEN / name).read_bytes().splitlines()]


def check_path(path: Path) -> None:
    """A path that is let through can be used as it stands."""
    hop = path.next_hop
    problems = [
        hop.is_loopback, hop.is_multicast, hop.is_unspecified, hop.is_link_local,
        hop.version == 4 and path.prefix.version == 6,
        Family.of(path.prefix) not in Family,
        not 0 <= path.as_path_length <= len(path.as_path),
        not all(type(number) is int and 0 <= number < 2**32 for number in path.as_path),
        not all(v is None or 0 <= v < 2**32 for v in (path.med, path.local_pref)),
    ]  # fmt: skip
    if any(problems):
        raise Broken(f"let through: {path}")


def check_events(events: Any) -> int:
    """How many routes of it could be used."""
    usable = 0
    for event in events:
        if not isinstance(event, Update | RouteBatch):
            continue
        if isinstance(event, Update):
            paths = list(event.announced)
        else:
            # A key with bits beyond its length is no prefix: prefix_of would raise.
            found = [(prefix_of(nlri), said) for nlri, said in event.routes.items()]
            paths = [said.path(prefix) for prefix, said in found if said is not None]
        for path in paths:
            check_path(path)
        usable += len(paths)
        if not all(rejection.reason for rejection in event.rejected):
            raise Broken("a rejection without a reason")
    return usable


def exabgp_line(data: bytes) -> bool:
    """One line, to every decoder of lines."""
    text = data.decode("utf-8", "replace")
    for decode in (
        lambda: api.decode_neighbors([text]),
        lambda: api.decode_replayed([text]),
        lambda: api.decode_adj_rib_out(text),
        lambda: api.decode_configuration_marks([text]),
    ):
        try:
            decode()
        except api.ProtocolError:
            continue
    try:
        decoded = api.decode(data)
    except api.ProtocolError:
        return False
    if isinstance(decoded, tuple):
        check_events(decoded)
        return bool(decoded)
    return not isinstance(decoded, api.Text)


def exabgp_event(data: bytes) -> bool:
    """A recorded event with values replaced: the syntax stays right."""
    import json

    draw = Draw(data)
    if not _EVENTS:
        _EVENTS.extend(json.loads(each) for each in lines() if each.startswith(b"{"))
    return exabgp_line(json.dumps(draw.damaged(_EVENTS[draw.below(len(_EVENTS))])).encode())


_EVENTS: list[Any] = []


class _Sink:
    def write(self, data: bytes) -> None:
        """Nothing is sent anywhere."""

    def close(self) -> None:
        """Nor is there anything to close."""


def conversation(data: bytes) -> bool:
    """A stream of lines to the agent's end of the bridge's socket."""
    garbage: list[str] = []
    events: list[Any] = []
    writer: Any = _Sink()

    async def run() -> str:
        reader = asyncio.StreamReader(limit=api.MAX_LINE_BYTES)
        reader.feed_data(data)
        reader.feed_eof()
        talk = Conversation(reader, writer, on_event=events.append, on_garbage=garbage.append)
        try:
            await talk.hello()
        except ConversationLost:
            return "no hello"
        await talk.run()
        return "ran"

    how = _loop().run_until_complete(run())
    check_events(events)
    if any("\n" in each for each in garbage):
        raise Broken("a sentence of two lines")
    return how == "ran" and bool(events)


_LOOPS: list[asyncio.AbstractEventLoop] = []


def _loop() -> asyncio.AbstractEventLoop:
    if not _LOOPS:
        _LOOPS.append(asyncio.new_event_loop())
    return _LOOPS[0]


def forget() -> None:
    """Closes what the targets have opened."""
    while _LOOPS:
        _LOOPS.pop().close()


HELLO = b'{"slash32":"bridge","pid":1,"exabgp_pid":2,"exabgp_start":3,"mode":"tuned"}\n'


def conversation_seeds() -> Iterator[bytes]:
    """A greeting and what may follow it."""
    yield HELLO
    recorded = [each for each in lines() if b'"exabgp"' in each]
    for start in range(0, len(recorded), 8):
        yield HELLO + b"\n".join(recorded[start : start + 8]) + b"\n"
    from binascii import b2a_base64

    raw = b"".join(_framed(body) for body in update_bodies())
    text = b2a_base64(raw, newline=False)
    head = b'{"slash32":"updates","peer":"192.0.2.2","ebgp":true,"raw":"'
    yield HELLO + head + text + b'"}\n'


def update_bodies() -> Iterator[bytes]:
    """UPDATEs of every kind, well-made, and a few that are not."""
    path = wire.path_attributes
    v4, v6 = wire.nlri("10.0.0.0/26", "10.1.0.0/16"), wire.nlri("fd00::/122", "::/0")
    hop6 = ip_address("2001:db8::2").packed
    yield wire.update(v4, path(64512))
    yield wire.update(v4, path(64512, 65001), v4)
    yield wire.update(withdrawn=v4)
    yield wire.END_OF_RIB
    yield wire.END_OF_RIB_V6
    yield wire.update(attributes=wire.reach(hop6, v6) + path(64512, next_hop=None))
    yield wire.update(attributes=wire.reach(hop6 * 2, v6) + path(64512, next_hop=None))
    yield wire.update(attributes=wire.unreach(v6))
    yield wire.update(v4, wire.reach(hop6, v6) + path(64512))
    more = b"".join(
        (
            wire.attribute(4, bytes(4), 0x80),
            wire.attribute(5, (100).to_bytes(4, "big")),
            wire.attribute(8, bytes.fromhex("ffffff01fde80001"), 0xC0),
            wire.attribute(9, bytes([192, 0, 2, 9]), 0x80),
            wire.attribute(10, bytes(range(1, 9)), 0x80),
            wire.attribute(32, bytes(range(24)), 0xC0),
            wire.attribute(35, bytes(4), 0xC0),
        )
    )
    yield wire.update(v4, path(64512, more=more))
    for number, value in ((1, b"\0\0"), (2, b"\2\4\0"), (3, b"\1\2\3"), (14, b"\0\2\1\5abcde\0")):
        yield wire.update(v4, path(64512) + wire.attribute(number, value))


def _framed(body: bytes) -> bytes:
    return (19 + len(body)).to_bytes(2, "big") + body


def update_decoder(data: bytes) -> bool:
    """UPDATEs as the tuned ExaBGP hands them on; the first byte says of what kind of session.

    A decoder that remembers all the cases before says what a new one says.
    """
    decoder = _DECODERS.setdefault("one", UpdateDecoder())
    is_ebgp = bool(data[:1] > b"\x7f")
    said = [_in_words(each, data[1:], is_ebgp) for each in (decoder, UpdateDecoder())]
    if said[0] != said[1]:
        raise Broken(f"remembered {said[0]}, anew {said[1]}")
    return any("Path(" in each for each in said[0])


def _in_words(decoder: UpdateDecoder, raw: bytes, is_ebgp: bool) -> list[str]:
    events: list[Any] = []
    words: list[str] = []
    try:
        events.extend(decoder.decode(PEER, raw, is_ebgp=is_ebgp))
    except api.ProtocolError:
        # Not its sentence: where the bytes are counted from is the decoder's own affair.
        words.append("a ProtocolError")
    check_events(events)
    for event in events:
        if isinstance(event, RouteBatch):
            routes = sorted(event.routes.items())
            words += [
                f"{prefix_of(nlri)}: {said and said.path(prefix_of(nlri))}" for nlri, said in routes
            ]
            words += sorted(map(str, event.rejected))
        else:
            words.append(str(event))
    return words


_DECODERS: dict[str, UpdateDecoder] = {}


USUAL = {
    1: (0x40, b"\0"), 2: (0x40, b"\2\1\0\0\xfc\0"), 3: (0x40, bytes([192, 0, 2, 2])),
    4: (0x80, bytes(4)), 5: (0x40, bytes(4)), 6: (0x40, b""), 7: (0xC0, bytes(8)),
    8: (0xC0, bytes(8)), 9: (0x80, bytes([192, 0, 2, 9])), 10: (0x80, bytes(8)),
    14: (0x80, b"\0\2\1\x10" + bytes.fromhex("20010db8") + bytes(11) + b"\2\0\x40" + bytes(8)),
    15: (0x80, b"\0\2\1\x40" + bytes(8)), 32: (0xC0, bytes(24)),
}  # fmt: skip
"""Flags and a value as they should be."""


def update_fields(data: bytes) -> bool:
    """An UPDATE put together of attributes that are mostly right: past every length."""
    draw = Draw(data)
    attributes = b""
    if draw.below(2):
        attributes = wire.path_attributes(64512)
    for _ in range(draw.below(9)):
        kind = draw.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 32, 35, 99))
        sound = draw.choice(
            (
                b"\0", b"\2\1\0\0\xfc\0", bytes([192, 0, 2, 2]), bytes(4), bytes(8), bytes(12),
                b"\1\2\0\0\xfc\0\0\0\xfc\1", b"\0\2\1\x10" + bytes(15) + b"\1\0\x40" + bytes(8),
                b"\0\2\1\x20" + bytes(15) + b"\1\xfe\x80" + bytes(14) + b"\0\0", b"\0\2\1",
                b"\0\1\1\x10" + bytes(15) + b"\2\0\x18\x0a\0\0", b"\0\2\1\x40" + bytes(8),
            )
        )  # fmt: skip
        flags = draw.choice((0x40, 0x80, 0xC0, 0x00, 0xE0, 0x50))
        how = draw.below(8)
        if how < 6:
            flags, sound = USUAL.get(kind, (flags, sound))
        value = draw.raw() if how == 7 else sound
        head = bytes([flags, kind])
        if flags & 0x10:
            attributes += head + len(value).to_bytes(2, "big") + value
        else:
            attributes += wire.attribute(kind, value, flags)
    body = wire.update(
        draw.choice((b"", wire.nlri("10.0.0.0/26"), wire.nlri("10.0.0.0/8", "10.2.3.4/32"))),
        attributes,
        draw.choice((b"", wire.nlri("10.9.0.0/16"))),
    )
    kind_of_session = bytes([draw.choice((255, 0))])
    return update_decoder(kind_of_session + _framed(body) + draw.rest())


def update_seeds() -> Iterator[bytes]:
    """Each alone, and all of them together."""
    bodies = [_framed(body) for body in update_bodies()]
    for each in bodies:
        yield b"\xff" + each
        yield b"\0" + each
    yield b"\xff" + b"".join(bodies)


def field_seeds() -> Iterator[bytes]:
    """The three mandatory attributes, and one more of each."""
    good = bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0])
    yield bytes([0, 3]) + good + bytes([1, 0])
    for kind in range(18):
        for how in (0, 6, 7):
            for value in (3, 4, 7, 10):
                yield bytes([0, 4]) + good + bytes([kind, value, kind % 6, how, 1, 1])


def conf_file(data: bytes) -> bool:
    """exabgp.conf as a new agent finds it: routes are taken over from there."""
    return bool(announced_in(data.decode("ascii", "replace")))


def conf_seeds() -> Iterator[bytes]:
    """As we write it."""
    yield (
        b"neighbor 192.0.2.2 {\n  static {\n"
        b"    route 10.0.0.0/26 next-hop self community [ 1:2 3:4 ] med 5 local-preference 6;\n"
        b"    route fd00::/122 next-hop 2001:db8::1 large-community [ 1:2:3 ] "
        b"as-path [ 1 1 ];\n  }\n}\n"
    )
    yield b"neighbor x {\n route 10.0.0.0/8 next-hop [ ] med;\n}\nneighbor fe80::1%a {\n route x;"


TARGETS = (
    Target(
        "exabgp-line",
        "one line of ExaBGP's, to every decoder of lines",
        exabgp_line,
        lines,
        tuple(word.encode() for word in WORDS),
        weight=15,
    ),
    Target(
        "exabgp-event",
        "a recorded event of ExaBGP's with values replaced",
        exabgp_event,
        lambda: (bytes([n, 0]) for n in range(64)),
        floor=0.01,
    ),
    Target(
        "conversation",
        "a stream of lines on the bridge's socket",
        conversation,
        conversation_seeds,
        tuple(word.encode() for word in WORDS),
        weight=5,
    ),
    Target("update-decoder", "UPDATEs as bytes", update_decoder, update_seeds, weight=15),
    Target(
        "update-fields",
        "UPDATEs of attributes that are mostly right",
        update_fields,
        field_seeds,
    ),
    Target(
        "conf-file",
        "an exabgp.conf that was there before the agent",
        conf_file,
        conf_seeds,
        (b"neighbor ", b"route ", b" next-hop self"),
        weight=15,
    ),
)
