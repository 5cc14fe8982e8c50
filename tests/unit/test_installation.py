"""The manifests: what runs with which rights, and that every command in them is one of ours."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from routing.cli.main import main
from routing.datastore.kubernetes_mirrors import MIRRORED
from routing.schemas.definitions import DEFINITIONS
from routing.settings import HTTP_PORT

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
PLURALS = {**{each.kind: each.plural for each in DEFINITIONS}, "Node": "nodes"}
AGENT = "system:serviceaccount:slash32-system:slash32-agent"


def documents(name: str) -> list[dict[str, Any]]:
    """Those of one file."""
    return [each for each in yaml.safe_load_all((MANIFESTS / name).read_text()) if each]


def found(name: str, kind: str, called: str) -> dict[str, Any]:
    """One of them."""
    (one,) = [
        each
        for each in documents(name)
        if each["kind"] == kind and each["metadata"]["name"] == called
    ]
    return one


def pod_specs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template, with its file."""
    for name in ("agent.yaml", "controller.yaml", "uninstall.yaml"):
        (workload,) = documents(name)
        yield name, workload["spec"]["template"]["spec"]


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Init containers first, as they run."""
    return [*spec.get("initContainers", []), *spec["containers"]]


COMMANDS = [
    pytest.param(each["command"], id=f"{name}:{each['name']}")
    for name, spec in pod_specs()
    for each in containers(spec)
    if name != "controller.yaml"
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_of_ours(command: list[str]):
    """Parsed by the very code that will run it: a misspelt option fails here, not on a node."""
    if command[0] != "slash32":
        assert command == ["sleep", "infinity"]
        return
    context = click.Context(main)
    node: Any = main
    words = command[1:]
    while isinstance(node, click.Group):
        name, node, words = node.resolve_command(context, words)
        context = click.Context(node, info_name=name, parent=context)
    node.make_parser(context).parse_args(list(words))
    node.make_context("x", list(words))


def test_the_parts_of_the_agents_pod():
    """Installer first; ExaBGP in a container of its own; one node at a time."""
    daemonset = found("agent.yaml", "DaemonSet", "slash32")["spec"]
    spec = daemonset["template"]["spec"]
    assert [each["name"] for each in spec["initContainers"]] == ["install"]
    assert [each["name"] for each in spec["containers"]] == ["speaker", "agent"]
    assert daemonset["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 1}
    assert spec["hostNetwork"] is True
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["tolerations"] == [{"operator": "Exists"}]


def test_probes_ask_where_the_agent_answers():
    """Each by its own page; the speaker has none that could kill its sessions."""
    speaker, agent = found("agent.yaml", "DaemonSet", "slash32")["spec"]["template"]["spec"][
        "containers"
    ]
    assert not [key for key in speaker if key.endswith("Probe")]
    for probe, page in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert agent[probe]["httpGet"] == {"host": "127.0.0.1", "port": HTTP_PORT, "path": page}


def test_nothing_but_agent_and_controller_has_credentials():
    """And nothing of them reaches the host: the token is projected into one container."""
    for name, spec in pod_specs():
        holders = [
            each["name"]
            for each in containers(spec)
            if any("serviceaccount" in m["mountPath"] for m in each.get("volumeMounts", []))
        ]
        is_mounted = spec.get("automountServiceAccountToken", True)
        assert (name, holders, is_mounted) in [
            ("agent.yaml", ["agent"], False),
            ("controller.yaml", [], True),
            ("uninstall.yaml", [], False),
        ]
        hosts = {each["hostPath"]["path"] for each in spec.get("volumes", []) if "hostPath" in each}
        assert hosts <= {
            *("/run/slash32", "/var/lib/slash32", "/opt/cni/bin", "/etc/cni/net.d"),
            "/proc/sys/net",  # where the agent writes sysctls; of the host's network only
        }


CAPABILITIES = {
    "speaker": ["NET_BIND_SERVICE"],
    "agent": ["NET_ADMIN", "SYS_ADMIN"],
    "clean": ["NET_ADMIN"],
}
"""Why, and that they are enough and needed: tests/netns/test_capabilities.py."""


def test_no_container_is_privileged():
    """Every one drops all capabilities and names those it needs."""
    for name, spec in pod_specs():
        for each in containers(spec):
            context = each["securityContext"]
            assert not context.get("privileged"), name
            assert context["capabilities"]["drop"] == ["ALL"], name
            assert context["capabilities"].get("add", []) == CAPABILITIES.get(each["name"], [])
            if each["name"] != "agent":
                # Kubernetes refuses the first beside SYS_ADMIN.
                assert context["allowPrivilegeEscalation"] is False, name
                assert context["readOnlyRootFilesystem"] is True, name


def allowed(role: str, group: str, resource: str) -> set[str]:
    """The verbs a ClusterRole grants."""
    return {
        verb
        for rule in found("rbac.yaml", "ClusterRole", role)["rules"]
        if group in rule["apiGroups"] and resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("kind", MIRRORED)
def test_the_agent_may_read_what_it_mirrors(kind: str):
    """A watch that RBAC refuses is an agent that never starts."""
    group = "" if kind == "Node" else "slash32.io"
    assert allowed("slash32-agent", group, PLURALS[kind]) >= {"list", "watch", "get"}


def test_the_agent_may_write_blocks_and_its_report_and_nothing_else_of_ours():
    """What an operator wishes is never written by an agent."""
    writing = {"create", "update", "patch", "delete", "deletecollection", "*"}
    for each in DEFINITIONS:
        granted = allowed("slash32-agent", "slash32.io", each.plural) & writing
        wanted = {"Block": {"create", "update", "delete"}, "NodeStatus": {"create"}}
        assert granted == wanted.get(each.kind, set()), each.kind


def test_no_right_is_granted_by_a_star_or_without_a_reason():
    """Each rule stands below a sentence that says what for."""
    lines = (MANIFESTS / "rbac.yaml").read_text().splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith("  - apiGroups:")]
    assert len(rules) > 10
    for number in rules:
        before = [line for line in lines[:number] if line.strip()]
        follows_alike = lines[number - 3].startswith("  - apiGroups:")
        assert before[-1].strip().startswith("#") or follows_alike, lines[number : number + 3]
    for role in [each for each in documents("rbac.yaml") if "rules" in each]:
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]


def test_the_admission_policy_covers_all_an_agent_can_write():
    """RBAC cannot say "its own"; what it lets an agent write of others', the policy must stop."""
    policy = found("policy.yaml", "ValidatingAdmissionPolicy", "slash32-agent-own-node")["spec"]
    assert policy["failurePolicy"] == "Fail"
    assert AGENT in policy["matchConditions"][0]["expression"]
    covered = {
        (group, resource, operation)
        for rule in policy["matchConstraints"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for operation in rule["operations"]
    }
    operations = {"create": "CREATE", "update": "UPDATE", "patch": "UPDATE", "delete": "DELETE"}
    for rule in found("rbac.yaml", "ClusterRole", "slash32-agent")["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    if verb in operations and resource != "events":
                        assert (group, resource, operations[verb]) in covered
    (binding,) = [
        each
        for each in documents("policy.yaml")
        if each["kind"] == "ValidatingAdmissionPolicyBinding"
    ]
    assert binding["spec"] == {
        "policyName": "slash32-agent-own-node",
        "validationActions": ["Deny"],
    }


def test_one_file_holds_all_that_kustomize_lists():
    """In the same order: the namespace before what is in it."""
    listed = documents("kustomization.yaml")[0]["resources"]
    assert documents("install.yaml") == [each for name in listed for each in documents(name)]


def test_kustomize_renders_the_same():
    """`kubectl apply -k` and `kubectl apply -f install.yaml` are one installation."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        ["kubectl", "kustomize", str(MANIFESTS)], capture_output=True, text=True, check=True
    )

    def key(document: dict[str, Any]) -> tuple[str, str]:
        return document["kind"], document["metadata"]["name"]

    rendered = [each for each in yaml.safe_load_all(done.stdout) if each]
    assert sorted(rendered, key=key) == sorted(documents("install.yaml"), key=key)
