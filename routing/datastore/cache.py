"""SnapshotCache: the last snapshot the store gave, on this node's disk.

An agent that restarts while the API server is away starts from it: peers, import policy and own
blocks are what they were, so no route and no announcement changes, and ADD goes on in blocks that
have room. What comes from it is never in sync, so nothing is deleted or withdrawn on its word.

The one danger of an old file is a block that is not ours any more: two nodes would give out the
same addresses. Only we give back what is ours (the cluster's collector takes only from nodes that
show no life), so the file must have forgotten a block before the store has: ``give_up``.

Nothing here raises for a file that cannot be read or written, ``give_up`` excepted: the agent
serves without a cache, and says so.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog

from cni.ipam.block import Block, BlockStoreError
from cni.ipam.cooldown import read_boot_id
from routing.datastore.cache_format import (
    CacheUnusable,
    decode,
    decode_passwords,
    encode,
    encode_passwords,
    essence,
    own_confirmed,
)
from routing.datastore.snapshot import Password, SecretKeyRef, Snapshot

log = structlog.get_logger("routing.cache")

FILE_MAX_BYTES = 64 << 20
"""A cluster of 5000 nodes and 20000 blocks takes about 8 MiB."""
OTHERS_EVERY_S = 10.0
"""How often at most the file is written for what is only other nodes' business."""
OUTSIDE = (OSError, CacheUnusable)


class SnapshotCache:
    """One file, and one for passwords. Used by one agent, which holds the run directory's lock.

    Args:
        path: the file; it should outlive a reboot.
        node: this node's name; a file of another node is refused.
        passwords_path: where passwords are kept, on a tmpfs; None for nowhere.
        boot_id: this boot's id; tests pass their own.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        node: str,
        passwords_path: Path | None = None,
        boot_id: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        max_bytes: int = FILE_MAX_BYTES,
    ) -> None:
        self._path = path
        self._node = node
        self._passwords_path = passwords_path
        self._boot_id = read_boot_id() if boot_id is None else boot_id
        self._clock = clock
        self._max_bytes = max_bytes
        self._seen: Snapshot | None = None
        """What save() was last asked about, to see cheaply that nothing changed."""
        self._on_disk: Snapshot | None = None
        """What the file holds as far as we know; None when we do not know or there is none."""
        self._given_up: set[tuple[str, str]] = set()
        self._passwords_on_disk: dict[SecretKeyRef, Password] | None = None
        self._written_s = float("-inf")
        self._problems: dict[Path, str] = {}
        self.faults = 0
        """Files refused and writes that failed, since the start."""

    @property
    def problems(self) -> list[str]:
        """Why a file is not what the last snapshot said, one sentence each."""
        return list(self._problems.values())

    def load(self) -> Snapshot | None:
        """The last snapshot saved, out of sync; None when there is none that can be used."""
        try:
            raw = _read(self._path, self._max_bytes)
            snapshot = decode(raw, node=self._node, boot_id=self._boot_id)
        except FileNotFoundError:
            return None
        except OUTSIDE as error:
            self._failed("cache_unusable", self._path, _reason(error))
            return None
        self._on_disk = snapshot
        return replace(snapshot, passwords=self._load_passwords())

    def _load_passwords(self) -> dict[SecretKeyRef, Password]:
        if self._passwords_path is None:
            return {}
        try:
            raw = _read(self._passwords_path, self._max_bytes)
            self._passwords_on_disk = decode_passwords(raw, node=self._node)
        except FileNotFoundError:
            return {}
        except OUTSIDE as error:
            self._failed("cache_unusable", self._passwords_path, _reason(error))
            return {}
        return dict(self._passwords_on_disk)

    def save(self, snapshot: Snapshot) -> bool:
        """Writes what is new in a snapshot that is in sync. Returns whether anything was written.

        Safe to call at every pass: an unchanged snapshot costs a comparison.
        """
        if not snapshot.in_sync or (snapshot == self._seen and not self._problems):
            return False
        is_saved = self._save_passwords(snapshot)
        kept = tuple(b for b in snapshot.blocks if _version(b) not in self._given_up)
        wanted = replace(snapshot, blocks=kept, passwords={}, in_sync=False)
        if self._on_disk is not None and self._path not in self._problems:
            old, new = (essence(each, node=self._node) for each in (self._on_disk, wanted))
            if old == new:
                self._seen = snapshot
                return is_saved
            if old[0] == new[0] and self._clock() - self._written_s < OTHERS_EVERY_S:
                return is_saved
        self._written_s = self._clock()
        try:
            self._write(wanted)
        except Exception as error:
            # Whatever it is, a cache is not worth an agent. The old file stays: it is what was
            # last known, and give_up() keeps it from being wrong where that would do harm.
            self._failed("cache_unwritable", self._path, f"cannot be written: {_reason(error)}")
            return is_saved
        self._seen = snapshot
        self._problems.pop(self._path, None)
        return True

    def give_up(self, block: Block) -> None:
        """Returns once no file of ours gives the block to an agent that starts from it.

        To be called before the block is deleted in the store. A snapshot handed in later that is
        older than the deletion does not bring it back.

        Raises:
            BlockStoreError: the file still has it, so it must not be deleted.
        """
        disk = self._on_disk
        if disk is None:
            # Refused, or never read: whatever it is, another version of us may believe it.
            self._remove(block)
            return
        same = [b for b in own_confirmed(disk.blocks, self._node) if b.cidr == block.cidr]
        if not same:
            return
        self._given_up |= {_version(each) for each in same}
        try:
            self._write(replace(disk, blocks=tuple(b for b in disk.blocks if b not in same)))
        except Exception as error:
            self._failed("cache_unwritable", self._path, f"cannot be written: {_reason(error)}")
            self._remove(block)

    def _remove(self, block: Block) -> None:
        self._on_disk = self._seen = None
        try:
            self._path.unlink(missing_ok=True)
            _sync_directory(self._path.parent)
        except OSError as error:
            self._failed("cache_unwritable", self._path, f"cannot be removed: {_reason(error)}")
            raise BlockStoreError(
                f"block {block.cidr} is kept: {self._path} still has it and cannot be written "
                f"or removed: {_reason(error)}"
            ) from None

    def _write(self, snapshot: Snapshot) -> None:
        raw = encode(snapshot, node=self._node, boot_id=self._boot_id)
        if len(raw) > self._max_bytes:
            raise CacheUnusable(f"{len(raw)} bytes are more than {self._max_bytes}")
        _replace(self._path, raw)
        self._on_disk = snapshot

    def _save_passwords(self, snapshot: Snapshot) -> bool:
        path, passwords = self._passwords_path, dict(snapshot.passwords)
        if path is None or passwords == self._passwords_on_disk:
            return False
        if not passwords and self._passwords_on_disk is None and not path.exists():
            return False
        try:
            _replace(path, encode_passwords(passwords, node=self._node, boot_id=self._boot_id))
        except Exception as error:
            # The error of a write names the path; that of an encoder might quote a value.
            kind = _reason(error) if isinstance(error, OSError) else type(error).__name__
            self._failed("cache_unwritable", path, f"cannot be written: {kind}")
            return False
        self._passwords_on_disk = passwords
        self._problems.pop(path, None)
        return True

    def _failed(self, event: str, path: Path, reason: str) -> None:
        self.faults += 1
        sentence = f"cache {path} {reason}"
        if self._problems.get(path) != sentence:
            log.warning(event, path=str(path), reason=reason)
        self._problems[path] = sentence


def _version(block: Block) -> tuple[str, str]:
    return (block.uid, block.resource_version)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


def _open(path: str, flags: int) -> int:
    """0600, and a regular file: never a link, a pipe or a device that somebody put in its place."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CacheUnusable("is not a regular file")
    return descriptor


def _read(path: Path, max_bytes: int) -> bytes:
    with open(path, "rb", opener=_open) as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise CacheUnusable(f"is larger than {max_bytes} bytes")
    return raw


def _replace(path: Path, raw: bytes) -> None:
    """The whole file or the old one, also after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb", opener=_open) as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
