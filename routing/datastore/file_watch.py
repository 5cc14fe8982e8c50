"""Hints that a file may have been written: inotify(7) through libc, for the embedded store.

A hint is no news: pages are written before a commit, and rolled back. Whoever gets one looks at
what the file says. A file system or a kernel that gives none costs time and nothing else, since
every wait has its end.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from contextlib import suppress
from pathlib import Path

IN_MODIFY, IN_ATTRIB, IN_DELETE_SELF, IN_MOVE_SELF = 0x2, 0x4, 0x400, 0x800
_WANTED = IN_MODIFY | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF
"""IN_ATTRIB comes when the last name of a file that is still open goes."""
_READ_BYTES = 4096
_CLOSED, _UNOPENED = -1, -2
"""-1 is also what inotify_init1 answers when it refuses."""

_libc = ctypes.CDLL(None, use_errno=True)


class FileWatch:
    """Watches one path in one event loop; without inotify it never gives a hint.

    Args:
        path: need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.fsencode(path)
        self._fd = _UNOPENED

    def arm(self) -> bool:
        """Watches what the path leads to now, another file than before perhaps, and forgets the
        hints so far; whether hints will come. Look at the file after this, not before."""
        if self._fd == _UNOPENED:
            # Now, and not before: a user may have 128 of them, and most who read never wait.
            self._fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd < 0:
            return False
        with suppress(BlockingIOError):
            while os.read(self._fd, _READ_BYTES):
                pass
        return int(_libc.inotify_add_watch(self._fd, self._path, _WANTED)) >= 0

    async def hint(self, timeout_s: float) -> bool:
        """Waits for a hint since ``arm``; False when none came in time."""
        loop = asyncio.get_running_loop()
        came: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._fd, _settle, came)
        try:
            async with asyncio.timeout(timeout_s):
                await came
            return True
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._fd)

    def close(self) -> None:
        """Gives the descriptor back; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = _CLOSED


def _settle(came: asyncio.Future[None]) -> None:
    if not came.done():
        came.set_result(None)
