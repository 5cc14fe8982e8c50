"""The short way for UPDATEs: only the prefixes whose paths changed are learned again. Pure.

A whole pass computes every table from everything; with 100,000 routes that takes seconds, and an
UPDATE of one prefix need not wait for it. ``relearn`` puts the changed prefixes through the very
functions a pass uses and says what becomes of their routes, when nothing else can depend on them:

* nothing but paths has changed since the last pass (the caller sees to that);
* no next hop is resolved through another route, so one prefix's path moves no other prefix;
* no session has a limit on its prefixes, which looks at all of them together;
* no block has a second claimant, which concerns more than its prefix.

Otherwise it declines, and there is a whole pass. One comes every resync in any case: it is the
truth, this is a short cut to the same answer (tests/property/test_update_lane.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from bgp.paths import Path
from routing.desired import Desired, Inputs, learn, own_blocks, remote_route
from routing.import_policy import RejectedPath
from routing.links import connected_link
from routing.routes import Prefix, Route, RouteKey, RouteKind

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Relearned:
    """What becomes of some prefixes: their route (None: there is to be none) and best paths."""

    routes: Mapping[RouteKey, Route | None]
    best: Mapping[Prefix, tuple[Path, ...]]
    rejected: tuple[RejectedPath, ...]


def relearn(
    inputs: Inputs, last: Desired, changed: Mapping[Prefix, Sequence[Path]]
) -> Relearned | None:
    """Learns the prefixes in ``changed`` again.

    Args:
        inputs: of the last pass; its ``paths`` are not looked at.
        last: what that pass wanted, and what was relearned since.
        changed: each prefix with all its present paths, perhaps none.

    Returns:
        None when only a whole pass can tell.
    """
    if inputs.kernel_routes or any(s.max_prefixes is not None for s in last.sessions.values()):
        return None
    if any(conflict.prefix in changed for conflict in last.conflicts):
        return None
    paths = [path for candidates in changed.values() for path in candidates]
    if any(connected_link(hop, inputs.links) is None for hop in {p.next_hop for p in paths}):
        return None
    blocks = own_blocks(inputs.snapshot.blocks, inputs.node)
    learned = learn(replace(inputs, paths=paths), blocks, last.sessions, last.peers)
    if learned.to_close or learned.conflicts:
        return None
    routes: dict[RouteKey, Route | None] = {}
    best: dict[Prefix, tuple[Path, ...]] = {}
    for prefix in changed:
        chosen = learned.best.get(prefix)
        if chosen:
            best[prefix] = chosen
        key = RouteKey(prefix)
        # Local truth is laid down before remote news.
        if last.kinds.get(key, RouteKind.REMOTE) is RouteKind.REMOTE:
            routes[key] = remote_route(prefix, chosen, learned) if chosen else None
    kept = tuple(each for each in last.rejected if each.path.prefix not in changed)
    return Relearned(routes, best, kept + learned.rejected)


def merged(last: Desired, news: Relearned, changed: Mapping[Prefix, object]) -> Desired:
    """``last`` with ``news`` in it. Takes over its tables, which the caller must not use again:
    copying three of them of 100,000 entries for one prefix is what this module is to avoid."""
    routes, kinds, best = _dict_of(last.routes), _dict_of(last.kinds), _dict_of(last.best)
    for key, route in news.routes.items():
        if route is None:
            routes.pop(key, None)
            kinds.pop(key, None)
        else:
            routes[key], kinds[key] = route, RouteKind.REMOTE
    for prefix in changed:
        best.pop(prefix, None)
    best.update(news.best)
    return replace(last, routes=routes, kinds=kinds, best=best, rejected=news.rejected)


def _dict_of(table: Mapping[K, V]) -> dict[K, V]:
    return table if isinstance(table, dict) else dict(table)
