"""Installed, used, uninstalled: the machine is as it was, and was not in between.

Links, addresses, routes, rules, nexthops, nftables, sysctls, sockets, files.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.runtime import Runtime, Sandbox, load_network
from tests.fakes.bgp_world import Routers, wait_until, why_not
from tests.fakes.machine import Machine

pytestmark = [
    pytest.mark.netns,
    pytest.mark.exabgp,
    pytest.mark.bird,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft"),
]

LEARNED = "10.244.9.0/26"
CONTAINER = "c0ffee0123456789"
NETWORK = """\
apiVersion: slash32.io/v1
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.244.0.0/16, blockSize: 26}
---
apiVersion: slash32.io/v1
kind: BGPConfiguration
metadata: {name: default}
spec: {asNumber: 65001, nodeToNodeMeshEnabled: false}
---
apiVersion: slash32.io/v1
kind: Node
metadata: {name: n1}
spec: {addresses: [10.255.1.1], bgp: {asNumber: 65001}}
---
apiVersion: slash32.io/v1
kind: BGPPeer
metadata: {name: r1}
spec: {peerIP: 10.255.1.2, asNumber: 65010}
---
apiVersion: slash32.io/v1
kind: BGPPeer
metadata: {name: r2}
spec: {peerIP: 10.255.2.2, asNumber: 65020}
"""


class Node(Machine):
    """Which can be looked at as a whole."""

    def uninstall(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.slash32(
            "uninstall", "--bin-dir", str(self.root / "bin"),
            "--conf-dir", str(self.root / "net.d"), *arguments,
        )  # fmt: skip

    def seen(self) -> dict[str, Any]:
        """All that an uninstall could leave behind, by what an operator would look with."""
        links = json.loads(self.run("ip", "-j", "-d", "link"))
        addresses = json.loads(self.run("ip", "-j", "addr"))
        return {
            "links": {(x["ifname"], tuple(x["flags"]), x["mtu"]) for x in links},
            "addresses": {
                (x["ifname"], a["local"], a["prefixlen"]) for x in addresses for a in x["addr_info"]
            },
            **{
                f"{what} {family}": sorted(self.run("ip", family, *words).splitlines())
                for family in ("-4", "-6")
                for what, words in (
                    ("routes", ("route", "show", "table", "all")),
                    ("rules", ("rule", "show")),
                )
            },
            "nexthops": self.run("ip", "nexthop", "show"),
            "nftables": self.run("nft", "list", "ruleset"),
            "sysctls": {
                line
                for line in self.run("sysctl", "-a", "-r", r"^net\.ipv[46]\.").splitlines()
                # Secrets that change by themselves are in there as well.
                if ".conf." in line or "forward" in line or ".neigh." in line
            },
            "sockets": sorted(
                (words[0], words[4])
                for line in self.run("ss", "-H", "-tulnx").splitlines()
                for words in [line.split()]
            ),
            "files": sorted(str(p.relative_to(self.root)) for p in self.root.rglob("*")),
        }


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Node]:
    routers = Routers(tmp_path)
    made: Node | None = None
    try:
        for number in (1, 2):
            routers.send(number, [LEARNED])
            routers.birds[number].start()
        root = tmp_path / "m"
        root.mkdir()
        made = Node(routers.node, root)
        # A machine that was not one of this cluster's: it forwards nothing, but on one link.
        made.run("sysctl", "-w", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
        made.run("sysctl", "-w", "net.ipv4.conf.up2.forwarding=1")
        # Foreign things that look a little like ours.
        made.run("ip", "route", "add", "blackhole", "10.244.77.0/26", "proto", "static")
        made.run("nft", "add", "table", "inet", "somebody")
        netns = made
        wait_until(
            lambda: not netns.run("ip", "-6", "addr", "show", "tentative"),
            what="links have settled",
        )
        yield made
    finally:
        if made is not None:
            made.stop()
        subprocess.run(
            ["ip", "netns", "del", f"{routers.node}-p"], check=False, capture_output=True
        )
        routers.close()


def test_installed_used_uninstalled_and_nothing_is_left(machine: Node):
    """While it is in use nothing goes; then all of it."""
    before = machine.seen()
    (machine.root / "state").mkdir(0o700)
    assert machine.slash32("apply", "-f", "-", stdin=NETWORK).returncode == 0
    places = ("--bin-dir", str(machine.root / "bin"), "--conf-dir", str(machine.root / "net.d"))
    assert machine.slash32("cni", "install", *places).returncode == 0
    machine.start("agent", "--node", "n1", "--http-port", "0")
    machine.start("speaker")
    wait_until(
        lambda: machine.run("ip", "route", "show", LEARNED).count("nexthop") == 2,
        what="the learned route is there, over both routers",
    )
    pod = f"{machine.netns}-p"
    subprocess.run(["ip", "netns", "add", pod], check=True, timeout=10)
    runtime = Runtime(
        load_network(machine.root / "net.d"), bin_dirs=[machine.root / "bin"],
        results_dir=machine.root.parent / "results", namespace=machine.netns,
    )  # fmt: skip
    sandbox = Sandbox(CONTAINER, f"/run/netns/{pod}")
    runtime.add(sandbox)

    used = machine.seen()
    without_control = {"addresses", "rules -4", "rules -6"}  # slash32 makes none
    for what, value in before.items():
        assert (used[what] != value) == (what not in without_control), what
    running = machine.uninstall("--yes")
    assert running.returncode == 1
    assert "ExaBGP runs" in running.stderr
    assert machine.seen()["nftables"] == used["nftables"]

    machine.stop()
    with_pods = machine.uninstall("--yes")
    assert with_pods.returncode == 1
    assert "1 pods are on this node" in with_pods.stderr
    assert len(machine.seen()["links"]) == len(used["links"])
    machine.start("agent", "--node", "n1", "--http-port", "0")
    wait_until((machine.root / "run" / "cni.sock").exists, what="the agent is back")
    with_agent = machine.uninstall("--yes", "--force")
    assert (with_agent.returncode, "an agent runs" in with_agent.stderr) == (1, True)
    wait_until(lambda: _deleted(runtime, sandbox), what="the pod is deleted")
    machine.stop()

    said = machine.uninstall("--with-store")
    assert said.returncode == 0, said.stderr
    assert f"would remove route {LEARNED}" in said.stdout
    assert machine.run("ip", "route", "show", LEARNED)
    done = machine.uninstall("--yes", "--with-store")
    assert done.returncode == 0, done.stdout + done.stderr
    after = machine.seen()
    for what, value in before.items():
        assert after[what] == value, what
    again = machine.uninstall("--yes", "--with-store")
    assert (again.returncode, again.stdout) == (0, "nothing of slash32 is here\n")


def _deleted(runtime: Runtime, sandbox: Sandbox) -> bool:
    from lab.runtime import PluginFailed

    try:
        runtime.delete(sandbox)
    except PluginFailed:
        return False
    return True
