"""``slash32 explain`` in a real lab: a healthy way is called so, and each injected fault is named.

The agent mends many of these within a second. Where it would, it is held (SIGSTOP) while explain
looks: explain asks the kernel itself, and needs no agent for what the kernel shows.
"""

from __future__ import annotations

import getpass
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from lab import build, namespaces, routers, state, teardown
from lab.build import Lab
from lab.plan import Machine, Shape, resources
from lab.waiting import Progress
from routing.datastore.resources import API_VERSION

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.bird,
    pytest.mark.exabgp,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
    pytest.mark.skipif(shutil.which("bird") is None, reason="the lab's routers run BIRD 2"),
]

NAME = f"why{os.getpid()}"
NAMED_DEADLINE_S = 90
SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "explain.json"
OURS = "proto 132 metric 1032"


class Bench:
    """A lab with a pod on each of two nodes, and hands to break it with."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.source, self.target = (str(lab.addresses_of(pod)[0]) for pod in lab.plan.pods)
        self.near, self.far = lab.plan.nodes
        self.block = next(str(b) for b in lab.blocks_of(self.far) if b.version == 4)

    def explain(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """From the near pod to the far one, asked on the near node."""
        subject = arguments or (self.target, "--from", self.source, "-o", "json")
        return self.command("explain", *subject)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Any command, on the near node."""
        way = shlex.split(build.way_to_nodes(self.lab).replace("{node}", self.near.name))
        return subprocess.run(
            [*way, *arguments],
            env=build.environment(self.lab.paths) | {"SLASH32_VIA": build.way_to_nodes(self.lab)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def ip(self, node, line: str) -> None:
        namespaces.ip_batch(node.namespace, [line])

    def sysctl(self, node, path: str, value: str) -> None:
        namespaces.write_sysctls(node.namespace, {path: value})

    def veth(self, node) -> str:
        pod = self.lab.plan.pods_on(node.name)[0]
        shown = namespaces.ip_json(node.namespace, "link", "show", "type", "veth")
        return next(str(x["ifname"]) for x in shown if pod.container_id in x.get("ifalias", ""))

    def process(self, name: str) -> int:
        record = state.load(self.lab.paths.root)
        assert record is not None
        return next(p.pid for p in record.processes if p.name == name)

    @contextmanager
    def held(self, node) -> Iterator[None]:
        """The node's agent does nothing for a while."""
        pid = self.process(f"agent-{node.name}")
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def apply_pool(self, *, disabled: bool) -> None:
        pool = next(
            r for r in resources(self.lab.plan, API_VERSION) if r["metadata"]["name"] == "lab-v4"
        )
        pool["spec"]["disableBGPExport"] = disabled
        namespaces.run(
            build.slash32_command("apply", "-f", "-"),
            env=build.environment(self.lab.paths),
            stdin=json.dumps(pool),
        )

    def configure_router(self, change: Callable[[str], str]) -> None:
        """Changes BIRD's configuration as an operator would; the file is loaded at once."""
        tor = self.lab.plan.tors[0]
        text = change(routers.bird_conf(self.lab.plan, tor))
        self.lab.paths.bird_conf(tor.name).write_text(text)
        socket = str(self.lab.paths.bird_socket(tor.name))
        namespaces.run(["birdc", "-s", socket, "configure"])

    @contextmanager
    def router(self, node, inside: str, asn: int | None = None) -> Iterator[None]:
        """The router's session with ``node`` has ``inside`` in it, and expects ``asn``."""

        def change(text: str) -> str:
            found = re.search(
                rf"protocol bgp {node.name} from node \{{\n(.*?)\n\}}", text, re.DOTALL
            )
            assert found is not None
            body = found[1] if asn is None else found[1].replace(f"as {node.asn}", f"as {asn}")
            return text.replace(found[0], found[0].replace(found[1], f"{body}\n{inside}"))

        self.configure_router(change)
        try:
            yield
        finally:
            self.configure_router(lambda text: text)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    progress = Progress(io.StringIO())
    shape = Shape(nodes=2, tors=1, pods=1)
    build.check_machine(shape)
    lab = build.claim(NAME, shape, progress=progress)
    try:
        build.up(lab)
        lab.finish()
        yield Bench(lab)
    finally:
        problems = teardown.down(lab)
    assert problems == []


def named(bench: Bench, fault: str) -> dict[str, Any]:
    """The first report whose first wrong step is ``fault``."""
    end_s = time.monotonic() + NAMED_DEADLINE_S
    while True:
        done = bench.explain()
        report: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
        first = report.get("firstWrong") or {}
        if first.get("fault") == fault:
            assert done.returncode == 1
            assert report["conclusion"].startswith(f"{fault} at {first['place']}: ")
            assert first["remedy"]
            return report
        if time.monotonic() > end_s:
            raise AssertionError(
                f"{fault} was not named: {report.get('conclusion')} {done.stderr[-2000:]}"
            )


def healthy(bench: Bench) -> dict[str, Any]:
    """The first report without a fault."""
    end_s = time.monotonic() + NAMED_DEADLINE_S
    while True:
        done = bench.explain()
        if done.returncode == 0:
            report: dict[str, Any] = json.loads(done.stdout)
            return report
        if time.monotonic() > end_s:
            raise AssertionError(f"never healthy: {done.stdout[-800:]} {done.stderr[-2000:]}")


def test_a_healthy_way_is_ok_step_by_step_and_the_json_is_as_published(bench: Bench):
    """Every step has evidence, nothing is unknown, exit 0."""
    report = healthy(bench)
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    assert report["verdict"] == "ok"
    assert {step["verdict"] for step in report["steps"]} == {"ok"}
    assert [step["id"] for step in report["steps"]] == [
        *("ipam", "block", "holder", "announcing-sessions", "announced"),
        *("receiving-sessions", "received", "accepted", "best"),
        *("source-link", "source-sysctls", "source-host-route", "source-pod"),
        *("fib", "lookup", "neighbour", "mtu", "arrival"),
        *("target-link", "target-sysctls", "target-host-route", "target-pod"),
        *("back-fib", "back-lookup", "back-neighbour", "back-mtu", "back-arrival"),
    ]


def test_probes_pictures_names_and_prefixes(bench: Bench):
    """Pods by name, from a node, a block; real packets; SVG that parses; plain text."""
    probed = bench.explain("node2-pod1", "--from", "node1-pod1", "--probe", "-o", "json")
    assert probed.returncode == 0, probed.stdout + probed.stderr
    sizes = [s["title"] for s in json.loads(probed.stdout)["steps"] if s["id"] == "probe"]
    assert sizes == ["a packet of 84 bytes is answered", "a packet of 1500 bytes is answered"]
    drawn = bench.explain(bench.target, "--from", "node1", "-o", "svg")
    assert drawn.returncode == 0
    ElementTree.fromstring(drawn.stdout)  # noqa: S314  (ours)
    assert "http://" not in drawn.stdout.replace("http://www.w3.org/2000/svg", "")
    said = bench.explain(bench.block)
    assert said.returncode == 0, said.stdout
    assert said.stdout.splitlines()[-1] == "everything on the way there and back is as it should be"
    assert "\x1b[" not in said.stdout
    assert bench.explain("nobody-pod9").returncode == 1
    assert bench.explain("10.0.0.0/99 x").returncode == 2


def test_all_nodes_at_once_one_by_name_and_an_audit_that_is_clean(bench: Bench):
    """Every node by its own agent, over the same way as explain's."""
    for arguments in (("status",), ("peers",), ("routes",), ("pods",), ("ipam", "check")):
        done = bench.command(*arguments, "-A", "-o", "json")
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        nodes = {row["node"] for row in json.loads(done.stdout)}
        assert nodes == (set() if arguments[0] == "ipam" else {"node1", "node2"})
    one = bench.command("peers", "--node", "node2", "-o", "name")
    assert one.stdout == f"node2/{bench.lab.plan.links_of(bench.far)[0][1].ipv4}\n"


def test_a_repair_is_in_the_history_with_its_reason(bench: Bench):
    """The agent puts a route back that another hand deleted, and writes down that it did."""
    bench.ip(bench.near, f"route del {bench.block} {OURS}")
    end_s = time.monotonic() + NAMED_DEADLINE_S
    found: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    while not found and time.monotonic() < end_s:
        done = bench.command("history", bench.block, "--since", "5m", "-o", "json")
        entries = json.loads(done.stdout)
        found = [entry for entry in entries if entry["action"] == "repaired"]
    assert found, entries
    assert found[0]["reason"].startswith("it was gone from the kernel")
    first = entries[0]
    assert (first["action"], first["of"]) == ("created", "remote")
    assert "path from" in first["reason"]


def until(condition: Callable[[], bool], what: str) -> None:
    """The agent, let go again, has mended it: the next fault is not to meet the last one."""
    end_s = time.monotonic() + NAMED_DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, f"not within {NAMED_DEADLINE_S} s: {what}"
        time.sleep(0.1)


def route_to(bench: Bench, node: Machine, prefix: str) -> str:
    shown = namespaces.ip_json(node.namespace, "route", "show", prefix)
    return str(shown[0].get("dev")) if shown else ""


@contextmanager
def route_deleted(bench: Bench) -> Iterator[None]:
    with bench.held(bench.near):
        bench.ip(bench.near, f"route del {bench.block} {OURS}")
        yield
    until(lambda: route_to(bench, bench.near, bench.block) == "uplink0", "the route is back")


@contextmanager
def foreign_route(bench: Bench) -> Iterator[None]:
    bench.ip(bench.near, f"route add blackhole {bench.block} proto static metric 5")
    yield
    bench.ip(bench.near, f"route del blackhole {bench.block} proto static metric 5")


@contextmanager
def rp_filter(bench: Bench) -> Iterator[None]:
    bench.sysctl(bench.far, "net/ipv4/conf/all/rp_filter", "1")
    bench.ip(bench.far, f"route add {bench.source}/32 dev lo proto static")
    yield
    bench.ip(bench.far, f"route del {bench.source}/32 dev lo proto static")
    bench.sysctl(bench.far, "net/ipv4/conf/all/rp_filter", "0")


@contextmanager
def proxy_arp_off(bench: Bench) -> Iterator[None]:
    with bench.held(bench.near):
        path = f"net/ipv4/conf/{bench.veth(bench.near)}/proxy_arp"
        bench.sysctl(bench.near, path, "0")
        yield
        bench.sysctl(bench.near, path, "1")


@contextmanager
def neighbour_failed(bench: Bench) -> Iterator[None]:
    tor = bench.lab.plan.tors[0]
    bench.ip(tor, "link set node1 arp off")
    bench.ip(bench.near, "neigh flush dev uplink0")
    yield
    bench.ip(tor, "link set node1 arp on")
    bench.ip(tor, "neigh flush dev node1")
    bench.ip(bench.near, "neigh flush dev uplink0")


@contextmanager
def veth_down(bench: Bench) -> Iterator[None]:
    with bench.held(bench.far):
        veth = bench.veth(bench.far)
        bench.ip(bench.far, f"link set {veth} down")
        yield
    until(lambda: route_to(bench, bench.far, f"{bench.target}/32") == veth, "the link is up again")


@contextmanager
def wrong_host_route(bench: Bench) -> Iterator[None]:
    with bench.held(bench.far):
        bench.ip(bench.far, f"route replace {bench.target}/32 dev lo {OURS}")
        yield
    until(lambda: route_to(bench, bench.far, f"{bench.target}/32") != "lo", "the route is right")


@contextmanager
def not_announced(bench: Bench) -> Iterator[None]:
    """By the operator's own wish, which somebody has forgotten."""
    bench.apply_pool(disabled=True)
    yield
    bench.apply_pool(disabled=False)


@contextmanager
def mtu_too_small(bench: Bench) -> Iterator[None]:
    bench.ip(bench.near, "link set uplink0 mtu 1400")
    yield
    bench.ip(bench.near, "link set uplink0 mtu 1500")


def in_router(inside: str, *, far: bool = True, asn: int | None = None):
    return lambda bench: bench.router(
        bench.far if far else bench.near, inside.replace("BLOCK", bench.block), asn
    )


FAULTS = {
    "route-missing": route_deleted,
    "foreign-route": foreign_route,
    "rp-filter": rp_filter,
    "proxy-arp-off": proxy_arp_off,
    "neighbour-failed": neighbour_failed,
    "veth-down": veth_down,
    "wrong-host-route": wrong_host_route,
    "block-not-announced": not_announced,
    "filtered-at-router": in_router("ipv4 { import where net !~ [ BLOCK ]; };"),
    "next-hop-off-link": in_router(
        "ipv4 { next hop self no; next hop keep; "
        "export filter { bgp_next_hop = 192.0.2.77; accept; }; };",
        far=False,
    ),
    "mtu-too-small": mtu_too_small,
    "peer-wrong-asn": in_router("", asn=64999),
    "peer-silent-syn": in_router('  password "other";'),
}
"""peer-sends-nothing is FRR's to inject, and its own test's: test_frr_faults.py."""


@pytest.mark.parametrize("fault", FAULTS)
def test_an_injected_fault_is_named_with_its_remedy(bench: Bench, fault: str):
    """Exit 1, the first wrong step is the fault, the last line says so."""
    with ExitStack() as stack:
        stack.enter_context(FAULTS[fault](bench))
        report = named(bench, fault)
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))


def test_afterwards_all_is_well_again(bench: Bench):
    """The faults were what explain saw, and nothing stays of them."""
    assert healthy(bench)["verdict"] == "ok"


def test_a_leaked_address_of_another_node_is_given_back_by_a_report(bench: Bench):
    """A living pod's is refused by name; one whose link went without a DEL is in the audit, goes by
    the audit's own report, and is in that node's history. Last: it costs a pod its network."""
    pod = bench.lab.plan.pods_on(bench.far.name)[0]
    refused = bench.command("ipam", "release", bench.target, "-A", "--yes", "-o", "json")
    assert refused.returncode == 1, refused.stderr
    (row,) = json.loads(refused.stdout)
    assert (row["node"], row["outcome"]) == (bench.far.name, "refused")
    assert pod.name in row["holder"]
    healthy(bench)

    bench.ip(bench.far, f"link del {bench.veth(bench.far)}")
    check = bench.command("ipam", "check", "-A", "-o", "json")
    assert check.returncode == 1
    assert bench.target in {p["what"] for p in json.loads(check.stdout)}
    report = bench.lab.paths.root / "report.json"
    report.write_text(check.stdout)
    done = bench.command(
        "ipam", "release", "-A", "--from-report", str(report), "--yes", "-o", "json"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = {row["what"]: row["outcome"] for row in json.loads(done.stdout)}
    assert outcomes[bench.target] == "released"
    assert set(outcomes.values()) <= {"released", "free"}
    assert bench.command("ipam", "check", "-A").returncode == 0
    told = bench.command("history", bench.target, "--node", bench.far.name, "-o", "json")
    assert [e["reason"] for e in json.loads(told.stdout) if e["kind"] == "address"] == [
        f"ipam release by {getpass.getuser()}"
    ]
