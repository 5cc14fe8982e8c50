"""Strokes of an SVG: boxes, words, lines and the marker of a session's state. Pure.

State is told by shape, by line and by colour, each alone sufficient: a filled disc on a solid line,
a hollow triangle on dashes, a cross on short dashes, a hollow square on dots. Colours are from the
palette of Okabe and Ito, which people with any colour vision tell apart; on a dark screen they are
lighter. Nothing is loaded from anywhere, and every word is escaped.
"""

from __future__ import annotations

from routing.picture.model import State
from routing.printable import markup

FONT = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"
FONT_SIZE = 12
CHAR_WIDTH = 7.25
"""Of a monospaced character at FONT_SIZE, in the widest of the usual fonts."""

STYLE = f"""
svg.s32 {{ font: {FONT_SIZE}px/1.2 {FONT}; background: var(--ground); --ground: #ffffff;
 --ink: #1a1a1a; --faint: #5c6470; --edge: #b6bec9; --box: #f4f6f9; --up: #0072b2;
 --starting: #8a6200; --bad: #c0370a; --chip: #dfe6ee; --fill: #7db8de; }}
@media (prefers-color-scheme: dark) {{ svg.s32 {{ --ground: #14171b; --ink: #e8eaed;
 --faint: #a4adb8; --edge: #49525d; --box: #1f242a; --up: #56b4e9; --starting: #e6b422;
 --bad: #ff8a5c; --chip: #303842; --fill: #1f6591; }} }}
.s32 text {{ fill: var(--ink); white-space: pre; }}
.s32 .faint {{ fill: var(--faint); }}
.s32 .bold {{ font-weight: 700; }}
.s32 .big {{ font-size: 16px; font-weight: 700; }}
.s32 .box {{ fill: var(--box); stroke: var(--edge); }}
.s32 .wrong {{ stroke: var(--bad); stroke-width: 2; }}
.s32 .chip {{ fill: var(--chip); }}
.s32 .used {{ fill: var(--fill); }}
.s32 .pending {{ fill: none; stroke: var(--edge); stroke-dasharray: 3 2; }}
.s32 .line {{ fill: none; stroke-width: 1.6; }}
.s32 .line.up {{ stroke: var(--up); }}
.s32 .line.starting {{ stroke: var(--starting); stroke-dasharray: 9 4; }}
.s32 .line.down {{ stroke: var(--bad); stroke-dasharray: 4 4; }}
.s32 .line.unknown {{ stroke: var(--faint); stroke-dasharray: 1 4; stroke-linecap: round; }}
.s32 .mark {{ stroke-width: 2; }}
.s32 .mark.up {{ fill: var(--up); stroke: var(--up); }}
.s32 .mark.starting {{ fill: var(--box); stroke: var(--starting); }}
.s32 .mark.down {{ fill: none; stroke: var(--bad); stroke-width: 2.6; }}
.s32 .mark.unknown {{ fill: var(--box); stroke: var(--faint); }}
.s32 text.bad {{ fill: var(--bad); font-weight: 700; }}
""".strip()

MARK_RADIUS = 5


def cut(text: str, width: float) -> str:
    """``text`` as far as it fits in ``width`` pixels, with an ellipsis where it does not."""
    room = max(1, int(width / CHAR_WIDTH))
    return text if len(text) <= room else text[: room - 1] + "…"


class Canvas:
    """Collects strokes; ``svg`` is the whole picture."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, kind: str = "box", radius: float = 5
    ) -> None:
        """A rectangle of a class of STYLE."""
        self._parts.append(
            f'<rect class="{kind}" x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" '
            f'height="{_n(height)}" rx="{_n(radius)}"/>'
        )

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """Words whose baseline begins (``start``) or ends (``end``) at (x, y)."""
        self._parts.append(
            f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">'
            f"{markup(words)}</text>"
        )

    def arrow(self, x: float, y1: float, y2: float) -> None:
        """From one box down to the next."""
        self._parts.append(f'<path class="arrow" d="M{_n(x)} {_n(y1)}V{_n(y2)}"/>')

    def across(self, x1: float, y1: float, x2: float, y2: float, state: State) -> None:
        """A line from left to right that leaves and arrives level."""
        middle = _n((x1 + x2) / 2)
        self._line(
            f"M{_n(x1)} {_n(y1)}C{middle} {_n(y1)} {middle} {_n(y2)} {_n(x2)} {_n(y2)}", state
        )

    def round(self, x: float, y1: float, y2: float, reach: float, state: State) -> None:
        """A line that leaves to the right, goes up or down, and comes back to the same side."""
        self._line(
            f"M{_n(x)} {_n(y1)}C{_n(x + reach)} {_n(y1)} {_n(x + reach)} {_n(y2)} {_n(x)} {_n(y2)}",
            state,
        )

    def _line(self, path: str, state: State) -> None:
        self._parts.append(f'<path class="line {state.value}" d="{path}"/>')

    def mark(self, x: float, y: float, state: State) -> None:
        """The shape that stands for a state, centred at (x, y)."""
        r, kind = MARK_RADIUS, f"mark {state.value}"
        match state:
            case State.UP:
                shape = f'<circle class="{kind}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(r - 1)}"/>'
            case State.STARTING:
                shape = (
                    f'<path class="{kind}" d="M{_n(x)} {_n(y - r)}L{_n(x + r)} {_n(y + r)}'
                    f'H{_n(x - r)}Z"/>'
                )
            case State.DOWN:
                shape = (
                    f'<path class="{kind}" d="M{_n(x - r)} {_n(y - r)}L{_n(x + r)} {_n(y + r)}'
                    f'M{_n(x - r)} {_n(y + r)}L{_n(x + r)} {_n(y - r)}"/>'
                )
            case _:
                shape = (
                    f'<rect class="{kind}" x="{_n(x - r + 1)}" y="{_n(y - r + 1)}" '
                    f'width="{_n(2 * r - 2)}" height="{_n(2 * r - 2)}"/>'
                )
        self._parts.append(shape)

    def begin(self, told: str) -> None:
        """What follows belongs together; a pointer held on it shows ``told``."""
        self._parts.append(f"<g><title>{markup(told)}</title>")

    def end(self) -> None:
        """Ends what ``begin`` began."""
        self._parts.append("</g>")

    def svg(
        self,
        width: float,
        height: float,
        *,
        title: str,
        description: str,
        with_style: bool,
        more_style: str = "",
    ) -> str:
        """The document. Without its style it is for a page that has STYLE in its head.

        Args:
            more_style: for classes that this picture alone has.
        """
        style = f"<style>{STYLE}{more_style}</style>" if with_style else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="s32" role="img" '
            f'viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" height="{_n(height)}">'
            f"<title>{markup(title)}</title><desc>{markup(description)}</desc>{style}"
            + "".join(f"\n{part}" for part in self._parts)
            + "\n</svg>\n"
        )


def _n(value: float) -> str:
    """A number as short as it can be, the same on every machine."""
    return f"{value:.1f}".removesuffix(".0")
