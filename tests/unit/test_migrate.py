"""Calico's resources as ours: what is kept, what is lost, and that nothing is lost in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from routing.calico import from_calico
from routing.cli.main import main
from routing.datastore.documents import load
from routing.datastore.resources import from_document, parse_resources, to_document
from routing.schemas.definitions import DEFINITIONS, root_schema
from tests.fakes.structural import refusals

CALICO = """
apiVersion: projectcalico.org/v3
kind: IPPoolList
items:
- apiVersion: projectcalico.org/v3
  kind: IPPool
  metadata:
    name: default-ipv4-ippool
    creationTimestamp: "2026-01-31T12:00:00Z"
    resourceVersion: "1013"
    uid: 6f1c2a52-9f3e-4f7e-9d37-0a8f6f6f4b1e
    labels: {rack: a}
    annotations: {projectcalico.org/metadata: "{}", team: network}
  spec:
    allowedUses: [Workload, Tunnel]
    assignmentMode: Automatic
    blockSize: 26
    cidr: 10.244.0.0/16
    ipipMode: Never
    natOutgoing: true
    nodeSelector: all()
    vxlanMode: CrossSubnet
---
apiVersion: crd.projectcalico.org/v1
kind: BGPPeer
metadata: {name: tor}
spec:
  peerIP: 192.0.2.1
  asNumber: 64512
  nodeSelector: rack == 'a'
  keepOriginalNextHop: true
  maxRestartTime: 90s
  password: {secretKeyRef: {name: bgp, key: tor}}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec:
  asNumber: 64513
  logSeverityScreen: Debug
  nodeToNodeMeshEnabled: false
  serviceClusterIPs: [{cidr: 10.96.0.0/12}]
  prefixAdvertisements: [{cidr: 10.244.0.0/16, communities: [rack]}]
  communities: [{name: rack, value: "64512:1"}]
---
apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: tor}
spec:
  importV4: [{action: Reject, cidr: 10.96.0.0/12, matchOperator: In}]
  exportV4:
  - {action: Accept, source: RemotePeers}
  - {action: Reject, cidr: 10.244.7.0/24, matchOperator: In}
"""


def one(kind: str, spec: Any, version: str = "projectcalico.org/v3") -> dict[str, Any]:
    """A document of Calico's."""
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": spec}


def run(tmp_path: Path, text: str, *options: str) -> Result:
    """The command on a file."""
    path = tmp_path / "calico.yaml"
    path.write_text(text)
    command = ["migrate", "from-calico", "--dry-run", "-f", str(path), *options]
    return CliRunner().invoke(main, command)


def test_a_cluster_is_translated_and_every_loss_is_named(tmp_path: Path):
    """What is printed can be applied as it is, comments and all."""
    done = run(tmp_path, CALICO)
    assert done.exit_code == 1
    kept = [
        (type(each).__name__, each.meta.name) for each in parse_resources(done.stdout, source="f")
    ]
    assert kept == [
        ("IPPoolResource", "default-ipv4-ippool"),
        ("BGPPeerResource", "tor"),
        ("BGPConfigurationResource", "default"),
        ("BGPFilterResource", "tor"),
    ]
    assert "team: network" in done.stdout
    assert "projectcalico.org" not in "".join(
        line for line in done.stdout.splitlines() if not line.startswith("#")
    )
    lost = [line for line in done.stderr.splitlines() if line]
    assert lost == [f"slash32: {line[2:]}" for line in done.stdout.splitlines() if line[0] == "#"]
    for words in (
        "IPPool 'default-ipv4-ippool': left out spec.vxlanMode = 'CrossSubnet': must be Never",
        "IPPool 'default-ipv4-ippool': left out spec.natOutgoing = True: must be false",
        "BGPPeer 'tor': left out spec.keepOriginalNextHop = True: must be false",
        "BGPConfiguration 'default': left out spec.logSeverityScreen = 'Debug'",
        "BGPConfiguration 'default': left out spec.serviceClusterIPs",
        "BGPFilter 'tor': left out spec.exportV4[0].source = 'RemotePeers'",
    ):
        assert any(words in line for line in lost), (words, lost)
    assert len(lost) == 6


def test_json_says_the_same(tmp_path: Path):
    """For programs."""
    told = json.loads(run(tmp_path, CALICO, "-o", "json").stdout)
    assert [each["kind"] for each in told["resources"]] == [
        *("IPPool", "BGPPeer", "BGPConfiguration", "BGPFilter")
    ]
    assert {each["field"] for each in told["lost"]} >= {"spec.vxlanMode", "spec.natOutgoing"}


def test_what_needs_nothing_left_out_is_the_same_but_for_apiversion():
    """Calico's users' resources apply with only apiVersion changed, here and at the API server."""
    spec = {"cidr": "10.244.0.0/16", "blockSize": 26, "ipipMode": "Never", "vxlanMode": "Never",
            "natOutgoing": False, "nodeSelector": "all()", "allowedUses": ["Workload", "Tunnel"],
            "assignmentMode": "Automatic", "disableBGPExport": False}  # fmt: skip
    migration = from_calico([one("IPPool", spec)])
    assert migration.lost == ()
    (document,) = migration.documents
    assert document["spec"] == spec
    schema = next(root_schema(each) for each in DEFINITIONS if each.kind == "IPPool")
    assert refusals(schema, dict(document)) == []


def test_what_is_translated_keeps_its_meaning():
    """Read by our reader, field by field."""
    migration = from_calico(load(CALICO, source="f"))
    peer = next(each for each in migration.documents if each["kind"] == "BGPPeer")
    assert to_document(from_document(peer))["spec"] == {
        "peerIP": "192.0.2.1",
        "asNumber": 64512,
        "nodeSelector": "rack == 'a'",
        "maxRestartTime": "90s",
        "holdTime": "9s",
        "password": {"secretKeyRef": {"name": "bgp", "key": "tor"}},
    }


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        # Without the condition the rule would match more than it should.
        (
            "BGPFilter",
            {"importV4": [{"action": "Reject", "interface": "eth0"}]},
            "spec.importV4[0].interface = 'eth0': slash32 does not judge routes by interface",
        ),
        # Services' addresses must not become pods'.
        (
            "IPPool",
            {"cidr": "10.0.0.0/24", "allowedUses": ["LoadBalancer"]},
            "spec.allowedUses[0] = 'LoadBalancer'",
        ),
        ("IPPool", {"cidr": "10.0.0.1/24"}, "spec.cidr = '10.0.0.1/24': has host bits set"),
        (
            "BGPPeer",
            {"localWorkloadSelector": "all()", "asNumber": 1},
            "spec.peerIP = None: is required",
        ),
        ("BGPPeer", {"peerIP": "192.0.2.1", "asNumber": 1, "ttlSecurity": 0}, "spec.ttlSecurity"),
        ("GlobalNetworkPolicy", {}, "slash32 enforces no policy"),
        ("IPAMBlock", {}, "slash32 claims its own blocks"),
        ("Unheard", {}, "slash32 has no such kind"),
        (
            "Node",
            {"bgp": {"asNumber": 64601, "ipv4Address": "192.0.2.11/24"}},
            "kubectl annotate node a slash32.io/ipv4-address=192.0.2.11",
        ),
        ("Node", {"bgp": {"routeReflectorClusterID": "1.0.0.1"}}, "reflect no routes"),
    ],
)
def test_what_is_not_taken_over_at_all(kind: str, spec: Any, words: str):
    """Less would be another wish than the operator's."""
    for version in ("projectcalico.org/v3", "crd.projectcalico.org/v1"):
        migration = from_calico([one(kind, spec, version)])
        assert migration.documents == ()
        assert migration.lost[-1].is_whole
        assert any(words in str(each) for each in migration.lost)


def test_one_use_of_several_is_left_out():
    """A pool for pods and Services stays one for pods."""
    spec = {"cidr": "10.0.0.0/24", "allowedUses": ["LoadBalancer", "Workload"]}
    migration = from_calico([one("IPPool", spec)])
    assert migration.documents[0]["spec"]["allowedUses"] == ["Workload"]
    assert [each.field for each in migration.lost] == ["spec.allowedUses[0]"]


def test_a_field_nobody_knows_is_named():
    """Calico's next version may bring one."""
    migration = from_calico([one("IPPool", {"cidr": "10.0.0.0/24", "newField": {"a": 1}})])
    assert len(migration.documents) == 1
    assert str(migration.lost[0]) == (
        "IPPool 'a': left out spec.newField = {'a': 1}: slash32 has no such field"
    )


def test_somebody_elses_document_is_named():
    """`kubectl get all -o yaml` brings many."""
    migration = from_calico([{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {}}])
    assert "not one of Calico's" in str(migration.lost[0])


def test_the_command_changes_nothing_and_says_so(tmp_path: Path):
    """Without --dry-run it does nothing at all."""
    path = tmp_path / "calico.yaml"
    path.write_text(CALICO)
    done = CliRunner().invoke(main, ["migrate", "from-calico", "-f", str(path)])
    assert done.exit_code == 2
    assert "--dry-run" in done.output


def test_a_clean_translation_exits_0_and_an_unreadable_file_2(tmp_path: Path):
    """As every command of ours."""
    clean = run(tmp_path, json.dumps(one("IPPool", {"cidr": "10.0.0.0/24"})))
    assert (clean.exit_code, clean.stderr) == (0, "")
    assert run(tmp_path, "a: [").exit_code == 2
    missing = ["migrate", "from-calico", "--dry-run", "-f", str(tmp_path / "none")]
    assert CliRunner().invoke(main, missing).exit_code == 2


def test_a_field_whose_name_looks_like_a_path_is_refused_with_its_pool():
    """Found by fuzzing: it is not found again by its path, which ended in a KeyError."""
    pool = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": {"name": "six"},
        "spec": {"cidr": "fd00::/64", "blockSize": 122, "]]>]]>": "x"},
    }
    done = from_calico([pool])
    assert not done.documents
    assert [each.is_whole for each in done.lost if each.name == "six"][-1:] == [True]
