"""The exec'd file in all its forms, and an agent's socket without an agent behind it."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cni.launcher.build import ARCHITECTURES, build, compiler_for
from tests.fakes.runtime import PLUGIN, WITH_DEADLINE, Outcome

FORMS = ("python", "x86-64", "arm64")
QUICK_DEADLINE_S = 0.25
EXEC_DEADLINE_S = 20.0
AGENT_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Launcher:
    """One form of the exec'd file.

    Attributes:
        name: one of ``FORMS``.
        command: what a runtime would execute.
        quick: the same with a deadline of ``QUICK_DEADLINE_S`` for the whole call.
    """

    name: str
    command: tuple[str, ...]
    quick: tuple[str, ...]

    @property
    def is_static(self) -> bool:
        """Whether it is the C program, running without an emulator's help or with it."""
        return self.name != "python"


@functools.cache
def _build_directory() -> Path:
    import atexit

    directory = Path(tempfile.mkdtemp(prefix="slash32-launcher-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@functools.cache
def built(arch: str, *, deadline_ms: int | None = None) -> Path:
    """The static launcher for ``arch``, built once in a test run; skips where nothing can."""
    if compiler_for(arch) is None:
        pytest.skip(f"no C compiler for {arch}: install gcc or {ARCHITECTURES[arch].compilers[0]}")
    out = _build_directory() / f"launcher-{arch}-{deadline_ms}"
    build(out, arch=arch, deadline_ms=deadline_ms)
    return out


def runner_of(arch: str) -> tuple[str, ...]:
    """What has to stand before a program of ``arch`` here; skips when it cannot run here."""
    target = ARCHITECTURES[arch]
    if target.uname == platform.machine():
        return ()
    for name in (f"qemu-{target.uname}-static", f"qemu-{target.uname}"):
        if path := shutil.which(name):
            return (path,)
    pytest.skip(f"cannot run a program for {arch} here: install qemu-user-static")


def launcher(name: str) -> Launcher:
    """The form called ``name``; skips, with the reason, when it cannot run here."""
    if name == "python":
        python = (os.path.realpath(sys.executable), "-IS")
        quick = ("-c", WITH_DEADLINE, str(PLUGIN), str(QUICK_DEADLINE_S))
        return Launcher(name, (*python, str(PLUGIN)), (*python, *quick))
    before = runner_of(name)
    return Launcher(
        name,
        (*before, str(built(name))),
        (*before, str(built(name, deadline_ms=round(QUICK_DEADLINE_S * 1000)))),
    )


def execute(
    command: tuple[str, ...], environment: Mapping[str, str] | Mapping[bytes, bytes], stdin: bytes
) -> Outcome:
    """Runs it as a runtime does: that environment and no other, stdin closed after the bytes."""
    done = subprocess.run(
        command,
        env=environment,
        input=stdin,
        capture_output=True,
        timeout=EXEC_DEADLINE_S,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr.decode())


@dataclass
class FakeAgent:
    """Answers every connection with ``reply``; remembers what came.

    Attributes:
        frames: the bytes of each request, whole.
        inodes: (device, inode) of each descriptor that came along.
        before_reply: called with the connection before anything is read; what it does not read is
            read afterwards, unless it returns False: then the connection is closed as it is.
    """

    reply: bytes = b"\0{}"
    frames: list[bytes] = field(default_factory=list)
    inodes: list[tuple[int, int]] = field(default_factory=list)
    before_reply: Callable[[socket.socket], bool] = lambda _client: True

    def serve(self, client: socket.socket) -> None:
        """One request and its answer."""
        if not self.before_reply(client):
            return
        data = b""
        while True:
            chunk, descriptors, _, _ = socket.recv_fds(client, 65536, 8)
            for descriptor in descriptors:
                status = os.fstat(descriptor)
                self.inodes.append((status.st_dev, status.st_ino))
                os.close(descriptor)
            if not chunk:
                break
            data += chunk
        self.frames.append(data)
        client.sendall(self.reply)

    @contextlib.contextmanager
    def at(self, path: str) -> Iterator[FakeAgent]:
        """Listens on ``path`` while the block runs."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(64)
            thread = threading.Thread(target=self._accept, args=(listener,), name="fake-agent")
            thread.start()
            try:
                yield self
            finally:
                # Wakes accept, which close() would not.
                listener.shutdown(socket.SHUT_RDWR)
                thread.join(AGENT_DEADLINE_S)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                client.settimeout(AGENT_DEADLINE_S)
                self.serve(client)
