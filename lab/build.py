"""Builds a lab step by step, and holds what the later commands need of one that stands.

The order is that of a rack: cables, routers, nodes' software, pods. Every step says what it does,
and what it starts is in the state file before the next step begins.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

from lab import namespaces, processes, routers, runtime, state
from lab.plan import (
    API_PORT,
    MTU_BYTES,
    Address,
    LabFailure,
    LabPaths,
    LabPlan,
    Machine,
    Pod,
    Prefix,
    Shape,
    plan_lab,
    resources,
)
from lab.state import LabBusy, LabState
from lab.waiting import Progress, in_parallel, wait_until
from routing.control import Unreachable, ask
from routing.datastore.resources import API_VERSION
from routing.routes import PROTOCOL

AGENT_DEADLINE_S = 30.0
SESSION_DEADLINE_S = 45.0
CONVERGENCE_DEADLINE_S = 30.0
ADDS_AT_ONCE = 4

NEEDED_PROGRAMS: Mapping[str, str] = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "bird": "bird2",
    "birdc": "bird2",
    "ping": "iputils-ping",
    "tcpdump": "tcpdump",
    "nft": "nftables",
}
"""Program -> the Debian package that has it."""

PROJECT_DIR = Path(__file__).resolve().parent.parent


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def slash32_command(*arguments: str) -> list[str]:
    """The ``slash32`` this lab belongs to, as a command line that needs no installation."""
    return [sys.executable, "-m", "routing.cli.main", *arguments]


def environment(paths: LabPaths) -> dict[str, str]:
    """What the lab's programs get: nothing of the caller's but where things are."""
    store = {"SLASH32_STORE": str(paths.store)}
    if paths.kubeconfig.exists():
        store = {"SLASH32_STORE": "kubernetes", "KUBECONFIG": str(paths.kubeconfig)}
    return {
        "PATH": f"{paths.bin}:{Path(sys.executable).parent}:{runtime.HOST_PATH}",
        "PYTHONPATH": str(PROJECT_DIR),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "LANG": "C.UTF-8",
        "HOME": "/root",
        **store,
    }


def way_to_nodes(lab: Lab) -> str:
    """How ``slash32`` is run on a node of the lab, for ``slash32 explain --via``."""
    paths, plan = lab.paths, lab.plan
    variables = {
        "SLASH32_NODE": "{node}",
        "SLASH32_RUN_DIR": str(paths.run_dir("{node}")),
        "SLASH32_STATE_DIR": str(paths.state_dir("{node}")),
        "SLASH32_STORE": str(paths.store),
    }
    words = ["nsenter", f"--net={namespaces.NETNS_DIR}/s32-{plan.name}-{{node}}", "--", "env"]
    words += [f"{name}={value}" for name, value in variables.items()]
    return shlex.join([*words, *slash32_command()])


def require_root() -> None:
    """Raises LabFailure unless this is root."""
    if os.geteuid() != 0:
        raise LabFailure("a lab needs root: it lives in network namespaces")


def check_machine(shape: Shape) -> None:
    """Whether a lab can be built here at all.

    Raises:
        LabFailure: names everything that is missing, and the packages that have it.
    """
    require_root()
    path = f"{os.environ.get('PATH', '')}:{runtime.HOST_PATH}"
    missing = [p for p in NEEDED_PROGRAMS if shutil.which(p, path=path) is None]
    if missing:
        packages = " ".join(sorted({NEEDED_PROGRAMS[p] for p in missing}))
        raise LabFailure(f"missing: {', '.join(missing)}; on Debian: apt-get install {packages}")
    if shape.dual_stack and not Path("/proc/net/if_inet6").exists():
        raise LabFailure("this kernel runs without IPv6; use --families v4")
    os.environ["PATH"] = path
    try:
        namespaces.run(["unshare", "--net", "true"])
    except namespaces.CommandFailed as error:
        raise LabFailure(
            f"this machine does not let us make network namespaces ({error}); "
            "a container needs --privileged"
        ) from None


class Lab:
    """One lab. Methods are steps; each may be called once, in the order they stand here."""

    def __init__(
        self, plan: LabPlan, paths: LabPaths, record: LabState, *, progress: Progress
    ) -> None:
        self.plan = plan
        self.paths = paths
        self.progress = progress
        self._record = record
        self._lock = Lock()
        self.pod_results: dict[str, runtime.JsonObject] = {}
        self.agent_options: tuple[str, ...] = ()
        """For every agent started from now on."""
        self.wrappers: dict[str, tuple[str, ...]] = {}
        """``agent``, ``speaker``: a command that each is started by from now on, inside its node's
        network."""

    @property
    def record(self) -> LabState:
        return self._record

    def _remember(self, record: LabState) -> None:
        self._record = record
        state.save(self.paths, record)

    def _start(self, name: str, argv: list[str], machine: Machine) -> None:
        process = processes.start(
            name,
            argv,
            namespace=machine.namespace,
            env=environment(self.paths),
            log=self.paths.log(name),
        )
        self._remember(self._record.with_process(process))

    def wire(self) -> None:
        """Namespaces, links, addresses."""
        plan = self.plan
        self.progress.say(
            f"building {_count(len(plan.nodes), 'node')}, {_count(len(plan.tors), 'router')}, "
            f"a client, {_count(len(plan.links), 'link')}"
        )
        namespaces.create(machine.namespace for machine in plan.machines)
        namespaces.connect(plan, mtu_bytes=MTU_BYTES)

    def start_routers(self) -> None:
        """BIRD on every router."""
        if not self.plan.tors:
            return
        self.progress.say(f"starting BIRD 2 on {', '.join(t.name for t in self.plan.tors)}")
        for tor in self.plan.tors:
            self.start_router(tor)

    def start_api(self) -> None:
        """The Kubernetes API, where the lab's store is one; returns when it answers."""
        if self.plan.shape.store != "kubernetes":
            return
        self.progress.say("starting a Kubernetes API server")
        arguments = ["--kubeconfig", str(self.paths.kubeconfig), "--port", str(API_PORT)]
        for node in self.plan.nodes:
            arguments += ["--netns", str(namespaces.NETNS_DIR / node.namespace)]
        command = [sys.executable, "-m", "lab.apiserver", *arguments]
        self._start("apiserver", command, self.plan.client)
        wait_until(self._silent_api, what="API server", deadline_s=AGENT_DEADLINE_S)

    def _silent_api(self) -> list[str]:
        self._give_up_on_dead()
        return [] if self.paths.kubeconfig.exists() else ["no kubeconfig yet"]

    def stop_api(self, *, is_back: bool = False) -> None:
        """Takes the API server away as if its process had died, or (``is_back``) brings it back."""
        server = next(p for p in self._record.processes if p.name == "apiserver")
        os.kill(server.pid, signal.SIGUSR2 if is_back else signal.SIGUSR1)

    def nodes_with_default_route(self) -> list[str]:
        """The nodes that have a default route at this moment."""
        return [n.name for n in self.plan.nodes if namespaces.default_routes(n.namespace)]

    def apply_resources(self) -> None:
        """The cluster's resources, by ``slash32 apply``."""
        documents = resources(self.plan, API_VERSION)
        self.paths.store.parent.mkdir(mode=0o700, exist_ok=True)
        self.paths.resources_file.write_text(yaml.safe_dump_all(documents, sort_keys=False))
        self.progress.say(f"applying {len(documents)} resources")
        self._slash32("apply", "-f", self.paths.resources_file)

    def _slash32(self, *arguments: object) -> str:
        """In the client's network, where an API server is; a file is the same everywhere."""
        return namespaces.run(
            slash32_command(*(str(a) for a in arguments)),
            namespace=self.plan.client.namespace,
            env=environment(self.paths),
        )

    def start_nodes(self) -> None:
        """CNI plugin, agent and speaker on every node; returns when the agents answer."""
        paths, plan = self.paths, self.plan
        self.progress.say("starting agent and ExaBGP on every node")
        self._write_command()
        for node in plan.nodes:
            self.start_speaker(node)
            self.start_agent(node)
        if plan.shape.store == "kubernetes":
            self._start("controller", slash32_command("controller"), plan.client)
        for node in plan.nodes:
            self._slash32(
                *("cni", "install", "--run-dir", paths.run_dir(node.name)),
                *("--bin-dir", paths.cni_bin(node.name), "--conf-dir", paths.cni_conf(node.name)),
            )
        wait_until(self._silent_agents, what="agents", deadline_s=AGENT_DEADLINE_S)

    def start_speaker(self, node: Machine) -> None:
        """A node's speaker, at first or after the one before has ended."""
        arguments = ["--run-dir", str(self.paths.run_dir(node.name))]
        command = [*self.wrappers.get("speaker", ()), *slash32_command("speaker", *arguments)]
        self._start(f"speaker-{node.name}", command, node)

    def start_agent(self, node: Machine, *, wrapper: Sequence[str] = ()) -> None:
        """A node's agent, at first or after the one before has ended.

        ``wrapper``: a command that runs it, such as one with another view of /proc.
        """
        paths = self.paths
        paths.state_dir(node.name).mkdir(parents=True, exist_ok=True)
        arguments = ["--run-dir", str(paths.run_dir(node.name)), "--node", node.name]
        arguments += ["--state-dir", str(paths.state_dir(node.name))]
        command = slash32_command("agent", *arguments, *self.agent_options)
        command = [*self.wrappers.get("agent", ()), *command]
        self._start(f"agent-{node.name}", command, node)

    def start_router(self, tor: Machine, *, is_restart: bool = False) -> None:
        """A router's BIRD, at first or after the one before has ended (``is_restart``)."""
        process = routers.start(
            self.plan, self.paths, tor, environment(self.paths), is_restart=is_restart
        )
        self._remember(self._record.with_process(process))

    def _write_command(self) -> None:
        """A ``slash32`` for PATH inside the lab, also when this is a bare checkout."""
        self.paths.bin.mkdir(parents=True, exist_ok=True)
        script = self.paths.bin / "slash32"
        script.write_text(f'#!/bin/sh\nexec {" ".join(slash32_command())} "$@"\n')
        script.chmod(0o755)

    def dead_processes(self) -> list[str]:
        """A sentence for each process that has ended, with its last words."""
        return [
            f"{p.name} has ended: {processes.log_tail(self.paths.log(p.name))}"
            for p in self._record.processes
            if not processes.is_alive(p)
        ]

    def _give_up_on_dead(self) -> None:
        dead = self.dead_processes()
        if dead:
            # The others have mostly died of the same.
            more = f" (and {len(dead) - 1} more)" if len(dead) > 1 else ""
            raise LabFailure(dead[0] + more)

    def _silent_agents(self) -> list[str]:
        self._give_up_on_dead()
        return [
            f"{node.name} has no {name}"
            for node in self.plan.nodes
            for name in ("cni.sock", "agent.sock")
            if not (self.paths.run_dir(node.name) / name).is_socket()
        ]

    def runtime_of(
        self, node: str, *, deadline_s: float = runtime.PLUGIN_DEADLINE_S
    ) -> runtime.Runtime:
        """The container runtime of a node, over what ``cni install`` put there."""
        machine = next(n for n in self.plan.nodes if n.name == node)
        return runtime.Runtime(
            runtime.load_network(self.paths.cni_conf(node)),
            bin_dirs=[self.paths.cni_bin(node)],
            results_dir=self.paths.cni_results(node),
            namespace=machine.namespace,
            deadline_s=deadline_s,
        )

    def add_pods(self) -> None:
        """A sandbox and an ADD for every pod of the plan."""
        if not self.plan.pods:
            return
        self.progress.say(f"adding {len(self.plan.pods)} pods through the CNI executable")
        results = in_parallel(self._add_pod, self.plan.pods, at_once=ADDS_AT_ONCE)
        self.pod_results = {
            pod.name: result for pod, result in zip(self.plan.pods, results, strict=True)
        }
        for pod in self.plan.pods:
            families = {a.version for a in self.addresses_of(pod)}
            wanted = {cidr.version for _, cidr, _ in self.plan.shape.pools}
            if families != wanted:
                raise LabFailure(f"{pod.name} has addresses {self.addresses_of(pod)}")

    def _add_pod(self, pod: Pod) -> runtime.JsonObject:
        with self._lock:
            self._remember(replace(self._record, added=(*self._record.added, pod.name)))
        namespaces.create([pod.namespace])
        return self.runtime_of(pod.node).add(runtime.sandbox_of(pod))

    def addresses_of(self, pod: Pod) -> tuple[Address, ...]:
        """The addresses the plugin gave a pod; asks what ADD answered."""
        result = self.pod_results.get(pod.name)
        if result is None:
            result = self.runtime_of(pod.node).kept_result(runtime.sandbox_of(pod)) or {}
        return tuple(ip_address(text) for text in runtime.addresses_in(result))

    def wait_sessions(self) -> None:
        """Returns when every router says that every session is Established."""
        self.progress.say("waiting for BGP sessions")
        wait_until(
            self.sessions_down, what="BGP sessions", deadline_s=SESSION_DEADLINE_S, poll_s=0.1
        )

    def sessions_down(self) -> list[str]:
        """A sentence for each session that is not Established."""
        self._give_up_on_dead()
        missing = [] if self.plan.tors else self._node_sessions_down()
        for tor in self.plan.tors:
            try:
                found = {s.neighbour: s for s in routers.sessions(self.paths, tor)}
            except namespaces.CommandFailed:
                missing.append(f"BIRD on {tor.name} does not answer")
                continue
            for end in routers.peer_ends(self.plan, tor):
                session = found.get(end.machine.name)
                if session is None or not session.is_established:
                    words = session.info if session else "unknown"
                    missing.append(f"{tor.name} with {end.machine.name}: {words or 'no word'}")
        return missing

    def _node_sessions_down(self) -> list[str]:
        """The same, as the nodes tell it: where there is no router to ask."""
        missing = []
        for node in self.plan.nodes:
            rows = self.ask(node.name, "peers")
            if len(rows) < len(self.plan.nodes) - 1:
                missing.append(f"{node.name} has {len(rows)} sessions")
            missing += [
                f"{node.name} with {row['name']}: {row['reason'] or row['state']}"
                for row in rows
                if row["state"] != "Established"
            ]
        return missing

    def ask(self, node: str, view: str) -> Any:
        """A view of a node's agent, as ``slash32 <view> -o json`` gives it.

        Raises:
            LabFailure: the agent does not answer.
        """
        try:
            return ask(self.paths.run_dir(node) / "agent.sock", view)
        except Unreachable as error:
            raise LabFailure(str(error)) from None

    def wait_converged(self) -> None:
        """Returns when every kernel has a route to every block, and nodes have their default."""
        self.progress.say("waiting for routes to arrive in every kernel")
        wait_until(
            self.missing_routes, what="routes", deadline_s=CONVERGENCE_DEADLINE_S, poll_s=0.1
        )

    def blocks_of(self, node: Machine) -> list[Prefix]:
        """A node's address blocks, read from its kernel: they are its blackhole routes."""
        return [
            ip_network(route["dst"])
            for family in ("-4", "-6")
            for route in namespaces.ip_json(
                *(node.namespace, family, "route", "show"),
                *("proto", str(PROTOCOL), "type", "blackhole"),
            )
        ]

    def missing_routes(self) -> list[str]:
        """What kernels lack: a sentence for each machine and prefix.

        Over each of several routers: a route must have every next hop that it will have.
        """
        self._give_up_on_dead()
        blocks = {node.name: self.blocks_of(node) for node in self.plan.nodes}
        versions = {cidr.version for _, cidr, _ in self.plan.shape.pools}
        missing = [
            f"{node.name} has no block of every family yet"
            for node in self.plan.nodes
            if self.plan.pods_on(node.name) and {b.version for b in blocks[node.name]} != versions
        ]
        is_routed = self.plan.switch is None
        for machine in (*(self.plan.tors if is_routed else ()), *self.plan.nodes):
            is_node = machine in self.plan.nodes
            hops_wanted = len(self.plan.tors) if is_node and is_routed else 1
            have = _kernel_routes(machine.namespace)
            wanted = [b for name, found in blocks.items() if name != machine.name for b in found]
            if is_node and is_routed:
                wanted += [
                    ip_network("0.0.0.0/0"),
                    *([ip_network("::/0")] if 6 in versions else []),
                ]
            missing += [
                f"{machine.name} has no route to {prefix} yet"
                for prefix in wanted
                if have.get(prefix, 0) < hops_wanted
            ]
        return missing

    def finish(self) -> None:
        """The lab is up: it no longer belongs to the process that built it."""
        self._remember(replace(self._record, is_up=True))


def _kernel_routes(namespace: str) -> dict[Prefix, int]:
    """Prefix -> number of next hops, of the routes that lead somewhere."""
    found: dict[Prefix, int] = {}
    for family, everything in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
        for route in namespaces.ip_json(namespace, family, "route", "show"):
            if route.get("type") not in (None, "unicast"):
                continue
            prefix = ip_network(everything if route["dst"] == "default" else route["dst"])
            # IPv6 lists a multipath route's hops as "nexthops" too, but separate routes of equal
            # metric (BIRD's way with older kernels) one by one: both are added up.
            hops = len(route.get("nexthops", [])) or 1
            found[prefix] = found.get(prefix, 0) + hops
    return found


def claim(
    name: str,
    shape: Shape,
    *,
    progress: Progress,
    run_root: Path = state.RUN_ROOT,
    program_root: Path = state.PROGRAM_ROOT,
) -> Lab:
    """Takes a lab's name: from now on it is this process that builds it.

    What a dead lab of that name left is cleaned up first.

    Raises:
        LabBusy: it is up, or somebody else is at work on it.
    """
    from lab import teardown

    plan = plan_lab(name, shape)
    with state.claiming(run_root):
        root = run_root / name
        if root.exists():
            found = state.load(root)
            if found is not None and state.is_running(found):
                raise LabBusy(state.describe_owner(found))
            progress.say(f"cleaning up what an earlier lab {name!r} left behind")
            teardown.clear(root, run_root=run_root, program_root=program_root)
        clashes = [n for n in plan.namespaces if namespaces.exists(n)]
        if clashes:
            raise LabBusy(f"namespace {clashes[0]} exists and no lab remembers it; remove it first")
        programs = state.program_dir(name, run_root=run_root, program_root=program_root)
        root.mkdir(mode=0o700)
        programs.mkdir(mode=0o700, parents=True, exist_ok=True)
        record = LabState(
            name=name,
            shape=shape,
            owner=state.this_process(),
            namespaces=plan.namespaces,
            programs=str(programs),
            made_netns_dir=not namespaces.NETNS_DIR.exists(),
        )
        paths = LabPaths(root, programs)
        state.save(paths, record)
    return Lab(plan, paths, record, progress=progress)


def open_lab(name: str, *, progress: Progress, run_root: Path = state.RUN_ROOT) -> Lab | None:
    """The lab of that name as it stands, or None when there is none.

    Raises:
        LabFailure: its state cannot be read.
    """
    plan_lab(name, Shape())  # refuses a name that would lead out of the directory
    record = state.load(run_root / name)
    if record is None:
        return None
    plan = plan_lab(name, record.shape)
    return Lab(plan, LabPaths(run_root / name, Path(record.programs)), record, progress=progress)


def up(lab: Lab) -> None:
    """All steps, from cables to a network that has converged."""
    lab.wire()
    lab.start_routers()
    early = lab.nodes_with_default_route()
    if early:
        raise LabFailure(f"a default route before BGP gave one, on {', '.join(early)}")
    lab.start_api()
    lab.apply_resources()
    lab.start_nodes()
    lab.add_pods()
    lab.wait_sessions()
    lab.wait_converged()
