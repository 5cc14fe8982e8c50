"""One suite for the fake speaker and for ExaBGP 5.0.15 against BIRD 2."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any, Protocol

import pytest

from bgp.paths import Address, Advertisement, Family, Origin, Peer, Prefix, SessionState
from bgp.paths import Path as BgpPath
from bgp.speaker import BgpFailure, NotSent, Speaker
from routing.delta import Delta, diff
from tests.fakes.bgp_world import (
    RealSpeakers,
    Routers,
    eventually,
    is_established,
    why_not,
)
from tests.fakes.speaker import FakeSpeaker, FakeWorld

BLOCK = ip_network("10.244.1.64/26")
OTHER_BLOCK = ip_network("10.244.7.0/26")
BLOCK6 = ip_network("fd00:10:1::40/122")

Key = tuple[Address, Prefix]

COLOURS: dict[str, Any] = {
    "med": 7,
    "communities": ("65010:5", "65535:65281"),
    "large_communities": ("65010:1:4294967295",),
}


class Side(Protocol):
    """A speaker and the two routers it speaks to."""

    speaker: Speaker | FakeSpeaker
    changes: list[str]

    def peer(self, number: int, *, families: tuple[Family, ...] = ...) -> Peer: ...
    async def begin(self, *peers: Peer) -> None: ...
    async def router_starts(self, number: int) -> None: ...
    async def router_stops(self, number: int) -> None: ...
    async def router_dies(self, number: int) -> None: ...
    async def router_returns(self, number: int) -> None: ...
    async def router_sends(self, number: int, *prefixes: str) -> None: ...
    def holds(self, number: int) -> dict[str, str]: ...
    def heard(self, number: int) -> list[str]: ...
    def attributes(self, number: int, prefix: Prefix) -> dict[str, str]: ...
    async def router_colours(self, number: int) -> None: ...
    def session(self, number: int) -> object: ...
    async def restart_agent(self) -> None: ...
    async def close(self) -> None: ...


class FakeSide:
    """The fake world, spoken to as the real one is."""

    def __init__(self, *, is_graceful: bool) -> None:
        self._is_graceful = is_graceful
        self.world = FakeWorld()
        self.changes: list[str] = []
        self.speaker: Speaker | FakeSpeaker = FakeSpeaker(self.world, on_change=self.changes.append)
        self._running: set[int] = set()
        self._sends: dict[int, tuple[str, ...]] = {1: (), 2: ()}
        self._colours: set[int] = set()

    def peer(self, number: int, *, families: tuple[Family, ...] = tuple(Family)) -> Peer:
        return Peer(
            name=f"router{number}",
            address=ip_address(f"10.255.{number}.2"),
            remote_asn=65000 + 10 * number,
            local_asn=65001,
            local_address=ip_address(f"10.255.{number}.1"),
            router_id=IPv4Address("10.255.255.1"),
            families=families,
        )

    async def begin(self, *peers: Peer) -> None:
        await self.speaker.start()
        await self.speaker.set_peers({peer.address: peer for peer in peers})
        self.settle()

    def settle(self) -> None:
        """Sessions come up wherever both ends are there."""
        for number in self._running:
            address = self.peer(number).address
            if address in self.world.configured and not self.world.neighbor(address).is_up:
                self.world.up(address)

    async def router_starts(self, number: int) -> None:
        self._running.add(number)
        self.settle()

    async def router_stops(self, number: int) -> None:
        self._running.discard(number)
        self.world.down(self.peer(number).address)

    async def router_dies(self, number: int) -> None:
        self._running.discard(number)
        self.world.neighbor(self.peer(number).address).has_graceful_restart = self._is_graceful
        self.world.restarts(self.peer(number).address)

    async def router_returns(self, number: int) -> None:
        self._running.add(number)
        self.world.up(self.peer(number).address, end_of_rib=False)

    async def router_sends(self, number: int, *prefixes: str) -> None:
        address = self.peer(number).address
        for gone in set(self._sends[number]) - set(prefixes):
            self.world.unsend(address, ip_network(gone))
        self._sends[number] = prefixes
        for prefix in map(ip_network, prefixes):
            hop = address if prefix.version == 4 else ip_address(f"2001:db8:{number}::2")
            path = BgpPath(address, prefix, hop, (65000 + 10 * number,), 1, Origin.IGP)
            if number in self._colours:
                path = replace(path, **COLOURS)
            self.world.send(path)

    def holds(self, number: int) -> dict[str, str]:
        self.settle()
        local = self.peer(number).local_address
        neighbor = self.world.neighbor(self.peer(number).address)
        return {str(p): str(a.next_hop or local) for p, a in neighbor.holds.items()}

    def heard(self, number: int) -> list[str]:
        neighbor = self.world.neighbor(self.peer(number).address)
        return ["end-of-rib" if "end-of-rib" in h else "update" for h in neighbor.heard]

    def attributes(self, number: int, prefix: Prefix) -> dict[str, str]:
        held = self.world.neighbor(self.peer(number).address).holds[prefix]
        shown = {
            "as_path": " ".join(["65001"] * (held.prepend + 1)),
            "med": "" if held.med is None else str(held.med),
            "community": " ".join(f"({c.replace(':', ',')})" for c in held.communities),
            "large_community": " ".join(
                f"({c.replace(':', ', ')})" for c in held.large_communities
            ),
        }
        return {name: text for name, text in shown.items() if text}

    async def router_colours(self, number: int) -> None:
        self._colours.add(number)
        await self.router_sends(number, *self._sends[number])

    def session(self, number: int) -> object:
        return self.world.statuses[self.peer(number).address].since_s

    async def restart_agent(self) -> None:
        await self.speaker.close()
        self.speaker = FakeSpeaker(self.world, on_change=self.changes.append)
        await self.speaker.start()

    async def close(self) -> None:
        await self.speaker.close()


class RealSide:
    """ExaBGP and two BIRDs in namespaces."""

    def __init__(self, directory: Path, *, is_graceful: bool) -> None:
        self._routers = Routers(directory, graceful_restart=is_graceful)
        self._node = RealSpeakers(self._routers, directory)
        self.changes = self._node.changes
        self.speaker: Speaker | FakeSpeaker = self._node.speaker

    def peer(self, number: int, *, families: tuple[Family, ...] = tuple(Family)) -> Peer:
        return self._routers.peer(number, families=families)

    async def begin(self, *peers: Peer) -> None:
        await self._node.start()
        await self.speaker.set_peers({peer.address: peer for peer in peers})
        self._node.start_exabgp()
        await self._node.connected()

    async def router_starts(self, number: int) -> None:
        self._routers.birds[number].start()

    async def router_stops(self, number: int) -> None:
        self._routers.birds[number].stop()

    async def router_dies(self, number: int) -> None:
        self._routers.birds[number].kill()

    async def router_returns(self, number: int) -> None:
        self._routers.birds[number].start(recovers=True)

    async def router_sends(self, number: int, *prefixes: str) -> None:
        self._routers.send(number, prefixes)

    def holds(self, number: int) -> dict[str, str]:
        return self._routers.birds[number].routes("node")

    def heard(self, number: int) -> list[str]:
        lines = self._routers.birds[number].log().splitlines()
        heard = []
        for line in lines:
            if "node: Got END-OF-RIB" in line:
                heard.append("end-of-rib")
            elif "node: Got UPDATE" in line:
                heard.append("update")
        return heard

    def attributes(self, number: int, prefix: Prefix) -> dict[str, str]:
        shown = self._routers.birds[number].attributes("node", str(prefix))
        names = ("as_path", "med", "community", "large_community")
        return {name: shown[name] for name in names if name in shown}

    async def router_colours(self, number: int) -> None:
        self._routers.export_actions[number] = (
            "bgp_med = 7; bgp_community.add((65010, 5)); bgp_community.add((65535, 65281));"
            "bgp_large_community.add((65010, 1, 4294967295));"
        )
        self._routers.send(number, self._routers.sent(number))

    def session(self, number: int) -> object:
        return self._routers.birds[number].sessions_so_far("node")

    async def restart_agent(self) -> None:
        self.speaker = await self._node.restart_agent()

    async def close(self) -> None:
        try:
            await self._node.close()
        finally:
            self._routers.close()


KINDS = [
    "fake",
    pytest.param("real", marks=[pytest.mark.netns, pytest.mark.exabgp, pytest.mark.bird]),
]


@asynccontextmanager
async def made(kind: str, directory: Path, *, is_graceful: bool) -> AsyncIterator[Side]:
    if kind == "fake":
        side: Side = FakeSide(is_graceful=is_graceful)
    else:
        reason = why_not()
        if reason is not None:
            pytest.skip(reason)
        side = RealSide(directory, is_graceful=is_graceful)
    try:
        yield side
    finally:
        await side.close()


@pytest.fixture(params=KINDS)
async def side(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Side]:
    """The routers have graceful restart."""
    async with made(request.param, tmp_path, is_graceful=True) as side:
        yield side


@pytest.fixture(params=KINDS)
async def plain_side(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Side]:
    """The routers have no graceful restart."""
    async with made(request.param, tmp_path, is_graceful=False) as side:
        yield side


async def up(side: Side, number: int) -> None:
    """Waits for the session with a router, as the speaker sees it."""
    address = side.peer(number).address
    await eventually(
        lambda: is_established(side.speaker, address), what=f"session with router {number}"
    )


async def announce(side: Side, wanted: Mapping[Key, Advertisement]) -> list[NotSent]:
    """One pass of the hub: the difference to what is announced is applied."""
    return await side.speaker.apply(diff(dict(wanted), await side.speaker.adj_rib_out()))


def told(*entries: tuple[Peer, Prefix]) -> dict[Key, Advertisement]:
    """Announcements with our own address as the next hop."""
    return {(peer.address, prefix): Advertisement(prefix) for peer, prefix in entries}


async def test_what_is_announced_arrives_and_what_is_withdrawn_goes(side: Side) -> None:
    """apply announces to the named peer, with our address as the next hop, and withdraws."""
    peer = side.peer(1)
    await side.router_starts(1)
    await side.begin(peer)
    await up(side, 1)
    assert await announce(side, told((peer, BLOCK))) == []
    await eventually(lambda: side.holds(1) == {str(BLOCK): "10.255.1.1"}, what="announced")
    assert await announce(side, {}) == []
    await eventually(lambda: side.holds(1) == {}, what="withdrawn")
    assert await side.speaker.adj_rib_out() == {}


async def test_a_replacement_changes_the_next_hop_without_a_withdrawal(side: Side) -> None:
    """Announcing a prefix anew replaces it, as BGP does."""
    peer = side.peer(1)
    await side.router_starts(1)
    await side.begin(peer)
    await up(side, 1)
    await announce(side, told((peer, BLOCK)))
    await eventually(lambda: side.holds(1) == {str(BLOCK): "10.255.1.1"}, what="announced")
    other = Advertisement(BLOCK, ip_address("10.255.1.77"))
    assert await announce(side, {(peer.address, BLOCK): other}) == []
    await eventually(lambda: side.holds(1) == {str(BLOCK): "10.255.1.77"}, what="replaced")
    assert await side.speaker.adj_rib_out() == {(peer.address, BLOCK): other}


async def test_every_attribute_arrives_and_is_found_again_by_the_next_agent(side: Side) -> None:
    """Communities, large ones, MED and prepends; a restart sends nothing, a change is sent."""
    peer = side.peer(1)
    await side.router_starts(1)
    await side.begin(peer)
    await up(side, 1)
    coloured = Advertisement(
        BLOCK,
        communities=("65535:0", "65001:7"),
        large_communities=("65001:2:3", "65001:1:9"),
        med=30,
        local_pref=150,
        prepend=2,
    )
    wanted = {
        (peer.address, BLOCK): coloured,
        (peer.address, OTHER_BLOCK): Advertisement(OTHER_BLOCK),
    }
    assert await announce(side, wanted) == []
    await eventually(lambda: len(side.holds(1)) == 2, what="announced")
    # LOCAL_PREF is for internal peers, and this one is not.
    assert side.attributes(1, BLOCK) == {
        "as_path": "65001 65001 65001",
        "med": "30",
        "community": "(65001,7) (65535,0)",
        "large_community": "(65001, 1, 9) (65001, 2, 3)",
    }
    assert side.attributes(1, OTHER_BLOCK) == {"as_path": "65001"}
    heard = side.heard(1)
    await side.restart_agent()
    await side.speaker.set_peers({peer.address: peer})
    assert await side.speaker.adj_rib_out() == wanted
    assert side.heard(1) == heard
    plain = {(peer.address, BLOCK): Advertisement(BLOCK, med=0)}
    assert await announce(side, plain) == []
    await eventually(
        lambda: side.attributes(1, BLOCK) == {"as_path": "65001", "med": "0"}, what="changed"
    )
    assert await side.speaker.adj_rib_out() == plain


async def test_an_attribute_that_cannot_be_said_is_refused_and_the_others_happen(
    side: Side,
) -> None:
    """A community that is none fails by name."""
    peer = side.peer(1)
    await side.router_starts(1)
    await side.begin(peer)
    await up(side, 1)
    wanted = told((peer, OTHER_BLOCK)) | {
        (peer.address, BLOCK): Advertisement(BLOCK, communities=("65001:1 ] med 5",))
    }
    (failure,) = await announce(side, wanted)
    assert failure.key == (peer.address, BLOCK)
    assert "65001:1 ] med 5" in failure.error
    await eventually(lambda: set(side.holds(1)) == {str(OTHER_BLOCK)}, what="the good one")


async def test_every_attribute_of_a_router_is_seen_and_read_back(side: Side) -> None:
    """MED, communities and large communities are the same by event and by read-back."""
    peer = side.peer(1)
    await side.router_colours(1)
    await side.router_sends(1, "10.9.0.0/26")
    await side.router_starts(1)
    await side.begin(peer)
    await eventually(lambda: len(side.speaker.paths()) == 1, what="a path")
    paths = side.speaker.paths()
    (path,) = paths.values()
    assert {name: getattr(path, name) for name in COLOURS} == COLOURS
    await side.restart_agent()
    assert side.speaker.paths() == paths


async def test_an_ipv6_block_goes_over_an_ipv4_session_with_the_next_hop_given(side: Side) -> None:
    """The next hop is of the prefix's family, or the announcement is refused by name."""
    peer = side.peer(1)
    await side.router_starts(1)
    await side.begin(peer)
    await up(side, 1)
    failures = await announce(side, told((peer, BLOCK6)))
    assert [failure.key for failure in failures] == [(peer.address, BLOCK6)]
    assert "needs a next hop of its own family" in failures[0].error
    given = Advertisement(BLOCK6, ip_address("2001:db8:1::1"))
    assert await announce(side, {(peer.address, BLOCK6): given}) == []
    await eventually(lambda: side.holds(1) == {str(BLOCK6): "2001:db8:1::1"}, what="announced")


async def test_what_a_router_sends_is_seen_and_what_it_takes_back_is_not(side: Side) -> None:
    """paths() follows the router, with the attributes that the decision needs."""
    peer = side.peer(1)
    await side.router_sends(1, "0.0.0.0/0", "10.9.0.0/26", "2001:db8:9::/64")
    await side.router_starts(1)
    await side.begin(peer)
    await eventually(lambda: len(side.speaker.paths()) == 3, what="three paths")
    path = side.speaker.paths()[peer.address, ip_network("0.0.0.0/0")]
    assert path == BgpPath(
        peer.address, ip_network("0.0.0.0/0"), peer.address, (65010,), 1, Origin.IGP
    )
    path6 = side.speaker.paths()[peer.address, ip_network("2001:db8:9::/64")]
    assert path6.next_hop == ip_address("2001:db8:1::2")
    await side.router_sends(1, "10.9.0.0/26")
    await eventually(
        lambda: set(side.speaker.paths()) == {(peer.address, ip_network("10.9.0.0/26"))},
        what="one path",
    )


async def test_a_session_that_ends_takes_its_paths_with_it_and_no_others(side: Side) -> None:
    """The other router's paths stay, and so does its session."""
    one, two = side.peer(1), side.peer(2)
    await side.router_sends(1, "10.9.0.0/26")
    await side.router_sends(2, "10.9.0.0/26")
    await side.router_starts(1)
    await side.router_starts(2)
    await side.begin(one, two)
    await eventually(lambda: len(side.speaker.paths()) == 2, what="both paths")
    session = side.session(2)
    await side.router_stops(1)
    await eventually(
        lambda: set(side.speaker.paths()) == {(two.address, ip_network("10.9.0.0/26"))},
        what="only the other's path",
    )
    status = side.speaker.sessions()[one.address]
    assert status.state is not SessionState.ESTABLISHED
    assert status.flaps == 1
    assert side.session(2) == session


def learned(side: Side) -> set[str]:
    return {str(prefix) for _, prefix in side.speaker.paths()}


async def heard_all(side: Side, peer: Peer) -> None:
    """Our End-of-RIB makes BIRD speak; its own make the peer complete."""
    for family in Family:
        await side.speaker.send_end_of_rib(peer.address, family)
    if isinstance(side, FakeSide):
        side.world.end_of_rib(peer.address)
    await eventually(lambda: side.speaker.is_complete(peer.address), what="complete")


async def test_a_router_that_restarts_has_its_paths_kept_until_end_of_rib(side: Side) -> None:
    """RFC 4724: stale while it is away; what it does not say again goes at its End-of-RIB."""
    peer = side.peer(1)
    await side.router_sends(1, "10.9.0.0/26", "10.9.1.0/26")
    await side.router_starts(1)
    await side.begin(peer)
    await up(side, 1)
    await heard_all(side, peer)
    await eventually(lambda: len(side.speaker.paths()) == 2, what="both paths")
    await side.router_dies(1)
    await eventually(lambda: not is_established(side.speaker, peer.address), what="down")
    assert learned(side) == {"10.9.0.0/26", "10.9.1.0/26"}
    assert side.speaker.sessions()[peer.address].routes_stale == 2
    await side.router_sends(1, "10.9.1.0/26", "10.9.2.0/26")
    await side.router_returns(1)
    await up(side, 1)
    assert learned(side) >= {"10.9.0.0/26", "10.9.1.0/26"}
    await heard_all(side, peer)
    await eventually(lambda: learned(side) == {"10.9.1.0/26", "10.9.2.0/26"}, what="swept")
    assert side.speaker.sessions()[peer.address].routes_stale == 0


async def test_a_second_restart_before_end_of_rib_is_not_forgiven(side: Side) -> None:
    """What is stale already when the session is lost again is dropped."""
    peer = side.peer(1)
    await side.router_sends(1, "10.9.0.0/26")
    await side.router_starts(1)
    await side.begin(peer)
    await up(side, 1)
    await heard_all(side, peer)
    await eventually(lambda: len(side.speaker.paths()) == 1, what="the path")
    await side.router_dies(1)
    await eventually(lambda: not is_established(side.speaker, peer.address), what="down")
    await side.router_sends(1)
    await side.router_returns(1)
    # Nothing is said to it, so it does not say that it has said all.
    await up(side, 1)
    assert learned(side) == {"10.9.0.0/26"}
    await side.router_dies(1)
    await eventually(lambda: learned(side) == set(), what="dropped")


async def test_without_graceful_restart_the_paths_go_at_once(plain_side: Side) -> None:
    """The control of the two above: the same death, and nothing promised."""
    side, peer = plain_side, plain_side.peer(1)
    await side.router_sends(1, "10.9.0.0/26")
    await side.router_starts(1)
    await side.begin(peer)
    await up(side, 1)
    # Without graceful restart BIRD sends no End-of-RIB, but ours makes it speak.
    await side.speaker.send_end_of_rib(peer.address, Family.IPV4)
    await eventually(lambda: len(side.speaker.paths()) == 1, what="the path")
    await side.router_dies(1)
    await eventually(lambda: not is_established(side.speaker, peer.address), what="down")
    assert learned(side) == set()
    assert side.speaker.sessions()[peer.address].routes_stale == 0


async def test_a_peer_is_complete_once_its_end_of_rib_has_come(side: Side) -> None:
    """The gate opens with the session's End-of-RIBs and closes with the session."""
    peer = side.peer(1)
    await side.router_sends(1, "10.9.0.0/26")
    await side.begin(peer)
    assert not side.speaker.is_complete(peer.address)
    await side.router_starts(1)
    await up(side, 1)
    for family in Family:
        # BIRD says nothing of its own before it has heard from us.
        await side.speaker.send_end_of_rib(peer.address, family)
    await eventually(lambda: side.speaker.is_complete(peer.address), what="complete")
    assert (peer.address, ip_network("10.9.0.0/26")) in side.speaker.paths()
    await side.router_stops(1)
    await eventually(lambda: not side.speaker.is_complete(peer.address), what="incomplete")


async def test_what_is_applied_while_a_session_is_down_precedes_end_of_rib(side: Side) -> None:
    """The router hears all our routes first, then End-of-RIB, though they were applied before."""
    peer = side.peer(1)
    await side.begin(peer)
    assert await announce(side, told((peer, BLOCK), (peer, OTHER_BLOCK))) == []
    assert len(await side.speaker.adj_rib_out()) == 2
    await side.router_starts(1)
    await up(side, 1)
    await side.speaker.send_end_of_rib(peer.address, Family.IPV4)
    await eventually(lambda: "end-of-rib" in side.heard(1), what="End-of-RIB")
    heard = side.heard(1)
    assert "update" in heard
    assert "update" not in heard[heard.index("end-of-rib") :]
    await eventually(lambda: set(side.holds(1)) == {str(BLOCK), str(OTHER_BLOCK)}, what="both")


async def test_a_router_that_comes_back_is_told_everything_before_end_of_rib(side: Side) -> None:
    """Routes survive the router's restart in the speaker, and precede the new End-of-RIB."""
    peer = side.peer(1)
    await side.router_starts(1)
    await side.begin(peer)
    await up(side, 1)
    await announce(side, told((peer, BLOCK)))
    await side.speaker.send_end_of_rib(peer.address, Family.IPV4)
    await eventually(lambda: "end-of-rib" in side.heard(1), what="first End-of-RIB")
    await side.router_stops(1)
    await eventually(lambda: not is_established(side.speaker, peer.address), what="down")
    so_far = len(side.heard(1))
    await side.router_starts(1)
    await up(side, 1)
    assert await announce(side, told((peer, BLOCK))) == []
    await side.speaker.send_end_of_rib(peer.address, Family.IPV4)
    await eventually(lambda: "end-of-rib" in side.heard(1)[so_far:], what="second End-of-RIB")
    heard = side.heard(1)[so_far:]
    assert "update" in heard[: heard.index("end-of-rib")]
    assert side.holds(1) == {str(BLOCK): "10.255.1.1"}


async def test_end_of_rib_to_a_session_that_is_down_is_an_error(side: Side) -> None:
    """It would be sent at the wrong moment; the caller learns that it was not."""
    peer = side.peer(1)
    await side.begin(peer)
    with pytest.raises(BgpFailure, match="not up"):
        await side.speaker.send_end_of_rib(peer.address, Family.IPV4)


async def test_one_call_sends_end_of_rib_to_all_that_are_up(side: Side) -> None:
    """Each after what was held for it; who is down is named, and costs the others nothing."""
    one, two = side.peer(1), side.peer(2)
    await side.begin(one, two)
    assert await announce(side, told((one, BLOCK), (two, BLOCK))) == []
    await side.router_starts(1)
    await side.router_starts(2)
    await up(side, 1)
    await up(side, 2)
    both = [(one.address, Family.IPV4), (two.address, Family.IPV4)]
    assert await side.speaker.send_ends_of_rib(both) == {}
    for number in (1, 2):
        await eventually(lambda n=number: "end-of-rib" in side.heard(n), what="End-of-RIB")  # type: ignore[misc]
        heard = side.heard(number)
        assert "update" in heard[: heard.index("end-of-rib")]
    await side.router_stops(2)
    await eventually(lambda: not is_established(side.speaker, two.address), what="down")
    so_far = side.heard(1).count("end-of-rib")
    failed = await side.speaker.send_ends_of_rib(both)
    assert failed.keys() == {(two.address, Family.IPV4)}
    assert "not up" in failed[two.address, Family.IPV4]
    await eventually(lambda: side.heard(1).count("end-of-rib") > so_far, what="End-of-RIB again")


async def test_announcements_that_cannot_be_are_refused_and_the_others_happen(side: Side) -> None:
    """An unknown peer and a family that is not configured fail by name; the rest goes out."""
    peer = side.peer(1, families=(Family.IPV4,))
    stranger = side.peer(2)
    await side.router_starts(1)
    await side.begin(peer)
    await up(side, 1)
    wanted = told((peer, BLOCK), (stranger, BLOCK)) | {
        (peer.address, BLOCK6): Advertisement(BLOCK6, ip_address("2001:db8:1::1"))
    }
    failures = await announce(side, wanted)
    assert {failure.key for failure in failures} == {
        (stranger.address, BLOCK),
        (peer.address, BLOCK6),
    }
    assert {failure.operation for failure in failures} == {"announce"}
    await eventually(lambda: side.holds(1) == {str(BLOCK): "10.255.1.1"}, what="the good one")
    assert set(await side.speaker.adj_rib_out()) == {(peer.address, BLOCK)}


async def test_a_peer_added_later_starts_empty_and_touches_nobody(side: Side) -> None:
    """The new session has no announcements yet; the old one is not reset and keeps its routes."""
    one, two = side.peer(1), side.peer(2)
    await side.router_starts(1)
    await side.router_starts(2)
    await side.begin(one)
    await up(side, 1)
    await announce(side, told((one, BLOCK)))
    await eventually(lambda: side.holds(1) == {str(BLOCK): "10.255.1.1"}, what="announced")
    session = side.session(1)
    await side.speaker.set_peers({one.address: one, two.address: two})
    if isinstance(side, FakeSide):
        side.settle()
    await up(side, 2)
    assert set(await side.speaker.adj_rib_out()) == {(one.address, BLOCK)}
    assert side.holds(2) == {}
    await announce(side, told((one, BLOCK), (two, BLOCK)))
    await eventually(lambda: side.holds(2) == {str(BLOCK): "10.255.2.1"}, what="announced to 2")
    assert side.session(1) == session
    assert side.holds(1) == {str(BLOCK): "10.255.1.1"}


async def test_a_peer_removed_is_forgotten_and_touches_nobody(side: Side) -> None:
    """Its session, paths and announcements go; the other session is not reset."""
    one, two = side.peer(1), side.peer(2)
    await side.router_sends(2, "10.9.0.0/26")
    await side.router_starts(1)
    await side.router_starts(2)
    await side.begin(one, two)
    await up(side, 1)
    await up(side, 2)
    await announce(side, told((one, BLOCK), (two, BLOCK)))
    await eventually(lambda: len(side.speaker.paths()) == 1, what="a path of 2")
    session = side.session(1)
    await side.speaker.set_peers({one.address: one})
    assert set(side.speaker.sessions()) == {one.address}
    assert side.speaker.paths() == {}
    assert set(await side.speaker.adj_rib_out()) == {(one.address, BLOCK)}
    await eventually(lambda: side.holds(2) == {}, what="router 2 has lost the route")
    assert side.session(1) == session


async def test_a_peer_that_changes_is_reset_alone(side: Side) -> None:
    """A changed hold time restarts that session and no other; its routes come back."""
    one, two = side.peer(1), side.peer(2)
    await side.router_starts(1)
    await side.router_starts(2)
    await side.begin(one, two)
    await up(side, 1)
    await up(side, 2)
    wanted = told((one, BLOCK), (two, BLOCK))
    await announce(side, wanted)
    await eventually(lambda: str(BLOCK) in side.holds(2), what="announced to 2")
    before = side.session(1), side.session(2)
    changed = replace(two, hold_time_s=6)
    await side.speaker.set_peers({one.address: one, two.address: changed})
    await eventually(
        lambda: side.speaker.sessions()[two.address].flaps == 1, what="session 2 has been reset"
    )
    if isinstance(side, FakeSide):
        side.settle()
    await up(side, 2)
    await announce(side, wanted)
    await eventually(lambda: str(BLOCK) in side.holds(2), what="announced to 2 again")
    assert side.session(1) == before[0]
    assert side.session(2) != before[1]


async def test_an_agent_that_restarts_finds_everything_and_changes_nothing(side: Side) -> None:
    """Sessions, Adj-RIB-In and Adj-RIB-Out are read back; the routers notice nothing."""
    one, two = side.peer(1), side.peer(2)
    await side.router_sends(1, "0.0.0.0/0", "10.9.0.0/26", "2001:db8:9::/64")
    await side.router_starts(1)
    await side.begin(one, two)
    await up(side, 1)
    wanted = told((one, BLOCK)) | {
        (one.address, BLOCK6): Advertisement(BLOCK6, ip_address("2001:db8:1::1"))
    }
    assert await announce(side, wanted) == []
    await eventually(lambda: len(side.speaker.paths()) == 3, what="three paths")
    await eventually(lambda: len(side.holds(1)) == 2, what="both announced")
    paths, session = side.speaker.paths(), side.session(1)
    heard = side.heard(1)
    await side.restart_agent()
    assert is_established(side.speaker, one.address)
    assert await side.speaker.adj_rib_out() == wanted
    await side.speaker.set_peers({one.address: one, two.address: two})
    assert diff(wanted, await side.speaker.adj_rib_out()) == Delta()
    # The usable next hop of an IPv6 route has to be asked for again; nothing else has.
    await eventually(lambda: side.speaker.paths() == paths, what="the same paths")
    assert side.session(1) == session
    assert side.heard(1) == heard
    assert len(side.holds(1)) == 2
