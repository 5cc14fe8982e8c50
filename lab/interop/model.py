"""What is asked of a daemon, and what it says of itself, without its dialect. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from lab.plan import LabFailure

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network


class DaemonTrouble(LabFailure):
    """A daemon could not be started or asked; the sentence holds its last words."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A prefix that the daemon announces. Communities as ``a:b`` and ``a:b:c``."""

    prefix: Prefix
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Our node, as the daemon's operator writes it down.

    Attributes:
        families: 4 and 6, whatever the family of ``address``.
        max_prefixes: what the daemon accepts from us before it closes the session.
    """

    address: Address
    asn: int
    families: tuple[int, ...] = (4,)
    password: str | None = None
    is_ttl_secured: bool = False
    hold_time_s: int = 9
    restart_time_s: int = 120
    max_prefixes: int | None = None


@dataclass(frozen=True, slots=True)
class DaemonPlan:
    """One daemon with one neighbour: us.

    ``address6`` is its IPv6 address on our link: the next hop of IPv6 routes that go over a session
    over IPv4, for daemons that must be told.
    """

    asn: int
    router_id: IPv4Address
    address: Address
    address6: IPv6Address
    neighbour: Neighbour
    origins: tuple[Origin, ...] = ()


@dataclass(frozen=True, slots=True)
class RibRoute:
    """One path in the daemon's RIB that came from us."""

    prefix: Prefix
    next_hop: Address
    as_path: tuple[int, ...]
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """A session as the daemon shows it; ``state`` and ``last_error`` in its own words.

    ``updates_received`` counts UPDATE messages since the session's start, as far as it says.
    """

    is_established: bool
    state: str
    last_error: str = ""
    updates_received: int = 0
