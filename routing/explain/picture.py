"""A report as a picture: SVG (one file, no outside assets) and Graphviz DOT. Pure.

Readable without colour: every verdict has a sign and a line style of its own.
"""

from __future__ import annotations

import textwrap
from html import escape

from routing.explain.steps import Report, Step, Verdict

SIGNS = {Verdict.OK: "✓", Verdict.WRONG: "✗", Verdict.UNKNOWN: "?"}
_COLOURS = {Verdict.OK: "#1a7f37", Verdict.WRONG: "#b42318", Verdict.UNKNOWN: "#6b7280"}
_FILLS = {Verdict.OK: "#f2faf4", Verdict.WRONG: "#fdecea", Verdict.UNKNOWN: "#f5f5f6"}
_DASHES = {Verdict.OK: "", Verdict.WRONG: "", Verdict.UNKNOWN: ' stroke-dasharray="5 4"'}

_WIDTH, _MARGIN, _INDENT = 860, 20, 160
_LINE_PX, _PAD_PX, _GAP_PX = 17, 10, 14
_CHARACTERS = 92


def to_svg(report: Report) -> str:
    """The chain from top to bottom, one box a step, its place at the left."""
    parts: list[str] = []
    y = 64
    place = None
    for number, step in enumerate(report.steps):
        lines = textwrap.wrap(step.evidence, _CHARACTERS) or [""]
        if step.remedy and step.verdict is Verdict.WRONG:
            lines += textwrap.wrap(f"→ {step.remedy}", _CHARACTERS)
        height = 2 * _PAD_PX + _LINE_PX * (1 + len(lines))
        if number:
            middle = _INDENT + (_WIDTH - _MARGIN - _INDENT) // 2
            parts.append(
                f'<line x1="{middle}" y1="{y - _GAP_PX}" x2="{middle}" y2="{y}" class="arrow"/>'
            )
        if step.place != place:
            place = step.place
            for index, words in enumerate(textwrap.wrap(place, 18)[:3]):
                parts.append(_text(_MARGIN, y + 22 + 15 * index, words, "place"))
        parts += _box(step, y, height, lines)
        y += height + _GAP_PX
    conclusion = textwrap.wrap(report.conclusion, 112)
    parts += [_text(_MARGIN, y + 18 + 17 * i, line, "last") for i, line in enumerate(conclusion)]
    height = y + 30 + 17 * len(conclusion)
    title = f"{report.subject}: from {report.source} to {report.destination}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" aria-label="{escape(title)}">\n'
        "<style>text{font:13px sans-serif;fill:#1f2328}.title{font-size:15px;font-weight:bold}"
        ".place{font-weight:bold;font-size:12px}.step{font-weight:bold}.last{font-weight:bold}"
        ".arrow{stroke:#6b7280;stroke-width:1.5}</style>\n"
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join([_text(_MARGIN, 34, title, "title"), *parts])
        + "\n</svg>\n"
    )


def _box(step: Step, y: int, height: int, lines: list[str]) -> list[str]:
    colour, thickness = _COLOURS[step.verdict], 3 if step.verdict is Verdict.WRONG else 1.5
    head = f"{SIGNS[step.verdict]} {step.id}: {step.title}"
    if step.fault:
        head += f" — {step.fault}"
    return [
        f'<rect x="{_INDENT}" y="{y}" width="{_WIDTH - _MARGIN - _INDENT}" height="{height}" '
        f'rx="5" fill="{_FILLS[step.verdict]}" stroke="{colour}" '
        f'stroke-width="{thickness}"{_DASHES[step.verdict]}/>',
        _text(_INDENT + _PAD_PX, y + _PAD_PX + 12, head, "step"),
        *(
            _text(_INDENT + _PAD_PX, y + _PAD_PX + 12 + _LINE_PX * (i + 1), line, "said")
            for i, line in enumerate(lines)
        ),
    ]


def _text(x: int, y: int, words: str, css: str) -> str:
    return f'<text x="{x}" y="{y}" class="{css}">{escape(words)}</text>'


def to_dot(report: Report) -> str:
    """The same for Graphviz: a chain, with a cluster for each run of steps at one place."""
    lines = [
        "digraph explain {",
        "  rankdir=TB; node [shape=box, fontname=sans];",
        f"  label={_quoted(report.conclusion)};",
    ]
    cluster, place = -1, None
    for number, step in enumerate(report.steps):
        if step.place != place:
            if place is not None:
                lines.append("  }")
            cluster, place = cluster + 1, step.place
            lines.append(f"  subgraph cluster_{cluster} {{ label={_quoted(step.place)};")
        style = {"wrong": "bold", "unknown": "dashed", "ok": "solid"}[step.verdict.value]
        words = "\n".join(textwrap.wrap(step.evidence, 60))
        label = f"{SIGNS[step.verdict]} {step.id}\n{words}"
        lines.append(
            f"    s{number} [label={_quoted(label)}, style={style}, "
            f'color="{_COLOURS[step.verdict]}"];'
        )
    if place is not None:
        lines.append("  }")
    lines += [f"  s{i} -> s{i + 1};" for i in range(len(report.steps) - 1)]
    return "\n".join([*lines, "}", ""])


def _quoted(words: str) -> str:
    inner = words.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{inner}"'
