"""The agent's own collection, with a clock that a test sets and an address book that is real."""

import asyncio
from ipaddress import ip_address

import pytest

from cni.attach import HostRouteError
from cni.attachment import Address, Attachment
from cni.collect import GRACE_S, Collector, absences
from cni.ipam.allocator import AddressConflict
from cni.observed import ObservedLink
from cni.podlink import AliasRecord
from cni.wiring_errors import WiringError

ONE = Attachment("slash32", "one", "eth0")
OTHER = Attachment("slash32", "other", "eth0")
V4, V6 = ip_address("10.0.0.1"), ip_address("fd00::1")
OTHER_V4 = ip_address("10.0.0.2")


class World:
    """A clock, links, and an address book that also releases."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.linked: dict[Attachment, tuple[Address, ...]] = {}
        self.held: dict[Attachment, tuple[Address, ...]] = {}
        self.failures: list[Exception] = []
        self.blind = False
        self.asked: list[Attachment] = []
        self.collector = Collector(
            links=self, book=self, release=self.release, clock=lambda: self.now_s
        )

    def read(self) -> list[ObservedLink]:
        """Every link."""
        if self.blind:
            raise WiringError("links: no consistent dump")
        return [
            ObservedLink(AliasRecord(who, addresses, None), 2, who.host_ifname, True, 1500)
            for who, addresses in self.linked.items()
        ]

    def attachments(self) -> list[Attachment]:
        """Everybody who holds an address."""
        return list(self.held)

    def addresses(self, attachment: Attachment) -> tuple[Address, ...]:
        """What it holds."""
        return self.held.get(attachment, ())

    def adopt(self, attachment: Attachment, addresses: tuple[Address, ...]) -> None:
        """Notes it unless somebody else holds one."""
        if any(set(addresses) & set(other) for other in self.held.values()):
            raise AddressConflict("held by another")
        self.held[attachment] = addresses

    async def release(self, attachment: Attachment) -> tuple[Address, ...]:
        """As Attacher.release_linkless."""
        self.asked.append(attachment)
        if self.failures:
            raise self.failures.pop(0)
        return () if attachment in self.linked else self.held.pop(attachment, ())

    async def look_after(self, seconds: float) -> None:
        """Time passes, then one look."""
        self.now_s += seconds
        await self.collector.look()


@pytest.fixture
def world() -> World:
    """One pod with a link."""
    made = World()
    made.held[ONE] = made.linked[ONE] = (V4, V6)
    return made


async def test_a_link_that_is_gone_frees_its_addresses_after_the_grace_time(world: World) -> None:
    """Not at the first look, nor at one that is a moment early."""
    del world.linked[ONE]
    await world.look_after(0)
    await world.look_after(GRACE_S - 0.1)
    assert world.held == {ONE: (V4, V6)}
    assert world.asked == []

    await world.look_after(0.1)
    assert world.held == {}
    await world.look_after(1000)
    assert world.asked == [ONE]


async def test_one_look_is_never_enough_however_late_it_is(world: World) -> None:
    """A machine that slept for an hour sees everything missing at once."""
    await world.look_after(0)
    del world.linked[ONE]
    await world.look_after(3600)
    assert world.held == {ONE: (V4, V6)}


async def test_a_link_that_came_back_in_between_starts_the_count_anew(world: World) -> None:
    """A repeated ADD rebuilt it, and it went away again later."""
    addresses = world.linked.pop(ONE)
    await world.look_after(0)
    world.linked[ONE] = addresses
    await world.look_after(GRACE_S / 2)
    del world.linked[ONE]
    await world.look_after(GRACE_S / 2)
    await world.look_after(GRACE_S / 2)
    assert world.held == {ONE: (V4, V6)}
    await world.look_after(GRACE_S / 2)
    assert world.held == {}


async def test_a_living_link_is_never_released(world: World) -> None:
    """However often one looks."""
    for _ in range(10):
        await world.look_after(GRACE_S)
    assert world.held == {ONE: (V4, V6)}
    assert world.asked == []


async def test_a_link_that_appears_at_the_last_moment_stops_the_release(world: World) -> None:
    """``release`` has the attachment's turn, looks itself, and says that there was nothing."""
    addresses = world.linked.pop(ONE)
    await world.look_after(0)
    release = world.release

    async def late(attachment: Attachment) -> tuple[Address, ...]:
        world.linked[ONE] = addresses
        return await release(attachment)

    world.collector._release = late
    await world.look_after(GRACE_S)
    assert world.asked == [ONE]
    assert world.held == {ONE: addresses}


async def test_control_a_release_that_does_not_look_takes_a_last_moment_link(world: World) -> None:
    """The same story without that look must take a living pod's addresses."""
    addresses = world.linked.pop(ONE)
    await world.look_after(0)

    async def careless(attachment: Attachment) -> tuple[Address, ...]:
        world.linked[ONE] = addresses
        return world.held.pop(attachment, ())

    world.collector._release = careless
    await world.look_after(GRACE_S)
    assert world.held == {}


async def test_control_a_collector_without_grace_takes_what_came_back(world: World) -> None:
    """The story of the link that is away twice for half the grace time must end otherwise."""
    world.collector._grace_s = GRACE_S / 2
    del world.linked[ONE]
    await world.look_after(0)
    await world.look_after(GRACE_S / 2)
    assert world.held == {}


async def test_a_look_that_sees_nothing_concludes_nothing(world: World) -> None:
    """A dump that failed is not an empty node."""
    world.blind = True
    await world.look_after(0)
    await world.look_after(GRACE_S)
    world.blind = False
    await world.look_after(0)
    assert world.asked == []


async def test_a_release_that_fails_is_tried_again_and_stops_no_other(world: World) -> None:
    """The kernel kept a route of the first."""
    world.held[OTHER] = (OTHER_V4,)
    world.linked.clear()
    await world.look_after(0)
    world.failures = [HostRouteError("10.0.0.1/32: refused")]
    await world.look_after(GRACE_S)
    assert world.held == {ONE: (V4, V6)}
    await world.look_after(1)
    assert world.held == {}


async def test_a_link_the_book_does_not_know_is_adopted(world: World) -> None:
    """Its address would be given out a second time otherwise; the link is nobody's to remove."""
    world.linked[OTHER] = (OTHER_V4,)
    await world.look_after(0)
    assert world.held == {ONE: (V4, V6), OTHER: (OTHER_V4,)}


async def test_a_conflict_is_told_once_and_touches_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else holds the address; looking every 30 s must not fill the log."""
    world.linked[OTHER] = (V4,)
    for _ in range(3):
        await world.look_after(1)
    assert world.held == {ONE: (V4, V6)}
    assert [each.message.split()[0] for each in caplog.records] == ["address_held_twice"]


async def test_it_looks_again_and_again(world: World) -> None:
    """The loop of the agent; it ends by being cancelled."""
    del world.linked[ONE]
    world.collector._grace_s = 0
    running = asyncio.create_task(world.collector.run(0.001))
    async with asyncio.timeout(5):
        while world.held:  # noqa: ASYNC110
            await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_absences_remember_the_first_look_only() -> None:
    """The pure part."""
    first = absences([ONE, OTHER], {OTHER}, before_s={}, now_s=5)
    assert first == {ONE: 5}
    assert absences([ONE, OTHER], set(), before_s=first, now_s=9) == {ONE: 5, OTHER: 9}
    assert absences([OTHER], {OTHER}, before_s=first, now_s=9) == {}
