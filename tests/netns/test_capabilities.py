"""The least that agent and speaker need: a cluster that runs with exactly what manifests/agent.yaml
gives, in a container's mounts, and what fails without each single thing of it."""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import build, namespaces, runtime, teardown
from lab.chaos.world import World
from lab.plan import LabFailure, Shape
from lab.waiting import Progress, wait_until

ROOT = Path(__file__).parents[2]
HOST_SYSCTLS = "/mnt"
"""Stands for the container's mount of the host's; our own mount namespace hides what is there."""
DEADLINE_S = 30.0
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.exabgp,
    pytest.mark.bird,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
    pytest.mark.skipif(shutil.which("bird") is None, reason="the lab's routers run BIRD 2"),
]


def containers() -> dict[str, Any]:
    """Those of the DaemonSet, by name."""
    (workload,) = yaml.safe_load_all((ROOT / "manifests/agent.yaml").read_text())
    spec = workload["spec"]["template"]["spec"]
    return {each["name"]: each for each in [*spec["initContainers"], *spec["containers"]]}


def given(name: str) -> list[str]:
    """The capabilities of a container; everything else is dropped."""
    context = containers()[name]["securityContext"]
    assert not context.get("privileged")
    assert context["capabilities"]["drop"] == ["ALL"]
    return list(context["capabilities"].get("add", []))


def contained(capabilities: list[str], *, has_sysctls: bool = True) -> tuple[str, ...]:
    """A command that runs another as a container would: these capabilities, /proc/sys read-only."""
    bounds = ",".join(["-all", *(f"+{each.lower()}" for each in capabilities)])
    mounts = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys"
    if has_sysctls:
        mounts = f"mount --bind /proc/sys/net {HOST_SYSCTLS} && {mounts}"
    bounded = 'exec setpriv --bounding-set="$0" --inh-caps=-all --no-new-privs "$@"'
    return ("unshare", "--mount", "sh", "-c", f"{mounts} && {bounded}", bounds)


@contextmanager
def lab_of(
    *, agent: list[str], speaker: list[str], has_sysctls: bool = True
) -> Iterator[build.Lab]:
    """Two nodes that speak BGP to each other, one of them waiting for the other; not yet up."""
    shape = Shape(nodes=2, tors=1, pods=1, topology="mesh")
    lab = build.claim(f"c{os.getpid()}", shape, progress=Progress(io.StringIO()))
    lab.wrappers = {
        "agent": contained(agent, has_sysctls=has_sysctls),
        "speaker": contained(speaker),
    }
    if has_sysctls:
        lab.agent_options = ("--proc-sys-net", HOST_SYSCTLS)
    try:
        yield lab
    finally:
        teardown.down(lab)


def log_of(lab: build.Lab, name: str) -> str:
    path = lab.paths.log(name)
    return path.read_text(errors="replace") if path.exists() else ""


def denials(lab: build.Lab) -> list[str]:
    """What the kernel has refused to any of them, as they told it."""
    return [
        f"{path.stem}: {line}"
        for path in sorted(lab.paths.log("x").parent.glob("*-node*.log"))
        for line in log_of(lab, path.stem).splitlines()
        if re.search("not permitted|denied|Read-only file", line)
    ]


def waiting(lab: build.Lab) -> list[str]:
    """The nodes where somebody listens at port 179."""
    return [
        node.name
        for node in lab.plan.nodes
        if re.search(r":179\s", namespaces.run(["ss", "-Hltn"], namespace=node.namespace))
    ]


def without(capabilities: list[str], missing: str) -> list[str]:
    assert missing in capabilities
    return [each for each in capabilities if each != missing]


def test_a_cluster_runs_with_exactly_what_the_manifest_gives():
    """ADD, both families, BGP both ways, routes, nftables, sysctls, CHECK, STATUS, a repeated ADD,
    DEL with connection tracking; and nothing of it was refused by the kernel on the way."""
    with lab_of(agent=given("agent"), speaker=given("speaker")) as lab:
        build.up(lab)
        world = World(lab)
        world.settled()
        assert len(waiting(lab)) == 1  # the other connects
        pod, other = world.pod_on("node1"), world.pod_on("node2")
        for version in (4, 6):
            assert world.reaches(pod.name, world.address_of(other, version))
        plugin = lab.runtime_of("node1")
        plugin.status()
        sandbox = runtime.sandbox_of(pod)
        plugin.check(sandbox)
        assert "table inet slash32" in world.run("node1", "nft", "list", "ruleset")
        (link,) = [
            each["ifname"]
            for each in namespaces.ip_json(world.machine("node1").namespace, "link")
            if each["ifname"].startswith("s32")
        ]
        # Somebody opens a door; the next ADD closes it, by netlink and through /proc.
        sysctls = {f"net.ipv4.conf.{link}.rp_filter": "0", f"net.ipv6.conf.{link}.accept_ra": "2"}
        for name, value in sysctls.items():
            world.run("node1", "sysctl", "-qw", f"{name}={value}")
        plugin.add(sandbox)
        for name, value in sysctls.items():
            assert world.run("node1", "sysctl", "-n", name).strip() != value
        assert world.run("node1", "sysctl", "-n", "net.ipv4.conf.all.forwarding").strip() == "1"
        plugin.delete(sandbox)
        assert link not in world.run("node1", "ip", "link")
        plugin.add(sandbox)
        assert world.findings() == []
        assert denials(lab) == []


def test_without_net_admin_the_agent_does_not_start():
    """It says what it could not do."""
    agent = without(given("agent"), "NET_ADMIN")
    with lab_of(agent=agent, speaker=given("speaker")) as lab:
        lab.wire()
        lab.apply_resources()
        with pytest.raises(LabFailure, match=r"net\.ipv4\.conf\.all\.forwarding=1.*not permitted"):
            lab.start_nodes()


def test_without_sys_admin_no_pod_is_added():
    """Its namespace cannot be entered; nothing is left of it."""
    agent = without(given("agent"), "SYS_ADMIN")
    with lab_of(agent=agent, speaker=given("speaker")) as lab:
        lab.wire()
        lab.apply_resources()
        lab.start_nodes()
        with pytest.raises(runtime.PluginFailed, match="not permitted") as caught:
            lab.add_pods()
        assert caught.value.code == 102
        wait_until(lambda: [] if denials(lab) else ["a denial"], what="log", deadline_s=DEADLINE_S)


def test_without_the_hosts_sysctls_the_agent_does_not_start():
    """Those of a container are read-only; the mount is not for show."""
    with lab_of(agent=given("agent"), speaker=given("speaker"), has_sysctls=False) as lab:
        lab.wire()
        lab.apply_resources()
        with pytest.raises(LabFailure, match="Read-only file system"):
            lab.start_nodes()


def test_without_net_bind_service_no_session_is_waited_for():
    """Port 179 is not opened; the node whose turn it is to connect finds nobody there."""
    speaker = without(given("speaker"), "NET_BIND_SERVICE")
    with lab_of(agent=given("agent"), speaker=speaker) as lab:
        lab.wire()
        lab.apply_resources()
        lab.start_nodes()

        nodes = [node.name for node in lab.plan.nodes]

        def unconnected() -> list[str]:
            return [n for n in nodes if not lab.ask(n, "status")["speaker_connected"]]

        wait_until(unconnected, what="the speakers", deadline_s=DEADLINE_S)
        assert waiting(lab) == []
        assert all(row["state"] != "Established" for n in nodes for row in lab.ask(n, "peers"))


# -- what is written about it --------------------------------------------------------------------


def test_the_documents_say_what_the_manifest_gives():
    """docs/security.md, docs/install.md, the units of docs/without-kubernetes.md."""
    table = re.findall(
        r"^\| (install|speaker|agent) \| (?:none|`([A-Z_]+)`) \|",
        (ROOT / "docs/security.md").read_text(),
        re.MULTILINE,
    )
    written: dict[str, list[str]] = {}
    for name, capability in table:
        written.setdefault(name, []).extend([capability] if capability else [])
    assert written == {name: given(name) for name in containers()}
    install = (ROOT / "docs/install.md").read_text()
    for name in ("speaker", "agent"):
        (row,) = re.findall(rf"^\| {name} \|.*$", install, re.MULTILINE)
        assert set(re.findall(r"`([A-Z]+_[A-Z_]+)`", row)) == set(given(name))
    units = (ROOT / "docs/without-kubernetes.md").read_text()
    for name in ("speaker", "agent"):
        (bounds,) = re.findall(
            rf"ExecStart=\S+ {name}\b.*\nCapabilityBoundingSet=(.*)$", units, re.MULTILINE
        )
        assert bounds.split() == [f"CAP_{each}" for each in given(name)]


def test_the_container_has_the_mount_it_is_told_of():
    """Else it would write to its own, which is read-only."""
    agent = containers()["agent"]
    env = {each["name"]: each.get("value") for each in agent["env"]}
    mounts = {each["name"]: each["mountPath"] for each in agent["volumeMounts"]}
    assert env["SLASH32_PROC_SYS_NET"] == mounts["proc-sys-net"]
    (workload,) = yaml.safe_load_all((ROOT / "manifests/agent.yaml").read_text())
    volumes = {each["name"]: each for each in workload["spec"]["template"]["spec"]["volumes"]}
    assert volumes["proc-sys-net"]["hostPath"] == {"path": "/proc/sys/net", "type": "Directory"}


MODES = {
    "agent.sock": 0o600, "cni.sock": 0o600, "bgp.sock": 0o600, "agent.lock": 0o600,
    "exabgp.conf": 0o600, "passwords": 0o600, "deleted": 0o700, "state/snapshot": 0o600,
    "state/cooldown": 0o600, "state/journal": 0o600, "state/sysctls": 0o600,
    "../cluster/store.db": 0o600,
    "cni-conf/10-slash32.conflist": 0o644,
}  # fmt: skip
"""Under a node's run directory, as docs/security.md has them."""


@contextmanager
def loosest_umask() -> Iterator[None]:
    """What is made with a mode of its own has it all the same."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def test_every_file_and_socket_has_its_mode():
    """After a password, an ADD, a DEL, and a DEL while the agent was away; and no other file is
    there than those that are known, so that a new one is decided on."""
    with lab_of(agent=given("agent"), speaker=given("speaker")) as lab, loosest_umask():
        build.up(lab)
        world = World(lab)
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bgp"},
                  "stringData": {"mesh": "s3cret"}}  # fmt: skip
        bgp = {"apiVersion": "slash32.io/v1", "kind": "BGPConfiguration",
               "metadata": {"name": "default"},
               "spec": {"asNumber": 64512, "nodeToNodeMeshEnabled": True,
                        "nodeMeshPassword": {"secretKeyRef": {"name": "bgp", "key": "mesh"}}},
               }  # fmt: skip
        world.apply(yaml.safe_dump_all([secret, bgp]))
        world.settled()
        run_dir = lab.paths.run_dir("node1")
        plugin, sandbox = lab.runtime_of("node1"), runtime.sandbox_of(world.pod_on("node1"))
        plugin.delete(sandbox)
        plugin.add(sandbox)
        wait_until(
            lambda: [] if (run_dir / "passwords").exists() else ["passwords"],
            what="the copy of the passwords",
            deadline_s=DEADLINE_S,
        )
        world.kill("agent-node1")
        plugin.delete(sandbox)
        (record,) = (run_dir / "deleted").iterdir()
        assert stat.S_IMODE(record.stat().st_mode) == 0o600
        found = {name: stat.S_IMODE((run_dir / name).lstat().st_mode) for name in MODES}
        assert found == MODES
        assert stat.S_IMODE((lab.paths.cni_bin("node1") / "slash32").stat().st_mode) == 0o755
        known = {*MODES, "cni-results", "cni-bin", "cni-conf", "state"}
        others = {
            str(path.relative_to(run_dir))
            for path in run_dir.rglob("*")
            if path.parent.name not in {"cni-results", "cni-bin", "deleted"}
        }
        assert others <= known
        world.start_agent("node1")
        world.wait(lambda: not list((run_dir / "deleted").iterdir()), "the record to be done")
