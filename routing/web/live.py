"""The live page of one node: the same picture and tables as ``slash32 topology``, fresh. Pure.

Everything is in the HTML that the agent sends, so that the page is whole without JavaScript; the
script only fetches the same again and puts it in place. Made from what is in memory: a page that
somebody leaves open must cost the node nothing to speak of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html import escape

from bgp.paths import PeerStatus, SessionState
from routing.cli.table import age
from routing.desired import kind_counts
from routing.metrics.families import Observation
from routing.picture import heatmap
from routing.picture.compose import compose
from routing.picture.heatmap import to_heatmap
from routing.picture.model import Observed, Picture, Report
from routing.picture.page import PAGE_STYLE, policy, section_of, sessions_table, table
from routing.remote import counts_of
from routing.routes import Address
from routing.web.recent import Line

EVENTS_SHOWN_MAX = 200
ROWS_SHOWN_MAX = 30
REFRESH_S = 5
REFRESH_WITHOUT_SCRIPT_S = 15

STYLE = (
    PAGE_STYLE
    + heatmap.STYLE
    + """
header { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; align-items: baseline; }
#fresh { margin-left: auto; } body.stale #fresh { color: var(--alarm); font-weight: 700; }
.cards { display: flex; flex-wrap: wrap; gap: .6rem; margin: .8rem 0; }
.card { border: 1px solid var(--rule); border-radius: 6px; padding: .4rem .8rem; min-width: 7.5rem;
 background: var(--soft); } .card b { display: block; font-size: 1.25rem; }
.scroll svg.heat { width: 100%; height: auto; min-width: 30rem; max-width: 46rem; padding: .5rem; }
.events { max-height: 24rem; overflow-y: auto; }
td.words { overflow-wrap: anywhere; }
@media (max-width: 44rem) { .events thead { display: none; } .events tr { display: block;
 padding: .3rem 0; border-bottom: 1px solid var(--rule); } .events td { display: inline-block;
 border: 0; padding: .1rem .6rem; } .events td.words { display: block; min-width: 0; } }
"""
)

SCRIPT = f"""
(() => {{
  const main = document.querySelector("main"), fresh = document.getElementById("fresh");
  let at = Date.now(), busy = false;
  const places = () => [...main.querySelectorAll(".scroll")].map(e => [e.scrollLeft, e.scrollTop]);
  async function refresh() {{
    if (busy || document.hidden) return;
    busy = true;
    try {{
      const answer = await fetch("/live", {{cache: "no-store", signal: AbortSignal.timeout(8000)}});
      if (!answer.ok) throw new Error(answer.status);
      const text = await answer.text(), before = places();
      main.innerHTML = text;
      main.querySelectorAll(".scroll").forEach((e, i) => {{
        if (before[i]) [e.scrollLeft, e.scrollTop] = before[i];
      }});
      at = Date.now();
      document.body.classList.remove("stale");
    }} catch {{
      document.body.classList.add("stale");
    }} finally {{
      busy = false;
    }}
  }}
  setInterval(refresh, {REFRESH_S * 1000});
  setInterval(() => {{
    const age = Math.round((Date.now() - at) / 1000);
    fresh.textContent = document.body.classList.contains("stale")
      ? "the agent does not answer; this is " + age + " s old" : "as of " + age + " s ago";
  }}, 1000);
}})();
"""


def page_policy() -> str:
    """The Content-Security-Policy of the page."""
    return f"{policy(STYLE, SCRIPT)}; frame-ancestors 'none'"


def page(seen: Observation, events: Sequence[Line]) -> str:
    """The whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<noscript><meta http-equiv="refresh" content="{REFRESH_WITHOUT_SCRIPT_S}"></noscript>\n'
        f"<title>{escape(seen.node)} - slash32</title>\n<style>{STYLE}</style></head>\n"
        f"<body>\n<header><h1>{escape(seen.node)}</h1>"
        f'<span class="quiet">slash32 {escape(seen.version)}, read-only</span>'
        f'<span class="quiet" id="fresh"></span></header>\n'
        f"<main>\n{content(seen, events)}\n</main>\n<script>{SCRIPT}</script>\n</body></html>\n"
    )


def content(seen: Observation, events: Sequence[Line]) -> str:
    """What is refreshed."""
    picture = picture_of(seen)
    return "\n".join(
        [
            _findings(seen, picture),
            _cards(seen),
            section_of(picture),
            "<h2>Sessions</h2>",
            sessions_table(s for node in picture.nodes for s in node.sessions),
            *_pools(seen),
            *_routes(seen),
            *_events(seen, events),
        ]
    )


def picture_of(seen: Observation) -> Picture:
    """This node, its routers and its blocks; of other nodes it cannot speak."""
    rejected: Counter[Address] = Counter()
    for (sender, _), number in counts_of(seen.report.desired.rejected).items():
        rejected[sender] += number
    sessions = []
    for address, peer in seen.report.desired.peers.items():
        status = seen.sessions.get(address) or PeerStatus(address)
        reason = status.reason if status.state is not SessionState.ESTABLISHED else ""
        if not seen.is_speaker_connected:
            reason = "ExaBGP is not connected to the agent"
        sessions.append(
            Observed(
                address=str(address),
                state=status.state.value if seen.is_speaker_connected else "unknown",
                name=peer.name,
                asn=peer.remote_asn,
                received=status.routes_received,
                accepted=max(0, status.routes_received - rejected[address]),
                announced=status.routes_advertised,
                since_s=seen.now_s - status.since_s,
                reason=reason,
            )
        )
    use = {
        str(block.cidr): (used, used + resting + free)
        for block, used, resting, free in seen.own_blocks
    }
    report = Report(tuple(sessions), "its agent", len(seen.report.pods), use)
    own = replace(
        seen.snapshot,
        nodes=tuple(n for n in seen.snapshot.nodes if n.meta.name == seen.node),
        blocks=tuple(b for b in seen.snapshot.blocks if b.node == seen.node),
    )
    return compose(own, {seen.node: report}, title=f"BGP of {seen.node}")


def _findings(seen: Observation, picture: Picture) -> str:
    found = [*_troubles(seen), *picture.all_problems()]
    if not found:
        return '<p class="well">● healthy</p>'
    items = "".join(f"<li>{escape(each)}</li>" for each in found[:ROWS_SHOWN_MAX])
    more = len(found) - ROWS_SHOWN_MAX
    items += f"<li>and {more} more</li>" if more > 0 else ""
    return f'<h2 class="bad">✕ Findings: {len(found)}</h2><ul>{items}</ul>'


def _troubles(seen: Observation) -> Iterator[str]:
    if seen.store_error is not None:
        yield f"store: {seen.store_error}"
    if seen.edge_error is not None:
        yield f"edge rules: {seen.edge_error}"
    if not seen.is_speaker_connected:
        yield "ExaBGP is not connected to the agent"
    yield from seen.ipam_problems
    for failure in seen.report.failures:
        if failure.key not in ("store", "edge"):
            yield f"{failure.key}: {failure.operation} failed: {failure.error}"


def _cards(seen: Observation) -> str:
    peers = seen.report.desired.peers
    up = sum(
        seen.is_speaker_connected
        and address in seen.sessions
        and seen.sessions[address].state is SessionState.ESTABLISHED
        for address in peers
    )
    used = sum(used for _, used, _, _ in seen.own_blocks)
    size = sum(used + resting + free for _, used, resting, free in seen.own_blocks)
    finished_at_s = seen.report.finished_at_s
    last = "never" if finished_at_s is None else f"{age(seen.now_s - finished_at_s)} ago"
    figures = [
        ("ready" if seen.is_ready else "NOT READY", "CNI STATUS"),
        (f"{up}/{len(peers)}", "sessions up"),
        (str(seen.fib.installed), "routes in the kernel"),
        (str(len(seen.report.pods)), "pods"),
        (f"{used}/{size}", "addresses in use"),
        (last, "last pass"),
    ]
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span class="quiet">{escape(name)}</span></div>'
        for value, name in figures
    )
    return f'<div class="cards">{cards}</div>'


def _pools(seen: Observation) -> Iterator[str]:
    yield "<h2>Address pools</h2>"
    taken = Counter(block.pool for block in seen.snapshot.blocks)
    rows = []
    for pool in seen.snapshot.pools:
        name = pool.meta.name
        mine = [row for row in seen.own_blocks if row[0].pool == name]
        count = 1 << (pool.block_size - pool.cidr.prefixlen)
        rows.append(
            (
                [
                    name,
                    str(pool.cidr),
                    f"{taken[name]} of {count} (/{pool.block_size})",
                    str(len(mine)),
                    *(
                        str(sum(numbers))
                        for numbers in zip((0, 0, 0), *(row[1:] for row in mine), strict=True)
                    ),
                ],
                taken[name] >= count,
            )
        )
    head = ["Pool", "CIDR", "Blocks taken", "Of them here", "In use here", "Resting", "Free"]
    yield table(head, rows)
    use = {b.cidr: (used, used + resting + free) for b, used, resting, free in seen.own_blocks}
    for pool in seen.snapshot.pools:
        yield f'<h2>Blocks of {escape(pool.meta.name)}</h2><div class="scroll">'
        yield to_heatmap(pool, seen.snapshot.blocks, use)
        yield "</div>"
    if seen.snapshot.pools:
        yield (
            '<p class="quiet">Framed: of this node, filled from below by use. Solid: of other '
            "nodes. Dashed: being claimed or given back. Faint: free.</p>"
        )


def _routes(seen: Observation) -> Iterator[str]:
    desired = seen.report.desired
    yield "<h2>Routes</h2>"
    kinds = kind_counts(desired)
    reasons = {(str(peer), r): number for (peer, r), number in counts_of(desired.rejected).items()}
    rows = [(["wanted", kind, str(number)], False) for kind, number in sorted(kinds.items())]
    rows += [
        (["rejected", f"from {peer}: {reason}", str(number)], True)
        for (peer, reason), number in sorted(reasons.items())
    ]
    rows += [
        (["held", f"{held.what}: {held.gate}", "1"], True)
        for held in seen.report.held[:ROWS_SHOWN_MAX]
    ]
    yield table(["Routes", "What", "Number"], rows)


def _events(seen: Observation, events: Sequence[Line]) -> Iterator[str]:
    yield "<h2>The last hour</h2>"
    rows = [
        (
            [
                datetime.fromtimestamp(line.at_s, UTC).strftime("%H:%M:%S"),
                f"{age(seen.wall_s - line.at_s)} ago",
                line.event,
                line.detail,
            ],
            line.level in ("warning", "error", "critical"),
        )
        for line in events[:EVENTS_SHOWN_MAX]
    ]
    text = table(["UTC", "Age", "Event", "Detail"], rows)
    yield text.replace('<div class="scroll">', '<div class="scroll events">', 1)
    if len(events) > EVENTS_SHOWN_MAX:
        yield f'<p class="quiet">and {len(events) - EVENTS_SHOWN_MAX} before them</p>'
