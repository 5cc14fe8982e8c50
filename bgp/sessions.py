"""What we believe of each session and its routes: a fold over events and read-backs. Pure.

Two things make it more than a dictionary. After every new connection to ExaBGP the beliefs are
corrected by what it reports, while events keep coming; an event is newer than any report, so what
it touched is left alone. And a peer is *complete* when it has told us all it has, which is what
permits anybody to conclude that a route it did not mention is gone.

And it is the helper of RFC 4724 section 4.2: the paths of a peer that promised to come back are
kept as stale when its connection breaks. They go when it does not come back in its restart time,
when it says that its forwarding state is lost, when it has sent all it has, and when it breaks off
again before that. A NOTIFICATION, in or out, is no restart: neither is a hold timer that ran out,
or graceful restart would make every failure last as long as a restart may.

Time is passed in, in seconds of any one clock.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace

from bgp.adj_rib import AdjRibIn, AttributeSets
from bgp.exabgp_api import SHUTTING_DOWN, NeighborState
from bgp.judgement import NEXT_HOP_LINK_LOCAL
from bgp.nlri import Nlri, family_of, nlri_of
from bgp.paths import (
    Address,
    EndOfRib,
    Event,
    Family,
    Notification,
    Opened,
    Path,
    PeerStatus,
    Prefix,
    RefreshEnd,
    Rejection,
    RouteBatch,
    SessionDown,
    SessionState,
    SessionUp,
    SpeakerShutdown,
    Update,
)
from bgp.reasons import CLOSED_BY_US, NOTIFIED, is_telling, session_reason

RESTART_HOLD_S = 120.0
"""How long the paths of a lost ExaBGP are believed, from the first loss on; and those of a peer
whose OPEN we have not seen, or that is back and neither ends nor pauses its announcements."""
END_OF_RIB_WAIT_S = 30.0
"""A session of this age whose peer has gone quiet is complete without End-of-RIB: the peer may not
send any (it need not), or it sent it before we came."""
QUIET_S = 2.0
REFRESH_QUIET_S = 5.0
"""The same after a route refresh; a peer without RFC 7313 does not mark where it ends."""
SAME_SESSION_S = 2.0
"""ExaBGP counts a session's age in whole seconds; two readings this close are one session."""
MAX_REJECTIONS = 256


@dataclass(frozen=True, slots=True)
class RejectedRoute:
    """A route that a peer sent and that we cannot use."""

    peer: Address
    prefix: Prefix | None
    reason: str


@dataclass(slots=True)
class _Session:
    status: PeerStatus
    local_address: Address | None = None
    is_ebgp: bool = True
    negotiated: frozenset[Family] | None = None
    last_update_s: float = 0.0
    refreshing: set[Family] = field(default_factory=set)
    stale_since_s: float | None = None
    stale_hold_s: float = RESTART_HOLD_S
    is_peer_restarting: bool = False
    """The stale paths await the peer, not our own ExaBGP."""
    said: str = ""
    """What the NOTIFICATION was that came on this connection."""
    opened: Opened | None = None
    """The present session's OPEN; None when it came before we were there."""
    has_graceful_restart: bool = False
    was_complete: bool = False


class Sessions:
    """All sessions and the Adj-RIB-In. One task calls it."""

    def __init__(self) -> None:
        self.attributes = AttributeSets()
        self.rib = AdjRibIn(attributes=self.attributes)
        self._sessions: dict[Address, _Session] = {}
        self._rejections: collections.deque[RejectedRoute] = collections.deque(
            maxlen=MAX_REJECTIONS
        )
        self._configured: frozenset[Address] | None = None
        self._helped: frozenset[Address] = frozenset()
        self._touched: dict[Address, set[Nlri]] | None = None
        self._bounced: set[Address] = set()
        self._is_current = False

    # -- looking -------------------------------------------------------------------------------

    def statuses(self) -> dict[Address, PeerStatus]:
        """A copy of each session's status, with how many routes it has sent."""
        return {
            peer: replace(
                session.status,
                end_of_rib=set(session.status.end_of_rib),
                routes_received=self.rib.count(peer),
                routes_stale=self.rib.stale_count(peer),
            )
            for peer, session in self._sessions.items()
        }

    def rejections(self) -> tuple[RejectedRoute, ...]:
        """The last MAX_REJECTIONS of them, oldest first."""
        return tuple(self._rejections)

    def is_established(self, peer: Address) -> bool:
        """Whether the session is up, as far as we know."""
        session = self._sessions.get(peer)
        return session is not None and session.status.state is SessionState.ESTABLISHED

    def negotiated(self, peer: Address) -> frozenset[Family] | None:
        """The families of the present session; None when not known (yet)."""
        session = self._sessions.get(peer)
        return None if session is None else session.negotiated

    def local_address(self, peer: Address) -> Address | None:
        """Our end of the session, which is what ``next-hop self`` stands for."""
        session = self._sessions.get(peer)
        return None if session is None else session.local_address

    def lacks_negotiated(self) -> bool:
        """Whether some session is up and its families are still to be asked for."""
        return any(
            session.status.state is SessionState.ESTABLISHED and session.negotiated is None
            for session in self._sessions.values()
        )

    def is_complete(self, peer: Address, now_s: float) -> bool:
        """Whether ``peer`` has sent all it has, as well as that can be known."""
        session = self._sessions.get(peer)
        return session is not None and self._has_said_all(session, now_s)

    def _has_said_all(self, session: _Session, now_s: float) -> bool:
        if session.status.state is not SessionState.ESTABLISHED:
            return False
        if not self._is_current:
            # Without ExaBGP an established session is a memory and its silence is ours.
            return False
        quiet_s = now_s - session.last_update_s
        if session.refreshing:
            return quiet_s >= REFRESH_QUIET_S
        if session.negotiated is not None and session.status.end_of_rib >= session.negotiated:
            return True
        return now_s - session.status.since_s >= END_OF_RIB_WAIT_S and quiet_s >= QUIET_S

    # -- changing ------------------------------------------------------------------------------

    def configure(
        self, local_addresses: Mapping[Address, Address], *, helped: Set[Address] = frozenset()
    ) -> None:
        """These peers and no others, each with our address; what the others said is forgotten.

        Args:
            local_addresses: by peer.
            helped: those to whom we announce graceful restart; only these have their paths kept.
        """
        self._configured = frozenset(local_addresses)
        self._helped = frozenset(helped)
        for peer in [*self._sessions, *self.rib.peers()]:
            if peer not in self._configured:
                self._sessions.pop(peer, None)
                self.rib.drop(peer)
        for peer, local_address in local_addresses.items():
            self._session(peer).local_address = local_address

    def event(self, event: Event, now_s: float) -> str | None:
        """Folds one event in.

        Returns:
            What changed, as a token for ``on_change``; None when nothing did.
        """
        if isinstance(event, SpeakerShutdown):
            return "speaker_shutdown"
        peer = event.peer
        if peer is None or (self._configured is not None and peer not in self._configured):
            return None
        if isinstance(event, Update | RouteBatch):
            return self._update(event, now_s)
        session = self._session(peer)
        if isinstance(event, Opened):
            session.opened = event
            session.has_graceful_restart = event.graceful_restart is not None
            return None
        if isinstance(event, SessionUp):
            return self._up(session, now_s)
        if isinstance(event, SessionDown):
            return self._down(session, event.reason, now_s)
        if isinstance(event, EndOfRib):
            session.status.end_of_rib.add(event.family)
            self.rib.sweep(peer, event.family)
            return f"end_of_rib:{peer}"
        if isinstance(event, RefreshEnd):
            session.refreshing.discard(event.family)
            self.rib.sweep(peer, event.family)
            return f"refreshed:{peer}"
        if isinstance(event, Notification):
            session.status.last_reason = session.said = event.text
        elif session.status.state is SessionState.IDLE:
            session.status.state = SessionState.CONNECTED
        return None

    def lost(self, now_s: float) -> None:
        """The connection to ExaBGP is gone: everything is believed for a while, as stale."""
        self._is_current = False
        for peer in self.rib.peers():
            self._mark_stale(peer, now_s)

    def exabgp_restarted(self, now_s: float) -> None:
        """Another ExaBGP has taken its place: no session has survived."""
        for session in self._sessions.values():
            was_up = session.status.state is SessionState.ESTABLISHED
            session.status.flaps += was_up
            self._end(session, "ExaBGP restarted", now_s)

    def begin_read_back(self) -> None:
        """From here on events are remembered, so that reports older than they lose."""
        self._touched = {}
        self._bounced = set()

    def read_back(
        self,
        states: Iterable[NeighborState],
        dump: Iterable[tuple[Address, Path | Rejection]],
        *,
        is_same_exabgp: bool,
        now_s: float,
        whole: Set[Address] | None = None,
    ) -> set[tuple[Address, Family]]:
        """Corrects the beliefs by what ExaBGP reports; ends what ``begin_read_back`` began.

        Args:
            states: the sessions.
            dump: what their peers have announced.
            is_same_exabgp: it is the process that was there before.
            whole: the peers of which everything is in ``dump`` or came as an event meanwhile; None:
                all of them. Of the others, what is known stays until they have sent it again.

        Returns:
            For which (peer, family) the peer must be asked to send its routes again.
        """
        touched, self._touched = self._touched or {}, None
        reported = {state.peer: state for state in states if self._is_ours(state.peer)}
        for state in reported.values():
            self._correct(state, now_s)
        for peer in self._sessions.keys() - reported.keys() - self._bounced:
            self._end(self._sessions[peer], "not in ExaBGP's configuration", now_s)
        by_peer: dict[Address, list[Path | Rejection]] = {}
        for peer, entry in dump:
            by_peer.setdefault(peer, []).append(entry)
        again: set[tuple[Address, Family]] = set()
        for peer in {*reported, *self.rib.peers()} - self._bounced:
            if self.is_established(peer) and whole is not None and peer not in whole:
                again |= self._to_ask_again(peer, now_s)
            elif self.is_established(peer):
                keep = set(touched.get(peer, ()))
                entries = [
                    entry
                    for entry in by_peer.get(peer, ())
                    if entry.prefix is None or nlri_of(entry.prefix) not in keep
                ]
                heard = {nlri_of(entry.prefix) for entry in entries if entry.prefix is not None}
                if not is_same_exabgp:
                    # What the new ExaBGP has not heard again yet stays stale, until End-of-RIB.
                    keep |= self.rib.nlris(peer) - heard
                elif self._session(peer).is_peer_restarting:
                    # So does what a peer that is just back has not said again.
                    keep |= self.rib.stale_nlris(peer) - heard
                again |= self._correct_table(peer, entries, keep=keep, now_s=now_s)
            elif is_same_exabgp and not self._session(peer).is_peer_restarting:
                self.rib.drop(peer)
        self._bounced = set()
        self._is_current = True
        return again

    def correct_sessions(self, states: Iterable[NeighborState], now_s: float) -> None:
        """The sessions' part of a read-back, for those whose routes are still to be told."""
        for state in states:
            if self._is_ours(state.peer):
                self._correct(state, now_s)

    def correct_states(self, states: Iterable[NeighborState]) -> None:
        """Takes over what is now known of sessions that are up: families, our address."""
        for state in states:
            if self._is_ours(state.peer) and state.is_established:
                session = self._session(state.peer)
                session.local_address = state.local_address
                session.is_ebgp = state.is_ebgp
                session.has_graceful_restart = state.has_graceful_restart
                if session.status.state is SessionState.ESTABLISHED:
                    session.negotiated = state.families

    def is_any_down(self) -> bool:
        """Whether some configured session is not up, so that its attempts are worth a look."""
        return any(
            session.status.state is not SessionState.ESTABLISHED
            for session in self._sessions.values()
        )

    def note_attempts(self, attempts: Mapping[Address, str]) -> list[Address]:
        """Takes over what the last attempt to open each session came to.

        Returns:
            The peers of which it is news.
        """
        changed = []
        for peer, session in self._sessions.items():
            is_up = session.status.state is SessionState.ESTABLISHED
            attempt = "" if is_up else attempts.get(peer, "")
            if attempt != session.status.attempt:
                session.status.attempt = attempt
                changed.append(peer)
        return changed

    def tick(self, now_s: float) -> list[str]:
        """What the passing of time alone has changed: sweeps, and sessions now complete."""
        changes = []
        # Four times a second for each session, of which there are hundreds: hashing an address is
        # what takes long, so none is looked up unless there is something to do.
        is_any_stale = self.rib.has_stale()
        for peer, session in self._sessions.items():
            is_complete = self._has_said_all(session, now_s)
            if is_complete:
                session.refreshing.clear()
                self._forget_staleness(session)
                if is_any_stale and self.rib.sweep(peer):
                    changes.append(f"swept:{peer}")
                if not session.was_complete:
                    changes.append(f"complete:{peer}")
            session.was_complete = is_complete
            since_s = session.stale_since_s
            if since_s is not None and now_s - since_s >= session.stale_hold_s:
                self._forget_staleness(session)
                if self.rib.sweep(peer):
                    changes.append(f"stale_hold_over:{peer}")
        return changes

    # -- inside --------------------------------------------------------------------------------

    def _is_ours(self, peer: Address) -> bool:
        return self._configured is None or peer in self._configured

    def _session(self, peer: Address) -> _Session:
        if peer not in self._sessions:
            self._sessions[peer] = _Session(PeerStatus(peer))
        return self._sessions[peer]

    def _mark_stale(self, peer: Address, now_s: float) -> None:
        session = self._session(peer)
        self.rib.mark_stale(peer)
        # Counted from the first loss: a speaker that keeps dying must not keep routes for ever.
        if session.stale_since_s is None:
            session.stale_since_s = now_s
            session.stale_hold_s = RESTART_HOLD_S

    def _forget_staleness(self, session: _Session) -> None:
        session.stale_since_s = None
        session.is_peer_restarting = False

    def _end(self, session: _Session, reason: str, now_s: float) -> None:
        if session.status.state is not SessionState.IDLE:
            session.status.since_s = now_s
        session.status.state = SessionState.IDLE
        session.status.last_reason = reason
        session.status.end_of_rib.clear()
        session.negotiated = None
        session.refreshing.clear()

    def _start(self, session: _Session, since_s: float, now_s: float) -> None:
        session.status.state = SessionState.ESTABLISHED
        session.status.attempt = ""
        session.status.since_s = since_s
        session.status.end_of_rib.clear()
        session.negotiated = None
        session.refreshing.clear()
        session.last_update_s = now_s

    def _up(self, session: _Session, now_s: float) -> str:
        peer = session.status.address
        self._bounced.add(peer)
        self._start(session, now_s, now_s)
        if session.is_peer_restarting:
            # Its restart time is over: it is back. From here on it has as long as our own side.
            session.stale_since_s, session.stale_hold_s = now_s, RESTART_HOLD_S
            if session.opened is not None:
                offer = session.opened.graceful_restart
                for family in set(Family) - (offer.preserved if offer else frozenset()):
                    self.rib.sweep(peer, family)
        return f"session_up:{peer}"

    def _down(self, session: _Session, reason: str, now_s: float) -> str | None:
        peer = session.status.address
        was_up = session.status.state is SessionState.ESTABLISHED
        families = self._families_kept(session, reason)
        before = session.status.last_reason
        self._end(session, session_reason(reason, said=session.said), now_s)
        session.said = ""
        if not was_up and before and not is_telling(reason):
            # That the next attempt failed as well says less than why the session ended.
            session.status.last_reason = before
        opened, session.opened = session.opened, None
        if not was_up:
            # Attempts fail and connections collide before a session comes up; what an earlier
            # ExaBGP heard from the peer is still waiting for it.
            return None
        self._bounced.add(peer)
        session.status.flaps += 1
        if reason == SHUTTING_DOWN:
            self._mark_stale(peer, now_s)
        else:
            # What is stale still has waited through one restart; there is no second.
            self.rib.sweep(peer)
            self._forget_staleness(session)
            self.rib.keep_families(peer, families)
            if self.rib.count(peer):
                self._mark_stale(peer, now_s)
                offer = opened.graceful_restart if opened is not None else None
                if reason != CLOSED_BY_US:
                    session.is_peer_restarting = True
                    session.stale_hold_s = offer.restart_time_s if offer else RESTART_HOLD_S
        return f"session_down:{peer}"

    def _families_kept(self, session: _Session, reason: str) -> frozenset[Family]:
        """Whose paths outlive the end of an established session."""
        if reason.startswith(NOTIFIED) or session.status.address not in self._helped:
            return frozenset()
        if session.opened is not None:
            offer = session.opened.graceful_restart
            return offer.families if offer is not None else frozenset()
        # The OPEN came before this agent did; ExaBGP tells that the capability was in it, no more.
        return (session.negotiated or frozenset()) if session.has_graceful_restart else frozenset()

    def _update(self, update: Update | RouteBatch, now_s: float) -> str | None:
        session = self._session(update.peer)
        session.last_update_s = now_s
        batch = update if isinstance(update, RouteBatch) else self.rib.batch_of(update)
        if self._touched is not None:
            self._touched.setdefault(update.peer, set()).update(batch.routes)
        changed, rejections = self.rib.apply(batch)
        self._reject(update.peer, rejections)
        return f"update:{update.peer}" if changed else None

    def _reject(self, peer: Address, rejections: Iterable[Rejection]) -> None:
        self._rejections.extend(RejectedRoute(peer, r.prefix, r.reason) for r in rejections)

    def _correct(self, state: NeighborState, now_s: float) -> None:
        session = self._session(state.peer)
        session.local_address = state.local_address
        session.is_ebgp = state.is_ebgp
        if state.peer in self._bounced:
            return
        if not state.is_established:
            if session.status.state is SessionState.ESTABLISHED:
                session.status.flaps += 1
                self._end(session, "down, unseen", now_s)
            return
        since_s = now_s - state.duration_s
        is_same = (
            session.status.state is SessionState.ESTABLISHED
            and abs(session.status.since_s - since_s) <= SAME_SESSION_S
        )
        if not is_same:
            # Another session than the one whose OPEN we saw.
            session.opened = None
            session.status.flaps += session.status.state is SessionState.ESTABLISHED
            self._start(session, since_s, now_s)
        session.last_update_s = now_s
        session.negotiated = state.families
        session.has_graceful_restart = state.has_graceful_restart

    def _to_ask_again(self, peer: Address, now_s: float) -> set[tuple[Address, Family]]:
        session = self._session(peer)
        if self.rib.count(peer):
            self._mark_stale(peer, now_s)
        families = session.negotiated or frozenset(Family)
        session.refreshing |= families
        return {(peer, family) for family in families}

    def _correct_table(
        self,
        peer: Address,
        entries: list[Path | Rejection],
        *,
        keep: set[Nlri],
        now_s: float,
    ) -> set[tuple[Address, Family]]:
        paths = [entry for entry in entries if isinstance(entry, Path)]
        rejected = [entry for entry in entries if isinstance(entry, Rejection)]
        hopless = {
            nlri_of(entry.prefix)
            for entry in rejected
            if entry.prefix is not None and entry.reason == NEXT_HOP_LINK_LOCAL
        }
        self._reject(peer, (r for r in rejected if r.reason != NEXT_HOP_LINK_LOCAL))
        still_stale = (self.rib.stale_nlris(peer) & keep) | (self.rib.nlris(peer) & hopless)
        self.rib.replace(peer, paths, keep=keep | hopless)
        self.rib.mark_stale(peer, still_stale)
        session = self._session(peer)
        if still_stale:
            session.stale_since_s = session.stale_since_s or now_s
        else:
            self._forget_staleness(session)
        families = {family_of(nlri) for nlri in hopless}
        session.refreshing |= families
        return {(peer, family) for family in families}
