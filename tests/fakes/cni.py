"""Fakes behind cni.attach: an address book, host routes and wires, with state and failure switches.

Each keeps a shared journal of what was done, so that a test can assert the order across them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from cni.asked import Pools
from cni.attach import HostRouteError, Unready
from cni.attachment import Address, Attachment
from cni.ipam.allocator import NoAddress
from cni.ipam.requested import refuse_change
from cni.observed import ObservedLink
from cni.podlink import AliasRecord, PodLink
from cni.wiring_errors import LinkExists, PodInterfaceExists, WiringError

FIRST_ADDRESS = IPv4Address("10.244.0.1")


@dataclass
class Failures:
    """``fail_next(verb, error)``: that verb raises once, then works again."""

    pending: dict[str, list[Exception]] = field(default_factory=dict)

    def fail_next(self, verb: str, error: Exception, *, times: int = 1) -> None:
        """The next ``times`` calls of ``verb`` raise ``error``."""
        self.pending.setdefault(verb, []).extend([error] * times)

    def raise_pending(self, verb: str) -> None:
        """Raises what ``fail_next`` left for ``verb``."""
        if self.pending.get(verb):
            raise self.pending[verb].pop(0)


class FakeAllocator(Failures):
    """Counts addresses up and never gives a released one again: an endless cool-down.

    ``make`` turns the n-th assignment into its addresses, one IPv4 address by default.
    """

    def __init__(self, journal: list[str], *, limit: int = 256) -> None:
        super().__init__()
        self.journal = journal
        self.held: dict[Attachment, tuple[Address, ...]] = {}
        self.limit = limit
        self.given = 0
        self.pools_asked: list[Pools] = []
        self.make: Callable[[int], tuple[Address, ...]] = lambda n: (FIRST_ADDRESS + n,)
        self.before_assign: Callable[[], object] = lambda: None

    async def assign(
        self,
        attachment: Attachment,
        requested: tuple[Address, ...] = (),
        *,
        pools: Pools = ((), ()),
    ) -> tuple[Address, ...]:
        """The held addresses, or the requested one of each family and a new one of the others.

        ``pools`` are noted in ``pools_asked``; there are none here.
        """
        self.raise_pending("assign")
        self.pools_asked.append(pools)
        pause = self.before_assign()
        if hasattr(pause, "__await__"):
            await pause
        if attachment not in self.held:
            if self.given >= self.limit:
                raise NoAddress("pool fake is exhausted")
            wanted = {address.version: address for address in requested}
            made = self.make(self.given)
            self.held[attachment] = tuple(wanted.get(each.version, each) for each in made)
            self.given += 1
        refuse_change(attachment, self.held[attachment], requested)
        self.journal.append("assign")
        return self.held[attachment]

    def announce_release(self, attachment: Attachment) -> None:
        """Notes it where there is something to release."""
        self.raise_pending("announce_release")
        if attachment in self.held:
            self.journal.append("announce")

    def release(self, attachment: Attachment) -> tuple[Address, ...]:
        """Forgets what ``attachment`` held."""
        self.raise_pending("release")
        released = self.held.pop(attachment, ())
        if released:
            self.journal.append("release")
        return released

    def addresses(self, attachment: Attachment) -> tuple[Address, ...]:
        """What ``attachment`` holds."""
        return self.held.get(attachment, ())

    def attachments(self) -> Iterable[Attachment]:
        """Everybody who holds something."""
        return tuple(self.held)


class FakeHostRoutes(Failures):
    """One route for each address; ``foreign`` prefixes are somebody else's."""

    def __init__(self, journal: list[str]) -> None:
        super().__init__()
        self.journal = journal
        self.routes: dict[Address, PodLink] = {}
        self.foreign: dict[Address, str] = {}

    async def ensure(self, link: PodLink) -> None:
        """Routes every address of ``link`` to it."""
        self.raise_pending("ensure")
        for address in link.addresses:
            if address in self.foreign:
                raise HostRouteError(f"{address} is routed to {self.foreign[address]}")
        for address in link.addresses:
            self.routes[address] = link
        self.journal.append("ensure")

    async def forget(self, attachment: Attachment, addresses: tuple[Address, ...]) -> None:
        """Removes the routes to ``addresses``. Those over the link go with it, as in the kernel."""
        self.raise_pending("forget")
        self.routes = {
            address: link
            for address, link in self.routes.items()
            if address not in addresses and link.attachment != attachment
        }
        self.journal.append("forget")

    async def check(self, link: PodLink) -> list[str]:
        """Names every address of ``link`` that has no route to it."""
        self.raise_pending("check")
        return [
            f"host route {address} dev {link.host_ifname} is missing"
            for address in link.addresses
            if address not in self.routes or self.routes[address].attachment != link.attachment
        ]


@dataclass
class Wire:
    """One pair: what it was made from, where its pod end lives, and whether that end is set up."""

    link: PodLink
    namespace: int
    mac: str
    is_configured: bool = False


class FakeWires(Failures):
    """Pod links as a dictionary. ``identify`` tells namespaces apart, here by the number."""

    POD_MAC = "0a:58:0a:f4:00:01"

    def __init__(self, journal: list[str]) -> None:
        super().__init__()
        self.journal = journal
        self.wires: dict[str, Wire] = {}
        self.foreign_links: set[str] = set()
        self.foreign_pod_interfaces: set[tuple[int, str]] = set()
        self.differences: list[str] = []
        self.repaired: list[str] = []
        self.identify: Callable[[int], int] = lambda descriptor: descriptor

    def create(self, link: PodLink, netns_fd: int) -> int:
        """The host half."""
        self.raise_pending("create")
        if link.host_ifname in self.wires or link.host_ifname in self.foreign_links:
            is_ours = link.host_ifname in self.wires
            raise LinkExists(f"link {link.host_ifname} exists", is_ours=is_ours)
        if (netns_fd, link.attachment.ifname) in self.foreign_pod_interfaces:
            raise PodInterfaceExists(f"{link.attachment.ifname} exists in the pod's namespace")
        self.wires[link.host_ifname] = Wire(
            link, self.identify(netns_fd), mac=link.mac or self.POD_MAC
        )
        self.journal.append("create")
        return len(self.wires) + 1

    def configure_pod(self, link: PodLink, netns_fd: int) -> str:
        """The pod half."""
        self.raise_pending("configure_pod")
        wire = self.wires[link.host_ifname]
        if wire.namespace != self.identify(netns_fd):
            raise WiringError(f"{link.attachment.ifname} is not in the pod's namespace")
        wire.is_configured = True
        self.journal.append("configure_pod")
        return wire.mac

    def remove(self, host_ifname: str, _is_announced: object = None) -> bool:
        """Takes the pair away."""
        self.raise_pending("remove")
        if host_ifname in self.foreign_links:
            raise LinkExists(f"link {host_ifname} is not ours")
        if self.wires.pop(host_ifname, None) is None:
            return False
        self.journal.append("remove")
        return True

    def read(self) -> list[ObservedLink]:
        """Every pair."""
        self.raise_pending("read")
        return [
            ObservedLink(
                record=AliasRecord(wire.link.attachment, wire.link.addresses, wire.link.pod),
                ifindex=index,
                ifname=name,
                is_up=True,
                mtu_bytes=wire.link.mtu_bytes,
            )
            for index, (name, wire) in enumerate(self.wires.items(), 2)
        ]

    def check(self, link: PodLink, netns_fd: int) -> list[str]:
        """``differences``, and what differs from the pair as it was made."""
        self.raise_pending("check")
        wire = self.wires.get(link.host_ifname)
        if wire is None:
            return [f"link {link.host_ifname} is missing"]
        found = list(self.differences)
        if wire.namespace != self.identify(netns_fd):
            found.append(f"{link.attachment.ifname} is missing in the pod's namespace")
        if not wire.is_configured:
            found.append(f"{link.attachment.ifname} is not configured")
        if wire.link.mtu_bytes != link.mtu_bytes:
            found.append(f"MTU is {wire.link.mtu_bytes}, not {link.mtu_bytes}")
        if link.mac not in (None, wire.mac):
            found.append(f"MAC address is {wire.mac}, not {link.mac}")
        return found

    def repair(self, link: PodLink) -> list[str]:
        """Notes the repair."""
        self.raise_pending("repair")
        self.repaired.append(link.host_ifname)
        return []


@dataclass
class Node:
    """The three fakes of one node, their journal, and what STATUS would say."""

    journal: list[str] = field(default_factory=list)
    unready: Unready | None = None

    def __post_init__(self) -> None:
        self.allocator = FakeAllocator(self.journal)
        self.routes = FakeHostRoutes(self.journal)
        self.wires = FakeWires(self.journal)

    @property
    def leftovers(self) -> list[str]:
        """Everything that exists: empty after a failed ADD or a DEL."""
        return [
            *(f"link {name}" for name in self.wires.wires),
            *(f"route {address}" for address in self.routes.routes),
            *(f"addresses of {attachment}" for attachment in self.allocator.held),
        ]
