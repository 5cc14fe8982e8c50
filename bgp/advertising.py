"""What is asked of a speaker, and what it says it could not do. Pure.

``bgp`` does not know routing.delta; the shapes here are the same on purpose, so that the hub's
deltas go in and what comes out reads like its failures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from bgp.paths import Address, Advertisement, Family, Peer, Prefix

AdvertisementKey = tuple[Address, Prefix]


class BgpFailure(Exception):
    """Something could not be done; the sentence says what and why. Trying again may help."""


class Unsayable(ValueError):
    """An advertisement that a session cannot carry; the sentence says why."""


def as_said_to(peer: Peer, advertisement: Advertisement) -> Advertisement:
    """``advertisement`` with a next hop that the session with ``peer`` can carry.

    An IPv4 prefix may have an IPv6 next hop where both sides speak RFC 8950; nothing else has one
    of another family, and our own address is of the session's.

    Raises:
        Unsayable: the family is not configured, or the next hop is not of the prefix's.
    """
    prefix = advertisement.prefix
    if Family.of(prefix) not in peer.families:
        raise Unsayable(f"{peer.address} is not configured for {Family.of(prefix).value}")
    hop = peer.local_address if advertisement.next_hop is None else advertisement.next_hop
    if hop.version == prefix.version:
        return advertisement
    if prefix.version == 4 and peer.extended_next_hop:
        # Spelled out: ExaBGP's `self` is an address of the prefix's family.
        return replace(advertisement, next_hop=hop)
    raise Unsayable(f"{prefix} needs a next hop of its own family; {hop} is not")


class AdvertisementDelta(Protocol):
    """What ``apply`` needs of routing.delta.Delta."""

    @property
    def create(self) -> Mapping[AdvertisementKey, Advertisement]:
        """To announce."""

    @property
    def replace(self) -> Mapping[AdvertisementKey, tuple[Advertisement, Advertisement]]:
        """(old, new): to announce anew; BGP replaces implicitly."""

    @property
    def delete(self) -> Mapping[AdvertisementKey, Advertisement]:
        """To withdraw."""


@dataclass(frozen=True, slots=True)
class NotSent:
    """One announcement or withdrawal that did not happen. Fields as in routing.delta.Failure."""

    key: AdvertisementKey
    operation: str
    error: str
