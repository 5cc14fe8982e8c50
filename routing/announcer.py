"""Brings ExaBGP's sessions, our Adj-RIB-Out and End-of-RIB to what is wanted.

Announcements first, withdrawals after them, and no withdrawal of a prefix while one that shall
stand in for it could not be sent. End-of-RIB once a session and family, after all our routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import structlog

from bgp.paths import Advertisement, Family, Peer, PeerStatus, SessionState
from routing.delta import Delta, Failure, diff
from routing.desired import Desired
from routing.export_policy import AdvertisementKey
from routing.report import STORE_OUT_OF_SYNC, Held
from routing.routes import Address, RouteKey
from routing.speaking import SpeakerFace

log = structlog.get_logger("routing.reconcile")


class Announcer:
    """What is told to peers. It remembers which session got its End-of-RIB, and nothing else."""

    def __init__(self, speaker: SpeakerFace) -> None:
        self._speaker = speaker
        self._end_of_rib_sent: dict[tuple[Address, Family], float] = {}

    async def set_peers(self, wanted: Desired, failures: list[Failure[str]]) -> None:
        """Makes the configured sessions those that are wanted."""
        try:
            await self._speaker.set_peers(wanted.peers)
        except Exception as error:
            log.exception("peers_not_set", error=str(error))
            failures.append(Failure("peers", "set", str(error)))

    async def announce(
        self,
        wanted: Desired,
        failed_routes: Set[RouteKey],
        failures: list[Failure[str]],
        held: list[Held],
        *,
        in_sync: bool,
    ) -> None:
        """One step towards the wanted Adj-RIB-Out, then End-of-RIB where it is due.

        Args:
            failed_routes: what the kernel refused in this pass. A block whose own route is not
                there is not announced: it would attract traffic that this node sends back up its
                default route.
        """
        if not self._speaker.is_connected:
            return
        actual = {
            key: value
            for key, value in (await self._speaker.adj_rib_out()).items()
            if key[0] in wanted.peers
        }
        ready = {
            key: value
            for key, value in wanted.advertisements.items()
            if not failed_routes & wanted.backing.get(key[1], frozenset())
        }
        delta = diff(ready, actual)
        not_sent = await self._send(Delta(delta.create, delta.replace, {}), failures)
        lacking = not_sent | (wanted.advertisements.keys() - ready.keys())

        def gate(key: AdvertisementKey) -> bool:
            if key in wanted.advertisements:
                return False
            if not in_sync:
                held.append(Held(f"announcement {key[1]} to {key[0]}", STORE_OUT_OF_SYNC))
                return False
            substitute = next((k for k in lacking if _stands_in(k, key)), None)
            if substitute is not None:
                held.append(
                    Held(f"announcement {key[1]} to {key[0]}", f"{substitute[1]}-not-announced")
                )
            return substitute is None

        gone = {key: value for key, value in delta.delete.items() if gate(key)}
        not_sent |= await self._send(Delta({}, {}, gone), failures)
        if in_sync:
            unfinished = {key[0] for key in lacking | not_sent}
            await self._send_end_of_rib(wanted, unfinished, failures)

    async def _send(
        self, delta: Delta[AdvertisementKey, Advertisement], failures: list[Failure[str]]
    ) -> set[AdvertisementKey]:
        """Returns what did not happen."""
        if not delta:
            return set()
        not_sent: set[AdvertisementKey] = set()
        for failure in await self._speaker.apply(delta):
            not_sent.add(failure.key)
            peer, prefix = failure.key
            failures.append(Failure(f"{prefix} to {peer}", failure.operation, failure.error))
        for key in [*delta.create, *delta.replace]:
            if key not in not_sent:
                log.info("announced", peer=str(key[0]), prefix=str(key[1]))
        for key in delta.delete:
            if key not in not_sent:
                log.info("withdrawn", peer=str(key[0]), prefix=str(key[1]))
        return not_sent

    def told_all(self, peers: Iterable[Peer]) -> set[Address]:
        """Those whose present session has got all our routes, and End-of-RIB."""
        sessions = self._speaker.sessions()
        return {
            peer.address
            for peer in peers
            if (status := sessions.get(peer.address)) is not None
            and status.state is SessionState.ESTABLISHED
            and all(
                self._end_of_rib_sent.get((peer.address, family)) == status.since_s
                for family in peer.families
            )
        }

    async def _send_end_of_rib(
        self, wanted: Desired, unfinished: set[Address], failures: list[Failure[str]]
    ) -> None:
        sessions: Mapping[Address, PeerStatus] = self._speaker.sessions()
        due: dict[tuple[Address, Family], float] = {}
        for address, peer in wanted.peers.items():
            status = sessions.get(address)
            if status is None or status.state is not SessionState.ESTABLISHED:
                continue
            if address in unfinished:
                continue
            for family in peer.families:
                if self._end_of_rib_sent.get((address, family)) != status.since_s:
                    due[address, family] = status.since_s
        if not due:
            return
        try:
            not_sent = await self._speaker.send_ends_of_rib(due)
        except Exception as error:
            not_sent = dict.fromkeys(due, str(error))
        by_peer = {address: why for (address, _), why in not_sent.items()}
        failures.extend(Failure(f"End-of-RIB to {a}", "send", why) for a, why in by_peer.items())
        for (address, family), since_s in due.items():
            if (address, family) not in not_sent:
                self._end_of_rib_sent[address, family] = since_s
                log.info("end_of_rib_sent", peer=str(address), family=family.value)


def _stands_in(substitute: AdvertisementKey, gone: AdvertisementKey) -> bool:
    """Whether one carries traffic of the other: an aggregate its blocks', or the reverse."""
    return (
        substitute[0] == gone[0]
        and substitute[1].version == gone[1].version
        and substitute[1].overlaps(gone[1])
    )
