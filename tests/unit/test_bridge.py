"""The bridge, run as ExaBGP runs it: pipes on one side, a Unix socket on the other."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bgp.bridge
from bgp.bridge import COMMAND_LIMIT_BYTES, TO_AGENT_LIMIT_BYTES

DEADLINE_S = 10.0


class Agent:
    """The agent's end of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._buffer = b""

    def line(self) -> bytes:
        while b"\n" not in self._buffer:
            data = self.connection.recv(65536)
            if not data:
                raise EOFError(self._buffer)
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def greeting(self) -> dict[str, object]:
        words = json.loads(self.line())
        assert isinstance(words, dict)
        return words

    def say(self, data: bytes) -> None:
        self.connection.sendall(data)

    def is_closed(self) -> bool:
        """Reads until the end; True when there is one."""
        with contextlib.suppress(ConnectionResetError):
            while self.connection.recv(1 << 20):
                pass
        return True

    def close(self) -> None:
        self.connection.close()


class ExaBgp:
    """A process that is to the bridge what ExaBGP is: its parent's pipes are in our hands."""

    def __init__(self, socket_path: Path) -> None:
        self.path = socket_path
        self.process = subprocess.Popen(
            [sys.executable, "-IS", bgp.bridge.__file__, str(socket_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Unbuffered, or select() would not see the lines that Python has already read.
            bufsize=0,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin = self.process.stdin
        self.stdout = self.process.stdout
        self._listener: socket.socket | None = None
        self.agents: list[Agent] = []

    def listen(self) -> None:
        """The agent starts."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(4)
        self._listener.settimeout(DEADLINE_S)

    def stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()

    def agent(self) -> Agent:
        """The bridge's next connection."""
        assert self._listener is not None
        connection, _ = self._listener.accept()
        connection.settimeout(DEADLINE_S)
        self.agents.append(Agent(connection))
        return self.agents[-1]

    def print(self, data: bytes) -> None:
        """As ExaBGP does: blocking, and at once."""
        self.stdin.write(data)
        self.stdin.flush()

    def hears(self) -> bytes:
        """The bridge's next line, or b'' within no time when there is none by the deadline."""
        ready, _, _ = select.select([self.stdout], [], [], DEADLINE_S)
        return self.stdout.readline() if ready else b""

    def close(self) -> None:
        self.stop_listening()
        for agent in self.agents:
            agent.close()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@pytest.fixture
def exabgp(tmp_path: Path) -> Iterator[ExaBgp]:
    made = ExaBgp(tmp_path / "bgp.sock")
    try:
        yield made
    finally:
        made.close()


def until(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, "not in time"
        time.sleep(0.01)


def test_lines_pass_both_ways_after_the_greeting(exabgp: ExaBgp) -> None:
    """The first line is the bridge's own: its pid, and which process its ExaBGP is."""
    exabgp.listen()
    agent = exabgp.agent()
    greeting = agent.greeting()
    assert greeting["slash32"] == "bridge"
    assert greeting["pid"] == exabgp.process.pid
    assert greeting["exabgp_pid"] == os.getpid()
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    assert greeting["exabgp_start"] == int(stat[19])
    exabgp.print(b'{ "exabgp": "5.0.0" }\ndone\n')
    assert agent.line() == b'{ "exabgp": "5.0.0" }'
    assert agent.line() == b"done"
    agent.say(b"show neighbor json\nversion\n")
    assert exabgp.hears() == b"show neighbor json\n"
    assert exabgp.hears() == b"version\n"


def test_without_an_agent_exabgp_is_read_and_its_lines_are_dropped(exabgp: ExaBgp) -> None:
    """Ten pipes full are taken; the agent that comes then begins at the beginning of a line."""
    for _ in range(100):
        exabgp.print(b"x" * 99_999 + b"\n")
    exabgp.listen()
    agent = exabgp.agent()
    agent.greeting()
    exabgp.print(b"fresh\n")
    # Lines that were under way at that moment may come, but only whole ones.
    line = agent.line()
    while line != b"fresh":
        assert line == b"x" * 99_999
        line = agent.line()


def test_a_line_cut_by_the_connection_is_not_taken_for_a_line(exabgp: ExaBgp) -> None:
    """An agent that connects in mid-line sees the next one."""
    exabgp.listen()
    first = exabgp.agent()
    first.greeting()
    exabgp.print(b"half of a li")
    assert first.connection.recv(100) == b"half of a li"
    first.close()
    second = exabgp.agent()
    second.greeting()
    exabgp.print(b"ne that began before\nwhole\n")
    assert second.line() == b"whole"


def test_half_a_command_of_a_dead_agent_reaches_nobody(exabgp: ExaBgp) -> None:
    """The next agent's first command is not appended to it."""
    exabgp.listen()
    first = exabgp.agent()
    first.greeting()
    first.say(b"version\nneighbor 192.0.2.1 announce route 10.0.")
    assert exabgp.hears() == b"version\n"
    first.close()
    second = exabgp.agent()
    second.greeting()
    second.say(b"reset\n")
    assert exabgp.hears() == b"reset\n"


def test_an_agent_that_comes_and_goes_is_found_again_quickly(exabgp: ExaBgp) -> None:
    """Each new socket is connected to within the back-off (``agent`` has a deadline)."""
    for _ in range(3):
        exabgp.listen()
        agent = exabgp.agent()
        agent.greeting()
        agent.close()
        exabgp.stop_listening()


def test_an_agent_that_does_not_read_is_dropped_and_never_blocks_exabgp(exabgp: ExaBgp) -> None:
    """Beyond the limit the connection goes, ExaBGP's writes do not wait, and a new agent is served.

    The writes here are blocking, as ExaBGP's are: were the bridge to stop reading, this would hang.
    """
    exabgp.listen()
    stopped = exabgp.agent()
    chunk = (b"y" * 1023 + b"\n") * 1024
    for _ in range(TO_AGENT_LIMIT_BYTES // len(chunk) + 2):
        exabgp.print(chunk)
    fresh = exabgp.agent()
    assert fresh.greeting()["slash32"] == "bridge"
    assert stopped.is_closed()
    exabgp.print(b"after\n")
    line = fresh.line()
    while line != b"after":
        assert line == b"y" * 1023
        line = fresh.line()


@pytest.mark.parametrize(
    "bad", [b"caf\xc3\xa9\n", b"bell\x07\n", b"tab\there\n"], ids=["utf-8", "control", "tab"]
)
def test_what_exabgp_would_die_of_does_not_pass(exabgp: ExaBgp, bad: bytes) -> None:
    """Only printable ASCII does; the lines around it are unharmed."""
    exabgp.listen()
    agent = exabgp.agent()
    agent.greeting()
    agent.say(b"version\n" + bad + b"reset\n")
    assert exabgp.hears() == b"version\n"
    assert exabgp.hears() == b"reset\n"


def test_a_command_without_an_end_costs_the_connection(exabgp: ExaBgp) -> None:
    """The agent is disconnected; the bridge lives and takes the next."""
    exabgp.listen()
    agent = exabgp.agent()
    agent.greeting()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        agent.say(b"a" * (COMMAND_LIMIT_BYTES + 2 * 256 * 1024))
    assert agent.is_closed()
    assert exabgp.agent().greeting()["slash32"] == "bridge"


def test_it_ends_when_exabgp_closes_its_stdin_and_says_the_last_words(exabgp: ExaBgp) -> None:
    """End of file is the only way out; what ExaBGP said before still arrives."""
    exabgp.listen()
    agent = exabgp.agent()
    agent.greeting()
    exabgp.print(b'{ "type": "notification", "notification": "shutdown" }\n')
    exabgp.stdin.close()
    assert exabgp.process.wait(DEADLINE_S) == 0
    assert b"shutdown" in agent.line()
    with pytest.raises(EOFError):
        agent.line()


def test_it_ends_when_nobody_reads_it_any_more(exabgp: ExaBgp) -> None:
    """A closed stdout is ExaBGP's end as well."""
    exabgp.stdout.close()
    assert exabgp.process.wait(DEADLINE_S) == 0


def test_it_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Even while somebody else still holds the other ends of its pipes."""
    parent = (
        "import os, subprocess, sys, time\n"
        "read, write = os.pipe()\n"
        "os.set_inheritable(write, True)\n"
        "child = subprocess.Popen([sys.executable, '-IS', sys.argv[1], sys.argv[2]],\n"
        "    stdin=read, stdout=subprocess.PIPE, pass_fds=[write])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent, bgp.bridge.__file__, str(tmp_path / "sock")],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout:
        bridge = int(process.stdout.readline())
        status = Path(f"/proc/{bridge}/cmdline")
        until(lambda: b"bridge.py" in status.read_bytes())
        # Killed only when it has had the time to ask for the kernel's notice.
        until(lambda: _is_polling(bridge))
        process.send_signal(signal.SIGKILL)
        process.wait()
        until(lambda: not _is_alive(bridge))


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _is_polling(pid: int) -> bool:
    try:
        return "poll" in Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        return False


def test_wrong_use_is_said_in_one_sentence() -> None:
    """No socket, no bridge."""
    finished = subprocess.run(
        [sys.executable, "-IS", bgp.bridge.__file__], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    assert finished.stderr == "slash32 bridge: usage: bridge.py SOCKET\n"
