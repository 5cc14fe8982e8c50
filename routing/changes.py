"""What changed between two passes, and why: the entries of the journal. Pure.

A route's reason is looked for where it comes from: the session that went, the path that came, the
hand that changed the kernel. An entry is a flat object of JSON types; keys may be added, never
renamed (docs/schemas/history.json).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bgp.paths import Path, PeerStatus
from routing.desired import Desired
from routing.report import PassReport
from routing.route_table import differing
from routing.routes import Address, Prefix, Route, RouteKey, next_hops_text

Entry = dict[str, Any]

_GONE = "it was gone from the kernel: another hand deleted it, or its link went down"


@dataclass(frozen=True, slots=True)
class SessionMark:
    """What of a session the journal compares."""

    state: str
    flaps: int
    reason: str


def marks_of(sessions: Mapping[Address, PeerStatus]) -> dict[Address, SessionMark]:
    """A copy that later events do not change."""
    return {
        address: SessionMark(status.state.value, status.flaps, status.last_reason)
        for address, status in sessions.items()
    }


def changes(
    before: PassReport,
    after: PassReport,
    sessions_before: Mapping[Address, SessionMark],
    sessions_after: Mapping[Address, SessionMark],
) -> Iterator[Entry]:
    """The entries for one pass, causes before effects."""
    yield from _sessions(sessions_before, sessions_after)
    yield from _rejections(before.desired, after.desired)
    yield from _routes(before, after, sessions_after)
    yield from _announcements(before.desired, after.desired)
    yield from _failures(before, after)


def _sessions(
    before: Mapping[Address, SessionMark], after: Mapping[Address, SessionMark]
) -> Iterator[Entry]:
    for address, mark in after.items():
        was = before.get(address)
        if was is not None and (was.state, was.flaps) == (mark.state, mark.flaps):
            continue
        if was is None and mark.state == "Idle":
            continue
        is_up = mark.state == "Established"
        flapped = was is not None and is_up and was.state == "Established"
        yield _entry(
            "session",
            "flapped" if flapped else "up" if is_up else "down",
            peer=str(address),
            reason="" if is_up and not flapped else mark.reason,
        )
    for address in before.keys() - after.keys():
        yield _entry("session", "removed", peer=str(address), reason="no longer configured")


def _rejections(before: Desired, after: Desired) -> Iterator[Entry]:
    known = {(r.path.peer, r.path.prefix): r.reason for r in before.rejected}
    for each in after.rejected:
        key = (each.path.peer, each.path.prefix)
        if known.get(key) != each.reason:
            yield _entry(
                "path", "rejected", prefix=str(key[1]), peer=str(key[0]),
                reason=each.reason, detail=each.detail,
            )  # fmt: skip


def _routes(
    before: PassReport, after: PassReport, sessions: Mapping[Address, SessionMark]
) -> Iterator[Entry]:
    old, new, found = before.desired.routes, after.desired.routes, after.actual
    failed = {failure.key for failure in (*before.failures, *after.failures)}
    changed = differing(old, new)
    for key in changed:
        was, route = old.get(key), new.get(key)
        if route is not None:
            yield _route(after.desired, key, route, was, _why_wanted(before, after, key, was))
    if before.passes:
        known = set(changed)
        for key in differing(found, new):
            if key in new and key not in known and f"route {key.prefix}" not in failed:
                there = found.get(key)
                reason = _GONE if there is None else "another hand changed it"
                yield _route(after.desired, key, new[key], there, reason, action="repaired")
    gone = [key for key in changed if key not in new]
    gates = {each.what: each.gate for each in after.held} if gone else {}
    for key in gone:
        gate = gates.get(f"route {key.prefix}")
        yield _entry(
            "route", "held" if gate else "deleted", prefix=str(key.prefix),
            detail=next_hops_text(old[key]), reason=gate or _why_gone(before, key, sessions),
        )  # fmt: skip


def _route(
    wanted: Desired,
    key: RouteKey,
    route: Route,
    was: Route | None,
    reason: str,
    *,
    action: str | None = None,
) -> Entry:
    kind = wanted.kinds.get(key)
    detail = next_hops_text(route)
    if was is not None:
        detail += f" (was {next_hops_text(was)})"
    return _entry(
        "route", action or ("created" if was is None else "replaced"), prefix=str(key.prefix),
        detail=detail, reason=reason, of=kind.value if kind else "",
    )  # fmt: skip


def _why_wanted(before: PassReport, after: PassReport, key: RouteKey, was: Route | None) -> str:
    old = before.desired.best.get(key.prefix, ())
    new = after.desired.best.get(key.prefix, ())
    if not new:
        kind = after.desired.kinds.get(key)
        return {"pod": "a pod came", "block": "this node owns the block"}.get(
            kind.value if kind else "", "wanted by this node"
        )
    came = [path for path in new if path not in old]
    gone = [path for path in old if path not in new]
    parts = [f"path from {path.peer} {_attributes(path)}" for path in came]
    parts += [f"no more by {path.peer}" for path in gone]
    if not parts:
        return "its next hop is reached otherwise" if was is not None else "learned"
    return "; ".join(parts)


def _attributes(path: Path) -> str:
    return f"next hop {path.next_hop}, AS path {' '.join(map(str, path.as_path)) or 'empty'}"


def _why_gone(before: PassReport, key: RouteKey, sessions: Mapping[Address, SessionMark]) -> str:
    prefix: Prefix = key.prefix
    paths = before.desired.best.get(prefix, ())
    if not paths:
        kind = before.desired.kinds.get(key)
        return {"pod": "the pod went", "block": "this node does not own the block any more"}.get(
            kind.value if kind else "", "no longer wanted"
        )
    parts = []
    for path in paths:
        mark = sessions.get(path.peer)
        if mark is None or mark.state != "Established":
            why = f" ({mark.reason})" if mark and mark.reason else ""
            parts.append(f"session with {path.peer} is down{why}")
        else:
            parts.append(f"withdrawn or refused, from {path.peer}")
    return "; ".join(parts)


def _announcements(before: Desired, after: Desired) -> Iterator[Entry]:
    old, new = before.advertisements, after.advertisements
    if old == new:
        return
    for (peer, prefix), value in new.items():
        was = old.get((peer, prefix))
        if was != value:
            yield _entry(
                "announcement", "announced" if was is None else "changed",
                prefix=str(prefix), peer=str(peer), reason=_told(after, prefix),
            )  # fmt: skip
    for peer, prefix in old.keys() - new.keys():
        reason = "the peer is no longer configured" if peer not in after.peers else (
            "no longer ours to announce, or export policy forbids it"
        )  # fmt: skip
        yield _entry("announcement", "withdrawn", prefix=str(prefix), peer=str(peer), reason=reason)


def _told(after: Desired, prefix: Prefix) -> str:
    if after.phase.value != "serving":
        return f"draining: {after.phase.value}"
    return "wanted by export policy" if prefix not in after.backing else "this node owns it"


def _failures(before: PassReport, after: PassReport) -> Iterator[Entry]:
    if before.failures == after.failures:
        return
    old = {(f.key, f.operation): f.error for f in before.failures}
    new = {(f.key, f.operation): f.error for f in after.failures}
    for (key, operation), error in new.items():
        if old.get((key, operation)) != error:
            yield _entry("failure", "began", what=key, detail=operation, reason=error)
    for key, operation in old.keys() - new.keys():
        yield _entry("failure", "ended", what=key, detail=operation)


def _entry(kind: str, action: str, **more: str) -> Entry:
    return {"kind": kind, "action": action, **{k: v for k, v in more.items() if v}}
