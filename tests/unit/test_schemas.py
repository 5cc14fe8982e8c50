"""The custom resources' schemas: what they take, what they refuse, and in which words."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from routing.datastore.resources import from_document
from routing.datastore.snapshot import InvalidResource
from routing.schemas.__main__ import files
from routing.schemas.definitions import DEFINITIONS, document, root_schema
from tests.fakes.structural import refusals

ROOT = Path(__file__).parents[2]
FILES = files(ROOT)
SCHEMAS = {each.kind: root_schema(each) for each in DEFINITIONS}
POOL = {"cidr": "10.244.0.0/16"}
PEER = {"peerIP": "192.0.2.1", "asNumber": 64512}
RULE = {"action": "Accept"}
REF = {"secretKeyRef": {"name": "bgp", "key": "tor"}}


def resource(kind: str, spec: Any, name: str = "a") -> dict[str, Any]:
    """A document."""
    named = "default" if kind == "BGPConfiguration" and name == "a" else name
    where = "status" if kind == "NodeStatus" else "spec"
    head = {"apiVersion": "slash32.io/v1", "kind": kind, "metadata": {"name": named}}
    return {**head, where: spec}


def said(kind: str, spec: Any, name: str = "a", old: Any = None) -> str:
    """What the schema says to it, in one text; "" when it takes it."""
    before = None if old is None else resource(kind, old, name)
    return "\n".join(refusals(SCHEMAS[kind], resource(kind, spec, name), before))


@pytest.mark.parametrize("path", FILES)
def test_the_files_are_what_the_schemas_make(path: str):
    """`make manifests` writes them; nobody edits them."""
    assert (ROOT / path).read_text() == FILES[path], "run `make manifests`"


def test_what_reads_the_files_reads_the_definitions():
    """YAML that means the same after writing."""
    for each in DEFINITIONS:
        path = ROOT / "manifests" / "crds" / each.file_name
        assert yaml.safe_load(path.read_text()) == document(each)


# -- form ----------------------------------------------------------------------------------


def nodes(schema: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every schema inside a schema, with its path."""
    yield path, schema
    for key, inner in (schema.get("properties") or {}).items():
        yield from nodes(inner, f"{path}.{key}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


EVERYWHERE = [
    (path, node)
    for kind, schema in SCHEMAS.items()
    for path, node in nodes(schema, kind)
    if not path.endswith((".apiVersion", ".kind", ".metadata"))
]


def test_everything_is_bounded():
    """Without bounds the API server takes a rule for dearer than it allows."""
    assert len(EVERYWHERE) > 200
    for path, node in EVERYWHERE:
        match node.get("type"):
            case "string":
                assert "maxLength" in node or "enum" in node, path
            case "array":
                assert "maxItems" in node, path
            case "object":
                known = "properties" in node or node.get("x-kubernetes-preserve-unknown-fields")
                assert known, path
            case "integer":
                # As a float64, which is how the API server keeps it, it must be the same.
                assert int(float(node.get("maximum", 0))) == node.get("maximum", 0), path
                assert node.get("maximum", 0) < 2**63 - 1, path
            case "boolean":
                pass
            case other:
                assert node.get("x-kubernetes-int-or-string"), (path, other)


def test_every_field_is_described():
    """docs/resources.md and `kubectl explain` say nothing else."""
    for path, node in EVERYWHERE:
        if not path.endswith("[]"):
            assert len(node.get("description", "")) > 3, path


def test_columns_point_at_fields_that_are_there():
    """A column that can never be filled is a lie."""
    for each in DEFINITIONS:
        for column in each.columns:
            if column.path.startswith((".metadata.", ".status.conditions[")):
                continue
            node: Any = SCHEMAS[each.kind]
            for part in column.path.strip(".").split("."):
                node = node["properties"][part]


def test_names_are_of_our_group_and_category():
    """`kubectl get slash32` lists all of them; every short name is said once."""
    found = [document(each)["spec"]["names"] for each in DEFINITIONS]
    assert all(each["categories"] == ["slash32"] for each in found)
    short = [one for each in found for one in each["shortNames"]]
    assert len(short) == len(set(short)) >= len(DEFINITIONS)


# -- the same fields as the reader ---------------------------------------------------------

INSIDE: dict[str, Any] = {
    "IPPool spec": (POOL, []),
    "Block spec": (
        {"cidr": "10.0.0.0/26", "pool": "p", "affinity": "host:n", "state": "pending"},
        [],
    ),
    "BGPPeer spec": (PEER, []),
    "BGPPeer export": ({**PEER, "export": {}}, ["export"]),
    "BGPPeer password": ({**PEER, "password": REF}, ["password"]),
    "BGPPeer ref": ({**PEER, "password": REF}, ["password", "secretKeyRef"]),
    "BGPFilter spec": ({}, []),
    "BGPFilter exportV4": ({"exportV4": [RULE]}, ["exportV4", 0]),
    "BGPFilter importV6": ({"importV6": [RULE]}, ["importV6", 0]),
    "BGPFilter lengths": (
        {"importV4": [{**RULE, "cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {}}]},
        ["importV4", 0, "prefixLength"],
    ),
    "BGPFilter communities": (
        {"exportV4": [{**RULE, "communities": {"values": ["1:1"]}}]},
        ["exportV4", 0, "communities"],
    ),
    "BGPFilter prepend": (
        {"exportV4": [{**RULE, "operations": [{"prependASPath": {"times": 1}}]}]},
        ["exportV4", 0, "operations", 0, "prependASPath"],
    ),
    "BGPFilter add": (
        {"exportV4": [{**RULE, "operations": [{"addCommunity": {"value": "1:1"}}]}]},
        ["exportV4", 0, "operations", 0, "addCommunity"],
    ),
    "BGPConfiguration spec": ({}, []),
    "BGPConfiguration communities": (
        {"communities": [{"name": "a", "value": "1:1"}]},
        ["communities", 0],
    ),
    "BGPConfiguration advertisements": (
        {"prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["1:1"]}]},
        ["prefixAdvertisements", 0],
    ),
    "NodeStatus status": ({}, []),
    "NodeStatus peer": (
        {"peers": [{"name": "a", "address": "192.0.2.1", "asNumber": 1, "state": "Idle"}]},
        ["peers", 0],
    ),
    "NodeStatus routes": ({"routes": {}}, ["routes"]),
    "NodeStatus addresses": ({"addresses": {}}, ["addresses"]),
    "NodeStatus conditions": (
        {"conditions": [{"type": "Ready", "status": "True", "reason": "x"}]},
        ["conditions", 0],
    ),
}


@pytest.mark.parametrize("where", INSIDE)
def test_the_reader_and_the_schema_know_the_same_fields(where: str):
    """The reader lists what it knows when it meets what it does not."""
    kind, (spec, path) = where.split()[0], INSIDE[where]
    name = "10-0-0-0-26" if kind == "Block" else "a"
    given = resource(kind, copy.deepcopy(spec), name)
    assert refusals(SCHEMAS[kind], given) == []
    from_document(given)
    top = "status" if kind == "NodeStatus" else "spec"
    inner, schema = given[top], SCHEMAS[kind]["properties"][top]
    for step in path:
        inner = inner[step]
        schema = schema["items"] if isinstance(step, int) else schema["properties"][step]
    inner["zz"] = 1
    with pytest.raises(InvalidResource, match=r"unknown field; known: ") as caught:
        from_document(given)
    known = set(caught.value.rule.partition("known: ")[2].split(", "))
    refused = {
        key
        for key, node in schema["properties"].items()
        if {"false"} & {each["rule"] for each in node.get("x-kubernetes-validations", [])}
    }
    assert known - refused == set(schema["properties"]) - refused
    assert "unknown field" in "\n".join(refusals(SCHEMAS[kind], given))


REFUSED = [
    (path, node)
    for path, node in EVERYWHERE
    if "false" in [each["rule"] for each in node.get("x-kubernetes-validations", [])]
]


@pytest.mark.parametrize("index", range(len(REFUSED)))
def test_what_calico_has_and_we_do_not_is_refused_in_the_same_words(index: int):
    """By kubectl and by `slash32 apply`."""
    path, node = REFUSED[index]
    (message,) = [each["message"] for each in node["x-kubernetes-validations"]]
    kind, _, inside = path.partition(".spec.")
    *outer, key = inside.split(".")
    empty: dict[str, Any] = {"integer": 5, "object": {}, "array": []}
    value: Any = {key: empty.get(node["type"], "RemotePeers")}
    if key == "prefix":
        value["times"] = 1
    for step in reversed(outer):
        value = (
            {step[:-2]: [value | RULE if "V" in step else value]} if "[]" in step else {step: value}
        )
    spec = value | (PEER if kind == "BGPPeer" else {})
    assert message in said(kind, spec)
    with pytest.raises(InvalidResource) as caught:
        from_document(resource(kind, spec))
    assert message in str(caught.value)


# -- rules ---------------------------------------------------------------------------------

TAKEN: list[tuple[str, Any]] = [
    ("IPPool", POOL),
    ("IPPool", {"cidr": "fd00:10:244::/64", "blockSize": 128}),
    ("IPPool", {**POOL, "ipipMode": "Never", "vxlanMode": "Never", "natOutgoing": False}),
    ("IPPool", {**POOL, "allowedUses": ["Workload", "Tunnel"], "nodeSelector": "all()"}),
    ("BGPPeer", PEER),
    ("BGPPeer", {"peerIP": "[2001:db8::1]:1790", "asNumber": "65536"}),
    ("BGPPeer", {"peerIP": "192.0.2.1:1790", "asNumber": "1.10", "node": "n"}),
    ("BGPPeer", {"peerIP": "64:ff9b::192.0.2.1", "asNumber": 1, "sourceAddress": "fd00::1"}),
    ("BGPPeer", {"peerSelector": "has(rr)", "nodeSelector": "!has(rr)", "password": REF}),
    ("BGPPeer", {**PEER, "keepaliveTime": "1m", "holdTime": "3m", "sourceAddress": "None"}),
    ("BGPPeer", {**PEER, "maxPrefixes": 10, "maxPrefixAction": "Warn", "nextHopMode": "Self"}),
    ("BGPFilter", {}),
    ("BGPFilter", {"exportV4": [{"action": "Accept", "operations": [{"setMED": {"value": 1}}]}]}),
    ("BGPFilter", {"importV4": [{"action": "Reject", "source": "RemotePeers"}]}),
    ("BGPConfiguration", {}),
    ("BGPConfiguration", {"serviceClusterIPs": [], "bindMode": "NodeIP", "asNumber": "64512"}),
    ("NodeStatus", {"established": "2/3", "version": "0.1.0"}),
]
NOT_TAKEN: list[tuple[str, Any, str]] = [
    ("IPPool", {}, "required"),
    ("IPPool", {"cidr": "10.244.0.1/16"}, "without host bits"),
    ("IPPool", {"cidr": "10.244.0.0"}, "does not match"),
    ("IPPool", {"cidr": "::ffff:10.0.0.0/104"}, "not IPv4-mapped"),
    ("IPPool", {"cidr": "169.254.0.0/17"}, r"169.254.0.0/16 (link-local)"),
    ("IPPool", {"cidr": "0.0.0.0/1"}, "127.0.0.0/8 (loopback)"),
    ("IPPool", {**POOL, "blockSize": 15}, "minimum"),
    ("IPPool", {**POOL, "blockSize": 120}, "must be 20 to 32 for IPv4"),
    ("IPPool", {"cidr": "fd00::/64", "blockSize": 26}, "116 to 128 for IPv6"),
    ("IPPool", {"cidr": "10.244.0.0/28", "blockSize": 26}, "larger than the pool's cidr"),
    ("IPPool", {**POOL, "ipipMode": "Always"}, "must be Never: slash32 routes pods'"),
    ("IPPool", {**POOL, "vxlanMode": "CrossSubnet"}, "must be Never: slash32 routes pods'"),
    ("IPPool", {**POOL, "natOutgoing": True}, "slash32 translates no addresses"),
    ("IPPool", {**POOL, "allowedUses": ["LoadBalancer"]}, "addresses to pods alone"),
    ("IPPool", {**POOL, "assignmentMode": "Sometimes"}, "is not one of"),
    ("BGPPeer", {"asNumber": 1}, "give peerIP or peerSelector"),
    ("BGPPeer", {"peerIP": "192.0.2.1"}, "required beside peerIP"),
    ("BGPPeer", {**PEER, "peerSelector": "all()"}, "exclude each other"),
    ("BGPPeer", {"peerSelector": "all()", "asNumber": 1}, "each node has its own"),
    ("BGPPeer", {**PEER, "node": "a", "nodeSelector": "all()"}, "exclude each other"),
    ("BGPPeer", {**PEER, "asNumber": 0}, "minimum"),
    ("BGPPeer", {**PEER, "asNumber": "0"}, "from 1 to 4294967295"),
    ("BGPPeer", {**PEER, "asNumber": "4294967296"}, "does not match"),
    ("BGPPeer", {**PEER, "peerIP": "192.0.2.1:0"}, "from 1 to 65535"),
    ("BGPPeer", {**PEER, "peerIP": "224.0.0.1"}, "multicast"),
    ("BGPPeer", {**PEER, "peerIP": "fe80::1"}, "link-local"),
    ("BGPPeer", {**PEER, "sourceAddress": "fd00::1"}, "of the family of peerIP"),
    ("BGPPeer", {**PEER, "sourceAddress": "eth0"}, "an address a host may have"),
    ("BGPPeer", {**PEER, "holdTime": "0s"}, "never be noticed"),
    ("BGPPeer", {**PEER, "holdTime": "2s"}, "from 3s to 65535s"),
    ("BGPPeer", {**PEER, "holdTime": "1500ms"}, "does not match"),
    ("BGPPeer", {**PEER, "holdTime": "9s", "keepaliveTime": "4s"}, "a third of holdTime"),
    ("BGPPeer", {**PEER, "maxRestartTime": "2h"}, "at most 4095s"),
    ("BGPPeer", {**PEER, "ttlSecurity": 1, "multihopTTL": 2}, "exclude each other"),
    ("BGPPeer", {**PEER, "maxPrefixAction": "Warn"}, "needs maxPrefixes"),
    ("BGPPeer", {**PEER, "keepOriginalNextHop": True}, "must be false: slash32 announces"),
    ("BGPPeer", {**PEER, "filters": ["a", "a"]}, "duplicate"),
    ("BGPPeer", {**PEER, "password": "secret"}, "is not of type"),
    ("BGPFilter", {"importV4": [{**RULE, "cidr": "10.0.0.0/8"}]}, "go together"),
    (
        "BGPFilter",
        {"importV4": [{**RULE, "cidr": "fd00::/8", "matchOperator": "In"}]},
        "must be of IPv4",
    ),
    (
        "BGPFilter",
        {
            "importV4": [
                {**RULE, "cidr": "10.0.0.0/8", "matchOperator": "Equal", "prefixLength": {}}
            ]
        },
        "matchOperator In or NotIn",
    ),
    (
        "BGPFilter",
        {
            "importV4": [
                {
                    **RULE,
                    "cidr": "10.0.0.0/8",
                    "matchOperator": "In",
                    "prefixLength": {"min": 9, "max": 8},
                }
            ]
        },
        "min must be at most max",
    ),
    ("BGPFilter", {"importV4": [{**RULE, "operations": [{}]}]}, "in export rules alone"),
    (
        "BGPFilter",
        {"exportV4": [{"action": "Reject", "operations": [{"setMED": {"value": 1}}]}]},
        "has no attributes to change",
    ),
    (
        "BGPFilter",
        {"exportV4": [{**RULE, "operations": [{"addCommunity": {"value": "1:1"}}] * 2}]},
        "no community twice",
    ),
    (
        "BGPFilter",
        {"exportV4": [{**RULE, "operations": [{"setMED": {"value": 1}}] * 2}]},
        "may stand once",
    ),
    ("BGPFilter", {"exportV4": [{**RULE, "source": "RemotePeers"}]}, "never match"),
    ("BGPConfiguration", {"serviceClusterIPs": [{"cidr": "10.0.0.0/8"}]}, "must be empty"),
    ("BGPConfiguration", {"bindMode": "None"}, "must be NodeIP"),
    (
        "BGPConfiguration",
        {"communities": [{"name": "a", "value": "1:1"}, {"name": "a", "value": "1:2"}]},
        "duplicate",
    ),
]


@pytest.mark.parametrize(("kind", "spec"), TAKEN)
def test_taken(kind: str, spec: Any):
    """By the schema and by the reader."""
    assert said(kind, spec) == ""
    from_document(resource(kind, spec))


@pytest.mark.parametrize(("kind", "spec", "words"), NOT_TAKEN)
def test_not_taken(kind: str, spec: Any, words: str):
    """By either; the schema in a sentence that says why."""
    assert words in said(kind, spec)
    with pytest.raises(InvalidResource):
        from_document(resource(kind, spec))


BLOCK = {"cidr": "10.0.0.0/26", "pool": "p", "affinity": "host:n", "state": "pending"}


@pytest.mark.parametrize(
    ("kind", "old", "change", "field"),
    [
        ("IPPool", POOL, {"cidr": "10.245.0.0/16"}, ".spec.cidr: cannot be changed"),
        ("IPPool", {**POOL, "blockSize": 26}, {"blockSize": 27}, "blockSize cannot be changed"),
        ("IPPool", POOL, {"blockSize": 27}, "blockSize cannot be changed"),
        ("Block", BLOCK, {"affinity": "host:m"}, ".spec.affinity: cannot be changed"),
        ("Block", BLOCK, {"pool": "q"}, ".spec.pool: cannot be changed"),
    ],
)
def test_what_must_not_change(kind: str, old: Any, change: Any, field: str):
    """Addresses were given out by it. The same object again, and what may change, is taken."""
    name = "10-0-0-0-26" if kind == "Block" else "a"
    assert field in said(kind, {**old, **change}, name, old=old)
    assert said(kind, old, name, old=old) == ""


def test_saying_the_default_block_size_is_no_change():
    """A pool without blockSize has one all the same, by its family and length."""
    for cidr, size in (("10.0.0.0/16", 26), ("10.0.0.0/28", 28), ("fd00::/64", 122)):
        said_size = {"cidr": cidr, "blockSize": size}
        assert said("IPPool", said_size, old={"cidr": cidr}) == ""
        assert said("IPPool", {"cidr": cidr}, old=said_size) == ""
    assert "changed" in said("IPPool", {"cidr": "10.0.0.0/16"}, old={**POOL, "blockSize": 27})


def test_names_that_mean_something():
    """A Block's is its cidr's; there is one BGPConfiguration."""
    assert "the name must be that of the cidr" in said("Block", BLOCK, "mine")
    assert said("Block", BLOCK, "10-0-0-0-26") == ""
    assert "the name must be default" in said("BGPConfiguration", {}, "other")
