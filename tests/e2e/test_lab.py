"""The whole lab by its commands, as a person types them: real agents, ExaBGP, BIRD, CNI plugin."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import build, namespaces, state
from lab.plan import plan_lab

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.bird,
    pytest.mark.exabgp,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
    pytest.mark.skipif(shutil.which("bird") is None, reason="the lab's routers run BIRD 2"),
]

NAME = f"e{os.getpid()}"
COMMAND_DEADLINE_S = 110
WAIT_DEADLINE_S = 60


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "routing.cli.main", "lab", *arguments]


def lab(*arguments: str, name: str | None = NAME) -> subprocess.CompletedProcess[str]:
    """Runs ``slash32 lab ...`` to its end; exec's own options must stand before its target."""
    verb, *rest = arguments
    options = ["--name", name] if name else []
    return subprocess.run(
        _command(verb, *options, *rest),
        cwd=build.PROJECT_DIR,
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        check=False,
    )


def leftovers(name: str) -> list[str]:
    """Namespaces, files and processes that belong to labs whose name begins so."""
    found = [e.name for e in namespaces.NETNS_DIR.glob(f"s32-{name}*")]
    for root in (state.RUN_ROOT, state.PROGRAM_ROOT):
        found += [str(path) for path in root.glob(f"{name}*")]
    marker = f"{state.RUN_ROOT}/{name}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker in (entry / "cmdline").read_bytes():
                    found.append(f"process {entry.name}")
            except OSError:
                continue
    return found


def wait_for(condition, what: str):
    """Returns the condition's first true value."""
    end_s = time.monotonic() + WAIT_DEADLINE_S
    while time.monotonic() < end_s:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {WAIT_DEADLINE_S} s: {what}")


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    """A lab of two nodes, two routers and a pod on each node; its end leaves nothing."""
    made = lab("up", "--nodes", "2", "--tors", "2", "--pods", "1")
    try:
        assert made.returncode == 0, made.stderr
        yield made.stdout
    finally:
        gone = lab("down")
    assert gone.returncode == 0, gone.stderr
    assert leftovers(NAME) == []


def test_the_demo_holds_and_leaves_nothing_behind():
    """Issue 2 item 1, as a person runs it: every claim, the last line, exit 0."""
    begin_s = time.monotonic()
    done = lab("demo", name=None)
    took_s = time.monotonic() - begin_s

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    last = done.stdout.splitlines()[-1]
    assert last == "demo: 30/30 pod pairs reachable, 0 packets encapsulated, 0 translated"
    for words in (
        "client  172.31.255.10",
        "tor1: birdc show protocols",
        "node1: slash32 peers",
        "node3: slash32 routes",
    ):
        assert words in done.stdout
    crossings = re.search(r"(\d+) of (\d+) crossings seen", done.stderr)
    assert crossings is not None
    # 24 ordered pairs on two nodes, by ping and by TCP, in two families.
    assert crossings.groups() == ("96", "96")
    assert "CHECK passes for 6 of 6 pods" in done.stderr
    assert "nothing left: no namespace, process, route or file" in done.stderr
    assert leftovers("demo-") == []
    assert took_s < 120


def test_a_demo_that_proves_nothing_is_refused():
    """One pod has nobody to reach."""
    done = lab("demo", "--nodes", "1", "--pods", "1", name=None)
    assert done.returncode == 2
    assert "a demo needs two pods at least" in done.stderr
    assert leftovers("demo-") == []


def test_up_shows_the_lab_and_how_to_go_on(small):
    """The picture, and three commands that can be pasted."""
    assert "node2  AS 64602" in small
    assert f"slash32 lab exec --name {NAME} node1 -- slash32 status" in small
    assert f"slash32 lab down --name {NAME}" in small


def test_status_is_healthy_and_lists_every_part(small):
    """2 BIRD, 2 agents, 2 speakers; 3 sessions on each router; 2 pods with both families."""
    done = lab("status", "-o", "json")
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    kinds = [part["kind"] for part in document["parts"]]
    assert document["healthy"] is True
    assert {k: kinds.count(k) for k in set(kinds)} == {"process": 6, "session": 6, "pod": 2}
    assert all(part["ok"] for part in document["parts"])
    table = lab("status")
    assert table.returncode == 0
    assert "Established" in table.stdout


def test_a_second_up_of_the_same_name_is_refused_and_changes_nothing(small):
    """One sentence with the ways out, exit 1."""
    done = lab("up")
    assert done.returncode == 1
    assert f"lab '{NAME}' is up (nodes: 2, routers: 2, pods on each node: 1)" in done.stderr
    assert lab("status").returncode == 0


def test_exec_asks_the_agent_of_the_node_it_is_in(small):
    """slash32 peers works there without options, from the node and from its pod."""
    for target in ("node2", "node2-pod1"):
        done = lab("exec", target, "--", "slash32", "peers", "-o", "json")
        assert done.returncode == 0, done.stderr
        peers = json.loads(done.stdout)
        assert {p["peer"] for p in peers} == {"172.30.0.2", "172.30.1.2"}
        assert {p["state"] for p in peers} == {"Established"}


def test_metrics_page_and_picture_tell_of_a_real_node(small):
    """A route that somebody removes is back, and counted; every node is heard for the picture."""

    def page(path: str) -> str:
        done = lab("exec", "node1", "--", "curl", "-sf", f"http://127.0.0.1:9178{path}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    metrics = page("/metrics")
    assert re.search(r"^slash32_bgp_peer_up{.*} 1.0$", metrics, re.MULTILINE)
    assert not re.search(r"^slash32_bgp_peer_up{.*} 0.0$", metrics, re.MULTILINE)
    assert re.search(r"^slash32_bgp_update_to_kernel_seconds_count [1-9]", metrics, re.MULTILINE)
    added = 'slash32_cni_request_duration_seconds_count{command="ADD",result="ok"} '
    assert added in metrics
    assert page("/healthz") == page("/readyz") == "ok\n"
    assert "● healthy" in page("/")
    routes = lab("exec", "node1", "--", "ip", "-j", "route", "show", "proto", "132").stdout
    remote = next(r["dst"] for r in json.loads(routes) if "/" in r["dst"] and "type" not in r)
    assert lab("exec", "node1", "--", "ip", "route", "del", remote).returncode == 0
    repaired = r'^slash32_route_drift_repaired_total{operation="create"} [1-9]'
    wait_for(lambda: re.search(repaired, page("/metrics"), re.MULTILINE), "the route is back")
    drawn = lab("exec", "node1", "--", "slash32", "topology")
    assert drawn.returncode == 0, drawn.stderr
    assert re.search(r"(\d+) of \1 nodes heard", drawn.stdout)


def test_exec_runs_in_the_targets_network_and_passes_the_exit_status_on(small):
    """The client's address is the client's; 7 stays 7."""
    shown = lab("exec", "client", "--", "ip", "-brief", "address", "show", "lo")
    assert "172.31.255.10/24" in shown.stdout
    reached = lab("exec", "node1-pod1", "--", "ping", "-c", "1", "-W", "2", "172.31.255.10")
    assert reached.returncode == 0, reached.stdout
    assert lab("exec", "node1", "--", "sh", "-c", "exit 7").returncode == 7


def test_a_pod_reaches_the_other_node_over_either_router_alone(small):
    """Two routers are for losing one: the other carries everything, and both do again later."""
    plan = plan_lab(NAME, state.load(state.RUN_ROOT / NAME).shape)  # type: ignore[union-attr]
    target = json.loads(lab("status", "-o", "json").stdout)["parts"][-1]["state"].split()[0]
    ping = ("exec", "node1-pod1", "--", "ping", "-c", "1", "-W", "1", target)
    for tor, other in (("tor1", "tor2"), ("tor2", "tor1")):
        namespace = plan.namespace_of(tor)
        links = [node.name for node in plan.nodes]
        namespaces.ip_batch(namespace, [f"link set {name} down" for name in links])
        try:
            wait_for(lambda: lab(*ping).returncode == 0, f"a path over {other}")
        finally:
            namespaces.ip_batch(namespace, [f"link set {name} up" for name in links])
        wait_for(lambda: lab("status").returncode == 0, f"{tor}'s sessions")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("exec", "node9", "--", "true"), 2, "no 'node9' in lab"),
        (("up", "--nodes", "0"), 2, "--nodes 0: must be from 1 to 100"),
        (("exec", "node1"), 2, "Missing argument"),
        (("up", "--families", "v6"), 2, "Invalid value"),
    ],
)
def test_bad_usage_is_refused_in_one_sentence(small, arguments, status, words):
    """Exit 2, and the lab stays as it is."""
    done = lab(*arguments)
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_lab_that_is_not_there_is_unreachable_and_taking_it_down_succeeds():
    """status and exec: 3. down: nothing to do is done."""
    assert lab("status", name="nosuch").returncode == 3
    assert lab("exec", "node1", "--", "true", name="nosuch").returncode == 3
    done = lab("down", name="nosuch")
    assert done.returncode == 0
    assert "no lab 'nosuch' here" in done.stdout
    assert lab("status", name="../x").returncode == 2


def _begun(name: str, wanted: str) -> subprocess.Popen[str]:
    """A ``lab up`` that has started the process ``wanted``."""
    process = subprocess.Popen(
        _command("up", "--name", name, "--nodes", "2", "--pods", "1"),
        cwd=build.PROJECT_DIR,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def has_started() -> bool:
        record = state.load(state.RUN_ROOT / name)
        return record is not None and any(p.name == wanted for p in record.processes)

    try:
        wait_for(has_started, wanted)
    except BaseException:
        process.terminate()
        process.communicate()
        raise
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_cleans_up_after_itself(number):
    """Ctrl-C in the middle: agents run already, nothing stays, the status says which signal."""
    name = f"{NAME}-i"
    process = _begun(name, "agent-node2")
    process.send_signal(number)
    _, errors = process.communicate(timeout=WAIT_DEADLINE_S)
    assert process.returncode == 128 + number
    assert f"ended by {number.name}" in errors
    assert leftovers(name) == []


def test_a_killed_build_is_cleaned_up_by_down():
    """SIGKILL leaves everything; one command later there is nothing."""
    name = f"{NAME}-k"
    process = _begun(name, "agent-node1")
    process.kill()
    process.communicate()
    try:
        assert leftovers(name) != []
    finally:
        done = lab("down", name=name)
    assert done.returncode == 0, done.stderr
    assert leftovers(name) == []


def test_a_dead_agent_is_a_finding_and_down_still_takes_everything(tmp_path):
    """status exits 1 and says which process ended; down says what it could not do politely."""
    name = f"{NAME}-d"
    made = lab("up", "--nodes", "2", "--pods", "1", "--families", "v4", name=name)
    try:
        assert made.returncode == 0, made.stderr
        record = state.load(state.RUN_ROOT / name)
        assert record is not None
        agent = next(p for p in record.processes if p.name == "agent-node1")
        os.kill(agent.pid, signal.SIGKILL)
        done = wait_for(lambda: (d := lab("status", name=name)).returncode == 1 and d, "a finding")
        assert re.search(r"process +node1 +agent +ended", done.stdout)
    finally:
        gone = lab("down", name=name)
    assert gone.returncode == 1
    assert "pods were removed without their DEL" in gone.stderr
    assert leftovers(name) == []
