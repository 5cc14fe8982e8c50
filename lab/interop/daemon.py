"""A real BGP daemon in a namespace: configuration in, typed answers out, ended by its pid.

The drivers know their daemon's dialect and nothing of a test. Every file of a daemon lies below a
directory of its own; nothing of the packages' services, users' directories or default sockets is
used, so that a machine that runs such a daemon for real is not disturbed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from lab import namespaces, processes
from lab.interop.model import DaemonPlan, DaemonTrouble, Origin, RibRoute, Session
from lab.plan import LabFailure
from lab.processes import Process
from lab.waiting import wait_until

START_DEADLINE_S = 20.0
END_DEADLINE_S = 10.0

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
}


class Daemon(ABC):
    """One daemon; ``directory`` is its alone. It is started once per ``start``.

    Every question raises DaemonTrouble when the daemon does not answer.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """As its authors write it."""
    package: ClassVar[str]
    """Debian's."""
    accepts_keyed: ClassVar[bool] = True
    """Takes connections with TCP-MD5; otherwise only those that it opens itself have the key."""
    programs: ClassVar[tuple[str, ...]]
    """Absolute paths of what must be installed."""

    def __init__(self, *, namespace: str, directory: Path) -> None:
        self.namespace = namespace
        self.directory = directory
        self._running: list[Process] = []
        directory.mkdir(parents=True, exist_ok=True)

    # ---- the dialect -----------------------------------------------------------------------------

    @abstractmethod
    def render_config(self, plan: DaemonPlan) -> str:
        """The configuration file's text; deterministic."""

    @abstractmethod
    def _commands(self, *, is_restart: bool) -> Sequence[tuple[str, list[str]]]:
        """(name, command line) of each process, in the order of their start."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether it answers questions."""

    @abstractmethod
    def routes(self) -> list[RibRoute]:
        """What it has accepted from its neighbour."""

    @abstractmethod
    def session(self) -> Session:
        """The session with its neighbour."""

    @abstractmethod
    def announce(self, origin: Origin) -> None:
        """Originates one more prefix while running."""

    @abstractmethod
    def withdraw(self, origin: Origin) -> None:
        """Takes one that was originated back."""

    @abstractmethod
    def refresh(self) -> None:
        """Sends ROUTE-REFRESH to the neighbour (RFC 2918)."""

    @abstractmethod
    def shut_down_session(self, reason: str) -> None:
        """Closes the session with Cease/2 and a text (RFC 9003)."""

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """What the program says of itself."""

    @classmethod
    def title_and_version(cls) -> str:
        """``FRR 8.4.4``: its name with the number in what the program says."""
        number = re.search(r"\d+(\.\d+)+", cls.version())
        return f"{cls.title} {number[0]}" if number else cls.title

    # ---- the process -----------------------------------------------------------------------------

    @classmethod
    def is_installed(cls) -> bool:
        """Whether all its programs are there."""
        return all(Path(program).exists() for program in cls.programs)

    @property
    def config_file(self) -> Path:
        return self.directory / f"{self.name}.conf"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    def configure(self, plan: DaemonPlan) -> None:
        """Writes the configuration for the next start."""
        self.plan = plan
        self.write_config(self.render_config(plan))

    def write_config(self, text: str) -> None:
        """Writes a configuration that somebody else rendered; 0600, since passwords stand in it."""
        self.config_file.unlink(missing_ok=True)
        descriptor = os.open(self.config_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(text)

    def start(self, *, is_restart: bool = False) -> None:
        """Starts it and returns once it answers.

        Args:
            is_restart: it comes back after having been killed, and shall say so (RFC 4724).

        Raises:
            LabFailure: it ended, or did not answer in time.
        """
        self._clear()
        for name, command in self._commands(is_restart=is_restart):
            self._running.append(
                processes.start(
                    name, command, namespace=self.namespace, env=ENVIRONMENT, log=self.log
                )
            )
            wait_until(
                lambda name=name: self._not_begun(name),  # type: ignore[misc]
                what=f"start of {name}",
                deadline_s=START_DEADLINE_S,
            )
        wait_until(self._not_ready, what=f"start of {self.name}", deadline_s=START_DEADLINE_S)

    def _not_begun(self, name: str) -> list[str]:
        """What the next program of the daemon must wait for, after ``name`` was started."""
        del name
        return []

    def _clear(self) -> None:  # noqa: B027 - most leave nothing
        """Removes what a killed daemon left that would confuse the next one."""

    def _not_ready(self) -> list[str]:
        if any(not processes.is_alive(process) for process in self._running):
            raise DaemonTrouble(f"{self.name} ended: {processes.log_tail(self.log)}")
        try:
            return [] if self._is_ready() else [f"{self.name} does not answer"]
        except LabFailure as error:
            return [str(error)]

    def stop(self) -> None:
        """Ends it in good order: the neighbour is told."""
        ended, self._running = self._running, []
        self._thaw(ended)
        processes.stop(reversed(ended))
        self._wait_gone(ended)

    def kill(self) -> None:
        """Ends it as a power cut would: SIGKILL to all it consists of."""
        ended, self._running = self._running, []
        for process in (*self._offspring(ended), *ended):
            _signal(process, signal.SIGKILL)
        self._wait_gone(ended)

    def freeze(self) -> None:
        """SIGSTOP: the sockets stay, and nobody answers."""
        for process in (*self._running, *self._offspring(self._running)):
            _signal(process, signal.SIGSTOP)

    def thaw(self) -> None:
        """The end of ``freeze``."""
        self._thaw(self._running)

    def _thaw(self, running: Sequence[Process]) -> None:
        for process in (*running, *self._offspring(running)):
            _signal(process, signal.SIGCONT)

    def _offspring(self, running: Sequence[Process]) -> list[Process]:
        """Processes that ours started: those of its namespace whose ancestor is one of ours."""
        inode = namespaces.inode(self.namespace)
        if inode is None or not running:
            return []
        ours = {process.pid for process in running}
        family = {process.pid: process for process in processes.inside([inode])}
        found: list[Process] = []
        for pid, process in sorted(family.items()):
            ancestor = _parent(pid)
            while ancestor in family and ancestor not in ours:
                ancestor = _parent(ancestor)
            if pid not in ours and ancestor in ours:
                found.append(process)
        return found

    def _wait_gone(self, ended: Sequence[Process]) -> None:
        wait_until(
            lambda: [f"{p.name} (pid {p.pid})" for p in ended if processes.is_alive(p)],
            what=f"end of {self.name}",
            deadline_s=END_DEADLINE_S,
        )
        for process in ended:
            with suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)

    def ask(self, *argv: str, ok: tuple[int, ...] = (0,)) -> str:
        """Runs its own client program inside the namespace.

        Raises:
            DaemonTrouble: it did not answer.
        """
        try:
            return namespaces.run(argv, namespace=self.namespace, env=ENVIRONMENT, ok=ok)
        except namespaces.CommandFailed as error:
            raise DaemonTrouble(str(error)) from None


def version_line(argv: Sequence[str], *, ok: tuple[int, ...] = (0,)) -> str:
    """The first line a program says of its version, on either stream."""
    command = ["sh", "-c", 'exec "$@" 2>&1', "sh", *argv]
    text = namespaces.run(command, env=ENVIRONMENT, ok=ok).strip()
    return text.splitlines()[0] if text else ""


def program(path: str) -> str:
    """The path, or the same name elsewhere on PATH."""
    return path if Path(path).exists() else shutil.which(Path(path).name) or path


def _signal(process: Process, number: signal.Signals) -> None:
    if processes.is_alive(process):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _parent(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[1])
