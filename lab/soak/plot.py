"""A run as a picture: one small chart a figure, all over the same pairs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lab.soak.figures import Sample

CHARTS: tuple[tuple[str, str], ...] = (
    ("agent_kib", "agent, resident KiB"),
    ("speaker_kib", "speaker, bridge and ExaBGP, resident KiB"),
    ("agent_fds", "agent, open descriptors, without one a thread"),
    ("speaker_fds", "speaker, bridge and ExaBGP, open descriptors"),
    ("links", "links on the node"),
    ("pod_routes", "routes to pods on the node"),
    ("blocks", "blocks of the node"),
    ("namespaces", "network namespaces"),
    ("tmp_entries", "entries in /tmp"),
    ("run_files", "files in the run directory"),
)
WIDTH, CHART_HEIGHT, GAP = 760, 70, 34
LEFT, RIGHT, TOP = 76, 16, 44
STYLE = (
    "text{font:12px monospace;fill:#222}.quiet{fill:#666}.line{fill:none;stroke:#0b5fa5;"
    "stroke-width:1.5}.frame{fill:none;stroke:#bbb}.killed{fill:#c0370a;fill-opacity:.08}"
    "@media(prefers-color-scheme:dark){svg{background:#111}text{fill:#ddd}.quiet{fill:#999}"
    ".line{stroke:#6cb2f0}.frame{stroke:#555}}"
)


def svg(samples: Sequence[Sample], title: str) -> str:
    """The charts; where agents are killed the ground is shaded."""
    height = TOP + len(CHARTS) * (CHART_HEIGHT + GAP)
    most = max((each.pairs for each in samples), default=0) or 1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style>",
        f'<text x="{LEFT}" y="20">{escape(title)}</text>',
    ]
    for number, (name, label) in enumerate(CHARTS):
        parts += _chart(samples, name, label, TOP + number * (CHART_HEIGHT + GAP), most)
    return "\n".join([*parts, "</svg>", ""])


def _chart(samples: Sequence[Sample], name: str, label: str, top: int, most: int) -> list[str]:
    values = [float(getattr(each, name)) for each in samples]
    low, high = min(values, default=0.0), max(values, default=0.0)
    # From zero where that shows anything, so that noise does not look like growth.
    low = 0.0 if low < high / 4 or low == high else low - (high - low) * 3
    low, high = max(0.0, low), high * 1.02 or 1.0
    bottom = top + CHART_HEIGHT

    def x(pairs: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * pairs / most

    def y(value: float) -> float:
        return bottom - CHART_HEIGHT * (value - low) / (high - low)

    points = " ".join(
        f"{x(each.pairs):.1f},{y(value):.1f}" for each, value in zip(samples, values, strict=True)
    )
    shaded = [each.pairs for each in samples if each.restarts]
    ground = (
        f'<rect class="killed" x="{x(min(shaded)):.1f}" y="{top}" '
        f'width="{x(max(shaded)) - x(min(shaded)):.1f}" height="{CHART_HEIGHT}"/>'
        if shaded
        else ""
    )
    return [
        ground,
        f'<rect class="frame" x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" '
        f'height="{CHART_HEIGHT}"/>',
        f'<polyline class="line" points="{points}"/>',
        f'<text x="{LEFT}" y="{top - 5}">{escape(label)}</text>',
        f'<text class="quiet" x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{high:.0f}</text>',
        f'<text class="quiet" x="{LEFT - 6}" y="{bottom}" text-anchor="end">{low:.0f}</text>',
        f'<text class="quiet" x="{WIDTH - RIGHT}" y="{bottom + 13}" text-anchor="end">'
        f"{most:,} pairs; last {values[-1]:.0f}</text>"
        if values
        else "",
    ]
