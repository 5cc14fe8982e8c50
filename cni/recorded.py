"""Deletions that were recorded while no agent answered: found, done, and only then forgotten.

The launcher writes one file per DEL, whole and durable, into ``deleted/`` beside the socket, and
tells the runtime yes. The directory is therefore a promise: whoever makes it must replay it. A
record is removed after its DEL has succeeded; a DEL of nothing succeeds, so doing one twice, after
a death in between, is harmless.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Protocol

from cni.errors import CniError
from cni.frame import REQUEST_MAX_BYTES, FrameError, split_request
from cni.result import Result
from cni.spec import Command, Request, parse_request

log = logging.getLogger(__name__)

DIRECTORY = "deleted"


class Verbs(Protocol):
    """What does the work (cni/attach.py)."""

    async def handle(self, request: Request, netns_fd: int | None) -> Result | None:
        """Does what ``request`` asks."""


class Unreadable(Exception):
    """A record that no agent will ever be able to read; says why."""


def directory_of(socket_path: str) -> Path:
    """Where the launcher that uses ``socket_path`` leaves its records."""
    return Path(socket_path).with_name(DIRECTORY)


async def replay(directory: Path, verbs: Verbs) -> int:
    """Does every recorded DEL, oldest first; how many are left for the next time.

    The directory is made (0700) when it is missing. A record that cannot be read is removed with
    an error in the log: it would stand in the way for ever, and what it named is found by the
    comparison of links with addresses instead.
    """
    left = 0
    for path in _records(directory):
        try:
            request = _read(path)
        except Unreadable as error:
            log.error("recorded_del_unreadable record=%s error=%s", path.name, error)
            path.unlink(missing_ok=True)
            continue
        try:
            await verbs.handle(request, None)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            left += 1
            log.warning("recorded_del_failed attachment=%s error=%s", request.attachment, error)
            continue
        path.unlink(missing_ok=True)
        log.info("recorded_del_done attachment=%s", request.attachment)
    return left


def _records(directory: Path) -> list[Path]:
    """Finished records, oldest first; one being written has a name that begins with a dot."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = [path for path in directory.iterdir() if not path.name.startswith(".")]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def _read(path: Path) -> Request:
    try:
        with path.open("rb") as file:
            data = file.read(REQUEST_MAX_BYTES + 1)
        if len(data) > REQUEST_MAX_BYTES:
            raise Unreadable("larger than a request may be")
        request = parse_request(*split_request(data))
    except (OSError, FrameError, CniError) as error:
        raise Unreadable(str(error)) from None
    if request.command is not Command.DEL:
        raise Unreadable(f"it records a {request.command.value}, not a DEL")
    return request
