"""CooldownFile: recent releases, kept where a killed agent's successor finds them.

The kernel's journal tells which addresses are in use, not which were in use a moment ago. Without
this file an agent killed just after a DEL would hand the same address to the next pod, while
routers and clients still talk to the old one.

It is advice, not a record: losing it, or garbage in it, costs some cool-down and is logged, no
more. So nothing here raises, and nothing is fsynced: a killed process loses nothing that was
written, and after a reboot (another boot id) every pod is new anyway and the file is void.

Form: a header ``slash32-cooldown 1 <boot id>``, then lines ``<CLOCK_BOOTTIME seconds> <address>``.
CLOCK_BOOTTIME goes on while the machine sleeps and cannot be set, so it compares across processes.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address

import structlog

from cni.attachment import Address

log = structlog.get_logger("cni.ipam.cooldown")

MAGIC = "slash32-cooldown 1"
FILE_MAX_BYTES = 1 << 20
"""More than this was not written by us; it is not even read."""
COMPACT_AFTER_LINES = 2048
"""So many appended lines, and the file is written anew with those that still rest."""
ROUNDING_S = 0.001
"""Times are written in milliseconds, so one just written may lie this much ahead."""
BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"


def boottime_s() -> float:
    """Seconds since boot, sleep included (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def read_boot_id() -> str:
    """This boot's id, or "unknown" where /proc does not tell."""
    try:
        with open(BOOT_ID_PATH, encoding="ascii") as file:
            return file.read(64).strip() or "unknown"
    except OSError:
        return "unknown"


class CooldownFile:
    """An append-only, bounded list of releases.

    Args:
        path: the file; its directory must exist. Created 0600 at the first release.
        cooldown_s: how long an address rests; older entries are dropped.
        clock: CLOCK_BOOTTIME seconds; tests pass their own.
        boot_id: this boot's id; tests pass their own.
    """

    def __init__(
        self,
        path: str,
        *,
        cooldown_s: float,
        clock: Callable[[], float] = boottime_s,
        boot_id: str | None = None,
    ) -> None:
        self._path = path
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._header = f"{MAGIC} {read_boot_id() if boot_id is None else boot_id}"
        self._resting: dict[Address, float] = {}
        self._lines = 0
        self._last_fault = ""

    def read(self) -> dict[Address, float]:
        """Address -> seconds since its release, for those still resting, oldest first.

        Anything unusable is logged and left out; the file is then written anew.
        """
        lines = self._read_lines()
        if lines is None:
            return {}
        now_s = self._clock()
        for line in lines:
            entry = _parse(line)
            if entry is None or entry[1] > now_s + ROUNDING_S:
                log.warning("cooldown_line_ignored", path=self._path, line=line[:80])
                continue
            self._resting.pop(entry[0], None)
            self._resting[entry[0]] = min(entry[1], now_s)
        self._drop_rested(now_s)
        # Always: an entry appended after a torn line would be lost with it.
        self._rewrite()
        return {address: now_s - released_s for address, released_s in self._resting.items()}

    def append(self, addresses: Iterable[Address]) -> None:
        """Notes that these addresses were released now."""
        now_s = self._clock()
        added = list(addresses)
        for address in added:
            self._resting.pop(address, None)
            self._resting[address] = now_s
        self._lines += len(added)
        text = "".join(f"{now_s:.3f} {address}\n" for address in added)
        is_short = self._lines <= COMPACT_AFTER_LINES
        if not is_short or self._guarded(lambda: self._append(text)) is False:
            self._drop_rested(now_s)
            self._rewrite()

    def _drop_rested(self, now_s: float) -> None:
        self._resting = {
            address: released_s
            for address, released_s in sorted(self._resting.items(), key=lambda item: item[1])
            if now_s < released_s + self._cooldown_s
        }

    def _read_lines(self) -> list[str] | None:
        """The whole entries of a file of this boot; [] of any other; None when there is none."""
        try:
            with open(self._path, "rb", opener=_open_regular) as file:
                raw = file.read(FILE_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("cooldown_file_unreadable", path=self._path, error=str(error))
            return None
        header, *lines = raw.decode("ascii", "replace").split("\n")
        if len(raw) > FILE_MAX_BYTES or not header.startswith(MAGIC):
            log.warning("cooldown_file_ignored", path=self._path, reason="not a cool-down file")
            return []
        if header != self._header:
            log.info("cooldown_file_ignored", path=self._path, reason="of an earlier boot")
            return []
        if lines and lines[-1]:
            # Killed in mid-write: a cut address may parse as another one, so it is not trusted.
            log.warning("cooldown_line_ignored", path=self._path, line=lines[-1][:80])
        return lines[:-1]

    def _rewrite(self) -> None:
        text = self._header + "\n"
        text += "".join(f"{at_s:.3f} {address}\n" for address, at_s in self._resting.items())
        self._lines = len(self._resting)
        self._guarded(lambda: self._replace(text))

    def _append(self, text: str) -> bool:
        """False when there is no file: a new one would lack its header.

        By hand: every DEL comes here, and a file object costs more than the write.
        """
        try:
            descriptor = _open_regular(self._path, os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:
            return False
        try:
            data = text.encode("ascii")
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)
        return True

    def _replace(self, text: str) -> bool:
        # One name for all: what a killed agent left of it is overwritten by the next one.
        temporary = f"{self._path}.tmp"
        try:
            with open(temporary, "w", encoding="ascii", opener=_open_regular) as file:
                file.write(text)
            os.replace(temporary, self._path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return True

    def _guarded(self, write: Callable[[], bool]) -> bool | None:
        """What a write says, None when it failed; a fault is logged once, not once a release."""
        try:
            done = write()
        except OSError as error:
            if str(error) != self._last_fault:
                self._last_fault = str(error)
                log.warning("cooldown_file_unwritable", path=self._path, error=str(error))
            return None
        self._last_fault = ""
        return done


def _open_regular(path: str, flags: int) -> int:
    """Opens a regular file 0600, never a symbolic link, a pipe or a device put in its place."""
    descriptor = os.open(
        path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o600
    )
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return descriptor


def _parse(line: str) -> tuple[Address, float] | None:
    when, _, text = line.partition(" ")
    try:
        released_s = float(when)
        return (ip_address(text), released_s) if math.isfinite(released_s) else None
    except ValueError:
        return None
