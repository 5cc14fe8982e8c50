"""ExaBGP with our hot path reads any stream as the stock one does: the agent hears the same routes,
in the same order, and the session ends the same way (same NOTIFICATION, or none), with the same
counts; both without and with our judgement of malformed attributes before the decoder, which is
where they may differ from ExaBGP as it comes (test_exabgp_attributes.py); and both with each first
UPDATE of its kind decoded by ExaBGP, and with those that are certainly sound never seen by it. So
it is also the test of our decoder, with ExaBGP's own as the oracle."""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.paths import Update
from tests.fakes.bgp_wire import (
    END_OF_RIB,
    END_OF_RIB_V6,
    KEEPALIVE,
    attribute,
    message,
    nlri,
    path_attributes,
    reach,
    unreach,
    update,
)
from tests.fakes.exabgp_sessions import Session, certain, hot_path, rfc_7606

PEER = 64512
GLOBAL = ip_address("2001:db8::2").packed
LINK_LOCAL = ip_address("fe80::2").packed

prefixes_v4 = st.lists(
    st.sampled_from(
        [
            "10.0.0.0/26",
            "10.0.0.64/26",
            "10.1.0.0/16",
            "0.0.0.0/0",
            "10.2.0.1/32",
            "10.255.255.255/32",  # it ends as the next marker begins
        ]
    ),
    min_size=1,
    max_size=3,
).map(lambda each: nlri(*each))
prefixes_v6 = st.lists(
    st.sampled_from(["fd00::/122", "fd00::40/122", "::/0", "fd00::1/128"]), min_size=1, max_size=3
).map(lambda each: nlri(*each))
more = st.sampled_from(
    [
        b"",
        attribute(4, bytes(4), 0x80),
        attribute(8, bytes.fromhex("fde80001"), 0xC0),
        attribute(8, bytes.fromhex("fde800"), 0xC0),  # malformed: treated as a withdrawal
        attribute(7, b"\x01", 0xC0),  # malformed: discarded
        attribute(3, b"\xc0\x00\x02\x02"),  # there twice
        attribute(200, b"\x01", 0xC0),
        attribute(17, bytes([2, 1, 0, 0, 0xFD, 0xE9]), 0xC0),
        attribute(5, (100).to_bytes(4, "big")),
        attribute(32, bytes(range(24)), 0xC0),
        attribute(32, bytes(range(12)) * 2, 0xC0),  # one, twice
        attribute(6, b"") + attribute(7, bytes([0, 0, 252, 0, 192, 0, 2, 2]), 0xC0),
        attribute(8, bytes.fromhex("fde80001"), 0xE0),  # PARTIAL
        attribute(16, bytes.fromhex("0002fde800000001"), 0xC0),
        attribute(8, b"\xff" * 16, 0xC0),  # as a marker
        attribute(8, b"\xff" * 20 + b"\0\x1c\2\0", 0xC0),  # and a header
        attribute(8, bytes.fromhex("ffffff01fde80001fde80001"), 0xC0),
        attribute(9, bytes([192, 0, 2, 9]), 0x80) + attribute(10, bytes(range(1, 9)), 0x80),
        b"\x40",
    ]
)
asns = st.sampled_from([0, 1, 23456, 64601, 65535, 0x02010000, 0xFFFFFFFF, 0x40020602])
"""Numbers that mean something to somebody, or that look like what stands around them."""
attributes = st.builds(
    lambda asns, extra: path_attributes(*asns, more=extra),
    st.one_of(
        st.sampled_from([(PEER,), (PEER, 65001), (PEER, 65001, 65002)]),
        st.tuples(st.just(PEER), asns),
        st.tuples(asns, asns),
    ),
    more,
)
bodies = st.one_of(
    st.builds(update, prefixes_v4, attributes),
    st.builds(update, prefixes_v4, attributes),
    st.builds(lambda gone: update(withdrawn=gone), prefixes_v4),
    st.builds(
        lambda asn, new, extra: update(
            attributes=path_attributes(PEER, asn, next_hop=None, more=extra) + reach(GLOBAL, new)
        ),
        asns,
        prefixes_v6,
        more,
    ),
    st.builds(update, prefixes_v4, attributes, prefixes_v4),
    st.builds(
        lambda hops, new, extra: update(
            attributes=reach(hops, new) + path_attributes(PEER, next_hop=None, more=extra)
        ),
        st.sampled_from([GLOBAL, GLOBAL + LINK_LOCAL, GLOBAL[:3]]),
        prefixes_v6,
        more,
    ),
    st.builds(lambda gone: update(attributes=unreach(gone)), prefixes_v6),
    st.sampled_from([END_OF_RIB, END_OF_RIB_V6, update(attributes=path_attributes(PEER)), b"\0"]),
    st.builds(update, st.binary(max_size=8), attributes),
)
messages = st.one_of(
    *[bodies.map(lambda body: message(2, body))] * 6,
    st.just(KEEPALIVE),
    st.sampled_from(
        [message(5, b"\0\1\0\1"), message(3, b"\6\2"), message(9, b""), message(4, b"x")]
    ),
)


def said(session: Session) -> list[object]:
    """The agent's events. Of UPDATEs in a row the last word on each prefix, and all that was
    refused: several of them may be one event."""
    found: list[object] = []
    routes: dict[object, object] = {}
    refused: set[object] = set()
    for each in session.events():
        if isinstance(each, Update):
            routes.update(dict.fromkeys(each.withdrawn))
            routes.update((r.prefix, None) for r in each.rejected if r.prefix is not None)
            routes.update((path.prefix, path) for path in each.announced)
            refused.update(each.rejected)
            continue
        found += [routes, refused, each]
        routes, refused = {}, set()
    return [*found, routes, refused]


def both(
    stream: bytes, cuts: list[int], *, is_certain: bool = False
) -> tuple[Session, str, Session, str]:
    stock = Session(peer_asn=PEER)
    stock_end = stock.feed(stream, cuts)
    with ExitStack() as stack:
        stack.enter_context(hot_path())
        if is_certain:
            stack.enter_context(certain())
        tuned = Session(peer_asn=PEER)
        tuned_end = tuned.feed(stream, cuts)
    return stock, stock_end, tuned, tuned_end


@settings(max_examples=100)
@given(
    st.lists(messages, min_size=1, max_size=14),
    st.lists(st.integers(0, 2000), max_size=4),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=2),
    st.booleans(),
    st.booleans(),
)
def test_any_stream_is_read_as_stock_reads_it(drawn, cuts, flips, is_judged, is_certain):
    """Well made, malformed, cut anywhere, with bytes changed: header, attributes or prefixes."""
    stream = bytearray(b"".join(drawn))
    for place, value in flips:
        if place < len(stream):
            stream[place] = value
    where = sorted(min(cut, len(stream)) for cut in cuts)
    with ExitStack() as stack:
        if is_judged:
            stack.enter_context(rfc_7606())
        stock, stock_end, tuned, tuned_end = both(bytes(stream), where, is_certain=is_certain)
    assert said(tuned) == said(stock)
    assert tuned_end == stock_end
    assert tuned.protocol.peer.stats == stock.protocol.peer.stats


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_a_table_goes_through_in_few_lines(family: str):
    """Else it would be the same speed; and not one UPDATE is lost or out of order."""
    stream = b""
    for number in range(2000):
        if family == "v4":
            body = update(bytes([26, 10, number >> 8, number & 255, 0]), path_attributes(PEER))
        else:
            place = nlri(f"fd00:0:0:{number:x}::/122")
            body = update(attributes=reach(GLOBAL, place) + path_attributes(PEER, next_hop=None))
        stream += message(2, body)
    stock, _, tuned, _ = both(stream, [])
    assert said(tuned) == said(stock)
    assert sum(len(e.announced) for e in tuned.events() if isinstance(e, Update)) == 2000
    assert len(stock.lines) == 2000
    assert len(tuned.lines) < 20


def test_what_is_malformed_is_never_learned():
    """A withdrawal in disguise must be one the second time, too."""
    bad = message(
        2, update(nlri("10.0.0.0/26"), path_attributes(PEER, more=attribute(8, b"xxx", 0xC0)))
    )
    with hot_path():
        tuned = Session(peer_asn=PEER)
        tuned.feed(bad * 5, [])
    assert len(tuned.lines) == 5
    assert all('"slash32"' not in line for line in tuned.lines)
