"""Which paths are beyond what their peer may send, of very many. Pure.

``import_policy.within_limits`` says it of paths that are there as objects. A peer that exceeds its
limit by 50,000 prefixes, each with attributes of its own, must not cost an object each; here it is
said of the tables as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from heapq import nsmallest
from typing import Protocol

from bgp.adj_rib import Offers
from bgp.nlri import Nlri
from bgp.paths import PathAttributes
from routing.classes import PrefixClass, PrefixClasses
from routing.datastore.snapshot import LimitAction
from routing.import_policy import WARN_PERCENT
from routing.routes import Address
from routing.topology import SessionIntent

ASKED_AT_ONCE = 500
"""Attributes that the policy is asked about in one go."""

Beyond = Mapping[Nlri, frozenset[Address]]
"""Prefixes with the peers whose paths to them are beyond their limits."""


class Policy(Protocol):
    """What the import policy alone says."""

    def is_closed(self, there: PrefixClass, nlri: Nlri) -> bool:
        """Whether it is against ``nlri``, of this class, whatever is said of it."""

    def accepts(self, attributes: PathAttributes, nlri: Nlri) -> bool:
        """Whether it has nothing against ``nlri`` with these."""


Accepted = dict[PrefixClass, dict[PathAttributes, bool]]
"""What the policy says of a path, by what it can tell apart."""


def most_of(
    received: Mapping[Address, int], sessions: Mapping[Address, SessionIntent]
) -> dict[Address, int]:
    """How many paths are used of each peer that sends more than it may and is not only warned."""
    return {
        peer: 0 if session.limit_action is LimitAction.CLOSE else session.max_prefixes
        for peer, session in sessions.items()
        if session.max_prefixes is not None
        and session.limit_action is not LimitAction.WARN
        and received.get(peer, 0) > session.max_prefixes
    }


class Standing(Enum):
    """How a peer stands to its limit."""

    NEAR = "near"
    WARNED = "warned"
    """Beyond it, and only told so."""
    HELD = "held"
    """Beyond it, and what is beyond is not used, or nothing is."""


def standing(
    received: Mapping[Address, int], sessions: Mapping[Address, SessionIntent]
) -> dict[Address, Standing]:
    """Of the peers that a limit concerns. While nobody's changes, and nobody who is held sends
    other prefixes, a change of some prefixes is a matter of these alone."""
    found = {}
    for peer, session in sessions.items():
        limit, count = session.max_prefixes, received.get(peer, 0)
        if limit is None or count * 100 < limit * WARN_PERCENT:
            continue
        if count <= limit:
            found[peer] = Standing.NEAR
        elif session.limit_action is LimitAction.WARN:
            found[peer] = Standing.WARNED
        else:
            found[peer] = Standing.HELD
    return found


def beyond(
    offers: Offers,
    most: Mapping[Address, int],
    classes: PrefixClasses,
    policy: Policy,
    known: Accepted | None = None,
) -> Beyond:
    """The paths that the policy accepts and the limits do not, in order of prefix as they are.

    Args:
        most: of whom how many are used.
        policy: asked once for all that it cannot tell apart.
        known: what it has said, for the next time: of 50,000 attributes it takes seconds to ask.
    """
    known = {} if known is None else known
    by_identity: dict[int, tuple[Address, list[Nlri]]] = {}
    for nlri, attributes, alike_ones in _open_to(most, offers, classes, policy, known):
        is_accepted = alike_ones.get(attributes)
        if is_accepted is None:
            is_accepted = alike_ones[attributes] = policy.accepts(attributes, nlri)
        if is_accepted:
            peer = attributes.peer
            by_identity.setdefault(id(peer), (peer, []))[1].append(nlri)
    accepted: dict[Address, list[Nlri]] = {}
    for peer, nlris in by_identity.values():
        accepted.setdefault(peer, []).extend(nlris)
    found: dict[Nlri, frozenset[Address]] = {}
    alike: dict[frozenset[Address], frozenset[Address]] = {}
    for peer, nlris in accepted.items():
        kept = set(nsmallest(most[peer], nlris, key=_order))
        alone = frozenset((peer,))
        for nlri in nlris:
            if nlri not in kept:
                others = found.get(nlri)
                peers = alone if others is None else others | alone
                found[nlri] = alike.setdefault(peers, peers)
    return found


def asking(
    offers: Offers,
    most: Mapping[Address, int],
    classes: PrefixClasses,
    policy: Policy,
    known: Accepted,
) -> Iterator[None]:
    """Has ``known`` say of all of ``offers`` what the policy accepts, ASKED_AT_ONCE at a time: of
    50,000 attributes it takes seconds, and others want a turn in between."""
    number = 0
    # A copy: the table goes on changing in between.
    for nlri, attributes, alike_ones in _open_to(most, dict(offers), classes, policy, known):
        if attributes not in alike_ones:
            alike_ones[attributes] = policy.accepts(attributes, nlri)
            number += 1
            if not number % ASKED_AT_ONCE:
                yield


def _open_to(
    most: Mapping[Address, int],
    offers: Offers,
    classes: PrefixClasses,
    policy: Policy,
    known: Accepted,
) -> Iterator[tuple[Nlri, PathAttributes, dict[PathAttributes, bool]]]:
    """What the peers of ``most`` say of prefixes that the policy is not against whatever is said of
    them, with what is known of others of their class."""
    # By identity: hashing an address takes longer than all the rest.
    held: dict[int, tuple[bool, Address]] = {}
    size, first, last, owned = 0, b"", b"", False
    present: PrefixClass = b""
    is_closed, alike_ones = False, {}
    for nlri, said in offers.items():
        if owned or not first <= nlri <= last or len(nlri) != size:
            there = classes.of(nlri)
            if there != present:
                present, is_closed = there, policy.is_closed(there, nlri)
                alike_ones = {} if is_closed else known.setdefault(there, {})
            if not owned:
                size, first, last, owned = classes.alike(nlri)
        if is_closed:
            continue
        for attributes in said:
            peer = attributes.peer
            is_held = held.get(id(peer))
            if is_held is None:
                is_held = held[id(peer)] = peer in most, peer
            if is_held[0]:
                yield nlri, attributes, alike_ones


def _order(nlri: Nlri) -> tuple[int, bytes, int]:
    """By version, address, length."""
    return len(nlri), nlri[1:], nlri[0]
