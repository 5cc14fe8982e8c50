"""The cache's form: what goes in comes out, and no damaged byte gets through."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from routing.datastore.cache_format import (
    CacheUnusable,
    decode,
    decode_passwords,
    encode,
    encode_passwords,
)
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPFilterResource,
    BGPPeerResource,
    BlockResource,
    IPPoolResource,
    Meta,
    NodeResource,
    Password,
    SecretKeyRef,
    Snapshot,
)
from tests.property.resources_strategies import names, resources, texts

CASES = {"round trip": 0, "with blocks": 0, "damage": 0, "cut": 0}
FLOOR = {"round trip": 150, "with blocks": 40, "damage": 400, "cut": 200}


@st.composite
def snapshots(draw):
    """Any resources, sorted into the places of a snapshot."""
    found = draw(st.lists(resources, max_size=10))

    def of(kind):
        return tuple(each for each in found if isinstance(each, kind))

    default = BGPConfigurationResource(Meta("default"))
    return Snapshot(
        pools=of(IPPoolResource),
        nodes=of(NodeResource),
        peers=of(BGPPeerResource),
        filters=of(BGPFilterResource),
        blocks=tuple(each.block for each in of(BlockResource)),
        bgp=next(iter(of(BGPConfigurationResource)), default),
    )


@settings(max_examples=200, deadline=None)
@given(snapshot=snapshots(), node=names)
def test_a_snapshot_comes_out_as_it_went_in(snapshot, node):
    """Out of sync, and for the same node in the same boot."""
    CASES["round trip"] += 1
    CASES["with blocks"] += bool(snapshot.blocks)
    raw = encode(replace(snapshot, in_sync=True), node=node, boot_id="b1")
    assert decode(raw, node=node, boot_id="b1") == snapshot
    later = decode(raw, node=node, boot_id="b2")
    assert later.blocks == tuple(b for b in snapshot.blocks if b.node != node)
    assert replace(later, blocks=snapshot.blocks) == snapshot


@settings(max_examples=100, deadline=None)
@given(
    passwords=st.dictionaries(
        st.builds(SecretKeyRef, names, names), texts.map(Password), max_size=4
    )
)
def test_passwords_come_out_as_they_went_in(passwords):
    """Whatever characters they have."""
    raw = encode_passwords(passwords, node="n1", boot_id="b1")
    assert decode_passwords(raw, node="n1") == passwords


def is_refused(raw: bytes) -> bool:
    try:
        decode(raw, node="n1", boot_id="b1")
    except CacheUnusable:
        return True
    return False


@settings(max_examples=100, deadline=None)
@given(snapshot=snapshots(), data=st.data())
def test_any_flipped_bit_is_seen(snapshot, data):
    """In the header, its checksum, or the body."""
    raw = encode(snapshot, node="n1", boot_id="b1")
    assert not is_refused(raw)
    for _ in range(6):
        CASES["damage"] += 1
        at, bit = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 7))
        assert is_refused(raw[:at] + bytes([raw[at] ^ (1 << bit)]) + raw[at + 1 :])
    header = raw.index(b"\n") + 1
    for at in range(header):
        bit = data.draw(st.integers(0, 7))
        assert is_refused(raw[:at] + bytes([raw[at] ^ (1 << bit)]) + raw[at + 1 :])


@settings(max_examples=100, deadline=None)
@given(snapshot=snapshots(), data=st.data())
def test_any_missing_end_and_any_addition_is_seen(snapshot, data):
    """What a power cut or an editor leaves."""
    raw = encode(snapshot, node="n1", boot_id="b1")
    for _ in range(4):
        CASES["cut"] += 1
        assert is_refused(raw[: data.draw(st.integers(0, len(raw) - 1))])
    assert is_refused(raw + data.draw(st.binary(min_size=1, max_size=5)))


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_refused_without_another_error(raw):
    """Foreign files."""
    assert is_refused(raw)


def test_enough_cases_ran():
    """A property test that ran nothing proves nothing."""
    assert {what: CASES[what] for what in FLOOR if CASES[what] < FLOOR[what]} == {}, CASES
