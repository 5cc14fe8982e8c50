"""A page that needs nothing from anywhere: picture, and the same as tables. Pure.

The policy in its head allows this very style (and script) by hash and nothing else, so that even a
name that escaped our escaping could load and run nothing. Tables say everything the picture says:
for readers without images, for grep, and for a narrow screen.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence

from routing.picture.drawing import STYLE
from routing.picture.layout import WORDS, to_svg
from routing.picture.model import Picture, Session, State
from routing.printable import markup

PAGE_STYLE = (
    STYLE
    + """
:root { color-scheme: light dark; --page: #ffffff; --text: #1a1a1a; --quiet: #5c6470;
 --rule: #d4dae2; --alarm: #c0370a; --well: #0072b2; --soft: #f4f6f9; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --text: #e8eaed;
 --quiet: #a4adb8; --rule: #3a424c; --alarm: #ff8a5c; --well: #56b4e9; --soft: #1f242a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 80rem; background: var(--page);
 color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
p { margin: .3rem 0; } .quiet { color: var(--quiet); }
.bad { color: var(--alarm); font-weight: 600; }
.well { color: var(--well); font-weight: 600; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px; }
.scroll svg { display: block; } .scroll svg.s32 { min-width: 46rem; width: 100%; height: auto;
 max-width: 76rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--rule);
 vertical-align: top; white-space: nowrap; } td.words { white-space: normal; min-width: 12rem; }
th { color: var(--quiet); font-weight: 600; font-size: .85rem; } td.n, th.n { text-align: right; }
tr.wrong td { background: color-mix(in srgb, var(--alarm) 9%, transparent); }
ul { margin: .3rem 0; padding-left: 1.2rem; }
"""
)

SIGNS = {State.UP: "●", State.STARTING: "△", State.DOWN: "✕", State.UNKNOWN: "□"}


def hash_source(text: str) -> str:
    """``text`` as a source of a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def policy(style: str, script: str | None = None) -> str:
    """The Content-Security-Policy of a page with this style and, if any, this script."""
    parts = ["default-src 'none'", f"style-src {hash_source(style)}", "base-uri 'none'"]
    parts.append("form-action 'none'")
    if script is not None:
        parts += [f"script-src {hash_source(script)}", "connect-src 'self'"]
    return "; ".join(parts)


def to_html(picture: Picture) -> str:
    """The whole page as one self-contained document."""
    return document(
        picture.title, "\n".join([_head(picture), section_of(picture), _tables(picture)])
    )


def document(title: str, body: str, *, style: str = PAGE_STYLE, head: str = "") -> str:
    """A page around ``body``; ``head`` are further elements for its head."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{markup(policy(style))}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{markup(title)}</title>\n<style>{style}</style>{head}</head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _head(picture: Picture) -> str:
    problems = picture.all_problems()
    lines = [f"<h1>{markup(picture.title)}</h1>", f'<p class="quiet">{markup(picture.caption)}</p>']
    if problems:
        items = "".join(f"<li>{markup(problem)}</li>" for problem in problems)
        lines.append(f'<h2 class="bad">✕ Mismatches: {len(problems)}</h2><ul>{items}</ul>')
    else:
        lines.append('<p class="well">● No mismatch</p>')
    return "\n".join(lines)


def section_of(picture: Picture) -> str:
    """The picture, in a frame that scrolls where the screen is narrow."""
    return f'<h2>Topology</h2><div class="scroll">{to_svg(picture, with_style=False)}</div>'


def _tables(picture: Picture) -> str:
    blocks = [
        ([node.name, b.cidr, b.pool, b.state, _use(b.used, b.size)], b.state != "confirmed")
        for node in picture.nodes
        for b in node.blocks
    ]
    return "\n".join(
        [
            "<h2>Sessions</h2>",
            sessions_table(s for node in picture.nodes for s in node.sessions),
            "<h2>Blocks</h2>",
            table(["Node", "Block", "Pool", "State", "In use"], blocks),
        ]
    )


def sessions_table(sessions: Iterable[Session]) -> str:
    """One row a session."""
    rows = []
    for s in sessions:
        seen = s.seen
        counts = [str(n) for n in (seen.received, seen.accepted, seen.announced)] if seen else []
        state = f"{SIGNS[s.state]} {seen.state if seen else WORDS[s.state]}"
        cells = [s.node, s.name, state, *(counts or ["-"] * 3), "; ".join(s.problems)]
        is_wrong = s.state is not State.UP or bool(s.problems)
        rows.append(([*cells, s.address, str(s.asn)], is_wrong))
    head = ["Node", "Peer", "State", "Received", "Accepted", "Announced", "What is wrong"]
    return table([*head, "Address", "ASN"], rows)


def table(headers: Sequence[str], rows: Iterable[tuple[Sequence[str], bool]]) -> str:
    """A table whose rows are (cells, whether something is wrong); numbers stand on the right."""
    numeric = {
        "Received",
        "Accepted",
        "Announced",
        "ASN",
        "In use",
        "Number",
        "In use here",
        "Resting",
        "Free",
        "Of them here",
    }
    wordy = {"What is wrong", "What", "Detail"}
    kinds = ["n" if h in numeric else "words" if h in wordy else "" for h in headers]
    head = "".join(f'<th class="{k}">{markup(h)}</th>' for h, k in zip(headers, kinds, strict=True))
    body = "".join(
        f'<tr class="{"wrong" if is_wrong else ""}">'
        + "".join(f'<td class="{k}">{markup(c)}</td>' for c, k in zip(cells, kinds, strict=True))
        + "</tr>\n"
        for cells, is_wrong in rows
    )
    if not body:
        return '<p class="quiet">none</p>'
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>'
        "</table></div>"
    )


def _use(used: int | None, size: int | None) -> str:
    return "" if used is None else f"{used}/{size}"
