"""What has to be remembered of sessions from pass to pass, and why each thing has to be. Pure.

A pass is a function of what is there now; these four are not there to be read:

  * our end of a session: the kernel has no answer while a link is down, and another end would reset
    a session that would have survived the flap;
  * sessions that are asked for no more and carry traffic still (``handover``);
  * peers that were closed for sending too much: once closed they send nothing, and a pass without
    memory would open them again at once;
  * since when the node is being drained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bgp.paths import Path
from routing.datastore.snapshot import LimitAction
from routing.drain import DRAIN_WAIT_S, DrainPhase, drain_phase
from routing.drain import next_change_s as drain_change_s
from routing.handover import Handover, is_covered
from routing.links import LinkState, connected_link, local_addresses
from routing.routes import Address
from routing.topology import SessionIntent, SessionKind, Topology, source_of

CLOSED_FOR_S = 600.0
"""How long a peer that sent too many prefixes stays closed. It is tried again then: whoever mends
the peer at night must not have to touch every node as well."""


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """What a pass takes from the memory; the fields are those of ``desired.Inputs``."""

    topology: Topology = field(default_factory=Topology)
    sources: Mapping[Address, Address] = field(default_factory=dict)
    lingering: Mapping[Address, SessionIntent] = field(default_factory=dict)
    closed: Mapping[Address, str] = field(default_factory=dict)
    phase: DrainPhase = DrainPhase.SERVING


@dataclass(frozen=True, slots=True)
class _Closing:
    reason: str
    since_s: float
    limit: tuple[int | None, LimitAction]


_Ends = tuple[Address | None, bool, tuple[Address, ...]]


class SessionMemory:
    """One agent's. ``step`` is called once a pass; ``plan`` is what it last said."""

    def __init__(self) -> None:
        self.plan = SessionPlan()
        self._sources: dict[Address, tuple[_Ends, Address]] = {}
        self._handover = Handover()
        self._closings: dict[Address, _Closing] = {}
        self._draining_since_s: float | None = None

    # -- our end ---------------------------------------------------------------------------

    def to_ask(self, topology: Topology, links: Mapping[str, LinkState]) -> list[Address]:
        """The peers for which the kernel's choice of source is needed."""
        return [
            intent.address
            for intent in topology.sessions
            if source_of(intent, links) is None and self._kept(intent, links) is None
        ]

    def _kept(self, intent: SessionIntent, links: Mapping[str, LinkState]) -> Address | None:
        """The end used so far, for a peer that no link leads to right now."""
        known = self._sources.get(intent.address)
        if known is None or known[0] != _ends(intent) or intent.is_source_free:
            return None
        is_here = known[1] in local_addresses(links)
        return known[1] if is_here and connected_link(intent.address, links) is None else None

    def _choose(
        self,
        intent: SessionIntent,
        links: Mapping[str, LinkState],
        asked: Mapping[Address, Address],
    ) -> Address | None:
        laid_down = source_of(intent, links)
        if intent.kind is not SessionKind.ROUTER or intent.source_address is not None:
            return laid_down
        found = self._kept(intent, links) or laid_down or asked.get(intent.address)
        if found is not None:
            return found
        known = self._sources.get(intent.address)
        return known[1] if known is not None and known[0] == _ends(intent) else None

    # -- the rest --------------------------------------------------------------------------

    def step(
        self,
        topology: Topology,
        *,
        links: Mapping[str, LinkState],
        asked: Mapping[Address, Address],
        settled: Iterable[Address],
        used: Iterable[Path],
        is_drained: bool,
        announces: bool | None,
        now_s: float,
    ) -> SessionPlan:
        """The plan of the pass that begins now.

        Args:
            topology: the sessions asked for by a store that was read just now.
            asked: the kernel's choice of source, for ``to_ask``.
            settled: peers that have sent all they have and have got all of ours.
            used: the paths that the last pass used.
            is_drained: whether the operator wants this node out of service.
            announces: whether anything is announced at present; None when that is not known.
        """
        wanted = {intent.address: intent for intent in topology.sessions}
        for address, intent in wanted.items():
            source = self._choose(intent, links, asked)
            if source is not None:
                self._sources[address] = _ends(intent), source
        covered = is_covered(used, self._handover.lingering)
        self._handover = self._handover.step(wanted, settled, is_covered=covered, now_s=now_s)
        lingering = {a: each.session for a, each in self._handover.lingering.items()}
        self._sources = {
            address: known
            for address, known in self._sources.items()
            if address in wanted or address in lingering
        }
        self._closings = {
            address: closing
            for address, closing in self._closings.items()
            if address in wanted
            and closing.limit == _limit(wanted[address])
            and now_s - closing.since_s < CLOSED_FOR_S
        }
        self.plan = SessionPlan(
            topology=topology,
            sources={address: source for address, (_, source) in self._sources.items()},
            lingering=lingering,
            closed={address: closing.reason for address, closing in self._closings.items()},
            phase=self._drain(is_drained=is_drained, announces=announces, now_s=now_s),
        )
        return self.plan

    def close(
        self, to_close: Mapping[Address, str], sessions: Iterable[SessionIntent], now_s: float
    ) -> None:
        """Remembers which peers a pass has closed for sending too much, and why."""
        for intent in sessions:
            if intent.address in to_close:
                self._closings[intent.address] = _Closing(
                    to_close[intent.address], now_s, _limit(intent)
                )

    def _drain(self, *, is_drained: bool, announces: bool | None, now_s: float) -> DrainPhase:
        if not is_drained:
            self._draining_since_s = None
            return DrainPhase.SERVING
        if self._draining_since_s is None:
            if announces is None:
                # Nobody can be told now; the clock starts when somebody can.
                return DrainPhase.SHUTTING
            # Nothing is announced: an agent before this one has drained the node.
            self._draining_since_s = now_s if announces else now_s - 2 * DRAIN_WAIT_S
        return drain_phase(now_s - self._draining_since_s)

    def next_change_s(self, now_s: float) -> float | None:
        """In how many seconds the clock alone changes the plan; None is never."""
        draining_s = None if self._draining_since_s is None else now_s - self._draining_since_s
        closings = [max(0.0, c.since_s + CLOSED_FOR_S - now_s) for c in self._closings.values()]
        changes = [self._handover.next_change_s(now_s), drain_change_s(draining_s), *closings]
        return min((each for each in changes if each is not None), default=None)


def _ends(intent: SessionIntent) -> _Ends:
    """What the choice of our end rests on; when it changes, what was remembered is void."""
    return intent.source_address, intent.is_source_free, intent.node_addresses


def _limit(intent: SessionIntent) -> tuple[int | None, LimitAction]:
    return intent.max_prefixes, intent.limit_action
