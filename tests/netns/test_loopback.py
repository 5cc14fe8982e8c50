"""Our plugin under the name ``loopback``, as a CRI runtime calls it for every sandbox."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cni.errors import Code
from tests.fakes.cni import Node
from tests.fakes.runtime import Outcome, agent_beside, execute, network_namespace
from tests.netns.test_plugin_and_kernel import inside

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


class Sandbox:
    """A fresh namespace whose loopback is down, and an agent that has no address to give."""

    def __init__(self, netns: str, node: Node, socket_path: str) -> None:
        self.netns = netns
        self.node = node
        self._socket_path = socket_path

    def call(self, command: str, *, netns: str | None = None, **fields: Any) -> Outcome:
        """As containerd 1.6 calls it, but for the socket, which is a test's."""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c0ffee",
            "CNI_NETNS": self.netns if netns is None else netns,
            "CNI_IFNAME": "lo",
        }
        conf = {"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"}
        return execute(
            environment, json.dumps({**conf, "socket": self._socket_path, **fields}).encode()
        )

    @property
    def is_up(self) -> bool:
        (link,) = json.loads(inside(self.netns, "ip", "-j", "link", "show", "lo"))
        return "UP" in link["flags"]


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    node = Node()
    path = str(tmp_path / "cni.sock")
    with ExitStack() as stack:
        netns = stack.enter_context(network_namespace())
        stack.enter_context(agent_beside(path, node))
        yield Sandbox(netns, node, path)


def test_add_brings_loopback_up_and_gives_no_address_of_a_pool(sandbox: Sandbox) -> None:
    """The addresses are those that the kernel gives a loopback that is up."""
    assert not sandbox.is_up

    done = sandbox.call("ADD")

    assert (done.status, sandbox.is_up) == (0, True)
    result = json.loads(done.stdout)
    assert result["cniVersion"] == "0.3.1"
    assert [(each["name"], each["sandbox"]) for each in result["interfaces"]] == [
        ("lo", sandbox.netns)
    ]
    assert result["ips"][0] == {"version": "4", "address": "127.0.0.1/8", "interface": 0}
    assert not sandbox.node.allocator.held
    assert json.loads(sandbox.call("ADD").stdout) == result


def test_a_previous_result_is_handed_on(sandbox: Sandbox) -> None:
    """As the specification has it for a plugin in the middle of a list."""
    previous = {
        "cniVersion": "0.3.1",
        "interfaces": [{"name": "eth0", "sandbox": sandbox.netns}],
        "ips": [{"version": "4", "address": "10.9.9.9/32", "interface": 0}],
    }

    done = sandbox.call("ADD", prevResult=previous)

    assert sandbox.is_up
    assert json.loads(done.stdout)["ips"] == previous["ips"]


def test_check_tells_a_loopback_that_is_down(sandbox: Sandbox) -> None:
    """By its name."""
    newer: dict[str, Any] = {"cniVersion": "1.0.0", "prevResult": {"cniVersion": "1.0.0"}}
    down = json.loads(sandbox.call("CHECK", **newer).stdout)
    sandbox.call("ADD")

    assert (down["code"], down["msg"]) == (Code.CHECK_FOUND_DIFFERENCES, "lo in the pod is down")
    assert sandbox.call("CHECK", **newer).status == 0


@pytest.mark.parametrize("command", ["DEL", "GC", "STATUS"])
def test_what_leaves_nothing_behind_needs_nothing(sandbox: Sandbox, command: str) -> None:
    """Without a namespace, and with an agent that could serve no ADD of a network."""
    fields: dict[str, Any] = {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}

    done = sandbox.call(command, netns="", **fields)

    assert (done.status, done.stdout) == (0, b"")


def test_the_hosts_own_loopback_is_nobodys_business(sandbox: Sandbox) -> None:
    """A runtime that names the host's namespace, or none at all, is told so."""
    own = json.loads(sandbox.call("ADD", netns="/proc/self/ns/net").stdout)
    gone = json.loads(sandbox.call("ADD", netns="/run/netns/there-is-none").stdout)

    assert (own["code"], gone["code"]) == (Code.INVALID_ENVIRONMENT, Code.UNKNOWN_CONTAINER)
    assert "is the host's own" in own["msg"]
