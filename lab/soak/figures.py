"""What is counted on the node at rest, over a run, and what of it must be flat. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

WARM_UP = 0.2
"""Of a phase's samples: Python's arenas and our caches fill up in the beginning."""
SLOPE_MAX_KIB = 100.0
"""A thousand pairs, at most: a busy node's day of 14,000 costs 1.4 MiB then."""
RESTART_SLOPE_MAX_KIB = 4.0
"""An agent's restart, in the speaker, the bridge and ExaBGP, which live through all of them."""
FILES_MAX = 2
STATE_MAX_KIB = 9 << 10
"""The journal keeps two files of 4 MiB; the rest is small."""
DESCRIPTORS_MAX = 2
"""More at the end than in the beginning: one connection of the CLI or the bridge either way."""
THREADS_MAX = 70
"""Those that remove links are made on demand, up to 64, each with a socket of its own."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The node at rest, no pod but the one that stays.

    Attributes:
        pairs, restarts: ADD/DEL pairs and restarts of the agent so far.
        steady: the agent has lived since the run began.
        agent_kib, speaker_kib: resident memory; the latter of supervisor, ExaBGP and bridge.
        agent_fds: without one for each of ``agent_threads``.
        tmp_entries: in a /tmp that is this run's alone.
        run_files: under the node's run directory, ``state`` included, without the half-written
            records of launchers killed in the last two minutes.
        pod_routes: over pods' links; ``blocks`` are the blackholes of this node's blocks, of which
            there are as many as resting addresses need.
    """

    pairs: int
    restarts: int
    steady: bool
    agent_kib: int
    speaker_kib: int
    agent_fds: int
    agent_threads: int
    speaker_fds: int
    namespaces: int
    tmp_entries: int
    run_files: int
    state_kib: int
    links: int
    pod_routes: int
    blocks: int
    rules: int


SAME = ("namespaces", "tmp_entries", "links", "pod_routes", "rules")
"""The same number at every rest, to the last one."""


@dataclass
class Outcome:
    """A whole run."""

    samples: list[Sample] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    """``ADD ok``, ``ADD code 11``, ``DEL ok``, ``launcher killed``, ... -> how often."""
    findings: list[str] = field(default_factory=list)
    """What was found wrong beside the curves: codes that must not be, the oracle's sentences."""
    seconds: float = 0.0

    def as_json(self) -> str:
        """For a file; ``outcome_of`` reads it."""
        return json.dumps(asdict(self))


def outcome_of(text: str) -> Outcome:
    """What ``as_json`` wrote."""
    raw = json.loads(text)
    raw["samples"] = [Sample(**each) for each in raw["samples"]]
    return Outcome(**raw)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the least-squares line through them; 0 when there is none."""
    count = len(points)
    if count < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def settled(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Without the warm-up."""
    return samples[int(len(samples) * WARM_UP) :]


def memory_slope(samples: Iterable[Sample]) -> float:
    """KiB of the agent a thousand pairs, while one agent lived."""
    steady = settled([each for each in samples if each.steady])
    return 1000 * slope([(each.pairs, each.agent_kib) for each in steady])


def restart_slope(samples: Iterable[Sample]) -> float:
    """KiB of the speaker's processes a restart of the agent."""
    later = settled([each for each in samples if each.restarts])
    return slope([(each.restarts, each.speaker_kib) for each in later])


def problems(outcome: Outcome) -> list[str]:
    """A sentence for everything that is not flat; [] when the run is as it must be."""
    found = list(outcome.findings)
    samples = outcome.samples
    if len(samples) < 3:
        return [*found, f"only {len(samples)} samples"]
    first, last = samples[0], samples[-1]
    for name in SAME:
        values = sorted({getattr(each, name) for each in samples})
        if len(values) > 1:
            found.append(f"{name}: {values[0]} to {values[-1]}, {getattr(last, name)} at the end")
    for name in ("agent_fds", "speaker_fds"):
        begun, ended = getattr(first, name), getattr(last, name)
        if ended > begun + DESCRIPTORS_MAX:
            found.append(f"{name}: {begun} in the beginning, {ended} at the end")
    if last.run_files > first.run_files + FILES_MAX:
        found.append(f"run_files: {first.run_files} in the beginning, {last.run_files} at the end")
    if max(each.state_kib for each in samples) > STATE_MAX_KIB:
        found.append(f"state_kib: over {STATE_MAX_KIB}")
    if max(each.agent_threads for each in samples) > THREADS_MAX:
        found.append(f"agent_threads: over {THREADS_MAX}")
    cut = len(samples) * 3 // 4
    most = max(each.blocks for each in samples[:cut])
    if max(each.blocks for each in samples[cut:]) > most:
        found.append(f"blocks: {most} at most in three quarters of the run, more in the last")
    steady = [each for each in samples if each.steady]
    if len(steady) >= 10 and memory_slope(samples) > SLOPE_MAX_KIB:
        found.append(f"the agent grows by {memory_slope(samples):.1f} KiB a thousand pairs")
    restarted = [each for each in samples if each.restarts]
    if len(restarted) >= 10 and restart_slope(samples) > RESTART_SLOPE_MAX_KIB:
        found.append(f"the speaker grows by {restart_slope(samples):.1f} KiB a restart")
    return found
