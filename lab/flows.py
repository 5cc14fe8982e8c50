"""A flow that tells what was lost: one pod pings another every 10 ms while something happens.

``ping`` of iputils stamps each reply, so a hole has a beginning and an end, and not only a size.
"""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from lab import namespaces
from lab.plan import Address, LabFailure

INTERVAL_S = 0.01
END_DEADLINE_S = 5.0

_REPLY = re.compile(r"^\[(?P<at>[0-9.]+)\] .*icmp_seq=(?P<seq>[0-9]+) .*time=")
_SUMMARY = re.compile(r"^(?P<sent>[0-9]+) packets transmitted")


@dataclass(frozen=True, slots=True)
class Loss:
    """What one flow lost.

    Attributes:
        sent: packets.
        lost: packets without a reply. The very last one, which may be under way, does not count.
        gap_s: the longest time between two replies; the end of the flow counts as one.
    """

    name: str
    sent: int
    lost: int
    gap_s: float

    def __str__(self) -> str:
        return f"{self.name}: {self.lost} of {self.sent} lost, longest gap {self.gap_s:.2f} s"


def parse(name: str, lines: Sequence[str], ended_at_s: float | None = None) -> Loss:
    """What ``ping -D`` printed, until and with its summary.

    Raises:
        LabFailure: there is no summary: ping did not run, or was killed.
    """
    replies: dict[int, float] = {}
    sent = None
    for line in lines:
        if reply := _REPLY.match(line):
            replies[int(reply["seq"])] = float(reply["at"])
        elif summary := _SUMMARY.match(line):
            sent = int(summary["sent"])
    if sent is None:
        raise LabFailure(f"{name}: ping said nothing: {' / '.join(lines[-3:])}")
    last = max(replies, default=0)
    missing = last - len(replies)
    under_way = sent - last
    times = sorted(replies.values())
    if ended_at_s is not None and under_way > 1:
        times.append(ended_at_s)
    gap_s = max((later - at for at, later in itertools.pairwise(times)), default=0.0)
    return Loss(name, sent, missing + (under_way if under_way > 1 else 0), gap_s)


@dataclass(slots=True)
class Flow:
    """A ping under way."""

    name: str
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    reader: threading.Thread | None = None

    @classmethod
    def start(cls, name: str, namespace: str, to: Address) -> Flow:
        """Begins to ping ``to`` from ``namespace``."""
        argv = ["ping", f"-{to.version}", "-n", "-D", "-i", str(INTERVAL_S), str(to)]
        flow = cls(
            name,
            subprocess.Popen(
                namespaces.enter(namespace, argv),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            ),
        )
        flow.reader = threading.Thread(target=flow._read, daemon=True)
        flow.reader.start()
        return flow

    def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - a pipe was asked for
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def replies(self) -> int:
        """How many have come so far."""
        return sum("icmp_seq" in line for line in self.lines)

    def end(self) -> list[str]:
        """Ends it and returns all it printed."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.reader is not None:
            self.reader.join(END_DEADLINE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return self.lines


@contextmanager
def flowing(ends: Sequence[tuple[str, str, Address]]) -> Iterator[list[Flow]]:
    """Flows (name, from namespace, to) for as long as the block runs."""
    with ExitStack() as stack:
        flows = []
        for name, namespace, to in ends:
            flow = Flow.start(name, namespace, to)
            stack.callback(flow.end)
            flows.append(flow)
        yield flows


def losses(flows: Sequence[Flow], *, ended_at_s: float) -> list[Loss]:
    """Ends all flows and says what each lost; ``ended_at_s`` is the time of day now."""
    return [parse(flow.name, flow.end(), ended_at_s) for flow in flows]
