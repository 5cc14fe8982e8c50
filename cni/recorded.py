"""Deletions that were recorded while no agent answered: found, done, and only then forgotten.

The launcher writes one file per DEL, whole and durable, into ``deleted/`` beside the socket, and
tells the runtime yes. The directory is therefore a promise: whoever makes it must replay it. A
record is removed after its DEL has succeeded; a DEL of nothing succeeds, so doing one twice, after
a death in between, is harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Protocol

from cni.attachment import Attachment
from cni.errors import CniError
from cni.frame import REQUEST_MAX_BYTES, FrameError, split_request
from cni.spec import Command, Request, parse_request

log = logging.getLogger(__name__)

DIRECTORY = "deleted"
UNFINISHED_MAX_AGE_S = 120.0
"""A launcher lives 60 s at most; a half-written record that is older has lost its writer."""


class Verbs(Protocol):
    """What does the work (cni/attach.py)."""

    async def handle(self, request: Request, netns_fd: int | None) -> object:
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
        except FileNotFoundError:
            continue
        except OSError as error:
            # No descriptor left, a disk's hiccup: the record is as good as before.
            left += 1
            log.warning("recorded_del_not_read record=%s error=%s", path.name, error)
            continue
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


def supersede(directory: Path, attachment: Attachment) -> None:
    """Forgets the recorded deletions of ``attachment``: it is being added again.

    A runtime may start a container again under its old id (podman does). A deletion from before
    that still waits, because it failed or came an instant too late, would take the new link; ADD
    itself clears away what the old one left.
    """
    with contextlib.suppress(FileNotFoundError):
        if not os.listdir(directory):
            return  # Every ADD comes here, and hardly ever is there anything.
    for path in _records(directory):
        try:
            if _read(path).attachment == attachment:
                path.unlink(missing_ok=True)
                log.info("recorded_del_superseded attachment=%s", attachment)
        except (Unreadable, OSError):
            continue  # replay deals with it


def _records(directory: Path) -> list[Path]:
    """Finished records, oldest first; one being written has a name that begins with a dot.

    What a killed launcher left half written is removed: it would count against the bound that
    launchers keep to, for ever.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    oldest_s = time.time() - UNFINISHED_MAX_AGE_S
    found: list[tuple[int, str, Path]] = []
    for path in directory.iterdir():
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # Its launcher has found an agent after all, and took it back.
        if not path.name.startswith("."):
            found.append((status.st_mtime_ns, path.name, path))
        elif status.st_mtime < oldest_s:
            log.warning("recorded_del_abandoned record=%s", path.name)
            path.unlink(missing_ok=True)
    return [path for _, _, path in sorted(found)]


def _read(path: Path) -> Request:
    with path.open("rb") as file:
        data = file.read(REQUEST_MAX_BYTES + 1)
    if len(data) > REQUEST_MAX_BYTES:
        raise Unreadable("larger than a request may be")
    try:
        request = parse_request(*split_request(data))
    except (FrameError, CniError) as error:
        raise Unreadable(str(error)) from None
    if request.command is not Command.DEL:
        raise Unreadable(f"it records a {request.command.value}, not a DEL")
    return request
