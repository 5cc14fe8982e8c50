"""The words of RFC 4271 as frozen values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from struct import unpack

from bgp.reasons import reason_now

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network


class Family(Enum):
    """Address families we speak, by the names ExaBGP uses (AFI/SAFI 1/1 and 2/1)."""

    IPV4 = "ipv4 unicast"
    IPV6 = "ipv6 unicast"

    @classmethod
    def of(cls, prefix: Prefix) -> Family:
        return cls.IPV4 if prefix.version == 4 else cls.IPV6


class SessionState(Enum):
    """ExaBGP says ``connected`` several times before ``up`` (collision); only ``up`` counts."""

    IDLE = "Idle"
    CONNECTED = "Connect"
    ESTABLISHED = "Established"


class Origin(Enum):
    """ORIGIN (RFC 4271 section 4.3), lower is preferred."""

    IGP = 0
    EGP = 1
    INCOMPLETE = 2


@dataclass(frozen=True, slots=True)
class Peer:
    """One configured session of this node; ``address`` is its identity.

    Attributes:
        password: for TCP-MD5 (RFC 2385); never printed.
        ttl_security_hops: GTSM (RFC 5082): packets of peers further away than this are dropped.
        multihop_ttl: TTL we send on an eBGP session to a router off the link; None is 1.
        is_passive: we never connect, only accept. Needs ``listens``.
        listens: connections from the peer are accepted, on ``listen_port`` of ``local_address``.
        allowed_local_asns: how often our ASN may stand in a received AS_PATH.
        extended_next_hop: IPv4 prefixes may come and go with IPv6 next hops (RFC 8950).
    """

    name: str
    address: Address
    remote_asn: int
    local_asn: int
    local_address: Address
    router_id: IPv4Address
    port: int = 179
    hold_time_s: int = 9
    graceful_restart_s: int = 120
    families: tuple[Family, ...] = (Family.IPV4, Family.IPV6)
    password: str | None = field(default=None, repr=False)
    ttl_security_hops: int | None = None
    multihop_ttl: int | None = None
    is_passive: bool = False
    listens: bool = False
    listen_port: int = 179
    allowed_local_asns: int = 0
    extended_next_hop: bool = False

    @property
    def is_ebgp(self) -> bool:
        return self.remote_asn != self.local_asn


@dataclass(frozen=True, slots=True)
class Advertisement:
    """A prefix we want a peer to hold. ``next_hop`` None means our own address on that session.

    ``communities`` as ``a:b``, ``large_communities`` as ``a:b:c``. ``prepend``: how many times more
    our ASN stands in AS_PATH. ``local_pref`` goes to internal peers only.
    """

    prefix: Prefix
    next_hop: Address | None = None
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()
    med: int | None = None
    local_pref: int | None = None
    prepend: int = 0

    def __post_init__(self) -> None:
        # A route has a set of them: in two orders it is still one route, and what ExaBGP reads
        # back is in ascending order.
        object.__setattr__(self, "communities", _in_order(self.communities))
        object.__setattr__(self, "large_communities", _in_order(self.large_communities))


def _in_order(communities: tuple[str, ...]) -> tuple[str, ...]:
    """Each once, by its numbers; what is none is left for others to refuse, at the end."""

    def numbers(text: str) -> tuple[int, tuple[int, ...], str]:
        parts = text.split(":")
        if all(part.isascii() and part.isdigit() and len(part) <= 10 for part in parts):
            return 0, tuple(map(int, parts)), ""
        return 1, (), text

    return tuple(sorted(dict.fromkeys(communities), key=numbers))


@dataclass(frozen=True, slots=True)
class Path:
    """A route learned from one peer; (peer, prefix) is its key, for a withdraw has no next hop.

    ``as_path`` is flat for loop checks; ``as_path_length`` counts an AS_SET once (RFC 4271 section
    9.1.2.2). ``local_pref`` and ``med`` are None when the attribute was absent.
    """

    peer: Address
    prefix: Prefix
    next_hop: Address
    as_path: tuple[int, ...] = ()
    as_path_length: int = 0
    origin: Origin = Origin.INCOMPLETE
    med: int | None = None
    local_pref: int | None = None
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()
    originator_id: IPv4Address | None = None
    """ORIGINATOR_ID (RFC 4456): a reflector sent our own route back when it is our router id."""
    cluster_list: tuple[IPv4Address, ...] = ()
    """CLUSTER_LIST (RFC 4456), the reflectors it has passed, last one first; empty on eBGP."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class PathAttributes:
    """All of a Path but its prefix: what one peer says alike of many prefixes.

    There is one object of a kind (``adj_rib.AttributeSets``): two are equal when they are the same
    one, so that a hundred thousand routes are compared, and decided on, by identity.
    """

    peer: Address
    next_hop: Address
    as_numbers: bytes
    """Of the AS path, each in four octets: as objects they take three times as much."""
    as_path_length: int = 0
    origin: Origin = Origin.INCOMPLETE
    med: int | None = None
    local_pref: int | None = None
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()
    originator_id: IPv4Address | None = None
    cluster_list: tuple[IPv4Address, ...] = ()
    first: PathAttributes | None = field(default=None, repr=False)
    """The first that was known of those that differ from it in AS numbers alone; None: it is the
    first itself. In a cluster every node is a path of its own, and nothing else tells them apart;
    but of those that a hostile peer sends each is the first, and a second object for each is what
    an agent's memory would go into."""

    @property
    def as_path(self) -> tuple[int, ...]:
        """As a Path has it."""
        return unpack(f">{len(self.as_numbers) // 4}I", self.as_numbers)

    @property
    def kin(self) -> PathAttributes:
        """The one that stands for all that differ in AS numbers alone."""
        return self.first or self

    def with_numbers(self, as_numbers: bytes) -> PathAttributes:
        """Another of its kin; ``adj_rib.AttributeSets`` sees that there is one alone."""
        return PathAttributes(
            self.peer,
            self.next_hop,
            as_numbers,
            self.as_path_length,
            self.origin,
            self.med,
            self.local_pref,
            self.communities,
            self.large_communities,
            self.originator_id,
            self.cluster_list,
            self,
        )

    def path(self, prefix: Prefix) -> Path:
        """The path to ``prefix`` with these attributes."""
        return Path(
            self.peer,
            prefix,
            self.next_hop,
            self.as_path,
            self.as_path_length,
            self.origin,
            self.med,
            self.local_pref,
            self.communities,
            self.large_communities,
            self.originator_id,
            self.cluster_list,
        )


@dataclass(frozen=True, slots=True)
class GracefulRestart:
    """A peer's graceful restart capability (RFC 4724 section 3), for the families we speak.

    Attributes:
        restart_time_s: how long its session may be away.
        families: whose routes may be kept meanwhile.
        preserved: of these, whose forwarding state it says has outlived its last restart.
    """

    restart_time_s: int
    families: frozenset[Family]
    preserved: frozenset[Family]


@dataclass(frozen=True, slots=True)
class Opened:
    """The OPEN of ``peer`` has come; the session is not up yet, and may never be."""

    peer: Address
    graceful_restart: GracefulRestart | None


@dataclass(frozen=True, slots=True)
class SessionUp:
    """The session with ``peer`` is Established."""

    peer: Address


@dataclass(frozen=True, slots=True)
class SessionDown:
    """The session with ``peer`` is not, or not any more, Established; why, in ExaBGP's words."""

    peer: Address
    reason: str


@dataclass(frozen=True, slots=True)
class Connected:
    """TCP is open to ``peer``; nothing more may be concluded from it."""

    peer: Address


@dataclass(frozen=True, slots=True)
class Rejection:
    """A route in an UPDATE that we cannot use: which, and the reason as a token."""

    prefix: Prefix | None
    reason: str


@dataclass(frozen=True, slots=True)
class Update:
    """What one UPDATE of ``peer`` says."""

    peer: Address
    announced: tuple[Path, ...] = ()
    withdrawn: tuple[Prefix, ...] = ()
    rejected: tuple[Rejection, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteBatch:
    """What several UPDATEs of ``peer`` say together: the last word on each prefix, by its key
    (``bgp.nlri``); None is withdrawn, or refused as one of ``rejected``."""

    peer: Address
    routes: Mapping[bytes, PathAttributes | None]
    rejected: tuple[Rejection, ...] = ()


@dataclass(frozen=True, slots=True)
class EndOfRib:
    """``peer`` has sent all it had of ``family`` (RFC 4724 section 2)."""

    peer: Address
    family: Family


@dataclass(frozen=True, slots=True)
class RefreshEnd:
    """``peer`` has sent again all it has of ``family``, as asked (RFC 7313 section 4, EoRR)."""

    peer: Address
    family: Family


@dataclass(frozen=True, slots=True)
class Notification:
    """A NOTIFICATION on the session, in or out; for people."""

    peer: Address | None
    text: str


@dataclass(frozen=True, slots=True)
class SpeakerShutdown:
    """ExaBGP said it is ending in good order."""


Event = (
    Opened
    | SessionUp
    | SessionDown
    | Connected
    | Update
    | RouteBatch
    | EndOfRib
    | RefreshEnd
    | Notification
    | SpeakerShutdown
)


@dataclass(slots=True)
class PeerStatus:
    """What the speaker driver knows of one session; a view for people and for the gates."""

    address: Address
    state: SessionState = SessionState.IDLE
    since_s: float = 0.0
    last_reason: str = ""
    """How it ended, or how the peer refused the last attempt."""
    flaps: int = 0
    end_of_rib: set[Family] = field(default_factory=set)
    routes_received: int = 0
    routes_stale: int = 0
    """Of those received: kept while the peer or ExaBGP restarts, and not heard again yet."""
    routes_advertised: int = 0
    attempt: str = ""
    """What the last attempt to open it came to, when the peer said nothing."""

    @property
    def reason(self) -> str:
        """Why it is down now, in words; meaningless while it is up."""
        return reason_now(self.attempt, self.last_reason)
