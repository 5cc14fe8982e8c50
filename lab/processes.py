"""The lab's long-running programs: started detached, known by pid and start time, ended by pid.

A pid alone names nobody: it is given out again. With the start time from /proc/<pid>/stat it names
one process for as long as the machine is up, so a later command may end what an earlier one began.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab import interrupts, namespaces
from lab.plan import LabFailure

TERM_DEADLINE_S = 10.0
KILL_DEADLINE_S = 5.0
_STATE, _START_TIME = 0, 19
"""Fields of /proc/<pid>/stat counted from after the command's name (proc(5): fields 3 and 22)."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the lab; ``start_ticks`` is its start in clock ticks since boot."""

    name: str
    pid: int
    start_ticks: int


def start(
    name: str, argv: Sequence[str], *, namespace: str, env: Mapping[str, str], log: Path
) -> Process:
    """Starts a program in a namespace, in a session of its own, with its output in ``log``.

    Raises:
        LabFailure: the program is not installed, or ended before it could be identified.
    """
    if shutil.which(argv[0], path=env.get("PATH")) is None:
        raise LabFailure(f"cannot start {name}: no program {argv[0]!r} on PATH")
    interrupts.check()
    log.parent.mkdir(parents=True, exist_ok=True)
    command = namespaces.enter(namespace, argv, cwd="/")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawnp(
        command[0],
        command,
        dict(env),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    ticks = start_ticks(pid)
    if ticks is None:
        raise LabFailure(f"{name} ended at once: {log_tail(log)}")
    return Process(name, pid, ticks)


def _stat_fields(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may hold blanks and parentheses itself.
    return text.rpartition(")")[2].split()


def start_ticks(pid: int) -> int | None:
    """The start time of a process in clock ticks since boot; None when there is none."""
    fields = _stat_fields(pid)
    return int(fields[_START_TIME]) if fields else None


def is_alive(process: Process) -> bool:
    """Whether exactly this process still runs; a zombie does not."""
    fields = _stat_fields(process.pid)
    if fields is None or int(fields[_START_TIME]) != process.start_ticks:
        return False
    return fields[_STATE] not in {"Z", "X"}


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _signal_and_wait(
    processes: Iterable[Process], number: signal.Signals, deadline_s: float
) -> list[Process]:
    """Signals each process and returns those that are still there at the deadline."""
    watched: dict[int, Process] = {}
    try:
        for process in processes:
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(process.pid)
                watched[descriptor] = process
                # The descriptor now names one process; only then may its identity be checked.
                if is_alive(process):
                    signal.pidfd_send_signal(descriptor, number)
        poll = select.poll()
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        waiting = {d for d, process in watched.items() if is_alive(process)}
        end_s = time.monotonic() + deadline_s
        while waiting and (left_s := end_s - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left_s * 1000):
                poll.unregister(descriptor)
                waiting.discard(descriptor)
        return [watched[d] for d in waiting]
    finally:
        for descriptor, process in watched.items():
            os.close(descriptor)
            _reap(process.pid)


def stop(processes: Iterable[Process]) -> list[Process]:
    """Ends processes: SIGTERM, then SIGKILL to those that do not obey.

    Returns:
        Those that had to be killed.

    Raises:
        LabFailure: one outlived SIGKILL (it hangs in the kernel).
    """
    stubborn = _signal_and_wait(
        [p for p in processes if is_alive(p)], signal.SIGTERM, TERM_DEADLINE_S
    )
    immortal = _signal_and_wait(stubborn, signal.SIGKILL, KILL_DEADLINE_S)
    if immortal:
        names = ", ".join(f"{p.name} (pid {p.pid})" for p in immortal)
        raise LabFailure(f"still running after SIGKILL: {names}")
    return stubborn


def inside(inodes: Iterable[int]) -> list[Process]:
    """Every process whose network namespace is one of ``inodes``.

    This finds what a killed lab started but had not written down yet, and children of children.
    """
    wanted = set(inodes)
    found: list[Process] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        try:
            if os.stat(entry / "ns" / "net").st_ino not in wanted or pid == os.getpid():
                continue
            name = (entry / "comm").read_text(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        ticks = start_ticks(pid)
        if ticks is not None:
            found.append(Process(name, pid, ticks))
    return found


def log_tail(path: Path, *, lines: int = 5, max_bytes: int = 8192) -> str:
    """The last words of a log, for the sentence that says what went wrong."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - max_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return "(no log)"
    return " / ".join(text.strip().splitlines()[-lines:]) or "(empty log)"
