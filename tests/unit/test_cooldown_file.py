"""The file that lets addresses rest over an agent's death."""

from __future__ import annotations

import os
from ipaddress import ip_address

import pytest

from cni.ipam.cooldown import CooldownFile
from tests.fakes.allocation import Clock


def journal(path, clock, *, boot_id="boot-1", cooldown_s=30.0) -> CooldownFile:
    return CooldownFile(str(path), cooldown_s=cooldown_s, clock=clock, boot_id=boot_id)


def test_the_file_gives_ages_back_and_is_private(tmp_path):
    """Oldest first, what has rested enough left out, mode 0600."""
    clock = Clock()
    path = tmp_path / "cooldown"
    writer = journal(path, clock)
    writer.append([ip_address("10.0.0.1")])
    clock.now_s += 25
    writer.append([ip_address("fd00::2"), ip_address("10.0.0.3")])
    clock.now_s += 10

    assert journal(path, clock).read() == {ip_address("fd00::2"): 10, ip_address("10.0.0.3"): 10}
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_killed_writer_left_does_not_pile_up(tmp_path):
    """Killed between writing the new file and putting it in its place, again and again."""
    path = tmp_path / "cooldown"
    (tmp_path / "cooldown.tmp").write_text("slash32-cooldown 1 boot-1\n990.0 10.0")
    writer = journal(path, Clock())
    writer.append([ip_address("10.0.0.1")])

    assert [each.name for each in tmp_path.iterdir()] == ["cooldown"]
    assert journal(path, Clock()).read() == {ip_address("10.0.0.1"): 0}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe garbage",
        b"slash32-cooldown 1 another-boot\n900.0 10.0.0.1\n",
        b"slash32-cooldown 1 boot-1\n990.0 10.0.0.999\nnan 10.0.0.1\n2000.0 10.0.0.1\n\n",
        b"slash32-cooldown 1 boot-1\n990.0 10.0.0.1",
        b"x" * (1 << 21),
    ],
)
def test_garbage_costs_some_cool_down_and_no_more(tmp_path, content):
    """Nothing is believed, nothing raised, and the file works again afterwards."""
    path = tmp_path / "cooldown"
    path.write_bytes(content)
    clock = Clock()

    first = journal(path, clock)
    assert first.read() == {}
    first.append([ip_address("10.0.0.7")])

    assert journal(path, clock).read() == {ip_address("10.0.0.7"): 0}


def test_the_file_stays_small(tmp_path):
    """Ten thousand releases of one address are not ten thousand lines."""
    clock = Clock()
    path = tmp_path / "cooldown"
    writer = journal(path, clock, cooldown_s=1)
    for _ in range(10_000):
        clock.now_s += 1
        writer.append([ip_address("10.0.0.1")])

    assert len(path.read_text().splitlines()) <= 2050


@pytest.mark.parametrize("place", ["missing/cooldown", "directory", "link", "pipe"])
def test_a_place_that_cannot_be_written_is_no_reason_to_fail(tmp_path, place):
    """A directory, a pipe, a link to somebody's file: the agent goes on and leaves it alone."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to(victim)
    os.mkfifo(tmp_path / "pipe")
    clock = Clock()

    note = journal(tmp_path / place, clock)
    assert note.read() == {}
    note.append([ip_address("10.0.0.1")])
    note.append([ip_address("10.0.0.2")])

    assert victim.read_text() == "precious"
