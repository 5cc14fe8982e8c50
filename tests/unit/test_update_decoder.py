"""The decoder alone; tests/property/test_exabgp_hotpath.py compares it with ExaBGP's."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.attribute_blocks import attributes_in, common_attributes, words_of
from bgp.exabgp_commands import ProtocolError
from bgp.judgement import judge_attributes
from bgp.paths import (
    EndOfRib,
    Family,
    Origin,
    Path,
    PathAttributes,
    Rejection,
    RouteBatch,
    Update,
)
from bgp.update_decoder import MANY, UpdateDecoder
from tests.fakes.bgp_wire import (
    END_OF_RIB,
    END_OF_RIB_V6,
    attribute,
    nlri,
    path_attributes,
    reach,
    unreach,
    update,
)
from tests.fakes.said import in_words

PEER = ip_address("192.0.2.2")
GLOBAL, LINK_LOCAL = ip_address("2001:db8::2"), ip_address("fe80::2")


def framed(*bodies: bytes) -> bytes:
    return b"".join((19 + len(body)).to_bytes(2, "big") + body for body in bodies)


def decoded(*bodies: bytes, is_ebgp: bool = True) -> list[object]:
    return list(in_words(UpdateDecoder().decode(PEER, framed(*bodies), is_ebgp=is_ebgp)))


def test_a_route_with_all_that_we_use():
    """Each attribute where it belongs, in the words of the rest of the package."""
    more = (
        attribute(4, (7).to_bytes(4, "big"), 0x80)
        + attribute(5, (200).to_bytes(4, "big"))
        + attribute(8, bytes.fromhex("fde80005ffffff01"), 0xC0)
        + attribute(9, bytes([192, 0, 2, 9]), 0x80)
        + attribute(10, bytes([192, 0, 2, 8]), 0x80)
        + attribute(32, bytes(range(12)), 0xC0)
    )
    body = update(nlri("10.0.0.0/26"), path_attributes(64512, 65001, more=more))
    expected = Path(
        PEER,
        ip_network("10.0.0.0/26"),
        PEER,
        (64512, 65001),
        2,
        Origin.IGP,
        7,
        200,
        ("65000:5", "65535:65281"),
        ("66051:67438087:134810123",),
        IPv4Address("192.0.2.9"),
        (IPv4Address("192.0.2.8"),),
    )
    assert decoded(body, is_ebgp=False) == [Update(PEER, (expected,))]


def test_ipv6_takes_the_global_of_two_next_hops():
    """RFC 2545: the other one is for the link only."""
    hops = LINK_LOCAL.packed + GLOBAL.packed
    body = update(attributes=reach(hops, nlri("fd00::/122")) + path_attributes(1, next_hop=None))
    (event,) = decoded(body)
    assert isinstance(event, Update)
    assert [(path.prefix, path.next_hop) for path in event.announced] == [
        (ip_network("fd00::/122"), GLOBAL)
    ]


def test_withdrawals_and_ends_of_rib():
    """Of both families."""
    assert decoded(
        update(withdrawn=nlri("10.0.0.0/26")),
        update(attributes=unreach(nlri("fd00::/122"))),
        END_OF_RIB,
        END_OF_RIB_V6,
    ) == [
        Update(PEER, withdrawn=(ip_network("10.0.0.0/26"), ip_network("fd00::/122"))),
        EndOfRib(PEER, Family.IPV4),
        EndOfRib(PEER, Family.IPV6),
    ]


def test_a_route_that_cannot_be_used_is_rejected_and_the_rest_stands():
    """A host bit in one prefix; a next hop that is none; no AS path from another AS."""
    body = update(nlri("10.0.0.0/26") + bytes([26, 10, 0, 0, 1]), path_attributes(1))
    (event,) = decoded(body)
    assert isinstance(event, Update)
    assert [path.prefix for path in event.announced] == [ip_network("10.0.0.0/26")]
    assert event.rejected == (Rejection(ip_network("10.0.0.0/26"), "host-bits"),)
    for attributes, reason in (
        (path_attributes(1, next_hop="127.0.0.1"), "next-hop-loopback"),
        (path_attributes(1, next_hop=None), "no-next-hop"),
        (path_attributes(), "as-path-missing"),
    ):
        assert decoded(update(nlri("10.0.0.0/26"), attributes)) == [
            Update(PEER, rejected=(Rejection(ip_network("10.0.0.0/26"), reason),))
        ]


def test_the_same_block_means_something_else_to_an_internal_peer():
    """What is remembered is remembered for one kind of session."""
    decoder = UpdateDecoder()
    raw = framed(update(nlri("10.0.0.0/26"), path_attributes()))
    (external,) = in_words(decoder.decode(PEER, raw, is_ebgp=True))
    (internal,) = in_words(decoder.decode(PEER, raw, is_ebgp=False))
    assert isinstance(external, Update)
    assert isinstance(internal, Update)
    assert (len(external.announced), len(internal.announced)) == (0, 1)


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_events_or_a_protocol_error(body: bytes, is_framed: bool):
    """And nothing else: the agent's life does not hang on ExaBGP's bytes."""
    with contextlib.suppress(ProtocolError):
        list(UpdateDecoder().decode(PEER, framed(body) if is_framed else body, is_ebgp=True))


def test_the_last_word_on_a_prefix_counts():
    """Announced by others, withdrawn, announced again, all in what is decoded at once."""
    a, b = path_attributes(1), path_attributes(2)
    one, two = nlri("10.0.0.0/26"), nlri("10.0.0.64/26")
    (event,) = decoded(
        update(one + two, a), update(one, b), update(withdrawn=two), update(two, b),
        update(withdrawn=one),
    )  # fmt: skip
    assert isinstance(event, Update)
    assert [(path.prefix, path.as_path) for path in event.announced] == [
        (ip_network("10.0.0.64/26"), (2,))
    ]
    assert event.withdrawn == (ip_network("10.0.0.0/26"),)


def test_an_end_of_rib_parts_what_is_before_it_from_what_follows():
    """Whoever concludes something from it must have heard all that came before."""
    a = update(nlri("10.0.0.0/26"), path_attributes(1))
    b = update(nlri("10.0.0.64/26"), path_attributes(1))
    kinds = [type(event) for event in decoded(a, END_OF_RIB, b)]
    assert kinds == [Update, EndOfRib, Update]


def test_what_comes_before_unreadable_bytes_is_told():
    """An UPDATE that was whole is not lost with the one after it."""
    raw = framed(update(nlri("10.0.0.0/26"), path_attributes(1))) + b"\0\5rest"
    events = UpdateDecoder().decode(PEER, raw, is_ebgp=True)
    (first,) = in_words([next(events)])
    assert isinstance(first, Update)
    assert len(first.announced) == 1
    with pytest.raises(ProtocolError):
        next(events)


def test_ipv6_blocks_are_known_again_wherever_their_prefixes_are():
    """One prefix, three, with host bits, another next hop: as if each came first."""
    rest = path_attributes(1, next_hop=None)
    other = ip_address("2001:db8::3")
    bodies = [
        update(attributes=reach(GLOBAL.packed, nlri("fd00::/122")) + rest),
        update(attributes=reach(GLOBAL.packed, nlri("fd00::40/122") + nlri("fd00::/64")) + rest),
        update(attributes=reach(other.packed, nlri("fd00::80/122")) + rest),
        update(attributes=reach(GLOBAL.packed, bytes([122]) + bytes(15) + b"\1") + rest),
        update(attributes=rest + reach(GLOBAL.packed, nlri("fd00::c0/122"))),
    ]
    decoder = UpdateDecoder()
    for body in bodies:
        (known,) = in_words(decoder.decode(PEER, framed(body), is_ebgp=True))
        (fresh,) = decoded(body)
        assert known == fresh
        assert isinstance(known, Update)
        assert known.announced or known.rejected


def test_a_length_that_leads_out_is_refused():
    """Rather than read what is not there."""
    with pytest.raises(ProtocolError):
        decoded(b"\0\0\0\x09@")


def test_an_mp_reach_that_ends_before_its_next_hop_is_refused():
    """ExaBGP ends the session before; the decoder does not rest on it."""
    for size in range(5):
        short = attribute(14, b"\0\2\1\0\0"[:size], 0x80)
        (event,) = decoded(update(attributes=short + path_attributes(64512, next_hop=None)))
        assert isinstance(event, Update)
        assert [each.reason for each in event.rejected] == ["unknown-family"]


values = st.one_of(
    st.sampled_from(
        [
            (1, b"\0"),
            (1, b"\2"),
            (1, b"\3"),
            (2, b"\2\1" + bytes([0, 0, 252, 0])),
            (2, b"\2\2" + bytes(range(8))),
            (2, b"\1\1" + bytes(4)),
            (2, b"\2\1" + bytes(4) + b"\2\1" + bytes(4)),
            (2, b"\2\2" + bytes(4)),
            (2, b""),
            (3, PEER.packed),
            (3, b""),
            (4, bytes(4)),
            (5, bytes(4)),
            (8, bytes(4)),
        ]
    ),
    st.tuples(st.integers(0, 40), st.binary(max_size=12)),
)
flags = st.sampled_from([0x40, 0x40, 0x80, 0x50])
many = st.lists(
    st.builds(lambda each, flag: attribute(each[0], each[1], flag), values, flags), max_size=6
)
blocks = many.map(lambda each: b"".join(each))


@given(
    st.tuples(blocks, blocks),
    st.booleans(),
    st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=1),
)
def test_the_quick_look_says_what_the_long_one_does(parts, is_ebgp, flips):
    """Or nothing; also of what is cut short or duplicated."""
    before, after = parts
    for place, octet in flips:
        if before:
            place %= len(before)
            before = before[:place] + bytes([octet]) + before[place + 1 :]
    quick = common_attributes((before, after), is_ebgp)
    if quick is None:
        return
    both = [pair for part in (before, after) for pair in attributes_in(part)]
    assert quick[0] == judge_attributes(words_of(before + after), is_ebgp=is_ebgp)
    assert quick[1] == next((value for kind, value in both if kind == 3), b"")


def test_the_quick_look_is_enough_for_what_most_paths_have():
    """The control of the test above."""
    med = attribute(4, (7).to_bytes(4, "big"), 0x80)
    quick = common_attributes((path_attributes(64512, 65001, more=med),), True)
    assert quick is not None
    assert (quick[0].as_path, quick[0].med, quick[1]) == ((64512, 65001), 7, PEER.packed)


def of_one(number: int, asn: int, length: int = 26) -> bytes:
    """One route an UPDATE, as clusters have them."""
    prefix = bytes([length, 10, number >> 2 & 255, number >> 10 & 255, (number & 3) << 6])
    return update(prefix, path_attributes(64512, asn))


def of_some(number: int, asn: int, *lengths: int) -> bytes:
    """A node's blocks in one UPDATE, packed."""
    places = [
        bytes([length, 10, number >> 2 & 255, at, (number & 3) << 6])
        for at, length in enumerate(lengths or (26, 26, 26))
    ]
    return update(b"".join(places), path_attributes(64512, asn))


def of_one_v6(number: int, asn: int, length: int = 122, *, is_last: bool = True) -> bytes:
    """The same for IPv6, with its MP_REACH_NLRI behind the other attributes or before them."""
    prefix = bytes([length, 0xFD, *bytes(12), number >> 10 & 255, number >> 2 & 255])
    new = reach(GLOBAL.packed, prefix + bytes([(number & 3) << 6]))
    others = path_attributes(64512, asn, next_hop=None)
    return update(attributes=others + new if is_last else new + others)


runs = st.lists(
    st.one_of(
        st.builds(
            lambda first, count, asn, is_last: [
                of_one_v6(n, asn + n % 3, is_last=is_last) for n in range(first, first + count)
            ],
            st.integers(0, 2000),
            st.integers(1, 40),
            st.integers(65001, 65009),
            st.booleans(),
        ),
        st.builds(
            lambda first, count, asn: [of_one(n, asn + n % 3) for n in range(first, first + count)],
            st.integers(0, 2000),
            st.integers(1, 40),
            st.integers(65001, 65009),
        ),
        st.builds(
            lambda first, count, asn, lengths: [
                of_some(n, asn + n % 3, *lengths) for n in range(first, first + count)
            ],
            st.integers(0, 2000),
            st.integers(1, 20),
            st.integers(65001, 65009),
            st.lists(st.sampled_from([26, 26, 26, 28, 25, 24, 33]), min_size=1, max_size=10),
        ),
        st.sampled_from(
            [
                [of_one(5, 65001, 25)],  # host bits
                [of_one(3, 65001, 32)],
                [update(nlri("10.0.0.0/8"), path_attributes(64512, 65001))],
                [update(withdrawn=nlri("10.0.0.0/26"))] * 9,
                [update(attributes=unreach(nlri("fd00::/122")))] * 9,
                [of_one_v6(5, 65001, 121)] * 9,
                [of_one_v6(5, 65001, 121, is_last=False)],
                [update(nlri("10.0.0.0/26"), path_attributes(64512, 65001, next_hop=None))] * 9,
                [update(nlri("10.0.0.64/26"), withdrawn=nlri("10.0.0.0/26"))] * 9,
                [update()],
            ]
        ),
    ),
    max_size=6,
).map(lambda each: [body for run in each for body in run])


@given(
    runs,
    st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=2),
    st.integers(0) | st.none(),
)
def test_by_columns_is_as_one_by_one(bodies: list[bytes], flips, cut: int | None):
    """Runs of UPDATEs of one size, also with an octet among them that is another, or cut short."""
    stream = bytearray(framed(*bodies))
    for place, octet in flips:
        if stream:
            stream[place % len(stream)] = octet
    if cut is not None and stream:
        del stream[cut % len(stream) :]
    found = []
    for least in (MANY, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bgp.update_decoder.MANY", least)
            decoder = UpdateDecoder()
            events: list[object] = []
            # Twice: the second time all attributes are known.
            for _ in range(2):
                try:
                    events.extend(in_words(decoder.decode(PEER, bytes(stream), is_ebgp=True)))
                except ProtocolError as error:
                    events.append(str(error))
        found.append(events)
    assert found[0] == found[1]


@pytest.mark.parametrize("of", [of_one, of_some, of_one_v6])
def test_a_run_is_read_by_columns(monkeypatch, of):
    """The control of the test above; where the MP_REACH_NLRI is was seen in the first UPDATE."""
    ends = []
    original = UpdateDecoder._run

    def noted(self, source, raw, offset, batch):
        ends.append(original(self, source, raw, offset, batch))
        return ends[-1]

    decoder = UpdateDecoder()
    list(decoder.decode(PEER, framed(of(9, 65009)), is_ebgp=True))
    monkeypatch.setattr(UpdateDecoder, "_run", noted)
    stream = framed(*[of(number, 65001 + number % 3) for number in range(MANY)])
    (event,) = decoder.decode(PEER, stream, is_ebgp=True)
    assert ends == [len(stream)]
    assert isinstance(event, RouteBatch)
    assert len(event.routes) == MANY * (3 if of is of_some else 1)


LIKE = [
    update(nlri("10.0.0.0/26"), path_attributes(64512, 65001, more=attribute(4, bytes(4), 0x80))),
    update(nlri("10.0.0.0/26", "10.0.0.64/26"), path_attributes(64512, 65001)),
    update(attributes=path_attributes(64512, 65001) + reach(GLOBAL.packed, nlri("fd00::/122"))),
    update(attributes=reach(GLOBAL.packed, nlri("fd00::/122")) + path_attributes(64512, 65001)),
    update(
        attributes=reach(GLOBAL.packed, nlri("fd00::/122", "fd00::40/122"))
        + path_attributes(64512, 65001)
    ),
]


@given(
    st.sampled_from(LIKE),
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=2),
    st.booleans(),
    st.integers(1, MANY + 1),
)
def test_what_is_like_something_known_is_what_it_is_alone(first, asn, flips, is_ebgp, times):
    """But for AS numbers, or damaged anywhere: what was read before it makes no difference."""
    own = (64512).to_bytes(4, "big") + (65001).to_bytes(4, "big")
    second = bytearray(first.replace(own, own[:4] + asn.to_bytes(4, "big")))
    for place, value in flips:
        if place < len(second):
            second[place] = value

    def told(decoder: UpdateDecoder, raw: bytes) -> list[object]:
        found: list[object] = []
        try:
            found += in_words(decoder.decode(PEER, raw, is_ebgp=is_ebgp))
        except ProtocolError as error:
            found.append(str(error))
        return found

    raw = framed(*[bytes(second)] * times)
    knowing = UpdateDecoder()
    told(knowing, framed(first))
    told(knowing, framed(first))
    assert told(knowing, raw) == told(UpdateDecoder(), raw)


def test_paths_that_differ_in_as_numbers_are_kin_and_each_is_one():
    """However they came: by likeness, in full, or again after all was forgotten."""
    decoder = UpdateDecoder()
    seen: list[PathAttributes] = []
    for place, asn in enumerate((65001, 65002, 65003, 65002)):
        raw = framed(update(nlri(f"10.0.{place}.0/26"), path_attributes(64512, asn)))
        (event,) = decoder.decode(PEER, raw, is_ebgp=True)
        assert isinstance(event, RouteBatch)
        seen += [each for each in event.routes.values() if each is not None]
    first, second, third, again = seen
    assert second is again
    assert first.kin is second.kin is third.kin
    assert [each.as_path[1] for each in (first, second, third)] == [65001, 65002, 65003]
    other = framed(update(nlri("10.0.9.0/26"), path_attributes(64512, 65002, next_hop="192.0.2.3")))
    (event,) = decoder.decode(PEER, other, is_ebgp=True)
    assert isinstance(event, RouteBatch)
    (stranger,) = event.routes.values()
    assert stranger is not None
    assert stranger.kin is not first.kin
