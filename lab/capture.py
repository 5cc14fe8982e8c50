"""Reads what was captured on a router's links and judges it. Pure: bytes in, counts out.

The claim to prove is that a packet between pods crosses the network as the pod sent it: nothing
wrapped around it, no address rewritten. Three independent observations together prove it:

  1. No frame has a tunnel's protocol number or port (``encapsulated``).
  2. Every probe is marked by its TCP port or its ICMP size, so that the router's links tell who the
     two ends must be; another address there was rewritten before it got here (``translated``).
  3. What enters a router leaves it with the same 5-tuple; another one was rewritten in it.

And an absence proves nothing unless presence would have been noticed: each pair of pods on two
nodes must have been seen, entering from the one node and leaving to the other.

Anything that no rule explains is counted too: an unknown packet is a finding, not noise.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address

from lab.plan import Address, LabFailure, LabPlan, Machine

LINKTYPE_LINUX_SLL2 = 276
SNAP_BYTES = 160
SAMPLES_MAX = 5
"""How many offending packets of a kind are described in words."""

_PCAP_HEADER = struct.Struct("<IHHiIII")
_PCAP_MAGIC = 0xA1B2C3D4
_RECORD_HEADER = struct.Struct("<IIII")
_SLL2_HEADER = struct.Struct("!HHIHBB8s")
_OUTGOING = 4

ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_ARP = 0x0800, 0x86DD, 0x0806
PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMPV6 = 1, 6, 17, 58
BGP_PORT = 179

TUNNEL_PROTOCOLS: Mapping[int, str] = {
    4: "IP-in-IP",
    41: "IPv6-in-IP",
    43: "IPv6 routing header",
    47: "GRE",
    50: "ESP",
    51: "AH",
    94: "IPIP",
    97: "EtherIP",
    98: "ENCAP",
    115: "L2TPv3",
    137: "MPLS-in-IP",
}
TUNNEL_PORTS: Mapping[int, str] = {
    4789: "VXLAN",
    4790: "VXLAN-GPE",
    6081: "Geneve",
    8472: "VXLAN (Linux)",
    4500: "ESP-in-UDP",
    5555: "FOU",
    6080: "GUE",
    51820: "WireGuard",
    1701: "L2TP",
}
TUNNEL_ETHERTYPES: Mapping[int, str] = {
    0x8847: "MPLS",
    0x8848: "MPLS",
    0x8864: "PPPoE",
    0x88A8: "802.1ad",
}
_IPV6_OPTIONS = frozenset({0, 60})
_IPV6_FRAGMENT = 44


class CaptureUnreadable(LabFailure):
    """A capture is not what was asked for, so nothing can be concluded from it."""


class Traffic(Enum):
    """Who probes whom; the value is (TCP port, ICMP payload bytes), so that links can tell."""

    POD_TO_POD = (5001, 64)
    NODE_AND_POD = (5002, 96)
    CLIENT_AND_POD = (5003, 128)

    @property
    def port(self) -> int:
        return self.value[0]

    @property
    def ping_bytes(self) -> int:
        return self.value[1]


_BY_PORT = {traffic.port: traffic for traffic in Traffic}
_BY_PING_BYTES = {traffic.ping_bytes: traffic for traffic in Traffic}


@dataclass(frozen=True, slots=True)
class Frame:
    """One captured frame: which link of the router, which way, and its network layer."""

    ifindex: int
    is_outgoing: bool
    ethertype: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet's outermost header, and what identifies its flow.

    ``flow`` is (source port, destination port), or (ICMP type, code, identifier, sequence).
    ``data_bytes`` is the length after an ICMP echo's header, as the sender stated it.
    """

    source: Address
    destination: Address
    protocol: int
    flow: tuple[int, ...] = ()
    data_bytes: int = 0
    is_fragment: bool = False

    def __str__(self) -> str:
        return f"{self.source} > {self.destination} protocol {self.protocol} {self.flow}"


def read_pcap(data: bytes) -> Iterator[Frame]:
    """The frames of a capture file of Linux's "any" device (LINKTYPE_LINUX_SLL2).

    Raises:
        CaptureUnreadable: another format, or cut off in the middle of a record.
    """
    if len(data) < _PCAP_HEADER.size:
        raise CaptureUnreadable("capture file without a header")
    magic, _, _, _, _, _, link_type = _PCAP_HEADER.unpack_from(data)
    if magic != _PCAP_MAGIC or link_type != LINKTYPE_LINUX_SLL2:
        raise CaptureUnreadable(f"capture file of magic {magic:#x} and link type {link_type}")
    offset = _PCAP_HEADER.size
    while offset < len(data):
        if offset + _RECORD_HEADER.size > len(data):
            raise CaptureUnreadable("capture file cut off in a record's header")
        _, _, captured, _ = _RECORD_HEADER.unpack_from(data, offset)
        offset += _RECORD_HEADER.size
        record = data[offset : offset + captured]
        if len(record) < max(captured, _SLL2_HEADER.size):
            raise CaptureUnreadable("capture file cut off in a record")
        ethertype, _, ifindex, _, packet_type, _, _ = _SLL2_HEADER.unpack_from(record)
        yield Frame(ifindex, packet_type == _OUTGOING, ethertype, record[_SLL2_HEADER.size :])
        offset += captured


def parse_packet(frame: Frame) -> Packet | None:
    """The frame's outermost IP packet; None when it is not IP, or too short to be read."""
    try:
        if frame.ethertype == ETHERTYPE_IPV4:
            return _parse_ipv4(frame.payload)
        if frame.ethertype == ETHERTYPE_IPV6:
            return _parse_ipv6(frame.payload)
    except (struct.error, IndexError):
        return None
    return None


def _parse_ipv4(data: bytes) -> Packet | None:
    if data[0] >> 4 != 4:
        return None
    header_bytes = (data[0] & 0x0F) * 4
    total_bytes, _, fragment = struct.unpack_from("!HHH", data, 2)
    source, destination = ip_address(data[12:16]), ip_address(data[16:20])
    protocol = data[9]
    if fragment & 0x3FFF:
        return Packet(source, destination, protocol, is_fragment=True)
    flow, data_bytes = _flow(protocol, data[header_bytes:], total_bytes - header_bytes)
    return Packet(source, destination, protocol, flow, data_bytes)


def _parse_ipv6(data: bytes) -> Packet | None:
    if data[0] >> 4 != 6:
        return None
    (payload_bytes,) = struct.unpack_from("!H", data, 4)
    source, destination = ip_address(data[8:24]), ip_address(data[24:40])
    protocol, offset = data[6], 40
    while protocol in _IPV6_OPTIONS:
        protocol, offset = data[offset], offset + 8 * (data[offset + 1] + 1)
    if protocol == _IPV6_FRAGMENT:
        return Packet(source, destination, data[offset], is_fragment=True)
    flow, data_bytes = _flow(protocol, data[offset:], payload_bytes - (offset - 40))
    return Packet(source, destination, protocol, flow, data_bytes)


def _flow(protocol: int, segment: bytes, segment_bytes: int) -> tuple[tuple[int, ...], int]:
    if protocol in (PROTOCOL_TCP, PROTOCOL_UDP):
        return struct.unpack_from("!HH", segment), 0
    if protocol in (PROTOCOL_ICMP, PROTOCOL_ICMPV6):
        kind, code, _, identifier, sequence = struct.unpack_from("!BBHHH", segment)
        return (kind, code, identifier, sequence), segment_bytes - 8
    return (), 0


_ECHO = {PROTOCOL_ICMP: (8, 0), PROTOCOL_ICMPV6: (128, 129)}
"""(request, reply)."""


def traffic_of(packet: Packet) -> Traffic | None:
    """Which probes a packet belongs to, by its mark; None for none."""
    if packet.protocol == PROTOCOL_TCP:
        return next((_BY_PORT[port] for port in packet.flow if port in _BY_PORT), None)
    if packet.protocol in _ECHO and packet.flow[0] in _ECHO[packet.protocol]:
        return _BY_PING_BYTES.get(packet.data_bytes)
    return None


def tunnel_of(frame: Frame, packet: Packet | None) -> str | None:
    """The name of the encapsulation a frame carries, or None."""
    if packet is None:
        return TUNNEL_ETHERTYPES.get(frame.ethertype)
    if packet.protocol == PROTOCOL_UDP:
        return next((TUNNEL_PORTS[port] for port in packet.flow if port in TUNNEL_PORTS), None)
    return TUNNEL_PROTOCOLS.get(packet.protocol)


@dataclass(frozen=True, slots=True)
class World:
    """Who has which address. Nothing outside it may show on a link.

    Attributes:
        pods: each pod's addresses, and the node it is on.
        nodes: each node's own addresses, and the node.
        client: the client's addresses.
        routers: every router's addresses.
    """

    pods: Mapping[Address, str]
    nodes: Mapping[Address, str]
    client: frozenset[Address]
    routers: frozenset[Address]

    def ends_fit(self, traffic: Traffic, one: Address, other: Address) -> bool:
        """Whether two addresses may be the ends of that kind of probe."""
        partners: Mapping[Traffic, Collection[Address]] = {
            Traffic.POD_TO_POD: self.pods,
            Traffic.NODE_AND_POD: self.nodes,
            Traffic.CLIENT_AND_POD: self.client,
        }
        partner = partners[traffic]
        return (one in self.pods and other in partner) or (other in self.pods and one in partner)

    def is_infrastructure(self, address: Address) -> bool:
        return address in self.nodes or address in self.routers or address in self.client


def world_of(plan: LabPlan, pod_addresses: Mapping[str, Iterable[Address]]) -> World:
    """The world of a plan once its pods have addresses (pod name -> addresses)."""
    node_of = {pod.name: pod.node for pod in plan.pods}
    return World(
        pods={a: node_of[name] for name, found in pod_addresses.items() for a in found},
        nodes={a: node.name for node in plan.nodes for a in plan.addresses_of(node)},
        client=frozenset(plan.addresses_of(plan.client)),
        routers=frozenset(a for tor in plan.tors for a in plan.addresses_of(tor)),
    )


@dataclass(frozen=True, slots=True)
class RouterCapture:
    """What one router's capture means: ``links`` maps an ifindex to the machine at its far end."""

    router: Machine
    links: Mapping[int, Machine]
    frames: Iterable[Frame]


Crossing = tuple[Address, Address, int]
"""(source, destination, protocol) of a pod probe that went from one node to another."""


@dataclass(slots=True)
class Findings:
    """Counts over all captures, and words for the first few of each kind."""

    packets: int = 0
    encapsulated: int = 0
    translated: int = 0
    unexplained: int = 0
    entered: set[Crossing] = field(default_factory=set)
    left: set[Crossing] = field(default_factory=set)
    samples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, text: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        samples = self.samples.setdefault(kind, [])
        if len(samples) < SAMPLES_MAX and text not in samples:
            samples.append(text)

    @property
    def crossed(self) -> set[Crossing]:
        """Pod probes seen coming from the source's node and going to the destination's."""
        return self.entered & self.left


FlowKey = tuple[Address, Address, int, tuple[int, ...]]


def judge(captures: Iterable[RouterCapture], world: World) -> Findings:
    """Applies every rule to every frame of every router."""
    findings = Findings()
    for capture in captures:
        _RouterJudge(capture, world, findings).run()
    return findings


class _RouterJudge:
    """The rules, applied to one router's frames."""

    def __init__(self, capture: RouterCapture, world: World, findings: Findings) -> None:
        self._capture = capture
        self._world = world
        self._findings = findings
        self._flows: dict[bool, set[FlowKey]] = {False: set(), True: set()}

    def run(self) -> None:
        for frame in self._capture.frames:
            self._findings.packets += 1
            self._judge_frame(frame)
        self._compare_flows()

    def _judge_frame(self, frame: Frame) -> None:
        machine = self._capture.links.get(frame.ifindex)
        packet = parse_packet(frame)
        where = f"{self._capture.router.name} {'to' if frame.is_outgoing else 'from'} " + (
            machine.name if machine else f"interface {frame.ifindex}"
        )
        tunnel = tunnel_of(frame, packet)
        if tunnel is not None:
            self._findings.note("encapsulated", f"{where}: {tunnel}: {packet or 'not IP'}")
        elif packet is None:
            if frame.ethertype != ETHERTYPE_ARP:
                self._findings.note("unexplained", f"{where}: ethertype {frame.ethertype:#06x}")
        elif machine is None or packet.is_fragment:
            self._findings.note("unexplained", f"{where}: {packet}")
        elif not _is_link_scoped(packet):
            reason = self._rewritten(packet, None if frame.is_outgoing else machine)
            if reason is not None:
                self._findings.note("translated", f"{where}: {packet}: {reason}")
            else:
                self._account(packet, where, machine=machine, is_outgoing=frame.is_outgoing)
            self._remember_flow(packet, is_outgoing=frame.is_outgoing)

    def _rewritten(self, packet: Packet, sender: Machine | None) -> str | None:
        """Why an address of the packet cannot be the one it was sent with, or None.

        ``sender`` is the machine whose link it came in by, None for a packet on its way out.
        """
        world = self._world
        ends = (packet.source, packet.destination)
        for address in ends:
            if address not in world.pods and not world.is_infrastructure(address):
                return f"nobody has {address}"
        traffic = traffic_of(packet)
        if traffic is not None and not world.ends_fit(traffic, *ends):
            return f"these are no ends of a {traffic.name} probe"
        if sender is not None and sender.name in world.nodes.values():
            home = world.pods.get(packet.source, world.nodes.get(packet.source))
            if home != sender.name:
                return f"{packet.source} is not behind this link"
        return None

    def _account(self, packet: Packet, where: str, *, machine: Machine, is_outgoing: bool) -> None:
        traffic = traffic_of(packet)
        if traffic is None:
            if not _is_control(packet, self._world):
                self._findings.note("unexplained", f"{where}: {packet}")
        elif traffic is Traffic.POD_TO_POD:
            source, destination = packet.source, packet.destination
            home, goal = self._world.pods[source], self._world.pods[destination]
            crossing = (source, destination, packet.protocol)
            if home == goal:
                self._findings.note("unexplained", f"{where}: {packet}: both are on {home}")
            elif is_outgoing and machine.name == goal:
                self._findings.left.add(crossing)
            elif not is_outgoing and machine.name == home:
                self._findings.entered.add(crossing)

    def _remember_flow(self, packet: Packet, *, is_outgoing: bool) -> None:
        """What a router sends or receives itself has only one half, and no other."""
        routers = self._world.routers
        if packet.source not in routers and packet.destination not in routers:
            key = (packet.source, packet.destination, packet.protocol, packet.flow)
            self._flows[is_outgoing].add(key)

    def _compare_flows(self) -> None:
        """A router changes neither addresses nor ports of what it forwards."""
        name = self._capture.router.name
        for flow in self._flows[True] - self._flows[False]:
            words = f"{name}: left without having entered: {Packet(*flow)}"
            self._findings.note("translated", words)
        for flow in self._flows[False] - self._flows[True]:
            words = f"{name}: entered and never left: {Packet(*flow)}"
            self._findings.note("unexplained", words)


def _is_link_scoped(packet: Packet) -> bool:
    """Neighbour discovery, router solicitations and group joins: never forwarded."""
    ends = (packet.source, packet.destination)
    return packet.destination.is_multicast or any(a.is_link_local for a in ends)


def _is_control(packet: Packet, world: World) -> bool:
    """BGP and ICMP between machines; none of it concerns a pod."""
    if packet.source in world.pods or packet.destination in world.pods:
        return False
    if packet.protocol == PROTOCOL_TCP:
        return BGP_PORT in packet.flow
    return packet.protocol in _ECHO
