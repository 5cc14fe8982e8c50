"""Documents to resources and back: what is accepted, and which sentence refuses the rest."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from cni.ipam.block import BlockState
from routing.datastore.documents import DEPTH_MAX, INPUT_MAX_BYTES, dump, load
from routing.datastore.resources import (
    block_name,
    from_document,
    kind_of,
    parse_resources,
    resolve_kind,
    to_document,
)
from routing.datastore.snapshot import InvalidResource, Meta


def read(given) -> Any:
    return from_document(given)


def document(kind: str, name: Any = "x", metadata=None, **spec):
    return {
        "apiVersion": "slash32.io/v1",
        "kind": kind,
        "metadata": {"name": name} | (metadata or {}),
        "spec": spec,
    }


def pool(**spec):
    return document("IPPool", "default", **({"cidr": "10.244.0.0/16"} | spec))


def peer(**spec):
    return document("BGPPeer", "tor", **({"peerIP": "192.0.2.1", "asNumber": 64512} | spec))


def refusal(given) -> str:
    with pytest.raises(InvalidResource) as caught:
        from_document(given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- accepted ------------------------------------------------------------------------------


def test_a_pool_has_calicos_defaults():
    """/26 and /122 blocks, enabled, for every node; encapsulation fields may say Never."""
    four = read(pool(ipipMode="Never", vxlanMode="Never", natOutgoing=False))
    six = read(pool(cidr="fd00:10:244::/64"))
    small = read(pool(cidr="10.0.0.0/28"))

    assert (four.cidr, four.block_size) == (ip_network("10.244.0.0/16"), 26)
    assert (four.disabled, four.node_selector) == (False, "all()")
    assert (six.block_size, small.block_size) == (122, 28)


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("192.0.2.1", "192.0.2.1", 179),
        ("192.0.2.1:1179", "192.0.2.1", 1179),
        ("2001:db8::1", "2001:db8::1", 179),
        ("[2001:db8::1]:1179", "2001:db8::1", 1179),
        ("127.0.0.1:1179", "127.0.0.1", 1179),
    ],
)
def test_a_peer_is_an_address_with_or_without_a_port(text, address, port):
    """As Calico's peerIP; written back in the shortest form."""
    found = read(peer(peerIP=text))

    assert (found.peer_ip, found.port) == (ip_address(address), port)
    assert to_document(found)["spec"]["peerIP"] == text


@pytest.mark.parametrize(
    ("given", "asn"),
    [
        (1, 1),
        (4294967295, 4294967295),
        ("64512", 64512),
        ("1.10", 65546),
        ("65535.65535", 2**32 - 1),
    ],
)
def test_an_as_number_may_be_a_number_text_or_asdot(given, asn):
    """As Calico reads them (RFC 5396)."""
    assert read(peer(asNumber=given)).asn == asn


@pytest.mark.parametrize(
    ("spec", "hold_s"),
    [
        ({}, 9),
        ({"holdTime": "3s"}, 3),
        ({"holdTime": "1m30s"}, 90),
        ({"holdTime": "18h12m15s"}, 65535),
        ({"keepaliveTime": "30s"}, 90),
        ({"keepaliveTime": "30s", "holdTime": "90s"}, 90),
    ],
)
def test_the_hold_time_follows_from_either_field(spec, hold_s):
    """keepaliveTime is a third of holdTime, given alone or together."""
    assert read(peer(**spec)).hold_time_s == hold_s


def test_nodes_peers_configuration_and_blocks_are_read_whole():
    """Every field of every kind ends where it belongs."""
    node = read(
        document("Node", "n", addresses=["fd00::1", "192.0.2.1"], bgp={"asNumber": "64601"})
    )
    a_peer = read(peer(nodeSelector="has(rack)", sourceAddress="192.0.2.9", maxRestartTime="4095s"))
    configuration = read(
        document(
            "BGPConfiguration",
            "default",
            asNumber=65000,
            listenPort=1179,
            importAllow=["0.0.0.0/0", "::/0"],
        )
    )
    block = read(
        document(
            "Block",
            "10-0-0-64-26",
            cidr="10.0.0.64/26",
            pool="p",
            affinity="host:n1",
            state="pendingDeletion",
        )
    )

    assert (node.addresses, node.asn) == ((ip_address("192.0.2.1"), ip_address("fd00::1")), 64601)
    assert (a_peer.node_selector, a_peer.max_restart_time_s) == ("has(rack)", 4095)
    assert a_peer.source_address == ip_address("192.0.2.9")
    assert configuration.import_allow == (ip_network("0.0.0.0/0"), ip_network("::/0"))
    assert (configuration.asn, configuration.listen_port) == (65000, 1179)
    assert (block.block.node, block.block.pool) == ("n1", "p")
    assert block.block.state is BlockState.PENDING_DELETION


def test_a_node_may_be_only_a_name():
    """Spec is optional where nothing in it is required."""
    given = {"apiVersion": "slash32.io/v1", "kind": "Node", "metadata": {"name": "n"}}

    assert read(given).addresses == ()


def test_metadata_is_kept():
    """Labels, annotations, and what a store put there."""
    given = document(
        "Node",
        metadata={
            "labels": {"topology.kubernetes.io/rack": "r1", "empty": ""},
            "annotations": {"note": "any text\nat all"},
            "resourceVersion": "12",
            "uid": "u",
            "generation": 3,
        },
    )

    meta = read(given).meta

    assert meta == Meta(
        "x",
        {"topology.kubernetes.io/rack": "r1", "empty": ""},
        {"note": "any text\nat all"},
        "12",
        "u",
        3,
    )


@pytest.mark.parametrize(
    ("cidr", "name"),
    [
        ("10.244.1.0/26", "10-244-1-0-26"),
        ("fd44:10:244::/122", "fd44-10-244---122"),
        ("fd44:10:244::40/122", "fd44-10-244--40-122"),
    ],
)
def test_a_block_is_named_after_its_cidr(cidr, name):
    """A DNS-1123 name, which a CIDR is not."""
    assert block_name(ip_network(cidr)) == name


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("ippool", "IPPool"),
        ("IPPools", "IPPool"),
        ("bgppeers", "BGPPeer"),
        ("bgpconfig", "BGPConfiguration"),
        ("bgpconfigurations", "BGPConfiguration"),
        ("nodes", "Node"),
        ("block", "Block"),
        ("pods", None),
    ],
)
def test_operators_name_kinds_as_they_like(word, kind):
    """Any case, singular and plural, and the short name."""
    assert resolve_kind(word) == kind


# -- refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kind": "IPPool"}, "IPPool '': apiVersion = None: is required and was not given"),
        (
            {"kind": "IPPool", "apiVersion": "projectcalico.org/v3"},
            "IPPool '': apiVersion = 'projectcalico.org/v3': must be slash32.io/v1",
        ),
        ({"kind": 5}, "document '': kind = 5: must be one of IPPool, Node,"),
        ({}, "document '': kind = None: is required"),
        (document("Pod"), "Pod 'x': kind = 'Pod': must be one of"),
        (pool() | {"spec": None}, "IPPool 'default': spec = None: must be a mapping"),
        (pool() | {"state": {}}, "IPPool 'default': state = {}: unknown field; known: kind,"),
        (pool() | {"status": 1}, "IPPool 'default': status = 1: must be a mapping"),
        (pool() | {"metadata": {}}, "metadata.name = None: is required"),
        (document("Node", 5), "Node '': metadata.name = 5: must be a DNS-1123 subdomain"),
        (document("Node", "Upper"), "metadata.name = 'Upper': must be a DNS-1123 subdomain"),
        (document("Node", "a" * 254), "must be a DNS-1123 subdomain"),
        (document("Node", "a" * 64), "must be a DNS-1123 subdomain"),
        (document("Node", "a\n"), "metadata.name = 'a\\n': must be a DNS-1123 subdomain"),
        (document("Node", "a..b"), "must be a DNS-1123 subdomain"),
        (document("Node", metadata={"namespace": "d"}), "metadata.namespace = 'd': unknown field"),
        (document("Node", metadata={"labels": {"-": "x"}}), "metadata.labels.- = 'x': is not a"),
        (document("Node", metadata={"labels": {"a": 1}}), "metadata.labels.a = 1: must be text"),
        (document("Node", metadata={"labels": {"a": "x y"}}), "labels.a = 'x y': must be text"),
        (
            document("Node", metadata={"labels": ["a"]}),
            "metadata.labels = ['a']: must be a mapping",
        ),
        (
            document("Node", metadata={"labels": {f"l{i}": "" for i in range(257)}}),
            "metadata.labels = 257: must have at most 256 entries",
        ),
        (document("Node", metadata={"annotations": {"a": None}}), "annotations.a = None: must be"),
        (
            document("Node", metadata={"annotations": {"a": "x" * 300_000}}),
            "metadata.annotations = 300001: must be at most 262144 bytes in all",
        ),
        (document("Node", metadata={"resourceVersion": 5}), "resourceVersion = 5: must be text"),
        (document("Node", metadata={"uid": "a b"}), "metadata.uid = 'a b': must be at most 64"),
        (
            document("Node", metadata={"generation": -1}),
            "metadata.generation = -1: must be a whole",
        ),
    ],
)
def test_what_every_kind_refuses(given, sentence):
    """The sentence names kind, name, field, value and rule."""
    assert sentence in refusal(given)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"cidr": "10.0.0.1/16"}, "spec.cidr = '10.0.0.1/16': has host bits set; the network is"),
        ({"cidr": "10.0.0.0"}, "spec.cidr = '10.0.0.0': must be a network such as"),
        ({"cidr": "10.0.0.0/33"}, "must be a network such as"),
        ({"cidr": "10.0.0.0/255.255.0.0"}, "must be a network such as"),
        ({"cidr": "fd00::%eth0/64"}, "must be a network such as"),
        ({"cidr": 10}, "spec.cidr = 10: must be a network such as"),
        ({"cidr": None}, "spec.cidr = None: must be a network such as"),
        ({"cidr": "x" * 500}, "spec.cidr = '" + "x" * 120 + "…': must be a network"),
        ({"cidr": "169.254.0.0/24"}, "must not reach into 169.254.0.0/16 (link-local)"),
        ({"cidr": "224.0.0.0/24"}, "must not reach into 224.0.0.0/4 (multicast)"),
        ({"cidr": "127.0.0.0/24"}, "must not reach into 127.0.0.0/8 (loopback)"),
        ({"cidr": "0.0.0.0/0"}, "must not reach into 0.0.0.0/8 (this network)"),
        ({"cidr": "240.0.0.0/8"}, "must not reach into 240.0.0.0/4 (reserved)"),
        ({"cidr": "fe80::/64"}, "must not reach into fe80::/10 (link-local)"),
        ({"cidr": "ff02::/64"}, "must not reach into ff00::/8 (multicast)"),
        ({"cidr": "::/64"}, "must not reach into ::/128 (unspecified)"),
        ({"cidr": "::ffff:10.0.0.0/112"}, "must not be IPv4-mapped; write 10.0.0.0/16"),
        ({"blockSize": 19}, "spec.blockSize = 19: must be a whole number from 20 to 32"),
        ({"blockSize": 33}, "must be a whole number from 20 to 32"),
        ({"blockSize": True}, "spec.blockSize = True: must be a whole number"),
        ({"blockSize": "26"}, "spec.blockSize = '26': must be a whole number"),
        ({"blockSize": 26.0}, "spec.blockSize = 26.0: must be a whole number"),
        ({"cidr": "fd00::/64", "blockSize": 115}, "must be a whole number from 116 to 128"),
        ({"cidr": "10.0.0.0/27", "blockSize": 26}, "a /26 block is larger than 10.0.0.0/27"),
        ({"disabled": "no"}, "spec.disabled = 'no': must be true or false"),
        ({"nodeSelector": "rack = 'a'"}, "is not a selector: expected ==,"),
        ({"nodeSelector": ""}, "must not be empty; write all() for everything"),
        ({"nodeSelector": None}, "spec.nodeSelector = None: must be a selector"),
        ({"ipipMode": "Always"}, "spec.ipipMode = 'Always': must be Never: slash32 routes"),
        ({"vxlanMode": "CrossSubnet"}, "spec.vxlanMode = 'CrossSubnet': must be Never"),
        ({"natOutgoing": True}, "spec.natOutgoing = True: must be false: slash32 translates no"),
        ({"natOutgoing": 0}, "spec.natOutgoing = 0: must be false"),
        ({"uses": []}, "spec.uses = []: unknown field; known: cidr, blockSize"),
        ({"allowedUses": ["Workload", "LoadBalancer"]}, "allowedUses[1] = 'LoadBalancer': slash32"),
        ({"allowedUses": ["Tunnel"]}, "spec.allowedUses = ['Tunnel']: must have Workload"),
        ({"allowedUses": ["Other"]}, "spec.allowedUses[0] = 'Other': must be one of Workload, T"),
        ({"assignmentMode": "manual"}, "assignmentMode = 'manual': must be one of Automatic, Ma"),
        ({"namespaceSelector": "x ="}, "spec.namespaceSelector = 'x =': is not a selector"),
        ({"disableBGPExport": 1}, "spec.disableBGPExport = 1: must be true or false"),
        ({"x" * 200: 1}, "spec." + "x" * 80 + " = 1: unknown field"),
    ],
)
def test_what_a_pool_refuses(spec, sentence):
    """One sentence each, never an exception of a library."""
    assert sentence in refusal(pool(**spec))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"asNumber": 0}, "spec.asNumber = 0: must be an AS number from 1 to 4294967295"),
        ({"asNumber": 4294967296}, "must be an AS number"),
        ({"asNumber": -1}, "must be an AS number"),
        ({"asNumber": True}, "spec.asNumber = True: must be an AS number"),
        ({"asNumber": 1.1}, 'write asdot in quotes, such as "1.10"'),
        ({"asNumber": "0.0"}, "must be an AS number"),
        ({"asNumber": "1.65536"}, "must be an AS number"),
        ({"asNumber": "AS64512"}, "must be an AS number"),
        ({"asNumber": "٦٤"}, "must be an AS number"),
        ({"asNumber": None}, "must be an AS number"),
        ({"peerIP": "192.0.2.1:0"}, "spec.peerIP = '192.0.2.1:0': the port must be from 1"),
        ({"peerIP": "192.0.2.1:65536"}, "the port must be from 1 to 65535"),
        ({"peerIP": "192.0.2.999"}, "must be an address, a.b.c.d:port or [v6]:port"),
        ({"peerIP": "tor.example"}, "must be an address"),
        ({"peerIP": "2001:db8::1%eth0"}, "must be an address"),
        ({"peerIP": "192.0.2.1 ; } process x { run sh; }"}, "must be an address"),
        ({"peerIP": "192.0.2.1\n"}, "must be an address"),
        ({"peerIP": 3221225985}, "must be an address"),
        ({"peerIP": "::"}, "must not be an unspecified, multicast or link-local address"),
        ({"peerIP": "224.0.0.1"}, "must not be an unspecified, multicast"),
        ({"peerIP": "fe80::1"}, "must not be an unspecified, multicast"),
        ({"peerIP": "255.255.255.255"}, "must not be the broadcast address"),
        ({"node": "a", "nodeSelector": "all()"}, "node and nodeSelector exclude each other"),
        ({"node": "A b"}, "spec.node = 'A b': must be a DNS-1123 subdomain"),
        ({"node": None}, "spec.node = None: must be a DNS-1123 subdomain"),
        ({"nodeSelector": "has("}, "spec.nodeSelector = 'has(': is not a selector: expected a"),
        ({"sourceAddress": "useNodeIP"}, "spec.sourceAddress = 'useNodeIP': must be an IPv4 or"),
        ({"sourceAddress": "fd00::1"}, "must be of the family of peerIP"),
        ({"holdTime": "0s"}, "spec.holdTime = '0s': must not be 0"),
        ({"holdTime": "2s"}, "spec.holdTime = '2s': must be from 3s to 65535s (RFC 4271)"),
        ({"holdTime": "65536s"}, "must be from 3s to 65535s"),
        ({"holdTime": 9}, "spec.holdTime = 9: must be a duration"),
        ({"holdTime": "9"}, "must be a duration"),
        ({"holdTime": "9.5s"}, "must be a duration"),
        ({"holdTime": ""}, "must be a duration"),
        ({"keepaliveTime": "0s"}, "spec.holdTime = '0s': must not be 0"),
        ({"keepaliveTime": "10s", "holdTime": "90s"}, "must be a third of holdTime (90s)"),
        ({"maxRestartTime": "4096s"}, "must be at most 4095s (RFC 4724)"),
        ({"password": "x"}, "spec.password = '***': must be a mapping"),
    ],
)
def test_what_a_peer_refuses(spec, sentence):
    """Above all whatever could end in ExaBGP's configuration as something else."""
    assert sentence in refusal(peer(**spec))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (document("Node", addresses="192.0.2.1"), "spec.addresses = '192.0.2.1': must be a list"),
        (document("Node", addresses=["192.0.2.1", "192.0.2.2"]), "at most one of each family"),
        (document("Node", addresses=["192.0.2.1/24"]), "spec.addresses[0] = '192.0.2.1/24': must"),
        (document("Node", addresses=["127.0.0.1"]), "must not be a loopback address"),
        (document("Node", addresses=["1.1.1.1"] * 3), "must have at most 2 items"),
        (document("Node", bgp={"asNumber": 0}), "spec.bgp.asNumber = 0: must be an AS number"),
        (document("Node", bgp={"asn": 1}), "spec.bgp.asn = 1: unknown field; known: asNumber"),
        (document("Node", bgp=[]), "spec.bgp = []: must be a mapping"),
        (document("BGPConfiguration", "other"), "metadata.name = 'other': must be default"),
        (
            document("BGPConfiguration", "default", listenPort=0),
            "spec.listenPort = 0: must be a whole number from 1 to 65535",
        ),
        (
            document("BGPConfiguration", "default", importAllow=["10.0.0.1/8"]),
            "spec.importAllow[0] = '10.0.0.1/8': has host bits set",
        ),
        (
            document("BGPConfiguration", "default", importAllow=["::/0", "0::/0"]),
            "spec.importAllow = '::/0': is given twice",
        ),
        (
            document("BGPConfiguration", "default", importAllow=["::/0"] * 257),
            "must have at most 256 items",
        ),
        (document("Block", cidr="10.0.0.0/26"), "metadata.name = 'x': must be 10-0-0-0-26"),
        (
            document("Block", "10-0-0-0-26", cidr="10.0.0.0/26", pool="p", affinity="n", state="x"),
            "spec.affinity = 'n': must be host:<node name>",
        ),
        (
            document(
                "Block", "10-0-0-0-26", cidr="10.0.0.0/26", pool="p", affinity="host:n", state="x"
            ),
            "spec.state = 'x': must be one of pending, confirmed, pendingDeletion",
        ),
        (
            document(
                "Block", "10-0-0-0-26", cidr="10.0.0.0/26", pool="p", affinity="host:n", state=[]
            ),
            "spec.state = []: must be one of",
        ),
    ],
)
def test_what_the_other_kinds_refuse(given, sentence):
    """One sentence each."""
    assert sentence in refusal(given)


# -- text ----------------------------------------------------------------------------------

TWO = """
apiVersion: slash32.io/v1
kind: IPPool
metadata: {name: default}
spec:
  cidr: 10.244.0.0/16
---
# nothing but a remark
---
apiVersion: v1
kind: List
metadata: {resourceVersion: ""}
items:
- apiVersion: slash32.io/v1
  kind: Node
  metadata: {name: node-a, labels: {rack: "1"}}
- {apiVersion: slash32.io/v1, kind: Node, metadata: {name: node-b}}
"""


def test_several_documents_and_lists_are_opened():
    """In the order of the text; empty documents are passed over."""
    found = parse_resources(TWO, source="f")

    assert [(kind_of(r), r.meta.name) for r in found] == [
        ("IPPool", "default"),
        ("Node", "node-a"),
        ("Node", "node-b"),
    ]


def test_json_is_read_too():
    """Indented or not, surrogate pairs and all."""
    high = document("Node", metadata={"annotations": {"a": "\U00010000"}})
    (node,) = parse_resources(json.dumps(high), source="f")
    assert node.meta.annotations == {"a": "\U00010000"}
    for indent in (None, 2):
        found = parse_resources(json.dumps(pool(), indent=indent), source="f")
        assert found == [read(pool())]


def nested(levels: int) -> str:
    return "a: " + "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "f: holds no resource"),
        ("---\n---\n", "f: holds no resource"),
        ("- a\n", "f: a document must be a mapping with apiVersion and kind"),
        ("just words", "f: a document must be a mapping"),
        ("a: &x 1\n", "f: line 1: anchors and aliases are not accepted"),
        ("a: 1\nb: *x\n", "f: line 2: anchors and aliases are not accepted"),
        ("a: !!python/object/apply:os.system [id]", "f: line 1: tags (such as '"),
        ("a: ! x", "f: line 1: tags"),
        ("kind: A\nkind: B\n", "f: line 2: 'kind' is given twice"),
        ("spec: {a: 1, a: 2}", "f: line 1: 'a' is given twice"),
        ('{"kind": "A", "kind": "B"}', "f: 'kind' is given twice"),
        ('{"a": "\\ud800"}', "f: has half a surrogate pair in a text"),
        ('{"a": ' + "[" * DEPTH_MAX + "]" * DEPTH_MAX + "}", "f: nested deeper than 32 levels"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "f: line 1"),
        ("1: x", "f: line 1: a key must be text"),
        ("[a]: x", "f: line 1: a key must be text"),
        ("a: [", "f: line"),
        ("a: b: c", "f: line 1, column"),
        ("a: \x00", "f: is not YAML"),
        ("a: \ud800", "f: is not text in UTF-8"),
        (nested(DEPTH_MAX), f"f: line 1: nested deeper than {DEPTH_MAX} levels"),
        # Newer libyaml refuses it before we can, in its own words.
        (nested(100_000), "f: line 1"),
        ("# " + "x" * INPUT_MAX_BYTES, "f: is larger than 1048576 bytes (1 MiB)"),
        (
            TWO + "---" + TWO.replace("node-b", "node-c"),
            "IPPool 'default': metadata.name = 'default': is",
        ),
        (
            "kind: List\napiVersion: v2\n",
            "List 'f': apiVersion = 'v2': must be v1 or slash32.io/v1",
        ),
        ("kind: List\napiVersion: v1\nitems: [1]\n", "List 'f': items[0] = 1: must be a resource"),
        (
            "kind: List\napiVersion: v1\nitems: [{kind: List}]\n",
            "items[0] = {'kind': 'List'}: must",
        ),
        ("kind: List\napiVersion: v1\nmore: 1\n", "List 'f': more = 1: unknown field"),
        ("kind: List\napiVersion: v1\nmetadata: {a: b}\n", "metadata.a = 'b': unknown field"),
    ],
)
def test_text_that_is_refused(text, sentence):
    """Quickly, in one line, and nothing of it is believed."""
    with pytest.raises(InvalidResource) as caught:
        parse_resources(text, source="f")

    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_1_1s_surprises_are_plain_text():
    """no, 0x10, 12:30, 1_000, dates and << are what they look like."""
    (found,) = load("a: [no, 0x10, 12:30, 1_000, 2026-11-24, 010, .5, 1e3, ~, True]", source="f")

    assert found["a"] == [
        "no", "0x10", "12:30", "1_000", "2026-11-24", 10, 0.5, 1000.0, None, True
    ]  # fmt: skip


def test_what_is_written_is_read_back_as_it_was():
    """Text that looks like something else is quoted."""
    tricky = ["no", "1e3", "09", "0x1", "~", "", "1.5", "true", "a: b", "ü\n", "- x", "é" * 200]

    assert load(dump([{"a": tricky}]), source="f") == [{"a": tricky}]


def test_long_values_are_cut_in_errors():
    """A megabyte of nonsense is not repeated to the operator."""
    for value in ("x" * 10_000, ["x"] * 10_000, {str(i): i for i in range(10_000)}):
        assert len(refusal(pool(cidr=value))) < 400


def test_a_refusal_is_one_line_whatever_a_field_is_called():
    """It ends in a log and in a terminal."""
    document = {"apiVersion": "slash32.io/v1", "kind": "Node", "metadata": {"name": "n"}}
    with pytest.raises(InvalidResource) as caught:
        from_document(document | {"spec": {"a\nb\x1b[2J": 1}})
    assert str(caught.value).isprintable()
    assert r"spec.a\nb" in str(caught.value)


def test_a_peer_whose_state_is_empty_reads_back():
    """A required field is written, whatever stands in it; found by fuzzing."""
    peer = {"name": "", "address": "192.0.2.1", "asNumber": 64512, "state": ""}
    document = {"apiVersion": "slash32.io/v1", "kind": "NodeStatus", "metadata": {"name": "n"}}
    status = from_document(document | {"status": {"peers": [peer]}})
    assert from_document(to_document(status)) == status


def test_what_a_later_version_wrote_is_read_without_what_is_unknown() -> None:
    """From a store alone: in what people write it is a mistake, at any depth."""
    known = {
        "apiVersion": "slash32.io/v1", "kind": "BGPPeer", "metadata": {"name": "tor"},
        "spec": {"peerIP": "192.0.2.1", "asNumber": 64512},
    }  # fmt: skip
    later = {**known, "spec": {**known["spec"], "later": {"deep": [1]}}, "alsoLater": True}  # type: ignore[dict-item]
    assert from_document(later, is_stored=True) == from_document(known)
    with pytest.raises(InvalidResource, match="later"):
        from_document(later)
    wrong = {**later, "spec": {**later["spec"], "asNumber": -1}}  # type: ignore[dict-item]
    with pytest.raises(InvalidResource, match="asNumber"):
        from_document(wrong, is_stored=True)
