"""The everyday commands on a real kube-apiserver, with a real agent, ExaBGP, BIRD and pod.

Server and node are in one network namespace, so that both are on each other's loopback. kubectl's
own part (`wait --for=condition=Ready`) is asked where there is a kubectl.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from cni.netns import inside
from lab.runtime import Runtime, Sandbox, load_network
from tests.fakes.bgp_world import Routers, wait_until, why_not
from tests.fakes.kube_apiserver import SKIPPED, assets, running
from tests.fakes.machine import ROOT, Machine

pytestmark = [
    pytest.mark.netns,
    pytest.mark.exabgp,
    pytest.mark.bird,
    pytest.mark.timeout(300),
    pytest.mark.skipif(assets() is None, reason=SKIPPED),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

SCHEMAS = json.loads((ROOT / "docs" / "schemas" / "commands.json").read_text())
FAR = "10.244.9.0/26"
KUBECTL = shutil.which("kubectl") or shutil.which(
    "kubectl", path=os.environ.get("KUBEBUILDER_ASSETS", "")
)
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
kind: Node
metadata: {name: n2}
spec: {addresses: [10.255.1.99], bgp: {asNumber: 65002}}
---
apiVersion: slash32.io/v1
kind: BGPPeer
metadata: {name: r1}
spec: {peerIP: 10.255.1.2, asNumber: 65010, node: n1}
---
apiVersion: slash32.io/v1
kind: Block
metadata: {name: 10-244-9-0-26}
spec: {cidr: 10.244.9.0/26, pool: pods, state: confirmed, affinity: "host:n2"}
"""


class Cluster:
    """n1, which runs, and n2, of which the store alone knows."""

    def __init__(self, machine: Machine, kubeconfig: Path, address: str) -> None:
        self.machine = machine
        self.kubeconfig = kubeconfig
        self.address = address

    def said(self, *arguments: str, code: int = 0) -> str:
        """What a command prints; it must end so."""
        done = self.machine.slash32(*arguments)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stdout

    def rows(self, kind: str, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        """The same as JSON, by the published schema."""
        document = json.loads(self.said(*arguments, "-o", "json", code=code))
        jsonschema.validate(document, {**SCHEMAS, "$ref": f"#/$defs/{kind}"})
        return list(document)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    directory = assets()
    assert directory is not None
    work = tmp_path_factory.mktemp("commands")
    for name in ("m", "server"):
        (work / name).mkdir()
    routers = Routers(work)
    machine: Machine | None = None
    try:
        routers.send(1, [FAR])
        routers.birds[1].start()
        with (
            open(f"/run/netns/{routers.node}", "rb") as netns,
            inside(netns.fileno()),
            running(directory, work / "server") as server,
        ):
            server.install()
            # Not in the run directory: whoever points there means that node alone.
            environment = {"SLASH32_STORE": "kubernetes", "KUBECONFIG": str(server.kubeconfig)}
            machine = Machine(routers.node, work / "m", environment)
            (machine.root / "state").mkdir()
            yield _begun(machine, server.kubeconfig, routers.node)
    finally:
        if machine is not None:
            machine.stop()
        subprocess.run(
            ["ip", "netns", "del", f"{routers.node}-p"], check=False, capture_output=True
        )
        routers.close()


def _begun(machine: Machine, kubeconfig: Path, netns: str) -> Cluster:
    applied = machine.slash32("apply", "-f", "-", stdin=NETWORK)
    assert applied.returncode == 0, applied.stderr
    places = ("--bin-dir", str(machine.root / "bin"), "--conf-dir", str(machine.root / "net.d"))
    assert machine.slash32("cni", "install", *places).returncode == 0
    machine.start("agent", "--node", "n1", "--http-port", "0")
    machine.start("speaker")
    machine.start("controller")
    wait_until(
        lambda: FAR in machine.run("ip", "route"), what="the route of the other node's block"
    )
    subprocess.run(["ip", "netns", "add", f"{netns}-p"], check=True, timeout=10)
    sandbox = Sandbox(
        "c0ffee0123456789", f"/run/netns/{netns}-p",
        arguments=(("K8S_POD_NAMESPACE", "shop"), ("K8S_POD_NAME", "cart-0")),
    )  # fmt: skip
    runtime = Runtime(
        load_network(machine.root / "net.d"), bin_dirs=[machine.root / "bin"],
        results_dir=machine.root / "results", namespace=netns,
    )  # fmt: skip
    address = str(runtime.add(sandbox)["ips"][0]["address"]).partition("/")[0]
    return Cluster(machine, kubeconfig, address)


ALL = ("-A",)


def test_all_nodes_at_once_say_which_did_not_answer(cluster: Cluster):
    """n2 has no agent and no report: exit 4, and n1's rows are there."""
    for kind, command in (("peers", "peers"), ("routes", "routes"), ("pods", "pods")):
        done = cluster.machine.slash32(command, *ALL, "-o", "json")
        assert done.returncode == 4, (command, done.stdout, done.stderr)
        assert "n2 did not answer" in done.stderr
        document = json.loads(done.stdout)
        jsonschema.validate(document, {**SCHEMAS, "$ref": f"#/$defs/{kind}"})
        assert {row["node"] for row in document} == {"n1"}
    (peer,) = cluster.rows("peers", "peers", "--node", "n1")
    assert (peer["state"], peer["received"], peer["accepted"]) == ("Established", 1, 1)
    (status,) = json.loads(cluster.said("status", *ALL, "-o", "json", code=4))
    assert status["healthy"] is True
    assert cluster.machine.slash32("peers", "--node", "n9").returncode == 2


def test_a_node_that_cannot_be_asked_is_answered_for_by_its_report(cluster: Cluster):
    """Asked with a way that leads nowhere and no socket here: the NodeStatus in the API."""
    elsewhere = (
        "--run-dir",
        str(cluster.machine.root / "nowhere"),
        "--via",
        "false",
        "--node",
        "n1",
    )
    wait_until(
        lambda: cluster.machine.slash32("peers", *elsewhere).returncode == 0,
        what="n1's report", deadline_s=90,
    )  # fmt: skip
    (peer,) = cluster.rows("peers", "peers", *elsewhere)
    assert (peer["node"], peer["state"]) == ("n1", "Established")
    assert peer["reported_at"]


def test_blocks_pools_and_the_audit(cluster: Cluster):
    """Blocks of both nodes; sizes by the API's pools; what n2 would say is missing."""
    blocks = {row["block"]: row["node"] for row in cluster.rows("blocks", "blocks", "--node", "n1")}
    assert blocks[FAR] == "n2"
    assert set(blocks.values()) == {"n1", "n2"}
    shown = json.loads(cluster.said("ipam", "show", *ALL, "-o", "json", code=4))
    assert [(row["pool"], row["addresses"], row["used"]) for row in shown] == [("pods", 65536, 1)]
    assert cluster.rows("ipam-check", "ipam", "check", *ALL, code=4) == []
    refused = cluster.rows(
        "ipam-release", "ipam", "release", FAR, cluster.address, *ALL, "--yes", code=1
    )
    assert [row["outcome"] for row in refused] == ["refused", "refused"]
    assert "cart-0" in refused[1]["holder"]


def test_explain_topology_history_and_the_rest(cluster: Cluster):
    """The pod by its address; the picture; the journal; the router's side; resources."""
    report = json.loads(cluster.said("explain", cluster.address, "--from", "n1", "-o", "json"))
    assert report["verdict"] == "ok"
    jsonschema.validate(report, json.loads((ROOT / "docs/schemas/explain.json").read_text()))
    drawn = cluster.machine.slash32("topology", "-o", "svg")
    assert drawn.returncode in (0, 1, 4), drawn.stderr
    ElementTree.fromstring(drawn.stdout)  # noqa: S314  (ours)
    assert "10.255.1.2" in drawn.stdout
    entries = json.loads(cluster.said("history", FAR, "--node", "n1", "-o", "json"))
    assert "created" in {entry["action"] for entry in entries}
    assert "neighbor SLASH32 route-map" in cluster.said(
        "tor-config", "--vendor", "frr", "--peer", "r1"
    )
    for kind in ("ippools", "bgppeers", "nodes", "blocks", "bgpconfigurations"):
        assert cluster.said("get", kind, "-o", "name").strip()
    found = cluster.machine.slash32("doctor", "-o", "json")
    # A test's namespace has findings of its own; that the pools came from the API is what counts.
    assert found.returncode in (0, 1), found.stderr
    assert "not known" not in json.dumps([r for r in json.loads(found.stdout) if "pool" in r["id"]])


@pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl on PATH or in KUBEBUILDER_ASSETS")
@pytest.mark.parametrize("what", ["bgppeer/r1", "ippool/pods", "nodestatus/n1"])
def test_kubectl_waits_for_the_condition_ready(cluster: Cluster, what: str):
    """Without a command of ours; and for what is not so it waits in vain."""

    def wait(condition: str, seconds: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(KUBECTL), "--kubeconfig", str(cluster.kubeconfig), "wait",
             f"--for=condition={condition}", f"--timeout={seconds}s", what],
            capture_output=True, text=True, timeout=seconds + 30, check=False,
        )  # fmt: skip

    done = wait("Ready", 90)
    assert done.returncode == 0, done.stderr
    assert "condition met" in done.stdout
    assert wait("Ready=false", 1).returncode == 1
    explained = subprocess.run(
        [str(KUBECTL), "--kubeconfig", str(cluster.kubeconfig), "explain", "bgppeer.spec.peerIP"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert explained.returncode == 0, explained.stderr
