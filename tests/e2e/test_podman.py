"""A real podman drives the plugin through its CNI backend, on two nodes of a lab."""

import json
import shutil
from dataclasses import replace

import pytest

from lab import namespaces, runtime
from lab.enclosure import CGROUP_ROOT, place_on, shown_for_cni
from lab.plan import LabFailure
from lab.podman import NEEDED_PROGRAMS, NoCniBackend, Podman
from tests.e2e.observed import (
    FIRST_TTL,
    ROUTERS_ON_THE_WAY,
    addresses,
    fetch_peer,
    machine,
    peer_said,
    peer_url,
    wait_empty,
    wait_links_gone,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.bird,
    pytest.mark.exabgp,
    pytest.mark.skipif(
        any(shutil.which(program) is None for program in NEEDED_PROGRAMS),
        reason="needs Debian's packages podman, conmon and runc",
    ),
]

NODES = ("node1", "node2")
NETWORK = "slash32"
CHAINED = "slash32-ports"
"""The same plugin with Debian's portmap behind it, for published ports."""

SERVER = ["httpd", "-f", "-p", "80", "-h", "/www"]
SLEEPER = ["sleep", "1000"]


@pytest.fixture(scope="module")
def lab(runtime_lab):
    """Shared; every test leaves it without pods."""
    return runtime_lab


def place_with_portmap(lab, node):
    """A node's place, with a second network that has portmap in its list, and portmap itself."""
    place = place_on(lab.plan, lab.paths, node=node, runtime="podman")
    beside = place.root.with_name("podman-cni")
    shutil.copytree(lab.paths.cni_bin(node), beside / "bin")
    shutil.copytree(lab.paths.cni_conf(node), beside / "conf")
    shutil.copy("/usr/lib/cni/portmap", beside / "bin")
    (conflist,) = (beside / "conf").glob("*.conflist")
    network = json.loads(conflist.read_text())
    network["name"] = CHAINED
    network["plugins"].append({"type": "portmap", "capabilities": {"portMappings": True}})
    (beside / "conf" / f"20-{CHAINED}.conflist").write_text(json.dumps(network))
    return replace(place, shown=shown_for_cni(bin_dir=beside / "bin", conf_dir=beside / "conf"))


@pytest.fixture(scope="module")
def podmans(lab):
    """A podman on each node; without its CNI backend there is nothing to test here."""
    found = {node: Podman(place_with_portmap(lab, node), network=NETWORK) for node in NODES}
    try:
        try:
            for each in found.values():
                each.start()
        except NoCniBackend as error:
            pytest.skip(str(error))
        yield found
    finally:
        for each in found.values():
            each.close()


@pytest.fixture
def podman(podmans):
    """The first node's."""
    return podmans["node1"]


def seen_peer(podman, container, address):
    """The address an HTTP server saw a container under."""
    return peer_said(podman.exec(container, fetch_peer(peer_url(address))))


def test_podman_asks_for_a_mac_and_an_address_and_the_container_has_them(lab, podman):
    """What its user wrote after --mac-address and --ip; the address is in nobody's block yet."""
    asked = ["--mac-address", "c2:11:22:33:44:55", "--ip", "10.244.77.9"]
    result = podman.run("asks", SLEEPER, options=asked)

    shown = podman.exec("asks", ["ip", "addr", "show", "dev", "eth0"])
    podman.remove("asks")

    assert result["interfaces"][1]["mac"] == "c2:11:22:33:44:55"
    assert str(addresses(result)[0]) == "10.244.77.9"
    assert "c2:11:22:33:44:55" in shown
    assert "10.244.77.9/32" in shown
    wait_empty(lab, "node1")


def test_podman_shows_the_network_and_the_plugin_behind_it(podman):
    """podman reads the conflist that ``cni install`` wrote, and leaves it alone."""
    assert podman.networks()[NETWORK] == "slash32"
    assert podman.networks()[CHAINED] == "slash32"


def test_pods_on_two_nodes_reach_each_other_through_the_router(lab, podmans):
    """Ping and TCP in both families; the server sees the client's own address."""
    server = addresses(podmans["node1"].run("server", SERVER))
    client = addresses(podmans["node2"].run("client", SLEEPER))
    lab.wait_converged()

    assert [a.version for a in server] == [4, 6]
    for theirs, own in zip(server, client, strict=True):
        family = f"-{theirs.version}"
        answer = podmans["node2"].exec("client", ["ping", family, "-c", "1", str(theirs)])
        assert f"ttl={FIRST_TTL - ROUTERS_ON_THE_WAY}" in answer
        assert seen_peer(podmans["node2"], "client", theirs) == own

    podmans["node1"].remove("server")
    podmans["node2"].remove("client")
    for node in NODES:
        wait_empty(lab, node)


def test_a_killed_container_gives_its_addresses_back(lab, podman):
    """conmon has podman clean up, DEL included, while the namespace is still there."""
    first = addresses(podman.run("killed", SLEEPER))
    podman.kill("killed")
    wait_empty(lab, "node1")
    podman.remove("killed")

    second = addresses(podman.run("next", SLEEPER))
    podman.remove("next")

    assert not set(first) & set(second)
    wait_empty(lab, "node1")


def test_a_container_that_is_started_again_is_on_the_network_again(lab, podman):
    """podman uses the same container id for the second ADD, with a new namespace."""
    podman.run("again", SLEEPER)
    identity = podman.inspect("again")["Id"]
    podman.kill("again")
    podman.podman("start", "again")

    own = addresses(podman.enclosure.cni_results()[identity])
    shown = podman.exec("again", ["ip", "addr", "show", "dev", "eth0"])
    assert f"inet {own[0]}/32" in shown
    for address in own:
        namespaces.run(
            ["ping", "-c", "1", "-W", "5", str(address)],
            namespace=lab.plan.namespace_of("node1"),
        )
    podman.remove("again")
    wait_empty(lab, "node1")


def test_a_container_whose_namespace_vanished_can_be_deleted_late(lab, podman):
    """podman never calls DEL then. One by hand, with the path of nothing, finds nothing to fear."""
    podman.run("orphan", SLEEPER)
    identity = podman.inspect("orphan")["Id"]
    netns = podman.netns_of("orphan")
    podman.enclosure.run(["umount", netns])
    podman.enclosure.run(["rm", netns])
    podman.podman("kill", "orphan")

    wait_links_gone(lab, "node1")
    sandbox = runtime.Sandbox(container_id=identity, netns=netns)
    lab.runtime_of("node1").delete(sandbox)
    lab.runtime_of("node1").delete(sandbox)
    wait_empty(lab, "node1")
    podman.remove("orphan")


def test_a_published_port_leads_to_the_container_by_portmap(lab, podman):
    """podman hands the port to the chain; a client behind the router reaches it at the node."""
    own = addresses(
        podman.run("published", SERVER, network=CHAINED, options=["--publish", "8080:80"])
    )
    lab.wait_converged()
    node = next(a for a in lab.plan.addresses_of(machine(lab, "node1")) if a.version == 4)
    client = lab.plan.client

    def seen(url):
        return peer_said(namespaces.run(["busybox", *fetch_peer(url)], namespace=client.namespace))

    direct, by_port = seen(peer_url(own[0])), seen(peer_url(node, port=8080))

    assert direct in lab.plan.addresses_of(client)
    assert by_port == direct
    podman.remove("published")
    rules = namespaces.run(["iptables-save", "-t", "nat"], namespace=lab.plan.namespace_of("node1"))
    assert "--to-destination" not in rules
    wait_empty(lab, "node1")


def test_the_end_of_a_podman_leaves_no_process_mount_cgroup_or_file(lab):
    """Also when a container runs and nobody has asked it to stop; its DEL is called."""
    place = place_on(lab.plan, lab.paths, node="node2", runtime="brief")
    podman = Podman(place, network=NETWORK)
    try:
        podman.start()
        podman.run("left", SLEEPER)
        assert len(podman.enclosure.inside()) >= len(("holder", "conmon", "sleep"))
    finally:
        podman.close()

    assert podman.enclosure.inside() == []
    assert not place.root.exists()
    assert list(CGROUP_ROOT.glob(f"**/{place.name}")) == []
    wait_empty(lab, "node2")


def test_a_network_that_is_not_there_is_refused_in_podmans_words(podman):
    """Nothing is made."""
    with pytest.raises(LabFailure, match="no-such-network"):
        podman.run("nowhere", SLEEPER, network="no-such-network")
