"""What a fault costs: packets about every 8 ms, and every route that changed while it lasted."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO

from lab import namespaces
from lab.waiting import wait_until

INTERVAL_S = 0.01
PINGS_EACH = 2
"""For each flow: ping makes 17 ms of 10 on a kernel of 250 Hz, and below 10 it never sleeps."""
READY_DEADLINE_S = 20.0
END_DEADLINE_S = 15.0
HALF_ROUND = 1 << 15
IN_FLIGHT = 20
"""Probes at the very end whose answer may still be under way: a busy machine is no loss."""

_ANSWER = re.compile(rb"^\[(\d+\.\d+)\] .*icmp_seq=(\d+) ttl=", re.MULTILINE)
_PING = ("ping", "-D", "-n", "-i", str(INTERVAL_S))
_SENT = re.compile(rb"(\d+) packets transmitted")


@dataclass(frozen=True, slots=True)
class Flow:
    """Who pings whom: ``source`` is a namespace, ``address`` the target's."""

    name: str
    source: str
    address: str


@dataclass(frozen=True, slots=True)
class Loss:
    """What became of one flow's probes."""

    flow: str
    sent: int
    lost: int
    longest_gap_s: float


@dataclass
class Watch:
    """Filled when the watching ends."""

    losses: list[Loss] = field(default_factory=list)
    route_events: dict[str, list[str]] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        return sum(loss.lost for loss in self.losses)

    @property
    def sent(self) -> int:
        return sum(loss.sent for loss in self.losses)

    @property
    def longest_gap_s(self) -> float:
        return max((loss.longest_gap_s for loss in self.losses), default=0.0)

    def events_on(self, *machines: str) -> list[str]:
        """The route changes that those machines saw."""
        return [f"{name}: {line}" for name in machines for line in self.route_events[name]]

    def __str__(self) -> str:
        text = f"{self.lost} of {self.sent} probes lost"
        if self.lost:
            text += f" (longest gap {self.longest_gap_s:.2f} s)"
        return text


def loss_of(flow: str, output: bytes, *, begun_s: float, ended_s: float) -> Loss:
    """Reads what ``ping -D`` printed. Pure.

    Gaps are read from the clock, not from the number of probes: ping sends fewer of them while
    routers refuse them, and on a machine that is busy.

    Args:
        begun_s, ended_s: when ping began and was ended, in seconds of the wall clock.

    Raises:
        ValueError: it has no summary.
    """
    summary = _SENT.search(output)
    if summary is None:
        raise ValueError(f"{flow}: ping printed no summary: {output[-200:]!r}")
    sent = int(summary[1])
    came_s: dict[int, float] = {}
    near = 0
    for time_s, text in _ANSWER.findall(output):
        # Sixteen bits, which ten minutes of probes use up: the number nearest to the one before.
        near += (int(text) - near + HALF_ROUND) % (2 * HALF_ROUND) - HALF_ROUND
        came_s.setdefault(near, float(time_s))
    answered = sorted(came_s.items())
    last = answered[-1][0] if answered else 0
    tail = sent - last
    lost = last - len(answered) + (tail if tail > IN_FLIGHT else 0)
    edges = [(0, begun_s), *answered, *([(sent + 1, ended_s)] if tail > IN_FLIGHT else [])]
    gaps = [until_s - since_s for (a, since_s), (b, until_s) in pairwise(edges) if b - a > 1]
    return Loss(flow, sent, lost, max([0.0, *gaps]))


def whole(losses: Sequence[Loss]) -> Loss:
    """What all pings of one flow lost, at least one. Pure."""
    return Loss(
        flow=losses[0].flow,
        sent=sum(loss.sent for loss in losses),
        lost=sum(loss.lost for loss in losses),
        longest_gap_s=max(loss.longest_gap_s for loss in losses),
    )


@contextmanager
def watching(flows: Sequence[Flow], machines: Mapping[str, str]) -> Iterator[Watch]:
    """Pings along every flow and records route changes on every machine, meanwhile.

    Args:
        flows: at least one.
        machines: name to namespace.

    Raises:
        LabFailure: a ping did not get ready.
    """
    watch = Watch()
    with ExitStack() as stack:
        monitors = {
            name: stack.enter_context(_running(namespace, ["ip", "-o", "monitor", "route"]))
            for name, namespace in machines.items()
        }
        pings = [
            (flow.name, stack.enter_context(_running(flow.source, [*_PING, flow.address])))
            for flow in flows
            for _ in range(PINGS_EACH)
        ]
        begun_s = time.time()
        # Before it has a handler of its own, SIGINT would end ping without its summary.
        wait_until(
            lambda: [name for name, p in pings if not _catches_sigint(p.process.pid)],
            what="pings",
            deadline_s=READY_DEADLINE_S,
        )
        yield watch
        found: dict[str, list[Loss]] = {flow.name: [] for flow in flows}
        for name, ping in pings:
            ended_s = time.time()
            output = ping.end(signal.SIGINT)
            found[name].append(loss_of(name, output, begun_s=begun_s, ended_s=ended_s))
        watch.losses += [whole(losses) for losses in found.values()]
        for name, monitor in monitors.items():
            text = monitor.end(signal.SIGTERM).decode(errors="replace")
            watch.route_events[name] = route_changes(text)


@dataclass(frozen=True, slots=True)
class _Recorded:
    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def end(self, number: signal.Signals) -> bytes:
        self.process.send_signal(number)
        self.process.wait(timeout=END_DEADLINE_S)
        self.output.seek(0)
        return self.output.read()


@contextmanager
def _running(namespace: str, argv: Sequence[str]) -> Iterator[_Recorded]:
    # Into a file: a pipe that nobody reads is full after ten seconds, and ping then waits.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            namespaces.enter(namespace, argv), stdout=output, start_new_session=True
        )
        try:
            yield _Recorded(process, output)
        finally:
            process.kill()
            process.wait()


def route_changes(text: str) -> list[str]:
    """The lines of ``ip monitor route`` that are a change; the kernel's own come by themselves."""
    return [
        line.strip() for line in text.splitlines() if line.strip() and "proto kernel" not in line
    ]


def _catches_sigint(pid: int) -> bool:
    """Whether a process has a handler for SIGINT (proc(5), SigCgt)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGINT - 1) & 1)
    return False
