"""What a hostile pod tries on its own wire, against a node's kernel.

Every test first shows the attack at work on a node without our tables, under settings an
administrator could have made; then with our tables but for the one rule; then that all of them
stop it. Without the first two thirds the last would prove nothing.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from cni.edge import BGP_PORT, DHCPV6_CLIENT_PORT, OWED
from cni.podlink import GATEWAY_V4
from tests.fakes import frames
from tests.fakes.cni import Node
from tests.fakes.frames import (
    ETH_P_ARP,
    ETH_P_IP,
    ETH_P_IPV6,
    ICMP,
    ICMPV6,
    TCP,
    ethernet,
    packet,
)
from tests.fakes.netns import Namespace, in_netns
from tests.fakes.podnode import (
    NODE_V4,
    NODE_V6,
    OUTSIDE_V4,
    OUTSIDE_V6,
    UPLINK,
    Pod,
    PodNode,
    delete_rule,
    pod_node,
)
from tests.fakes.runtime import agent_beside

pytestmark = pytest.mark.netns

ATTEMPTS = 20
NOBODY = "0.0.0.0"  # noqa: S104 - also an address no packet may come from
PORT = 9999
ROGUE = "fe80::bad"
ROUTER_ADVERT_MAC = "33:33:00:00:00:01"


@pytest.fixture
def bench() -> Iterator[PodNode]:
    """A node, an outside, and no protection but the links' own."""
    with pod_node() as made:
        yield made


def thrice(bench: PodNode, attack: Callable[[], int], *, rule: str) -> tuple[int, int, int]:
    """How often ``attack`` succeeds without our tables, with all but ``rule``, and with all."""
    without = attack()
    assert len(bench.edge.ensure()) == len(OWED)
    delete_rule(bench.node, rule)
    lacking = attack()
    (mended,) = bench.edge.ensure()
    assert mended.endswith(f"lacked its rule {rule}")
    return without, lacking, attack()


def open_udp(bench: PodNode, address: str, port: int) -> socket.socket:
    """A UDP socket of the node."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def make() -> socket.socket:
        made = socket.socket(family, socket.SOCK_DGRAM)
        made.bind((address, port))
        made.settimeout(5)
        return made

    return in_netns(bench.node, make)


def received_until(listener: socket.socket, last: bytes) -> list[bytes]:
    """Every datagram up to ``last``, that one not included."""
    return list(iter(lambda: listener.recv(2048), last))


def datagram(pod: Pod, payload: bytes, *, source: str, destination: str) -> bytes:
    """A frame for the pod's wire."""
    built = frames.udp(payload, source=source, destination=destination, ports=(4000, PORT))
    ethertype = ETH_P_IPV6 if ":" in source else ETH_P_IP
    return ethernet(built, source=pod.mac, ethertype=ethertype)


def send(pod: Pod, *sent: bytes) -> None:
    """Frames from the pod's wire, in this order."""
    with frames.wire(pod.namespace, "eth0") as wire:
        wire.send(*sent)


# -- sources -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "target", "claimed"),
    [
        (4, OUTSIDE_V4, "10.1.0.2"),
        (4, OUTSIDE_V4, "192.0.2.1"),
        (4, OUTSIDE_V4, "198.51.100.1"),
        (6, OUTSIDE_V6, "fd01::2"),
        (6, OUTSIDE_V6, "2001:db8::1"),
        (6, OUTSIDE_V6, "fd66::1"),
    ],
    ids=[
        "v4 other pod",
        "v4 external",
        "v4 unrouted",
        "v6 other pod",
        "v6 external",
        "v6 unrouted",
    ],
)
def test_a_spoofed_source_does_not_leave_the_node_though_rp_filter_is_off(
    bench: PodNode, own: int, target: str, claimed: str
) -> None:
    """20 of 20 leave without our tables, none with them; the pod's own address always does."""
    pod, _other = bench.pod(), bench.pod()
    bench.node.ip_batch(
        ["route add unreachable 198.51.100.0/24", "route add unreachable fd66::/64"]
    )
    bench.node.sysctl(f"ipv4/conf/{pod.host_ifname}/rp_filter", "0")
    true_source = pod.v4 if own == 4 else pod.v6

    def attack() -> int:
        with frames.wire(bench.outside, UPLINK) as seen:
            send(
                pod,
                *[datagram(pod, b"spoofed", source=claimed, destination=target)] * ATTEMPTS,
                datagram(pod, b"true", source=true_source, destination=target),
            )
            arrived = seen.received(lambda frame: frame.endswith(b"true"))
        return sum(frame.endswith(b"spoofed") for frame in arrived)

    assert thrice(bench, attack, rule="spoofed-source") == (ATTEMPTS, ATTEMPTS, 0)


def test_a_pod_cannot_speak_without_an_address(bench: PodNode) -> None:
    """0.0.0.0 to broadcast, which the reverse path lets through for DHCP, reaches no socket."""
    pod = bench.pod()
    with closing(open_udp(bench, NOBODY, PORT)) as listener:

        def attack() -> int:
            send(
                pod,
                *[datagram(pod, b"nobody", source=NOBODY, destination="255.255.255.255")]
                * ATTEMPTS,
                datagram(pod, b"true", source=pod.v4, destination=NODE_V4),
            )
            return len(received_until(listener, b"true"))

        assert thrice(bench, attack, rule="no-source") == (ATTEMPTS, ATTEMPTS, 0)


def test_one_packet_to_the_gateway_stays_one_packet(bench: PodNode) -> None:
    """The gateway's route leads to loopback, where a packet would go round until its TTL ends."""
    pod = bench.pod()

    def attack() -> int:
        before = looped(bench)
        send(pod, datagram(pod, b"round", source=pod.v4, destination=str(GATEWAY_V4)))
        ping_outside(pod)
        return looped(bench) - before

    assert thrice(bench, attack, rule="gateway-loop") == (254, 254, 1)


def looped(bench: PodNode) -> int:
    """Packets that came in over the node's loopback."""
    return int(bench.node.ip_json("-s link show lo")[0]["stats64"]["rx"]["packets"])


def ping_outside(pod: Pod) -> None:
    """One answered echo; what was sent before it has been dealt with then."""
    pod.namespace.run("ping", "-c1", "-W2", OUTSIDE_V4)


# -- what only routers and servers may say -----------------------------------------------------


@pytest.mark.parametrize("is_hidden", [False, True], ids=["plain", "behind an extension header"])
def test_a_router_advertisement_from_a_pod_changes_nothing(bench: PodNode, is_hidden: bool) -> None:
    """Though an administrator set accept_ra=2 on the link (CVE-2020-10749)."""
    pod = bench.pod()
    bench.node.sysctl(f"ipv6/conf/{pod.host_ifname}/accept_ra", "2")
    source = ROGUE
    advert = frames.router_advertisement(source=source, source_mac=pod.mac)
    protocol = ICMPV6
    if is_hidden:
        advert, protocol = frames.behind_destination_option(ICMPV6, advert), 60
    frame = ethernet(
        packet(protocol, advert, source=source, destination="ff02::1"),
        source=pod.mac,
        ethertype=ETH_P_IPV6,
        destination=ROUTER_ADVERT_MAC,
    )

    def attack() -> int:
        send(pod, frame)
        ping_v6(pod, "fe80::1%eth0")
        hijacked = bench.node.ip_json(f"-6 route show default dev {pod.host_ifname}")
        if hijacked:
            bench.node.ip(f"-6 route flush proto ra dev {pod.host_ifname}")
        return len(hijacked)

    assert thrice(bench, attack, rule="router-or-redirect-v6") == (1, 1, 0)


def test_an_ipv6_redirect_from_a_pod_changes_nothing(bench: PodNode) -> None:
    """Though the node accepts redirects on the link and routes something through the pod."""
    pod = bench.pod()
    conf = f"ipv6/conf/{pod.host_ifname}"
    bench.node.sysctl(f"{conf}/forwarding", "0")
    bench.node.sysctl(f"{conf}/accept_redirects", "1")
    source = ROGUE
    bench.node.ip(f"route add 2001:db8:5::/64 via {source} dev {pod.host_ifname}")
    body = frames.redirect_v6(
        source=source, node=NODE_V6, target="fe80::77", destination="2001:db8:5::7"
    )
    frame = ethernet(
        packet(ICMPV6, body, source=source, destination=NODE_V6),
        source=pod.mac,
        ethertype=ETH_P_IPV6,
    )

    def attack() -> int:
        send(pod, frame)
        ping_v6(pod, "fe80::1%eth0")
        diverted = "fe80::77" in bench.node.ip("-6 route get 2001:db8:5::7")
        bench.node.ip("-6 route flush cache")
        return diverted

    assert thrice(bench, attack, rule="router-or-redirect-v6") == (True, True, False)


def test_an_ipv4_redirect_from_a_pod_changes_nothing(bench: PodNode) -> None:
    """Though the node accepts redirects everywhere and routes something through the pod."""
    pod = bench.pod()
    for name in ("all", pod.host_ifname):
        bench.node.sysctl(f"ipv4/conf/{name}/accept_redirects", "1")
    bench.node.ip(f"route add 192.0.2.0/24 via {pod.v4} dev {pod.host_ifname} onlink")
    bench.node.ip(f"neigh add 10.1.0.77 lladdr {pod.mac} dev {pod.host_ifname} nud permanent")
    body = frames.redirect_v4(node=NODE_V4, gateway="10.1.0.77", destination="192.0.2.7")
    frame = ethernet(
        packet(ICMP, body, source=pod.v4, destination=NODE_V4),
        source=pod.mac,
        ethertype=ETH_P_IP,
    )

    def attack() -> int:
        send(pod, frame)
        ping_outside(pod)
        diverted = "10.1.0.77" in bench.node.ip("route get 192.0.2.7")
        bench.node.ip("-4 route flush cache")
        return diverted

    assert thrice(bench, attack, rule="redirect-v4") == (True, True, False)


@pytest.mark.parametrize("is_fragment", [False, True], ids=["plain", "as an atomic fragment"])
def test_a_dhcpv6_answer_from_a_pod_reaches_no_client(bench: PodNode, is_fragment: bool) -> None:
    """A client of the node listens on every interface; what else a pod says still arrives."""
    pod = bench.pod()
    body = b"answer"
    answer = frames.udp(body, source=pod.v6, destination=NODE_V6, ports=(547, DHCPV6_CLIENT_PORT))
    if is_fragment:
        (atomic,) = frames.fragments(frames.UDP, answer[40:], first_bytes=len(answer))
        answer = packet(frames.FRAGMENT, atomic, source=pod.v6, destination=NODE_V6)
    frame = ethernet(answer, source=pod.mac, ethertype=ETH_P_IPV6)
    with (
        closing(open_udp(bench, "::", DHCPV6_CLIENT_PORT)) as client,
        closing(open_udp(bench, "::", PORT)) as other,
    ):
        client.setblocking(False)

        def attack() -> int:
            last = datagram(pod, b"true", source=pod.v6, destination=NODE_V6)
            send(pod, *[frame] * ATTEMPTS, last)
            assert received_until(other, b"true") == []
            arrived = 0
            while True:
                try:
                    arrived += client.recv(2048) == body
                except BlockingIOError:
                    return arrived

        assert thrice(bench, attack, rule="dhcpv6-answer") == (ATTEMPTS, ATTEMPTS, 0)


def ping_v6(pod: Pod, target: str) -> None:
    """One answered echo."""
    pod.namespace.run("ping", "-c1", "-W2", target)


# -- the node's own ports ----------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """How a TCP connection went."""

    outcome: str
    took_s: float


CONNECT = """
import socket, sys, time
started_s = time.monotonic()
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()
    outcome = "connected"
except OSError as error:
    outcome = type(error).__name__
print(outcome, time.monotonic() - started_s)
"""


def connect(namespace: Namespace, address: str, port: int) -> Attempt:
    """Connects from a process in ``namespace``."""
    printed = namespace.run(sys.executable, "-IS", "-c", CONNECT, address, str(port))
    outcome, took = printed.split()
    return Attempt(outcome, float(took))


def open_tcp(namespace: Namespace, port: int) -> socket.socket:
    """A listener on every address of both families."""

    def make() -> socket.socket:
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)

    return in_netns(namespace, make)


def test_a_pod_cannot_reach_the_nodes_bgp_port_and_learns_so_at_once(bench: PodNode) -> None:
    """Refused at every address of the node; open without our tables, and to the outside always."""
    pod = bench.pod()
    targets = [NODE_V4, NODE_V6, "fe80::1%eth0"]
    with closing(open_tcp(bench.node, BGP_PORT)), closing(open_tcp(bench.node, PORT)):
        for target in targets:
            assert connect(pod.namespace, target, BGP_PORT).outcome == "connected"
        bench.edge.ensure()
        for target in targets:
            attempt = connect(pod.namespace, target, BGP_PORT)
            assert attempt.outcome == "ConnectionRefusedError"
            assert attempt.took_s < 0.5
            assert connect(pod.namespace, target, PORT).outcome == "connected"
        assert connect(bench.outside, NODE_V4, BGP_PORT).outcome == "connected"
        assert connect(bench.outside, NODE_V6, BGP_PORT).outcome == "connected"


def test_a_syn_in_fragments_does_not_open_the_bgp_port(bench: PodNode) -> None:
    """IPv6 is reassembled after our chain; the first fragment alone must be enough to stop it."""
    pod = bench.pod()
    syn = frames.tcp_syn(source=pod.v6, destination=NODE_V6, ports=(4000, BGP_PORT))
    pieces = frames.fragments(TCP, syn, first_bytes=24)
    built = [
        ethernet(
            packet(frames.FRAGMENT, piece, source=pod.v6, destination=NODE_V6),
            source=pod.mac,
            ethertype=ETH_P_IPV6,
        )
        for piece in pieces
    ]
    assert len(built) == 2

    def attack() -> int:
        with (
            closing(open_tcp(bench.node, BGP_PORT)),
            frames.wire(pod.namespace, "eth0") as wire,
        ):
            wire.send(*built)
            ping_v6(pod, "fe80::1%eth0")
            is_pong = lambda frame: frame[54:55] == bytes((129,))  # noqa: E731
            answers = wire.received(is_pong)
        return sum(
            frame[20] == TCP and frame[67] & frames.SYN_ACK == frames.SYN_ACK for frame in answers
        )

    assert thrice(bench, attack, rule="bgp") == (1, 1, 0)


def test_node_and_pods_reach_each_others_other_services(bench: PodNode) -> None:
    """As kubelet's probes and node-local services need it; both families, both directions."""
    pod, other = bench.pod(), bench.pod()
    bench.edge.ensure()
    with (
        closing(open_tcp(bench.node, 10250)),
        closing(open_tcp(other.namespace, 8080)),
        closing(open_tcp(bench.outside, 443)),
    ):
        for namespace, target, port in (
            (pod.namespace, NODE_V4, 10250),
            (pod.namespace, NODE_V6, 10250),
            (bench.node, other.v4, 8080),
            (bench.node, other.v6, 8080),
            (pod.namespace, other.v4, 8080),
            (pod.namespace, other.v6, 8080),
            (pod.namespace, OUTSIDE_V4, 443),
            (pod.namespace, OUTSIDE_V6, 443),
            (bench.outside, other.v4, 8080),
            (bench.outside, other.v6, 8080),
        ):
            assert connect(namespace, target, port).outcome == "connected", (target, port)


# -- ARP and neighbours ------------------------------------------------------------------------


def test_the_node_answers_arp_for_the_gateway_alone(bench: PodNode) -> None:
    """Without our tables it answers for every address it has a route to."""
    pod = bench.pod()
    swept = [f"203.0.113.{number}" for number in range(1, 201)]

    def attack() -> int:
        with frames.wire(pod.namespace, "eth0") as wire:
            for target in (*swept, str(GATEWAY_V4)):
                wire.send(
                    frames.arp(frames.ARP_REQUEST, sender_mac=pod.mac, sender=pod.v4, target=target)
                )
            gateway = GATEWAY_V4.packed
            answers = wire.received(lambda frame: is_arp_reply(frame) and frame[28:32] == gateway)
        return sum(map(is_arp_reply, answers)) - 1

    assert thrice(bench, attack, rule="other-arp") == (len(swept), len(swept), 0)
    pod.namespace.ip("neigh flush all")
    ping_outside(pod)


def is_arp_reply(frame: bytes) -> bool:
    """Whether a frame is an ARP reply."""
    return frame[12:14] == ETH_P_ARP.to_bytes(2, "big") and frame[21] == frames.ARP_REPLY


def test_arp_replies_nobody_asked_for_teach_the_node_nothing(bench: PodNode) -> None:
    """Not for another pod, the node's own gateway or an unknown; arp_accept=1 shows they could."""
    pod, other = bench.pod(), bench.pod()
    bench.node.run("ping", "-c1", "-W2", other.v4)
    bench.node.run("ping", "-c1", "-W2", OUTSIDE_V4)
    bench.edge.ensure()
    claimed = (other.v4, OUTSIDE_V4, "10.1.0.99")
    truth = neighbours(bench)

    def attack() -> dict[tuple[str, str], str]:
        with frames.wire(pod.namespace, "eth0") as wire:
            for address in claimed:
                for operation in (frames.ARP_REPLY, frames.ARP_REQUEST):
                    wire.send(
                        frames.arp(
                            operation,
                            sender_mac="02:00:00:00:0b:ad",
                            sender=address,
                            target=address,
                        )
                    )
        ping_outside(pod)
        return {
            key: value for key, value in neighbours(bench).items() if value == "02:00:00:00:0b:ad"
        }

    assert attack() == {}
    assert truth.items() <= neighbours(bench).items()
    bench.node.sysctl(f"ipv4/conf/{pod.host_ifname}/arp_accept", "1")
    assert set(attack()) == {(address, pod.host_ifname) for address in claimed}
    assert truth.items() <= neighbours(bench).items()


def neighbours(bench: PodNode) -> dict[tuple[str, str], str]:
    """The node's IPv4 neighbours: (address, interface) to MAC."""
    found = bench.node.ip_json("-4 neigh show")
    return {(each["dst"], each["dev"]): each["lladdr"] for each in found if "lladdr" in each}


def test_neighbour_discovery_of_the_gateway_works_from_nothing(bench: PodNode) -> None:
    """The pod forgets everything, asks for fe80::1 again, and answers the node's own question."""
    bench.edge.ensure()
    pod = bench.pod()
    pod.namespace.ip("neigh flush all")
    bench.node.ip(f"neigh flush dev {pod.host_ifname}")

    ping_v6(pod, OUTSIDE_V6)
    bench.node.run("ping", "-c1", "-W2", pod.v6)

    found = pod.namespace.ip_json("-6 neigh show fe80::1 dev eth0")
    assert [each["lladdr"] for each in found] == ["ee:ee:ee:ee:ee:ee"]


# -- what the tables must not do ---------------------------------------------------------------


def test_our_tables_do_not_switch_conntrack_on(bench: PodNode) -> None:
    """Traffic through them leaves no connection entry; one foreign rule, and it does."""
    pod = bench.pod()
    bench.edge.ensure()
    ping_outside(pod)
    tracked = ("cat", "/proc/net/nf_conntrack")
    assert bench.node.run(*tracked) == ""
    bench.node.run("nft", "add table ip foreign")
    bench.node.run("nft", "add chain ip foreign any { type filter hook forward priority 0 ; }")
    bench.node.run("nft", "add rule ip foreign any ct state new accept")
    ping_outside(pod)
    assert pod.v4 in bench.node.run(*tracked)


# -- the agent's socket ------------------------------------------------------------------------


REACH = """
import socket, sys
try:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(sys.argv[1])
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""


def test_the_agents_socket_is_a_path_that_no_pod_sees(bench: PodNode, tmp_path: Path) -> None:
    """Root finds it on the host; another user may not, and a pod has other files and no name."""
    pod = bench.pod()
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    path = str(run_dir / "cni.sock")
    interpreter = os.path.realpath(sys.executable)
    reach = (interpreter, "-IS", "-c", REACH, path)
    hidden = f'mount -t tmpfs none {run_dir} && exec "$@"'
    with ExitStack() as stack:
        stack.enter_context(agent_beside(path, Node()))
        assert pod.namespace.run(*reach).strip() == "connected"
        in_pod = pod.namespace.run("unshare", "--mount", "sh", "-c", hidden, "sh", *reach)
        assert in_pod.strip() == "FileNotFoundError"
        assert reached_by_nobody(path) == "PermissionError"
        listed = Path("/proc/net/unix").read_text()
        assert path in listed
        names = [line.split()[-1] for line in listed.splitlines()[1:]]
        assert [name for name in names if name.startswith("@") and "slash32" in name] == []


def reached_by_nobody(path: str) -> str:
    """How a connection fares of a user who is not root."""
    child = subprocess.run(
        [os.path.realpath("/usr/bin/python3"), "-IS", "-c", REACH, path],
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=True,
    )
    return child.stdout.strip()
