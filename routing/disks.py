"""Disks: whether the directories that this node's agent writes to can be written, by writing.

A full or read-only disk stops no packet and hardly a verb, so it would be noticed at the restart
that needs what was not written: last known resources, what rests, who was added. This is the one
place that knows. It writes, for free blocks in a file system's figures are no promise: quotas,
errors and ``remount,ro`` are not in them, and root may use what others may not.

The file has no name (open(2), O_TMPFILE), so that a killed agent leaves none and nobody who watches
the directory is woken; it is gone before it would reach the medium.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

log = structlog.get_logger("routing.disks")

LOOK_EVERY_S = 5.0
PROBE = bytes(4096)
"""A block: less might fit into what the last file has left."""
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT)
"""What a file system without O_TMPFILE answers (an overlay of an older kernel, NFS)."""


class Disks:
    """One agent's directories.

    Args:
        directories: each is told by its own path; twice the same counts once.
        on_change: called when one can be written again, or cannot any more.
    """

    def __init__(
        self, directories: Iterable[Path], *, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self._on_change = on_change
        self._reasons: dict[Path, str | None] = dict.fromkeys(directories)

    @property
    def problems(self) -> list[str]:
        """A sentence for each directory that could not be written at the last look."""
        return [
            f"{path} cannot be written: {reason}"
            for path, reason in self._reasons.items()
            if reason is not None
        ]

    @property
    def is_writable(self) -> dict[str, bool]:
        """Each directory, and whether it could be written at the last look."""
        return {str(path): reason is None for path, reason in self._reasons.items()}

    def look(self) -> None:
        """Tries each once. Blocks as long as the disks do."""
        self._note({path: why_not(path) for path in self._reasons})

    async def run(self, every_s: float = LOOK_EVERY_S) -> None:
        """Looks for ever; a disk that hangs holds up a thread, not the agent."""
        while True:
            await asyncio.sleep(every_s)
            self._note(await asyncio.to_thread(lambda: {p: why_not(p) for p in self._reasons}))

    def _note(self, found: dict[Path, str | None]) -> None:
        before, self._reasons = self._reasons, found
        for path, reason in found.items():
            if reason is not None and before[path] is None:
                log.warning("disk_not_writable", path=str(path), reason=reason)
            elif reason is None and before[path] is not None:
                log.info("disk_writable_again", path=str(path))
        if found != before:
            self._on_change()


def why_not(directory: Path) -> str | None:
    """Why nothing can be written into a directory, or None when it can."""
    try:
        descriptor = _open(directory)
        try:
            written = os.write(descriptor, PROBE)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.strerror or str(error)
    # The last block of a disk may take a part.
    return None if written == len(PROBE) else os.strerror(errno.ENOSPC)


def _open(directory: Path) -> int:
    """A file of no name there, or where that cannot be, one whose name is gone at once."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_TMPFILE or not directory.is_dir():
            raise
    path = directory / f".room.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    descriptor = os.open(path, flags, 0o600)
    path.unlink()
    return descriptor
