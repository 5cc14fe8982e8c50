"""Reads from this namespace's kernel everything that concerns one packet. Changes nothing.

It asks the kernel itself, not the agent: what the agent believes is another witness.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6, AF_UNSPEC

from cni import hostend, podend
from cni import netlink as nl
from cni.hostend import HostEnd
from cni.netlink_socket import NetlinkSocket
from cni.netns import Sysctls, dotted, inside
from cni.observed import ObservedLink
from cni.podlink import GATEWAY_V4, GATEWAY_V6, PodLink
from cni.wiring import KernelWiring
from cni.wiring_errors import WiringError
from routing.explain.evidence import (
    ARRIVAL,
    BACK,
    FORWARD,
    KernelEvidence,
    LinkFacts,
    Lookup,
    Neighbour,
    PodFacts,
    Probe,
    Question,
    SysctlFinding,
    TcpFacts,
)
from routing.explain.pod_namespaces import namespace_behind
from routing.explain.routes_now import covering, look_up, neighbour
from routing.routes import Address

PROBE_COUNT = 3
PROBE_DEADLINE_S = 6
_TCP_STATES = {"01": "ESTABLISHED", "02": "SYN_SENT", "03": "SYN_RECV"}
_ALWAYS = ("ipv4/conf/all/forwarding", "ipv4/conf/all/rp_filter", "ipv6/conf/all/forwarding")


def gather(question: Question, peers: Iterable[str] = ()) -> KernelEvidence:
    """The kernel's side of ``question``, in the calling thread's namespace.

    Args:
        peers: BGP peers' addresses, for their neighbour entries and TCP connections.

    Raises:
        OSError: the kernel refused to be read (not root, say).
        ValueError: an address of the question is none.
    """
    with ExitStack() as stack:
        reader = _Reader(
            stack.enter_context(NetlinkSocket(receive_buffer_bytes=8 << 20)),
            stack.enter_context(Sysctls()),
            question,
            [ip_address(peer) for peer in peers],
        )
        wiring = KernelWiring()
        stack.callback(wiring.close)
        try:
            return reader.read(wiring.read())
        except WiringError as error:
            raise OSError(str(error)) from None


def gather_peers(peers: Iterable[str]) -> KernelEvidence:
    """Only what the kernel knows of BGP peers: neighbour entries and TCP connections.

    Raises:
        OSError: the kernel refused to be read.
    """
    addresses = [ip_address(peer) for peer in peers]
    with NetlinkSocket(receive_buffer_bytes=1 << 18) as socket:
        found = [
            neighbour(socket, peer, hop.ifname)
            for peer in addresses
            if (hop := look_up(socket, FORWARD, peer).hop) is not None and hop.gateway is None
        ]
    return KernelEvidence(neighbours=tuple(found), tcp=tuple(_tcp(addresses)))


class _Reader:
    def __init__(
        self,
        socket: NetlinkSocket,
        sysctls: Sysctls,
        question: Question,
        peers: list[Address],
    ) -> None:
        self._socket = socket
        self._sysctls = sysctls
        self._question = question
        self._destination = ip_address(question.destination)
        self._source = None if question.source is None else ip_address(question.source)
        self._peers = peers

    def read(self, links: list[ObservedLink]) -> KernelEvidence:
        named = {self._destination, self._source}
        concerned = [each for each in links if named & set(each.record.addresses)]
        pods = [facts for link in concerned for facts in self._pods(link, named)]
        veth_of = {pod.address: pod.host_ifname for pod in pods}
        lookups = list(self._lookups(veth_of))
        hops = {each.hop for each in lookups if each.hop is not None}
        next_hops = [(ip_address(hop.gateway), hop.ifname) for hop in hops if hop.gateway]
        next_hops += [
            (peer, hop.ifname)
            for peer in self._peers
            if (hop := look_up(self._socket, FORWARD, peer).hop) is not None
        ]
        names = {hop.ifname for hop in hops} | set(veth_of.values())
        addresses = [a for a in (self._destination, self._source) if a is not None]
        return KernelEvidence(
            lookups=tuple(lookups),
            covering=covering(self._socket, addresses),
            neighbours=tuple(
                neighbour(self._socket, address, ifname)
                for address, ifname in sorted(set(next_hops), key=str)
            ),
            links=tuple(facts for name in sorted(names) if (facts := self._link(name))),
            pods=tuple(pods),
            sysctls=self._read_sysctls(names, lookups),
            tcp=tuple(_tcp(self._peers)),
            addresses=tuple(self._own_addresses()),
            probes=tuple(self._probes(concerned)) if self._question.probe else (),
        )

    # -- lookups -----------------------------------------------------------------------------

    def _lookups(self, veth_of: dict[str, str]) -> Iterator[Lookup]:
        """Each as the packet meets it: from the pod's link, from the wire, from here."""
        source_veth = veth_of.get(str(self._source))
        target_veth = veth_of.get(str(self._destination))
        forward = look_up(
            self._socket,
            FORWARD,
            self._destination,
            source=self._source if source_veth else None,
            arrives_on=source_veth,
        )
        yield forward
        if self._source is None:
            return
        if source_veth is not None and target_veth is None and forward.hop is not None:
            # The answer, as it comes in from outside.
            yield look_up(
                self._socket,
                ARRIVAL,
                self._source,
                source=self._destination,
                arrives_on=forward.hop.ifname,
            )
        if target_veth is None:
            return
        back = look_up(
            self._socket,
            BACK,
            self._source,
            source=self._destination,
            arrives_on=target_veth,
        )
        yield back
        if source_veth is None and str(self._source) not in set(self._own_addresses()):
            for ifname in self._uplinks(back):
                yield look_up(
                    self._socket,
                    ARRIVAL,
                    self._destination,
                    source=self._source,
                    arrives_on=ifname,
                )

    def _uplinks(self, back: Lookup) -> list[str]:
        """The links a packet from outside can come in by: those that face BGP peers; without any
        known, the one the answer leaves by."""
        found = {
            hop.ifname
            for peer in self._peers
            if (hop := look_up(self._socket, FORWARD, peer).hop) is not None
        }
        if not found and back.hop is not None:
            found = {back.hop.ifname}
        return sorted(found)

    # -- links and pods ----------------------------------------------------------------------

    def _host_end(self, ifname: str) -> HostEnd | None:
        try:
            return hostend.parse_link(self._socket.get(nl.RTM_GETLINK, hostend.get_link(ifname)))
        except OSError:
            return None

    def _link(self, ifname: str) -> LinkFacts | None:
        found = self._host_end(ifname)
        return None if found is None else _facts(found)

    def _own_addresses(self) -> Iterator[str]:
        body = nl.IFADDRMSG.pack(AF_UNSPEC, 0, 0, 0, 0)
        for address in podend.parse_addresses(self._socket.dump(nl.RTM_GETADDR, body)):
            yield address.partition("/")[0]

    def _pods(self, observed: ObservedLink, named: set[Address | None]) -> Iterator[PodFacts]:
        found = self._host_end(observed.ifname)
        if found is None:
            return
        record = observed.record
        link = PodLink(record.attachment, record.addresses, found.mtu_bytes, record.pod)
        path = hostend.proxy_delay_path(found.ifname)
        delay = self._sysctls.read(path)
        values = {**found.sysctls, **({} if delay is None else {path: int(delay)})}
        body = hostend.dump_addresses(AF_INET6, found.ifindex)
        own = podend.parse_addresses(self._socket.dump(nl.RTM_GETADDR, body))
        with namespace_behind(self._socket, found.peer_nsid) as netns_fd:
            inner = None if netns_fd is None else _inside(self._socket, link, found, netns_fd)
        for address in record.addresses:
            if address not in named:
                continue
            gateway = None if inner is None else inner.gateways.get(address.version)
            yield PodFacts(
                name=str(record.pod) if record.pod else record.attachment.container_id[:12],
                address=str(address),
                ifname=record.attachment.ifname,
                host_ifname=found.ifname,
                host=_facts(found),
                sysctls=tuple(_wrong_sysctls(link, values)),
                host_differences=tuple(
                    each
                    for each in hostend.host_differences(
                        link, found, has_gateway_v6=f"{GATEWAY_V6}/64" in own
                    )
                    if not each.startswith(("sysctl ", "state of "))
                ),
                inside=None if inner is None else inner.differences,
                inside_mtu_bytes=None if inner is None else inner.mtu_bytes,
                gateway=gateway,
            )

    def _read_sysctls(self, ifnames: set[str], lookups: list[Lookup]) -> dict[str, str]:
        ifnames = ifnames | {each.arrives_on for each in lookups if each.arrives_on}
        keys = ("rp_filter", "forwarding")
        paths = [*_ALWAYS, *(f"ipv4/conf/{name}/{key}" for name in sorted(ifnames) for key in keys)]
        return {
            dotted(path): value for path in paths if (value := self._sysctls.read(path)) is not None
        }

    # -- packets -----------------------------------------------------------------------------

    def _probes(self, links: list[ObservedLink]) -> Iterator[Probe]:
        """From the source's own namespace, or from here when the source is here."""
        pod = next((each for each in links if self._source in each.record.addresses), None)
        if pod is None:
            if self._source is None or str(self._source) in set(self._own_addresses()):
                yield from _ping(self._destination, _facts_mtu(self._socket, self._destination))
            return
        found = self._host_end(pod.ifname)
        nsid = None if found is None else found.peer_nsid
        results: list[Probe] = []
        with namespace_behind(self._socket, nsid) as netns_fd:
            if netns_fd is not None:
                # Not yielded from in here: the caller would go on inside the pod's namespace.
                with inside(netns_fd):
                    results = list(_ping(self._destination, pod.mtu_bytes))
        yield from results


class _Inside:
    """What is in a pod's namespace."""

    def __init__(
        self, differences: tuple[str, ...], mtu_bytes: int | None, gateways: dict[int, Neighbour]
    ) -> None:
        self.differences = differences
        self.mtu_bytes = mtu_bytes
        self.gateways = gateways


def _inside(host_socket: NetlinkSocket, link: PodLink, host: HostEnd, netns_fd: int) -> _Inside:
    ifname = link.attachment.ifname
    with NetlinkSocket(netns_fd=netns_fd, receive_buffer_bytes=1 << 16) as socket:
        try:
            found = hostend.parse_link(socket.get(nl.RTM_GETLINK, hostend.get_link(ifname)))
        except OSError:
            return _Inside((f"{ifname} is missing in the pod",), None, {})
        body = hostend.dump_addresses(AF_UNSPEC, found.ifindex)
        addresses = podend.parse_addresses(socket.dump(nl.RTM_GETADDR, body))
        families = [AF_INET] + ([AF_INET6] if link.ipv6 is not None else [])
        routes = [
            podend.parse_route(each, {found.ifindex: found.ifname})
            for family in families
            for each in socket.dump_routes(podend.dump_main_table(family))
        ]
        nsid = hostend.parse_nsid(host_socket.get(nl.RTM_GETNSID, hostend.get_nsid(netns_fd)))
        is_peer = (host.peer_ifindex, host.peer_nsid) == (found.ifindex, nsid)
        gateways: dict[int, Neighbour] = {
            address.version: neighbour(
                socket,
                GATEWAY_V4 if isinstance(address, IPv4Address) else GATEWAY_V6,
                found.ifname,
            )
            for address in link.addresses
        }
        differences = podend.pod_differences(
            link, found=found, is_peer=is_peer, addresses=addresses, routes=routes
        )
        return _Inside(tuple(differences), found.mtu_bytes, gateways)


def _facts(found: HostEnd) -> LinkFacts:
    return LinkFacts(found.ifname, found.is_up, found.has_carrier, found.mtu_bytes)


def _facts_mtu(socket: NetlinkSocket, destination: Address) -> int:
    hop = look_up(socket, FORWARD, destination).hop
    if hop is None:
        return 1500
    return hostend.parse_link(socket.get(nl.RTM_GETLINK, hostend.get_link(hop.ifname))).mtu_bytes


def _wrong_sysctls(link: PodLink, found: dict[str, int]) -> Iterator[SysctlFinding]:
    for path, value in hostend.expected_sysctls(link).items():
        actual = found.get(path)
        if actual is None and link.ipv6 is None and path.startswith("ipv6/"):
            continue
        if actual != value:
            yield SysctlFinding(dotted(path), str(value), None if actual is None else str(actual))


def _tcp(peers: list[Address]) -> Iterator[TcpFacts]:
    """States of connections to or from each peer's address, from /proc/net/tcp (proc(5))."""
    seen: dict[str, list[str]] = {}
    again: dict[str, int] = {}
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            state = _TCP_STATES.get(fields[3])
            if state is not None:
                remote = _remote(fields[2].partition(":")[0])
                seen.setdefault(remote, []).append(state)
                if state == "SYN_SENT":
                    again[remote] = max(again.get(remote, 0), int(fields[6], 16))
    for peer in map(str, peers):
        yield TcpFacts(peer, tuple(sorted(set(seen.get(peer, [])))), again.get(peer, 0))


def _remote(text: str) -> str:
    """An address as /proc/net/tcp prints it: 32-bit words in the machine's order."""
    raw = bytes.fromhex(text)
    step = -1 if sys.byteorder == "little" else 1
    words = [raw[i : i + 4][::step] for i in range(0, len(raw), 4)]
    return str(ip_address(b"".join(words)))


def _ping(destination: Address, mtu_bytes: int) -> Iterator[Probe]:
    """A small packet, then one as big as the source may send, not to be fragmented."""
    overhead = 28 if destination.version == 4 else 48
    for size in (84, mtu_bytes):
        command = [
            *("ping", "-n", "-q", "-c", str(PROBE_COUNT), "-i", "0.2", "-W", "1"),
            *("-M", "do", "-s", str(size - overhead), str(destination)),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PROBE_DEADLINE_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            yield Probe(str(destination), size, PROBE_COUNT, 0, f"ping: {error}")
            continue
        received = 0
        for line in done.stdout.splitlines():
            words = line.split()
            if "received," in words:
                received = int(words[words.index("received,") - 1])
        errors = done.stderr.strip().splitlines()
        yield Probe(str(destination), size, PROBE_COUNT, received, errors[-1] if errors else "")
