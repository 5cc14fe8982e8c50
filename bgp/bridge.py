"""The program that ExaBGP starts: its two pipes on one side, the agent's Unix socket on the other.

    python3 -IS bridge.py /run/slash32/bgp.sock

Why not the agent itself: ExaBGP writes to its helper with blocking writes, so a helper that stops
reading stops the keepalives of every session; it gives up altogether when the helper dies six times
in 64 seconds; and what it told a dead helper is lost. This program is small enough to outlive all
of that, and lets the agent be killed and restarted without ExaBGP noticing.

Invariants:
* It always reads from ExaBGP, agent or none. What the agent has not taken is kept up to
  TO_AGENT_LIMIT_BYTES; beyond, the *connection* is dropped and the agent starts afresh with a
  read-back, for a stream with a hole in it is worth nothing.
* Only whole lines pass, both ways: a line cut by a lost connection would join with the next one.
* Only printable ASCII passes to ExaBGP, which dies of anything else.
* It ends when ExaBGP does (EOF on stdin, or the parent's death), and for no other reason.

* What peers have announced in their present sessions is kept as the lines that said it, up to
  JOURNAL_LIMIT_BYTES, and told again to an agent that sends REPLAY: ExaBGP keeps no Adj-RIB-In.

Of the lines it knows as much as that takes: whose they are, and which begin and end a session. It
uses the standard library only, imports nothing of ours, and needs neither asyncio nor threads.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator

TO_AGENT_LIMIT_BYTES = 64 * 1024 * 1024
TO_EXABGP_LIMIT_BYTES = 1024 * 1024
"""Beyond, we stop reading from the agent until ExaBGP has taken some: the agent can wait."""
JOURNAL_LIMIT_BYTES = 24 * 1024 * 1024
"""Of lines kept: 350,000 UPDATEs of one route. Beyond, the peer that has said most is forgotten,
and a new agent must ask it to send its routes again."""
REPLAY = b"slash32-replay"
COMMAND_LIMIT_BYTES = 64 * 1024
"""A longer command is no command; the agent has lost its way and is disconnected."""
RECONNECT_S = 0.1
READ_BYTES = 256 * 1024
FAREWELL_S = 0.5
"""How long the last lines of an ending ExaBGP may take to reach the agent."""

STDIN = 0
STDOUT = 1
PR_SET_PDEATHSIG = 1
F_SETPIPE_SZ = 1031


class ExaBgpGone(Exception):
    """Our pipes' other end is closed: the only reason to stop."""


class Journal:
    """What each peer has said in its present session, from its OPEN on, line by line."""

    def __init__(self, limit_bytes: int = JOURNAL_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._lines: dict[bytes, list[bytes]] = {}
        self._sizes: dict[bytes, int] = {}
        self._size = 0
        self._tail = b""

    def take(self, data: bytes) -> None:
        """What came from ExaBGP, cut anywhere."""
        *lines, self._tail = (self._tail + data).split(b"\n")
        for line in lines:
            self._take_line(line)

    def _take_line(self, line: bytes) -> None:
        if line.startswith(b'{"slash32":"updates"'):
            self._keep(_between(line, b'"peer":"'), line)
        elif line.startswith(b'{ "exabgp"'):
            kind, peer = _between(line, b'"type": "'), _between(line, b'"peer": "')
            if kind == b"state" and b'"state": "down"' in line:
                self._forget(peer)
            elif kind == b"open":
                self._forget(peer)
                self._lines[peer], self._sizes[peer] = [], 0
            if kind in (b"open", b"update"):
                self._keep(peer, line)

    def _keep(self, peer: bytes, line: bytes) -> None:
        # Not from its OPEN on: we came in mid-session, or it is one that was forgotten.
        if peer not in self._lines:
            return
        self._lines[peer].append(line)
        self._sizes[peer] += len(line) + 64
        self._size += len(line) + 64
        if self._size > self._limit_bytes:
            self._forget(max(self._sizes, key=lambda each: self._sizes[each]))

    def _forget(self, peer: bytes) -> None:
        self._lines.pop(peer, None)
        self._size -= self._sizes.pop(peer, 0)

    def answer(self) -> Iterator[bytes]:
        """Everything again, whose it is, and ``done``: an answer as ExaBGP gives one."""
        for lines in self._lines.values():
            yield b"\n".join(lines) + b"\n"
        yield b" ".join([b"whole", *self._lines]) + b"\ndone\n"


def _between(line: bytes, mark: bytes) -> bytes:
    """The word in quotes that follows ``mark``."""
    _, found, rest = line.partition(mark)
    return rest.partition(b'"')[0] if found else b""


class Bridge:
    """The two streams and what is under way in each."""

    def __init__(self, socket_path: str) -> None:
        self._path = socket_path
        self._agent: socket.socket | None = None
        self._next_attempt_s = 0.0
        self._to_agent: collections.deque[bytes] = collections.deque()
        self._to_agent_bytes = 0
        self._to_exabgp = bytearray()
        self._command = bytearray()
        self._at_line_start = True
        self._skip_to_line_start = False
        self._journal = Journal()
        self._is_replay_due = False

    def run(self) -> None:
        """Moves bytes until ExaBGP is gone."""
        os.set_blocking(STDIN, False)
        os.set_blocking(STDOUT, False)
        while True:
            try:
                self._connect_if_due()
                self._step()
            except ExaBgpGone:
                self._farewell()
                return
            except Exception as error:
                # Whatever it is, dying of it six times in a minute would end every BGP session.
                _log(f"unexpected {type(error).__name__}: {error}; dropping the agent")
                self._drop_agent()
                time.sleep(RECONNECT_S)

    def _step(self) -> None:
        poll = select.poll()
        poll.register(STDIN, select.POLLIN)
        # Without events asked for, poll still reports that ExaBGP has closed its reading end.
        poll.register(STDOUT, select.POLLOUT if self._to_exabgp else 0)
        agent_fd = -1
        if self._agent is not None:
            agent_fd = self._agent.fileno()
            interest = select.POLLOUT if self._to_agent else 0
            if len(self._to_exabgp) < TO_EXABGP_LIMIT_BYTES:
                interest |= select.POLLIN
            poll.register(agent_fd, interest)
        for fd, happened in poll.poll(RECONNECT_S * 1000 if self._agent is None else None):
            if fd == STDIN:
                self._read_exabgp()
            elif fd == STDOUT:
                if happened & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
                    raise ExaBgpGone
                self._write_exabgp()
            elif fd == agent_fd:
                self._serve_agent(happened)

    # -- ExaBGP --------------------------------------------------------------------------------

    def _read_exabgp(self) -> None:
        try:
            data = os.read(STDIN, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise ExaBgpGone
        self._journal.take(data)
        if self._agent is not None:
            self._queue(data)
        self._at_line_start = data.endswith(b"\n")
        self._replay_if_due()

    def _write_exabgp(self) -> None:
        try:
            written = os.write(STDOUT, self._to_exabgp)
        except BlockingIOError:
            return
        except OSError:
            raise ExaBgpGone from None
        del self._to_exabgp[:written]

    # -- the agent -----------------------------------------------------------------------------

    def _connect_if_due(self) -> None:
        now_s = time.monotonic()
        if self._agent is not None or now_s < self._next_attempt_s:
            return
        self._next_attempt_s = now_s + RECONNECT_S
        agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        agent.setblocking(False)
        try:
            agent.connect(self._path)
        except OSError:
            # No agent, or one that is not listening yet, or whose queue is full: all the same.
            agent.close()
            return
        self._agent = agent
        # The agent must not take the rest of a line for a line.
        self._skip_to_line_start = not self._at_line_start
        self._enqueue(_hello())

    def _drop_agent(self) -> None:
        if self._agent is not None:
            self._agent.close()
        self._agent = None
        self._to_agent.clear()
        self._to_agent_bytes = 0
        self._command.clear()
        self._is_replay_due = False
        self._next_attempt_s = time.monotonic() + RECONNECT_S

    def _queue(self, data: bytes) -> None:
        if self._skip_to_line_start:
            _, newline, data = data.partition(b"\n")
            self._skip_to_line_start = not newline
        if data:
            self._enqueue(data)

    def _enqueue(self, data: bytes) -> None:
        self._to_agent.append(data)
        self._to_agent_bytes += len(data)
        if self._to_agent_bytes > TO_AGENT_LIMIT_BYTES:
            _log(f"the agent is {self._to_agent_bytes} bytes behind; dropping its connection")
            self._drop_agent()

    def _replay_if_due(self) -> None:
        """Between two lines only, and with the rest of a line that the agent has half of first."""
        if self._is_replay_due and self._at_line_start and self._agent is not None:
            self._is_replay_due = False
            for part in self._journal.answer():
                self._enqueue(part)

    def _serve_agent(self, happened: int) -> None:
        try:
            if happened & select.POLLOUT:
                self._write_agent()
            if happened & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self._read_agent()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                self._drop_agent()

    def _write_agent(self) -> None:
        agent = self._agent
        if agent is None or not self._to_agent:
            return
        chunk = self._to_agent.popleft()
        try:
            sent = agent.send(chunk)
        except OSError:
            self._to_agent.appendleft(chunk)
            raise
        self._to_agent_bytes -= sent
        if sent < len(chunk):
            self._to_agent.appendleft(chunk[sent:])

    def _read_agent(self) -> None:
        if self._agent is None:
            return
        data = self._agent.recv(READ_BYTES)
        if not data:
            self._drop_agent()
            return
        self._command += data
        whole, newline, rest = self._command.rpartition(b"\n")
        if newline:
            for line in bytes(whole).split(b"\n"):
                if line == REPLAY:
                    self._is_replay_due = True
                    self._replay_if_due()
                elif _is_command(line):
                    self._to_exabgp += line + b"\n"
                else:
                    _log(f"refused a command of {len(line)} bytes: not printable ASCII")
        self._command = bytearray(rest)
        if len(rest) > COMMAND_LIMIT_BYTES:
            _log(f"a command of more than {COMMAND_LIMIT_BYTES} bytes; dropping the agent")
            self._drop_agent()

    def _farewell(self) -> None:
        """ExaBGP's last words, `shutdown` among them, still go to the agent if it takes them."""
        deadline_s = time.monotonic() + FAREWELL_S
        try:
            while self._agent is not None and self._to_agent:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    break
                if select.select([], [self._agent], [], left_s)[1]:
                    self._write_agent()
        except OSError:
            pass
        self._drop_agent()


def _is_command(line: bytes) -> bool:
    return len(line) <= COMMAND_LIMIT_BYTES and all(32 <= byte < 127 for byte in line)


def _hello() -> bytes:
    """Our own first line: tells a new ExaBGP from a new connection to the same one."""
    parent = os.getppid()
    words = {
        "slash32": "bridge",
        "pid": os.getpid(),
        "exabgp_pid": parent,
        "exabgp_start": _start_ticks(parent),
        "mode": os.environ.get("SLASH32_EXABGP_MODE", ""),
    }
    return json.dumps(words).encode("ascii") + b"\n"


def _start_ticks(pid: int) -> int:
    """When ``pid`` was started, in clock ticks since boot (proc(5)); 0 if that cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The command name is in brackets and may contain anything, brackets included.
            return int(stat.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _die_with_parent() -> None:
    """Asks the kernel to end us with ExaBGP, for a SIGKILLed one may leave its pipe open."""
    parent = os.getppid()
    try:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return
    if os.getppid() != parent:
        sys.exit(0)


def _log(sentence: str) -> None:
    with contextlib.suppress(OSError):
        print(f"slash32 bridge: {sentence}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Runs the bridge; returns 0 when ExaBGP is gone, 2 on wrong use."""
    if len(arguments) != 2:
        _log("usage: bridge.py SOCKET")
        return 2
    _die_with_parent()
    try:
        import fcntl

        fcntl.fcntl(STDIN, F_SETPIPE_SZ, 1024 * 1024)
    except (ImportError, OSError):
        # Only comfort: a bigger pipe makes ExaBGP wait for us even less.
        pass
    Bridge(arguments[1]).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
