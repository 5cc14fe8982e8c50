"""The agent's control socket, the CLI's tables, and the settings."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest

from routing.cli.table import age, render
from routing.control import ControlServer, Unreachable, ask
from routing.settings import InvalidSettings, Settings


async def test_a_view_is_answered_and_the_socket_is_private(tmp_path: Path):
    """What the agent knows of the network is for root."""

    async def view():
        return [1, 2]

    server = ControlServer(tmp_path / "a.sock", {"rows": view})
    await server.start()
    try:
        assert await asyncio.to_thread(ask, tmp_path / "a.sock", "rows") == [1, 2]
        assert stat.S_IMODE((tmp_path / "a.sock").stat().st_mode) == 0o600
        with pytest.raises(Unreachable, match="views are rows"):
            await asyncio.to_thread(ask, tmp_path / "a.sock", "nonsense")
    finally:
        await server.close()
    assert not (tmp_path / "a.sock").exists()


def test_a_missing_agent_is_one_clear_sentence(tmp_path: Path):
    """It names the socket."""
    with pytest.raises(Unreachable, match=r"no slash32 agent answers on .*a\.sock"):
        ask(tmp_path / "a.sock", "status")


async def test_a_dead_agents_socket_is_replaced(tmp_path: Path):
    """A kill -9 leaves the file; the next agent must start."""
    first = ControlServer(tmp_path / "a.sock", {})
    await first.start()
    second = ControlServer(tmp_path / "a.sock", {})
    await second.start()
    await first.close()
    await second.close()


async def test_garbage_and_silence_hurt_nobody_else(tmp_path: Path):
    """A silent client holds no other client up; garbage gets an answer."""

    async def view():
        return "ok"

    server = ControlServer(tmp_path / "a.sock", {"v": view})
    await server.start()
    try:
        _silent, writer = await asyncio.open_unix_connection(str(tmp_path / "a.sock"))
        reader2, writer2 = await asyncio.open_unix_connection(str(tmp_path / "a.sock"))
        writer2.write(b"\xff\xfe not json\n")
        assert b"unknown request" in await reader2.readline()
        reader3, writer3 = await asyncio.open_unix_connection(str(tmp_path / "a.sock"))
        writer3.write(b"[" * 4000 + b"\n")  # deeper than a decoder goes
        assert b"unknown request" in await reader3.readline()
        assert await asyncio.to_thread(ask, tmp_path / "a.sock", "v") == "ok"
        for open_writer in (writer, writer2, writer3):
            open_writer.close()
            await open_writer.wait_closed()
    finally:
        await server.close()


def test_a_table_is_plain_and_aligned():
    """No borders, no trailing blanks, a dash for nothing."""
    text = render(["NODE", "X"], [["node-1", ""], ["n", "long cell"]])
    assert text.splitlines() == ["NODE    X", "node-1  -", "n       long cell"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0s"), (119, "119s"), (120, "2m"), (11520, "3h12m"), (190800, "2d5h")],
)
def test_ages_read_like_kubectls(seconds, text):
    """Short, two units at most."""
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"node": "Bad_Name"}, "node = 'Bad_Name'"),
        ({"node": "a;b"}, "node = 'a;b'"),
        ({"run_dir": Path("relative")}, "run_dir = 'relative'"),
        ({"run_dir": Path("/" + "x" * 120)}, "too long for a Unix socket"),
        ({"mtu_bytes": 576}, "mtu = 576"),
    ],
)
def test_a_bad_setting_is_refused_by_name_and_value(changes, names):
    """The sentence says which setting, which value, which rule."""
    values: dict[str, Any] = {
        "node": "n1",
        "run_dir": Path("/run/x"),
        "state_dir": Path("/var/x"),
        "store": Path("/var/x/store.db"),
    }
    with pytest.raises(InvalidSettings) as caught:
        Settings(**(values | changes))
    assert names in str(caught.value)
