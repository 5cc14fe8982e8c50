"""Between ExaBGP and the agent: what is handed on undecoded, and the program that carries lines."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import redirect_stderr, suppress
from io import StringIO
from types import ModuleType
from typing import Any

from bgp import bridge
from bgp.update_decoder import UpdateDecoder
from tests.fakes import bgp_wire as wire
from tests.fakes.said import in_words
from tests.fuzz.bgp_targets import lines
from tests.fuzz.draw import Draw
from tests.fuzz.target import Broken, Target

# -- what is called certain ----------------------------------------------------------------------

PEER_ASN = 64512
_HOP6 = bytes.fromhex("20010db8000000000000000000000002")
_SOUND: dict[int, tuple[int, tuple[bytes, ...]]] = {
    1: (0x40, (b"\0", b"\2")),
    2: (0x40, (b"", b"\2\1\0\0\xfc\0", b"\2\2\0\0\xfc\0\0\0\xfd\xe9", b"\1\1\0\0\0\7")),
    3: (0x40, (bytes([192, 0, 2, 2]), bytes([10, 0, 0, 1]))),
    4: (0x80, (bytes(4), b"\xff" * 4)),
    5: (0x40, (bytes([0, 0, 0, 100]),)),
    6: (0x40, (b"",)),
    7: (0xC0, (bytes([0, 0, 252, 0, 192, 0, 2, 2]),)),
    8: (0xC0, (bytes.fromhex("fde80001"), bytes.fromhex("fde80001ffffff01fde80001"))),
    9: (0x80, (bytes([192, 0, 2, 9]),)),
    10: (0x80, (bytes(range(1, 9)),)),
    32: (0xC0, (bytes(range(12)), bytes(range(24)), bytes(range(12)) * 2)),
}
_PLACES = ("10.0.0.0/26", "10.1.0.0/16", "0.0.0.0/0", "10.2.0.1/32")
_PLACES6 = ("fd00::/122", "fd00::40/122", "::/0", "fd00::1/128")


def _attribute(draw: Draw, kind: int) -> bytes:
    flags, values = _SOUND.get(kind, (0xC0, (b"\1",)))
    value = draw.choice(values)
    what = draw.below(12)
    if what == 11:
        value = draw.raw()[:16]
    elif what == 10:
        flags ^= 1 << draw.below(8)
    elif what == 9:
        value = value[: draw.below(len(value) + 1)]
    if flags & 0x10:
        return bytes([flags, kind]) + len(value).to_bytes(2, "big") + value
    return wire.attribute(kind, value, flags)


def update_of(data: bytes) -> bytes:
    """The body of an UPDATE whose attributes are mostly sound."""
    draw = Draw(data)
    kinds = [1, 2, 3]
    others = (4, 5, 6, 7, 8, 9, 10, 32, 1, 2, 3, 16, 35, 128)
    kinds += [draw.choice(others) for _ in range(draw.below(5))]
    if draw.below(8) == 7:
        del kinds[draw.below(len(kinds))]
    attributes = b"".join(_attribute(draw, kind) for kind in kinds)
    announced = wire.nlri(draw.choice(_PLACES))
    form = draw.below(6)
    if form in (4, 5):
        hops = draw.choice((_HOP6, _HOP6 * 2, _HOP6[:4], b"", bytes(16)))
        family = draw.choice((b"\0\2\1", b"\0\2\1", b"\0\1\1", b"\0\2\2"))
        places = wire.nlri(draw.choice(_PLACES6), draw.choice(_PLACES6))
        attributes = wire.reach(hops, places, family) + attributes
        announced = b"" if form == 4 else announced
    elif form == 3:
        attributes, announced = wire.unreach(wire.nlri(draw.choice(_PLACES6))), b""
    withdrawn = wire.nlri(draw.choice(_PLACES)) if draw.below(4) == 3 else b""
    body = bytearray(wire.update(announced, attributes, withdrawn))
    if draw.below(6) == 5:
        body[draw.below(len(body))] = draw.byte()
    return bytes(body)


class _Judge:
    """The real method of exabgp_certain.py with a real session of ExaBGP's; made once."""

    hot: ModuleType | None = None
    certain: ModuleType | None = None
    negotiated: Any = None


def certain(data: bytes) -> bool:
    """What need not be decoded by ExaBGP is decoded by it all the same, and says the same.

    Accepted: it is certain. Then its decoder must have no remark (RFC 7606), and the routes that
    the agent reads off the bytes must be those of the event that ExaBGP would have written.
    """
    from tests.fakes.exabgp_sessions import Session, load

    body = update_of(data)
    if _Judge.hot is None:
        _Judge.hot, _Judge.certain = load("exabgp_hotpath"), load("exabgp_certain")
    assert _Judge.certain is not None
    sizes = {b"\0\1\1": (4,), b"\0\2\1": (16, 32)}
    shape = _Judge.hot.shape_of(body)
    if shape is None or not _Judge.certain.is_certain(shape, sizes):
        return False
    bodies = [body]
    known = _Judge.hot.Known(_Judge.certain.Numbered())
    known.numbered.add(wire.message(2, body)[16:], shape)
    other = like(body, Draw(data[::-1]))
    if known.differs_in_numbers(wire.message(2, other)[16:], 4096):
        # So it is certain, too, and is read by what is known of the first.
        shape = _Judge.hot.shape_of(other)
        if shape is None or not _Judge.certain.is_certain(shape, sizes):
            raise Broken(f"is called like {body.hex()}, and is not certain: {other.hex()}")
        bodies.append(other)
    session = Session(peer_asn=PEER_ASN)
    ended = session.feed(b"".join(wire.message(2, each) for each in bodies) + wire.KEEPALIVE, [])
    if ended != "LostConnection":
        raise Broken(f"certain, and ExaBGP ends the session: {ended}; {[b.hex() for b in bodies]}")
    decoder = UpdateDecoder()
    ours: list[Any] = []
    for each in bodies:
        raw = (19 + len(each)).to_bytes(2, "big") + each
        ours += in_words(decoder.decode(_peer(), raw, is_ebgp=True))
    theirs, mine = [_routes(each) for each in (session.events(), ours)]
    if theirs != mine:
        raise Broken(f"ExaBGP says {theirs}, we {mine}; {[b.hex() for b in bodies]}")
    return True


def like(body: bytes, draw: Draw) -> bytes:
    """The same with other AS numbers; sometimes with another octet changed, or some more."""
    changed = bytearray(body)
    own = PEER_ASN.to_bytes(4, "big")
    for place in range(len(body) - 3):
        if body[place : place + 4] == own and draw.below(4):
            changed[place : place + 4] = draw.raw()[:4].ljust(4, b"\0")
    what = draw.below(8)
    if what == 7:
        changed[draw.below(len(changed))] = draw.byte()
    elif what == 6:
        changed += draw.raw()[:6]
    return bytes(changed)


def _peer() -> Any:
    from ipaddress import ip_address

    return ip_address("192.0.2.2")


def _routes(events: Any) -> list[str]:
    """What holds of each prefix afterwards: its path, or that it is withdrawn or refused.

    A prefix may be told as withdrawn and then as announced: the latter counts (RFC 4271 section
    4.3), and what is refused is withdrawn.
    """
    from bgp.paths import Update

    found: dict[str, str] = {}
    for event in events:
        if not isinstance(event, Update):
            found[str(event)] = ""
            continue
        found |= {str(prefix): "withdrawn" for prefix in event.withdrawn}
        found |= {str(each.prefix): "refused" for each in event.rejected}
        found |= {str(path.prefix): str(path) for path in event.announced}
    return sorted(map(str, found.items()))


def certain_seeds() -> Iterator[bytes]:
    """Each attribute alone and damaged, each family, each place."""
    yield b""
    for kind in range(14):
        for what in (0, 9, 10, 11):
            yield bytes([1, kind, 0, 0, 0, 0, 0, 0, 0, 0, what, 2, 0, 1])
    for form in range(6):
        for hop in range(5):
            yield bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, form, hop, 0, 1, 2, 3, 1])


# -- the bridge ----------------------------------------------------------------------------------


def bridge_stream(data: bytes) -> bool:
    """Both streams of the bridge, in pieces, with an agent that comes and goes.

    To ExaBGP pass whole lines of printable ASCII only; to an agent whole lines only, from its
    first octet on; what is kept for a new agent is within its limit.
    """
    with redirect_stderr(StringIO()):
        return _bridge_stream(Draw(data))


def _bridge_stream(draw: Draw) -> bool:
    one = bridge.Bridge("/nowhere")
    one._journal = bridge.Journal(limit_bytes=4096)
    agent, ours = socket.socketpair()
    said = bytearray()
    sent = bytearray()
    recorded = _LINES or lines()
    _LINES[:] = recorded
    try:
        agent.setblocking(False)
        _connected(one, agent)
        for _ in range(draw.below(24)):
            what = draw.below(6)
            if what in (0, 1):
                chunk = recorded[draw.below(len(recorded))] + b"\n"
                place = draw.below(len(chunk)) if draw.below(3) == 2 else len(chunk)
                _from_exabgp(one, chunk[:place])
            elif what == 2:
                _from_exabgp(one, draw.raw())
            elif what in (3, 4):
                command = draw.choice(_COMMANDS) or draw.raw()
                with suppress(BrokenPipeError):
                    ours.sendall(command)
                one._serve_agent(1)
            elif one._agent is None:
                agent.close()
                ours.close()
                agent, ours = socket.socketpair()
                agent.setblocking(False)
                said.clear()
                _connected(one, agent)
            else:
                one._drop_agent()
            said += b"".join(one._to_agent)
            one._to_agent.clear()
            one._to_agent_bytes = 0
            sent += one._to_exabgp
            one._to_exabgp.clear()
            _check_bridge(one, bytes(said), bytes(sent))
    finally:
        agent.close()
        ours.close()
    return bool(sent) or bool(one._journal._lines)


_LINES: list[bytes] = []
_COMMANDS = (
    b"slash32-replay\n", b"announce route 10.0.0.0/8 next-hop self\n", b"\n", b"x\0y\n",
    b"a\r\nb\n", b"\xff\n", b"half", b"", b"z" * 70_000,
)  # fmt: skip
_HELLO = b'{"slash32": "bridge"}\n'


def _connected(one: bridge.Bridge, agent: socket.socket) -> None:
    one._agent = agent
    one._skip_to_line_start = not one._at_line_start
    one._enqueue(_HELLO)


def _from_exabgp(one: bridge.Bridge, data: bytes) -> None:
    """As _read_exabgp does with what its pipe gives."""
    if not data:
        return
    one._journal.take(data)
    if one._agent is not None:
        one._queue(data)
    one._at_line_start = data.endswith(b"\n")
    one._replay_if_due()


def _check_bridge(one: bridge.Bridge, said: bytes, sent: bytes) -> None:
    if said and not said.startswith(_HELLO):
        raise Broken(f"an agent first hears {said[:80]!r}")
    if sent and (sent[-1:] != b"\n" or any(c != 10 and not 32 <= c < 127 for c in sent)):
        raise Broken(f"ExaBGP is sent {sent[:200]!r}")
    journal = one._journal
    held = sum(len(line) + 64 for kept in journal._lines.values() for line in kept)
    if journal._lines.keys() != journal._sizes.keys() or journal._size != held or held > 4096:
        raise Broken(f"keeps {held} octets, thinks {journal._size}")
    if len(one._command) > bridge.COMMAND_LIMIT_BYTES:
        raise Broken("keeps a command without an end")


def bridge_seeds() -> Iterator[bytes]:
    """Lines, commands, and agents that come and go."""
    for start in range(0, 64, 4):
        yield bytes([12]) + b"".join(bytes([0, start + at, 0]) for at in range(4)) + b"\3\0"
    for command in range(9):
        yield bytes([3, 3, command, 0, command, 5, 5, 3, command])
    yield bytes([9, 0, 0, 2, 9, 5, 5, 0, 0, 0, 3, 0, 5, 5, 3, 0])


TARGETS = (
    Target(
        "exabgp-certain",
        "UPDATEs that are handed on undecoded, beside ExaBGP's own decoder",
        certain,
        certain_seeds,
        floor=0.2,
        weight=10,
    ),
    Target(
        "bridge",
        "both streams of the bridge, in pieces, with agents that come and go",
        bridge_stream,
        bridge_seeds,
        floor=0.1,
        weight=5,
    ),
)
