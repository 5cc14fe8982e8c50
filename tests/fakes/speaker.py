"""FakeSpeaker: bgp.speaker.Speaker's public face over a world that is a few dictionaries.

The world outlives the speaker, as ExaBGP outlives the agent: ``FakeSpeaker(world)`` on a world that
another FakeSpeaker has used is an agent's restart.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from bgp.adj_rib import AttributeSets, Offers
from bgp.advertising import Unsayable, as_said_to
from bgp.exabgp_commands import ProtocolError, announce
from bgp.nlri import nlri_of
from bgp.paths import (
    Address,
    Advertisement,
    Family,
    Path,
    PathAttributes,
    Peer,
    PeerStatus,
    Prefix,
    SessionState,
)
from bgp.sessions import RejectedRoute
from bgp.speaker import AdvertisementDelta, AdvertisementKey, BgpFailure, NotSent


@dataclass
class FakeNeighbor:
    """The router at the other end: what it says, and what it has heard, in order."""

    address: Address
    families: frozenset[Family] = frozenset(Family)
    is_up: bool = False
    sends: dict[Prefix, Path] = field(default_factory=dict)
    holds: dict[Prefix, Advertisement] = field(default_factory=dict)
    heard: list[str] = field(default_factory=list)
    has_sent_end_of_rib: bool = False
    has_graceful_restart: bool = False

    def __str__(self) -> str:
        lines = [f"{self.address} {'Established' if self.is_up else 'Idle'}"]
        lines += [f"  {p} via {a.next_hop or 'self'}" for p, a in self.holds.items()]
        return "\n".join(lines)


class FakeWorld:
    """ExaBGP and the routers it speaks to."""

    def __init__(self) -> None:
        self.configured: dict[Address, Peer] = {}
        self.neighbors: dict[Address, FakeNeighbor] = {}
        self.statuses: dict[Address, PeerStatus] = {}
        self.adj_rib_out: dict[AdvertisementKey, Advertisement] = {}
        self.is_exabgp_here = True
        self.speaker: FakeSpeaker | None = None

    def neighbor(self, address: Address) -> FakeNeighbor:
        """The router at ``address``; made, and down, at the first call."""
        return self.neighbors.setdefault(address, FakeNeighbor(address))

    # What happens out there. Each is seen by the present speaker at once.

    def up(self, address: Address, *, end_of_rib: bool = True) -> None:
        """The session comes up, and the router sends what it has."""
        neighbor = self.neighbor(address)
        neighbor.is_up = True
        status = self._status(address)
        status.state, status.since_s = SessionState.ESTABLISHED, self._now_s()
        for (peer, prefix), value in self.adj_rib_out.items():
            if peer == address:
                neighbor.holds[prefix] = value
                neighbor.heard.append(f"announce {prefix}")
        neighbor.has_sent_end_of_rib = end_of_rib
        if end_of_rib:
            status.end_of_rib = set(neighbor.families)
        if self.speaker is not None:
            self.speaker.session_is_up(neighbor)

    def restarts(self, address: Address) -> None:
        """The router dies; its paths are kept when it has graceful restart, once."""
        self.down(address, "closing connection", is_restart=True)

    def down(
        self, address: Address, reason: str = "peer closed the session", *, is_restart: bool = False
    ) -> None:
        """The session ends; the router forgets what we said."""
        neighbor = self.neighbor(address)
        if self.speaker is not None and neighbor.is_up and self.is_exabgp_here:
            self.speaker.session_ends(neighbor, is_kept=is_restart)
        neighbor.is_up, neighbor.has_sent_end_of_rib = False, False
        neighbor.holds.clear()
        status = self._status(address)
        status.flaps += status.state is SessionState.ESTABLISHED
        status.state, status.since_s = SessionState.IDLE, self._now_s()
        status.last_reason = reason
        status.end_of_rib.clear()
        if self.speaker is not None:
            self.speaker.changed(f"session_down:{address}")

    def send(self, path: Path) -> None:
        """The router at ``path.peer`` announces."""
        self.neighbor(path.peer).sends[path.prefix] = path
        if self.speaker is not None:
            self.speaker.changed(f"update:{path.peer}")

    def unsend(self, address: Address, prefix: Prefix) -> None:
        """The router withdraws."""
        self.neighbor(address).sends.pop(prefix, None)
        if self.speaker is not None:
            self.speaker.changed(f"update:{address}")

    def end_of_rib(self, address: Address) -> None:
        """The router says that this was all."""
        neighbor = self.neighbor(address)
        neighbor.has_sent_end_of_rib = True
        self._status(address).end_of_rib = set(neighbor.families)
        if self.speaker is not None:
            self.speaker.has_heard_all(neighbor)
            self.speaker.changed(f"end_of_rib:{address}")

    def lose_exabgp(self) -> None:
        """ExaBGP dies: every session ends; what was learned stays believed for a while.

        What we announced is in its file, so the next one has it.
        """
        self.is_exabgp_here = False
        if self.speaker is not None:
            self.speaker.exabgp_is_lost()
        for address, neighbor in self.neighbors.items():
            if neighbor.is_up:
                self.down(address, "ExaBGP restarted")

    def restore_exabgp(self) -> None:
        """Another ExaBGP has taken its place; sessions come up when ``up`` is called."""
        self.is_exabgp_here = True
        if self.speaker is not None:
            self.speaker.changed("speaker_read_back")

    def _status(self, address: Address) -> PeerStatus:
        return self.statuses.setdefault(address, PeerStatus(address))

    def _now_s(self) -> float:
        return self.speaker.clock() if self.speaker is not None else time.monotonic()


class FakeSpeaker:
    """See bgp.speaker.Speaker; ``fail_next`` makes single operations fail."""

    def __init__(
        self,
        world: FakeWorld | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        self._taken: dict[AdvertisementKey, Path] | None = None
        self._attributes = AttributeSets()
        self._with_paths: frozenset[Address] = frozenset()
        self._hops: frozenset[Address] = frozenset()
        self.world = world or FakeWorld()
        self.clock = clock
        self._on_change = on_change
        self._peers: dict[Address, Peer] | None = None
        self._held: dict[AdvertisementKey, Advertisement | None] = {}
        self._stale: dict[AdvertisementKey, Path] = {}
        self._rejections: collections.deque[RejectedRoute] = collections.deque(maxlen=256)
        self._failures: dict[str, collections.deque[Exception]] = {}

    def fail_next(self, operation: str, error: Exception, *, times: int = 1) -> None:
        """The next ``times`` calls fail.

        Args:
            operation: set_peers or end_of_rib, which raise ``error``; announce or withdraw, of
                which one change each fails with ``error``'s text.
            error: what.
            times: how often.
        """
        self._failures.setdefault(operation, collections.deque()).extend([error] * times)

    def _failure(self, operation: str) -> Exception | None:
        waiting = self._failures.get(operation)
        return waiting.popleft() if waiting else None

    # -- life ------------------------------------------------------------------------------

    async def start(self) -> None:
        """From here on the world's events reach this speaker."""
        self.world.speaker = self
        self._on_change("speaker_read_back")

    async def close(self) -> None:
        """The world goes on without us."""
        if self.world.speaker is self:
            self.world.speaker = None

    # -- looking ---------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        return self.world.is_exabgp_here and self.world.speaker is self

    def _known(self) -> set[Address]:
        return set(self.world.configured if self._peers is None else self._peers)

    def sessions(self) -> Mapping[Address, PeerStatus]:
        paths = collections.Counter(peer for peer, _ in self.paths())
        advertised = collections.Counter(key[0] for key in self._out())
        return {
            address: replace(
                self.world.statuses.get(address, PeerStatus(address)),
                routes_received=paths[address],
                routes_stale=sum(key[0] == address for key in self._stale_only()),
                routes_advertised=advertised[address],
            )
            for address in self._known()
        }

    def paths(self) -> Mapping[AdvertisementKey, Path]:
        live = {
            (address, prefix): path
            for address in self._known()
            if self.world.neighbor(address).is_up and self.world.is_exabgp_here
            for prefix, path in self.world.neighbor(address).sends.items()
        }
        return {**self._stale, **live}

    def _stale_only(self) -> set[AdvertisementKey]:
        """What is kept and has not been heard again."""
        return {
            (address, prefix)
            for address, prefix in self._stale
            if not (
                self.world.is_exabgp_here
                and self.world.neighbor(address).is_up
                and prefix in self.world.neighbor(address).sends
            )
        }

    def offers(self) -> Offers:
        return self._offers(self.paths())

    def _offers(self, paths: Mapping[AdvertisementKey, Path]) -> Offers:
        found: dict[bytes, tuple[PathAttributes, ...]] = {}
        for (_, prefix), path in paths.items():
            nlri = nlri_of(prefix)
            found[nlri] = (*found.get(nlri, ()), self._attributes.of(path))
        return found

    def received(self) -> Mapping[Address, int]:
        return collections.Counter(peer for peer, _ in self.paths())

    def take_changes(self) -> Offers | None:
        before, self._taken = self._taken, dict(self.paths())
        if before is None:
            return None
        keys = before.keys() | self._taken.keys()
        changed = {key[1] for key in keys if before.get(key) != self._taken.get(key)}
        now = self._offers(self._taken)
        return {nlri: now.get(nlri, ()) for nlri in map(nlri_of, changed)}

    def take_lost_next_hops(self) -> frozenset[Address]:
        hops = frozenset(path.next_hop for path in self.paths().values())
        before, self._hops = self._hops, hops
        return before - hops

    def take_lost_peers(self) -> frozenset[Address]:
        peers = frozenset(peer for peer, _ in self.paths())
        before, self._with_paths = self._with_paths, peers
        return before - peers

    def rejections(self) -> tuple[RejectedRoute, ...]:
        return tuple(self._rejections)

    def is_complete(self, peer: Address) -> bool:
        neighbor = self.world.neighbor(peer)
        return self.is_connected and neighbor.is_up and neighbor.has_sent_end_of_rib

    def _out(self) -> dict[AdvertisementKey, Advertisement]:
        merged = {**self.world.adj_rib_out, **self._held}
        return {key: value for key, value in merged.items() if value is not None}

    async def adj_rib_out(self) -> dict[AdvertisementKey, Advertisement]:
        return self._out()

    # -- changing --------------------------------------------------------------------------

    async def set_peers(self, peers: Mapping[Address, Peer]) -> None:
        error = self._failure("set_peers")
        if error is not None:
            raise error
        before, self._peers = self.world.configured, dict(peers)
        self.world.configured = dict(peers)
        for address in {*before, *peers}:
            if before.get(address) == peers.get(address):
                continue
            neighbor = self.world.neighbor(address)
            if neighbor.is_up:
                self.world.down(address, "the configuration of the session changed")
            if address not in peers:
                for table in (self.world.adj_rib_out, self._held, self._stale):
                    for key in [key for key in table if key[0] == address]:
                        del table[key]

    async def apply(self, delta: AdvertisementDelta) -> list[NotSent]:
        changes: list[tuple[str, AdvertisementKey, Advertisement | None]] = [
            *(("announce", key, value) for key, value in delta.create.items()),
            *(("announce", key, new) for key, (_, new) in delta.replace.items()),
            *(("withdraw", key, None) for key in delta.delete),
        ]
        failures = []
        for operation, key, value in changes:
            problem = self._problem(key, value) or self._failure(operation)
            if problem is not None:
                failures.append(NotSent(key, operation, str(problem)))
                continue
            self._held.pop(key, None)
            if self.world.neighbor(key[0]).is_up:
                self._tell(key, value)
            else:
                self._held[key] = value
        return failures

    async def send_end_of_rib(self, peer: Address, family: Family) -> None:
        for problem in (await self.send_ends_of_rib([(peer, family)])).values():
            raise BgpFailure(problem)

    async def send_ends_of_rib(
        self, due: Collection[tuple[Address, Family]]
    ) -> dict[tuple[Address, Family], str]:
        error = self._failure("end_of_rib")
        if error is not None:
            raise error
        failed = {}
        for peer, family in due:
            neighbor = self.world.neighbor(peer)
            if not self.is_connected or not neighbor.is_up:
                failed[peer, family] = f"the session with {peer} is not up"
            elif family in neighbor.families:
                neighbor.heard.append(f"end-of-rib {family.value}")
        return failed

    def _problem(self, key: AdvertisementKey, value: Advertisement | None) -> str | None:
        peer = (self._peers or {}).get(key[0])
        if not self.is_connected:
            return "ExaBGP is not connected"
        if peer is None:
            return f"{key[0]} is not a configured peer"
        if value is None:
            return None
        try:
            # The words are checked where the lines are made.
            announce(key[0], as_said_to(peer, value))
        except (Unsayable, ProtocolError) as error:
            return str(error)
        return None

    def _tell(self, key: AdvertisementKey, value: Advertisement | None) -> None:
        neighbor = self.world.neighbor(key[0])
        if value is None:
            self.world.adj_rib_out.pop(key, None)
            if neighbor.holds.pop(key[1], None) is not None:
                neighbor.heard.append(f"withdraw {key[1]}")
        elif self.world.adj_rib_out.get(key) != value or key[1] not in neighbor.holds:
            self.world.adj_rib_out[key] = value
            neighbor.holds[key[1]] = value
            neighbor.heard.append(f"announce {key[1]}")

    # -- called by the world ---------------------------------------------------------------

    def changed(self, reason: str) -> None:
        """Something happened out there."""
        self._on_change(reason)

    def session_is_up(self, neighbor: FakeNeighbor) -> None:
        """What was held is handed over, and what was stale is settled by End-of-RIB."""
        for key in [key for key in self._held if key[0] == neighbor.address]:
            self._tell(key, self._held.pop(key))
        if neighbor.has_sent_end_of_rib:
            self.has_heard_all(neighbor)
        self._on_change(f"session_up:{neighbor.address}")

    def has_heard_all(self, neighbor: FakeNeighbor) -> None:
        """What is still stale is gone."""
        for key in [key for key in self._stale if key[0] == neighbor.address]:
            del self._stale[key]

    def session_ends(self, neighbor: FakeNeighbor, *, is_kept: bool) -> None:
        """What is stale still is dropped; the rest becomes so, if it is kept at all."""
        self.has_heard_all(neighbor)
        if is_kept and neighbor.has_graceful_restart:
            self._stale.update({(neighbor.address, p): path for p, path in neighbor.sends.items()})

    def exabgp_is_lost(self) -> None:
        """Everything learned is kept, as stale."""
        for address in self._known():
            neighbor = self.world.neighbor(address)
            if neighbor.is_up:
                self._stale.update({(address, p): path for p, path in neighbor.sends.items()})
        self._on_change("speaker_lost")

    def reject(self, route: RejectedRoute) -> None:
        """A neighbour sent something unusable."""
        self._rejections.append(route)
