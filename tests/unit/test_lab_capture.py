"""The judge of captures, fed with frames made by hand: what is wrong must be counted as wrong."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest

from lab import demo
from lab.capture import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    LINKTYPE_LINUX_SLL2,
    PROTOCOL_ICMP,
    PROTOCOL_TCP,
    CaptureUnreadable,
    Frame,
    RouterCapture,
    Traffic,
    judge,
    parse_packet,
    read_pcap,
    world_of,
)
from lab.plan import Shape, plan_lab
from lab.waiting import Progress

PLAN = plan_lab("x", Shape(nodes=2, pods=2))
TOR = PLAN.tors[0]
NODE1, NODE2 = PLAN.nodes
PODS = {
    "node1-pod1": [ip_address("10.244.1.1"), ip_address("fd44:10:244::1:1")],
    "node1-pod2": [ip_address("10.244.1.2"), ip_address("fd44:10:244::1:2")],
    "node2-pod1": [ip_address("10.244.2.1"), ip_address("fd44:10:244::2:1")],
    "node2-pod2": [ip_address("10.244.2.2"), ip_address("fd44:10:244::2:2")],
}
WORLD = world_of(PLAN, PODS)
LINKS = {11: NODE1, 12: NODE2, 13: PLAN.client}
A, B = "10.244.1.1", "10.244.2.1"
A6, B6 = "fd44:10:244::1:1", "fd44:10:244::2:1"
NODE1_ADDRESS, TOR_ADDRESS, CLIENT = "172.30.0.1", "172.30.0.0", "172.31.255.10"
POD_PORT = Traffic.POD_TO_POD.port


def ipv4(source: str, destination: str, protocol: int, payload: bytes, *, fragment: int = 0):
    """An IPv4 packet with a header of 20 bytes."""
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, fragment, 64, protocol, 0)
    return header + ip_address(source).packed + ip_address(destination).packed + payload


def ipv6(source: str, destination: str, protocol: int, payload: bytes):
    """An IPv6 packet without extension headers but those in ``payload``."""
    header = struct.pack("!IHBB", 0x60000000, len(payload), protocol, 64)
    return header + ip_address(source).packed + ip_address(destination).packed + payload


def ports(source: int, destination: int, size: int = 32) -> bytes:
    """The beginning of a TCP or UDP header, padded."""
    return struct.pack("!HH", source, destination) + bytes(size - 4)


def echo(kind: int, data_bytes: int, *, identifier: int = 7) -> bytes:
    """An ICMP echo request or reply."""
    return struct.pack("!BBHHH", kind, 0, 0, identifier, 1) + bytes(data_bytes)


def tcp(source: str = A, destination: str = B, *, sport: int = 40000, dport: int = POD_PORT):
    return ipv4(source, destination, PROTOCOL_TCP, ports(sport, dport))


def arrives(payload: bytes, *, link: int = 11, ethertype: int = ETHERTYPE_IPV4) -> Frame:
    return Frame(link, False, ethertype, payload)


def leaves(payload: bytes, *, link: int = 12, ethertype: int = ETHERTYPE_IPV4) -> Frame:
    return Frame(link, True, ethertype, payload)


def crossing(payload: bytes, *, ethertype: int = ETHERTYPE_IPV4) -> list[Frame]:
    """From node1 through the router to node2, unchanged."""
    return [arrives(payload, ethertype=ethertype), leaves(payload, ethertype=ethertype)]


def verdict_on(*frames: Frame):
    return judge([RouterCapture(TOR, LINKS, list(frames))], WORLD)


def counts(*frames: Frame) -> tuple[int, int, int]:
    """(encapsulated, translated, unexplained)."""
    found = verdict_on(*frames)
    return found.encapsulated, found.translated, found.unexplained


def test_what_a_healthy_lab_sends_is_no_finding():
    """Probes of every kind, BGP, ARP, neighbour discovery, pings between machines."""
    ping = Traffic.POD_TO_POD.ping_bytes
    node_tcp = ipv4(NODE1_ADDRESS, B, PROTOCOL_TCP, ports(1, Traffic.NODE_AND_POD.port))
    to_client = ipv4(A, CLIENT, PROTOCOL_ICMP, echo(8, Traffic.CLIENT_AND_POD.ping_bytes))
    solicitation = struct.pack("!BBHHH", 135, 0, 0, 0, 0) + bytes(16)
    frames = [
        *crossing(tcp()),
        *crossing(ipv4(A, B, PROTOCOL_ICMP, echo(8, ping))),
        *crossing(ipv6(A6, B6, 58, echo(128, ping)), ethertype=ETHERTYPE_IPV6),
        *crossing(ipv6(A6, B6, PROTOCOL_TCP, ports(9, POD_PORT)), ethertype=ETHERTYPE_IPV6),
        *crossing(node_tcp),
        arrives(to_client),
        leaves(to_client, link=13),
        arrives(ipv4(NODE1_ADDRESS, TOR_ADDRESS, PROTOCOL_TCP, ports(50000, 179))),
        leaves(ipv4(TOR_ADDRESS, NODE1_ADDRESS, PROTOCOL_TCP, ports(179, 50000)), link=11),
        leaves(ipv4(TOR_ADDRESS, NODE1_ADDRESS, PROTOCOL_ICMP, echo(8, 56)), link=11),
        arrives(bytes(28), ethertype=ETHERTYPE_ARP),
        arrives(ipv6("fe80::5", "ff02::1:ff00:0", 58, solicitation), ethertype=ETHERTYPE_IPV6),
        arrives(ipv6("fd00:30::1", "ff02::1:ff00:0", 58, solicitation), ethertype=ETHERTYPE_IPV6),
    ]
    found = verdict_on(*frames)
    assert (found.encapsulated, found.translated, found.unexplained) == (0, 0, 0)
    assert found.samples == {}
    assert found.packets == len(frames)


def test_crossings_are_seen_only_when_they_enter_from_the_one_and_leave_to_the_other():
    """Half a crossing proves nothing about the pair."""
    a, b = ip_address(A), ip_address(B)
    assert verdict_on(*crossing(tcp())).crossed == {(a, b, PROTOCOL_TCP)}
    assert verdict_on(arrives(tcp())).crossed == set()
    assert verdict_on(leaves(tcp())).crossed == set()


INNER = tcp()
TUNNELS = {
    "IPIP": ipv4(NODE1_ADDRESS, "172.30.0.3", 4, INNER),
    "6in4": ipv4(NODE1_ADDRESS, "172.30.0.3", 41, ipv6(A6, B6, 6, ports(1, POD_PORT))),
    "GRE": ipv4(NODE1_ADDRESS, "172.30.0.3", 47, b"\0\0\x08\0" + INNER),
    "VXLAN": ipv4(NODE1_ADDRESS, "172.30.0.3", 17, ports(40000, 4789, 8) + bytes(8) + INNER),
    "VXLAN of Linux": ipv4(NODE1_ADDRESS, "172.30.0.3", 17, ports(40000, 8472, 8) + INNER),
    "Geneve": ipv4(NODE1_ADDRESS, "172.30.0.3", 17, ports(40000, 6081, 8) + bytes(8) + INNER),
    "WireGuard": ipv4(NODE1_ADDRESS, "172.30.0.3", 17, ports(51820, 51820, 8) + INNER),
    "ESP": ipv4(NODE1_ADDRESS, "172.30.0.3", 50, bytes(40)),
    "IPIP between pods": ipv4(A, B, 4, INNER),
}


@pytest.mark.parametrize("name", TUNNELS)
def test_every_tunnel_over_ipv4_is_counted_both_ways(name):
    """Two frames, two encapsulated packets, whatever addresses they carry outside."""
    assert counts(*crossing(TUNNELS[name]))[0] == 2


@pytest.mark.parametrize(
    ("protocol", "payload"),
    [
        (41, ipv6(A6, B6, 6, ports(1, POD_PORT))),
        (4, INNER),
        (47, bytes(8)),
        (17, ports(1, 4789)),
        (0, bytes([47, 0]) + bytes(6) + bytes(8)),
        (60, bytes([0, 0]) + bytes(6) + bytes([41, 0]) + bytes(6) + bytes(40)),
        (43, bytes([6, 2]) + bytes(22)),
    ],
)
def test_every_tunnel_over_ipv6_is_counted_also_behind_extension_headers(protocol, payload):
    """A hop-by-hop header in front of GRE does not hide it; segment routing is a tunnel too."""
    packet = ipv6("fd00:30::1", "fd00:30:0:1::1", protocol, payload)
    assert counts(*crossing(packet, ethertype=ETHERTYPE_IPV6))[0] == 2


def test_mpls_is_counted_as_encapsulated():
    """It has no IP header outside, only an ethertype."""
    assert counts(arrives(INNER, ethertype=0x8847))[0] == 1


def test_a_pod_hidden_behind_its_nodes_address_is_counted_as_translated():
    """Masquerading, the usual one: the wire shows the node where a pod must be."""
    assert counts(*crossing(tcp(source=NODE1_ADDRESS)))[1] == 2
    ping = echo(8, Traffic.POD_TO_POD.ping_bytes)
    assert counts(*crossing(ipv4(NODE1_ADDRESS, B, PROTOCOL_ICMP, ping)))[1] == 2


def test_a_pod_hidden_behind_another_pod_is_counted_as_translated():
    """node1 sends with the address of a pod that is not on it."""
    assert counts(*crossing(tcp(source="10.244.2.2")))[1] >= 1


def test_an_address_that_nobody_has_is_counted_as_translated():
    """Source or destination, in either family."""
    assert counts(*crossing(tcp(source="192.0.2.1")))[1] == 2
    assert counts(*crossing(tcp(destination="192.0.2.1")))[1] == 2
    stranger = ipv6("2001:db8::1", B6, PROTOCOL_TCP, ports(1, POD_PORT))
    assert counts(*crossing(stranger, ethertype=ETHERTYPE_IPV6))[1] == 2


def test_a_source_rewritten_in_the_router_is_counted_as_translated():
    """What left is not what entered, although both addresses are pods'."""
    found = verdict_on(arrives(tcp()), leaves(tcp(source="10.244.1.2")))
    assert found.translated == 1
    assert "left without having entered" in found.samples["translated"][0]


def test_a_port_rewritten_in_the_router_is_counted_as_translated():
    """The same addresses and another source port: port translation."""
    assert counts(arrives(tcp(sport=1000)), leaves(tcp(sport=2000)))[1] == 1


def test_a_destination_rewritten_in_the_router_is_counted_as_translated():
    """A virtual address that became a pod's."""
    found = verdict_on(arrives(tcp(destination="10.244.2.2")), leaves(tcp()))
    assert found.translated == 1


def test_a_packet_that_entered_and_never_left_is_unexplained():
    """Dropped, or rewritten beyond recognition; not silently fine."""
    assert counts(arrives(tcp())) == (0, 0, 1)


@pytest.mark.parametrize(
    "frame",
    [
        arrives(b"\x45"),
        arrives(b""),
        arrives(bytes(40), ethertype=0x9000),
        arrives(tcp(), link=99),
        arrives(ipv4(A, B, PROTOCOL_TCP, ports(1, 80))),
        arrives(ipv4(A, B, 17, ports(1, 53))),
        arrives(ipv4(A, B, PROTOCOL_TCP, bytes(32), fragment=0x2000)),
        arrives(ipv4(NODE1_ADDRESS, TOR_ADDRESS, PROTOCOL_TCP, ports(1, 22))),
        leaves(ipv4(TOR_ADDRESS, A, PROTOCOL_ICMP, echo(3, 28)), link=11),
    ],
)
def test_a_frame_that_no_rule_explains_is_a_finding(frame):
    """Cut off, unknown, on an unknown link, an unknown port, a fragment, an ICMP error."""
    assert counts(frame)[2] >= 1


def test_two_pods_of_one_node_seen_on_the_wire_are_a_finding():
    """Their packets have no business outside the node."""
    assert counts(*crossing(tcp(destination="10.244.1.2")))[2] >= 1


def test_offending_packets_are_described_a_few_times_and_all_counted():
    """A million of them fill no memory and no screen."""
    frames = [f for port in range(1000) for f in crossing(tcp(source="192.0.2.1", sport=port))]
    found = verdict_on(*frames)
    assert found.translated == 2000
    assert len(found.samples["translated"]) == 5


def test_flows_are_compared_router_by_router():
    """In by one router and out by another is not forwarding by either."""
    captures = [
        RouterCapture(TOR, LINKS, [arrives(tcp())]),
        RouterCapture(replace(TOR, name="tor2"), LINKS, [leaves(tcp())]),
    ]
    found = judge(captures, WORLD)
    assert (found.translated, found.unexplained) == (1, 1)


def test_the_demo_fails_when_a_pair_was_not_seen_on_the_wire(capsys):
    """No finding at all is not enough: absence of evidence is what a dead capture gives."""
    verdict = demo.Verdict(pairs_reachable=12, pairs=12)
    demo.judge_capture(verdict_on(*crossing(tcp())), WORLD, verdict=verdict, progress=Progress())
    # Two nodes of two pods: 8 ordered pairs on two nodes, in two families, by ping and TCP.
    assert "31 of 32 crossings not seen" in verdict.problems
    assert not verdict.holds
    assert "1 of 32 crossings seen" in capsys.readouterr().err


def pcap(records: list[bytes], *, link_type: int = LINKTYPE_LINUX_SLL2) -> bytes:
    """A capture file as tcpdump writes it."""
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 160, link_type)
    return head + b"".join(struct.pack("<IIII", 0, 0, len(r), 1500) + r for r in records)


def sll2(payload: bytes, *, ifindex: int, packet_type: int) -> bytes:
    """A record of the "any" device."""
    header = struct.pack("!HHIHBB8s", ETHERTYPE_IPV4, 0, ifindex, 1, packet_type, 6, bytes(8))
    return header + payload


def test_frames_are_read_with_their_link_and_direction():
    """Packet types 0 to 3 arrived, 4 left (packet(7))."""
    data = pcap([sll2(tcp(), ifindex=11, packet_type=0), sll2(tcp(), ifindex=12, packet_type=4)])
    assert list(read_pcap(data)) == crossing(tcp())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xd4\xc3\xb2\xa1",
        bytes(24),
        pcap([], link_type=1),
        pcap([sll2(tcp(), ifindex=1, packet_type=0)])[:-1],
        pcap([sll2(tcp(), ifindex=1, packet_type=0)])[:30],
        pcap([bytes(10)]),
    ],
)
def test_a_file_that_is_not_a_whole_capture_is_refused(data):
    """Nothing is concluded from a part."""
    with pytest.raises(CaptureUnreadable):
        list(read_pcap(data))


def test_icmp_size_is_taken_from_the_header_and_not_from_what_was_captured():
    """A snapshot length shorter than the packet does not change whose probe it is."""
    packet = ipv4(A, B, PROTOCOL_ICMP, echo(8, 1000))[:60]
    parsed = parse_packet(arrives(packet))
    assert parsed is not None
    assert parsed.data_bytes == 1000
