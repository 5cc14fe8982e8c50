"""A real containerd drives the plugin: pods on two lab nodes, and every way a container can end."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_interface
from pathlib import Path

import pytest

from lab import namespaces, runtime
from lab.containerd import NEEDED_PROGRAMS, Containerd
from lab.enclosure import CGROUP_ROOT, Place, place_on, shown_for_cni
from lab.plan import LabFailure
from lab.waiting import wait_until
from tests.e2e.observed import (
    FIRST_TTL,
    ROUTERS_ON_THE_WAY,
    addresses,
    fetch_peer,
    links_of_ours,
    peer_said,
    peer_url,
    said,
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
        reason="needs Debian's packages containerd and runc",
    ),
]

NODES = ("node1", "node2")
SERVER = ["httpd", "-f", "-p", "80", "-h", "/www"]
SLEEPER = ["sleep", "1000"]
MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module")
def lab(runtime_lab):
    """Shared; every test leaves it without pods."""
    return runtime_lab


@pytest.fixture(scope="module")
def containerds(lab):
    """A containerd on each node."""
    found = {
        node: Containerd(place_on(lab.plan, lab.paths, node=node, runtime="containerd"))
        for node in NODES
    }
    try:
        for each in found.values():
            each.start()
        yield found
    finally:
        for each in found.values():
            each.close()


@pytest.fixture
def containerd(containerds):
    """The first node's."""
    return containerds["node1"]


def ping(containerd, container, address):
    """Pings once; what the container's ping printed."""
    family = "-6" if address.version == 6 else "-4"
    return containerd.exec(container, ["ping", family, "-c", "1", "-W", "5", str(address)])


def seen_peer(containerd, container, address):
    """The address an HTTP server saw a container under."""
    return peer_said(containerd.exec(container, fetch_peer(peer_url(address))))


def test_pods_on_two_nodes_reach_each_other_through_the_router(lab, containerds):
    """Ping and TCP in both families; the server sees the client's own address."""
    server = addresses(containerds["node1"].run("server", SERVER))
    client = addresses(containerds["node2"].run("client", SLEEPER))
    lab.wait_converged()

    for theirs, own in zip(server, client, strict=True):
        answer = ping(containerds["node2"], "client", theirs)
        assert f"ttl={FIRST_TTL - ROUTERS_ON_THE_WAY}" in answer, answer
        assert seen_peer(containerds["node2"], "client", theirs) == own
    assert [a.version for a in server] == [4, 6]

    containerds["node1"].exec(
        "server", ["dd", "if=/dev/zero", "of=/www/big", "bs=1024", "count=1024"]
    )
    command = f"wget -q -O - http://{server[0]}/big | wc -c"
    moved = containerds["node2"].exec("client", ["sh", "-c", command])
    assert int(moved) == MEBIBYTE

    containerds["node1"].kill("server")
    containerds["node2"].kill("client")
    for node in NODES:
        wait_empty(lab, node)


def test_pods_of_one_node_and_the_node_itself_reach_each_other(lab, containerds):
    """The way between two pods of a node is the node alone."""
    containerd = containerds["node1"]
    server = addresses(containerd.run("near-server", SERVER))
    client = addresses(containerd.run("near-client", SLEEPER))

    for theirs, own in zip(server, client, strict=True):
        assert f"ttl={FIRST_TTL - 1}" in ping(containerd, "near-client", theirs)
        assert seen_peer(containerd, "near-client", theirs) == own
        namespaces.run(
            ["ping", "-c", "1", "-W", "5", str(own)], namespace=lab.plan.namespace_of("node1")
        )

    containerd.kill("near-server")
    containerd.kill("near-client")
    wait_empty(lab, "node1")


def test_a_container_has_the_addresses_that_add_answered(lab, containerd):
    """Inside the container: /32 and /128, one link, the default route by the gateway."""
    result = containerd.run("looked-at", SLEEPER)
    shown = containerd.exec("looked-at", ["ip", "addr", "show", "dev", "eth0"])
    routes = containerd.exec("looked-at", ["ip", "-4", "route"])

    words = shown.split()
    inside = {
        ip_interface(words[i + 1])
        for i, word in enumerate(words)
        if word in ("inet", "inet6") and "scope" in words[i:] and "fe80" not in words[i + 1]
    }
    assert inside == {ip_interface(str(a)) for a in addresses(result)}
    assert "default via 169.254.1.1 dev eth0" in routes
    assert {a for row in said(lab, "node1", "pods") for a in row["addresses"]} == {
        str(a) for a in addresses(result)
    }

    containerd.kill("looked-at")
    wait_empty(lab, "node1")


def test_a_container_that_ends_by_itself_leaves_nothing(lab, containerd):
    """ctr calls DEL when the task has ended; the kernel has removed the namespace before."""
    said = containerd.run_to_end("brief", ["ip", "-4", "addr", "show", "dev", "eth0"])

    assert "/32 " in said
    assert containerd.enclosure.cni_results() == {}
    wait_empty(lab, "node1")


def test_a_killed_task_gives_its_address_back(lab, containerd):
    """SIGKILL to the container; the next one does not get the address that has just been used."""
    first = addresses(containerd.run("killed", SLEEPER))
    containerd.kill("killed")
    wait_empty(lab, "node1")

    second = addresses(containerd.run("next", SLEEPER))
    containerd.kill("next")

    assert not set(first) & set(second)
    wait_empty(lab, "node1")


def test_a_container_whose_namespace_vanished_can_be_deleted_late(lab, containerd):
    """The waiting ctr is killed, then the task: no DEL comes. One by hand finds nothing to fear."""
    result = containerd.run("orphan", SLEEPER)
    sandbox = runtime.Sandbox(
        container_id=containerd.cni_id("orphan"), netns=result["interfaces"][-1]["sandbox"]
    )
    containerd.kill_client("orphan")
    assert links_of_ours(lab, "node1") != [], "the container still runs"
    containerd.remove("orphan")

    wait_links_gone(lab, "node1")
    lab.runtime_of("node1").delete(sandbox, netns_is_gone=True)
    lab.runtime_of("node1").delete(sandbox, netns_is_gone=True)
    wait_empty(lab, "node1")


def test_containers_started_together_get_addresses_of_their_own(lab, containerd):
    """Ten at once, in both families."""
    names = [f"many{n}" for n in range(10)]
    with ThreadPoolExecutor(len(names)) as pool:
        results = list(pool.map(lambda name: containerd.run(name, SLEEPER), names))
    given = [a for result in results for a in addresses(result)]

    assert len(given) == len(set(given)) == 2 * len(names)
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(containerd.kill, names))
    wait_empty(lab, "node1")


def test_a_program_that_cannot_be_executed_leaves_nothing(lab, containerd):
    """ctr makes the task before it calls ADD; when that fails nothing of the network may stay."""
    with pytest.raises(LabFailure, match="no-such-program"):
        containerd.run("broken", ["no-such-program"])

    wait_empty(lab, "node1")


def test_the_end_of_a_containerd_leaves_no_process_mount_cgroup_or_file(lab):
    """Also when a container runs and nobody has asked it to stop; its DEL is called."""
    place = place_on(lab.plan, lab.paths, node="node2", runtime="brief")
    containerd = Containerd(place)
    try:
        containerd.start()
        containerd.run("left", SLEEPER)
        assert len(containerd.enclosure.inside()) >= len(("containerd", "shim", "sleep"))
    finally:
        containerd.close()

    assert containerd.enclosure.inside() == []
    assert not place.root.exists()
    assert list(CGROUP_ROOT.glob(f"**/{place.name}")) == []
    wait_empty(lab, "node2")


@pytest.mark.parametrize("root", ["/tmp", "/run", "/var/lib"])
def test_a_containerd_that_is_killed_is_cleaned_up_all_the_same(tmp_path, root):
    """Without a lab: Debian's own plugins, SIGKILL to the daemon while a container runs.

    The place lies once aside from, and twice below, a directory that is hidden from the runtime.
    """
    namespace = f"s32t-{os.getpid()}-ctr"
    (tmp_path / "bin").mkdir()
    (tmp_path / "conf").mkdir()
    for plugin in ("ptp", "host-local"):
        shutil.copy(f"/usr/lib/cni/{plugin}", tmp_path / "bin")
    ipam = {"type": "host-local", "subnet": "10.9.9.0/24", "dataDir": str(tmp_path / "ipam")}
    network = {"cniVersion": "1.0.0", "name": "ptp", "plugins": [{"type": "ptp", "ipam": ipam}]}
    (tmp_path / "conf" / "10-ptp.conflist").write_text(json.dumps(network))
    place = Place(
        name=namespace,
        namespace=namespace,
        root=Path(root) / namespace,
        kept=(tmp_path, Path(root) / namespace),
        shown=shown_for_cni(bin_dir=tmp_path / "bin", conf_dir=tmp_path / "conf"),
    )
    containerd = Containerd(place)
    namespaces.create([namespace])
    try:
        containerd.start()
        containerd.run("one", SLEEPER)
        daemon = containerd.enclosure.give_up_if_dead()
        os.kill(daemon.pid, 9)
        wait_until(
            lambda: [] if _is_dead(containerd) else ["it lives"], what="SIGKILL", deadline_s=10
        )
        assert len(containerd.enclosure.inside()) >= len(("shim", "sleep"))
    finally:
        containerd.close()
        namespaces.delete(namespace)

    assert containerd.enclosure.inside() == []
    assert not place.root.exists()
    assert list(CGROUP_ROOT.glob(f"**/{place.name}")) == []


def _is_dead(containerd):
    try:
        containerd.enclosure.give_up_if_dead()
    except LabFailure:
        return True
    return False
