"""The router's side: from resources to every vendor's words."""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from click.testing import CliRunner

from routing.cli.main import main
from routing.datastore.resources import parse_resources
from routing.datastore.selector import Selector
from routing.datastore.snapshot import Snapshot, snapshot_of
from routing.torconfig.side import RouterSide, Span, covering, router_sides
from routing.torconfig.vendors import VENDORS

GOLDEN = Path(__file__).parent.parent / "golden" / "tor-config"

CLUSTER = """
apiVersion: slash32.io/v1
kind: IPPool
metadata: {name: pods-v4}
spec: {cidr: 10.244.0.0/16, blockSize: 26}
---
apiVersion: slash32.io/v1
kind: IPPool
metadata: {name: pods-v6}
spec: {cidr: "fd44:10:244::/112", blockSize: 122}
---
apiVersion: slash32.io/v1
kind: IPPool
metadata: {name: hidden}
spec: {cidr: 10.99.0.0/16, disableBGPExport: true}
---
apiVersion: slash32.io/v1
kind: BGPConfiguration
metadata: {name: default}
spec: {asNumber: 64601, nodeToNodeMeshEnabled: false, importAllow: ["0.0.0.0/0"]}
---
apiVersion: v1
kind: Secret
metadata: {name: bgp}
stringData: {tor: hunter2hunter2}
---
apiVersion: slash32.io/v1
kind: BGPPeer
metadata: {name: tor1}
spec:
  peerIP: 192.0.2.1
  asNumber: 64512
  nodeSelector: rack == 'r1'
  ttlSecurity: 1
  password: {secretKeyRef: {name: bgp, key: tor}}
---
apiVersion: slash32.io/v1
kind: BGPPeer
metadata: {name: tor2}
spec:
  peerIP: 198.51.100.1
  asNumber: 64513
  nodeSelector: rack == 'r2'
  passive: true
  holdTime: 30s
"""


def nodes(*entries: tuple[str, str, str, int | None]) -> str:
    """Documents of (name, rack, address, ASN)."""
    return "".join(
        "---\napiVersion: slash32.io/v1\nkind: Node\n"
        f"metadata: {{name: {name}, labels: {{rack: {rack}}}}}\n"
        f"spec: {{addresses: [{address}]{f', bgp: {{asNumber: {asn}}}' if asn else ''}}}\n"
        for name, rack, address, asn in entries
    )


TWO_RACKS = CLUSTER + nodes(
    ("n1", "r1", "192.0.2.11", None),
    ("n2", "r1", "192.0.2.12", None),
    ("n3", "r2", "198.51.100.11", 64701),
    ("n4", "r2", "198.51.100.12", 64702),
)


def snapshot(text: str = TWO_RACKS) -> Snapshot:
    return snapshot_of(parse_resources(text, source="test"))


def sides(text: str = TWO_RACKS, rack: str | None = None) -> list[RouterSide]:
    selector = None if rack is None else Selector.parse(f"rack == '{rack}'")
    return router_sides(snapshot(text), rack=selector)


def test_each_router_gets_the_nodes_that_speak_to_it() -> None:
    """By rack; nodes of one AS number are one group, with the smallest network that has them."""
    one, two = sides()
    assert (one.peer, str(one.address), one.asn) == ("tor1", "192.0.2.1", 64512)
    (group,) = one.groups
    assert (group.asn, [str(a) for a in group.addresses]) == (
        64601,
        ["192.0.2.11", "192.0.2.12"],
    )
    assert str(one.range_of(group)) == "192.0.2.8/29"
    assert [g.asn for g in two.groups] == [64701, 64702]
    assert (two.is_node_passive, two.hold_time_s, two.keepalive_s) == (True, 30, 10)
    assert sides(rack="r1") == [one]
    assert sides(rack="r9") == []
    assert router_sides(snapshot(), peer="tor2") == [two]


def test_what_is_let_in_is_what_nodes_announce_and_no_more() -> None:
    """Pools by their blocks and aggregates; what is not exported, or only routed, is not in it."""
    (one,) = sides(rack="r1")
    pools = (
        Span(ip_network("10.244.0.0/16"), 16, 26),
        Span(ip_network("fd44:10:244::/112"), 112, 122),
    )
    assert one.accepted == pools
    assert one.sent == (Span(ip_network("0.0.0.0/0"), 0, 0), *pools)
    changed = TWO_RACKS.replace(
        'importAllow: ["0.0.0.0/0"]', "aggregate: false, exportPodRoutes: true"
    )
    (one,) = sides(changed, rack="r1")
    assert one.accepted == (
        Span(ip_network("10.244.0.0/16"), 26, 32),
        Span(ip_network("fd44:10:244::/112"), 122, 128),
    )
    assert one.sent == one.accepted


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_password_is_nowhere_and_its_place_is_marked(vendor: str) -> None:
    """What is printed may be pasted into a ticket."""
    (one,) = sides(rack="r1")
    text = VENDORS[vendor](one)
    assert "hunter2" not in text
    assert "hunter2" not in repr(one)
    # In the words at the top, and once or (by name) once a node.
    assert text.count("REPLACE-WITH-SECRET-bgp-tor") == (
        3 if vendor in ("gobgp", "openbgpd") else 2
    )
    (without,) = sides(rack="r2")
    assert "REPLACE-WITH-SECRET" not in VENDORS[vendor](without)


@pytest.mark.parametrize("vendor", VENDORS)
def test_every_vendors_words_are_those_kept(vendor: str) -> None:
    """Goldens, rack r1: range, policy, limit, key, GTSM, graceful restart, timers; r2: neighbours.

    UPDATE_GOLDEN=1 writes them anew; then read the difference.
    """
    text = "".join(VENDORS[vendor](side) for side in sides())
    file = GOLDEN / f"{vendor}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def test_a_route_reflector_has_the_nodes_as_clients() -> None:
    """A router of the nodes' own AS number: every dialect that has the word says it."""
    (one,) = sides(TWO_RACKS.replace("asNumber: 64512", "asNumber: 64601"), rack="r1")
    words = {
        "frr": "route-reflector-client",
        "bird": "rr client",
        "gobgp": "route-reflector-client = true",
        "openbgpd": "route-reflector",
        "eos": "route-reflector-client",
        "nxos": "route-reflector-client",
        "junos": "cluster 192.0.2.1",
        "sonic": "route-reflector-client",
    }
    for vendor, word in words.items():
        assert word in VENDORS[vendor](one)


def test_the_smallest_network_that_has_them_all() -> None:
    """Of one family; one address is a network of its own."""
    assert str(covering([ip_address("10.0.0.7")])) == "10.0.0.7/32"
    assert str(covering([ip_address("10.0.0.7"), ip_address("10.0.0.8")])) == "10.0.0.0/28"
    assert str(covering([ip_address("::1"), ip_address("::")])) == "::/127"
    assert str(covering([ip_address("1.0.0.0"), ip_address("255.0.0.0")])) == "0.0.0.0/0"


def run(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    store = str(tmp_path / "store.db")
    runner = CliRunner()
    applied = runner.invoke(main, ["apply", "--store", store, "-f", "-"], input=TWO_RACKS)
    assert applied.exit_code == 0, applied.output
    done = runner.invoke(main, ["tor-config", "--store", store, *arguments])
    return done.exit_code, done.output


def test_the_command_prints_one_part_a_router(tmp_path: Path) -> None:
    """From the store, by rack label, selector or peer."""
    code, text = run(tmp_path, "--vendor", "frr")
    assert (code, text.count("! The router ")) == (0, 2)
    for chosen in (["--rack", "r1"], ["--rack", "rack=r1"], ["--rack", "rack in {'r1'}"]):
        code, text = run(tmp_path, "--vendor", "bird", *chosen)
        assert (code, text.count("# The router ")) == (0, 1)
        assert "neighbor range 192.0.2.8/29 as 64601;" in text
    code, text = run(tmp_path, "--vendor", "frr", "--rack", "r1", "--listen-range", "192.0.2.0/24")
    assert "bgp listen range 192.0.2.0/24 peer-group SLASH32" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rack", "r9"], "no node with --rack r9 has a session with a router"),
        (["--peer", "tor9"], "by BGPPeer tor9"),
        (["--rack", "rack =="], "--rack"),
        (["--rack", "r1", "--listen-range", "10.0.0.0/8"], "192.0.2.11 is not in it"),
        (["--rack", "r1", "--listen-range", "nonsense"], "--listen-range nonsense"),
        (["--rack", "r2", "--listen-range", "198.51.100.0/24"], "several AS numbers"),
    ],
)
def test_what_cannot_be_printed_is_said(tmp_path: Path, arguments: list[str], said: str) -> None:
    """Exit 2, one sentence, nothing printed that could be pasted."""
    code, text = run(tmp_path, "--vendor", "frr", *arguments)
    assert code == 2
    assert said in text
    assert "router bgp" not in text
