"""O10: agent and speaker each in a memory cgroup, as the kubelet puts a container's processes.

The kernel kills what goes over the limit. A row that says "stays under" shows in the same run that
it does: a ballast is put into the same cgroup, which the kernel chooses last, and grows until the
other one has been killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from lab.chaos.many_routes import learned, many_routes
from lab.chaos.rows import Row, Skipped, Stage, Verdict
from lab.chaos.world import World, zero
from lab.processes import is_alive
from lab.waiting import wait_until

MIB = 1 << 20
LIMIT_MIB = 128
ROUTES = 5_000
MOUNT = Path("/sys/fs/cgroup")
KILL_DEADLINE_S = 60.0
EMPTY_DEADLINE_S = 10.0
_JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
_CHOSEN_FIRST = "echo 1000 > /proc/self/oom_score_adj && "
_BALLAST = f"""
import pathlib, sys, time
counter, before, kept = pathlib.Path(sys.argv[1]), int(sys.argv[2]), []
while True:
    words = counter.read_text().split()
    if int(words[words.index("oom_kill") + 1]) > before:
        break
    kept.append(b"x" * {MIB // 4})
    time.sleep(0.005)
"""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One memory cgroup, of version 1 or 2."""

    path: Path
    is_v2: bool

    @property
    def joining(self) -> tuple[str, ...]:
        """The command that runs another one inside, which the kernel then kills before others."""
        return ("sh", "-c", _CHOSEN_FIRST + _JOIN, str(self.path))

    @property
    def counter(self) -> Path:
        """The file that has ``oom_kill N`` in it."""
        return self.path / ("memory.events" if self.is_v2 else "memory.oom_control")

    @property
    def kills(self) -> int:
        """How often the kernel has killed somebody in it for the limit."""
        words = self.counter.read_text().split()
        return int(words[words.index("oom_kill") + 1])

    @property
    def in_use_mib(self) -> float:
        """What could not be given back: without the page cache, which the limit reclaims first."""
        stat = dict(line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        cache = "inactive_file", "active_file"
        used = "memory.current" if self.is_v2 else "memory.usage_in_bytes"
        prefix = "" if self.is_v2 else "total_"
        reclaimable = sum(int(stat[prefix + name]) for name in cache)
        return (int((self.path / used).read_text()) - reclaimable) / MIB

    def limit(self, mib: int) -> None:
        """Sets it; without swap, where there is any, as the kubelet's containers are."""
        if self.is_v2:
            (self.path / "memory.max").write_text(str(mib * MIB))
            with suppress(OSError):
                (self.path / "memory.swap.max").write_text("0")
        else:
            (self.path / "memory.limit_in_bytes").write_text(str(mib * MIB))
            with suppress(OSError):
                (self.path / "memory.memsw.limit_in_bytes").write_text(str(mib * MIB))


def _parent() -> tuple[Path, bool]:
    """Where a memory cgroup can be made, and whether that is version 2.

    Raises:
        Skipped: nowhere.
    """
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for _, controllers, path in own:
        if "memory" in controllers.split(","):
            here = MOUNT / "memory"
            return (here / path.lstrip("/") if (here / path.lstrip("/")).is_dir() else here), False
    if "memory" not in (MOUNT / "cgroup.controllers").read_text().split():
        raise Skipped("the kernel has no memory controller here")
    # Only a cgroup without processes of its own may hand a controller down: the root may.
    (MOUNT / "cgroup.subtree_control").write_text("+memory")
    return MOUNT, True


@contextmanager
def cgroup(name: str, *, limit_mib: int) -> Iterator[Cgroup]:
    """A memory cgroup with a limit; removed at the end, when nobody is in it any more.

    Raises:
        Skipped: none can be made here.
    """
    path: Path | None = None
    try:
        parent, is_v2 = _parent()
        path = parent / f"s32-chaos-{os.getpid()}-{name}"
        path.mkdir()
        made = Cgroup(path, is_v2)
        made.limit(limit_mib)
        # A kernel that does not count whom it kills has no row.
        made.kills  # noqa: B018
    except (OSError, ValueError) as error:
        if path is not None and path.is_dir():
            path.rmdir()
        raise Skipped(f"no memory cgroup can be made here: {error}") from None
    try:
        yield made
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    """Its processes have been ended; the kernel lets go of them a moment later."""

    def look() -> list[str]:
        with suppress(OSError):
            path.rmdir()
        return ["processes in it"] if path.exists() else []

    wait_until(look, what=f"{path} to be empty", deadline_s=EMPTY_DEADLINE_S)


class Highest(Thread):
    """Looks every tenth of a second how much is in use, as long as it is entered."""

    def __init__(self, *cgroups: Cgroup) -> None:
        super().__init__(daemon=True)
        self._cgroups = cgroups
        self._end = Event()
        self.mib = [0.0 for _ in cgroups]

    def run(self) -> None:
        while not self._end.wait(0.1):
            now = [each.in_use_mib for each in self._cgroups]
            self.mib = [max(pair) for pair in zip(self.mib, now, strict=True)]

    def __enter__(self) -> Highest:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()


def under_a_limit(world: World, verdict: Verdict) -> None:
    """Agent and speaker of node1, each in a cgroup of 128 MiB, learn 5,000 routes, are asked for
    all of them, and are killed and started again with them. Then, as the control, the kernel kills
    first the one and then the other for the same limit."""
    with ExitStack() as stack:
        agent = stack.enter_context(cgroup("agent", limit_mib=LIMIT_MIB))
        speaker = stack.enter_context(cgroup("speaker", limit_mib=LIMIT_MIB))
        stack.callback(_restarted, world)
        stack.enter_context(_wrapped(world, agent=agent, speaker=speaker))
        _restarted(world)
        with Highest(agent, speaker) as highest:
            took_s = stack.enter_context(many_routes(world, ROUTES))
            rows = world.ask("node1", "routes") or []
            with world.watching() as watch:
                world.kill("agent-node1")
                world.kill_speaker("node1")
                world.start_speaker("node1")
                world.start_agent("node1")
                world.settled()
                _ask_much(world)
        verdict.note(
            f"{learned(world)} routes {took_s:.1f} s after they were announced; at most "
            f"{highest.mib[0]:.0f} MiB in the agent's cgroup, {highest.mib[1]:.0f} MiB in the "
            "speaker's; both killed and started again"
        )
        zero(world, verdict, watch)
        verdict.must(len(rows) >= ROUTES, f"the agent shows {len(rows)} routes")
        verdict.must(agent.kills + speaker.kills == 0, "the kernel killed one for its limit")
        for what, mib in zip(("agent", "speaker"), highest.mib, strict=True):
            # Nothing measured is no little.
            verdict.must(10 < mib <= LIMIT_MIB, f"the {what} used {mib:.0f} MiB")
        _killed_for_it(world, verdict, agent=agent, speaker=speaker)


def _killed_for_it(world: World, verdict: Verdict, *, agent: Cgroup, speaker: Cgroup) -> None:
    """The same limit, when it is reached: what the kernel kills costs nothing either."""
    with world.watching() as watch:
        victim, exabgp = world.process("agent-node1"), world.exabgp_pid("node1")
        _fill(agent)
        world.wait(lambda: not is_alive(victim), "the agent's end")
        # As the kubelet does; the speaker's supervisor sees to ExaBGP itself.
        world.start_agent("node1")
        world.wait(lambda: world.is_healthy("node1"), "a healthy agent")
        _fill(speaker)
        world.wait(lambda: world.exabgp_pid("node1") not in {0, exabgp}, "another ExaBGP")
        world.settled()
    verdict.note("control: over the limit the kernel killed first the agent, then ExaBGP")
    verdict.must(agent.kills > 0 and speaker.kills > 0, "the limit kills nobody")
    zero(world, verdict, watch)


def _fill(victim: Cgroup) -> None:
    """Until the kernel has killed somebody in it. The ballast may be the second one: it takes some
    more before the first one's memory is free."""
    command = ["sh", "-c", _JOIN, str(victim.path), sys.executable, "-I", "-S", "-c", _BALLAST]
    subprocess.run(
        [*command, str(victim.counter), str(victim.kills)], check=False, timeout=KILL_DEADLINE_S
    )


@contextmanager
def _wrapped(world: World, *, agent: Cgroup, speaker: Cgroup) -> Iterator[None]:
    """Whatever agent or speaker is started meanwhile is started in there."""
    before = world.lab.wrappers
    world.lab.wrappers = {**before, "agent": agent.joining, "speaker": speaker.joining}
    try:
        yield
    finally:
        world.lab.wrappers = before


def _restarted(world: World) -> None:
    world.kill("agent-node1")
    world.kill_speaker("node1")
    world.start_speaker("node1")
    world.start_agent("node1")
    world.settled()


def _ask_much(world: World) -> None:
    """What operators and monitoring ask: everything, at once, more than once."""
    with ThreadPoolExecutor(max_workers=4) as asking:
        asked = [asking.submit(world.ask, "node1", view) for view in ("routes", "status") * 4]
        for each in asked:
            each.result()


ROWS = [
    Row("O10", f"agent and speaker each limited to {LIMIT_MIB} MiB, {ROUTES:,} routes, all of them "
        "asked for; both killed and started again; then driven over their limit",
        f"under {LIMIT_MIB} MiB; killed for it (the control within): 0 lost, 0 route events",
        Stage.ONE_TOR, under_a_limit, control="R0"),
]  # fmt: skip
