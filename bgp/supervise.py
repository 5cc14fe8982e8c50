"""Runs ExaBGP for ``slash32 speaker``: waits for the configuration, starts it, starts it again.

    python3 -IS supervise.py exabgp.conf

``slash32 speaker`` becomes this (``become``), without the command line's libraries: it is there for
as long as the node is, and needs none of them.

It is a process of its own so that the agent can be replaced without touching BGP, and it has no
opinion: which peers there are is written in exabgp.conf, by the agent. It mostly sleeps, so it
loads next to nothing: what only the start of a child needs, only the child loads (9 MiB resident
instead of 12, of which an interpreter that does nothing has 8.5).

ExaBGP gets an environment of which every setting we rely on is spelled out, and no settings file,
so that what is installed on the host cannot change it. It leaves no file behind: no named pipes, no
pid file, logs to stderr.
"""

from __future__ import annotations

import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

HERE = os.path.dirname(os.path.realpath(__file__))
TUNED = os.path.join(HERE, "exabgp_tuned.py")
"""Run by its path: it must not see our package."""
CONF_POLL_S = 0.1
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 10.0
SETTLED_S = 30.0
"""An ExaBGP that ran this long had started well; its end is a new story."""
TERMINATE_AGAIN_S = 1.0
"""ExaBGP ignores a signal that comes while it handles another."""
STOP_LIMIT_S = 5.0
PR_SET_PDEATHSIG = 1
NOT_STARTED = 127
"""The status of a child that could not become what it should, as a shell has it."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


def exabgp_command(conf_path: str) -> list[str]:
    """ExaBGP on ``conf_path``, by this interpreter, isolated from the user's Python settings."""
    return [sys.executable, "-I", TUNED, "server", conf_path]


def exabgp_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """``inherited`` without anybody else's ExaBGP settings, and with ours.

    Args:
        inherited: usually os.environ.
    """
    import pwd

    environment = {
        name: value
        for name, value in inherited.items()
        if not name.lower().startswith(("exabgp.", "exabgp_"))
    }
    return environment | {
        # An empty file instead of <prefix>/etc/exabgp/exabgp.env, wherever that may be today.
        "EXABGP_ENVFILE": os.devnull,
        # ExaBGP would become `nobody`, who can open neither our socket nor port 179.
        "exabgp.daemon.user": pwd.getpwuid(os.geteuid()).pw_name,
        "exabgp.daemon.daemonize": "false",
        "exabgp.daemon.pid": "",
        "exabgp.log.enable": "true",
        "exabgp.log.destination": "stderr",
        "exabgp.log.level": "WARNING",
        "exabgp.log.all": "false",
        "exabgp.api.ack": "true",
        # v1 leaves out next hops and attributes; without them nothing can be read back.
        "exabgp.api.show-routes-format": "v2",
        # One line a turn, the default, copies the rest of the table for each line.
        "exabgp.api.chunk": "500",
        "exabgp.api.compact": "false",
        "exabgp.api.cli": "false",
        "exabgp.api.respawn": "true",
        "exabgp.api.terminate": "false",
        "exabgp.tcp.bind": "",
        "exabgp.tcp.attempts": "0",
        "exabgp.tcp.delay": "0",
        "exabgp.bgp.passive": "false",
        "exabgp.cache.attributes": "true",
    }


def become(conf_path: str) -> NoReturn:
    """Ends what this process was and makes it ``supervise(conf_path)`` and nothing else.

    Raises:
        OSError: this interpreter cannot be started again.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    argv = [sys.executable, "-IS", os.path.join(HERE, "supervise.py"), conf_path]
    os.execv(sys.executable, argv)  # noqa: S606 - no shell is wanted


def supervise(conf_path: str, *, command: Sequence[str] | None = None) -> int:
    """Runs ExaBGP until SIGTERM or SIGINT; returns 0 then. Blocks; wants the main thread.

    Args:
        conf_path: exabgp.conf; waited for as long as it takes.
        command: what to run instead of exabgp_command(conf_path).
    """
    # Signals are waited for, not handled: a handler that runs between two statements of ours
    # could miss the child it should end.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        return _supervise(conf_path, list(command or exabgp_command(conf_path)))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _supervise(conf_path: str, command: list[str]) -> int:
    backoff_s = BACKOFF_FIRST_S
    while True:
        if _wait_for(conf_path):
            return 0
        started_s = time.monotonic()
        child = _start(command)
        if _wait_for_end(child):
            return 0
        if time.monotonic() - started_s >= SETTLED_S:
            backoff_s = BACKOFF_FIRST_S
        _say(f"ExaBGP ended with status {child.status}; starting it again in {backoff_s:g} s")
        if _stop_within(backoff_s):
            return 0
        backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)


def _wait_for(conf_path: str) -> bool:
    """Returns when the file is there; True means to stop instead."""
    if not os.path.exists(conf_path):
        _say(f"waiting for {conf_path}; the agent writes it")
    while not os.path.exists(conf_path):
        if _stop_within(CONF_POLL_S):
            return True
    return False


class _Child:
    """A program that was started. ``status`` is an exit status, or minus the signal that ended it;
    None while it runs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None

    def has_ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def send(self, number: int) -> None:
        """A child that is a zombie takes any signal, and one that was waited for gets none."""
        if self.status is None:
            os.kill(self.pid, number)


def _start(command: list[str]) -> _Child:
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _become_child(command, supervisor)
        except BaseException as error:
            _say(f"{command[0]} cannot be started: {error}")
        finally:
            os._exit(NOT_STARTED)
    return _Child(pid)


def _become_child(command: list[str], supervisor: int) -> NoReturn:
    """Ends with this process, however that ends; and takes signals as anybody does."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != supervisor:
        os._exit(NOT_STARTED)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    environment = exabgp_environment(os.environ)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    os.execvpe(command[0], command, environment)  # noqa: S606 - no shell is wanted


def _wait_for_end(child: _Child) -> bool:
    """Returns when the child has ended; True when it ended because we are to stop."""
    while not child.has_ended():
        if _stop_within(None):
            _stop(child)
            return True
    return False


def _stop(child: _Child) -> None:
    """SIGTERM, so that ExaBGP closes in the way graceful restart wants; SIGKILL in the end."""
    deadline_s = time.monotonic() + STOP_LIMIT_S
    while time.monotonic() < deadline_s:
        child.send(signal.SIGTERM)
        if _ends_within(child, TERMINATE_AGAIN_S):
            return
    _say(f"ExaBGP did not end within {STOP_LIMIT_S:g} s of SIGTERM; killing it")
    child.send(signal.SIGKILL)
    while not child.has_ended():
        signal.sigwait(_SIGNALS)


def _ends_within(child: _Child, timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not child.has_ended():
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return False
        # Whatever comes: that we are to stop is known.
        signal.sigtimedwait(_SIGNALS, left_s)
    return True


def _stop_within(timeout_s: float | None) -> bool:
    """Waits for a signal; True when it was one that asks us to stop."""
    if timeout_s is None:
        return signal.sigwait(_SIGNALS) != signal.SIGCHLD
    deadline_s = time.monotonic() + timeout_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        received = signal.sigtimedwait(_SIGNALS, left_s)
        if received is not None and received.si_signo != signal.SIGCHLD:
            return True
    return False


def _say(sentence: str) -> None:
    sys.stderr.write(f"slash32 speaker: {sentence}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1]))
