"""Which paths are beyond what their peer may send, of very many. Pure.

``import_policy.within_limits`` says it of paths that are there as objects. A peer that exceeds its
limit by 50,000 prefixes, each with attributes of its own, must not cost an object each; here it is
said of the tables as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from heapq import nsmallest

from bgp.adj_rib import Offers
from bgp.nlri import Nlri, prefix_of
from bgp.paths import Path, PathAttributes
from routing.classes import PrefixClass, PrefixClasses
from routing.datastore.snapshot import LimitAction
from routing.import_policy import WARN_PERCENT
from routing.routes import Address
from routing.topology import SessionIntent

Beyond = Mapping[Nlri, frozenset[Address]]
"""Prefixes with the peers whose paths to them are beyond their limits."""

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
    accepts: Callable[[Path], bool],
    known: Accepted | None = None,
) -> Beyond:
    """The paths that the policy accepts and the limits do not, in order of prefix as they are.

    Args:
        most: of whom how many are used.
        accepts: what the policy says of one path; asked once for all that it cannot tell apart.
        known: what it has said, for the next time: of 50,000 attributes it takes seconds to ask.
    """
    accepted: dict[Address, list[Nlri]] = {peer: [] for peer in most}
    known = {} if known is None else known
    for nlri, attributes in _said_by(most, offers):
        alike_ones = known.setdefault(classes.of(nlri), {})
        is_accepted = alike_ones.get(attributes)
        if is_accepted is None:
            is_accepted = alike_ones[attributes] = accepts(attributes.path(prefix_of(nlri)))
        if is_accepted:
            accepted[attributes.peer].append(nlri)
    found: dict[Nlri, frozenset[Address]] = {}
    alike: dict[frozenset[Address], frozenset[Address]] = {}
    for peer, nlris in accepted.items():
        kept = set(nsmallest(most[peer], nlris, key=_order))
        for nlri in nlris:
            if nlri not in kept:
                peers = found.get(nlri, frozenset()) | {peer}
                found[nlri] = alike.setdefault(peers, peers)
    return found


def _said_by(peers: Iterable[Address], offers: Offers) -> Iterator[tuple[Nlri, PathAttributes]]:
    for nlri, said in offers.items():
        for attributes in said:
            if attributes.peer in peers:
                yield nlri, attributes


def _order(nlri: Nlri) -> tuple[int, bytes, int]:
    """By version, address, length."""
    return len(nlri), nlri[1:], nlri[0]
