"""The static launcher as a file: how it is built, what it needs, and what a kill leaves behind.

What it says to runtime and agent is tests/contract/test_launcher_contract.py's.
"""

import contextlib
import ctypes
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cni.frame import split_request
from cni.launcher.build import (
    ARCHITECTURES,
    SIZE_MAX_BYTES,
    SOURCE,
    BuildError,
    build,
    check_static,
    compiler_for,
    main,
)
from tests.contract.test_launcher_contract import DELETION, conf, frame_of
from tests.fakes.launcher import FakeAgent, built, execute, launcher

HOST = next((a.name for a in ARCHITECTURES.values() if a.uname == platform.machine()), "none")
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="changing the root needs root")
NEEDS_X86 = pytest.mark.skipif(HOST != "x86-64", reason="traces a program of x86-64")
SOURCE_MAX_LINES = 210


# -- the file ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_the_file_needs_nothing_but_a_kernel(arch: str) -> None:
    """Static, small, for that machine, without any trace of Python or a C library."""
    path = built(arch)
    image = path.read_bytes()

    check_static(path, arch=arch)
    assert len(image) < 16 << 10 < SIZE_MAX_BYTES
    assert path.stat().st_mode & 0o777 == 0o755
    for foreign in (b"Py", b"GLIBC", b"libc", b"ld-linux", b"LC_ALL", b"musl"):
        assert foreign not in image


def test_the_source_is_small_and_needs_no_header() -> None:
    """What runs as root on every pod should be read in one sitting."""
    text = SOURCE.read_text()

    assert len(text.splitlines()) < SOURCE_MAX_LINES
    assert "#include" not in text
    assert not re.search(r"\b(malloc|alloca|setlocale)\b", text)


@NEEDS_ROOT
@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_it_runs_in_an_empty_root(tmp_path: Path, arch: str) -> None:
    """Nothing there but the file, the agent's socket and a namespace: no libc, no /proc, no /dev.

    For another architecture the emulator is in there too; it is static as well.
    """
    program = launcher(arch)
    inside = []
    for file in program.command:
        copy = tmp_path / Path(file).name
        copy.write_bytes(Path(file).read_bytes())
        copy.chmod(0o755)
        inside.append(f"/{copy.name}")
    (tmp_path / "netns").touch()
    environment = DELETION | {"CNI_COMMAND": "ADD", "CNI_NETNS": "/netns"}
    agent = FakeAgent(reply=b'\0{"cniVersion": "1.1.0"}')

    with agent.at(str(tmp_path / "cni.sock")):
        done = _execute_in(tmp_path, inside, environment, conf("/cni.sock"))

    assert (done.returncode, done.stdout) == (0, b'{"cniVersion": "1.1.0"}')
    assert [split_request(frame) for frame in agent.frames] == [(environment, conf("/cni.sock"))]
    assert agent.inodes == [
        ((tmp_path / "netns").stat().st_dev, (tmp_path / "netns").stat().st_ino)
    ]

    # The agent is gone; the same root, without its socket.
    (tmp_path / "cni.sock").unlink()
    (tmp_path / "deleted").mkdir()
    done = _execute_in(tmp_path, inside, DELETION, conf("/cni.sock"))

    assert (done.returncode, done.stdout) == (0, b"")
    assert len(list((tmp_path / "deleted").iterdir())) == 1


def _execute_in(
    root: Path, command: list[str], environment: dict[str, str], stdin: bytes
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command,
        env=environment,
        input=stdin,
        capture_output=True,
        check=False,
        timeout=10,
        preexec_fn=lambda: _enter(root),
    )


def _enter(root: Path) -> None:
    os.chroot(root)
    os.chdir("/")


# -- building ----------------------------------------------------------------------------------


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in the place of every compiler."""

    def install(script: str) -> None:
        directory = tmp_path / "bin"
        directory.mkdir()
        for name in ("cc", "gcc"):
            (directory / name).write_text(f"#!/bin/sh\n{script}\n")
            (directory / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:/bin:/usr/bin")

    return install


def test_without_a_compiler_it_says_which_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, exit status 1, no file."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for arch, each in ARCHITECTURES.items():
        assert compiler_for(arch) is None
        assert main(["--arch", arch, "--out", str(tmp_path / "out")]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"launcher: no C compiler for {arch}: ")
        assert each.compilers[0] in said

    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(HOST == "none", reason="no launcher for this machine")
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo broken >&2; exit 1", "failed: broken"),
        ('while [ "$1" != -o ]; do shift; done; echo "no ELF" > "$2"', "not a 64-bit"),
        ('while [ "$1" != -o ]; do shift; done; cat /bin/true > "$2"', "launcher"),
        ('while [ "$1" != -o ]; do shift; done; head -c 70000 /dev/zero > "$2"', "70000 bytes"),
    ],
)
def test_what_would_not_run_everywhere_is_not_put_in_place(
    tmp_path: Path, compiler: Callable[[str], None], script: str, said: str
) -> None:
    """The old file stays, whole, and nothing else is left."""
    compiler(script)
    out = tmp_path / "out" / "launcher"
    out.parent.mkdir()
    out.write_bytes(b"old")

    with pytest.raises(BuildError, match=said):
        build(out, arch=HOST)

    assert [each.name for each in out.parent.iterdir()] == ["launcher"]
    assert out.read_bytes() == b"old"


@pytest.mark.skipif(HOST == "none", reason="no launcher for this machine")
@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [
        (18, b"\xf3", "no executable for"),
        (16, b"\x03", "no executable for"),
        (64, b"\x03", "an interpreter"),
        (64, b"\x02", "a dynamic section"),
        (64 + 2 * 56, b"\x07", "stack would be executable"),
        (64 + 2 * 56 + 4, b"\x07", "stack would be executable"),
        (4, b"\x01", "not a 64-bit"),
    ],
)
def test_the_check_reads_the_files_own_headers(
    tmp_path: Path, offset: int, value: bytes, said: str
) -> None:
    """A sound launcher with one byte changed."""
    image = bytearray(built(HOST).read_bytes())
    image[offset : offset + 1] = value
    path = tmp_path / "launcher"
    path.write_bytes(image)

    with pytest.raises(BuildError, match=said):
        check_static(path, arch=HOST)


def test_a_place_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The directory is missing."""
    if HOST == "none" or compiler_for(HOST) is None:
        pytest.skip("no C compiler for this machine")

    assert main(["--out", str(tmp_path / "missing" / "launcher")]) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_the_command_builds_for_this_machine(tmp_path: Path) -> None:
    """As the package's build calls it."""
    if HOST == "none" or compiler_for(HOST) is None:
        pytest.skip("no C compiler for this machine")
    out = tmp_path / "launcher"
    done = subprocess.run(
        [sys.executable, "-m", "cni.launcher.build", "--out", out],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == built(HOST).read_bytes()
    assert f"{out.stat().st_size} bytes" in done.stderr


# -- killed at every step ----------------------------------------------------------------------

PTRACE_TRACEME, PTRACE_SYSCALL = 0, 24


def _ptrace(request: int, pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(request, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def stepped(path: str, at_stop: Callable[[int], bool]) -> tuple[int, int]:
    """Runs a DEL, halting before and after each system call; (stops, wait status).

    Args:
        path: the agent's socket.
        at_stop: called with the number of the stop; False kills it there.
    """
    reader, writer = os.pipe()
    os.write(writer, conf(path))
    os.close(writer)
    process = subprocess.Popen(
        launcher("x86-64").command,
        env=DELETION,
        stdin=reader,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: _ptrace(PTRACE_TRACEME, 0),
    )
    os.close(reader)
    stops = 0
    _, status = os.waitpid(process.pid, 0)  # halted by its exec
    while os.WIFSTOPPED(status):
        if stops and not at_stop(stops):
            process.kill()
        else:
            _ptrace(PTRACE_SYSCALL, process.pid)
            stops += 1
        _, status = os.waitpid(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return stops - 1, process.returncode


@NEEDS_X86
def test_killed_at_any_step_it_leaves_a_whole_record_or_none(tmp_path: Path) -> None:
    """Every system call of a DEL without an agent, before and after it; then the DEL again."""
    (tmp_path / "whole" / "deleted").mkdir(parents=True)
    stops, status = stepped(str(tmp_path / "whole" / "cni.sock"), lambda _stop: True)
    assert status == 0
    assert stops > 2 * 15

    recorded = 0
    for last in range(1, stops + 1):
        directory = tmp_path / str(last) / "deleted"
        directory.mkdir(parents=True)
        path = str(tmp_path / str(last) / "cni.sock")

        _, status = stepped(path, lambda stop, last=last: stop < last)  # type: ignore[misc]

        assert status == -signal.SIGKILL
        left = [each for each in directory.iterdir() if not each.name.startswith(".")]
        assert [each.read_bytes() for each in left] in ([], [frame_of(DELETION, conf(path))])
        recorded += len(left)

        # The runtime saw a failure and tries again.
        assert execute(launcher("x86-64").command, DELETION, conf(path)).status == 0
        left = [each for each in directory.iterdir() if not each.name.startswith(".")]
        assert [each.read_bytes() for each in left] == [frame_of(DELETION, conf(path))]
    assert 0 < recorded < stops


@NEEDS_X86
def test_an_agent_that_starts_at_any_step_gets_the_deletion(tmp_path: Path) -> None:
    """It listens, looks at the records once, then accepts: never lost, and never left behind."""
    (tmp_path / "whole" / "deleted").mkdir(parents=True)
    stops, _ = stepped(str(tmp_path / "whole" / "cni.sock"), lambda _stop: True)

    by_socket = by_record = 0
    for start in range(1, stops + 1):
        directory = tmp_path / str(start) / "deleted"
        directory.mkdir(parents=True)
        path = str(tmp_path / str(start) / "cni.sock")
        agent = FakeAgent()
        with contextlib.ExitStack() as stack:
            replayed: list[bytes] = []

            def begin(
                stop: int,
                *,
                start: int = start,
                stack: contextlib.ExitStack = stack,
                agent: FakeAgent = agent,
                path: str = path,
                directory: Path = directory,
                replayed: list[bytes] = replayed,
            ) -> bool:
                if stop == start:
                    stack.enter_context(agent.at(path))
                    replayed += take_records(directory)
                return True

            _, status = stepped(path, begin)

        assert status == 0, start
        assert {*replayed, *agent.frames} == {frame_of(DELETION, conf(path))}
        assert take_records(directory) == []
        by_socket += len(agent.frames)
        by_record += len(replayed)
    assert by_socket > 0
    assert by_record > 0


def take_records(directory: Path) -> list[bytes]:
    """The agent's part: every whole record, read and removed."""
    records = [each for each in directory.iterdir() if not each.name.startswith(".")]
    frames = [each.read_bytes() for each in records]
    for each in records:
        each.unlink()
    return frames
