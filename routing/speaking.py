"""SpeakerFace: what the hub needs of a BGP speaker; bgp.speaker.Speaker is the real one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from bgp.adj_rib import Offers
from bgp.paths import Advertisement, Family, Path, Peer, PeerStatus
from bgp.speaker import AdvertisementDelta, NotSent
from routing.routes import Address, Prefix

AdvertisementKey = tuple[Address, Prefix]


class SpeakerFace(Protocol):
    """A speaker that holds sessions, an Adj-RIB-In and an Adj-RIB-Out, and can be read back."""

    @property
    def is_connected(self) -> bool:
        """The speaker is here and its state has been read back."""

    def is_complete(self, peer: Address) -> bool:
        """Whether ``peer`` has sent all it has, so that what it did not send is really gone."""

    def sessions(self) -> Mapping[Address, PeerStatus]:
        """Each session's state, by peer address."""

    def paths(self) -> Mapping[AdvertisementKey, Path]:
        """Adj-RIB-In of all peers, by (peer, prefix)."""

    def offers(self) -> Offers:
        """The same by prefix, in the form that big tables are worked on in."""

    def received(self) -> Mapping[Address, int]:
        """How many prefixes each peer has sent."""

    def take_changes(self) -> Offers | None:
        """Each prefix whose paths changed since the last call, with what is said of it; None: any
        may."""

    def take_lost_next_hops(self) -> frozenset[Address]:
        """The next hops lost with sessions since the last call, that no path names any more."""

    def take_lost_peers(self) -> frozenset[Address]:
        """The peers of which nothing is believed any more since the last call."""

    async def set_peers(self, peers: Mapping[Address, Peer]) -> None:
        """Makes the configured sessions exactly these; touches only those that differ."""

    async def adj_rib_out(self) -> Mapping[AdvertisementKey, Advertisement]:
        """What the speaker announces at present, by (peer, prefix)."""

    async def apply(self, delta: AdvertisementDelta) -> Sequence[NotSent]:
        """Announces, replaces and withdraws; goes on past a failure."""

    async def send_ends_of_rib(
        self, due: Collection[tuple[Address, Family]]
    ) -> Mapping[tuple[Address, Family], str]:
        """Tells each peer that it has all our routes of the family (RFC 4724 section 2); what was
        not sent, and why."""
