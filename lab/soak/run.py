"""The run: workers that add and delete pods, hands that kill, a look at the node between batches.

Launchers are executed as a runtime does, without its overhead, and killed at random moments; after
a killed or refused ADD comes the DEL that a runtime sends, until it succeeds. Namespaces are
renewed now and then, sometimes before the DEL. In the first half one agent lives; in the second it
is killed or told to end under load, again and again. Every batch ends with no pod but the one that
stays, and then everything is counted.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from cni.launcher.build import build, host_architecture
from lab import interrupts, namespaces
from lab.chaos.world import World
from lab.plan import LabFailure
from lab.soak.figures import Outcome, Sample
from lab.waiting import Progress, wait_until

NODE = "node1"
WORKERS = 6
BATCH_PAIRS = 100
KILLED_LAUNCHERS = 0.05
KILL_WITHIN_S = 0.02
RENEWED = 0.02
CALL_DEADLINE_S = 90.0
ADD_DEADLINE_S = 60.0
DEL_DEADLINE_S = 60.0
FINDINGS_MAX = 20
"""Whoever finds so many need not look further."""
AGAIN_S = 0.2
REST_DEADLINE_S = 45.0
RECORDS_DEADLINE_S = 90.0
"""Three times what lies between two replays."""
ADD_CODES = {5, 11}
"""What an ADD may be refused with here: the agent has just died under it, or is not back yet."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much. The second half of the pairs is spread over the restarts."""

    pairs: int = 20_000
    restarts: int = 200
    seed: int = 1


class Soak:
    """One run over one lab."""

    def __init__(self, world: World, size: Size, progress: Progress) -> None:
        self._world = world
        self._size = size
        self._progress = progress
        self._chance = random.Random(size.seed)  # noqa: S311 - which launcher is killed
        self._lock = Lock()
        self._answers: Counter[str] = Counter()
        self._outcome = Outcome()
        self._slots = [f"{world.pod_on(NODE).namespace}-k{n}" for n in range(WORKERS)]
        self._pairs = self._restarts = self._container = 0
        paths = world.lab.paths
        self._launcher = paths.cni_bin(NODE) / "slash32"
        conf = json.loads(next(paths.cni_conf(NODE).glob("*.conflist")).read_text())
        plugin = {key: value for key, value in conf["plugins"][0].items() if key != "capabilities"}
        self._stdin = json.dumps(plugin | {"name": conf["name"], "cniVersion": "1.0.0"}).encode()

    def run(self) -> Outcome:
        """The whole run; what it found is in the outcome, not raised."""
        begun_s = time.monotonic()
        fresh = self._launcher.with_name("slash32.new")
        build(fresh, arch=host_architecture())
        os.replace(fresh, self._launcher)
        namespaces.create(self._slots)
        try:
            with ThreadPoolExecutor(WORKERS) as pool:
                self._phases(pool)
        finally:
            for slot in self._slots:
                namespaces.delete(slot)
        self._await_no_records()
        self._outcome.findings += self._world.at_rest()
        self._outcome.answers = dict(sorted(self._answers.items()))
        self._outcome.seconds = time.monotonic() - begun_s
        return self._outcome

    def _phases(self, pool: ThreadPoolExecutor) -> None:
        steady = self._size.pairs // 2 if self._size.restarts else self._size.pairs
        # The first batch is not counted: blocks are claimed, files made.
        self._batch(pool, min(BATCH_PAIRS, steady))
        self._look()
        while self._pairs < steady and len(self._outcome.findings) < FINDINGS_MAX:
            self._batch(pool, min(BATCH_PAIRS, steady - self._pairs))
            self._look()
        for number in range(self._size.restarts):
            if len(self._outcome.findings) >= FINDINGS_MAX:
                return
            left = self._size.pairs - self._pairs
            share = max(WORKERS, left // (self._size.restarts - number))
            self._batch(pool, share, kills=True)
            self._look()

    def _batch(self, pool: ThreadPoolExecutor, pairs: int, *, kills: bool = False) -> None:
        shares = [pairs // WORKERS + (n < pairs % WORKERS) for n in range(WORKERS)]
        futures = [
            pool.submit(self._work, slot, share)
            for slot, share in zip(self._slots, shares, strict=True)
        ]
        if kills:
            self._kill_agent()
        for future in futures:
            future.result()
        self._pairs += pairs
        interrupts.check()

    def _kill_agent(self) -> None:
        """Somewhere in the batch; SIGKILL or SIGTERM."""
        with self._lock:
            pause_s = self._chance.uniform(0.0, 0.3)
            number = self._chance.choice((signal.SIGKILL, signal.SIGTERM))
        self._world.for_seconds(pause_s)
        self._world.kill(f"agent-{NODE}", number)
        self._world.start_agent(NODE)
        self._restarts += 1
        self._answers[f"agent ended by {number.name}"] += 1

    # -- one worker --------------------------------------------------------------------------

    def _work(self, slot: str, pairs: int) -> None:
        done = 0
        refused_since_s: float | None = None
        while done < pairs:
            with self._lock:
                self._container += 1
                container = f"{self._container:064x}"
                is_killed = self._chance.random() < KILLED_LAUNCHERS
                kill_after_s = self._chance.uniform(0.0, KILL_WITHIN_S)
                is_renewed = self._chance.random() < RENEWED
                is_gone_first = self._chance.random() < 0.5
            is_added = self._add(container, slot, kill_after_s if is_killed else None)
            if is_renewed and is_gone_first:
                namespaces.delete(slot)
            self._delete(container, slot, is_gone=is_renewed and is_gone_first)
            if is_renewed:
                if not is_gone_first:
                    namespaces.delete(slot)
                namespaces.create([slot])
            done += is_added
            if is_added:
                refused_since_s = None
                continue
            refused_since_s = refused_since_s or time.monotonic()
            if time.monotonic() > refused_since_s + ADD_DEADLINE_S:
                self._find(f"no ADD succeeded within {ADD_DEADLINE_S:g} s")
                return
            # As kubelet does: a new sandbox, after a while.
            time.sleep(AGAIN_S)

    def _add(self, container: str, slot: str, kill_after_s: float | None) -> bool:
        """Whether the pod ran, or its launcher was killed."""
        code, killed = self._call("ADD", container, slot, kill_after_s)
        if killed or code is None:
            self._count("launcher killed in ADD" if killed else "ADD ok")
            return True
        self._count(f"ADD code {code}")
        if code not in ADD_CODES:
            self._find(f"ADD answered with code {code}")
        return False

    def _delete(self, container: str, slot: str, *, is_gone: bool) -> None:
        end_s = time.monotonic() + DEL_DEADLINE_S
        with self._lock:
            is_killed = self._chance.random() < KILLED_LAUNCHERS
            kill_after_s: float | None = self._chance.uniform(0.0, KILL_WITHIN_S)
        if not is_killed:
            kill_after_s = None
        while True:
            code, killed = self._call("DEL", container, "" if is_gone else slot, kill_after_s)
            if killed:
                self._count("launcher killed in DEL")
            elif code is None:
                self._count("DEL ok")
                return
            else:
                self._count(f"DEL code {code}")
                time.sleep(AGAIN_S)
            kill_after_s = None
            if time.monotonic() > end_s:
                self._find(f"DEL did not succeed within {DEL_DEADLINE_S:g} s: code {code}")
                return

    def _call(
        self, command: str, container: str, slot: str, kill_after_s: float | None
    ) -> tuple[int | None, bool]:
        """(the CNI error code or None, whether the launcher was killed)."""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": str(namespaces.NETNS_DIR / slot) if slot else "",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self._launcher.parent),
        }
        with subprocess.Popen(
            [str(self._launcher)],
            env=environment,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                out, _ = process.communicate(
                    self._stdin, timeout=CALL_DEADLINE_S if kill_after_s is None else kill_after_s
                )
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                if kill_after_s is None:
                    self._find(f"{command} without an answer for {CALL_DEADLINE_S:g} s")
                return None, True
        if process.returncode == 0:
            return None, False
        try:
            return int(json.loads(out)["code"]), False
        except (ValueError, KeyError, TypeError):
            self._find(f"{command}: exit {process.returncode}, {out[:200]!r}")
            return -1, False

    def _count(self, what: str) -> None:
        with self._lock:
            self._answers[what] += 1

    def _find(self, what: str) -> None:
        with self._lock:
            if len(self._outcome.findings) < FINDINGS_MAX:
                self._outcome.findings.append(f"after {self._pairs} pairs: {what}")

    def _await_no_records(self) -> None:
        """Half-written records go at the first replay after their two minutes, which are made to
        be over: every launcher has ended."""
        directory = self._world.lab.paths.run_dir(NODE) / "deleted"
        for path in directory.glob(".*"):
            os.utime(path, (0, 0))
        try:
            wait_until(
                lambda: os.listdir(directory),
                what="records",
                deadline_s=RECORDS_DEADLINE_S,
                poll_s=0.5,
            )
        except LabFailure as error:
            self._find(str(error))

    # -- looking -----------------------------------------------------------------------------

    def _look(self) -> None:
        """Waits for rest, counts everything."""
        world = self._world
        run_dir = world.lab.paths.run_dir(NODE)

        def restless() -> list[str]:
            if world.lab.dead_processes():
                return world.lab.dead_processes()
            rows = world.ask(NODE, "pods")
            links = self._pod_links()
            # What a killed launcher has half written stays for two minutes: it is no promise yet.
            left = [path.name for path in (run_dir / "deleted").glob("[!.]*")]
            found = [] if rows is not None and len(rows) == 1 else ["the agent's pods"]
            return [*found, *([] if links == 1 else [f"{links} links"]), *left]

        try:
            wait_until(restless, what="rest", deadline_s=REST_DEADLINE_S, poll_s=0.2)
        except LabFailure as error:
            self._find(str(error))
        self._outcome.samples.append(self._sample())
        if len(self._outcome.samples) % 10 == 1:
            last = self._outcome.samples[-1]
            self._progress.say(
                f"{last.pairs} pairs, {last.restarts} restarts: agent {last.agent_kib} KiB, "
                f"speaker {last.speaker_kib} KiB, {last.agent_fds} descriptors"
            )

    def _pod_links(self) -> int:
        namespace = self._world.machine(NODE).namespace
        return sum(
            link["ifname"].startswith("s32") for link in namespaces.ip_json(namespace, "link")
        )

    def _sample(self) -> Sample:
        world = self._world
        namespace = world.machine(NODE).namespace
        agent = world.process(f"agent-{NODE}").pid
        speaker = family_of(world.process(f"speaker-{NODE}").pid)
        threads = len(os.listdir(f"/proc/{agent}/task"))
        run_dir = world.lab.paths.run_dir(NODE)
        routes = world.own_routes(NODE)
        state = [p for p in world.lab.paths.state_dir(NODE).rglob("*") if p.is_file()]
        return Sample(
            pairs=self._pairs,
            restarts=self._restarts,
            steady=self._restarts == 0,
            agent_kib=resident_kib(agent),
            speaker_kib=sum(map(resident_kib, speaker)),
            agent_fds=descriptors(agent) - threads,
            agent_threads=threads,
            speaker_fds=sum(map(descriptors, speaker)),
            namespaces=sum(
                path.name.startswith(f"s32-{world.lab.plan.name}-")
                for path in namespaces.NETNS_DIR.iterdir()
            ),
            tmp_entries=len(os.listdir("/tmp")),  # noqa: S108 - what is left there
            run_files=sum(
                (path.is_file() or path.is_socket()) and not _is_half_written(path)
                for path in run_dir.rglob("*")
            ),
            state_kib=sum(path.stat().st_size for path in state) // 1024,
            links=len(namespaces.ip_json(namespace, "link")),
            pod_routes=sum(" dev s32" in route for route in routes),
            blocks=sum(route.startswith("blackhole") for route in routes),
            rules=len(world.run(NODE, "nft", "list", "ruleset").splitlines()),
        )  # fmt: skip


def resident_kib(pid: int) -> int:
    """VmRSS of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def family_of(pid: int) -> list[int]:
    """A process and all that it has started and those have."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, level = [pid], [pid]
    while level:
        level = [child for each in level for child in children.get(each, [])]
        found += level
    return found


def _is_half_written(path: Path) -> bool:
    """A killed launcher's record, which goes after two minutes: what a rest a few seconds after it
    finds of them says how many were killed, and nothing of what is left. That none stays is seen
    at the end."""
    return path.parent.name == "deleted" and path.name.startswith(".")
