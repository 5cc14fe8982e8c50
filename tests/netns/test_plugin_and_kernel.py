"""The executed plugin, the real server and the real wiring: a pod's life in namespaces of our own.

Addresses and host routes are fakes; the agent as a whole is tested elsewhere.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from cni.errors import Code
from cni.wiring import KernelWiring
from tests.fakes.cni import Node
from tests.fakes.runtime import Outcome, agent_beside, execute, network_namespace

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


@dataclass
class Bench:
    """A host and a pod namespace, and the agent's end over the kernel of the first."""

    node: Node
    wiring: KernelWiring
    host: str
    pod: str
    socket_path: str

    def call(self, command: str, *, netns: str | None = None, **fields: object) -> Outcome:
        """One call of a runtime for the pod."""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c0ffee",
            "CNI_NETNS": self.pod if netns is None else netns,
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0",
        }
        conf = {"cniVersion": "1.1.0", "name": "slash32", "socket": self.socket_path}
        return execute(environment, json.dumps(conf | fields).encode())

    def collect(self, valid: object) -> Outcome:
        """A GC that names these attachments."""
        conf = {"cniVersion": "1.1.0", "name": "slash32", "socket": self.socket_path}
        conf_of_gc = {**conf, "cni.dev/valid-attachments": valid}
        return execute({"CNI_COMMAND": "GC"}, json.dumps(conf_of_gc).encode())

    @property
    def leftovers(self) -> list[object]:
        """Links in the kernel and addresses in the book."""
        return [*self.wiring.read(), *self.node.allocator.held]


def inside(netns: str, *command: str) -> str:
    """What ``command`` prints in ``netns``."""
    done = subprocess.run(
        ["nsenter", f"--net={netns}", *command], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Everything, dual stack, and taken down again."""
    node = Node()
    node.allocator.make = lambda n: (ip_address("10.1.0.1") + n, ip_address("fd00::1") + n)
    path = str(tmp_path / "cni.sock")
    with ExitStack() as stack:
        host = stack.enter_context(network_namespace())
        pod = stack.enter_context(network_namespace())
        host_fd = os.open(host, os.O_RDONLY)
        stack.callback(os.close, host_fd)
        wiring = KernelWiring(netns_fd=host_fd)
        stack.callback(wiring.close)
        stack.enter_context(agent_beside(path, node, wiring=wiring))
        yield Bench(node, wiring, host, pod, path)


def test_a_pods_life_from_add_to_del(bench: Bench) -> None:
    """ADD twice, CHECK, DEL twice; the kernel has what the result says, then nothing."""
    added = bench.call("ADD")
    assert added.status == 0, added.stdout
    assert bench.call("ADD").stdout == added.stdout

    links = json.loads(inside(bench.pod, "ip", "-j", "address", "show", "dev", "eth0"))
    assert links[0]["address"] == added.json["interfaces"][1]["mac"]
    assert links[0]["mtu"] == added.json["interfaces"][1]["mtu"] == 1500
    found = {f"{each['local']}/{each['prefixlen']}" for each in links[0]["addr_info"]}
    assert {each["address"] for each in added.json["ips"]} <= found
    assert bench.wiring.read()[0].ifname == added.json["interfaces"][0]["name"]
    assert bench.call("CHECK", prevResult=added.json).stdout == b""

    for _ in range(2):
        assert bench.call("DEL", prevResult=added.json).stdout == b""
    assert bench.leftovers == []


def test_check_names_what_somebody_changed_and_add_mends_it(bench: Bench) -> None:
    """A route deleted in the pod, an MTU changed on the host."""
    added = bench.call("ADD")
    inside(bench.pod, "ip", "route", "del", "default")
    host_ifname = added.json["interfaces"][0]["name"]
    inside(bench.host, "ip", "link", "set", host_ifname, "mtu", "1400")

    checked = bench.call("CHECK", prevResult=added.json)

    assert checked.code == Code.CHECK_FOUND_DIFFERENCES
    assert "default" in checked.json["details"]
    assert "1400" in checked.json["details"]
    assert bench.call("ADD").stdout == added.stdout
    assert bench.call("CHECK", prevResult=added.json).stdout == b""


def test_an_interface_in_the_way_and_the_hosts_own_namespace_are_refused(bench: Bench) -> None:
    """Nothing of ours is left of either attempt."""
    assert bench.call("ADD", netns=bench.host).code == Code.INVALID_ENVIRONMENT
    inside(bench.pod, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")

    refused = bench.call("ADD")

    assert refused.code == Code.INTERFACE_EXISTS
    assert "eth0" in refused.json["msg"]
    assert bench.leftovers == []


def test_gc_keeps_who_is_named_and_removes_who_is_not(bench: Bench) -> None:
    """The link goes from the kernel, the address back into the pool."""
    bench.call("ADD")

    assert bench.collect([{"containerID": "c0ffee", "ifname": "eth0"}]).stdout == b""
    assert len(bench.leftovers) == 2
    assert bench.collect(None).stdout == b""
    assert bench.leftovers == []
