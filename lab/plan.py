"""What a lab consists of, from a few figures: names, addresses, links and resources. Pure.

Every machine is a network namespace. In topology ``tor`` each node has one point-to-point link to
each top-of-rack router, as in a routed rack, and nothing else: no bridge joins two nodes, so a
packet from node to node must cross a router and is seen there. Addresses follow from positions, so
that a person can read them: 172.30.<router>.<2 x node> is a router's end, the odd one after it the
node's.

In ``mesh`` and ``rr`` all nodes are on one switched network, 172.30.0.0/24: without a router that
knows the pods' blocks, or a tunnel, two nodes reach each other's pods only there. The nodes speak
to each other, or to route reflectors (BIRD 2) on the same network.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from itertools import combinations
from pathlib import Path
from typing import Any

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Prefix = IPv4Network | IPv6Network

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?")
NAME_RULE = "1 to 20 lower-case letters, digits and inner hyphens"

NODES_MAX = 100
TORS_MAX = 4
PODS_MAX = 60
"""Per node; a /26 holds 64 addresses, so that a node of a lab seldom needs a second block."""

TOPOLOGIES = ("tor", "mesh", "rr")
STORES = ("embedded", "kubernetes")
API_PORT = 6443
"""Of the API server, on loopback of every node and of the client."""

TOR_ASN = 64512
CLUSTER_ASN = 64512
"""What BGPConfiguration has when it does not say; nodes of a mesh have none of their own."""
FIRST_NODE_ASN = 64601

POOLS: tuple[tuple[str, Prefix, int], ...] = (
    ("lab-v4", IPv4Network("10.244.0.0/16"), 26),
    ("lab-v6", IPv6Network("fd44:10:244::/112"), 122),
)
"""(name, range, block size) of the address pools; the second only in a dual-stack lab."""

CLIENT_ADDRESSES: tuple[Interface, ...] = (
    ip_interface("172.31.255.10/24"),
    ip_interface("fd00:31:255::10/64"),
)
"""The client's own subnet, which the routers know as reachable behind their link to it."""

MTU_BYTES = 1500


class LabFailure(Exception):
    """The lab cannot do what was asked; one sentence for the person at the terminal."""


class InvalidShape(LabFailure):
    """A figure or a name for a lab breaks a rule; names the option, the value and the rule."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How big a lab is. ``pods`` is per node; ``dual_stack`` adds IPv6 everywhere.

    ``tors`` counts route reflectors in topology ``rr``; in ``mesh`` there is no router.
    ``store`` is where the cluster's state is: one file, or a Kubernetes API (``lab/apiserver``).

    Raises:
        InvalidShape: a figure is out of its range.
    """

    nodes: int = 3
    tors: int = 1
    pods: int = 2
    dual_stack: bool = True
    topology: str = "tor"
    store: str = "embedded"

    def __post_init__(self) -> None:
        if self.store not in STORES:
            raise InvalidShape(f"--store {self.store}: must be one of {', '.join(STORES)}")
        if self.topology not in TOPOLOGIES:
            raise InvalidShape(
                f"--topology {self.topology}: must be one of {', '.join(TOPOLOGIES)}"
            )
        for option, low, high in (
            ("nodes", 1, NODES_MAX),
            ("tors", 1, TORS_MAX),
            ("pods", 0, PODS_MAX),
        ):
            value = getattr(self, option)
            if not low <= value <= high:
                raise InvalidShape(f"--{option} {value}: must be from {low} to {high}")

    @property
    def pools(self) -> tuple[tuple[str, Prefix, int], ...]:
        return POOLS if self.dual_stack else POOLS[:1]


@dataclass(frozen=True, slots=True)
class Machine:
    """A node, a router or the client. ``loopback`` are addresses on its lo beyond 127.0.0.1."""

    name: str
    namespace: str
    asn: int | None = None
    loopback: tuple[Interface, ...] = ()


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """One end of a veth pair; ``addresses`` IPv4 first, IPv6 only in a dual-stack lab."""

    machine: Machine
    ifname: str
    addresses: tuple[Interface, ...]

    @property
    def ipv4(self) -> IPv4Address:
        return next(a.ip for a in self.addresses if isinstance(a, IPv4Interface))

    @property
    def ipv6(self) -> IPv6Address | None:
        return next((a.ip for a in self.addresses if isinstance(a, IPv6Interface)), None)


@dataclass(frozen=True, slots=True)
class Link:
    """A point-to-point link; ``router_end`` is the end that makes it."""

    router_end: LinkEnd
    far_end: LinkEnd


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod to be: its sandbox's namespace and the identity a runtime would give it."""

    name: str
    node: str
    namespace: str
    container_id: str
    uid: str


@dataclass(frozen=True, slots=True)
class LabPlan:
    """A whole lab, before anything of it exists."""

    name: str
    shape: Shape
    nodes: tuple[Machine, ...]
    tors: tuple[Machine, ...]
    client: Machine
    links: tuple[Link, ...]
    pods: tuple[Pod, ...]
    switch: Machine | None = None

    @property
    def machines(self) -> tuple[Machine, ...]:
        switches = () if self.switch is None else (self.switch,)
        return (*switches, *self.tors, self.client, *self.nodes)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Every namespace of the lab, pods' first: the order in which they may go."""
        return (*(p.namespace for p in self.pods), *(m.namespace for m in self.machines))

    def links_of(self, machine: Machine) -> list[tuple[LinkEnd, LinkEnd]]:
        """Its links as (own end, other end), in the plan's order."""
        own = [(link.router_end, link.far_end) for link in self.links]
        return [
            pair
            for near, far in own
            for pair in ((near, far), (far, near))
            if pair[0].machine == machine
        ]

    def pods_on(self, node: str) -> list[Pod]:
        return [pod for pod in self.pods if pod.node == node]

    def addresses_of(self, machine: Machine) -> tuple[Address, ...]:
        """Every address the machine answers to (loopback's 127.0.0.1 and link-locals aside)."""
        on_links = [a.ip for near, _ in self.links_of(machine) for a in near.addresses]
        return (*(a.ip for a in machine.loopback), *on_links)

    def namespace_of(self, target: str) -> str:
        """The namespace of a machine or a pod by its name.

        Raises:
            LabFailure: nothing in this lab is called so; the sentence lists what is.
        """
        known = {m.name: m.namespace for m in self.machines}
        known |= {p.name: p.namespace for p in self.pods}
        if target not in known:
            raise LabFailure(
                f"no {target!r} in lab {self.name!r}; there is {', '.join(sorted(known))}"
            )
        return known[target]


def plan_lab(name: str, shape: Shape) -> LabPlan:
    """The lab of that name and shape; the same answer for the same question.

    Raises:
        InvalidShape: the name breaks its rule.
    """
    if not NAME.fullmatch(name):
        raise InvalidShape(f"--name {name!r}: must be {NAME_RULE}")

    def machine(
        who: str, *, asn: int | None = None, loopback: tuple[Interface, ...] = ()
    ) -> Machine:
        return Machine(who, f"s32-{name}-{who}", asn, _families(loopback, shape))

    if shape.topology != "tor":
        return _switched(name, shape, machine)
    tors = tuple(machine(f"tor{t + 1}", asn=TOR_ASN) for t in range(shape.tors))
    nodes = tuple(machine(f"node{n + 1}", asn=FIRST_NODE_ASN + n) for n in range(shape.nodes))
    client = machine("client", loopback=CLIENT_ADDRESSES)
    pods = tuple(_pod(name, node.name, f"pod{p + 1}") for node in nodes for p in range(shape.pods))
    links = _links(shape, tors=tors, nodes=nodes, client=client)
    return LabPlan(name, shape, nodes, tors, client, links, pods)


def _switched(name: str, shape: Shape, machine: Callable[..., Machine]) -> LabPlan:
    """Topologies mesh and rr: everything on one network, the reflectors at its low addresses."""
    switch = machine("lan")
    reflectors = shape.tors if shape.topology == "rr" else 0
    tors = tuple(machine(f"rr{t + 1}", asn=CLUSTER_ASN) for t in range(reflectors))
    nodes = tuple(machine(f"node{n + 1}", asn=CLUSTER_ASN) for n in range(shape.nodes))
    client = machine("client", loopback=CLIENT_ADDRESSES)
    hosts = [
        *((tor, "lan0", 1 + t) for t, tor in enumerate(tors)),
        (client, "lan0", 10),
        *((node, "uplink0", 11 + n) for n, node in enumerate(nodes)),
    ]
    links = tuple(
        Link(
            LinkEnd(switch, who.name, ()),
            LinkEnd(
                who,
                ifname,
                _families(
                    (ip_interface(f"172.30.0.{host}/24"), ip_interface(f"fd00:30::{host:x}/64")),
                    shape,
                ),
            ),
        )
        for who, ifname, host in hosts
    )
    pods = tuple(_pod(name, node.name, f"pod{p + 1}") for node in nodes for p in range(shape.pods))
    return LabPlan(name, shape, nodes, tors, client, links, pods, switch)


def _families(interfaces: tuple[Interface, ...], shape: Shape) -> tuple[Interface, ...]:
    return interfaces if shape.dual_stack else tuple(i for i in interfaces if i.version == 4)


def _pod(lab: str, node: str, pod: str) -> Pod:
    name = f"{node}-{pod}"
    digest = hashlib.sha256(f"{lab}\0{name}".encode()).hexdigest()
    uid = "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))
    return Pod(name, node, f"s32-{lab}-{name}", container_id=digest, uid=uid)


def _links(
    shape: Shape, *, tors: tuple[Machine, ...], nodes: tuple[Machine, ...], client: Machine
) -> tuple[Link, ...]:
    links: list[Link] = []

    def join(near: tuple[Machine, str], far: tuple[Machine, str], v4: str, v6: str) -> None:
        low = _families((ip_interface(v4), ip_interface(v6)), shape)
        high = tuple(ip_interface(f"{i.ip + 1}/{i.network.prefixlen}") for i in low)
        links.append(Link(LinkEnd(*near, low), LinkEnd(*far, high)))

    for t, tor in enumerate(tors):
        for n, node in enumerate(nodes):
            join(
                (tor, node.name),
                (node, f"uplink{t}"),
                f"172.30.{t}.{2 * n}/31",
                f"fd00:30:{t:x}:{n:x}::/127",
            )
        join((tor, "client"), (client, tor.name), f"172.31.{t}.0/31", f"fd00:31:{t:x}::/127")
    # The routers are joined to each other too: a reply may come back by another router than the
    # one whose link carries the address it goes to.
    for k, (one, other) in enumerate(combinations(tors, 2)):
        join((one, other.name), (other, one.name), f"172.29.0.{2 * k}/31", f"fd00:29:0:{k:x}::/127")
    return tuple(links)


def client_subnets(plan: LabPlan) -> list[Prefix]:
    """What the routers route towards the client."""
    return [ip_network(str(i.network)) for i in plan.client.loopback]


def resources(plan: LabPlan, api_version: str) -> list[dict[str, Any]]:
    """The resources that describe this lab to its agents, for ``slash32 apply``.

    The default routes are the only prefixes outside the pools that a node accepts.
    """

    def resource(kind: str, name: str, spec: dict[str, Any], **labels: str) -> dict[str, Any]:
        metadata = {"name": name} | ({"labels": labels} if labels else {})
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}

    defaults = ["0.0.0.0/0", "::/0"] if plan.shape.dual_stack else ["0.0.0.0/0"]
    found = [
        resource("IPPool", name, {"cidr": str(cidr), "blockSize": size})
        for name, cidr, size in plan.shape.pools
    ]
    configuration = {
        "importAllow": defaults if plan.shape.topology == "tor" else [],
        "nodeToNodeMeshEnabled": plan.shape.topology == "mesh",
    }
    found.append(resource("BGPConfiguration", "default", configuration))
    found += [
        # Of the whole cluster: every node speaks to every reflector.
        resource("BGPPeer", tor.name, {"peerIP": str(end.ipv4), "asNumber": CLUSTER_ASN})
        for tor in plan.tors
        if plan.shape.topology == "rr"
        for end, _ in plan.links_of(tor)
    ]
    for node in plan.nodes:
        links = plan.links_of(node)
        addresses = [str(a.ip) for a in links[0][0].addresses]
        own_asn = {"bgp": {"asNumber": node.asn}} if plan.shape.topology == "tor" else {}
        found.append(resource("Node", node.name, {"addresses": addresses, **own_asn}))
        if plan.shape.topology != "tor":
            continue
        for _, tor_end in links:
            found.append(
                resource(
                    "BGPPeer",
                    f"{node.name}-{tor_end.machine.name}",
                    {
                        "node": node.name,
                        "peerIP": str(tor_end.ipv4),
                        "asNumber": tor_end.machine.asn,
                    },
                    # One router with an address on each node's link; ``slash32 topology`` draws it.
                    **{"slash32.io/router": tor_end.machine.name},
                )
            )
    return found


@dataclass(frozen=True, slots=True)
class LabPaths:
    """Where a lab keeps its files.

    ``root`` holds state, sockets and logs; ``programs`` what is executed. They differ where /run
    is mounted noexec, as Debian's initramfs does it: a CNI executable there could not be run.
    """

    root: Path
    programs: Path

    @property
    def state_file(self) -> Path:
        return self.root / "lab.json"

    @property
    def store(self) -> Path:
        """In a directory of its own: the disk under it may be another one (lab/chaos/disks.py)."""
        return self.root / "cluster" / "store.db"

    @property
    def kubeconfig(self) -> Path:
        """Is there once the lab's API server listens."""
        return self.root / "kubeconfig"

    @property
    def resources_file(self) -> Path:
        return self.root / "resources.yaml"

    @property
    def bin(self) -> Path:
        """Holds ``slash32`` for commands run inside the lab."""
        return self.programs / "bin"

    def log(self, process: str) -> Path:
        return self.root / "log" / f"{process}.log"

    def run_dir(self, node: str) -> Path:
        return self.root / node

    def state_dir(self, node: str) -> Path:
        return self.root / node / "state"

    def cni_bin(self, node: str) -> Path:
        return self.programs / node / "cni-bin"

    def cni_conf(self, node: str) -> Path:
        return self.root / node / "cni-conf"

    def cni_results(self, node: str) -> Path:
        return self.root / node / "cni-results"

    def bird_conf(self, tor: str) -> Path:
        return self.root / tor / "bird.conf"

    def bird_socket(self, tor: str) -> Path:
        return self.root / tor / "bird.ctl"

    def capture(self, tor: str) -> Path:
        # Debian confines tcpdump: it may write only where a name ends in .pcap.
        return self.root / tor / "links.pcap"
