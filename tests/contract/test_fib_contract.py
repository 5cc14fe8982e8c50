"""What every Fib promises, asked of the fake and of the real kernel alike.

The world around the Fib is the same for both: two uplinks with a network of each family, two pod
links without addresses, and hands other than ours that add, delete and take links down.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from ipaddress import ip_address, ip_interface, ip_network
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni import netlink as nl
from cni.netlink import NetlinkError
from cni.netlink_socket import NetlinkSocket
from routing.delta import Delta, Failure, diff
from routing.fib import Fib, FibClosed, KernelFib
from routing.links import LinkState
from routing.next_hop_objects import FIRST_ID
from routing.route_table import hops_of
from routing.routes import Address, NextHop, Prefix, Route, RouteKey
from tests.fakes.kernel import Disturbance, FakeFib
from tests.fakes.netns import Fabric, Namespace, wait_until

CASES = {"fake": 0, "kernel": 0}
FLOOR = 60
SETTLE_PASSES = 6
BIRD = 12
ROUTE_GROUPS = (nl.RTNLGRP_IPV4_ROUTE, nl.RTNLGRP_IPV6_ROUTE)

UPLINKS = {
    "up0": ("192.0.2.1/24", "2001:db8:1::1/64"),
    "up1": ("198.51.100.1/24", "2001:db8:2::1/64"),
}
PODS = ("pod0", "pod1")
VIA_0, VIA_1 = ip_address("192.0.2.2"), ip_address("198.51.100.2")
VIA_0_V6, VIA_1_V6 = ip_address("2001:db8:1::2"), ip_address("2001:db8:2::2")


class World(Protocol):
    """A host as other programs and people handle it."""

    name: str

    def make_fib(self) -> Fib: ...
    def reset(self) -> None: ...
    def add_foreign(self, prefix: Prefix, protocol: int, metric: int = 1032) -> None: ...
    def take_over(self, prefix: Prefix, protocol: int) -> None: ...
    def metrics_of(self, prefix: Prefix) -> list[tuple[int, int]]: ...
    def watched(self, prefix: Prefix) -> AbstractContextManager[list[str]]: ...
    def own_text(self) -> str: ...
    def add_better(self, prefix: Prefix, protocol: int, ifname: str) -> None: ...
    def delete(self, prefix: Prefix) -> None: ...
    def set_link(self, ifname: str, *, is_up: bool) -> None: ...
    def touch_link(self, ifname: str) -> None: ...
    def foreign_text(self) -> str: ...
    def flood(self) -> None: ...


class FakeWorld:
    """The fake's own back door."""

    name = "fake"

    def __init__(self) -> None:
        self.reset()

    def make_fib(self) -> FakeFib:
        return self.fib

    def reset(self) -> None:
        links = {"lo": LinkState("lo", 1, True, 65536, (ip_interface("127.0.0.1/8"),))}
        for ifname, addresses in UPLINKS.items():
            own = tuple(ip_interface(each) for each in addresses)
            links[ifname] = LinkState(ifname, len(links) + 1, True, 1500, own)
        for ifname in PODS:
            links[ifname] = LinkState(ifname, len(links) + 1, True, 1500)
        self.fib = FakeFib(links)

    def add_foreign(self, prefix: Prefix, protocol: int, metric: int = 1032) -> None:
        self.fib.add_foreign(prefix, protocol, metric)

    def take_over(self, prefix: Prefix, protocol: int) -> None:
        self.fib.add_foreign(prefix, protocol)

    def metrics_of(self, prefix: Prefix) -> list[tuple[int, int]]:
        found = [(p, m) for (at, m), (p, _) in self.fib.table.items() if at == prefix]
        return sorted(found, key=lambda each: each[1])

    @contextmanager
    def watched(self, prefix: Prefix) -> Iterator[list[str]]:
        # The fake does both at once.
        yield ["+1032", "-1031"]

    def own_text(self) -> str:
        return "\n".join(line for line in self.fib.text().splitlines() if "proto 132" in line)

    def add_better(self, prefix: Prefix, protocol: int, ifname: str) -> None:
        self.fib.add_foreign(prefix, protocol, 1, ifname=ifname)

    def delete(self, prefix: Prefix) -> None:
        self.fib.delete(prefix)

    def set_link(self, ifname: str, *, is_up: bool) -> None:
        self.fib.set_link(ifname, is_up=is_up)

    def touch_link(self, ifname: str) -> None:
        self.fib.wake("link")

    def foreign_text(self) -> str:
        return "\n".join(line for line in self.fib.text().splitlines() if "proto 132" not in line)

    def flood(self) -> None:
        self.fib.wake("overflow")


class KernelWorld:
    """A namespace, and ``ip`` for the other hands."""

    name = "kernel"

    def __init__(self, fabric: Fabric) -> None:
        self.host: Namespace = fabric.namespace("fib")
        self.peer = fabric.namespace("peer")
        for path in ("ipv6/conf/all/keep_addr_on_down", "ipv6/conf/default/keep_addr_on_down"):
            self.host.sysctl(path, "1")
        for ifname, addresses in UPLINKS.items():
            fabric.join((self.host, ifname), (self.peer, ifname))
            for address in addresses:
                nodad = " nodad" if ":" in address else ""
                self.host.ip(f"addr add {address} dev {ifname}{nodad}")
        for ifname in PODS:
            fabric.join((self.host, ifname), (self.peer, ifname))

    def make_fib(self) -> KernelFib:
        return KernelFib(netns_fd=self.host.fd, event_buffer_bytes=1 << 16)

    def reset(self) -> None:
        for family in ("-4", "-6"):
            for protocol in (132, BIRD, 4):
                self.host.ip(f"{family} route flush proto {protocol}", check=False)
        # A flush of IPv6 routes cannot take those that name a group; they go with it.
        self.host.ip("nexthop flush", check=False)
        for ifname in (*UPLINKS, *PODS):
            self.host.ip(f"link set {ifname} up")

    def add_foreign(self, prefix: Prefix, protocol: int, metric: int = 1032) -> None:
        self.host.ip(f"route add blackhole {prefix} proto {protocol} metric {metric}")

    def take_over(self, prefix: Prefix, protocol: int) -> None:
        self.host.ip(f"route replace blackhole {prefix} proto {protocol} metric 1032")

    def metrics_of(self, prefix: Prefix) -> list[tuple[int, int]]:
        """In the kernel's own order, which is that of use."""
        family = f"-{prefix.version}"
        shown = self.host.ip(f"-N {family} route show exact {prefix}")
        return [
            (int(p), int(m)) for p, m in re.findall(r"proto (\d+).*?metric (\d+)", shown, re.DOTALL)
        ]

    @contextmanager
    def watched(self, prefix: Prefix) -> Iterator[list[str]]:
        with NetlinkSocket(netns_fd=self.host.fd, groups=ROUTE_GROUPS) as socket:
            seen: list[str] = []
            yield seen
            for event in socket.events(max_datagrams=64)[0]:
                metric = nl.u32(nl.attributes(event.body, nl.RTMSG.size)[nl.RTA_PRIORITY])
                seen.append(f"{'+' if event.kind == nl.RTM_NEWROUTE else '-'}{metric}")

    def own_text(self) -> str:
        return "\n".join(line for line in self.host.routes().splitlines() if "proto 132" in line)

    def add_better(self, prefix: Prefix, protocol: int, ifname: str) -> None:
        self.host.ip(f"route add {prefix} dev {ifname} proto {protocol} metric 1")

    def delete(self, prefix: Prefix) -> None:
        self.host.ip(f"route del {prefix} metric 1032")

    def set_link(self, ifname: str, *, is_up: bool) -> None:
        self.host.ip(f"link set {ifname} {'up' if is_up else 'down'}")
        if is_up:
            # Carrier comes a moment after, and with it IPv6 routes can be made again.
            wait_until(lambda: "LOWER_UP" in self.host.ip(f"link show {ifname}"))

    def touch_link(self, ifname: str) -> None:
        self.host.ip(f"link set {ifname} txqueuelen 1001")
        self.host.ip(f"link set {ifname} txqueuelen 1000")

    def foreign_text(self) -> str:
        return "\n".join(
            line for line in self.host.routes().splitlines() if "proto 132" not in line
        )

    def flood(self) -> None:
        # Nobody reads while this runs, and each event is charged about 1 KiB of the 128 KiB buffer.
        places = [f"blackhole 100.64.{i // 256}.{i % 256} proto 4" for i in range(500)]
        for verb in ("add", "del"):
            self.host.ip_batch([f"route {verb} {place}" for place in places])


@pytest.fixture(scope="module")
def kernel_world() -> Iterator[KernelWorld]:
    """One namespace for the module; ``reset`` between tests."""
    with Fabric() as fabric:
        yield KernelWorld(fabric)


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.netns)])
def world(request: pytest.FixtureRequest) -> World:
    """A clean world of each kind."""
    made: World = (
        FakeWorld() if request.param == "fake" else request.getfixturevalue("kernel_world")
    )
    made.reset()
    return made


@pytest.fixture
async def fib(world: World):
    """The Fib under test, closed afterwards."""
    made = world.make_fib()
    yield made
    await made.close()


def route(prefix: str, *hops: tuple[str, Address | None]) -> Route:
    """A route in its canonical form."""
    from routing.routes import next_hop_order

    key = RouteKey(ip_network(prefix))
    return Route(key, tuple(sorted((NextHop(*hop) for hop in hops), key=next_hop_order)))


def table(*routes: Route) -> dict[RouteKey, Route]:
    """Routes by key."""
    return {each.key: each for each in routes}


EVERY_KIND = table(
    route("10.0.0.0/26"),
    route("10.0.0.1/32", ("pod0", None)),
    route("169.254.1.1/32", ("lo", None)),
    route("10.1.0.0/26", ("up0", VIA_0)),
    route("10.2.0.0/26", ("up0", VIA_0), ("up1", VIA_1)),
    route("0.0.0.0/0", ("up1", VIA_1)),
    route("fd00::/122"),
    route("fd00::1/128", ("pod1", None)),
    route("fd01::/122", ("up0", VIA_0_V6)),
    route("fd02::/122", ("up0", VIA_0_V6), ("up1", VIA_1_V6)),
    route("::/0", ("up1", VIA_1_V6)),
)


async def settle(fib: Fib, desired: dict[RouteKey, Route]) -> list[Failure[RouteKey]]:
    """Passes as the loop makes them, until nothing is to do; the last pass's failures."""
    failures: list[Failure[RouteKey]] = []
    for _ in range(SETTLE_PASSES):
        try:
            delta = diff(desired, await fib.read())
            if not delta:
                return []
            failures = await fib.apply(delta)
        except NetlinkError:
            continue
    return failures


# -- the round trip --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Disturbance.MODES)
async def test_what_was_applied_is_read_back_under_every_failure(fib: Fib, world: World, mode: str):
    """A pass that is spoiled in any way is made good by the next ones."""
    before = world.foreign_text()
    disturbed = Disturbance(fib, mode)
    assert await settle(disturbed, EVERY_KIND) == []
    assert await fib.read() == EVERY_KIND
    assert await settle(Disturbance(fib, mode), {}) == []
    assert await fib.read() == {}
    assert world.foreign_text() == before


PREFIXES = st.sampled_from(
    ["10.0.0.0/26", "10.0.0.1/32", "0.0.0.0/0", "10.9.0.0/16", "fd00::/122", "fd00::1/128", "::/0"]
)
HOPS = st.sampled_from(["none", "pod0", "pod1", "lo", "up0", "up1", "both"])
WAYS: dict[tuple[int, str], tuple[tuple[str, Address | None], ...]] = {
    (4, "up0"): (("up0", VIA_0),),
    (4, "up1"): (("up1", VIA_1),),
    (4, "both"): (("up0", VIA_0), ("up1", VIA_1)),
    (6, "up0"): (("up0", VIA_0_V6),),
    (6, "up1"): (("up1", VIA_1_V6),),
    (6, "both"): (("up0", VIA_0_V6), ("up1", VIA_1_V6)),
}
CHOICES = st.dictionaries(PREFIXES, HOPS, max_size=7)
FOREIGN = st.sets(PREFIXES, max_size=2)


def routes_of(choices: dict[str, str]) -> dict[RouteKey, Route]:
    """A table from drawn words."""
    made = []
    for prefix, word in choices.items():
        version = 6 if ":" in prefix else 4
        hops = WAYS.get((version, word), () if word == "none" else ((word, None),))
        made.append(route(prefix, *hops))
    return table(*made)


async def any_state_follows_any_other(
    world: World, *, first: dict[str, str], second: dict[str, str], foreign: set[str]
) -> None:
    world.reset()
    fib = world.make_fib()
    try:
        old = routes_of(first)
        assert await fib.apply(Delta(old)) == []
        assert await fib.read() == old
        taken = {ip_network(prefix) for prefix in foreign} - {key.prefix for key in old}
        for prefix in taken:
            world.add_foreign(prefix, BIRD)
        before = world.foreign_text()

        new = routes_of(second)
        failures = await fib.apply(diff(new, await fib.read()))

        assert failures == []
        assert await fib.read() == new
        contested = fib.contested()
        assert {key.prefix for key in contested} == taken & {key.prefix for key in new}
        assert all(f"protocol {BIRD}" in words for words in contested.values())
        assert world.foreign_text() == before
        # And from there: all of it goes, and only ours.
        assert await fib.apply(diff(old, await fib.read())) == []
        assert await fib.read() == old
        assert await fib.apply(diff({}, await fib.read())) == []
        assert world.own_text() == ""
        assert world.foreign_text() == before
    finally:
        await fib.close()


@settings(max_examples=150)
@given(first=CHOICES, second=CHOICES, foreign=FOREIGN)
def test_any_state_follows_any_other_in_the_fake(first, second, foreign):
    """apply(diff(desired, read())) gives desired, from anywhere; foreign routes stay."""
    CASES["fake"] += 1
    world = FakeWorld()
    asyncio.run(any_state_follows_any_other(world, first=first, second=second, foreign=foreign))


@pytest.mark.netns
def test_any_state_follows_any_other_in_the_kernel(kernel_world: KernelWorld):
    """The same law, of the real table: every kind of route replaces every other."""
    with asyncio.Runner() as runner:

        @settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
        @given(first=CHOICES, second=CHOICES, foreign=FOREIGN)
        def law(first, second, foreign):
            CASES["kernel"] += 1
            runner.run(
                any_state_follows_any_other(
                    kernel_world, first=first, second=second, foreign=foreign
                )
            )

        law()
    assert CASES["kernel"] >= FLOOR, CASES


def test_enough_cases_ran_in_the_fake():
    """A property test that ran nothing proves nothing."""
    assert CASES["fake"] >= FLOOR, CASES


@pytest.mark.netns
async def test_every_kind_of_route_replaces_every_other_kind(kernel_world: KernelWorld):
    """IPv6 replaces multipath, gateway and device routes by different rules; all are met here."""
    kernel_world.reset()
    fib = kernel_world.make_fib()
    words = ["none", "pod0", "pod1", "up0", "both"]
    for prefix in ("10.3.0.0/26", "fd03::/122"):
        for old in words:
            for new in words:
                await settle(fib, routes_of({prefix: old}))
                delta = diff(routes_of({prefix: new}), await fib.read())
                assert await fib.apply(delta) == [], (prefix, old, new)
                assert await fib.read() == routes_of({prefix: new}), (prefix, old, new)
    await fib.close()


# -- creating --------------------------------------------------------------------------------


async def test_creating_what_is_there_already_succeeds(fib: Fib):
    """A repeated ADD creates its route again."""
    wanted = table(route("10.0.0.1/32", ("pod0", None)), route("fd00::1/128", ("pod0", None)))
    assert await fib.apply(Delta(wanted)) == []
    assert await fib.apply(Delta(wanted)) == []
    assert await fib.read() == wanted


async def test_creating_over_a_different_route_of_ours_brings_it_right(fib: Fib):
    """A stale route of an old pod does not keep a new pod from its address."""
    for old, new in (("10.0.0.1/32", "pod1"), ("fd00::1/128", "pod1")):
        await fib.apply(Delta(table(route(old, ("pod0", None)))))
        wanted = table(route(old, (new, None)))
        assert await fib.apply(Delta(wanted)) == []
        assert (await fib.read())[RouteKey(ip_network(old))] == wanted[RouteKey(ip_network(old))]


# -- in front of others ----------------------------------------------------------------------

CONTESTED = [
    route("10.0.0.0/26"),
    route("10.0.0.1/32", ("pod0", None)),
    route("10.2.0.0/26", ("up0", VIA_0), ("up1", VIA_1)),
    route("0.0.0.0/0", ("up1", VIA_1)),
    route("fd00::1/128", ("pod1", None)),
    route("fd02::/122", ("up0", VIA_0_V6), ("up1", VIA_1_V6)),
    route("::/0", ("up1", VIA_1_V6)),
]
"""Of each kind that is written in a way of its own."""


@pytest.mark.parametrize("ours", CONTESTED, ids=lambda each: str(each.key.prefix))
async def test_a_foreign_route_in_the_way_is_left_alone_and_ours_goes_in_front(
    fib: Fib, world: World, ours: Route
):
    """Its protocol is named, ours is what the kernel uses, and other routes are made as ever."""
    world.add_foreign(ours.key.prefix, BIRD)
    before = world.foreign_text()
    other = table(route("10.7.0.0/26"))

    assert await fib.apply(Delta(table(ours) | other)) == []

    assert await fib.read() == table(ours) | other
    assert world.metrics_of(ours.key.prefix) == [(132, 1031), (BIRD, 1032)]
    (words,) = fib.contested().values()
    assert f"held by protocol {BIRD}" in words
    assert "ours is in front of it at metric 1031" in words
    assert world.foreign_text() == before
    # Neither a driver that comes later nor the next pass has anything to do.
    second = world.make_fib()
    assert not diff(table(ours) | other, await second.read())
    assert second.contested() == fib.contested()
    assert await fib.retreat(0) is None
    assert world.metrics_of(ours.key.prefix) == [(132, 1031), (BIRD, 1032)]
    if second is not fib:
        await second.close()


@pytest.mark.parametrize("ours", CONTESTED, ids=lambda each: str(each.key.prefix))
async def test_who_takes_a_route_of_ours_away_holds_its_place_and_not_the_way(
    fib: Fib, world: World, ours: Route
):
    """`ip route replace` with our metric; told of as a change, and ours is back in front."""
    assert await fib.apply(Delta(table(ours))) == []
    world.take_over(ours.key.prefix, BIRD)
    assert await asyncio.wait_for(fib.changed(), 5) == "route"
    before = world.foreign_text()
    assert await settle(fib, table(ours)) == []
    assert world.metrics_of(ours.key.prefix) == [(132, 1031), (BIRD, 1032)]
    assert world.foreign_text() == before
    # Again and again: it replaces its own from now on, and there is nothing to write.
    for _ in range(3):
        world.take_over(ours.key.prefix, BIRD)
        assert not diff(table(ours), await fib.read())
    # Another next hop of ours, in front still; then ours goes, and nothing else.
    changed = Route(ours.key, () if ours.next_hops else (NextHop("pod0"),))
    assert await fib.apply(diff(table(changed), await fib.read())) == []
    assert await fib.read() == table(changed)
    assert world.metrics_of(ours.key.prefix) == [(132, 1031), (BIRD, 1032)]
    assert await fib.apply(Delta(delete=table(changed))) == []
    assert await fib.read() == {}
    assert world.metrics_of(ours.key.prefix) == [(BIRD, 1032)]
    assert world.foreign_text() == before


@pytest.mark.parametrize("ours", CONTESTED, ids=lambda each: str(each.key.prefix))
async def test_a_place_that_is_free_again_is_taken_back_when_it_has_been_for_a_while(
    fib: Fib, world: World, ours: Route
):
    """Ours is in the kernel at every moment; in front of nobody it is nothing to tell."""
    world.add_foreign(ours.key.prefix, BIRD)
    assert await settle(fib, table(ours)) == []
    assert await fib.retreat(60) is None
    world.delete(ours.key.prefix)
    assert not diff(table(ours), await fib.read())
    assert fib.contested() == {}
    left_s = await fib.retreat(60)
    assert left_s is not None
    assert 0 < left_s <= 60
    assert world.metrics_of(ours.key.prefix) == [(132, 1031)]
    # What changes meanwhile, changes where it stands.
    changed = Route(ours.key, () if ours.next_hops else (NextHop("pod0"),))
    assert await fib.apply(diff(table(changed), await fib.read())) == []
    assert world.metrics_of(ours.key.prefix) == [(132, 1031)]
    assert await fib.apply(diff(table(ours), await fib.read())) == []
    with world.watched(ours.key.prefix) as seen:
        assert await fib.retreat(0) is None
    assert seen == ["+1032", "-1031"]
    assert await fib.read() == table(ours)
    assert world.metrics_of(ours.key.prefix) == [(132, 1032)]
    assert await fib.retreat(0) is None


async def test_a_retreat_that_was_cut_short_is_finished(fib: Fib, world: World):
    """The agent was killed with the route in both places."""
    ours = table(*CONTESTED)
    for each in CONTESTED:
        world.add_foreign(each.key.prefix, BIRD)
    assert await settle(fib, ours) == []
    for each in CONTESTED:
        world.delete(each.key.prefix)
        world.add_foreign(each.key.prefix, 132)
    assert await fib.read() == ours
    assert fib.contested() == {}
    assert await fib.retreat(0) is None
    assert await fib.read() == ours
    assert {m for each in CONTESTED for m in world.metrics_of(each.key.prefix)} == {(132, 1032)}


@pytest.mark.parametrize("prefix", ["10.0.0.1/32", "fd00::1/128"])
async def test_who_holds_both_places_is_a_failure_that_names_them(
    fib: Fib, world: World, prefix: str
):
    """And neither is touched, while the other routes are made; one that goes makes room."""
    ours, other = route(prefix, ("pod0", None)), table(route("10.7.0.0/26"))
    world.add_foreign(ours.key.prefix, BIRD)
    world.add_foreign(ours.key.prefix, 4, 1031)
    before = world.foreign_text()

    failures = await fib.apply(Delta(table(ours) | other))

    assert [(f.key, f.operation) for f in failures] == [(ours.key, "create")]
    assert f"held by protocol {BIRD}" in failures[0].error
    assert "protocol 4" in failures[0].error
    assert world.foreign_text() == before
    assert await fib.read() == other
    world.delete(ours.key.prefix)
    assert await settle(fib, table(ours) | other) == []
    assert world.metrics_of(ours.key.prefix) == [(4, 1031), (132, 1032)]


@pytest.mark.parametrize(
    ("hops", "reason"),
    [
        ((("nosuch", None),), "interface nosuch does not exist"),
        ((("up0", ip_address("203.0.113.9")),), "unreachable"),
        ((("up0", VIA_0), ("up1", ip_address("203.0.113.9"))), "unreachable"),
        ((("up0", VIA_0), ("nosuch", VIA_1)), "interface nosuch does not exist"),
    ],
)
async def test_a_route_that_cannot_be_made_fails_alone(fib: Fib, hops, reason: str):
    """One dead next hop refuses its whole multipath, never silently, and nothing else."""
    others = table(route("10.5.0.0/26"), route("10.6.0.0/26", ("up0", VIA_0)))
    failures = await fib.apply(Delta(table(route("10.4.0.0/26", *hops)) | others))
    assert [f.key.prefix for f in failures] == [ip_network("10.4.0.0/26")]
    assert reason in failures[0].error
    assert await fib.read() == others


async def test_a_key_that_is_not_ours_to_write_is_a_failure(fib: Fib):
    """Another metric or table would never be read back, and so be written for ever."""
    key = RouteKey(ip_network("10.4.0.0/26"), metric=5)
    failures = await fib.apply(Delta({key: Route(key, ())}))
    assert [f.key for f in failures] == [key]
    assert await fib.read() == {}


async def test_next_hops_are_read_back_sorted(fib: Fib):
    """Equality of routes must be the kernel's equality, whatever order the caller had."""
    key = RouteKey(ip_network("10.2.0.0/26"))
    given_order = (NextHop("up1", VIA_1), NextHop("up0", VIA_0))
    assert await fib.apply(Delta({key: Route(key, given_order)})) == []
    assert await fib.read() == {key: Route(key, (NextHop("up0", VIA_0), NextHop("up1", VIA_1)))}


# -- replacing and deleting ------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["10.1.0.0/26", "fd01::/122"])
async def test_replace_never_takes_over_a_foreign_route(fib: Fib, world: World, prefix: str):
    """Ours went, a foreign one came, and the caller still believes in ours."""
    old, new = route(prefix), route(prefix, ("pod0", None))
    world.add_foreign(old.key.prefix, BIRD)
    before = world.foreign_text()
    assert await fib.apply(Delta(replace={old.key: (old, new)})) == []
    assert await fib.read() == table(new)
    assert f"held by protocol {BIRD}" in fib.contested()[new.key]
    assert world.foreign_text() == before
    world.add_foreign(ip_network("10.9.0.0/16"), BIRD)
    world.add_foreign(ip_network("10.9.0.0/16"), BIRD, 1031)
    before = world.foreign_text()
    blocked = route("10.9.0.0/16")
    failures = await fib.apply(Delta(replace={blocked.key: (blocked, blocked)}))
    assert [f.operation for f in failures] == ["replace"]
    assert world.foreign_text() == before


async def test_replacing_what_is_gone_creates_it(fib: Fib):
    """A link flap may take the old route between the read and the write."""
    old, new = route("10.1.0.0/26", ("up0", VIA_0)), route("10.1.0.0/26", ("up1", VIA_1))
    assert await fib.apply(Delta(replace={old.key: (old, new)})) == []
    assert await fib.read() == table(new)


@pytest.mark.parametrize("prefix", ["10.1.0.0/26", "fd01::/122"])
async def test_delete_spares_a_foreign_route_and_succeeds_on_nothing(
    fib: Fib, world: World, prefix: str
):
    """The kernel compares the protocol; what is gone is deleted."""
    ours = route(prefix)
    assert await fib.apply(Delta(delete=table(ours))) == []
    world.add_foreign(ours.key.prefix, BIRD)
    before = world.foreign_text()
    assert await fib.apply(Delta(delete=table(ours))) == []
    assert world.foreign_text() == before


# -- links -----------------------------------------------------------------------------------


async def test_routes_lost_with_a_link_come_back_after_it(fib: Fib, world: World):
    """The kernel drops routes over a link that goes down and does not restore them."""
    assert await settle(fib, EVERY_KIND) == []
    world.set_link("up1", is_up=False)
    assert (await asyncio.wait_for(fib.changed(), 5)) != ""
    assert not (await fib.links())["up1"].is_up
    left = await fib.read()
    assert RouteKey(ip_network("0.0.0.0/0")) not in left
    assert RouteKey(ip_network("::/0")) not in left
    world.set_link("up1", is_up=True)
    assert (await fib.links())["up1"].is_up
    assert await settle(fib, EVERY_KIND) == []
    assert await fib.read() == EVERY_KIND


async def test_links_tell_state_mtu_and_addresses(fib: Fib):
    """What the hub needs to know which next hop is connected."""
    links = await fib.links()
    assert links["up0"].is_up
    assert links["up0"].mtu_bytes == 1500
    assert {ip_interface(each) for each in UPLINKS["up0"]} <= set(links["up0"].addresses)
    assert links["up0"].ifname == "up0"
    assert links["up0"].ifindex != links["up1"].ifindex


async def test_source_is_the_kernels_choice_or_none(fib: Fib):
    """The address our end of a session will have."""
    assert await fib.source_for(VIA_0) == ip_address("192.0.2.1")
    assert await fib.source_for(VIA_1_V6) == ip_address("2001:db8:2::1")
    assert await fib.source_for(ip_address("203.0.113.77")) is None
    assert await fib.source_for(ip_address("2001:db8:ffff::1")) is None


async def test_who_holds_an_address_is_told_and_wider_routes_do_not_count(fib: Fib, world: World):
    """Whatever protocol, metric or table wins: that is where the pod's packets would go."""
    assert await fib.apply(Delta(EVERY_KIND)) == []
    assert await fib.holder_of(ip_address("10.0.0.1")) == "pod0"
    assert await fib.holder_of(ip_address("fd00::1")) == "pod1"
    for wider in ("10.0.0.2", "fd00::2", "10.1.0.1", "203.0.113.77", "2001:db8:ffff::1"):
        assert await fib.holder_of(ip_address(wider)) is None
    assert await fib.holder_of(ip_address("192.0.2.1")) == "up0"
    assert await fib.holder_of(ip_address("2001:db8:1::1")) is not None

    for prefix, held in (("10.0.0.1/32", "10.0.0.1"), ("fd00::1/128", "fd00::1")):
        world.add_better(ip_network(prefix), 4, "up1")
        assert await fib.holder_of(ip_address(held)) == "up1"


async def test_ways_are_other_programs_routes_and_not_ours(fib: Fib, world: World):
    """A next hop behind a router: what the kernel matches, unless we wrote that ourselves."""
    far, far6 = ip_address("203.0.113.9"), ip_address("2001:db8:ffff::9")
    covered = ip_address("10.1.0.9")
    assert await fib.apply(Delta(EVERY_KIND)) == []
    asked = [far, far6, covered]
    before = await fib.ways_to(asked)
    assert all(way.prefix_length == 0 for way in before.values())
    world.add_better(ip_network("203.0.113.0/24"), 4, "up1")
    world.add_better(ip_network("2001:db8:ffff::/64"), 4, "up0")
    found = await fib.ways_to(asked)
    assert found[far].prefix_length == 24
    assert [hop.ifname for hop in found[far].hops] == ["up1"]
    assert found[far6].prefix_length == 64
    assert [hop.ifname for hop in found[far6].hops] == ["up0"]
    assert await fib.ways_to([]) == {}
    ours = Route(RouteKey(ip_network("203.0.113.9/32")), (NextHop("up0", VIA_0),))
    assert await fib.apply(Delta({ours.key: ours})) == []
    assert far not in await fib.ways_to(asked)


# -- changes ---------------------------------------------------------------------------------


async def test_our_own_writes_are_not_reported_and_others_deletions_are(fib: Fib, world: World):
    """Else every pass would wake the next one."""
    assert await fib.apply(Delta(EVERY_KIND)) == []
    world.touch_link("pod0")
    assert await asyncio.wait_for(fib.changed(), 5) == "link"
    world.delete(ip_network("10.1.0.0/26"))
    assert await asyncio.wait_for(fib.changed(), 5) == "route"
    assert RouteKey(ip_network("10.1.0.0/26")) not in await fib.read()


async def test_a_foreign_route_that_appears_is_reported(fib: Fib, world: World):
    """It may be in the way, or gone from it."""
    waiting = asyncio.create_task(fib.changed())
    await asyncio.sleep(0)
    world.add_foreign(ip_network("10.1.0.0/26"), BIRD)
    assert await asyncio.wait_for(waiting, 5) == "route"


async def test_a_flood_is_told_as_overflow_and_reading_goes_on(fib: Fib, world: World):
    """ENOBUFS loses events for good: the caller must look at everything again."""
    waiting = asyncio.create_task(fib.changed())
    await asyncio.sleep(0)
    world.touch_link("pod0")
    assert await asyncio.wait_for(waiting, 5) == "link"
    world.flood()
    seen = ""
    while seen != "overflow":
        seen = await asyncio.wait_for(fib.changed(), 5)
    assert await settle(fib, EVERY_KIND) == []
    assert await fib.read() == EVERY_KIND


async def test_closing_ends_the_wait(world: World):
    """Nobody hangs on a driver that is no more; closing twice is harmless."""
    fib = world.make_fib()
    waiting = asyncio.create_task(fib.changed())
    await asyncio.sleep(0)
    await fib.close()
    await fib.close()
    with pytest.raises(FibClosed):
        await asyncio.wait_for(waiting, 5)


# -- the kernel alone ------------------------------------------------------------------------


@pytest.mark.netns
async def test_an_address_that_changes_is_reported(kernel_world: KernelWorld):
    """A next hop may be on link now, or not any more."""
    fib = kernel_world.make_fib()
    waiting = asyncio.create_task(fib.changed())
    await asyncio.sleep(0)
    kernel_world.host.ip("addr add 203.0.113.1/32 dev lo")
    kernel_world.host.ip("addr del 203.0.113.1/32 dev lo")
    assert "address" in await asyncio.wait_for(waiting, 5)
    await fib.close()


@pytest.mark.netns
async def test_thousands_of_routes_at_once_each_answered(kernel_world: KernelWorld):
    """A big delta goes through a thread; every failure in it is named, and so is no success."""
    kernel_world.reset()
    fib = kernel_world.make_fib()
    base = int(ip_address("10.64.0.0"))
    wanted = {}
    for i in range(5000):
        # Every hundredth has an interface the kernel knows, and a gateway that is not on it.
        hop = NextHop("up0", ip_address("203.0.113.9") if i % 100 == 0 else VIA_0)
        key = RouteKey(ip_network((base + 64 * i, 26)))
        wanted[key] = Route(key, (hop,))
    bad = {key for i, key in enumerate(wanted) if i % 100 == 0}
    failures = await fib.apply(Delta(wanted))
    assert {f.key for f in failures} == bad
    read = await fib.read()
    assert read == {key: each for key, each in wanted.items() if key not in bad}
    assert await fib.read() == read
    one = route("10.0.0.0/26")
    many, few = await asyncio.gather(
        fib.apply(Delta(delete=read)), fib.apply(Delta(table(one))), return_exceptions=False
    )
    assert (many, few) == ([], [])
    assert await fib.read() == table(one)
    await fib.close()


@pytest.mark.netns
async def test_a_renamed_interface_is_read_back_by_its_new_name(kernel_world: KernelWorld):
    """Messages that did not change are not parsed again, but names may have."""
    kernel_world.reset()
    fib = kernel_world.make_fib()
    await fib.apply(Delta(table(route("10.0.0.1/32", ("pod0", None)))))
    assert await fib.read() == table(route("10.0.0.1/32", ("pod0", None)))
    kernel_world.host.ip("link property add dev pod0 altname other", check=False)
    # A link that is up can be renamed; its routes stay.
    kernel_world.host.ip("link set pod0 name podx")
    try:
        assert await fib.read() == table(route("10.0.0.1/32", ("podx", None)))
    finally:
        kernel_world.host.ip("link set podx name pod0")
    await fib.close()


@pytest.mark.netns
async def test_protocol_metric_and_scope_in_the_kernels_own_words(kernel_world: KernelWorld):
    """What an operator sees, and what restarts recognise."""
    kernel_world.reset()
    fib = kernel_world.make_fib()
    await fib.apply(Delta(EVERY_KIND))
    shown = {each["dst"]: each for each in kernel_world.host.ip_json("-4 route show proto 132")}
    assert {each["metric"] for each in shown.values()} == {1032}
    assert shown["169.254.1.1"]["dev"] == "lo"
    assert shown["169.254.1.1"]["scope"] == "link"
    assert shown["10.0.0.1"]["scope"] == "link"
    assert shown["10.0.0.0/26"]["type"] == "blackhole"
    assert len(shown["10.2.0.0/26"]["nexthops"]) == 2
    await fib.close()


# -- nexthop groups --------------------------------------------------------------------------


def many(count: int, *hops: tuple[str, Address | None]) -> dict[RouteKey, Route]:
    base = int(ip_address("10.64.0.0"))
    prefixes = (ip_network((base + 64 * i, 26)) for i in range(count))
    return table(*(route(str(prefix), *hops) for prefix in prefixes))


def messages_of(kernel_world: KernelWorld) -> list[dict[str, object]]:
    """Our nexthop objects, as the kernel tells of them."""
    shown = kernel_world.host.ip_json("nexthop show")
    return [each for each in shown if each["id"] >= FIRST_ID]


@pytest.mark.netns
async def test_many_routes_that_all_turn_the_same_way_are_one_message(kernel_world: KernelWorld):
    """The routes stay as they are; the group they name leads elsewhere."""
    kernel_world.reset()
    fib = kernel_world.make_fib()
    old, new = many(1000, ("up0", VIA_0)), many(1000, ("up1", VIA_1))
    assert await fib.apply(Delta(old)) == []
    before = kernel_world.host.ip("-4 route show 10.64.3.0/26")
    assert await fib.apply(diff(new, await fib.read())) == []
    assert await fib.read() == new
    after = kernel_world.host.ip("-4 route show 10.64.3.0/26")
    assert before.split("nhid ")[1].split()[0] == after.split("nhid ")[1].split()[0]
    assert str(VIA_1) in after
    await fib.close()
    # Not even a driver that has not seen any of it finds a difference.
    fresh = kernel_world.make_fib()
    assert await fresh.read() == new
    await fresh.close()


@pytest.mark.netns
async def test_routes_that_stay_are_not_moved_with_those_that_go(kernel_world: KernelWorld):
    """All but one turn; that one must not."""
    kernel_world.reset()
    fib = kernel_world.make_fib()
    old = many(1000, ("up0", VIA_0))
    assert await fib.apply(Delta(old)) == []
    stays = next(iter(old))
    new = {**many(1000, ("up1", VIA_1)), stays: old[stays]}
    assert await fib.apply(diff(new, await fib.read())) == []
    assert await fib.read() == new
    await fib.close()


@pytest.mark.netns
async def test_a_dead_next_hop_is_abandoned_where_there_is_another(kernel_world: KernelWorld):
    """In every route at once; a route that has no other keeps it until a pass decides."""
    kernel_world.reset()
    fib = kernel_world.make_fib()
    both = many(500, ("up0", VIA_0), ("up1", VIA_1))
    only = table(route("10.1.0.0/26", ("up1", VIA_1)))
    assert await fib.apply(Delta(both | only)) == []
    assert await fib.abandon([VIA_1]) == 1
    assert await fib.read() == many(500, ("up0", VIA_0)) | only
    assert await fib.abandon([VIA_1]) == 0
    await fib.close()


@pytest.mark.netns
async def test_all_that_leads_to_one_next_hop_is_turned_to_another(kernel_world: KernelWorld):
    """In one message, and the driver's table says so without another dump; others stay."""
    kernel_world.reset()
    fib = kernel_world.make_fib()
    others = table(route("10.1.0.0/26", ("up0", VIA_0), ("up1", VIA_1)))
    assert await fib.apply(Delta(many(500, ("up0", VIA_0)) | others)) == []
    before = await fib.read()
    old, new = hops_of([NextHop("up0", VIA_0)]), hops_of([NextHop("up1", VIA_1)])
    assert await fib.turn({old: new}) == 1
    assert await fib.read() is before
    assert before == many(500, ("up1", VIA_1)) | others
    second = kernel_world.make_fib()
    assert await second.read() == before
    assert await fib.turn({old: new}) == 0
    await fib.close()
    await second.close()


@pytest.mark.netns
async def test_next_hops_of_others_are_not_touched_and_their_ids_left_out(
    kernel_world: KernelWorld,
):
    """One of another program sits in our range, another beside it with our gateway."""
    kernel_world.reset()
    ours, other = FIRST_ID, 77
    kernel_world.host.ip(f"nexthop add id {ours} via {VIA_0} dev up0 proto 12")
    kernel_world.host.ip(f"nexthop add id {other} via {VIA_0} dev up0 proto 12")
    fib = kernel_world.make_fib()
    assert await fib.apply(Delta(many(10, ("up0", VIA_0)))) == []
    assert await fib.read() == many(10, ("up0", VIA_0))
    assert await fib.abandon([VIA_0]) == 0
    shown = {each["id"]: each for each in kernel_world.host.ip_json("nexthop show")}
    assert {ours, other} <= shown.keys()
    assert "132" not in (shown[ours]["protocol"], shown[other]["protocol"])
    assert len(shown) == 4
    await fib.close()


@pytest.mark.netns
async def test_groups_without_routes_are_removed_in_the_end(kernel_world: KernelWorld):
    """A cluster whose next hops come and go must not fill the kernel; those in use stay."""
    kernel_world.reset()
    fib = kernel_world.make_fib()
    for host in range(2, 40):
        hop = ip_address(f"192.0.2.{host}")
        wanted = many(3, ("up0", hop))
        assert await fib.apply(diff(wanted, await fib.read())) == []
        kernel_world.touch_link("pod0")
        assert await fib.read() == wanted
    assert len(messages_of(kernel_world)) < 50
    await fib.close()


@pytest.mark.netns
async def test_a_table_is_believed_only_as_long_as_nobody_touches_it(kernel_world: KernelWorld):
    """Another hand's deletion, and a link's, are seen at the very next read."""
    kernel_world.reset()
    fib = kernel_world.make_fib()
    wanted = many(3, ("up1", VIA_1)) | table(route("10.0.0.1/32", ("pod0", None)))
    assert await fib.apply(Delta(wanted)) == []
    first = await fib.read()
    assert await fib.read() is first
    kernel_world.host.ip("route del 10.64.0.0/26 metric 1032")
    assert RouteKey(ip_network("10.64.0.0/26")) not in await fib.read()
    kernel_world.set_link("pod0", is_up=False)
    kernel_world.set_link("pod0", is_up=True)
    assert RouteKey(ip_network("10.0.0.1/32")) not in await fib.read()
    kernel_world.set_link("up1", is_up=False)
    assert await fib.read() == {}
    kernel_world.set_link("up1", is_up=True)
    assert await settle(fib, wanted) == []
    await fib.close()


@pytest.mark.netns
async def test_groups_that_another_hand_removes_are_missed_at_once(kernel_world: KernelWorld):
    """IPv4 routes go with them without a word; the objects' own news must do."""
    kernel_world.reset()
    fib = kernel_world.make_fib()
    wanted = many(3, ("up1", VIA_1))
    assert await fib.apply(Delta(wanted)) == []
    assert await fib.read() == wanted
    waiting = asyncio.create_task(fib.changed())
    await asyncio.sleep(0)
    kernel_world.host.ip("nexthop flush")
    assert "route" in await asyncio.wait_for(waiting, 5)
    assert await fib.read() == {}
    assert await settle(fib, wanted) == []
    await fib.close()
