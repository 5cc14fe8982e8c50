"""Disks: a directory that cannot be written is told with its path and its reason."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from routing.disks import PROBE, Disks, why_not


def test_a_directory_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    """The control: nothing is told, and nothing lies about."""
    disks = Disks([tmp_path, tmp_path])
    disks.look()
    assert disks.problems == []
    assert disks.is_writable == {str(tmp_path): True}
    assert list(tmp_path.iterdir()) == []


def fails(code: int):
    """A call of os that fails."""

    def call(*_args: object, **_named: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize(
    ("call", "code"),
    [("open", errno.EROFS), ("write", errno.ENOSPC), ("write", errno.EDQUOT), ("open", errno.EIO)],
)
def test_why_it_cannot_is_said_and_everybody_told_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Once each time, with the kernel's own words."""
    changes: list[list[str]] = []
    disks = Disks([tmp_path], on_change=lambda: changes.append(disks.problems))
    disks.look()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails(code))
        disks.look()
        disks.look()
    disks.look()
    sentence = f"{tmp_path} cannot be written: {os.strerror(code)}"
    assert changes == [[sentence], []]
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_not_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write(2) takes what fits and calls that a success."""
    monkeypatch.setattr(os, "write", lambda *_: len(PROBE) - 1)
    assert why_not(tmp_path) == "No space left on device"


def test_a_file_system_without_nameless_files_does_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a killed agent of the same pid has left its file."""
    real = os.open

    def without(path: object, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, mode)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", without)
    (tmp_path / f".room.{os.getpid()}").write_text("left")
    assert why_not(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    """Somebody's clean-up, say."""
    assert why_not(tmp_path / "gone") == "No such file or directory"
