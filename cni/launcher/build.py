"""Builds the static launcher: ``python -m cni.launcher.build [--arch x86-64|arm64] --out PATH``.

The source needs neither headers nor a library, so any C compiler for the architecture will do: the
host's own or a cross compiler. What comes out is read back before it is put in place: a launcher
that turns out to need a loader would fail on the one host without one, and nowhere before.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("launcher.c")
SIZE_MAX_BYTES = 64 << 10
BUILD_DEADLINE_S = 60.0

_FLAGS = (
    "-std=c11",
    "-Os",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unused-parameter",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-strict-aliasing",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",  # or a copying loop becomes a call of memcpy
    "-fno-pie",
    "-no-pie",
    "-nostdlib",
    "-static",
    "-s",
    # Without these the file is padded to the largest page size, 64 KiB on arm64.
    "-Wl,-z,noexecstack,-z,norelro,-z,noseparate-code,--build-id=none",
)

_ELF_HEADER = struct.Struct("<4sBB10xHHI3QI6H")
_ELF_PROGRAM_HEADER = struct.Struct("<II6Q")
_TYPE_EXECUTABLE = 2
_NEEDS_LOADER = {2: "a dynamic section", 3: "an interpreter"}
_STACK, _EXECUTE = 0x6474E551, 1


class BuildError(Exception):
    """No launcher was made; one sentence says why."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One target.

    Attributes:
        name: as the command line and release files have it.
        machine: ``e_machine`` of its ELF files.
        uname: what ``uname -m`` says there.
        compilers: cross compilers to look for on a host of another architecture.
    """

    name: str
    machine: int
    uname: str
    compilers: tuple[str, ...]


ARCHITECTURES = {
    each.name: each
    for each in (
        Architecture("x86-64", 62, "x86_64", ("x86_64-linux-gnu-gcc", "x86_64-linux-musl-gcc")),
        Architecture("arm64", 183, "aarch64", ("aarch64-linux-gnu-gcc", "aarch64-linux-musl-gcc")),
    )
}


def host_architecture() -> str:
    """The name of the architecture we run on.

    Raises:
        BuildError: the launcher does not know it.
    """
    machine = platform.machine()
    for each in ARCHITECTURES.values():
        if each.uname == machine:
            return each.name
    raise BuildError(f"architecture {machine!r} has no launcher; use the Python plugin there")


def compiler_for(arch: str) -> str | None:
    """The compiler that compiles for ``arch`` here, or None when there is none."""
    target = ARCHITECTURES[arch]
    native = ("cc", "gcc") if target.uname == platform.machine() else ()
    found = map(shutil.which, (*native, *target.compilers))
    return next((path for path in found if path), None)


def build(out: Path, *, arch: str, deadline_ms: int | None = None) -> None:
    """Makes ``out``, mode 0755, whole or not at all.

    Args:
        out: the file to make or to replace.
        arch: a key of ``ARCHITECTURES``.
        deadline_ms: another limit for one call, for tests; None leaves the launcher's own.

    Raises:
        BuildError: no compiler, a failed one, or a result that would not run everywhere.
    """
    compiler = compiler_for(arch)
    if compiler is None:
        raise BuildError(
            f"no C compiler for {arch}: install one of {', '.join(ARCHITECTURES[arch].compilers)}"
        )
    define = [] if deadline_ms is None else [f"-DDEADLINE_MS={deadline_ms:d}"]
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    except OSError as error:
        raise BuildError(f"{out} cannot be made: {error.strerror}") from None
    os.close(handle)
    try:
        _compile([compiler, *_FLAGS, *define, "-o", temporary, str(SOURCE)])
        check_static(Path(temporary), arch=arch)
        os.chmod(temporary, 0o755)  # noqa: S103 - a runtime's plugins are everybody's to run
        os.replace(temporary, out)
    except OSError as error:
        raise BuildError(f"{out} cannot be made: {error.strerror}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _compile(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} took longer than {BUILD_DEADLINE_S:g} s") from None
    if done.returncode != 0:
        raise BuildError(f"{command[0]} failed: {done.stderr.strip()[:2000]}")


def check_static(path: Path, *, arch: str) -> None:
    """Makes sure that ``path`` runs with nothing but a kernel of ``arch`` under it.

    Raises:
        BuildError: it is for another machine, needs a loader, has an executable stack, or is
            larger than ``SIZE_MAX_BYTES``.
    """
    image = path.read_bytes()
    if len(image) > SIZE_MAX_BYTES:
        raise BuildError(f"the launcher has {len(image)} bytes, more than {SIZE_MAX_BYTES}")
    if len(image) < _ELF_HEADER.size or image[:6] != b"\x7fELF\x02\x01":
        raise BuildError("the launcher is not a 64-bit little-endian ELF file")
    _, _, _, kind, machine, _, _, offset, _, _, _, size, count, _, _, _ = _ELF_HEADER.unpack_from(
        image
    )
    if machine != ARCHITECTURES[arch].machine or kind != _TYPE_EXECUTABLE:
        raise BuildError(f"the launcher is no executable for {arch} (type {kind}, for {machine})")
    stacks = []
    for index in range(count):
        what, flags, *_ = _ELF_PROGRAM_HEADER.unpack_from(image, offset + index * size)
        if what in _NEEDS_LOADER:
            raise BuildError(f"the launcher is not static: it has {_NEEDS_LOADER[what]}")
        if what == _STACK:
            stacks.append(flags)
    if not stacks or stacks[0] & _EXECUTE:
        raise BuildError("the launcher's stack would be executable")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 built, 1 not."""
    parser = argparse.ArgumentParser(prog="python -m cni.launcher.build", description="Build it.")
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), help="default: this machine's")
    parser.add_argument("--out", type=Path, required=True, help="the file to make")
    chosen = parser.parse_args(arguments)
    try:
        arch = chosen.arch or host_architecture()
        build(chosen.out, arch=arch)
    except BuildError as error:
        sys.stderr.write(f"launcher: {error}\n")
        return 1
    sys.stderr.write(f"launcher: {chosen.out}, {arch}, {chosen.out.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
