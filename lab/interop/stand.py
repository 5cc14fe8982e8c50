"""A node with the real agent and speaker, and one or two namespaces beside it for daemons.

```
   tor1 --- 172.30.0.0/31, fd00:30:0::/127 --- uplink0  node  uplink1 --- 172.30.1.0/31 --- tor2
   (a real daemon)                               agent, ExaBGP                 (the same daemon)
```

The node owns two blocks, and a node called ``far``, which is nowhere, owns those that the daemons
announce: to the agent they are the blocks of a node behind the routers. Everything is done as an
operator would: resources by ``slash32 apply``, answers from the agent's socket and the kernel.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import yaml

from lab import build, namespaces, processes
from lab.interop.daemon import Daemon
from lab.interop.model import Address, Prefix
from lab.plan import LabFailure, LabPaths
from lab.processes import Process
from lab.waiting import wait_until
from routing.control import Unreachable, ask
from routing.datastore.resources import API_VERSION
from routing.datastore.resources import block_name as block_name

NODE = "node1"
NODE_ASN = 64601
TOR_ASN = 64512
DEADLINE_S = 30.0

OWN_BLOCKS: tuple[Prefix, ...] = (
    ip_network("10.244.0.0/26"),
    ip_network("fd44:10:244::/122"),
)
FAR_BLOCKS: tuple[Prefix, ...] = tuple(
    ip_network(text)
    for number in range(1, 9)
    for text in (f"10.244.{number}.0/26", f"fd44:10:244::{number}00/122")
)
"""Of a node behind the routers: IPv4 and IPv6 in turn."""

Document = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rack:
    """One router's place: its namespace, and both ends of its link to the node."""

    number: int
    namespace: str

    @property
    def address(self) -> IPv4Address:
        return IPv4Address(f"172.30.{self.number}.0")

    @property
    def address6(self) -> IPv6Address:
        return IPv6Address(f"fd00:30:{self.number:x}::")

    @property
    def uplink(self) -> str:
        return f"uplink{self.number}"

    def of_family(self, version: int) -> Address:
        return self.address if version == 4 else self.address6

    def node_end(self, version: int) -> Address:
        return self.of_family(version) + 1


def resource(
    kind: str, name: str, spec: Mapping[str, Any], *, labels: Mapping[str, str] | None = None
) -> Document:
    """A resource as an operator writes it."""
    metadata: Document = {"name": name, **({"labels": dict(labels)} if labels else {})}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": dict(spec)}


def block(prefix: Prefix, node: str) -> Document:
    """A confirmed block of a node."""
    return resource(
        "Block",
        block_name(prefix),
        {
            "cidr": str(prefix),
            "pool": f"pods-v{prefix.version}",
            "affinity": f"host:{node}",
            "state": "confirmed",
        },
    )


SPARE_BLOCKS: tuple[Prefix, ...] = (ip_network("10.244.0.128/26"), ip_network("10.244.20.0/26"))
"""More IPv4 blocks of the node, for who asks for some; no two of its blocks fill a supernet."""


def secret(name: str, texts: Mapping[str, str]) -> Document:
    """A Secret with passwords."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "stringData": dict(texts),
    }


def cluster(asn: int = NODE_ASN) -> list[Document]:
    """The cluster without its peers."""
    racks = [Rack(0, ""), Rack(1, "")]
    addresses = [str(racks[0].node_end(4)), str(racks[0].node_end(6))]
    return [
        resource("IPPool", "pods-v4", {"cidr": "10.244.0.0/16", "blockSize": 26}),
        resource("IPPool", "pods-v6", {"cidr": "fd44:10:244::/112", "blockSize": 122}),
        resource("Node", NODE, {"addresses": addresses, "bgp": {"asNumber": asn}}),
        resource("Node", "far", {"addresses": ["192.0.2.77"], "bgp": {"asNumber": 64699}}),
        # Each case removes its peers, and the next must find none.
        resource(
            "BGPConfiguration",
            "default",
            {"nodeToNodeMeshEnabled": False, "keepLastPeersFor": "0s"},
        ),
        *(block(prefix, NODE) for prefix in OWN_BLOCKS),
        *(block(prefix, "far") for prefix in FAR_BLOCKS),
    ]


class Stand:
    """One node and its racks. ``close`` removes everything, whatever happened before."""

    def __init__(self, daemon: type[Daemon], *, tag: str) -> None:
        self.kind = daemon
        self._tag = tag
        self.node = f"{tag}-node"
        self.racks = [Rack(0, f"{tag}-tor1"), Rack(1, f"{tag}-tor2")]
        self.directory = Path(tempfile.mkdtemp(prefix=f"{tag}-"))
        # frr drops its privileges and must reach its own directory below this one.
        self.directory.chmod(0o755)
        self.daemons: list[Daemon] = []
        self._processes: dict[str, Process] = {}
        self.specs: dict[str, Mapping[str, Any]] = {}
        """The BGPPeers there are, by name."""

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    @property
    def store(self) -> Path:
        return self.directory / "store.db"

    @property
    def environment(self) -> dict[str, str]:
        paths = LabPaths(self.directory, self.directory)
        return build.environment(paths) | {"SLASH32_STORE": str(self.store)}

    # ---- up and down -----------------------------------------------------------------------------

    def build(self) -> None:
        """Namespaces, links, resources, speaker and agent; the daemons come with ``daemon``."""
        namespaces.create([self.node, *(rack.namespace for rack in self.racks)])
        for rack in self.racks:
            namespaces.write_sysctls(rack.namespace, namespaces.ROUTER_SYSCTLS)
            namespaces.ip_batch(
                rack.namespace,
                [
                    f"link add node type veth peer name {rack.uplink} netns {self.node}",
                    f"addr add {rack.address}/31 dev node",
                    f"addr add {rack.address6}/127 dev node nodad",
                    "link set node up",
                ],
            )
            namespaces.ip_batch(
                self.node,
                [
                    f"addr add {rack.node_end(4)}/31 dev {rack.uplink}",
                    f"addr add {rack.node_end(6)}/127 dev {rack.uplink} nodad",
                    f"link set {rack.uplink} up",
                ],
            )
        self.apply(*cluster())
        self.run_dir.mkdir()
        self.start_speaker()
        self.start_agent()

    def close(self) -> list[str]:
        """Ends what runs and removes what was made; returns a sentence for what is left."""
        for daemon in self.daemons:
            daemon.thaw()
        inodes = [namespaces.inode(name) for name in self._namespaces]
        found = processes.inside([inode for inode in inodes if inode is not None])
        processes.stop(found)
        for name in self._namespaces:
            namespaces.delete(name)
        shutil.rmtree(self.directory, ignore_errors=True)
        left = [f"{p.name} (pid {p.pid}) still runs" for p in found if processes.is_alive(p)]
        return left + [f"namespace {n} is left" for n in self._namespaces if namespaces.exists(n)]

    @property
    def _namespaces(self) -> list[str]:
        return [self.node, *(rack.namespace for rack in self.racks)]

    def daemon(self, number: int = 0) -> Daemon:
        """A fresh daemon in a rack, not yet configured."""
        rack = self.racks[number]
        directory = self.directory / f"{rack.namespace}-{len(self.daemons)}"
        made = self.kind(namespace=rack.namespace, directory=directory)
        self.daemons.append(made)
        return made

    def clear(self) -> None:
        """Ends the daemons and removes every peer: the stand is as new for another question."""
        for daemon in self.daemons:
            daemon.thaw()
            daemon.stop()
        self.daemons = []
        if self.specs:
            self.delete("bgppeer", *sorted(self.specs))
            self.specs = {}
        wait_until(
            lambda: [f"peer {row['peer']} is still there" for row in self.peers()],
            what="peers to be gone",
            deadline_s=DEADLINE_S,
        )
        wait_until(
            lambda: [f"{prefix} is still in the kernel" for prefix in self.learned()],
            what="learned routes to be gone",
            deadline_s=DEADLINE_S,
        )

    # ---- the agent and the speaker ---------------------------------------------------------------

    def _start(self, name: str, *arguments: str) -> None:
        self._processes[name] = processes.start(
            name,
            build.slash32_command(name, "--run-dir", str(self.run_dir), *arguments),
            namespace=self.node,
            env=self.environment,
            log=self.log(name),
        )

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def start_speaker(self) -> None:
        """``slash32 speaker``."""
        self._start("speaker")

    def start_agent(self) -> None:
        """``slash32 agent``; returns when it answers."""
        arguments = ["--node", NODE, "--state-dir", str(self.directory / "state")]
        (self.directory / "state").mkdir(exist_ok=True)
        self._start("agent", *arguments, "--store", str(self.store))
        self.wait(lambda: [] if self._answers() else ["no answer"], "the agent")

    def _answers(self) -> bool:
        agent = self._processes["agent"]
        if not processes.is_alive(agent):
            raise LabFailure(f"the agent ended: {processes.log_tail(self.log('agent'))}")
        with suppress(Unreachable):
            return bool(ask(self.run_dir / "agent.sock", "status"))
        return False

    def kill_agent(self) -> None:
        """SIGKILL to the agent."""
        self._kill(self._processes["agent"])

    def exabgp(self) -> Process | None:
        """The ExaBGP that the speaker runs at the moment."""
        conf = str(self.run_dir / "exabgp.conf").encode()
        speaker = self._processes["speaker"].pid
        inode = namespaces.inode(self.node)
        for process in processes.inside([inode] if inode else []):
            with suppress(OSError):
                command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
                status = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                if conf in command and int(status[1]) == speaker:
                    return process
        return None

    def kill_exabgp(self) -> None:
        """SIGKILL to ExaBGP; the speaker starts another."""
        victim = self.exabgp()
        if victim is None:
            raise LabFailure("there is no ExaBGP to kill")
        os.kill(victim.pid, signal.SIGKILL)
        self.wait(lambda: ["alive"] if processes.is_alive(victim) else [], "end of ExaBGP")

    def _kill(self, process: Process) -> None:
        if processes.is_alive(process):
            os.kill(process.pid, signal.SIGKILL)
        self.wait(lambda: ["alive"] if processes.is_alive(process) else [], f"{process.name}'s end")
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)

    # ---- as an operator --------------------------------------------------------------------------

    def slash32(self, *arguments: str, stdin: str = "", ok: tuple[int, ...] = (0,)) -> str:
        """Runs ``slash32`` as a person on the node would, and returns what it printed."""
        return namespaces.run(
            build.slash32_command(*arguments), env=self.environment, stdin=stdin, ok=ok
        )

    def apply(self, *documents: Document) -> None:
        """``slash32 apply -f -``."""
        text = yaml.safe_dump_all(documents, sort_keys=False)
        self.slash32("apply", "--store", str(self.store), "-f", "-", stdin=text)

    def peer(self, name: str, spec: Mapping[str, Any]) -> None:
        """Applies a BGPPeer; ``clear`` removes it."""
        self.apply(resource("BGPPeer", name, spec))
        self.specs[name] = spec

    def delete(self, kind: str, *names: str) -> None:
        """``slash32 delete``."""
        self.slash32("delete", "--store", str(self.store), kind, *names)

    def view(self, name: str) -> Any:
        """What ``slash32 <name> -o json`` shows; an agent that does not answer shows nothing."""
        try:
            return ask(self.run_dir / "agent.sock", name)
        except Unreachable:
            return []

    def peers(self) -> list[Row]:
        """The rows of ``slash32 peers``."""
        rows: list[Row] = self.view("peers")
        return rows

    def peer_row(self, address: Address) -> Row:
        """One peer's row, empty when there is none."""
        return next((row for row in self.peers() if row["peer"] == str(address)), {})

    def kernel_routes(self) -> dict[Prefix, list[Address]]:
        """Prefix -> gateways, of the routes that lead out of the node."""
        found: dict[Prefix, list[Address]] = {}
        for family in ("-4", "-6"):
            for route in namespaces.ip_json(self.node, family, "route", "show"):
                if route.get("dst") == "default" or route.get("type", "unicast") != "unicast":
                    continue
                hops = route.get("nexthops") or [route]
                gateways = [ip_address(hop["gateway"]) for hop in hops if "gateway" in hop]
                if gateways:
                    found.setdefault(ip_network(route["dst"]), []).extend(gateways)
        return found

    def learned(self) -> dict[Prefix, list[Address]]:
        """Of these, the far blocks."""
        return {p: hops for p, hops in self.kernel_routes().items() if p in FAR_BLOCKS}

    def counter(self, namespace: str, name: str) -> int:
        """One of the kernel's TCP counters in a namespace (/proc/net/netstat)."""
        text = namespaces.run(["cat", "/proc/net/netstat"], namespace=namespace)
        names, values = (line.split() for line in text.splitlines() if line.startswith("TcpExt:"))
        return int(dict(zip(names, values, strict=True))[name])

    # ---- waiting ---------------------------------------------------------------------------------

    def wait(
        self, missing: Callable[[], list[str]], what: str, *, deadline_s: float = DEADLINE_S
    ) -> None:
        """Until nothing is missing. Raises LabFailure at the deadline."""
        wait_until(missing, what=what, deadline_s=deadline_s)

    def missing_session(self, daemon: Daemon, address: Address) -> list[str]:
        """A sentence for each side that does not say Established."""
        row = self.peer_row(address)
        ours = [] if row.get("state") == "Established" else [f"our side: {json.dumps(row)[:300]}"]
        seen = daemon.session()
        said = f"{daemon.name}: {seen.state} {seen.last_error}"
        return ours + ([] if seen.is_established else [said])

    def missing_at_peer(self, daemon: Daemon, wanted: Iterable[Prefix]) -> list[str]:
        """Prefixes the daemon has not got from us."""
        have = {route.prefix for route in daemon.routes()}
        return [f"{daemon.name} has no {prefix}" for prefix in wanted if prefix not in have]

    def missing_in_kernel(self, wanted: Mapping[Prefix, set[Address]]) -> list[str]:
        """Prefixes that our kernel does not have over exactly these gateways."""
        have = self.kernel_routes()
        return [
            f"{prefix} goes over {[str(h) for h in have.get(prefix, [])] or 'nothing'}"
            for prefix, hops in wanted.items()
            if set(have.get(prefix, [])) != hops
        ]
