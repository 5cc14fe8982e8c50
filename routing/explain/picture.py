"""A report as a picture: SVG (one file, no outside assets) and Graphviz DOT. Pure.

Readable without colour: every verdict has a sign and a line style of its own.
"""

from __future__ import annotations

import textwrap

from routing.explain.steps import Report, Step, Verdict
from routing.picture.dot import quoted
from routing.picture.drawing import CHAR_WIDTH, Canvas, cut

SIGNS = {Verdict.OK: "✓", Verdict.WRONG: "✗", Verdict.UNKNOWN: "?"}
_BOXES = {Verdict.OK: "box ok", Verdict.WRONG: "box wrong", Verdict.UNKNOWN: "box unsure"}
_COLOURS = {Verdict.OK: "#0072b2", Verdict.WRONG: "#c0370a", Verdict.UNKNOWN: "#5c6470"}
"""Of Graphviz, which has no style sheet: those of routing/picture/drawing.py."""

_STYLE = """
.s32 .ok { stroke: var(--up); }
.s32 .unsure { stroke: var(--faint); stroke-dasharray: 5 4; }
.s32 .arrow { fill: none; stroke: var(--faint); stroke-width: 1.5; }"""

_WIDTH, _MARGIN, _INDENT = 860, 20, 160
_LINE_PX, _PAD_PX, _GAP_PX = 17, 10, 14
_PLACE_LINES_MAX = 3


def _fitting(width: float) -> int:
    """How many characters go into ``width`` pixels."""
    return int(width / CHAR_WIDTH)


_BOX_WIDTH = _WIDTH - _MARGIN - _INDENT
_SAID = _fitting(_BOX_WIDTH - 2 * _PAD_PX)


def to_svg(report: Report) -> str:
    """The chain from top to bottom, one box a step, its place at the left."""
    canvas = Canvas()
    title = f"{report.subject}: from {report.source} to {report.destination}"
    canvas.text(_MARGIN, 34, cut(title, _WIDTH - 2 * _MARGIN), "big")
    y = 64
    place = None
    for number, step in enumerate(report.steps):
        lines = textwrap.wrap(step.evidence, _SAID) or [""]
        if step.remedy and step.verdict is Verdict.WRONG:
            lines += textwrap.wrap(f"→ {step.remedy}", _SAID)
        height = 2 * _PAD_PX + _LINE_PX * (1 + len(lines))
        if number:
            canvas.arrow(_INDENT + _BOX_WIDTH / 2, y - _GAP_PX, y)
        if step.place != place:
            place = step.place
            words = textwrap.wrap(place, _fitting(_INDENT - _MARGIN))[:_PLACE_LINES_MAX]
            for index, line in enumerate(words):
                canvas.text(_MARGIN, y + 22 + 15 * index, line, "bold")
        _draw_step(canvas, step, y, height, lines)
        y += height + _GAP_PX
    conclusion = textwrap.wrap(report.conclusion, _fitting(_WIDTH - 2 * _MARGIN))
    for index, line in enumerate(conclusion):
        canvas.text(_MARGIN, y + 18 + _LINE_PX * index, line, "bold")
    return canvas.svg(
        _WIDTH,
        y + 30 + _LINE_PX * len(conclusion),
        title=title,
        description=report.conclusion,
        with_style=True,
        more_style=_STYLE,
    )


def _draw_step(canvas: Canvas, step: Step, y: int, height: int, lines: list[str]) -> None:
    head = f"{SIGNS[step.verdict]} {step.id}: {step.title}"
    if step.fault:
        head += f" — {step.fault}"
    canvas.box(_INDENT, y, _BOX_WIDTH, height, _BOXES[step.verdict])
    x, baseline = _INDENT + _PAD_PX, y + _PAD_PX + 12
    kind = "bad" if step.verdict is Verdict.WRONG else "bold"
    canvas.text(x, baseline, cut(head, _BOX_WIDTH - 2 * _PAD_PX), kind)
    for index, line in enumerate(lines, 1):
        canvas.text(x, baseline + _LINE_PX * index, line)


def to_dot(report: Report) -> str:
    """The same for Graphviz: a chain, with a cluster for each run of steps at one place."""
    lines = [
        "digraph explain {",
        "  rankdir=TB; node [shape=box, fontname=sans];",
        f"  label={quoted(report.conclusion)};",
    ]
    cluster, place = -1, None
    for number, step in enumerate(report.steps):
        if step.place != place:
            if place is not None:
                lines.append("  }")
            cluster, place = cluster + 1, step.place
            lines.append(f"  subgraph cluster_{cluster} {{ label={quoted(step.place)};")
        style = {"wrong": "bold", "unknown": "dashed", "ok": "solid"}[step.verdict.value]
        words = "\n".join(textwrap.wrap(step.evidence, 60))
        label = f"{SIGNS[step.verdict]} {step.id}\n{words}"
        lines.append(
            f"    s{number} [label={quoted(label)}, style={style}, "
            f'color="{_COLOURS[step.verdict]}"];'
        )
    if place is not None:
        lines.append("  }")
    lines += [f"  s{i} -> s{i + 1};" for i in range(len(report.steps) - 1)]
    return "\n".join([*lines, "}", ""])
