"""``python -m lab.bench.cni``: our CNI plugin beside Debian's ptp and host-local, in one run.

Method: both are executed as whole processes in turn (A B, B A, ...), each with a fresh network
namespace that was made before the clock starts, on two nodes with the same number of pods. Before
each call we wait until nothing else wants a processor, and say how often that came true. After
each call of ours the agent may finish what it does behind its answer; that CPU is counted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.bench import stage
from lab.bench.figures import Row, Series, growth_rows, parallel_rows, serial_rows, table
from lab.bench.stage import Agent, BenchFailure, Call, Driver, Floor
from lab.interrupts import Interrupted, check, interruptible
from lab.plan import LabFailure
from lab.waiting import POLL_S, Progress

INSIDE = "SLASH32_BENCH_INSIDE"
NICE = -20
WARM_UP_ROUNDS = 5
FILL_AT_ONCE = 20
MEMORY_EVERY = 1000


@dataclass(slots=True)
class Party:
    """One of the two that are compared, with what was measured of it."""

    name: str
    driver: Driver
    agent: Agent | None = None
    pods: int = 0
    series: dict[str, Series] = field(default_factory=dict)

    def call(self, verb: str, container: str, netns: Path) -> None:
        """One call, into the series of that verb."""
        before = self.agent.cpu_ms() if self.agent else 0.0
        outcomes, _ = self.driver.run([Call(verb, container, str(netns))])
        self._note(verb, outcomes[0].wall_ms, outcomes[0].cpu_ms, calls=1, before=before)

    def call_all(self, verb: str, containers: Sequence[str], netns: Sequence[Path]) -> None:
        """Many at once: the wall of all together, the CPU of one."""
        before = self.agent.cpu_ms() if self.agent else 0.0
        calls = [Call(verb, c, str(n)) for c, n in zip(containers, netns, strict=True)]
        outcomes, total_ms = self.driver.run(calls)
        cpu_ms = sum(outcome.cpu_ms for outcome in outcomes) / len(calls)
        self._note(verb, total_ms, cpu_ms, calls=len(calls), before=before)

    def _note(self, verb: str, wall: float, cpu: float, *, calls: int, before: float) -> None:
        series = self.series.setdefault(verb, Series())
        series.wall.append(wall)
        series.cpu.append(cpu)
        if self.agent:
            series.agent_cpu.append((self.agent.settled_cpu_ms() - before) / calls)


class Bench:
    """One run over all cells."""

    def __init__(
        self, directory: Path, ours: Party, peer: Party, floor: Floor | None, progress: Progress
    ) -> None:
        self._directory = directory
        self._parties = (ours, peer)
        self._floor = floor
        self._progress = progress
        self._names = 0
        self._looks = self._quiet = 0

    def fresh(self, count: int) -> tuple[list[str], list[Path]]:
        """Container ids and namespaces for that many pods."""
        numbers = range(self._names, self._names + count)
        self._names += count
        paths = [self._directory / f"n{number}" for number in numbers]
        self._parties[0].driver.make_netns(paths)
        return [f"c{number:063x}" for number in numbers], paths

    def gate(self) -> None:
        """Waits for a quiet machine."""
        self._looks += 1
        self._quiet += stage.wait_for_quiet()

    def take_quiet_percent(self) -> float:
        """How often the machine was quiet since this was asked last."""
        percent = 100 * self._quiet / max(1, self._looks)
        self._looks = self._quiet = 0
        return percent

    def fill(self, pods: int) -> None:
        """Pods of both parties that stay, up to that many each."""
        for party in self._parties:
            missing = pods - party.pods
            for start in range(0, missing, FILL_AT_ONCE):
                names, paths = self.fresh(min(FILL_AT_ONCE, missing - start))
                calls = [Call("ADD", n, str(p)) for n, p in zip(names, paths, strict=True)]
                party.driver.run(calls)
            party.pods = max(party.pods, pods)

    def serial(self, pods: int, *, rounds: int) -> list[Row]:
        """One call at a time, the parties in turn."""
        self.round_trips(WARM_UP_ROUNDS)
        for party in self._parties:
            party.series.clear()
        self.take_quiet_percent()
        floor_add, floor_del, acknowledged = self.round_trips(rounds)
        ours, peer = self._parties
        rows: list[Row] = []
        for verb, floor in (("ADD", floor_add), ("DEL", floor_del)):
            rows += serial_rows(
                verb.lower(), pods, ours=ours.series[verb], peer=peer.series[verb],
                floor=floor if self._floor else None,
            )  # fmt: skip
        if acknowledged:
            middle = sorted(acknowledged)[len(acknowledged) // 2]
            self._progress.say(f"kernel acknowledges a deletion after {middle:.1f} ms (p50)")
        return rows

    def round_trips(self, rounds: int) -> tuple[Series, Series, list[float]]:
        """ADD and DEL of one pod by each, that often; what the floor took."""
        floor_add, floor_del, acknowledged = Series(), Series(), []
        names, paths = self.fresh(3 * rounds)
        for number in range(rounds):
            turn = list(zip(self._parties, names[3 * number :], paths[3 * number :], strict=False))
            if number % 2:
                turn.reverse()
            for verb in ("ADD", "DEL"):
                for party, name, path in turn:
                    self.gate()
                    party.call(verb, name, path)
            if self._floor:
                name, path = f"f{names[3 * number + 2][1:]}", paths[3 * number + 2]
                self.gate()
                added = self._floor.add(name, path)
                self.gate()
                removed, acknowledged_ms = self._floor.remove(name)
                for series, outcome in ((floor_add, added), (floor_del, removed)):
                    series.wall.append(outcome.wall_ms)
                    series.cpu.append(outcome.cpu_ms)
                acknowledged.append(acknowledged_ms)
        # Not between the calls: taking namespaces away keeps the kernel busy for a while.
        self._parties[0].driver.drop_netns(paths)
        return floor_add, floor_del, acknowledged

    def parallel(self, pods: int, count: int, *, rounds: int) -> list[Row]:
        """That many calls at once, the parties in turn."""
        for party in self._parties:
            party.series.clear()
        for number in range(rounds):
            turn = self._parties if number % 2 == 0 else self._parties[::-1]
            names, paths = self.fresh(count)
            for party in turn:
                for verb in ("ADD", "DEL"):
                    self.gate()
                    party.call_all(verb, names, paths)
            self._parties[0].driver.drop_netns(paths)
        ours, peer = (party.series for party in self._parties)
        return [
            row
            for verb in ("ADD", "DEL")
            for row in parallel_rows(verb.lower(), pods, count, ours=ours[verb], peer=peer[verb])
        ]

    def endure(self, calls: int, pods: int) -> list[Row]:
        """The agent's memory over that many ADD/DEL pairs, in MiB."""
        ours = self._parties[0]
        if ours.agent is None:
            return []
        rows, done = [], 0
        names, paths = self.fresh(FILL_AT_ONCE)
        while done < calls:
            for verb in ("ADD", "DEL"):
                ours.driver.run([Call(verb, n, str(p)) for n, p in zip(names, paths, strict=True)])
            done += len(names)
            if done % MEMORY_EVERY == 0:
                rss = ours.agent.rss_mib()
                self._progress.say(f"{done} pairs: agent {rss:.1f} MiB")
                rows.append(Row(f"agent_rss_after_{done}", pods, FILL_AT_ONCE, rss, None, "MiB"))
        ours.driver.drop_netns(paths)
        return rows


def measure(options: argparse.Namespace, directory: Path) -> list[Row]:
    """The whole run, inside the benchmark's own namespaces."""
    progress = Progress()
    stage.go_first(NICE)
    stage.make_nodes()
    program = stage.compile_driver(directory)
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        bench = _assemble(options, directory, program, stack, progress)
        for pods in options.pods:
            bench.fill(pods)
            rows += bench.serial(pods, rounds=options.rounds)
            for count in options.parallel:
                rows += bench.parallel(pods, count, rounds=options.parallel_rounds)
            rows += _memory(bench, pods)
            quiet = bench.take_quiet_percent()
            progress.say(f"{pods} pods measured; quiet before {quiet:.0f} % of the calls")
        rows += growth_rows(rows)
        rows += bench.endure(options.endurance, options.pods[-1])
    return rows


def _assemble(
    options: argparse.Namespace,
    directory: Path,
    program: Path,
    stack: contextlib.ExitStack,
    progress: Progress,
) -> Bench:
    ptp = stage.PEER_BIN / "ptp"
    if not ptp.exists():
        raise BenchFailure(f"{ptp} is missing: apt-get install containernetworking-plugins")

    def driver(plugin: Path, conf: Path, namespace: str) -> Driver:
        made = Driver(program, plugin=plugin, conf=conf, namespace=namespace)
        stack.callback(made.close)
        return made

    if options.ours == "ptp":
        ours = Party("ptp", driver(ptp, stage.peer_conf(directory, "other"), stage.OURS))
    else:
        agent, conf = stack.enter_context(
            stage.running_agent(directory, extra=options.agent_option)
        )
        plugin = stage.our_plugin(directory, form=options.ours)
        ours = Party(options.ours, driver(plugin, conf, stage.OURS), agent)
        progress.say(f"agent started, {agent.rss_mib():.1f} MiB")
    peer = Party("ptp", driver(ptp, stage.peer_conf(directory, "peer"), stage.PEER))
    floor = Floor(namespace=stage.OURS)
    stack.callback(floor.close)
    return Bench(directory, ours, peer, floor, progress)


def _memory(bench: Bench, pods: int) -> Iterator[Row]:
    agent = bench._parties[0].agent
    if agent is not None:
        yield Row("agent_rss", pods, 1, agent.rss_mib(), None, "MiB")


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lab.bench.cni", description=__doc__)

    def numbers(text: str) -> list[int]:
        return sorted({int(part) for part in text.split(",") if part})

    parser.add_argument("--pods", type=numbers, default=[0, 100, 500, 1000])
    parser.add_argument("--rounds", type=int, default=40, help="serial ADD/DEL pairs a cell")
    parser.add_argument("--parallel", type=numbers, default=[20, 50])
    parser.add_argument("--parallel-rounds", type=int, default=7)
    parser.add_argument("--endurance", type=int, default=0, help="ADD/DEL pairs for the memory")
    parser.add_argument("--ours", choices=["static", "python", "ptp"], default="static")
    parser.add_argument("--agent-option", action="append", default=[], help="for slash32 agent")
    parser.add_argument("--out", type=Path, default=Path("build/bench-cni.jsonl"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 measured (whatever the figures are), 1 not."""
    if os.geteuid() != 0:
        sys.stderr.write("bench-cni: making namespaces needs root\n")
        return 1
    options = options_of(arguments)
    if INSIDE not in os.environ:
        try:
            return _enter(arguments)
        except Interrupted as error:
            return error.exit_code
    directory = Path(os.environ[INSIDE])
    try:
        rows = measure(options, directory)
    except (LabFailure, OSError) as error:
        sys.stderr.write(f"bench-cni: {error}\n")
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(f"{row.as_json()}\n" for row in rows))
    print(table(rows))
    missed = sum(row.is_reached is False for row in rows)
    print(f"bench-cni: {len(rows)} figures in {options.out}, {missed} targets missed")
    return 0


def _enter(arguments: Sequence[str] | None) -> int:
    """Runs this again in namespaces of its own, where the kernel tidies up after it.

    Raises:
        Interrupted: asked to end; what ran inside has ended with its process namespace.
    """
    with interruptible(), tempfile.TemporaryDirectory(prefix="slash32-bench-") as directory:
        own = list(sys.argv[1:] if arguments is None else arguments)
        script = 'mount -t tmpfs -o mode=0700 tmpfs "$0" && exec "$@"'
        unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        again = [sys.executable, "-m", "lab.bench.cni", *own]
        argv = [*unshare, "/bin/sh", "-c", script, directory, *again]
        # In a session of its own: a Ctrl-C is ours to hear, and we end it.
        with subprocess.Popen(
            argv, env={**os.environ, INSIDE: directory}, start_new_session=True
        ) as process:
            try:
                while process.poll() is None:
                    check()
                    time.sleep(POLL_S)
            finally:
                process.kill()
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
