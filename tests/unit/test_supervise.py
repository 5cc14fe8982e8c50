"""What runs ExaBGP: its environment, its back-off, its end. ExaBGP itself is in tests/netns."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bgp.supervise import BACKOFF_FIRST_S, TUNED, exabgp_command, exabgp_environment

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 15.0


@contextmanager
def supervising(conf: Path, child: str) -> Iterator[subprocess.Popen[bytes]]:
    """supervise() in a process of its own, with a Python program instead of ExaBGP."""
    program = (
        "import sys\n"
        "from bgp import supervise as under_test\n"
        "under_test.STOP_LIMIT_S, under_test.TERMINATE_AGAIN_S = 0.5, 0.1\n"
        "command = [sys.executable, '-c', sys.argv[2]]\n"
        "sys.exit(under_test.supervise(sys.argv[1], command=command))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(conf), child],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with process.stdout, process.stderr:
            yield process
    finally:
        process.kill()
        process.wait()


def lines(process: subprocess.Popen[bytes], count: int) -> list[bytes]:
    assert process.stderr is not None
    return [process.stderr.readline() for _ in range(count)]


def test_nobody_elses_exabgp_settings_reach_ours() -> None:
    """Neither from the environment nor from a file; everything else is passed on."""
    inherited = {
        "PATH": "/bin",
        "exabgp.api.ack": "false",
        "exabgp_tcp_bind": "192.0.2.1",
        "EXABGP_ENVFILE": "/etc/exabgp/exabgp.env",
        "EXABGP_ROOT": "/opt",
    }
    environment = exabgp_environment(inherited)
    assert environment["PATH"] == "/bin"
    assert environment["exabgp.api.ack"] == "true"
    assert environment["EXABGP_ENVFILE"] == os.devnull
    assert "exabgp_tcp_bind" not in environment
    assert "EXABGP_ROOT" not in environment
    assert environment["exabgp.api.cli"] == "false"


def test_exabgp_runs_by_this_interpreter_alone() -> None:
    """Isolated mode: no PYTHONPATH, no current directory, no user packages."""
    assert exabgp_command("/run/x.conf") == [
        sys.executable, "-I", TUNED, "server", "/run/x.conf",
    ]  # fmt: skip


def test_a_child_that_keeps_dying_is_started_ever_more_slowly(tmp_path: Path) -> None:
    """The pause doubles and is announced with the status that caused it."""
    conf = tmp_path / "exabgp.conf"
    conf.touch()
    began_s = time.monotonic()
    with supervising(conf, "import sys; sys.exit(3)") as process:
        said = lines(process, 3)
        assert time.monotonic() - began_s >= BACKOFF_FIRST_S * 3
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    assert [line.rpartition(b" in ")[2].strip() for line in said] == [b"0.2 s", b"0.4 s", b"0.8 s"]
    assert all(b"status 3" in line for line in said)


def test_sigterm_while_waiting_for_the_file_ends_it(tmp_path: Path) -> None:
    """Nothing has been started; nothing has to be ended."""
    with supervising(tmp_path / "none.conf", "raise SystemExit") as process:
        assert b"waiting for" in lines(process, 1)[0]
        process.terminate()
        assert process.wait(DEADLINE_S) == 0


def test_a_child_is_told_to_end_before_it_is_made_to(tmp_path: Path) -> None:
    """SIGTERM reaches it with a clear signal mask, and the supervisor waits for its end."""
    conf = tmp_path / "exabgp.conf"
    conf.touch()
    child = (
        "import signal, sys\n"
        "def end(*_):\n"
        "    print('ended well', flush=True)\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('ready', flush=True)\n"
        "while True: signal.pause()\n"
    )
    with supervising(conf, child) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.stdout.readline() == b"ended well\n"
        assert process.wait(DEADLINE_S) == 0


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """After the limit, and it is said."""
    conf = tmp_path / "exabgp.conf"
    conf.touch()
    child = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(60)\n"
    )
    with supervising(conf, child) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr is not None
        assert b"killing it" in process.stderr.read()
