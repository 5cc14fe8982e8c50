"""O9: the disk under a node's run directory, state directory and store is full, or read-only.

Each directory is put on a file system of its own for as long as the row lasts, and that one is
filled to its last byte or mounted read-only, as an operator finds it at night. Nobody of slash32 is
told of it: what is owed is that packets and verbs go on, that the status says Degraded with path
and reason, that processes killed meanwhile come back, and that all is whole once there is room.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import build, namespaces, runtime
from lab.chaos.control_plane import answers
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.watch import Watch
from lab.chaos.world import World
from lab.plan import LabFailure

NODE = "node1"
TOLD_MAX_S = 10.0
WHOLE_MAX_S = 10.0
"""From the room's return until the node finds nothing wrong with itself."""
ADD_MAX_S = 5.0
SIZE = "8m"
BALLAST = "ballast"
_POOL = """
apiVersion: slash32.io/v1
kind: IPPool
metadata: {name: o9}
spec: {cidr: 10.99.0.0/24}
"""
_METRICS = """
import sys, urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9178/metrics", timeout=10).read().decode())
"""


# -- the fault -----------------------------------------------------------------------------


@contextmanager
def own_file_system(directory: Path, *, is_read_only: bool = False) -> Iterator[None]:
    """``directory`` on a tmpfs of its own with what was in it, and back on the old one afterwards
    with what is in it then. It changes in one step: who opens files by name may be running, who has
    a socket in there must not.

    ``is_read_only``: nothing can be written there from the first moment on. A file system that
    somebody has a file open on for writing cannot be mounted so.
    """
    spare = Path(tempfile.mkdtemp(prefix=f"{directory.name}.o9.", dir=directory.parent))
    below = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    hidden = Path(f"/proc/{os.getpid()}/fd/{below}")
    options = f"size={SIZE},mode=0700"
    try:
        namespaces.run(["mount", "-t", "tmpfs", "-o", options, "s32-o9", str(spare)])
        _copy(hidden, spare)
        if is_read_only:
            namespaces.run(["mount", "-o", "remount,ro", str(spare)])
        namespaces.run(["mount", "--bind", str(spare), str(directory)])
        try:
            yield
        finally:
            if not is_read_only:
                (directory / BALLAST).unlink(missing_ok=True)
                _empty(hidden)
                _copy(directory, hidden)
            namespaces.run(["umount", "--lazy", str(directory)])
    finally:
        os.close(below)
        namespaces.run(["umount", "--lazy", str(spare)], ok=(0, 32))
        spare.rmdir()


def _copy(source: Path, target: Path) -> None:
    """Sockets, links, modes and times as they are."""
    namespaces.run(["cp", "-a", f"{source}/.", str(target)])


def _empty(directory: Path) -> None:
    for each in directory.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()


@contextmanager
def _filled(directory: Path) -> Iterator[None]:
    """A file takes all that is left, down to the last byte."""
    ballast = directory / BALLAST
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def _remounted(directory: Path) -> Iterator[None]:
    """As the kernel leaves a disk that has errors."""
    namespaces.run(["mount", "-o", "remount,ro", str(directory)])
    try:
        yield
    finally:
        namespaces.run(["mount", "-o", "remount,rw", str(directory)])


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls a directory, and what the kernel then says to a write (an errno)."""

    number: int
    during: Callable[[Path], AbstractContextManager[None]]

    @property
    def reason(self) -> str:
        return os.strerror(self.number)


FULL = Fault(errno.ENOSPC, _filled)
READ_ONLY = Fault(errno.EROFS, _remounted)
READ_ONLY_ANEW = Fault(errno.EROFS, lambda where: own_file_system(where, is_read_only=True))


def by_hand(directory: Path) -> int:
    """What the kernel says to a write by hand: an errno, 0 for yes."""
    path = directory / "by-hand"
    try:
        path.write_bytes(b"x" * 4096)
    except OSError as error:
        return error.errno or -1
    finally:
        with suppress(OSError):
            path.unlink()
    return 0


# -- what is said of it --------------------------------------------------------------------


def degraded(world: World, node: str) -> list[str]:
    """The findings of a node's ``status`` that say so."""
    with suppress(LabFailure):
        return [f for f in world.lab.ask(node, "status")["findings"] if f.startswith("Degraded: ")]
    return []


def _condition(world: World) -> tuple[str, str]:
    """Status and message of the condition Degraded of the node's NodeStatus."""
    with suppress(LabFailure):
        found = world.api(f"/apis/slash32.io/v1/nodestatuses/{NODE}").get("status", {})
        for each in found.get("conditions", []):
            if each["type"] == "Degraded":
                return str(each["status"]), str(each.get("message", ""))
    return "", ""


def _metric(world: World, path: Path) -> str:
    """``slash32_disk_writable`` of a directory, as a scraper gets it; "" when it is not there."""
    text = world.run(NODE, sys.executable, "-c", _METRICS)
    name = f'slash32_disk_writable{{path="{path}"}} '
    return next((line[len(name) :] for line in text.splitlines() if line.startswith(name)), "")


def _doctor(world: World) -> list[str]:
    """What ``slash32 doctor`` calls an error."""
    state_dir = str(world.lab.paths.state_dir(NODE))
    rows: list[dict[str, Any]] = world.ask(NODE, "doctor", "--state-dir", state_dir) or []
    return [str(row["evidence"]) for row in rows if row["severity"] == "error"]


def _said(world: World, directory: Path, reason: str) -> str:
    return f"Degraded: {directory} cannot be written: {reason}"


# -- what goes on --------------------------------------------------------------------------


def _code(verb: Callable[[], object]) -> int | None:
    """None for success, or the plugin's error code."""
    try:
        verb()
    except runtime.PluginFailed as error:
        return error.code
    return None


def _verbs_go_on(world: World, verdict: Verdict, tag: str) -> None:
    """ADD with an answering pod, CHECK, STATUS, DEL: each 0."""
    plugin = world.lab.runtime_of(NODE)
    with world.extra_pod(NODE, tag) as (sandbox, _):
        begun_s = time.monotonic()
        given = runtime.addresses_in(plugin.add(sandbox))
        took_s = time.monotonic() - begun_s
        address = next(a for a in given if ":" not in a)
        far = world.pod_on(world.nodes[-1]).name
        world.wait(lambda: world.reaches(far, address), f"{address}, added meanwhile", 10.0)
        codes = {
            "CHECK": _code(lambda: plugin.check(sandbox)),
            "STATUS": _code(plugin.status),
            "DEL": _code(lambda: plugin.delete(sandbox)),
            "DEL again": _code(lambda: plugin.delete(sandbox)),
        }
    verdict.must(not any(c is not None for c in codes.values()), f"{tag}: answered {codes}")
    verdict.must(took_s <= ADD_MAX_S, f"{tag}: an ADD took {took_s:.1f} s")


def _killed_meanwhile(world: World, verdict: Verdict, *, is_recordable: bool) -> None:
    """Agent and speaker killed and started again; while there is no agent a pod is deleted: that is
    recorded, or where no record can be written refused, so that the runtime repeats it."""
    plugin = world.lab.runtime_of(NODE)
    with world.extra_pod(NODE, "o9gone") as (sandbox, _):
        plugin.add(sandbox)
        world.kill(f"agent-{NODE}")
        refused = _code(lambda: plugin.delete(sandbox))
        world.kill_speaker(NODE)
        world.start_speaker(NODE)
        world.start_agent(NODE)
        world.wait(lambda: answers(world, NODE), "the new agent")
        world.wait(lambda: world.is_up_at("tor1", NODE), "the session")
        # The agent answers people before it serves CNI; a runtime repeats for minutes.
        world.wait(lambda: _code(lambda: plugin.delete(sandbox)) is None, "the DEL again", 15.0)
    verdict.note(
        "a DEL without an agent is "
        + ("recorded" if refused is None else f"refused with {refused}")
        + ", repeated with it done"
    )
    verdict.must((refused is None) == is_recordable, f"that DEL was answered {refused}")


def _no_other_events(world: World, verdict: Verdict, watch: Watch) -> None:
    """0 lost, 0 route events but those of the pods that came and went."""
    events = [e for e in watch.events_on(*world.nodes, *world.tors) if " dev s32" not in e]
    verdict.note(f"{watch}, {len(events)} route events but those of pods")
    verdict.must(watch.sent > 100, f"only {watch.sent} probes were sent")
    verdict.must(watch.lost == 0, str(watch))
    verdict.must(not events, f"route events: {events[:3]}")


# -- the rows ------------------------------------------------------------------------------


def run_directory_is_full(world: World, verdict: Verdict) -> None:
    """Run and state directory of node1 on one disk, which is full."""
    run_dir = world.lab.paths.run_dir(NODE)
    results = world.lab.paths.cni_results(NODE)
    _stop(world)
    with own_file_system(run_dir):
        # What a runtime keeps of its own is on another disk.
        kept = run_dir.with_name("o9.results")
        results.mkdir(exist_ok=True)
        shutil.move(results, kept)
        results.symlink_to(kept)
        try:
            _start(world)
            directories = [run_dir, world.lab.paths.state_dir(NODE)]
            _degraded_and_whole(world, verdict, FULL, run_dir, directories, is_recordable=False)
        finally:
            _stop(world)
            results.unlink()
            shutil.move(kept, results)
    _start(world)


def state_is_read_only(world: World, verdict: Verdict) -> None:
    """The state directory of node1 on a disk that is mounted read-only, under a running agent."""
    state_dir = world.lab.paths.state_dir(NODE)
    with own_file_system(state_dir):
        _degraded_and_whole(
            world, verdict, READ_ONLY, state_dir, [state_dir], is_recordable=True
        )  # fmt: skip
    world.settled()


def _stop(world: World) -> None:
    world.kill(f"agent-{NODE}")
    world.kill_speaker(NODE)


def _start(world: World) -> None:
    world.start_speaker(NODE)
    world.start_agent(NODE)
    world.settled()


def _degraded_and_whole(
    world: World,
    verdict: Verdict,
    fault: Fault,
    directory: Path,
    told: list[Path],
    *,
    is_recordable: bool,
) -> None:
    """The whole story of one fault, with the Kubernetes API as store."""
    state_dir = world.lab.paths.state_dir(NODE)
    said = [_said(world, each, fault.reason) for each in told]
    sessions = [line for line in world.session_lines("tor1") if NODE not in line]
    world.wait(lambda: _condition(world)[0] == "False", "the condition before")
    before = (by_hand(directory), degraded(world, NODE), _metric(world, told[0]))
    verdict.must(before == (0, [], "1.0"), f"the control within: before the fault {before}")
    with world.watching() as watch:
        with fault.during(directory):
            refused = by_hand(directory)
            told_s = world.wait(lambda: degraded(world, NODE) == said, "the status")
            world.wait(lambda: _condition(world)[0] == "True", "the condition")
            message = _condition(world)[1]
            world.wait(lambda: bool(_events(world)), "the Event")
            metrics = {str(each): _metric(world, each) for each in told}
            doctor = [text for text in _doctor(world) if str(told[-1]) in text]
            _verbs_go_on(world, verdict, "o9full")
            _killed_meanwhile(world, verdict, is_recordable=is_recordable)
            still = degraded(world, NODE)
            others = [f for f in world.lab.ask(NODE, "status")["findings"] if f not in still]
            _verbs_go_on(world, verdict, "o9again")
        ended_s = time.time()
        whole_s = world.wait(lambda: world.is_healthy(NODE), "a node without a finding")
        world.wait(lambda: _condition(world)[0] == "False", "the condition's end")
        _verbs_go_on(world, verdict, "o9after")
    world.settled()
    kept = [name for name in ("snapshot", "cooldown") if not _is_sound(state_dir / name)]
    verdict.note(
        f'a write by hand: {os.strerror(refused)}; told after {told_s:.1f} s: "{said[-1]}", in '
        f"status, condition, Event, metric and doctor; without a finding {whole_s:.1f} s after"
    )
    _no_other_events(world, verdict, watch)
    verdict.must(refused == fault.number, f"the fault is none: by hand {os.strerror(refused)}")
    verdict.must(told_s <= TOLD_MAX_S, f"told only after {told_s:.1f} s")
    verdict.must(all(f"Degraded: {text}" in said for text in message.split("; ")), message)
    verdict.must(set(metrics.values()) == {"0.0"}, f"the metric: {metrics}")
    verdict.must(bool(doctor), "doctor says nothing of it")
    verdict.must(still == said, f"the new agent says {still}")
    verdict.must(not [f for f in others if "cache" not in f], f"other findings: {others}")
    verdict.must(whole_s <= WHOLE_MAX_S, f"whole only after {whole_s:.1f} s")
    verdict.must(not kept, f"not whole afterwards: {kept}")
    verdict.must(
        (state_dir / "cooldown").stat().st_mtime > ended_s, "no release was noted afterwards"
    )
    after = [line for line in world.session_lines("tor1") if NODE not in line]
    verdict.must(after == sessions, "a session of another node was touched")


def _events(world: World) -> list[str]:
    return [text for text in world.events("DiskNotWritable") if "cannot be written" in text]


def _is_sound(path: Path) -> bool:
    """It is there and has something in it; nothing half written lies beside it."""
    beside = [path.with_name(path.name + end) for end in (".tmp", ".new")]
    return path.stat().st_size > 0 and not any(each.exists() for each in beside)


def store_is_full(world: World, verdict: Verdict) -> None:
    """The embedded store of three agents on a disk that is full, and then read-only."""
    directory = world.lab.paths.store.parent
    with own_file_system(directory):
        world.settled()
        verdict.must(not degraded(world, NODE), "the control within: Degraded before the fault")
        for fault in (FULL, READ_ONLY_ANEW):
            with world.watching() as watch:
                with fault.during(directory):
                    refused = by_hand(directory)
                    said = _said(world, directory, fault.reason)
                    told_s = world.wait(
                        lambda said=said: all(degraded(world, n) == [said] for n in world.nodes),  # type: ignore[misc]
                        "the status of every node",
                    )
                    answer = _refusal(lambda: world.apply(_POOL))
                    _verbs_go_on(world, verdict, "o9full")
                    _killed_meanwhile(world, verdict, is_recordable=True)
                    _verbs_go_on(world, verdict, "o9again")
                    pools = _pools(world)
                whole_s = world.wait(lambda: all(map(world.is_healthy, world.nodes)), "all nodes")
                _verbs_go_on(world, verdict, "o9after")
            world.apply(_POOL)
            world.delete("IPPool", "o9")
            world.settled()
            verdict.note(
                f"{os.strerror(refused)}: told after {told_s:.1f} s by all three; apply: "
                f"{answer!r}; whole {whole_s:.1f} s after"
            )
            _no_other_events(world, verdict, watch)
            verdict.must(refused == fault.number, "the fault is none")
            verdict.must(told_s <= TOLD_MAX_S, f"told only after {told_s:.1f} s")
            verdict.must(bool(answer), "apply succeeded on that disk")
            verdict.must("o9" not in pools, f"apply failed and has stored its pool: {pools}")
            verdict.must(whole_s <= WHOLE_MAX_S, f"whole only after {whole_s:.1f} s")
    world.settled()


def _pools(world: World) -> str:
    paths = world.lab.paths
    command = build.slash32_command("get", "IPPool", "-o", "name", "--store", str(paths.store))
    return namespaces.run(command, env=build.environment(paths))


def _refusal(work: Callable[[], object]) -> str:
    """What a command says that refuses; "" when it succeeded."""
    try:
        work()
    except LabFailure as error:
        return str(error).strip().splitlines()[-1].rpartition("slash32: ")[2]
    return ""


_OWED = (
    f"told within {TOLD_MAX_S:.0f} s with path and reason by status, condition Degraded, Event, "
    "metric and doctor, and not before; ADD, CHECK, STATUS, DEL go on; 0 lost, 0 route events but "
    f"pods' own; without a finding {WHOLE_MAX_S:.0f} s after"
)

ROWS = [
    Row("O9", "run and state directory of a node on a disk that is filled to the last byte; agent "
        "and speaker killed and started again on it", f"{_OWED}; a DEL that cannot be recorded is "
        "refused and repeated", Stage.KUBERNETES, run_directory_is_full, control="R0"),
    Row("O9a", "the state directory mounted read-only under a running agent; agent and speaker "
        "killed and started again", _OWED, Stage.KUBERNETES, state_is_read_only, control="R0"),
    Row("O9b", "the embedded store on a full disk, then on one mounted read-only; agent and "
        "speaker killed and started again", "told within "
        f"{TOLD_MAX_S:.0f} s by every node; apply refused, nothing of it stored; ADD in the node's "
        "blocks, CHECK, STATUS, DEL go on; 0 lost, 0 route events but pods' own; whole "
        f"{WHOLE_MAX_S:.0f} s after", Stage.ONE_TOR, store_is_full, control="R0"),
]  # fmt: skip
