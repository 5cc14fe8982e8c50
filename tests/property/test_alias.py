"""The laws of the alias: what was written is read, and no text at all is a surprise."""

from __future__ import annotations

import string
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st

from cni.attachment import Attachment, PodRef
from cni.podlink import ALIAS_MAX_BYTES, AliasError, decode_alias, encode_alias

CASES = {"round trip": 0, "any text": 0, "length": 0}
FLOOR = 100

WORD = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=40)
V4 = st.integers(0, 2**32 - 1).map(IPv4Address)
V6 = st.integers(0, 2**128 - 1).map(IPv6Address)
ADDRESSES = st.one_of(V4.map(lambda a: (a,)), V6.map(lambda a: (a,)), st.tuples(V4, V6))
PODS = st.none() | st.builds(PodRef, WORD, st.text(min_size=1, max_size=80))


@settings(max_examples=300)
@given(network=WORD, container=WORD, ifname=WORD, addresses=ADDRESSES, pod=PODS)
def test_identity_and_addresses_survive_the_alias(network, container, ifname, addresses, pod):
    """Whatever the pod is called, newlines and bars included, and however long."""
    CASES["round trip"] += 1
    attachment = Attachment(network, container, ifname)
    alias = encode_alias(attachment, addresses, pod)
    record = decode_alias(alias)
    assert record is not None
    assert (record.attachment, record.addresses) == (attachment, addresses)
    if pod is None:
        assert record.pod is None
    elif len(alias.encode()) < ALIAS_MAX_BYTES - 4:
        assert record.pod == pod
    assert encode_alias(record.attachment, record.addresses, record.pod) == alias


@settings(max_examples=300)
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.text("slah32|1-.:/net", max_size=60).map(lambda t: "slash32|1|" + t),
        st.lists(st.text(max_size=8), max_size=9).map(lambda p: "|".join(["slash32", "1", *p])),
    )
)
def test_any_text_is_a_record_foreign_or_an_alias_error(text):
    """Anybody with CAP_NET_ADMIN can write any alias."""
    CASES["any text"] += 1
    try:
        record = decode_alias(text)
    except AliasError:
        assert text.startswith("slash32|")
        return
    assert (record is None) == (not text.startswith("slash32|"))


@settings(max_examples=200)
@given(
    container=st.text(string.hexdigits, min_size=1, max_size=300),
    addresses=ADDRESSES,
    pod=PODS,
)
def test_an_alias_fits_the_kernel_or_is_refused(container, addresses, pod):
    """Never cut within the identity."""
    CASES["length"] += 1
    try:
        alias = encode_alias(Attachment("net", container, "eth0"), addresses, pod)
    except AliasError:
        assert len(container) > 150
        return
    assert len(alias.encode()) <= ALIAS_MAX_BYTES
    assert container in alias


def test_enough_cases_ran():
    """A property test that ran nothing proves nothing."""
    assert all(count >= FLOOR for count in CASES.values()), CASES
