"""Deletions that a runtime asked for while no agent was there are done before anything else."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from cni.attachment import Attachment
from cni.frame import MAGIC
from cni.recorded import directory_of, replay, supersede
from cni.server import CniServer
from cni.spec import Request


class Verbs:
    """Remembers what it was asked; ``failing`` makes every verb fail."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failing = False

    async def handle(self, request: Request, netns_fd: int | None) -> None:
        assert netns_fd is None
        if self.failing:
            raise OSError(28, "no space")
        assert request.attachment is not None
        self.done.append(f"{request.command.value} {request.attachment.container_id}")

    async def close(self) -> None:
        self.done.append("closed")


def frame(container: str, command: str = "DEL") -> bytes:
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/nowhere",
        "CNI_PATH": "/opt/cni/bin",
    }
    conf = {"cniVersion": "1.0.0", "name": "pods", "type": "slash32"}
    entries = b"".join(f"{k}={v}".encode() + b"\0" for k, v in environment.items())
    return MAGIC + entries + b"\0" + json.dumps(conf).encode()


def put(directory: Path, name: str, data: bytes, age_s: int) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_bytes(data)
    os.utime(path, (1000 - age_s, 1000 - age_s))
    return path


async def test_records_are_done_oldest_first_and_then_forgotten(tmp_path: Path):
    """The order in which the runtime asked."""
    put(tmp_path, "aa", frame("young"), age_s=1)
    put(tmp_path, "bb", frame("old"), age_s=9)
    verbs = Verbs()
    assert await replay(tmp_path, verbs) == 0
    assert verbs.done == ["DEL old", "DEL young"]
    assert list(tmp_path.iterdir()) == []


async def test_a_record_whose_deletion_fails_stays_and_stops_no_other(tmp_path: Path):
    """The promise to the runtime is kept later."""
    put(tmp_path, "aa", frame("one"), age_s=2)
    verbs = Verbs()
    verbs.failing = True
    assert await replay(tmp_path, verbs) == 1
    verbs.failing = False
    assert await replay(tmp_path, verbs) == 0
    assert verbs.done == ["DEL one"]


async def test_what_cannot_be_read_is_dropped_and_what_is_being_written_is_left(tmp_path: Path):
    """Garbage would stand in the way for ever; a name with a dot is not finished."""
    for name, data in (
        ("a", b""),
        ("b", b"\xff" * 100),
        ("c", frame("x", command="ADD")),
        ("d", frame("../x")),
        ("e", b"x" * ((1 << 20) + 1)),
    ):
        put(tmp_path, name, data, age_s=1)
    writing = put(tmp_path, ".1f", frame("half")[:40], age_s=1)
    os.utime(writing)
    verbs = Verbs()
    assert await replay(tmp_path, verbs) == 0
    assert verbs.done == []
    assert list(tmp_path.iterdir()) == [writing]


async def test_what_a_killed_launcher_left_half_written_is_removed(tmp_path: Path):
    """It would count against the bound that launchers keep to."""
    put(tmp_path, ".1f", frame("half")[:40], age_s=1)
    assert await replay(tmp_path, Verbs()) == 0
    assert list(tmp_path.iterdir()) == []


async def test_a_record_that_its_launcher_takes_back_meanwhile_is_no_failure(tmp_path: Path):
    """The launcher found the agent after all, and says the same to it directly."""

    class TakingBack(Verbs):
        async def handle(self, request: Request, netns_fd: int | None) -> None:
            await super().handle(request, netns_fd)
            (tmp_path / "bb").unlink()

    put(tmp_path, "aa", frame("old"), age_s=9)
    put(tmp_path, "bb", frame("young"), age_s=1)
    (tmp_path / "cc").symlink_to(tmp_path / "nothing")
    verbs = TakingBack()
    assert await replay(tmp_path, verbs) == 0
    assert verbs.done == ["DEL old"]


async def test_a_directory_that_cannot_be_made_keeps_no_agent_from_serving(tmp_path: Path):
    """Launchers then find no place for a record, and say that one should try again."""
    (tmp_path / "deleted").write_bytes(b"")
    server = CniServer(str(tmp_path / "cni.sock"), Verbs())
    await server.start()
    assert (tmp_path / "cni.sock").is_socket()
    await server.close()


async def test_the_server_replays_before_it_serves_and_makes_the_directory(tmp_path: Path):
    """The directory is the promise: it exists from the first start on, for root alone."""
    path = str(tmp_path / "run" / "cni.sock")
    verbs = Verbs()
    server = CniServer(path, verbs)
    await server.start()
    await server.close()
    records = directory_of(path)
    assert stat.S_IMODE(records.stat().st_mode) == 0o700
    put(records, "aa", frame("gone"), age_s=1)
    again = CniServer(path, verbs)
    await again.start()
    await again.close()
    assert verbs.done == ["closed", "DEL gone", "closed"]


async def test_a_record_that_cannot_be_opened_now_is_kept(tmp_path: Path):
    """A passing failure of the disk must not lose a deletion; a directory stands in for one."""
    (tmp_path / "aa").mkdir()
    verbs = Verbs()
    assert await replay(tmp_path, verbs) == 1
    assert (tmp_path / "aa").exists()


async def test_an_add_supersedes_the_deletions_that_came_before_it(tmp_path: Path):
    """The same container again: its old deletion must not take the new link."""
    again = put(tmp_path, "aa", frame("again"), age_s=2)
    other = put(tmp_path, "bb", frame("other"), age_s=1)
    supersede(tmp_path, Attachment("pods", "again", "eth0"))
    assert not again.exists()
    assert other.exists()
