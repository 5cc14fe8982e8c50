"""The lab's parts on the real kernel: wires, BIRD, probes, captures, claims, endings; no agent.

Static routes stand in for the agents, so that the lab is judged by itself. The two negative
controls, one that translates and one that encapsulates, show that the demo would notice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from lab import (
    build,
    capture,
    demo,
    namespaces,
    probes,
    processes,
    recording,
    routers,
    runtime,
    state,
    teardown,
)
from lab.build import Lab
from lab.plan import Address, LabFailure, LabPaths, Machine, Shape, plan_lab
from lab.processes import Process
from lab.state import LabBusy
from lab.waiting import Progress, wait_until

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

NAME = f"t{os.getpid()}"
Roots = dict[str, Path]


@pytest.fixture
def roots(tmp_path) -> Roots:
    """Directories of the test's own instead of /run and /var/lib."""
    return {"run_root": tmp_path / "run", "program_root": tmp_path / "programs"}


@pytest.fixture
def claimed(roots) -> Iterator[Lab]:
    """A lab of two nodes and two routers that has its name and nothing else yet."""
    shape = Shape(nodes=2, tors=2, pods=1)
    build.check_machine(shape)
    lab = build.claim(NAME, shape, progress=Progress(), **roots)
    try:
        yield lab
    finally:
        if lab.paths.root.exists():
            teardown.clear(lab.paths.root, **roots)


def _pods(lab: Lab) -> dict[str, tuple[Address, ...]]:
    return {
        pod.name: (ip_address(f"10.244.{n}.1"), ip_address(f"fd44:10:244::{n}:1"))
        for n, pod in enumerate(lab.plan.pods, start=1)
    }


def _route_by_hand(lab: Lab) -> None:
    """What agents and BGP would do: one pod per node, a default, the pod's way back."""
    for node, pod in zip(lab.plan.nodes, lab.plan.pods, strict=True):
        v4, v6 = _pods(lab)[pod.name]
        ends = lab.plan.links_of(node)
        hops4 = " ".join(f"nexthop via {far.ipv4}" for _, far in ends)
        hops6 = " ".join(f"nexthop via {far.ipv6} dev {near.ifname}" for near, far in ends)
        namespaces.write_sysctls(
            node.namespace, {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}
        )
        namespaces.create([pod.namespace])
        namespaces.ip_batch(
            node.namespace,
            [
                f"link add v0 type veth peer name eth0 netns {pod.namespace}",
                "addr add fe80::1/64 dev v0 nodad",
                "link set v0 up",
                f"route add default {hops4}",
                f"route add ::/0 {hops6}",
                f"route add {v4} dev v0",
                f"route add {v6} dev v0",
            ],
        )
        mac = namespaces.ip_json(node.namespace, "link", "show", "v0")[0]["address"]
        namespaces.ip_batch(
            pod.namespace,
            [
                f"addr add {v4}/32 dev eth0",
                f"addr add {v6}/128 dev eth0 nodad",
                "link set eth0 up",
                "route add 169.254.1.1 dev eth0",
                f"neigh add 169.254.1.1 lladdr {mac} dev eth0",
                "route add default via 169.254.1.1",
                "route add ::/0 via fe80::1 dev eth0",
            ],
        )
        for near, far in ends:
            namespaces.ip_batch(
                far.machine.namespace,
                [f"route add {v4} via {near.ipv4}", f"route add {v6} via {near.ipv6}"],
            )


def _routers_lack(lab: Lab) -> list[str]:
    """What routers still lack to know each other and the client."""
    try:
        sessions = [s for tor in lab.plan.tors for s in routers.sessions(lab.paths, tor)]
    except namespaces.CommandFailed as error:
        return [str(error)]
    return [
        f"{session.router} with {session.neighbour}"
        for session in sessions
        if session.neighbour.startswith("tor") and not session.is_established
    ] + [
        f"{tor.name} lacks {wanted}"
        for tor in lab.plan.tors
        for family, wanted in (("-4", "172.31.255.0/24"), ("-6", "fd00:31:255::/64"))
        if wanted
        not in {r["dst"] for r in namespaces.ip_json(tor.namespace, family, "route", "show")}
    ]


def _fabric(lab: Lab) -> None:
    """The lab with static routes, once its routers know each other and the client."""
    lab.wire()
    lab.start_routers()
    _route_by_hand(lab)
    wait_until(lambda: _routers_lack(lab), what="routers", deadline_s=20)


def _examined(lab: Lab) -> tuple[demo.Verdict, list[probes.Outcome]]:
    """What a demo would say of pings and streams over the fabric."""
    pods = _pods(lab)
    world = capture.world_of(lab.plan, pods)
    planned = probes.plan_probes(lab.plan, pods)
    names = [*pods, *(node.name for node in lab.plan.nodes), "client"]
    with probes.running(lab.plan, names, log=lab.paths.log("probers")) as probers:
        session = recording.start(lab.plan, lab.paths, build.environment(lab.paths))
        outcomes = probes.run(planned, probers, on_done=lambda count: None)
        captures = recording.finish(session)
    verdict = demo.Verdict()
    verdict.pairs_reachable, verdict.pairs = probes.reachable_pairs(outcomes)
    judged = capture.judge(captures, world)
    demo.judge_capture(judged, world, verdict=verdict, progress=lab.progress)
    return verdict, outcomes


@pytest.mark.bird
def test_a_routed_fabric_passes_and_its_end_leaves_nothing(claimed, roots):
    """Two routers, two nodes: every probe arrives by its true address, nothing stays behind."""
    before = demo.Footprint.take()
    _fabric(claimed)
    verdict, outcomes = _examined(claimed)

    assert [f"{o.probe}: {o.problem}" for o in outcomes if o.problem] == []
    # 2 pairs, 4 node to pod, 2 client to pod, 2 pod to client; two kinds; two families.
    assert len(outcomes) == (2 + 4 + 2 + 2) * 2 * 2
    assert verdict.holds, verdict.problems

    record = claimed.record
    assert teardown.down(claimed, **roots) == []
    assert teardown.remains(claimed.paths, record) == []
    assert not roots["run_root"].exists()
    assert demo.Footprint.take() == before


@pytest.mark.bird
def test_masquerading_on_a_node_is_noticed_by_server_capture_and_ruleset(claimed):
    """The negative control of "0 translated": three witnesses, each alone enough."""
    _fabric(claimed)
    node = claimed.plan.nodes[0].namespace
    rules = "add table ip t; add chain ip t c { type nat hook postrouting priority 100; }; "
    namespaces.run(["nft", f"{rules} add rule ip t c masquerade"], namespace=node)
    verdict, outcomes = _examined(claimed)

    assert any("the server saw 172.30." in (o.problem or "") for o in outcomes)
    assert verdict.translated > 0
    assert namespaces.translation_rules(node) == ["nft chain t/c"]
    assert verdict.pairs_reachable < verdict.pairs == 2


@pytest.mark.bird
def test_a_vxlan_between_nodes_is_noticed_although_every_probe_arrives(claimed):
    """The negative control of "0 encapsulated": pods cannot tell, the wire can."""
    _fabric(claimed)
    ends = [claimed.plan.links_of(node)[0][0] for node in claimed.plan.nodes]
    pods = [v4 for v4, _ in _pods(claimed).values()]
    for here, there, remote_pod in ((0, 1, pods[1]), (1, 0, pods[0])):
        namespaces.ip_batch(
            ends[here].machine.namespace,
            [
                f"link add vx type vxlan id 7 dstport 4789 local {ends[here].ipv4} "
                f"remote {ends[there].ipv4} dev uplink0",
                f"addr add 192.168.77.{here}/24 dev vx",
                "link set vx up",
                f"route add {remote_pod} via 192.168.77.{there} dev vx",
            ],
        )
    verdict, outcomes = _examined(claimed)

    pairs = [o for o in outcomes if o.probe.traffic is capture.Traffic.POD_TO_POD]
    assert [o.problem for o in pairs if o.problem] == []
    assert verdict.encapsulated > 0
    assert not verdict.holds


def test_a_fresh_lab_has_no_default_route_on_a_node_and_one_on_the_client(claimed):
    """Before BGP a node knows its two links and nothing else."""
    claimed.wire()
    assert claimed.nodes_with_default_route() == []
    client = namespaces.default_routes(claimed.plan.client.namespace)
    assert {len(route["nexthops"]) for route in client} == {2}
    assert len(client) == 2


def test_a_name_in_use_is_refused_and_the_lab_stays_as_it_is(claimed, roots):
    """The sentence names the lab and who holds it."""
    claimed.wire()
    with pytest.raises(LabBusy, match=f"lab '{NAME}' is being built .* process {os.getpid()}"):
        build.claim(NAME, Shape(), progress=Progress(), **roots)
    assert all(namespaces.exists(m.namespace) for m in claimed.plan.machines)


def test_a_namespace_of_somebody_else_is_refused_and_not_removed(roots):
    """A name like ours that no lab remembers belongs to whoever made it."""
    foreign = f"s32-{NAME}-node1"
    namespaces.create([foreign])
    try:
        with pytest.raises(LabBusy, match=f"{foreign} exists and no lab remembers it"):
            build.claim(NAME, Shape(nodes=1), progress=Progress(), **roots)
        assert namespaces.exists(foreign)
        assert not (roots["run_root"] / NAME).exists()
    finally:
        namespaces.delete(foreign)


KILLED_BUILDER = """
import os, signal, sys
from pathlib import Path
from lab import build, namespaces, processes
from lab.plan import Shape
from lab.waiting import Progress
roots = {"run_root": Path(sys.argv[2]), "program_root": Path(sys.argv[3])}
lab = build.claim(sys.argv[1], Shape(nodes=2, pods=1), progress=Progress(), **roots)
lab.wire()
lab.start_routers()
# One process that is in the state file, and one that was started and not yet written down.
node = lab.plan.nodes[0]
processes.start("stray", ["sleep", "300"], namespace=node.namespace,
                env=build.environment(lab.paths), log=lab.paths.log("stray"))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def half_built(roots) -> state.LabState:
    """The state of a lab whose builder was killed; BIRD and a stray process still run."""
    arguments = [NAME, str(roots["run_root"]), str(roots["program_root"])]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_BUILDER, *arguments],
        cwd=build.PROJECT_DIR,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    record = state.load(roots["run_root"] / NAME)
    assert record is not None
    return record


@pytest.mark.bird
def test_a_lab_killed_half_way_is_cleaned_up_by_the_next_of_its_name(half_built, roots):
    """Recorded processes, unrecorded ones and namespaces are gone before the new one begins."""
    inodes = [i for n in half_built.namespaces if (i := namespaces.inode(n)) is not None]

    def not_as_expected() -> list[str]:
        names = {p.name for p in processes.inside(inodes)}
        return [] if names == {"bird", "sleep"} else sorted(names)

    # The stray one may still be the nsenter that is about to become it.
    wait_until(not_as_expected, what="bird and sleep", deadline_s=10)

    lab = build.claim(NAME, Shape(nodes=1, pods=0), progress=Progress(), **roots)
    try:
        assert processes.inside(inodes) == []
        assert [n for n in half_built.namespaces if namespaces.exists(n)] == []
    finally:
        teardown.clear(lab.paths.root, **roots)


@pytest.mark.bird
def test_a_lab_killed_half_way_is_taken_down_by_down(half_built, roots):
    """Without an agent there is no DEL to make; everything goes all the same."""
    lab = build.open_lab(NAME, progress=Progress(), run_root=roots["run_root"])
    assert lab is not None
    assert teardown.down(lab, **roots) == []
    assert teardown.remains(lab.paths, half_built) == []
    assert not roots["run_root"].exists()


@pytest.mark.bird
def test_demos_sweep_only_what_dead_demos_left(half_built, roots):
    """Another prefix is not theirs, nor is a lab that is up."""
    root = roots["run_root"] / NAME
    try:
        teardown.sweep_demos("demo-", progress=Progress(), **roots)
        state.save(LabPaths(root, root), replace(half_built, is_up=True))
        teardown.sweep_demos(NAME, progress=Progress(), **roots)
        assert namespaces.exists(half_built.namespaces[-1])
        state.save(LabPaths(root, root), half_built)
        teardown.sweep_demos(NAME, progress=Progress(), **roots)
        assert not any(namespaces.exists(name) for name in half_built.namespaces)
        assert not root.exists()
    finally:
        teardown.clear(root, **roots)


def test_programs_go_elsewhere_when_the_run_directory_is_mounted_noexec(roots):
    """Debian mounts /run so; a CNI executable there could not be executed."""
    run_root = roots["run_root"]
    run_root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "none", str(run_root)], check=True)
    try:
        lab = build.claim(NAME, Shape(nodes=1), progress=Progress(), **roots)
        assert lab.paths.programs == roots["program_root"] / NAME
        assert lab.paths.cni_bin("node1").is_relative_to(roots["program_root"])
        assert lab.paths.programs.is_dir()
        teardown.clear(lab.paths.root, **roots)
        assert not lab.paths.programs.exists()
    finally:
        subprocess.run(["umount", str(run_root)], check=True)


@pytest.fixture
def namespace() -> Iterator[str]:
    """One namespace, removed in the end."""
    name = f"s32t-{os.getpid()}-lab"
    namespaces.create([name])
    try:
        yield name
    finally:
        namespaces.delete(name)


def _start(namespace: str, script: str, tmp_path: Path) -> Process:
    paths = LabPaths(tmp_path, tmp_path)
    return processes.start(
        "script",
        ["sh", "-c", script],
        namespace=namespace,
        env=build.environment(paths),
        log=tmp_path / "log",
    )


def _log_has(tmp_path: Path, word: str) -> None:
    def missing() -> list[str]:
        return [] if word in (tmp_path / "log").read_text() else [word]

    wait_until(missing, what="log", deadline_s=5, poll_s=0.01)


def test_a_process_is_started_in_its_namespace_and_ended_by_name_of_pid_and_time(
    namespace, tmp_path
):
    """Alive, found by its namespace, ended, not alive."""
    process = _start(namespace, "echo started; exec sleep 300", tmp_path)
    _log_has(tmp_path, "started")
    inode = namespaces.inode(namespace)
    assert inode is not None
    assert [p.pid for p in processes.inside([inode])] == [process.pid]
    assert processes.is_alive(process)
    assert processes.stop([process]) == []
    assert not processes.is_alive(process)


def test_a_pid_that_was_given_out_again_is_not_signalled(namespace, tmp_path):
    """The same pid with another start time is a stranger."""
    process = _start(namespace, "exec sleep 300", tmp_path)
    impostor = replace(process, start_ticks=process.start_ticks - 1)
    assert not processes.is_alive(impostor)
    assert processes.stop([impostor]) == []
    assert processes.is_alive(process)
    processes.stop([process])


def test_a_process_that_ignores_sigterm_is_killed(namespace, tmp_path, monkeypatch):
    """And reported, since it had to be."""
    monkeypatch.setattr(processes, "TERM_DEADLINE_S", 0.2)
    script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    process = _start(namespace, script, tmp_path)
    _log_has(tmp_path, "ready")
    assert processes.stop([process]) == [process]
    assert not processes.is_alive(process)


def test_a_program_that_is_not_installed_is_refused_by_name(namespace, tmp_path):
    """Before anything is started."""
    with pytest.raises(LabFailure, match="no program 'no-such-program'"):
        processes.start(
            "x",
            ["no-such-program"],
            namespace=namespace,
            env={"PATH": "/bin"},
            log=tmp_path / "log",
        )


RECORDING_PLUGIN = """#!/bin/sh
# A CNI plugin that writes down how it was called and answers as it is told.
here=$(dirname "$0")
config=$(cat)
echo "$(basename "$0") $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME" >>"$here/calls"
printf '%s\\n' "$config" >>"$here/stdin"
env | sort >"$here/environment"
readlink /proc/self/ns/net >"$here/netns"
[ -e "$here/fail-$CNI_COMMAND" ] && { cat "$here/fail-$CNI_COMMAND"; exit 1; }
case $CNI_COMMAND in
    ADD) echo "{\\"cniVersion\\": \\"1.1.0\\", \\"ips\\": [{\\"address\\": \\"10.0.0.1/32\\"}]}" ;;
    VERSION) echo '{"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}' ;;
esac
"""


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A directory of two recording plugins."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("first", "second"):
        (directory / name).write_text(RECORDING_PLUGIN)
        (directory / name).chmod(0o755)
    return directory


def _runtime(plugins: Path, namespace: str | None = None) -> runtime.Runtime:
    network = runtime.NetworkList("net", "1.1.0", ({"type": "first", "x": 1}, {"type": "second"}))
    return runtime.Runtime(
        network, bin_dirs=[plugins], results_dir=plugins.parent / "results", namespace=namespace
    )


SANDBOX = runtime.sandbox_of(plan_lab("x", Shape(nodes=1, pods=1)).pods[0])


def _calls(plugins: Path) -> list[list[str]]:
    return [line.split()[:2] for line in (plugins / "calls").read_text().splitlines()]


def _configs(plugins: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (plugins / "stdin").read_text().splitlines()]


def test_a_chain_is_added_forwards_and_deleted_backwards_with_its_result(plugins):
    """ADD hands each result on, CHECK and DEL get the last; DEL then forgets it."""
    node = _runtime(plugins)
    result = node.add(SANDBOX)
    node.check(SANDBOX)
    node.delete(SANDBOX)

    assert _calls(plugins) == [
        ["first", "ADD"],
        ["second", "ADD"],
        ["first", "CHECK"],
        ["second", "CHECK"],
        ["second", "DEL"],
        ["first", "DEL"],
    ]
    configs = _configs(plugins)
    assert configs[0] == {"type": "first", "x": 1, "name": "net", "cniVersion": "1.1.0"}
    assert [config.get("prevResult") for config in configs] == [None, *[result] * 5]
    assert node.kept_result(SANDBOX) is None
    assert runtime.addresses_in(result) == ["10.0.0.1"]


def test_a_plugin_runs_in_its_nodes_namespace_and_sees_nothing_of_ours(plugins, namespace):
    """The environment holds CNI's six variables and a PATH, and what sh adds."""
    _runtime(plugins, namespace).add(SANDBOX)
    assert (plugins / "netns").read_text() == f"net:[{namespaces.inode(namespace)}]\n"
    environment = dict(
        line.split("=", 1) for line in (plugins / "environment").read_text().splitlines()
    )
    assert set(environment) - {"PWD", "OLDPWD", "SHLVL", "_"} == {
        "PATH",
        "CNI_COMMAND",
        "CNI_CONTAINERID",
        "CNI_NETNS",
        "CNI_IFNAME",
        "CNI_ARGS",
        "CNI_PATH",
    }
    assert environment["CNI_NETNS"] == "/run/netns/s32-x-node1-pod1"
    assert len(environment["CNI_CONTAINERID"]) == 64
    assert "K8S_POD_NAME=node1-pod1" in environment["CNI_ARGS"].split(";")


def test_a_plugins_refusal_carries_its_code_and_its_sentence(plugins):
    """The specification's error object, or stderr's words when there is none."""
    node = _runtime(plugins)
    (plugins / "fail-ADD").write_text('{"code": 11, "msg": "later", "details": "no agent"}')
    with pytest.raises(runtime.PluginFailed, match=r"first ADD: code 11: later \(no agent\)") as e:
        node.add(SANDBOX)
    assert e.value.code == 11
    (plugins / "fail-ADD").write_text("Traceback")
    with pytest.raises(runtime.PluginFailed, match="exit status 1: Traceback") as e:
        node.add(SANDBOX)
    assert e.value.code is None
    assert node.kept_result(SANDBOX) is None


def test_status_gc_version_and_a_del_without_namespace_are_called_as_libcni_calls_them(plugins):
    """GC names what may stay under both names of the option; a lost namespace is an empty one."""
    node = _runtime(plugins)
    node.status()
    node.collect_garbage([SANDBOX])
    assert node.versions("first") == ["1.0.0", "1.1.0"]
    node.delete(SANDBOX, netns_is_gone=True)

    valid = [{"containerID": SANDBOX.container_id, "ifname": "eth0"}]
    gc = _configs(plugins)[2]
    assert gc["cni.dev/valid-attachments"] == gc["cni.dev/attachments"] == valid
    last = (plugins / "calls").read_text().splitlines()[-1]
    assert last == f"first DEL {SANDBOX.container_id}  eth0"


def test_gc_asks_every_plugin_although_one_fails(plugins):
    """The first failure is told in the end."""
    node = _runtime(plugins)
    (plugins / "fail-GC").write_text('{"code": 106, "msg": "one is left"}')

    with pytest.raises(runtime.PluginFailed, match="first GC: code 106: one is left"):
        node.collect_garbage([])

    assert _calls(plugins) == [["first", "GC"], ["second", "GC"]]


def test_a_plugin_that_is_missing_or_talks_nonsense_is_a_clear_failure(plugins):
    """The path that was searched; the text that is no JSON."""
    node = _runtime(plugins)
    (plugins / "second").write_text("#!/bin/sh\necho nonsense\n")
    with pytest.raises(runtime.PluginFailed, match="second: not a JSON object on stdout"):
        node.add(SANDBOX)
    (plugins / "first").unlink()
    with pytest.raises(runtime.PluginFailed, match=f"failed to find plugin 'first' in .*{plugins}"):
        node.add(SANDBOX)


def test_leftovers_of_pods_are_seen_on_a_node(namespace):
    """A link with our alias, a route to one address; the gateway's and a block's do not count."""
    node = Machine("node1", namespace)
    namespaces.ip_batch(
        namespace,
        [
            "route add 169.254.1.1/32 dev lo proto 132",
            "route add blackhole 10.244.0.0/26 proto 132",
            "link add plain type veth peer name other",
        ],
    )
    assert teardown.pod_leftovers(node) == []
    namespaces.ip_batch(
        namespace,
        [
            "link set plain alias slash32|1|x",
            "route add 10.244.0.1/32 dev lo proto 132",
            "route add fd44::1/128 dev lo proto 132",
        ],
    )
    assert teardown.pod_leftovers(node) == [
        "node1: link plain",
        "node1: route to 10.244.0.1",
        "node1: route to fd44::1",
    ]
