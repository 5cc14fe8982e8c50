"""One daemon and our node, as two operators would set them up; what every case begins with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lab.interop.daemon import Daemon
from lab.interop.model import Address, DaemonPlan, Neighbour, Origin, Prefix
from lab.interop.stand import (
    DEADLINE_S,
    FAR_BLOCKS,
    NODE,
    NODE_ASN,
    OWN_BLOCKS,
    TOR_ASN,
    Rack,
    Stand,
)
from lab.plan import LabFailure

Families = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """A configured pair: the daemon, its plan and the address we know it by."""

    daemon: Daemon
    plan: DaemonPlan
    rack: Rack

    @property
    def address(self) -> Address:
        return self.plan.address


def plan_for(
    rack: Rack,
    *,
    families: Families = (4,),
    version: int = 4,
    origins: Iterable[Origin] | None = None,
    asn: int = TOR_ASN,
    node_asn: int = NODE_ASN,
    **neighbour: Any,
) -> DaemonPlan:
    """A daemon in ``rack`` with us as its neighbour.

    Args:
        rack: where.
        families: what is exchanged.
        version: of the session's addresses.
        origins: what it announces; None is one far block of each family.
        asn: its own.
        node_asn: ours.
        neighbour: further fields of Neighbour.
    """
    if origins is None:
        origins = [Origin(prefix) for prefix in far_blocks(families)]
    return DaemonPlan(
        asn=asn,
        router_id=rack.address,
        address=rack.of_family(version),
        address6=rack.address6,
        neighbour=Neighbour(rack.node_end(version), node_asn, families, **neighbour),
        origins=tuple(origins),
    )


def far_blocks(families: Families, count: int = 1) -> list[Prefix]:
    """The first ``count`` blocks behind the routers, of each family."""
    return [p for v in families for p in [b for b in FAR_BLOCKS if b.version == v][:count]]


def own_blocks(families: Families) -> list[Prefix]:
    """The node's blocks of these families."""
    return [prefix for prefix in OWN_BLOCKS if prefix.version in families]


def begin(
    stand: Stand, plan: DaemonPlan, *, number: int = 0, spec: Mapping[str, Any] | None = None
) -> Link:
    """The daemon started, the peer applied; nothing waited for."""
    daemon = stand.daemon(number)
    daemon.configure(plan)
    daemon.start()
    rack = stand.racks[number]
    told: dict[str, Any] = {"peerIP": str(plan.address), "asNumber": plan.asn, "node": NODE}
    stand.peer(f"tor{number + 1}", told | dict(spec or {}))
    return Link(daemon, plan, rack)


def wait_for_session(stand: Stand, link: Link, *, deadline_s: float = DEADLINE_S) -> None:
    """Both sides say Established."""
    stand.wait(
        lambda: stand.missing_session(link.daemon, link.address),
        "the session",
        deadline_s=deadline_s,
    )


def wait_for_our_blocks(stand: Stand, link: Link) -> None:
    """The daemon has what we announce."""
    blocks = own_blocks(link.plan.neighbour.families)
    stand.wait(lambda: stand.missing_at_peer(link.daemon, blocks), "our blocks there")


def settle(stand: Stand, link: Link) -> None:
    """Both sides Established, our blocks there, theirs in our kernel."""
    wait_for_session(stand, link)
    wait_for_our_blocks(stand, link)
    wanted = {o.prefix: {link.rack.of_family(o.prefix.version)} for o in link.plan.origins}
    stand.wait(lambda: stand.missing_in_kernel(wanted), "their routes in our kernel")


def expect(is_so: bool, otherwise: str) -> None:
    """Raises LabFailure with ``otherwise`` unless it is so."""
    if not is_so:
        raise LabFailure(otherwise)


def when(is_so: bool, sentence: str) -> list[str]:
    """What is still missing: the sentence when it is so, nothing otherwise."""
    return [sentence] if is_so else []
