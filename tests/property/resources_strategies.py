"""Strategies for every kind of resource, for the tests of documents and of schemas."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import strategies as st

from cni.ipam.block import Block, BlockState
from routing.datastore.resources import block_name, block_resource
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPFilterResource,
    BGPPeerResource,
    Condition,
    ConditionStatus,
    ExportAttributes,
    FilterAction,
    FilterRule,
    IPPoolResource,
    LimitAction,
    MatchOperator,
    Meta,
    NodeResource,
    NodeStatusResource,
    Password,
    PeerReport,
    PrefixAdvertisement,
    SecretKeyRef,
    SecretResource,
)

names = st.text("ab09", min_size=1, max_size=6) | st.sampled_from(["a-b", "1e3", "no", "a.b-c.d"])
label_values = st.text("aZ09", max_size=6) | st.sampled_from(["1e3", "09", "no", "true", "a_.-b"])
label_keys = st.text("aZ0", min_size=1, max_size=4) | st.sampled_from(["a.io/b", "x_y.z", "null"])
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
versions = st.sampled_from(["", "0", "17", "0012", "1e3"])
selectors = st.sampled_from(["all()", "has(rack)", "rack in {'a', \"b\"} && !has(x)"])


def metas(name=names):
    """Metadata under a name."""
    return st.builds(
        Meta,
        name,
        st.dictionaries(label_keys, label_values, max_size=3),
        st.dictionaries(label_keys, texts, max_size=3),
        versions,
        st.sampled_from(["", "1e5", "0123", "6f1c2a52-9f3e-4f7e-9d37-0a8f6f6f4b1e"]),
        st.integers(0, 9),
    )


v4 = st.integers(0x0B000000, 0x7E000000).map(IPv4Address)
v6 = st.integers(0x2001 << 112, 0x2002 << 112).map(IPv6Address)
asns = st.integers(1, 4294967295)
u16 = st.integers(0, 65535)
u32 = st.integers(0, 4294967295)
standard = st.builds("{}:{}".format, u16, u16)
large = st.builds("{}:{}:{}".format, u32, u32, u32)
standards = st.lists(standard, unique=True, max_size=3).map(tuple)
larges = st.lists(large, unique=True, max_size=3).map(tuple)
times = st.sampled_from(["2026-01-31T12:00:00Z", "1999-12-31T23:59:59Z"])
secret_refs = st.builds(SecretKeyRef, names, st.sampled_from(["psk", "a.B_c-1", "1e3"]))


def networks4(lengths):
    """IPv4 networks."""
    return st.builds(lambda a, n: IPv4Network((a, n), strict=False), v4, lengths)


def networks6(lengths):
    """IPv6 networks."""
    return st.builds(lambda a, n: IPv6Network((a, n), strict=False), v6, lengths)


def networks(lengths4, lengths6):
    """Networks of either family."""
    return networks4(lengths4) | networks6(lengths6)


prefixes = networks(st.integers(0, 32), st.integers(0, 128))
attributes = st.builds(
    ExportAttributes,
    standards,
    larges,
    st.none() | u32,
    st.none() | u32,
    st.integers(0, 10),
)


@st.composite
def pools(draw):
    """IPPools."""
    cidr = draw(networks(st.integers(8, 28), st.integers(32, 120)))
    low, high = (20, 32) if cidr.version == 4 else (116, 128)
    return IPPoolResource(
        draw(metas()),
        cidr,
        draw(st.integers(max(low, cidr.prefixlen), high)),
        draw(st.booleans()),
        draw(selectors),
        draw(selectors),
        draw(st.booleans()),
        draw(st.booleans()),
    )


@st.composite
def peers(draw):
    """BGPPeers, by address or by selector."""
    address = draw(st.none() | v4 | v6)
    sources = v6 if address is not None and address.version == 6 else v4
    where = draw(st.sampled_from([{}, {"node": "n1"}, {"node_selector": "has(a)"}]))
    remote = {"peer_selector": draw(selectors)}
    if address is not None:
        remote = {"peer_ip": address, "asn": draw(asns), "port": draw(st.integers(1, 65535))}
    source = draw(
        st.just({})
        | st.just({"is_source_free": True})
        | sources.map(lambda each: {"source_address": each})
    )
    ttl = draw(
        st.just({})
        | st.builds(lambda n: {"ttl_security_hops": n}, st.integers(1, 254))
        | st.builds(lambda n: {"multihop_ttl": n}, st.integers(1, 255))
    )
    limit = draw(
        st.just({})
        | st.builds(
            lambda n, action: {"max_prefixes": n, "limit_action": action},
            st.integers(1, 10_000_000),
            st.sampled_from(LimitAction),
        )
    )
    return BGPPeerResource(
        draw(metas()),
        local_asn=draw(st.none() | asns),
        hold_time_s=draw(st.integers(3, 65535)),
        max_restart_time_s=draw(st.integers(0, 4095)),
        password=draw(st.none() | secret_refs),
        allowed_local_asns=draw(st.integers(0, 255)),
        is_passive=draw(st.booleans()),
        filters=tuple(draw(st.lists(names, unique=True, max_size=3))),
        export=draw(attributes),
        extended_next_hop=draw(st.booleans()),
        **remote,
        **where,
        **source,
        **ttl,
        **limit,
    )


@st.composite
def rules(draw, version: int, is_export: bool):
    """One rule of a BGPFilter."""
    action = draw(st.sampled_from(FilterAction))
    highest = 32 if version == 4 else 128
    network = networks4 if version == 4 else networks6
    operator = draw(st.none() | st.sampled_from(MatchOperator))
    low = high = None
    if operator in (MatchOperator.IN, MatchOperator.NOT_IN):
        low, high = draw(
            st.tuples(st.integers(0, highest), st.integers(0, highest)).map(sorted)
            | st.tuples(st.none(), st.none() | st.integers(0, highest))
            | st.tuples(st.integers(0, highest), st.none())
        )
    is_changing = is_export and action is FilterAction.ACCEPT
    return FilterRule(
        action,
        operator,
        None if operator is None else draw(network(st.integers(0, highest))),
        low,
        high,
        tuple(draw(st.lists(standard | large, unique=True, max_size=3))),
        tuple(draw(st.lists(asns, max_size=3))),
        draw(attributes) if is_changing else ExportAttributes(),
    )


def rule_lists(version: int, *, is_export: bool):
    """The rules of one direction and family."""
    return st.lists(rules(version, is_export), max_size=2).map(tuple)


filters = st.builds(
    BGPFilterResource,
    metas(),
    rule_lists(4, is_export=True),
    rule_lists(4, is_export=False),
    rule_lists(6, is_export=True),
    rule_lists(6, is_export=False),
)


@st.composite
def blocks(draw):
    """Blocks under the names of their CIDRs."""
    cidr = draw(networks(st.integers(20, 32), st.integers(116, 128)))
    block = Block(cidr, draw(names), draw(names), draw(st.sampled_from(BlockState)))
    return block_resource(block, draw(metas(st.just(block_name(cidr)))))


nodes = st.builds(
    NodeResource,
    metas(),
    st.builds(lambda *a: tuple(x for x in a if x), st.none() | v4, st.none() | v6),
    st.none() | asns,
    st.booleans(),
)
advertisements = st.lists(
    st.builds(PrefixAdvertisement, prefixes, standards, larges).filter(
        lambda each: each.communities or each.large_communities
    ),
    max_size=3,
    unique_by=lambda each: each.cidr,
)
configurations = st.builds(
    BGPConfigurationResource,
    metas(st.just("default")),
    asns,
    st.integers(1, 65535),
    st.lists(prefixes, unique=True, max_size=3).map(tuple),
    st.booleans(),
    st.none() | secret_refs,
    st.integers(0, 4095),
    st.lists(names, unique=True, max_size=3).map(tuple),
    advertisements.map(tuple),
    st.booleans(),
    st.booleans(),
)
conditions = st.lists(
    st.builds(
        Condition,
        st.sampled_from(["Ready", "Established", "FIBInSync", "a.b-C_1"]),
        st.sampled_from(ConditionStatus),
        st.sampled_from(["NoMatchingNode", "AsWished", "x"]),
        texts,
        st.integers(0, 9),
        st.just("") | times,
    ),
    max_size=3,
    unique_by=lambda each: each.type,
).map(tuple)
counts = st.integers(0, 2**40)
statuses = st.builds(
    NodeStatusResource,
    metas(),
    texts,
    st.just("") | times,
    st.lists(
        st.builds(
            PeerReport, texts, v4 | v6, asns, texts.filter(bool), st.just("") | times, texts,
            counts, counts, counts, counts,
        ),
        max_size=3,
    ).map(tuple),
    st.dictionaries(st.sampled_from(["pod", "block", "remote"]), counts),
    st.dictionaries(st.sampled_from(["used", "resting", "free"]), counts),
    conditions,
)  # fmt: skip
secrets = st.builds(
    SecretResource,
    metas(),
    st.dictionaries(
        st.text("aB1._-", min_size=1, max_size=5),
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=80).map(
            Password
        ),
        max_size=3,
    ),
)
resources = st.one_of(pools(), peers(), filters, blocks(), nodes, configurations, statuses, secrets)
