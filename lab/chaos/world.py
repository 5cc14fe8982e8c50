"""A lab as the experiments use it: what can be done to it, and what can be seen of it.

Everything is done as an operator or a disaster would: signals, ``ip``, ``sysctl``, ``birdc``,
``slash32``. Nothing is asked of slash32's own code but its commands.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from cni.attachment import Attachment
from lab import build, namespaces, oracle, processes, routers, runtime
from lab.build import Lab
from lab.chaos.rows import Verdict
from lab.chaos.watch import Flow, Watch, watching
from lab.plan import API_PORT, LabFailure, Machine, Pod
from lab.processes import Process
from lab.waiting import wait_until

DEADLINE_S = 60.0
_REQUEST = """
import json, sys, urllib.request
asked = json.load(sys.stdin)
data = None if asked["body"] is None else json.dumps(asked["body"]).encode()
kind = "application/merge-patch+json" if asked["method"] == "PATCH" else "application/json"
request = urllib.request.Request(asked["url"], data, {"Content-Type": kind}, method=asked["method"])
print(urllib.request.urlopen(request, timeout=20).read().decode())
"""
ORACLE_DEADLINE_S = 30.0
PROTOCOL = 132


class World:
    """One lab, up and converged."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    # -- who is there ----------------------------------------------------------------------

    def machine(self, name: str) -> Machine:
        """A node, a router or the client."""
        return next(m for m in self.lab.plan.machines if m.name == name)

    @property
    def nodes(self) -> list[str]:
        return [node.name for node in self.lab.plan.nodes]

    @property
    def tors(self) -> list[str]:
        return [tor.name for tor in self.lab.plan.tors]

    def pod_on(self, node: str) -> Pod:
        """The node's first pod."""
        return self.lab.plan.pods_on(node)[0]

    def address_of(self, pod: Pod, version: int = 4) -> str:
        return str(next(a for a in self.lab.addresses_of(pod) if a.version == version))

    def run(self, machine: str, *argv: str, ok: tuple[int, ...] = (0,)) -> str:
        """A program's output, run in the network of a machine or a pod."""
        return namespaces.run(argv, namespace=self.lab.plan.namespace_of(machine), ok=ok)

    # -- processes -------------------------------------------------------------------------

    def process(self, name: str) -> Process:
        """The last process started under that name: agent-NODE, speaker-NODE, bird-TOR."""
        return next(p for p in reversed(self.lab.record.processes) if p.name == name)

    def send(self, name: str, number: signal.Signals) -> None:
        """A signal to a process of this lab, known by pid and start time."""
        victim = self.process(name)
        if processes.is_alive(victim):
            os.kill(victim.pid, number)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends a process; returns when it is gone."""
        victim = self.process(name)
        self.send(name, number)
        self.wait(lambda: not processes.is_alive(victim), f"{name} to be gone")
        with suppress(ChildProcessError):
            os.waitpid(victim.pid, os.WNOHANG)

    def start_agent(self, node: str) -> None:
        self.lab.start_agent(self.machine(node))

    def start_speaker(self, node: str) -> None:
        self.lab.start_speaker(self.machine(node))

    def start_router(self, tor: str, *, is_restart: bool = False) -> None:
        """``is_restart``: BIRD recovers from a graceful restart (its option -R)."""
        self.lab.start_router(self.machine(tor), is_restart=is_restart)

    def exabgp_pid(self, node: str) -> int:
        """The ExaBGP that a node's speaker runs; 0 when there is none at the moment."""
        conf = str(self.lab.paths.run_dir(node) / "exabgp.conf").encode()
        speaker = self.process(f"speaker-{node}").pid
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if parent == speaker and conf in command:
                    return int(entry.name)
        return 0

    def kill_exabgp(self, node: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Ends a node's ExaBGP and leaves what supervises it; its pid."""
        pid = self.exabgp_pid(node)
        os.kill(pid, number)
        return pid

    def kill_speaker(self, node: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends supervisor and ExaBGP; returns when both are gone."""
        pid = self.exabgp_pid(node)
        self.kill(f"speaker-{node}", number)
        self.wait(lambda: not Path(f"/proc/{pid}").exists(), "ExaBGP to be gone")

    # -- looking ---------------------------------------------------------------------------

    def ask(self, node: str, *arguments: str) -> Any:
        """A node's ``slash32 ... -o json``; None while its agent does not answer."""
        done = subprocess.run(
            namespaces.enter(
                self.lab.plan.namespace_of(node),
                build.slash32_command(
                    *arguments, "--run-dir", str(self.lab.paths.run_dir(node)), "-o", "json"
                ),
            ),
            env=build.environment(self.lab.paths),
            cwd=build.PROJECT_DIR,
            capture_output=True,
            text=True,
            check=False,
        )
        return json.loads(done.stdout) if done.returncode in {0, 1} and done.stdout else None

    def apply(self, text: str) -> str:
        """``slash32 apply`` of YAML."""
        return namespaces.run(
            build.slash32_command("apply", "-f", "-"),
            namespace=self.lab.plan.client.namespace,
            env=build.environment(self.lab.paths),
            stdin=text,
        )

    def delete(self, kind: str, *names: str, ok: tuple[int, ...] = (0,)) -> str:
        """``slash32 delete``."""
        return namespaces.run(
            build.slash32_command("delete", kind, *names),
            namespace=self.lab.plan.client.namespace,
            env=build.environment(self.lab.paths),
            ok=ok,
        )

    def api(self, path: str, body: Any = None, *, method: str = "") -> Any:
        """A request past ``slash32`` to the lab's Kubernetes API: an object, or a switch of its
        own such as ``/-/silent`` (lab/apiserver). GET without a body, POST with one."""
        request = json.dumps({"url": f"http://127.0.0.1:{API_PORT}{path}", "body": body,
                              "method": method or ("GET" if body is None else "POST")})  # fmt: skip
        namespace = self.lab.plan.client.namespace
        argv = [sys.executable, "-c", _REQUEST]
        return json.loads(namespaces.run(argv, namespace=namespace, stdin=request) or "null")

    def events(self, reason: str) -> list[str]:
        """The sentences of the Kubernetes Events with that reason."""
        items = self.api("/apis/events.k8s.io/v1/namespaces/default/events")["items"]
        return [str(item["note"]) for item in items if item["reason"] == reason]

    def store_errors(self) -> list[str]:
        """Why agents cannot reach their store, with the node's name; [] when all can."""
        found = []
        for node in self.nodes:
            with suppress(LabFailure):
                row = self.lab.ask(node, "status")
                error = row["store"]["error"]
                found += [f"{node}: {error}"] if error else []
        return found

    def is_healthy(self, node: str) -> bool:
        status = self.ask(node, "status")
        return bool(status and status["healthy"])

    def settled(self) -> None:
        """Returns when every agent finds nothing wrong and every router has every session."""
        self.wait(lambda: all(self.is_healthy(n) for n in self.nodes), "healthy agents")
        self.at_ease()

    def at_ease(self) -> None:
        """The same without the agents' word, which costs a process each."""
        wait_until(self.lab.sessions_down, what="sessions", deadline_s=DEADLINE_S)
        wait_until(self.lab.missing_routes, what="routes", deadline_s=DEADLINE_S)

    def own_routes(self, machine: str) -> set[str]:
        """Our routes in a node's kernel, as text, without the numbers of next hop objects, of which
        whoever makes them anew takes the ones that are free."""
        found = set()
        for family in ("-4", "-6"):
            text = self.run(machine, "ip", family, "route", "show", "proto", str(PROTOCOL))
            found |= {re.sub(r" nhid \d+", "", line) for line in _whole_routes(text)}
        return found

    def delete_own_routes(self, node: str) -> None:
        """As by hand. Not ``ip route flush``: it sends back what it read, and the kernel refuses
        a route's nexthop object and its gateway in one message."""
        for family in ("-4", "-6"):
            lines = self.run(node, "ip", family, "route", "show", "proto", str(PROTOCOL))
            for line in _whole_routes(lines):
                words = line.split()
                kind = words[:2] if words[0] in {"blackhole", "unreachable"} else words[:1]
                command = ["ip", family, "route", "del", *kind, "metric", "1032"]
                self.run(node, *command, ok=(0, 2))

    def other_routes(self, machine: str) -> set[str]:
        """Every route of every table that is neither ours nor the kernel's, nor learned by BIRD."""
        found = set()
        for family in ("-4", "-6"):
            text = self.run(machine, "ip", "-N", family, "route", "show", "table", "all")
            found |= {
                line
                for line in _whole_routes(text)
                if not re.search(rf"proto ({PROTOCOL}|2|9)\b", line)
            }
        return found

    def session_lines(self, tor: str) -> list[str]:
        """A BIRD's sessions with the time of their last change."""
        text = routers.show_protocols(self.lab.paths, self.machine(tor))
        return [line for line in text.splitlines() if " BGP " in line]

    def is_up_at(self, tor: str, node: str) -> bool:
        """Whether a router has its session with a node Established."""
        with suppress(LabFailure):
            found = routers.sessions(self.lab.paths, self.machine(tor))
            return any(s.neighbour == node and s.is_established for s in found)
        return False

    def birdc(self, tor: str, *words: str) -> str:
        return namespaces.run(["birdc", "-s", str(self.lab.paths.bird_socket(tor)), *words])

    def routes_at(self, tor: str) -> set[str]:
        """The pod prefixes in a router's kernel."""
        found = set()
        for family in ("-4", "-6"):
            for line in self.run(tor, "ip", family, "route", "show", "proto", "bird").splitlines():
                if line and not line.startswith((" ", "\t")):
                    found.add(line.split()[0])
        return found

    def blocks_of(self, node: str) -> list[str]:
        return [str(block) for block in self.lab.blocks_of(self.machine(node))]

    @contextmanager
    def bird_edited(self, tor: str, *edits: tuple[str, str]) -> Iterator[None]:
        """A router's configuration with texts replaced, by ``birdc configure``; put back after."""
        path = self.lab.paths.bird_conf(tor)
        before = path.read_text()
        after = before
        for old, new in edits:
            if old not in after:
                raise ValueError(f"{path} has no {old!r}")
            after = after.replace(old, new)
        try:
            path.write_text(after)
            self.birdc(tor, "configure")
            yield
        finally:
            path.write_text(before)
            self.birdc(tor, "configure")
        # Whatever was edited, BIRD may have begun every session anew, just now.
        self.settled()

    @contextmanager
    def peer_edited(self, node: str, tor: str, fields: dict[str, Any]) -> Iterator[None]:
        """A BGPPeer of the lab with other fields, by ``slash32 apply``; put back after."""
        name = f"{node}-{tor}"
        documents = yaml.safe_load_all(self.lab.paths.resources_file.read_text())
        before = next(
            d for d in documents if d["kind"] == "BGPPeer" and d["metadata"]["name"] == name
        )
        try:
            self.apply(yaml.safe_dump({**before, "spec": {**before["spec"], **fields}}))
            yield
        finally:
            self.apply(yaml.safe_dump(before))

    # -- waiting and watching --------------------------------------------------------------

    def wait(
        self, condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S
    ) -> float:
        """Until ``condition`` holds; the seconds it took.

        Raises:
            LabFailure: it did not within the deadline.
        """
        begun_s = time.monotonic()
        wait_until(lambda: [] if condition() else [what], what=what, deadline_s=deadline_s)
        return time.monotonic() - begun_s

    def for_seconds(self, duration_s: float) -> None:
        """Lets a fault last as long as the row says; the time is part of the experiment."""
        end_s = time.monotonic() + duration_s
        wait_until(
            lambda: [] if time.monotonic() >= end_s else ["the time"],
            what="the fault's duration",
            deadline_s=duration_s + DEADLINE_S,
        )

    def flows(self) -> list[Flow]:
        """Client to node1's pod, and pod to pod from node2 to node1, in each family."""
        near, far = self.pod_on(self.nodes[0]), self.pod_on(self.nodes[1])
        client = self.lab.plan.client.namespace
        flows = [
            Flow("client to pod", client, self.address_of(near)),
            Flow("pod to pod", far.namespace, self.address_of(near)),
        ]
        if self.lab.plan.shape.dual_stack:
            flows.append(Flow("pod to pod, IPv6", far.namespace, self.address_of(near, 6)))
        return flows

    def watching(self, *flows: Flow) -> AbstractContextManager[Watch]:
        """Probes along ``flows`` (default: all of ``flows()``), routes on nodes and routers."""
        machines = {m.name: m.namespace for m in (*self.lab.plan.nodes, *self.lab.plan.tors)}
        return watching(flows or self.flows(), machines)

    def reaches(self, source: str, address: str, *, size_bytes: int = 56) -> bool:
        """One ping from a machine or a pod."""
        done = subprocess.run(
            namespaces.enter(
                self.lab.plan.namespace_of(source),
                ["ping", "-n", "-c", "1", "-W", "1", "-s", str(size_bytes), address],
            ),
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    # -- pods ------------------------------------------------------------------------------

    @contextmanager
    def extra_pod(self, node: str, tag: str) -> Iterator[tuple[runtime.Sandbox, str]]:
        """A namespace and a sandbox that is not added yet; deleted at the end."""
        first = self.pod_on(node)
        namespace = f"{first.namespace}-{tag}"
        namespaces.create([namespace])
        sandbox = replace(
            runtime.sandbox_of(first),
            container_id=(tag.encode().hex() + "0" * 64)[:64],
            netns=str(namespaces.NETNS_DIR / namespace),
        )
        try:
            yield sandbox, namespace
        finally:
            with suppress(runtime.PluginFailed):
                self.lab.runtime_of(node).delete(sandbox)
            namespaces.delete(namespace)

    def findings(self) -> list[str]:
        """What the oracle finds on any node now; [] when nothing leaks and nothing doubles."""
        found = []
        for node in self.lab.plan.nodes:
            network = runtime.load_network(self.lab.paths.cni_conf(node.name)).name
            alive = [
                oracle.Living(
                    Attachment(network, pod.container_id, runtime.IFNAME),
                    str(namespaces.NETNS_DIR / pod.namespace),
                )
                for pod in self.lab.plan.pods_on(node.name)
            ]
            netns = str(namespaces.NETNS_DIR / node.namespace)
            run_dir = self.lab.paths.run_dir(node.name)
            found += [
                f"{node.name}: {text}"
                for text in oracle.examine(netns, alive=alive, run_dir=run_dir)
            ]
        return found

    def at_rest(self) -> list[str]:
        """The oracle's findings that stay."""
        found: list[str] = []

        def look() -> list[str]:
            found[:] = self.findings()
            return found

        with suppress(LabFailure):
            wait_until(look, what="the oracle", deadline_s=ORACLE_DEADLINE_S, poll_s=0.5)
        return found


def zero(world: World, verdict: Verdict, watch: Watch) -> None:
    """0 lost, 0 route events anywhere."""
    events = watch.events_on(*world.nodes, *world.tors)
    verdict.note(f"{watch}, {len(events)} route events")
    verdict.must(watch.sent > 100, f"only {watch.sent} probes were sent")
    verdict.must(watch.lost == 0, f"{watch}")
    verdict.must(not events, f"route events: {'; '.join(events[:3])}")


def _whole_routes(text: str) -> list[str]:
    """One line a route, whatever iproute2 prints its next hops on."""
    joined = re.sub(r"\n[ \t]+", " ", text)
    return [" ".join(line.split()) for line in joined.splitlines() if line.strip()]
