"""Who must reach whom, and whether they did: plans probes, has them done, judges the outcomes.

The work is done by prober.py inside the namespaces. A probe is tried once: a packet lost in a
network that has converged is a finding, and a second try would hide it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from lab import namespaces
from lab.capture import Traffic
from lab.plan import Address, LabFailure, LabPlan
from lab.waiting import in_parallel

STREAM_BYTES = 1024 * 1024
READY_DEADLINE_S = 20.0
TASK_DEADLINE_S = 25.0
"""More than prober.py allows itself for one task."""
SOURCES_AT_ONCE = 4

PROBER = Path(__file__).with_name("prober.py")


class Kind(Enum):
    """What is tried."""

    PING = "ping"
    STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Probe:
    """One attempt. ``seen_as`` are the addresses the target may see the source under."""

    source: str
    target: str
    address: Address
    kind: Kind
    traffic: Traffic
    seen_as: frozenset[Address]

    def __str__(self) -> str:
        return f"{self.source} to {self.target} ({self.address}) {self.kind.value}"

    @property
    def task(self) -> dict[str, Any]:
        """The probe in prober.py's form."""
        size = self.traffic.ping_bytes if self.kind is Kind.PING else STREAM_BYTES
        return {
            "kind": self.kind.value,
            "address": str(self.address),
            "port": self.traffic.port,
            "bytes": size,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a probe: ``problem`` None is success; ``peer`` is what the server saw."""

    probe: Probe
    problem: str | None = None
    peer: str | None = None


PodAddresses = Mapping[str, Sequence[Address]]
"""Pod name -> its addresses, IPv4 first."""


def plan_probes(plan: LabPlan, pods: PodAddresses) -> list[Probe]:
    """Every probe of a lab: all ordered pod pairs, nodes to pods, client to and from pods."""
    own = {name: tuple(addresses) for name, addresses in pods.items()}
    client = plan.client.name
    own[client] = tuple(a.ip for a in plan.client.loopback)
    pairs = [(a, b, Traffic.POD_TO_POD) for a in pods for b in pods if a != b]
    for node in plan.nodes:
        own[node.name] = plan.addresses_of(node)
        pairs += [(node.name, pod, Traffic.NODE_AND_POD) for pod in pods]
    for pod in pods:
        pairs += [(client, pod, Traffic.CLIENT_AND_POD), (pod, client, Traffic.CLIENT_AND_POD)]
    return [
        Probe(source, target, address, kind, traffic, _of_version(own[source], address.version))
        for source, target, traffic in pairs
        for kind in Kind
        for address in own[target]
    ]


def _of_version(addresses: Iterable[Address], version: int) -> frozenset[Address]:
    return frozenset(a for a in addresses if a.version == version)


def judge(probe: Probe, outcome: Mapping[str, Any]) -> Outcome:
    """Holds what prober.py reports against what must be."""
    if "error" in outcome:
        return Outcome(probe, str(outcome["error"]))
    if probe.kind is Kind.PING:
        return Outcome(probe)
    report = outcome["report"]
    peer = str(report["peer"])
    if report["bytes"] != STREAM_BYTES:
        problem = f"{report['bytes']} of {STREAM_BYTES} bytes arrived"
    elif report["sha256"] != outcome["sha256"]:
        problem = "other bytes arrived than were sent"
    elif ip_address(peer) not in probe.seen_as:
        expected = " or ".join(sorted(str(a) for a in probe.seen_as))
        problem = f"the server saw {peer}, not {expected}"
    else:
        return Outcome(probe, peer=peer)
    return Outcome(probe, problem, peer)


class Prober:
    """A running prober.py in one namespace."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self._name = name
        self._process = process

    def ask(self, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Has tasks done, in order; one outcome each.

        Raises:
            LabFailure: the prober ended or did not answer in time.
        """
        deadline_s = TASK_DEADLINE_S * max(1, len(tasks))
        try:
            self._process.stdin.write(json.dumps(list(tasks)) + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except OSError as error:
            raise LabFailure(f"the prober in {self._name} is gone: {error.strerror}") from None
        return list(self._read(deadline_s))

    def wait_ready(self) -> None:
        """Returns once it listens on its ports."""
        self._read(READY_DEADLINE_S)

    def kill(self) -> None:
        """Ends it at once; whoever waits for an answer gets LabFailure."""
        self._process.kill()

    def _read(self, deadline_s: float) -> Any:
        watchdog = threading.Timer(deadline_s, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()  # type: ignore[union-attr]
        finally:
            watchdog.cancel()
        if not line:
            raise LabFailure(f"the prober in {self._name} ended, or took over {deadline_s:g} s")
        return json.loads(line)


@contextmanager
def running(plan: LabPlan, targets: Iterable[str], *, log: Path) -> Iterator[dict[str, Prober]]:
    """A prober in each of the named machines and pods, ready; ended on the way out."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        errors = stack.enter_context(log.open("a"))
        probers: dict[str, Prober] = {}
        for name in targets:
            ports = [str(traffic.port) for traffic in Traffic]
            # -I -S: this prober needs no site-packages, and many are started.
            process = subprocess.Popen(
                namespaces.enter(
                    plan.namespace_of(name), [sys.executable, "-I", "-S", str(PROBER), *ports]
                ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
            stack.callback(_end, process)
            probers[name] = Prober(name, process)
        for prober in probers.values():
            prober.wait_ready()
        yield probers


def _end(process: subprocess.Popen[str]) -> None:
    """Closing its stdin ends a prober; one that does not obey is killed."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was still to be written to one that died
                pipe.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run(
    probes: Sequence[Probe], probers: Mapping[str, Prober], *, on_done: Callable[[int], None]
) -> list[Outcome]:
    """Does every probe, several sources at a time; calls ``on_done`` with each share done.

    Raises:
        LabFailure: a prober failed (a probe that fails is an Outcome).
    """
    by_source: dict[str, list[Probe]] = {}
    for probe in probes:
        by_source.setdefault(probe.source, []).append(probe)

    def work(source: str) -> list[Outcome]:
        mine = by_source[source]
        answers = probers[source].ask([probe.task for probe in mine])
        on_done(len(mine))
        return [judge(probe, answer) for probe, answer in zip(mine, answers, strict=True)]

    def hurry() -> None:
        # A worker waits for its prober; killing that ends the wait.
        for prober in probers.values():
            prober.kill()

    shares = in_parallel(work, by_source, at_once=SOURCES_AT_ONCE, on_failure=hurry)
    return [outcome for share in shares for outcome in share]


def reachable_pairs(outcomes: Iterable[Outcome]) -> tuple[int, int]:
    """(ordered pod pairs of which every probe succeeded, ordered pod pairs)."""
    verdicts: dict[tuple[str, str], bool] = {}
    for outcome in outcomes:
        if outcome.probe.traffic is Traffic.POD_TO_POD:
            pair = (outcome.probe.source, outcome.probe.target)
            verdicts[pair] = verdicts.get(pair, True) and outcome.problem is None
    return sum(verdicts.values()), len(verdicts)
