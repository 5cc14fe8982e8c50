"""What the API server lets through: our stand-in for it, and a real kube-apiserver, by one suite.

The rest is the real one's alone: that it takes every definition (a rule that could cost too much is
refused with the whole of it), and that an agent's token can write for its own node only.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings

from routing.schemas.definitions import DEFINITIONS
from tests.fakes.kube_apiserver import NAMESPACE, SKIPPED, KubeApiServer, assets, running
from tests.fakes.structural import refusals
from tests.property.schemas_strategies import SCHEMAS, changed, unchanged
from tests.unit.test_schemas import BLOCK, NOT_TAKEN, POOL, TAKEN, resource

ROOT = Path(__file__).parents[2]
PLURALS = {each.kind: each.plural for each in DEFINITIONS}
BLOCKS = "/apis/slash32.io/v1/blocks"
STATUSES = "/apis/slash32.io/v1/nodestatuses"
REPORTER = "reporter"
"""A NodeStatus that is there all the time, to write to."""
ROLES = "/apis/rbac.authorization.k8s.io/v1"
COMPARED = {"taken": 0, "refused": 0}
SAID_BY_EACH_IN_ITS_OWN_WORDS = (
    "required", "does not match", "minimum", "is not one of", "duplicate", "is not of type",
)  # fmt: skip
"""What JSON Schema says and not CEL."""


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[KubeApiServer]:
    """A kube-apiserver on which the installation was applied, or a skip."""
    directory = assets()
    if directory is None:
        pytest.skip(SKIPPED)
    with running(directory, tmp_path_factory.mktemp("kube-apiserver")) as real:
        real.install()
        for document in yaml.safe_load_all((ROOT / "manifests/install.yaml").read_text()):
            _apply(real, document)
        real.request("POST", STATUSES, resource("NodeStatus", {}, REPORTER))
        yield real


_COLLECTIONS = {
    "ServiceAccount": "/api/v1/namespaces/{0}/serviceaccounts",
    "ClusterRole": f"{ROLES}/clusterroles",
    "ClusterRoleBinding": f"{ROLES}/clusterrolebindings",
    "Role": f"{ROLES}/namespaces/{{0}}/roles",
    "RoleBinding": f"{ROLES}/namespaces/{{0}}/rolebindings",
    "ValidatingAdmissionPolicy": (
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
    ),
    "ValidatingAdmissionPolicyBinding": (
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
    ),
    "DaemonSet": "/apis/apps/v1/namespaces/{0}/daemonsets",
    "Deployment": "/apis/apps/v1/namespaces/{0}/deployments",
}
_INSTALLED_ALREADY = ("CustomResourceDefinition", "Namespace")


def _apply(server: KubeApiServer, document: Any) -> None:
    """Strictly: an unknown field of a manifest is an error."""
    if document["kind"] in _INSTALLED_ALREADY:
        return
    path = _COLLECTIONS[document["kind"]].format(NAMESPACE)
    answer = refused(partial(server.request, "POST", f"{path}?fieldValidation=Strict", document))
    if answer:
        pytest.fail(f"{document['kind']} {document['metadata']['name']}: {answer}")


def refused(ask: Callable[[], Any]) -> str:
    """What the server says to a request it refuses; "" when it takes it."""
    try:
        ask()
    except urllib.error.HTTPError as error:
        answer = json.loads(error.read())
        if error.code not in (400, 422):
            raise
        return str(answer["message"])
    return ""


def said(server: KubeApiServer, document: dict[str, Any]) -> str:
    """The server's word on a document, which is not kept."""
    path = f"/apis/slash32.io/v1/{PLURALS[document['kind']]}"
    asked = "dryRun=All&fieldValidation=Strict"
    if document["kind"] == "NodeStatus":
        # Creating one would drop the status unread.
        change, merge = {"status": document["status"]}, "application/merge-patch+json"
        path = f"{path}/{REPORTER}/status?{asked}"
        return refused(partial(server.request, "PATCH", path, change, content_type=merge))
    return refused(partial(server.request, "POST", f"{path}?{asked}", document))


@pytest.mark.parametrize(("kind", "spec"), TAKEN)
def test_the_server_takes_it_too(server, kind, spec):
    """As our stand-in does (tests/unit/test_schemas.py)."""
    assert said(server, resource(kind, spec)) == ""


@pytest.mark.parametrize(("kind", "spec", "words"), NOT_TAKEN)
def test_the_server_refuses_it_with_the_sentence(server, kind, spec, words):
    """Wherever the sentence is ours."""
    answer = said(server, resource(kind, spec))
    assert answer
    if words not in SAID_BY_EACH_IN_ITS_OWN_WORDS:
        assert words in answer


def test_the_server_and_its_stand_in_agree_on_any_document(server):
    """Documents as we write them, and with a field or two changed anywhere."""

    def judge(document: dict[str, Any]) -> None:
        # What a server itself decides would not be taken from us.
        for key in ("resourceVersion", "uid", "generation"):
            document["metadata"].pop(key, None)
        here, there = refusals(SCHEMAS[document["kind"]], document), said(server, document)
        COMPARED["refused" if there else "taken"] += 1
        assert bool(here) == bool(there), (document, here, there)

    for documents in (changed(), unchanged):
        run = settings(
            max_examples=60,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate),  # looking for less would take minutes
        )
        run(given(document=documents)(judge))()
    assert min(COMPARED.values()) >= 20, COMPARED


def test_what_must_not_change_does_not(server):
    """On an object that is there, also through the defaults it was given."""
    path = "/apis/slash32.io/v1/ippools"
    server.request("POST", path, resource("IPPool", POOL, "kept"))
    try:
        kept = server.request("GET", f"{path}/kept")
        for change, words in (
            ({"cidr": "10.245.0.0/16"}, "cannot be changed"),
            ({"blockSize": 27}, "blockSize cannot be changed"),
            ({"blockSize": 26}, ""),
            ({"disabled": True}, ""),
        ):
            document = {**kept, "spec": {**kept["spec"], **change}}
            put = f"{path}/kept?dryRun=All"
            answer = refused(partial(server.request, "PUT", put, document))
            assert words in answer
            assert bool(words) == bool(answer)
    finally:
        server.request("DELETE", f"{path}/kept")


# -- what an agent may do ------------------------------------------------------------------


class AsAgent:
    """Requests with the token that the agent's container on a node gets."""

    def __init__(self, server: KubeApiServer, node: str) -> None:
        self._server = server
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"slash32-{node}", "namespace": NAMESPACE},
            "spec": {
                "nodeName": node,
                "serviceAccountName": "slash32-agent",
                "containers": [{"name": "agent", "image": "slash32"}],
            },
        }
        made = server.request("POST", f"/api/v1/namespaces/{NAMESPACE}/pods", pod)
        ask = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "boundObjectRef": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": made["metadata"]["name"],
                    "uid": made["metadata"]["uid"],
                }
            },
        }
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/slash32-agent/token"
        self._token = server.request("POST", path, ask)["status"]["token"]

    def status(self, method: str, path: str, body: Any = None, *, patch: bool = False) -> int:
        """The HTTP status of a request, 2xx included."""
        try:
            self._server.request(
                method,
                path,
                body,
                token=self._token,
                content_type="application/merge-patch+json" if patch else "application/json",
            )
        except urllib.error.HTTPError as error:
            return error.code
        return 200


@pytest.fixture(scope="module")
def agents(server) -> tuple[AsAgent, AsAgent]:
    """Of node-a and node-b."""
    for node in ("node-a", "node-b"):
        server.request("POST", "/api/v1/nodes", {"kind": "Node", "metadata": {"name": node}})
    return AsAgent(server, "node-a"), AsAgent(server, "node-b")


def block(node: str, name: str = "10-0-0-0-26", **spec: Any) -> dict[str, Any]:
    """A Block of a node."""
    return resource("Block", {**BLOCK, "affinity": f"host:{node}", **spec}, name)


def test_an_agent_claims_for_its_own_node_only(server, agents):
    """Claims, confirms and gives back its own; of another node's, nothing: 403."""
    a, b = agents
    # The policy takes effect a moment after it was made.
    deadline = 100
    while a.status("POST", f"{BLOCKS}?dryRun=All", block("node-b")) != 403 and deadline:
        deadline -= 1
    assert a.status("POST", BLOCKS, block("node-b")) == 403
    assert a.status("POST", BLOCKS, block("node-a")) == 200
    kept = server.request("GET", f"{BLOCKS}/10-0-0-0-26")
    confirmed = {**kept, "spec": {**kept["spec"], "state": "confirmed"}}
    assert b.status("PUT", f"{BLOCKS}/10-0-0-0-26", confirmed) == 403
    assert b.status("DELETE", f"{BLOCKS}/10-0-0-0-26") == 403
    assert a.status("PUT", f"{BLOCKS}/10-0-0-0-26", confirmed) == 200
    assert a.status("DELETE", f"{BLOCKS}/10-0-0-0-26") == 200


def test_an_agent_reports_on_its_own_node_only(server, agents):
    """Its NodeStatus, and the status of its Node."""
    a, b = agents
    report = resource("NodeStatus", {"version": "0.1.0"}, "node-a")
    assert b.status("POST", STATUSES, report) == 403
    assert a.status("POST", STATUSES, report) == 200
    kept = server.request("GET", f"{STATUSES}/node-a")
    written = {**kept, "status": {"version": "0.1.1"}}
    assert b.status("PUT", f"{STATUSES}/node-a/status", written) == 403
    assert a.status("PUT", f"{STATUSES}/node-a/status", written) == 200
    condition = {"type": "NetworkUnavailable", "status": "False", "reason": "x", "message": "y"}
    change = {"status": {"conditions": [condition]}}
    assert b.status("PATCH", "/api/v1/nodes/node-a/status", change, patch=True) == 403
    assert a.status("PATCH", "/api/v1/nodes/node-a/status", change, patch=True) == 200


def test_an_agent_writes_nothing_that_operators_wish(server, agents):
    """No pool, no peer, no other namespace's Secret, no Node but the status of its own."""
    a, _ = agents
    assert a.status("POST", "/apis/slash32.io/v1/ippools", resource("IPPool", POOL)) == 403
    assert a.status("GET", "/apis/slash32.io/v1/ippools") == 200
    assert a.status("GET", "/api/v1/namespaces/default/secrets") == 403
    assert a.status("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets") == 200
    taint = {"spec": {"unschedulable": True}}
    assert a.status("PATCH", "/api/v1/nodes/node-a", taint, patch=True) == 403


def test_an_agent_takes_over_nothing_else(server, agents):
    """Nodes, Pods, Secrets, rights: what would make one stolen token a cluster's. 403 for all."""
    a, _ = agents
    pods, node = f"/api/v1/namespaces/{NAMESPACE}/pods", "/api/v1/nodes/node-b"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "thief", "namespace": NAMESPACE},
        "spec": {"containers": [{"name": "thief", "image": "thief"}]},
    }
    label: dict[str, Any] = {"metadata": {"labels": {"taken": "over"}}}
    token = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/slash32-controller/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    tried = {
        f"{method} {path}": a.status(method, path, body, patch=method == "PATCH")
        for method, path, body in (
            ("POST", "/api/v1/nodes", {"kind": "Node", "metadata": {"name": "node-c"}}),
            ("PATCH", "/api/v1/nodes/node-a", label),
            ("PATCH", node, label),
            ("PATCH", f"{node}/status", {"status": {"conditions": []}}),
            ("DELETE", node, None),
            ("POST", pods, pod),
            ("PATCH", f"{pods}/slash32-node-b", label),
            ("PATCH", f"{pods}/slash32-node-b/status", {"status": {"podIP": "10.0.0.1"}}),
            ("DELETE", f"{pods}/slash32-node-b", None),
            ("POST", f"{pods}/slash32-node-b/eviction", None),
            ("GET", f"{pods}/slash32-node-b/exec?command=sh&stdout=true", None),
            ("GET", "/api/v1/secrets", None),
            ("GET", "/api/v1/namespaces/kube-system/secrets", None),
            ("POST", f"/api/v1/namespaces/{NAMESPACE}/secrets", {"metadata": {"name": "x"}}),
            ("POST", token, request),
            ("POST", f"{ROLES}/clusterrolebindings", {"metadata": {"name": "x"}}),
        )
    }
    assert {words: code for words, code in tried.items() if code != 403} == {}
    sys.stdout.write(f"measured: 403 for {len(tried)} other writes and lists\n")


def test_kubectl_shows_whether_it_works(server):
    """The columns, as the server renders them."""
    path = "/apis/slash32.io/v1/bgppeers"
    server.request("POST", path, resource("BGPPeer", {"peerIP": "192.0.2.1", "asNumber": 64512}))
    try:
        condition = {"type": "Ready", "status": "True", "reason": "AllUp", "message": "3 of 3",
                     "lastTransitionTime": "2026-01-31T12:00:00Z"}  # fmt: skip
        status = {"status": {"established": "3/3", "nodes": 3, "conditions": [condition]}}
        merge = "application/merge-patch+json"
        asking = partial(server.request, "PATCH", f"{path}/a/status", status, content_type=merge)
        assert refused(asking) == ""
        table = server.request("GET", path, accept="application/json;as=Table;v=v1;g=meta.k8s.io")
        names = [each["name"] for each in table["columnDefinitions"] if not each["priority"]]
        cells = table["rows"][0]["cells"]
        shown = dict(zip([each["name"] for each in table["columnDefinitions"]], cells, strict=True))
    finally:
        server.request("DELETE", f"{path}/a")
    assert names == ["Name", "Peer", "ASN", "Established", "Ready", "Age"]
    assert (shown["Peer"], shown["ASN"], shown["Established"], shown["Ready"]) == (
        *("192.0.2.1", "64512"),
        *("3/3", "True"),
    )
    assert shown["Why"] == "3 of 3"
