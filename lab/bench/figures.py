"""Samples to figures: percentiles, ratios, rows for the file, a table for people. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

TARGETS: dict[tuple[str, int, int], float] = {
    ("add_wall_p50", 0, 1): 0.18,
    ("del_wall_p50", 0, 1): 0.08,
    ("add_wall_p50", 1000, 1): 0.12,
    ("del_wall_p50", 1000, 1): 0.06,
    ("add_cpu_mean", 0, 1): 0.18,
    ("del_cpu_mean", 0, 1): 0.18,
    ("add_cpu_mean", 1000, 1): 0.18,
    ("del_cpu_mean", 1000, 1): 0.18,
    ("add_all_wall_p50", 0, 50): 0.18,
    ("del_all_wall_p50", 0, 50): 0.18,
}
"""The ratio not to exceed, by (bench, pods, parallel)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of ours beside the same figure of the peer's, both in ``unit``.

    Attributes:
        bench: what was measured; the peer of a ``..._floor_...`` bench is the bare kernel.
        pods: how many pods were there already.
        parallel: how many calls ran at once; wall times are then those of all of them together.
        peer: None where nothing is compared.
    """

    bench: str
    pods: int
    parallel: int
    ours: float
    peer: float | None
    unit: str

    @property
    def ratio(self) -> float | None:
        """Ours over the peer's."""
        return self.ours / self.peer if self.peer else None

    @property
    def target(self) -> float | None:
        """The ratio not to exceed, if one was set for this figure."""
        return TARGETS.get((self.bench, self.pods, self.parallel))

    @property
    def is_reached(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.target is None or self.ratio is None:
            return None
        return self.ratio <= self.target

    def as_json(self) -> str:
        """One line for the file."""
        return json.dumps(
            {
                "bench": self.bench,
                "pods": self.pods,
                "parallel": self.parallel,
                "ours": round(self.ours, 4),
                "peer": None if self.peer is None else round(self.peer, 4),
                "unit": self.unit,
                "ratio": None if self.ratio is None else round(self.ratio, 4),
            }
        )


@dataclass(slots=True)
class Series:
    """Samples of one verb by one party, in ms; CPU is the executed file's, then the agent's."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    agent_cpu: list[float] = field(default_factory=list)

    @property
    def cpu_mean(self) -> float:
        """CPU of one call, agent included."""
        return mean(self.cpu) + (mean(self.agent_cpu) if self.agent_cpu else 0.0)


def percentile(samples: Sequence[float], percent: float) -> float:
    """By linear interpolation between the two nearest samples.

    Raises:
        ValueError: there are none.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def mean(samples: Sequence[float]) -> float:
    """Their arithmetic mean.

    Raises:
        ValueError: there are none.
    """
    if not samples:
        raise ValueError("no samples")
    return sum(samples) / len(samples)


def serial_rows(
    verb: str, pods: int, *, ours: Series, peer: Series, floor: Series | None
) -> list[Row]:
    """The figures of one verb, one call at a time."""
    rows = [
        Row(f"{verb}_wall_p{percent}", pods, 1, percentile(ours.wall, percent),
            percentile(peer.wall, percent), "ms")
        for percent in (50, 95)
    ]  # fmt: skip
    rows.append(Row(f"{verb}_cpu_mean", pods, 1, ours.cpu_mean, peer.cpu_mean, "ms"))
    if ours.agent_cpu:
        rows.append(Row(f"{verb}_agent_cpu_mean", pods, 1, mean(ours.agent_cpu), None, "ms"))
    if floor is not None:
        rows.append(
            Row(f"{verb}_wall_p50_floor", pods, 1, percentile(ours.wall, 50),
                percentile(floor.wall, 50), "ms")
        )  # fmt: skip
        rows.append(Row(f"{verb}_cpu_mean_floor", pods, 1, ours.cpu_mean, floor.cpu_mean, "ms"))
    return rows


def parallel_rows(verb: str, pods: int, parallel: int, *, ours: Series, peer: Series) -> list[Row]:
    """The figures of ``parallel`` calls at once: ``wall`` of all together, CPU of one of them."""
    return [
        Row(f"{verb}_all_wall_p50", pods, parallel, percentile(ours.wall, 50),
            percentile(peer.wall, 50), "ms"),
        Row(f"{verb}_all_cpu_mean", pods, parallel, ours.cpu_mean, peer.cpu_mean, "ms"),
    ]  # fmt: skip


def growth_rows(rows: Iterable[Row]) -> list[Row]:
    """What one ADD costs more at the most pods than at the fewest, beside the kernel's growth."""
    floors = [row for row in rows if row.bench == "add_wall_p50_floor" and row.peer is not None]
    if len(floors) < 2:
        return []
    low, high = min(floors, key=lambda r: r.pods), max(floors, key=lambda r: r.pods)
    if low.peer is None or high.peer is None:
        return []
    grown = high.peer - low.peer
    return [Row("add_wall_p50_growth_floor", high.pods, 1, high.ours - low.ours, grown, "ms")]


def table(rows: Iterable[Row]) -> str:
    """The rows for people, with what was to be reached."""
    head = ("bench", "pods", "parallel", "ours", "peer", "unit", "ratio", "target", "")
    lines = [head]
    for row in rows:
        verdict = {True: "reached", False: "MISSED", None: ""}[row.is_reached]
        lines.append(
            (
                row.bench,
                str(row.pods),
                str(row.parallel),
                f"{row.ours:.3f}",
                "-" if row.peer is None else f"{row.peer:.3f}",
                row.unit,
                "-" if row.ratio is None else f"{row.ratio:.3f}",
                "" if row.target is None else f"<= {row.target:g}",
                verdict,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, 5) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
