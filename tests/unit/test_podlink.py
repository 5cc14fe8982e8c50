"""The alias is the journal: what it remembers, what it refuses, what is not ours."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from cni.attachment import Attachment, PodRef
from cni.podlink import (
    ALIAS_MAX_BYTES,
    AliasError,
    AliasRecord,
    PodLink,
    decode_alias,
    encode_alias,
)

ATTACHMENT = Attachment("net", "c0ffee", "eth0")
V4, V6 = ip_address("10.244.0.1"), ip_address("fd00::1")


def test_an_alias_reads_as_documented():
    """People see it in ``ip link``; other versions of us read it after an upgrade."""
    link = PodLink(ATTACHMENT, (V4, V6), 1500, PodRef("default", "web-0"))
    assert link.alias == "slash32|1|net|c0ffee|eth0|10.244.0.1|fd00::1|default/web-0"
    assert PodLink(ATTACHMENT, (V6,), 1500).alias == "slash32|1|net|c0ffee|eth0|-|fd00::1|"


def test_addresses_are_found_by_family():
    """At most one of each; none is None."""
    link = PodLink(ATTACHMENT, (V4, V6), 1500)
    assert (link.ipv4, link.ipv6) == (V4, V6)
    assert PodLink(ATTACHMENT, (V6,), 1500).ipv4 is None
    assert PodLink(ATTACHMENT, (V4,), 1500).ipv6 is None


def test_the_host_name_fits_and_differs_with_every_part_of_the_identity():
    """15 bytes is what IFNAMSIZ leaves."""
    names = {
        Attachment(*each).host_ifname
        for each in (("net", "c", "eth0"), ("net2", "c", "eth0"), ("net", "d", "eth0"))
    } | {Attachment("net", "c", "eth1").host_ifname, Attachment("ne", "tc", "eth0").host_ifname}
    assert len(names) == 5
    assert all(len(name) == 15 and name.startswith("s32") for name in names)


@pytest.mark.parametrize("alias", ["", "eth0", "COIL:default:x:eth0", "slash32", "slash321|1|"])
def test_a_foreign_alias_is_nobodys_record(alias):
    """Such links are never touched."""
    assert decode_alias(alias) is None


@pytest.mark.parametrize(
    "alias",
    [
        "slash32|",
        "slash32|1|net|c0ffee|eth0|10.244.0.1|-",
        "slash32|2|net|c0ffee|eth0|10.244.0.1|-|",
        "slash32|1|net|c0ffee|eth0|10.244.0.300|-|",
        "slash32|1|net|c0ffee|eth0||-|",
        "slash32|1|net|c0ffee|eth0|fd00::1|10.244.0.1|",
    ],
)
def test_our_tag_in_another_form_is_an_error_that_shows_it(alias):
    """Reported, and neither adopted nor removed."""
    with pytest.raises(AliasError, match="alias"):
        decode_alias(alias)


def test_a_long_pod_name_is_cut_and_a_long_identity_refused():
    """Decoration gives way; identity must be whole."""
    long_name = PodRef("n" * 63, "p" * 253)
    alias = encode_alias(ATTACHMENT, (V4, V6), long_name)
    assert len(alias.encode()) == ALIAS_MAX_BYTES
    record = decode_alias(alias)
    assert record is not None
    assert record.attachment == ATTACHMENT
    with pytest.raises(AliasError, match="too long by 6 bytes"):
        encode_alias(Attachment("n" * 100, "c" * 131, "eth0"), (V4,), None)


def test_a_record_without_a_pod_has_none():
    """The runtime need not say whose sandbox it is."""
    assert decode_alias(encode_alias(ATTACHMENT, (V4,), None)) == AliasRecord(
        ATTACHMENT, (V4,), None
    )
