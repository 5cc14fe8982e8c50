"""The lab's plan, configurations, texts and state: everything of it that touches nothing."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import pytest
import yaml

from lab import capture, demo, probes, report, routers, runtime, state
from lab.plan import (
    POOLS,
    InvalidShape,
    LabFailure,
    LabPaths,
    Shape,
    plan_lab,
    resources,
)
from lab.processes import Process
from routing.datastore.resources import API_VERSION, parse_resources
from routing.datastore.snapshot import NodeResource
from routing.settings import SOCKET_PATH_MAX_BYTES

LONGEST_NAME = "a" * 20
BIGGEST = Shape(nodes=100, tors=4, pods=60)


def test_every_address_and_every_name_of_the_biggest_lab_is_given_once():
    """Two interfaces never share an address, two machines never a namespace."""
    plan = plan_lab("big", BIGGEST)
    ends = [end for link in plan.links for end in (link.router_end, link.far_end)]
    addresses = [str(a.ip) for end in ends for a in end.addresses]

    assert len(addresses) == len(set(addresses))
    assert len(plan.namespaces) == len(set(plan.namespaces))
    ids = [pod.container_id for pod in plan.pods]
    assert len(ids) == len(set(ids)) == 6000


def test_link_ends_are_alone_in_a_subnet_of_two():
    """Each link is a /31 (and a /127) that holds its two ends and overlaps no other."""
    plan = plan_lab("big", BIGGEST)
    seen = set()
    for link in plan.links:
        for near, far in zip(link.router_end.addresses, link.far_end.addresses, strict=True):
            assert near.network == far.network
            assert near.network.num_addresses == 2
            assert near.ip + 1 == far.ip
            assert near.network not in seen
            seen.add(near.network)


def test_links_stay_clear_of_pods_and_of_the_client():
    """What a pool may hand out is on no link, or a pod could take a machine's address."""
    plan = plan_lab("big", BIGGEST)
    for link in plan.links:
        for address in link.router_end.addresses:
            for _, cidr, _ in POOLS:
                assert address.version != cidr.version or address.ip not in cidr
            for own in plan.client.loopback:
                assert address.version != own.version or address.ip not in own.network


def test_interface_names_fit_the_kernel_and_socket_paths_fit_a_sockaddr():
    """IFNAMSIZ and sun_path are the two limits a long name runs into first."""
    plan = plan_lab(LONGEST_NAME, BIGGEST)
    names = [e.ifname for link in plan.links for e in (link.router_end, link.far_end)]
    assert max(len(name) for name in names) <= 15
    root = state.RUN_ROOT / LONGEST_NAME
    paths = LabPaths(root, root)
    longest = max(
        len(str(paths.run_dir("node100") / "agent.sock")), len(str(paths.bird_socket("tor4")))
    )
    assert longest <= SOCKET_PATH_MAX_BYTES


def test_a_node_has_one_link_per_router_and_none_to_another_node():
    """A packet between nodes must cross a router, where the capture is."""
    plan = plan_lab("x", Shape(nodes=3, tors=2))
    for node in plan.nodes:
        far_ends = [far.machine for _, far in plan.links_of(node)]
        assert far_ends == list(plan.tors)
        assert [near.ifname for near, _ in plan.links_of(node)] == ["uplink0", "uplink1"]


def test_a_lab_of_ipv4_alone_has_no_ipv6_anywhere():
    """--families v4 leaves IPv6 out of links, pools, routers and the client."""
    plan = plan_lab("x", Shape(tors=2, dual_stack=False))
    text = "".join(str(r) for r in resources(plan, "v1"))
    text += routers.bird_conf(plan, plan.tors[0])
    text += str([a for m in plan.machines for a in plan.addresses_of(m)])
    assert "::" not in text
    assert "ipv6" not in text


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"nodes": 0}, "--nodes 0: must be from 1 to 100"),
        ({"nodes": 101}, "--nodes 101: must be from 1 to 100"),
        ({"tors": 5}, "--tors 5: must be from 1 to 4"),
        ({"pods": -1}, "--pods -1: must be from 0 to 60"),
    ],
)
def test_a_figure_out_of_range_is_refused_with_option_value_and_rule(figures, words):
    """The sentence says what to type instead."""
    with pytest.raises(InvalidShape) as refusal:
        Shape(**figures)
    assert str(refusal.value) == words


@pytest.mark.parametrize("name", ["", "../etc", "Lab", "a" * 21, "-a", "a-", "a b", "a\n", "ä"])
def test_a_name_that_could_lead_elsewhere_is_refused(name):
    """A lab's name becomes a directory and a namespace."""
    with pytest.raises(InvalidShape, match="--name"):
        plan_lab(name, Shape())


def test_an_unknown_target_is_refused_with_the_names_there_are():
    """Somebody who mistypes a node is shown the nodes."""
    plan = plan_lab("x", Shape(nodes=1, pods=1))
    assert plan.namespace_of("node1-pod1") == "s32-x-node1-pod1"
    with pytest.raises(LabFailure, match="client, node1, node1-pod1, tor1"):
        plan.namespace_of("node9")


def test_resources_name_every_peer_of_every_node_and_only_the_default_beyond_pools():
    """Each node peers with each router by that link's address, and has an ASN of its own."""
    plan = plan_lab("x", Shape(nodes=2, tors=2))
    found = resources(plan, "example/v1")
    peers = {r["metadata"]["name"]: r["spec"] for r in found if r["kind"] == "BGPPeer"}
    nodes = {r["metadata"]["name"]: r["spec"] for r in found if r["kind"] == "Node"}
    (bgp,) = [r["spec"] for r in found if r["kind"] == "BGPConfiguration"]

    assert {r["apiVersion"] for r in found} == {"example/v1"}
    assert peers["node2-tor2"] == {"node": "node2", "peerIP": "172.30.1.2", "asNumber": 64512}
    assert len(peers) == 4
    assert [spec["bgp"]["asNumber"] for spec in nodes.values()] == [64601, 64602]
    assert bgp == {"importAllow": ["0.0.0.0/0", "::/0"], "nodeToNodeMeshEnabled": False}
    assert [r["spec"] for r in found if r["kind"] == "IPPool"] == [
        {"cidr": "10.244.0.0/16", "blockSize": 26},
        {"cidr": "fd44:10:244::/112", "blockSize": 122},
    ]


def test_the_resources_are_ones_that_apply_takes():
    """Read by the real reader, they come out as what the plan says."""
    plan = plan_lab("x", Shape(nodes=2, tors=2))
    text = yaml.safe_dump_all(resources(plan, API_VERSION))
    found = parse_resources(text, source="plan")
    assert len(found) == 2 + 1 + 2 + 4
    assert {r.asn for r in found if isinstance(r, NodeResource)} == {64601, 64602}


def test_a_router_takes_only_pod_blocks_and_gives_only_blocks_and_the_default():
    """A node that announces anything else, its own link or a default, is not believed."""
    plan = plan_lab("x", Shape())
    conf = routers.bird_conf(plan, plan.tors[0])
    template = conf[conf.index("template bgp node") : conf.index("template bgp other_router")]
    assert "import where net ~ [ 10.244.0.0/16{26,32} ];" in template
    assert "export where net ~ [ 0.0.0.0/0, 10.244.0.0/16{26,32} ];" in template
    assert "hold time 9; keepalive time 3;" in template
    assert "graceful restart on" in template
    assert "  neighbor 172.30.0.5 as 64603;" in conf


def test_sessions_are_read_from_what_birdc_prints():
    """Only Info says Established; State says up or start for more than one reason."""
    text = (
        "BIRD 2.0.12 ready.\nName       Proto      Table      State  Since         Info\n"
        "device1    Device     ---        up     02:29:25.411  \n"
        "node1      BGP        ---        start  02:29:25.411  Active        Socket: refused\n"
        "node2      BGP        ---        up     02:29:26.183  Established   \n"
        "node3      BGP        ---        up     2026-01-01    Established   \n"
    )
    found = routers.parse_protocols("tor1", text)
    assert [(s.neighbour, s.is_established) for s in found] == [
        ("node1", False),
        ("node2", True),
        ("node3", True),
    ]
    assert found[0].info == "Active        Socket: refused"


def test_the_picture_shows_every_machine_block_and_pod_within_its_width():
    """Rows of three boxes, each line as wide as its row at most."""
    plan = plan_lab("x", Shape(nodes=4, tors=2, pods=1))
    views = [
        report.NodeView(
            machine=node,
            blocks=[ip_network(f"10.244.{i}.0/26")],
            pods={f"{node.name}-pod1": [ip_address(f"10.244.{i}.1"), ip_address(f"fd44::{i}")]},
        )
        for i, node in enumerate(plan.nodes)
    ]
    text = report.picture(plan, views)
    for word in ("client  172.31.255.10", "tor1", "tor2", "node4  AS 64604", "10.244.3.0/26"):
        assert word in text
    assert "| pod1   10.244.2.1" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def _state() -> state.LabState:
    return state.LabState(
        name="x",
        shape=Shape(nodes=2),
        owner=Process("slash32 lab", 4, 400),
        namespaces=("s32-x-tor1", "s32-x-node1"),
        programs="/run/slash32-lab/x",
        made_netns_dir=True,
        processes=(Process("agent-node1", 5, 500),),
        added=("node1-pod1",),
    )


def test_state_read_back_is_the_state_that_was_written(tmp_path):
    """The next command knows everything the one before did."""
    paths = LabPaths(tmp_path, tmp_path)
    written = _state().with_process(Process("bird-tor1", 6, 600))
    state.save(paths, written)

    assert state.load(tmp_path) == written
    assert [p.name for p in tmp_path.iterdir()] == ["lab.json"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 1}', '{"version": 2}', "\x00"])
def test_a_broken_state_file_is_refused_with_its_path(tmp_path, text):
    """Nothing is ended or removed on the word of a file that cannot be read."""
    (tmp_path / "lab.json").write_text(text)
    with pytest.raises(LabFailure, match=r"lab\.json: not a lab's state"):
        state.load(tmp_path)


def test_a_lab_that_is_up_lives_by_its_processes_and_a_building_one_by_its_builder():
    """Orphans of a builder that was killed keep nobody from cleaning up."""
    me = state.this_process()
    building = replace(_state(), processes=(me,))
    assert not state.is_running(building)
    assert state.is_running(replace(building, owner=me))
    assert state.is_running(replace(building, is_up=True))
    assert not state.is_running(replace(_state(), is_up=True, owner=me))


def test_files_are_removed_only_directly_below_the_labs_directory(tmp_path):
    """A path from elsewhere is refused, whatever it is."""
    for root in (tmp_path, tmp_path / "labs" / "x" / "y", Path("/")):
        with pytest.raises(LabFailure, match="no lab's directory"):
            state.remove_files(root, run_root=tmp_path / "labs", program_root=tmp_path / "bin")
    assert tmp_path.exists()


def test_the_root_directories_go_when_the_last_lab_has_gone(tmp_path):
    """One lab left keeps them."""
    run_root, program_root = tmp_path / "run", tmp_path / "programs"
    for name in ("a", "b"):
        (run_root / name).mkdir(parents=True)
    (program_root / "a").mkdir(parents=True)
    roots = {"run_root": run_root, "program_root": program_root}
    state.remove_files(run_root / "a", **roots)
    state.remove_empty_roots(**roots)
    assert (run_root / "b").exists()
    assert not program_root.exists()
    state.remove_files(run_root / "b", **roots)
    state.remove_empty_roots(**roots)
    assert list(tmp_path.iterdir()) == []


def test_stdin_of_a_plugin_has_the_lists_name_and_version_as_libcni_puts_them_in():
    """The plugin's object, name and cniVersion of the list, and what the verb adds."""
    network = runtime.NetworkList("net", "1.1.0", ({"type": "p", "capabilities": {"x": True}},))
    config = runtime.plugin_config(network, network.plugins[0], {"prevResult": {"ips": []}})
    assert config == {"type": "p", "name": "net", "cniVersion": "1.1.0", "prevResult": {"ips": []}}


def test_a_plugin_is_told_what_was_asked_for_by_the_capabilities_it_declares():
    """Declared and asked for; nothing else, and no empty object."""
    declares = {"type": "p", "capabilities": {"mac": True, "ips": False, "dns": True}}
    network = runtime.NetworkList("net", "1.1.0", (declares, {"type": "q"}))
    asked = {"mac": "c2:11:22:33:44:55", "ips": ["10.0.0.1"], "bandwidth": {}}
    first, second = (runtime.plugin_config(network, p, {}, asked) for p in network.plugins)
    assert first["runtimeConfig"] == {"mac": "c2:11:22:33:44:55"}
    assert "capabilities" not in first
    assert "runtimeConfig" not in second


@pytest.mark.parametrize(
    ("document", "chosen"),
    [
        ('"cniVersion": "0.4.0"', "0.4.0"),
        ('"cniVersion": "1.0.0", "cniVersions": ["0.3.1", "1.1.0", "2.0.0"]', "1.1.0"),
        ('"x": 1', "0.1.0"),
    ],
)
def test_the_newest_version_both_sides_speak_is_chosen(tmp_path, document, chosen):
    """cniVersions wins over cniVersion, and the future is left to future runtimes."""
    path = tmp_path / "10-a.conflist"
    path.write_text(f'{{"name": "net", {document}, "plugins": [{{"type": "p"}}]}}')
    (tmp_path / "20-b.conflist").write_text("not even JSON")
    assert runtime.load_network(tmp_path).cni_version == chosen


def test_check_and_gc_can_be_switched_off_in_the_list(tmp_path):
    """The runtime's business: the plugins are not asked."""
    path = tmp_path / "10-a.conflist"
    path.write_text(
        '{"name": "net", "cniVersion": "1.1.0", "disableCheck": true, "disableGC": true,'
        ' "plugins": [{"type": "missing"}]}'
    )
    network = runtime.load_network(tmp_path)
    assert (network.disable_check, network.disable_gc) == (True, True)
    unasked = runtime.Runtime(network, bin_dirs=[tmp_path], results_dir=tmp_path / "results")
    unasked.check(runtime.Sandbox("c0ffee", "/run/netns/x"))
    unasked.collect_garbage([])


def test_probes_cover_every_ordered_pair_node_and_client_in_every_family():
    """30 pairs, 18 node to pod, 6 client to pod, 6 pod to client; two kinds; two families."""
    plan = plan_lab("x", Shape())
    pods = {
        pod.name: (ip_address(f"10.244.0.{i}"), ip_address(f"fd44::{i}"))
        for i, pod in enumerate(plan.pods)
    }
    planned = probes.plan_probes(plan, pods)
    assert len(planned) == (30 + 18 + 6 + 6) * 2 * 2
    assert len(set(planned)) == len(planned)
    pair = [p for p in planned if (p.source, p.target) == ("node1-pod1", "node2-pod2")]
    assert {p.address for p in pair} == set(pods["node2-pod2"])
    assert {p.seen_as for p in pair} == {frozenset({a}) for a in pods["node1-pod1"]}


def _stream_probe() -> probes.Probe:
    return probes.Probe(
        source="a",
        target="b",
        address=IPv4Address("10.244.0.2"),
        kind=probes.Kind.STREAM,
        traffic=capture.Traffic.POD_TO_POD,
        seen_as=frozenset({IPv4Address("10.244.0.1")}),
    )


@pytest.mark.parametrize(
    ("report_", "problem"),
    [
        ({}, None),
        ({"bytes": 5}, "5 of 1048576 bytes arrived"),
        ({"sha256": "bad"}, "other bytes arrived than were sent"),
        ({"peer": "172.30.0.1"}, "the server saw 172.30.0.1, not 10.244.0.1"),
    ],
)
def test_a_stream_counts_only_whole_unchanged_and_from_the_true_address(report_, problem):
    """Each way in which it can be wrong has its sentence."""
    seen = {"peer": "10.244.0.1", "bytes": 1048576, "sha256": "good", **report_}
    outcome = probes.judge(_stream_probe(), {"report": seen, "sha256": "good"})
    assert outcome.problem == problem


def test_a_pair_is_reachable_only_if_all_of_its_probes_succeed():
    """One lost ping of four probes makes the pair unreachable."""
    good = _stream_probe()
    other = replace(good, source="b", target="a")
    outcomes = [probes.Outcome(good), probes.Outcome(good, "lost"), probes.Outcome(other)]
    assert probes.reachable_pairs(outcomes) == (1, 2)


@pytest.mark.parametrize(
    ("figures", "holds"),
    [
        ({}, True),
        ({"pairs_reachable": 29}, False),
        ({"pairs": 0, "pairs_reachable": 0}, False),
        ({"encapsulated": 1}, False),
        ({"translated": 1}, False),
        ({"problems": ["x"]}, False),
    ],
)
def test_a_demo_holds_only_if_all_of_it_holds(figures, holds):
    """The exit status hangs on this."""
    verdict = demo.Verdict(**{"pairs_reachable": 30, "pairs": 30, **figures})
    assert verdict.holds is holds
    if holds:
        line = "demo: 30/30 pod pairs reachable, 0 packets encapsulated, 0 translated"
        assert verdict.last_line == line


# -- mesh and rr -------------------------------------------------------------------------------


def test_a_mesh_has_one_network_and_no_router():
    """All nodes in one subnet, joined by a switch that has no address."""
    plan = plan_lab("m", Shape(nodes=3, topology="mesh"))
    assert plan.tors == ()
    networks = {end.addresses[0].network for node in plan.nodes for end, _ in plan.links_of(node)}
    assert networks == {ip_network("172.30.0.0/24")}
    assert plan.switch is not None
    assert all(near.addresses == () for near, _ in plan.links_of(plan.switch))
    documents = resources(plan, API_VERSION)
    assert [d for d in documents if d["kind"] == "BGPPeer"] == []
    (configuration,) = [d for d in documents if d["kind"] == "BGPConfiguration"]
    assert configuration["spec"] == {"importAllow": [], "nodeToNodeMeshEnabled": True}
    assert all("bgp" not in d["spec"] for d in documents if d["kind"] == "Node")


def test_reflectors_are_peers_of_the_whole_cluster_and_reflect_pods_routes_only():
    """One BGPPeer each; nodes are clients, and nothing that is no pool goes through."""
    plan = plan_lab("r", Shape(nodes=2, tors=2, topology="rr"))
    peers = [d["spec"] for d in resources(plan, API_VERSION) if d["kind"] == "BGPPeer"]
    assert peers == [
        {"peerIP": "172.30.0.1", "asNumber": 64512},
        {"peerIP": "172.30.0.2", "asNumber": 64512},
    ]
    text = routers.bird_conf(plan, plan.tors[1])
    assert "rr client" in text
    assert "neighbor 172.30.0.11 as 64512" in text
    assert "import where net ~ [ 10.244.0.0/16+ ]" in text


def test_switched_labs_have_room_for_the_biggest_and_give_every_address_once():
    """100 nodes, 4 reflectors and the client in one /24."""
    plan = plan_lab("big", Shape(nodes=100, tors=4, pods=60, topology="rr"))
    addresses = [str(a.ip) for link in plan.links for a in link.far_end.addresses]
    assert len(addresses) == len(set(addresses)) == 2 * 105


def test_a_topology_is_one_of_three():
    """The option, the value and the rule."""
    with pytest.raises(InvalidShape, match="--topology ring: must be one of tor, mesh, rr"):
        Shape(topology="ring")
