"""What is certainly sound passes ExaBGP's own decoder without a remark, whatever it is made of; and
what is unusual in any way is not certain."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

import pytest
from exabgp.bgp.message.update.attribute import Attribute
from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.paths import Update
from tests.fakes.bgp_wire import (
    KEEPALIVE,
    as_path,
    attribute,
    message,
    nlri,
    reach,
    unreach,
    update,
)
from tests.fakes.exabgp_sessions import Session, certain, hot_path, load

PEER = 64512
HOP = ip_address("2001:db8::2").packed
SOUND = {
    "ORIGIN": attribute(1, b"\2"),
    "AS_PATH": as_path(PEER, 65001),
    "AS_PATH, empty": as_path(),
    "AS_PATH, a set": attribute(2, bytes.fromhex("02010000fc000102000000010000fde9")),
    "NEXT_HOP": attribute(3, bytes([192, 0, 2, 2])),
    "MULTI_EXIT_DISC": attribute(4, bytes([255] * 4), 0x80),
    "LOCAL_PREF": attribute(5, bytes(4)),
    "ATOMIC_AGGREGATE": attribute(6, b""),
    "AGGREGATOR": attribute(7, bytes(8), 0xC0),
    "COMMUNITIES": attribute(8, bytes.fromhex("ffffff01fde80001fde80001"), 0xC0),
    "ORIGINATOR_ID": attribute(9, bytes([192, 0, 2, 9]), 0x80),
    "CLUSTER_LIST": attribute(10, bytes(range(8)), 0x80),
    "LARGE_COMMUNITY": attribute(32, bytes(range(12)) * 2, 0xC0),
    "LARGE_COMMUNITY, extended length": b"\xd0\x20\x00\x0c" + bytes(12),
}
BASE = SOUND["ORIGIN"] + SOUND["AS_PATH"] + SOUND["NEXT_HOP"]
kinds = st.sampled_from([*range(1, 11), 14, 15, 16, 17, 18, 25, 32, 35, 128, 255])
drawn_attributes = st.one_of(
    *[st.sampled_from(sorted(SOUND.values()))] * 4,
    st.builds(attribute, kinds, st.binary(max_size=12), st.sampled_from([0x40, 0x80, 0xC0, 0xE0])),
)
REMARKS = {Attribute.CODE.INTERNAL_TREAT_AS_WITHDRAW, Attribute.CODE.INTERNAL_DISCARD}
SEEN = {True: 0, False: 0}


class Noting(Session):
    """Keeps what ExaBGP has made of each UPDATE."""

    def __init__(self, *, peer_asn: int) -> None:
        self.updates: list[Any] = []
        super().__init__(peer_asn=peer_asn)

    def _parsed(self, kind: int, neighbor: Any, direction: str, message: Any, *_: Any) -> None:
        if message.ID == 2:
            self.updates.append(message)


def is_certain(body: bytes) -> bool:
    """Whether a session would hand on this UPDATE, the first of its kind, undecoded."""
    with hot_path(), certain():
        session = Session(peer_asn=PEER)
        session.feed(message(2, body), [])
    return any('"slash32":"updates"' in line for line in session.lines)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(drawn_attributes, max_size=6).map(b"".join),
    st.sampled_from([nlri("10.0.0.0/26"), nlri("10.0.0.0/26", "0.0.0.0/0"), b""]),
    st.sampled_from([b"", b"", nlri("10.1.0.0/26")]),
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)), max_size=1),
)
def test_what_is_certain_passes_exabgp_without_a_remark(block, announced, withdrawn, flips):
    """The oracle is its decoder: no NOTIFICATION, no withdrawal in disguise, nothing discarded."""
    changed = bytearray(block)
    for place, value in flips:
        if place < len(changed):
            changed[place] = value
    body = update(announced, bytes(changed), withdrawn)
    found = is_certain(body)
    SEEN[found] += 1
    if not found:
        return
    stock = Noting(peer_asn=PEER)
    assert stock.feed(message(2, body) + KEEPALIVE, []) == "LostConnection"
    (read,) = stock.updates
    assert not REMARKS & read.attributes.keys()


def test_both_kinds_were_drawn():
    """A property that never met the certain, or the uncertain, proves nothing."""
    assert SEEN[True] > 30, SEEN
    assert SEEN[False] > 30, SEEN


@pytest.mark.parametrize("name", SOUND)
def test_each_sound_form_is_certain(name: str):
    """So that what routers send does take the fast way."""
    own = SOUND[name]
    rest = b"".join(
        each for each in (SOUND["ORIGIN"], SOUND["AS_PATH"], SOUND["NEXT_HOP"]) if each[1] != own[1]
    )
    assert is_certain(update(nlri("10.0.0.0/26"), rest + own))


@pytest.mark.parametrize("bit", [0x80, 0x40, 0x20, 0x08, 0x01])
@pytest.mark.parametrize("name", SOUND)
def test_any_other_flag_is_left_to_exabgp(name: str, bit: int):
    """RFC 7606 section 3 c, and what the RFCs have not given a meaning."""
    sound = load("exabgp_certain").are_sound
    own = SOUND[name]
    assert sound(own)
    assert not sound(bytes([own[0] ^ bit]) + own[1:])


@pytest.mark.parametrize("name", SOUND)
def test_cut_or_there_twice_is_left_to_exabgp(name: str):
    """The end of the block is the attribute's end; of two the first counts (section 3 g)."""
    sound = load("exabgp_certain").are_sound
    own = SOUND[name]
    assert not sound(own + own)
    assert not any(sound(own[:size]) for size in range(1, len(own)))


def test_a_route_of_the_other_family_is_certain_where_that_was_negotiated():
    """With one next hop or two; not with half a one; and not in a family that was not."""
    judge = load("exabgp_certain").is_certain
    shape_of = load("exabgp_hotpath").shape_of
    place = nlri("fd00::/122")
    sizes: Mapping[bytes, tuple[int, ...]] = {b"\0\2\1": (16, 32)}

    def judged(block: bytes, known: Mapping[bytes, tuple[int, ...]] = sizes) -> bool | None:
        shape = shape_of(update(attributes=block))
        return None if shape is None else judge(shape, known)

    for hops in (HOP, HOP + HOP):
        assert judged(BASE + reach(hops, place))
    assert judged(unreach(place))
    assert not judged(BASE + reach(HOP[:4], place))
    assert not judged(BASE + reach(HOP, place), {b"\0\1\1": (4,)})
    assert not judged(unreach(place), {})
    assert judged(BASE + reach(HOP, place) + reach(HOP, place)) is None
    transitive = bytearray(reach(HOP, place))
    transitive[0] = 0xC0
    assert not judged(BASE + bytes(transitive))


def test_routes_of_both_families_are_read_as_they_stand():
    """End to end: nothing decoded by ExaBGP, and the agent hears what was said."""
    bodies = [
        update(nlri("10.0.0.0/26"), BASE),
        update(attributes=reach(HOP, nlri("fd00::/122")) + SOUND["ORIGIN"] + SOUND["AS_PATH"]),
        update(withdrawn=nlri("10.9.0.0/16")),
        update(attributes=unreach(nlri("fd00:9::/122"))),
    ]
    stream = b"".join(message(2, body) for body in bodies)
    with hot_path(), certain():
        session = Session(peer_asn=PEER)
        session.feed(stream, [])
    assert len(session.lines) == 1
    (event,) = session.events()
    assert isinstance(event, Update)
    assert {str(path.prefix) for path in event.announced} == {"10.0.0.0/26", "fd00::/122"}
    assert {str(prefix) for prefix in event.withdrawn} == {"10.9.0.0/16", "fd00:9::/122"}


def test_a_session_of_two_octets_is_exabgps_alone():
    """Its AS_PATH is to be read otherwise."""
    with hot_path(), certain():
        session = Session(peer_asn=PEER, asn4=False)
        session.feed(message(2, update(nlri("10.0.0.0/26"), BASE)), [])
    assert all('"slash32"' not in line for line in session.lines)
