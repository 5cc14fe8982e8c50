"""Fakes of the kernel: pod links and routes, as state with failure switches.

Both pass the contract suites that the real drivers pass (tests/contract). Their state can be
changed behind the driver's back, as any other program on a host would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address

from cni.hostend import IPV6_MIN_MTU_BYTES
from cni.netlink import NetlinkError
from cni.observed import ObservedLink
from cni.podlink import PodLink, decode_alias
from cni.wiring_errors import (
    LinkExists,
    NamespaceGone,
    OwnNamespace,
    PodInterfaceExists,
    WiringError,
)
from routing.delta import Delta, Failure
from routing.fib import OVERFLOW, Fib, FibClosed
from routing.links import LinkState
from routing.next_hops import KernelRoute
from routing.route_table import Hops
from routing.routes import (
    FRONT_METRIC,
    METRIC,
    PROTOCOL,
    TABLE_MAIN,
    Address,
    NextHop,
    Prefix,
    Route,
    RouteKey,
    next_hop_order,
)


class Switches:
    """``fail_next(verb, error)``: that verb raises ``error`` once, then works again."""

    def __init__(self) -> None:
        self._failing: dict[str, list[Exception]] = {}

    def fail_next(self, verb: str, error: Exception, *, times: int = 1) -> None:
        """The next ``times`` calls of ``verb`` raise ``error``."""
        self._failing.setdefault(verb, []).extend([error] * times)

    def raise_pending(self, verb: str) -> None:
        """Raises what ``fail_next`` left for ``verb``."""
        if self._failing.get(verb):
            raise self._failing[verb].pop(0)


# -- pod links -------------------------------------------------------------------------------


@dataclass
class FakePair:
    """One veth pair; ``drift`` is what somebody changed on the host end, ``pod_drift`` inside."""

    link: PodLink
    ifindex: int
    netns_fd: int
    is_configured: bool = False
    drift: list[str] = field(default_factory=list)
    pod_drift: list[str] = field(default_factory=list)


class FakeWiring(Switches):
    """KernelWiring without a kernel. Namespaces are told apart by their descriptor's number.

    ``HOME_FD`` is the host's own namespace, ``BAD_FD`` no namespace at all.
    """

    HOME_FD = 0
    BAD_FD = -1
    POD_MAC = "0a:58:0a:f4:00:01"

    def __init__(self) -> None:
        super().__init__()
        self.pairs: dict[str, FakePair] = {}
        self.foreign: set[str] = set()
        self.pod_interfaces: set[tuple[int, str]] = set()
        self._next_ifindex = 2

    def close(self) -> None:
        """Nothing to free."""

    def prepare_host(self) -> list[str]:
        """Nothing to change."""
        self.raise_pending("prepare_host")
        return []

    def create(self, link: PodLink, netns_fd: int) -> int:
        """The pair; nothing when it raises."""
        self._check_namespace(netns_fd)
        self.raise_pending("create")
        name = link.host_ifname
        if link.ipv6 is not None and link.mtu_bytes < IPV6_MIN_MTU_BYTES:
            raise WiringError(f"MTU {link.mtu_bytes} is below {IPV6_MIN_MTU_BYTES}")
        if name in self.foreign:
            raise LinkExists(f"link {name} exists and is not ours")
        if name in self.pairs:
            raise LinkExists(f"link {name} exists and is ours", is_ours=True)
        if (netns_fd, link.attachment.ifname) in self.pod_interfaces:
            raise PodInterfaceExists(f"interface {link.attachment.ifname} exists in the pod")
        self.pairs[name] = FakePair(link, self._next_ifindex, netns_fd)
        self.pod_interfaces.add((netns_fd, link.attachment.ifname))
        self._next_ifindex += 1
        return self.pairs[name].ifindex

    def configure_pod(self, link: PodLink, netns_fd: int) -> str:
        """Marks the pod end as configured."""
        self._check_namespace(netns_fd)
        self.raise_pending("configure_pod")
        pair = self.pairs.get(link.host_ifname)
        if pair is None or pair.netns_fd != netns_fd:
            raise WiringError(f"{link.attachment.ifname} is not in the pod's namespace")
        pair.is_configured = True
        return pair.link.mac or self.POD_MAC

    def remove(self, host_ifname: str, _is_announced: object = None) -> bool:
        """Takes the pair away."""
        self.raise_pending("remove")
        pair = self.pairs.pop(host_ifname, None)
        if pair is None:
            return False
        self.pod_interfaces.discard((pair.netns_fd, pair.link.attachment.ifname))
        return True

    def read(self) -> list[ObservedLink]:
        """Every pair, through its alias as the kernel would give it back."""
        self.raise_pending("read")
        observed: list[ObservedLink] = []
        for name, pair in self.pairs.items():
            record = decode_alias(pair.link.alias)
            if record is not None:
                is_up = not any("UP" in each for each in pair.drift)
                observed.append(
                    ObservedLink(record, pair.ifindex, name, is_up, pair.link.mtu_bytes)
                )
        return observed

    def check(self, link: PodLink, netns_fd: int) -> list[str]:
        """Every drift, and what is missing."""
        self._check_namespace(netns_fd)
        self.raise_pending("check")
        pair = self.pairs.get(link.host_ifname)
        if pair is None:
            return [f"link {link.host_ifname} is missing"]
        differences = pair.drift + pair.pod_drift
        if not pair.is_configured:
            differences.append(f"{link.attachment.ifname} in the pod: expected UP, found DOWN")
        if pair.link.addresses != link.addresses:
            differences.append(f"addresses: expected {link.addresses}, found {pair.link.addresses}")
        if pair.link.mtu_bytes != link.mtu_bytes:
            differences.append(f"MTU: expected {link.mtu_bytes}, found {pair.link.mtu_bytes}")
        mac = pair.link.mac or self.POD_MAC
        if link.mac not in (None, mac):
            differences.append(f"MAC address: expected {link.mac}, found {mac}")
        return differences

    def repair(self, link: PodLink) -> list[str]:
        """Mends the host end."""
        self.raise_pending("repair")
        if link.host_ifname in self.foreign:
            raise LinkExists(f"link {link.host_ifname} exists and is not ours")
        pair = self.pairs.get(link.host_ifname)
        if pair is None:
            raise WiringError(f"link {link.host_ifname} is missing")
        mended, pair.drift = pair.drift, []
        return mended

    def _check_namespace(self, netns_fd: int) -> None:
        if netns_fd == self.BAD_FD:
            raise NamespaceGone(f"descriptor {netns_fd} is not a network namespace")
        if netns_fd == self.HOME_FD:
            raise OwnNamespace("the pod's network namespace is the host's own")


# -- routes ----------------------------------------------------------------------------------


class FakeFib(Switches):
    """A FIB keyed as the kernel's: (prefix, metric) to (protocol, next hops).

    ``fail_next`` of "create", "replace" or "delete" fails one route; of "read", "links" or "apply"
    the whole call.
    """

    def __init__(self, links: Mapping[str, LinkState]) -> None:
        super().__init__()
        self.state: dict[str, LinkState] = dict(links)
        self.table: dict[tuple[Prefix, int], tuple[int, tuple[NextHop, ...]]] = {}
        self._reasons: set[str] = set()
        self._woken = asyncio.Event()
        self._is_closed = False

    # -- the Fib

    async def read(self) -> Mapping[RouteKey, Route]:
        """Ours only."""
        self.raise_pending("read")
        # What is in front comes last, and is what counts.
        return {
            RouteKey(prefix): Route(RouteKey(prefix), hops)
            for (prefix, metric), (protocol, hops) in sorted(
                self.table.items(), key=lambda item: -item[0][1]
            )
            if protocol == PROTOCOL and metric in (METRIC, FRONT_METRIC)
        }

    async def apply(self, delta: Delta[RouteKey, Route]) -> list[Failure[RouteKey]]:
        """As the kernel would."""
        self.raise_pending("apply")
        failures: list[Failure[RouteKey]] = []
        wanted = [("create", key, route) for key, route in delta.create.items()]
        wanted += [("replace", key, new) for key, (_old, new) in delta.replace.items()]
        for operation, key, route in wanted:
            try:
                self.raise_pending(operation)
                self._write(key, route)
            except (OSError, ValueError) as error:
                failures.append(Failure(key, operation, str(error)))
        for key in delta.delete:
            try:
                self.raise_pending("delete")
            except OSError as error:
                failures.append(Failure(key, "delete", str(error)))
                continue
            for metric in (key.metric, FRONT_METRIC):
                if self.table.get((key.prefix, metric), (0, ()))[0] == PROTOCOL:
                    del self.table[key.prefix, metric]
        return failures

    def contested(self) -> Mapping[RouteKey, str]:
        """Where ours is in front of another's."""
        return {
            RouteKey(prefix): f"held by protocol {protocol} (unknown) at metric {METRIC}; "
            f"ours is in front of it at metric {FRONT_METRIC}"
            for (prefix, metric), (protocol, _hops) in self.table.items()
            if metric == METRIC and protocol != PROTOCOL and self._is_in_front(prefix)
        }

    async def retreat(self, after_s: float) -> float | None:
        """At once when ``after_s`` is 0, else never."""
        self.raise_pending("retreat")
        fronts = [prefix for prefix, metric in self.table if metric == FRONT_METRIC]
        free = [p for p in fronts if self.table.get((p, METRIC), (PROTOCOL, ()))[0] == PROTOCOL]
        if after_s:
            return after_s if free else None
        for prefix in free:
            self.table[prefix, METRIC] = self.table.pop((prefix, FRONT_METRIC))
        return None

    def _is_in_front(self, prefix: Prefix) -> bool:
        return self.table.get((prefix, FRONT_METRIC), (0, ()))[0] == PROTOCOL

    async def abandon(self, gateways: Collection[Address]) -> int:
        """Where there is another way."""
        groups = set()
        for place, (protocol, hops) in list(self.table.items()):
            left = tuple(hop for hop in hops if hop.gateway not in gateways)
            if protocol == PROTOCOL and left and left != hops:
                self.table[place] = (protocol, left)
                groups.add(hops)
        return len(groups)

    async def turn(self, moves: Mapping[Hops, Hops]) -> int:
        """All of them."""
        turned = set()
        for place, (protocol, hops) in list(self.table.items()):
            if protocol == PROTOCOL and hops in moves:
                self.table[place] = (protocol, moves[hops])
                turned.add(hops)
        return len(turned)

    async def links(self) -> dict[str, LinkState]:
        """The links as they are now."""
        self.raise_pending("links")
        return dict(self.state)

    async def source_for(self, destination: Address) -> Address | None:
        """The address of the link that ``destination`` is on."""
        for link in self.state.values():
            for own in link.addresses:
                if link.is_up and destination in own.network:
                    return own.ip
        return None

    async def ways_to(self, destinations: Collection[Address]) -> dict[Address, KernelRoute]:
        """The longest match of each, unless it is ours."""
        self.raise_pending("ways_to")
        found = {}
        for destination in destinations:
            matches = [
                (prefix.prefixlen, -metric, protocol, hops)
                for (prefix, metric), (protocol, hops) in self.table.items()
                if prefix.version == destination.version and destination in prefix
            ]
            if not matches:
                continue
            length, _, protocol, hops = max(matches, key=lambda each: each[:2])
            if protocol != PROTOCOL and hops:
                found[destination] = KernelRoute(length, hops)
        return found

    async def holder_of(self, destination: Address) -> str | None:
        """The best route to that very address, or the link that has it."""
        for link in self.state.values():
            if any(own.ip == destination for own in link.addresses):
                return link.ifname
        best = min(
            (
                (metric, hops)
                for (prefix, metric), (_protocol, hops) in self.table.items()
                if hops
                and (prefix.network_address, prefix.prefixlen)
                == (destination, destination.max_prefixlen)
            ),
            key=lambda each: each[0],
            default=None,
        )
        if best is None:
            return None
        return best[1][0].ifname if len(best[1]) == 1 else "several interfaces"

    async def changed(self) -> str:
        """Waits for ``wake`` or for a change made by the methods below."""
        while not self._reasons:
            if self._is_closed:
                raise FibClosed("the FIB driver was closed")
            self._woken.clear()
            await self._woken.wait()
        reasons, self._reasons = self._reasons, set()
        return OVERFLOW if OVERFLOW in reasons else "+".join(sorted(reasons))

    async def close(self) -> None:
        """Wakes who waits."""
        self._is_closed = True
        self._woken.set()

    # -- behind the driver's back

    def wake(self, reason: str) -> None:
        """An event from the kernel."""
        self._reasons.add(reason)
        self._woken.set()

    def add_foreign(
        self,
        prefix: Prefix,
        protocol: int,
        metric: int = METRIC,
        *,
        ifname: str | None = None,
        gateway: Address | None = None,
    ) -> None:
        """Another program's route: a black hole unless it leads somewhere."""
        hops = () if ifname is None else (NextHop(ifname, gateway),)
        self.table[prefix, metric] = (protocol, hops)
        self.wake("route")

    def delete(self, prefix: Prefix, metric: int = METRIC) -> None:
        """Another program deletes a route, whoever's."""
        self.table.pop((prefix, metric), None)
        self.wake("route")

    def set_link(self, ifname: str, *, is_up: bool) -> None:
        """Up or down; down takes the routes over it along."""
        self.state[ifname] = replace(self.state[ifname], is_up=is_up)
        if not is_up:
            for place, (protocol, hops) in list(self.table.items()):
                left = tuple(hop for hop in hops if hop.ifname != ifname)
                if hops and not left:
                    del self.table[place]
                elif left != hops:
                    self.table[place] = (protocol, left)
        self.wake("link")

    def text(self) -> str:
        """The table as ``ip route show`` would have it."""
        lines = []
        for (prefix, metric), (protocol, hops) in self.table.items():
            ways = " ".join(
                (f"nexthop via {hop.gateway} " if hop.gateway else "") + f"dev {hop.ifname}"
                for hop in hops
            )
            kind = "" if hops else "blackhole "
            lines.append(f"{kind}{prefix} {ways} proto {protocol} metric {metric}")
        return "\n".join(sorted(lines))

    def _write(self, key: RouteKey, route: Route) -> None:
        if key.metric != METRIC or key.table != TABLE_MAIN:
            raise ValueError(f"metric {key.metric} in table {key.table} is not ours to write")
        for hop in route.next_hops:
            link = self.state.get(hop.ifname)
            if link is None:
                raise ValueError(f"interface {hop.ifname} does not exist")
            if not link.is_up or not self._is_on_link(hop, link):
                raise NetlinkError(101)
        hops = tuple(sorted(route.next_hops, key=next_hop_order))
        metric = key.metric
        protocol, _hops = self.table.get((key.prefix, metric), (PROTOCOL, ()))
        if protocol != PROTOCOL or self._is_in_front(key.prefix):
            metric = FRONT_METRIC
            before, _hops = self.table.get((key.prefix, metric), (PROTOCOL, ()))
            if before != PROTOCOL:
                raise ValueError(
                    f"held by protocol {protocol} (unknown) at metric {key.metric}, "
                    f"and by protocol {before} (unknown) at metric {metric}"
                )
        self.table[key.prefix, metric] = (PROTOCOL, hops)

    @staticmethod
    def _is_on_link(hop: NextHop, link: LinkState) -> bool:
        gateway = hop.gateway
        if gateway is None or (isinstance(gateway, IPv6Address) and gateway.is_link_local):
            return True
        return any(gateway in own.network for own in link.addresses)


class Disturbance(Fib):
    """Stands between a caller and any Fib, fake or real, and spoils its first exchange.

    Modes: "refuse" one change is not made and reported; "lie" one change is made and reported as
    failed; "swallow" one creation is not made and reported as made; "break" half the changes
    are made, then the call raises; "blind" the first read raises; "" does nothing.
    """

    MODES = ("", "refuse", "lie", "swallow", "break", "blind")

    def __init__(self, fib: Fib, mode: str) -> None:
        self._fib = fib
        self._mode = mode

    async def read(self) -> Mapping[RouteKey, Route]:
        """Reads, unless blind."""
        if self._spend("blind"):
            raise NetlinkError(4, "disturbed")
        return await self._fib.read()

    async def apply(self, delta: Delta[RouteKey, Route]) -> list[Failure[RouteKey]]:
        """Applies, spoiled once."""
        first = next(iter([*delta.create, *delta.replace, *delta.delete]), None)
        if first is None:
            return []
        if self._spend("lie"):
            return [*await self._fib.apply(delta), Failure(first, "any", "disturbed")]
        if self._spend("refuse"):
            failures = await self._fib.apply(_without(delta, {first}))
            return [*failures, Failure(first, "any", "disturbed")]
        if self._mode == "swallow" and delta.create and self._spend("swallow"):
            return await self._fib.apply(_without(delta, {next(iter(delta.create))}))
        if self._spend("break"):
            keys = [*delta.create, *delta.replace, *delta.delete]
            await self._fib.apply(_without(delta, set(keys[: (len(keys) + 1) // 2])))
            raise NetlinkError(105, "disturbed")
        return await self._fib.apply(delta)

    async def abandon(self, gateways: Collection[Address]) -> int:
        """Undisturbed."""
        return await self._fib.abandon(gateways)

    async def turn(self, moves: Mapping[Hops, Hops]) -> int:
        """As it is."""
        return await self._fib.turn(moves)

    def contested(self) -> Mapping[RouteKey, str]:
        """Undisturbed."""
        return self._fib.contested()

    async def retreat(self, after_s: float) -> float | None:
        """Undisturbed."""
        return await self._fib.retreat(after_s)

    async def links(self) -> dict[str, LinkState]:
        """Undisturbed."""
        return await self._fib.links()

    async def source_for(self, destination: Address) -> Address | None:
        """Undisturbed."""
        return await self._fib.source_for(destination)

    async def ways_to(self, destinations: Collection[Address]) -> dict[Address, KernelRoute]:
        """Undisturbed."""
        return await self._fib.ways_to(destinations)

    async def holder_of(self, destination: Address) -> str | None:
        """Undisturbed."""
        return await self._fib.holder_of(destination)

    async def changed(self) -> str:
        """Undisturbed."""
        return await self._fib.changed()

    async def close(self) -> None:
        """Undisturbed."""
        await self._fib.close()

    def _spend(self, mode: str) -> bool:
        if self._mode != mode:
            return False
        self._mode = ""
        return True


def _without(delta: Delta[RouteKey, Route], keys: set[RouteKey]) -> Delta[RouteKey, Route]:
    return Delta(
        {key: value for key, value in delta.create.items() if key not in keys},
        {key: value for key, value in delta.replace.items() if key not in keys},
        {key: value for key, value in delta.delete.items() if key not in keys},
    )
