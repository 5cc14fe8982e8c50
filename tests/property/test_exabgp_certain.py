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
from tests.property.test_exabgp_hotpath import said

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


FIRST = {
    "IPv4": update(nlri("10.0.0.0/26"), SOUND["ORIGIN"] + as_path(PEER, 65001) + SOUND["NEXT_HOP"]),
    "IPv4, several": update(
        nlri("10.0.0.0/26", "10.0.0.64/26"),
        SOUND["ORIGIN"] + b"\x50\x02\x00\x0a" + as_path(PEER, 65001)[3:] + SOUND["NEXT_HOP"],
    ),
    "IPv6": update(
        attributes=SOUND["ORIGIN"] + as_path(PEER, 65001) + reach(HOP, nlri("fd00::/122"))
    ),
}
NUMBERS = as_path(PEER, 65001)[5:]
OTHERS = [0, 1, 23456, 64601, 65535, 0x02010000, 0x40020602, 0xFFFFFFFF]


def other_numbers(body: bytes, one: int, other: int) -> bytes:
    return body.replace(NUMBERS, one.to_bytes(4, "big") + other.to_bytes(4, "big"))


@pytest.mark.parametrize("name", FIRST)
def test_other_as_numbers_are_as_certain_and_nothing_else_is(name: str):
    """Every octet of the message but these and its prefixes."""
    body = FIRST[name]
    certain_module, shape_of = load("exabgp_certain"), load("exabgp_hotpath").shape_of
    hot = message(2, body)[16:]
    numbered = certain_module.Numbered()
    assert not numbered.prefixes_at(hot)
    numbered.add(hot, shape_of(body))
    at = numbered.prefixes_at(hot)
    assert hot[at:] == (nlri("fd00::/122") if name == "IPv6" else body[body.index(b"\x1a\x0a") :])
    place = hot.index(NUMBERS)
    for octet in range(len(hot)):
        changed = hot[:octet] + bytes([hot[octet] ^ 1]) + hot[octet + 1 :]
        is_same = place <= octet < place + 8 or octet >= at
        # Its own size is for who asks to compare, where it is not among what must be the same.
        if octet >= 2 or name == "IPv6":
            assert bool(numbered.prefixes_at(changed)) == is_same, octet
    for size in range(len(hot)):
        assert not numbered.prefixes_at(hot[:size]) or at < size


def test_other_octets_never_pass_for_as_numbers():
    """A path that is longer, with all else as it was: what it says of its size counts."""
    module, shape_of = load("exabgp_certain"), load("exabgp_hotpath").shape_of
    numbered = module.Numbered()
    for asns in ((PEER, 65001), (PEER, 65001, 65002)):
        body = update(nlri("10.0.0.0/26"), SOUND["ORIGIN"] + as_path(*asns) + SOUND["NEXT_HOP"])
        numbered.add(message(2, body)[16:], shape_of(body))
    # As long as the second, and says of itself that it is as long as the first.
    short = as_path(PEER, 65001) + b"\x80\x80\x01\x00"
    body = update(nlri("10.0.0.0/26"), SOUND["ORIGIN"] + short + SOUND["NEXT_HOP"])
    assert not numbered.prefixes_at(message(2, body)[16:])


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(FIRST)),
    st.sampled_from(OTHERS),
    st.sampled_from(OTHERS),
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=2),
    st.binary(max_size=6),
)
def test_what_follows_something_certain_is_read_as_stock_reads_it(name, one, other, flips, tail):
    """Like it but for AS numbers, or damaged anywhere: the same routes, the same end."""
    first = FIRST[name]
    second = bytearray(other_numbers(first, one, other) + tail)
    for place, value in flips:
        if place < len(second):
            second[place] = value
    stream = message(2, first) * 2 + message(2, bytes(second)) + message(2, first)
    stock = Session(peer_asn=PEER)
    stock_end = stock.feed(stream, [])
    with hot_path(), certain():
        tuned = Session(peer_asn=PEER)
        tuned_end = tuned.feed(stream, [])
    assert (said(tuned), tuned_end) == (said(stock), stock_end)
    if not flips and not tail:
        assert len(tuned.lines) == 1


def test_a_full_memory_begins_anew():
    """A peer whose UPDATEs differ in more than AS numbers costs no more than that."""
    module, shape_of = load("exabgp_certain"), load("exabgp_hotpath").shape_of
    numbered = module.Numbered()
    for med in range(module.NUMBERED_MOST + 5):
        block = BASE + attribute(4, med.to_bytes(4, "big"), 0x80)
        body = update(nlri("10.0.0.0/26"), block)
        numbered.add(message(2, body)[16:], shape_of(body))
        assert numbered.prefixes_at(message(2, body)[16:])
    assert len(numbered._around) == 5


def test_what_is_remembered_of_very_many_paths_is_bounded():
    """Each of them is found by what precedes its prefix, until there are too many."""
    module: Any = load("exabgp_hotpath")
    module.KNOWN_BYTES = 20_000
    body = FIRST["IPv4"]
    known = module.Known(load("exabgp_certain").Numbered())
    known.numbered.add(message(2, body)[16:], module.shape_of(body))
    for asn in range(1000):
        assert known.differs_in_numbers(message(2, other_numbers(body, PEER, asn))[16:], 4096)
    assert 0 < sum(map(len, known.heads.values())) < 200
