"""Resources: round trips, and arbitrary documents raise InvalidResource or nothing."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import given, settings
from hypothesis import strategies as st

from cni.ipam.block import Block, BlockState
from routing.datastore.documents import dump
from routing.datastore.resources import (
    block_name,
    block_resource,
    from_document,
    parse_resources,
    to_document,
)
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPPeerResource,
    InvalidResource,
    IPPoolResource,
    Meta,
    NodeResource,
)

CASES = {"round trip": 0, "any document": 0, "any text": 0}
FLOOR = 150

names = st.text("ab09", min_size=1, max_size=6) | st.sampled_from(["a-b", "1e3", "no", "a.b-c.d"])
label_values = st.text("aZ09", max_size=6) | st.sampled_from(["1e3", "09", "no", "true", "a_.-b"])
label_keys = st.text("aZ0", min_size=1, max_size=4) | st.sampled_from(["a.io/b", "x_y.z", "null"])
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
versions = st.sampled_from(["", "0", "17", "0012", "1e3"])


def metas(name=names):
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


def networks(lengths4, lengths6):
    return st.builds(lambda a, n: IPv4Network((a, n), strict=False), v4, lengths4) | st.builds(
        lambda a, n: IPv6Network((a, n), strict=False), v6, lengths6
    )


@st.composite
def pools(draw):
    cidr = draw(networks(st.integers(8, 28), st.integers(32, 120)))
    low, high = (20, 32) if cidr.version == 4 else (116, 128)
    return IPPoolResource(
        draw(metas()),
        cidr,
        draw(st.integers(max(low, cidr.prefixlen), high)),
        draw(st.booleans()),
        draw(st.sampled_from(["all()", "has(rack)", "rack in {'a', \"b\"} && !has(x)"])),
    )


@st.composite
def peers(draw):
    address = draw(v4 | v6)
    where = draw(st.sampled_from([{}, {"node": "n1"}, {"node_selector": "has(a)"}]))
    return BGPPeerResource(
        draw(metas()),
        address,
        draw(asns),
        port=draw(st.integers(1, 65535)),
        source_address=draw(st.none() | (v4 if address.version == 4 else v6)),
        hold_time_s=draw(st.integers(3, 65535)),
        max_restart_time_s=draw(st.integers(0, 4095)),
        **where,
    )


@st.composite
def blocks(draw):
    cidr = draw(networks(st.integers(20, 32), st.integers(116, 128)))
    block = Block(cidr, draw(names), draw(names), draw(st.sampled_from(BlockState)))
    return block_resource(block, draw(metas(st.just(block_name(cidr)))))


resources = st.one_of(
    pools(),
    peers(),
    blocks(),
    st.builds(
        NodeResource,
        metas(),
        st.builds(lambda *a: tuple(x for x in a if x), st.none() | v4, st.none() | v6),
        st.none() | asns,
    ),
    st.builds(
        BGPConfigurationResource,
        metas(st.just("default")),
        asns,
        st.integers(1, 65535),
        st.lists(networks(st.integers(0, 32), st.integers(0, 128)), unique=True, max_size=3).map(
            tuple
        ),
    ),
)


@settings(max_examples=200, deadline=None)
@given(resource=resources)
def test_a_resource_survives_document_yaml_and_json(resource):
    """Equal after each way round."""
    CASES["round trip"] += 1
    document = to_document(resource)
    assert from_document(document) == resource
    assert parse_resources(dump([document]), source="f") == [resource]
    assert parse_resources(json.dumps(document), source="f") == [resource]


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**33)
    | st.floats()
    | st.sampled_from(["10.0.0.0/24", "192.0.2.1", "all()", "9s", "default", "pending", "host:n"])
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
FIELDS = {
    "IPPool": ["cidr", "blockSize", "disabled", "nodeSelector", "ipipMode", "natOutgoing"],
    "BGPPeer": ["peerIP", "asNumber", "node", "nodeSelector", "holdTime", "keepaliveTime"],
    "Node": ["addresses", "bgp"],
    "BGPConfiguration": ["asNumber", "listenPort", "importAllow"],
    "Block": ["cidr", "pool", "affinity", "state"],
}


@st.composite
def damaged(draw):
    """A document with the right outline and anything in its fields."""
    kind = draw(st.sampled_from(list(FIELDS)))
    spec = draw(st.dictionaries(st.sampled_from(FIELDS[kind]) | texts, junk, max_size=5) | junk)
    metadata = draw(
        st.fixed_dictionaries(
            {"name": st.just("default") | junk},
            optional={"labels": junk, "annotations": junk, "uid": junk, "generation": junk},
        )
        | junk
    )
    document = {"apiVersion": "slash32.io/v1", "kind": kind, "metadata": metadata, "spec": spec}
    for key in draw(st.sets(st.sampled_from(list(document)), max_size=1)):
        document[key] = draw(junk)
    return document


@settings(max_examples=400, deadline=None)
@given(document=damaged())
def test_any_document_is_a_resource_or_an_invalid_resource(document):
    """Nothing else is raised; what is accepted is written back and read again alike."""
    CASES["any document"] += 1
    resource = None
    try:
        resource = from_document(document)
    except InvalidResource as error:
        sentence = str(error)
    else:
        sentence = ""
        assert from_document(to_document(resource)) == resource
    assert (resource is None) == bool(sentence)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            ["a", ": ", "\n", "- ", "  ", "{", "}", "[", "]", "&x", "*x", "!!set", "'", '"', "|",
             "---\n", "kind: ", "IPPool", "List", "items: ", "? ", "#", "\t", "<<", "\u2028"]
        ),
        max_size=20,
    ).map("".join)
)  # fmt: skip
def test_any_text_is_resources_or_an_invalid_resource(text):
    """Nothing else is raised, and no error is longer than a line."""
    CASES["any text"] += 1
    sentence = ""
    try:
        parse_resources(text, source="f")
    except InvalidResource as error:
        sentence = str(error)
    assert len(sentence.splitlines()) == 1


def test_enough_cases_ran():
    """A property test that ran nothing proves nothing."""
    assert all(count >= FLOOR for count in CASES.values()), CASES
