"""Our plugin first in a list, Debian's portmap and bandwidth behind it, driven as libcni does."""

import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from lab import namespaces, runtime
from tests.e2e.observed import addresses, wait_empty

DEBIAN_PLUGINS = Path("/usr/lib/cni")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.bird,
    pytest.mark.exabgp,
    pytest.mark.skipif(
        not (DEBIAN_PLUGINS / "portmap").exists() or shutil.which("iptables-save") is None,
        reason="needs Debian's packages containernetworking-plugins and iptables",
    ),
]

NODE = "node1"
CONTAINER_PORT = 80
HOST_PORT = 8080
RATE_BITS_S = 20_000_000
BURST_BITS = 2_000_000
VERSIONS = ("0.3.1", "0.4.0", "1.0.0")
"""What both can: Debian's 1.1.1 ends at 1.0.0, and knows no 0.3.0 result with interfaces."""

VERSIONS_WITH_CHECK = VERSIONS[1:]

PORTMAP = {
    "type": "portmap",
    "runtimeConfig": {
        "portMappings": [
            {"hostPort": HOST_PORT, "containerPort": CONTAINER_PORT, "protocol": "tcp"}
        ]
    },
}
BANDWIDTH = {
    "type": "bandwidth",
    "ingressRate": RATE_BITS_S,
    "ingressBurst": BURST_BITS,
    "egressRate": RATE_BITS_S,
    "egressBurst": BURST_BITS,
}


@pytest.fixture(scope="module")
def lab(runtime_lab):
    """Shared; every test leaves it without pods."""
    return runtime_lab


@pytest.fixture
def sandbox():
    """A pod's network namespace, and what a runtime knows of it."""
    name = f"s32t-{os.getpid()}-chained"
    namespaces.create([name])
    try:
        yield runtime.Sandbox(container_id=f"chained-{os.getpid()}", netns=f"/run/netns/{name}")
    finally:
        namespaces.delete(name)


def chain(lab, *others, version="1.0.0"):
    """A runtime of the node whose list is ours with ``others`` behind."""
    ours = runtime.load_network(lab.paths.cni_conf(NODE))
    return runtime.Runtime(
        runtime.NetworkList(ours.name, version, (*ours.plugins, *others)),
        bin_dirs=[lab.paths.cni_bin(NODE), DEBIAN_PLUGINS],
        results_dir=lab.paths.cni_results(NODE),
        namespace=lab.plan.namespace_of(NODE),
    )


@contextmanager
def added(chained, sandbox):
    """An attachment, with its DEL whatever happens."""
    try:
        yield chained.add(sandbox)
    finally:
        chained.delete(sandbox)


def in_node(lab, *argv):
    return namespaces.run(argv, namespace=lab.plan.namespace_of(NODE))


def qdiscs(lab):
    return json.loads(in_node(lab, "tc", "-json", "qdisc", "show"))


def foreign_leftovers(lab):
    """What the two others would leave: a destination rule, an ifb link, a shaped queue."""
    rules = in_node(lab, "iptables-save", "-t", "nat") + in_node(lab, "ip6tables-save", "-t", "nat")
    found = [line for line in rules.splitlines() if "--to-destination" in line]
    found += [
        x["ifname"]
        for x in namespaces.ip_json(lab.plan.namespace_of(NODE), "link", "show")
        if x["ifname"].startswith("bwp")
    ]
    return found + [str(q) for q in qdiscs(lab) if q["kind"] == "tbf"]


def wait_all_gone(lab):
    """Returns when neither we nor the other plugins have left anything."""
    wait_empty(lab, NODE, also=lambda: foreign_leftovers(lab))


@contextmanager
def server(sandbox, address):
    """A TCP server inside the pod that tells each client the address it came from."""
    script = (
        "import socket,sys\n"
        f"s = socket.create_server(({str(address)!r}, {CONTAINER_PORT}),"
        f" family=socket.AF_INET{'6' if address.version == 6 else ''})\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    c, peer = s.accept()\n"
        "    c.sendall(peer[0].encode())\n"
        "    c.close()\n"
    )
    command = namespaces.enter(Path(sandbox.netns).name, ["python3", "-Ic", script])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.kill()


def ask(lab, address, port):
    """Connects from the client behind the router; the address the server saw."""
    script = (
        "import socket\n"
        f"with socket.create_connection(({str(address)!r}, {port}), 10) as c:\n"
        "    print(c.recv(100).decode())\n"
    )
    said = namespaces.run(["python3", "-Ic", script], namespace=lab.plan.client.namespace)
    return ip_address(said.strip())


@pytest.mark.parametrize("version", VERSIONS)
def test_the_result_of_the_chain_holds_ours_whatever_the_version(lab, sandbox, version):
    """ADD hands our result on, our CHECK accepts what came of it, DEL in reverse leaves nothing."""
    alone = chain(lab, version=version)
    ours = alone.add(sandbox)
    with added(chain(lab, PORTMAP, BANDWIDTH, version=version), sandbox) as result:
        count = len(ours["interfaces"])
        assert result["ips"] == ours["ips"]
        assert result["routes"] == ours["routes"]
        assert names(result)[:count] == names(ours)
        assert [name[:3] for name in names(result)[count:]] == ["bwp"], "bandwidth's own"
        if version in VERSIONS_WITH_CHECK:
            # Not of the whole list: portmap 1.1.1 looks for the IPv4 rules among the IPv6 ones.
            assert alone.kept_result(sandbox) == result
            alone.check(sandbox)
    wait_all_gone(lab)


def names(result):
    """The interfaces of a result, in its order."""
    return [interface["name"] for interface in result["interfaces"]]


def test_a_published_port_leads_to_the_pod_and_hides_nobody(lab, sandbox):
    """portmap translates the destination alone: the pod sees the client's true address."""
    with added(chain(lab, PORTMAP), sandbox) as result:
        lab.wait_converged()
        client = lab.plan.addresses_of(lab.plan.client)
        nodes = lab.plan.addresses_of(lab.plan.nodes[0])
        for own in addresses(result):
            node = next(a for a in nodes if a.version == own.version)
            with server(sandbox, own):
                assert ask(lab, own, CONTAINER_PORT) in client
                assert ask(lab, node, HOST_PORT) in client
    wait_all_gone(lab)


def test_bandwidth_shapes_our_link_and_it_stays_in_order(lab, sandbox):
    """The rate is on the host end of our veth, and CHECK of the whole list passes."""
    chained = chain(lab, BANDWIDTH)
    with added(chained, sandbox) as result:
        host_ifname = result["interfaces"][0]["name"]
        (shaped,) = [q for q in qdiscs(lab) if q["kind"] == "tbf" and q["dev"] == host_ifname]
        assert shaped["options"]["rate"] == RATE_BITS_S // 8
        chained.check(sandbox)
    wait_all_gone(lab)


def test_a_plugin_behind_ours_that_fails_leaves_nothing_after_del(lab, sandbox):
    """As libcni: the ADD fails with the other's error, and the runtime's DEL undoes ours."""
    impossible = {"type": "tuning", "sysctl": {"net.ipv4.no_such_setting": "1"}}
    chained = chain(lab, PORTMAP, impossible)

    with pytest.raises(runtime.PluginFailed, match="tuning ADD"), added(chained, sandbox):
        pytest.fail("an ADD that must fail has succeeded")

    assert chained.kept_result(sandbox) is None
    wait_all_gone(lab)


def test_the_chain_can_be_deleted_when_the_namespace_is_gone(lab, sandbox):
    """DEL without CNI_NETNS, twice: every plugin finds nothing to fear."""
    chained = chain(lab, PORTMAP, BANDWIDTH)
    chained.add(sandbox)
    namespaces.delete(Path(sandbox.netns).name)

    chained.delete(sandbox, netns_is_gone=True)
    chained.delete(sandbox, netns_is_gone=True)

    wait_all_gone(lab)
