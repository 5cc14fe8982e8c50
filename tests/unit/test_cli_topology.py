"""slash32 topology as a command: what it prints and how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from routing.cli.resources import apply
from routing.cli.topology import topology
from routing.control import ControlServer

NETWORK = Path(__file__).parents[2] / "manifests" / "network.yaml"

PEER = {
    "node": "node-1", "peer": "192.0.2.1", "name": "tor", "asn": 64512, "state": "Established",
    "since_s": 5.0, "received": 3, "accepted": 3, "advertised": 1, "reason": "",
}  # fmt: skip


class Agent:
    """An agent's socket with these views, served by a thread of its own."""

    def __init__(self, run_dir: Path, peer: dict[str, object]) -> None:
        self._run_dir = run_dir
        self._peer = peer
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Agent:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @staticmethod
    def _view(rows: object) -> Callable[[], Awaitable[object]]:
        async def answer() -> object:
            return rows

        return answer

    def _run(self) -> None:
        status = {"node": "node-1", "pods": 1, "findings": []}
        views = {"peers": [self._peer], "blocks": [], "status": status}
        server = ControlServer(
            self._run_dir / "agent.sock",
            {name: self._view(rows) for name, rows in views.items()},
        )
        self._loop.run_until_complete(server.start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(server.close())
        self._loop.close()


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = str(tmp_path / "store.db")
    done = CliRunner().invoke(apply, ["-f", str(NETWORK), "--store", path])
    assert done.exit_code == 0, done.output
    return path


def run(store: str, run_dir: Path, *options: str):
    arguments = ["--store", store, "--run-dir", str(run_dir), "--local", *options]
    return CliRunner().invoke(topology, arguments, env={"SLASH32_NODE": None})


@pytest.mark.parametrize(
    ("output", "begins"), [("svg", "<svg "), ("html", "<!DOCTYPE html>"), ("dot", "graph slash32")]
)
def test_a_healthy_cluster_is_drawn_and_exits_0(store, tmp_path, output: str, begins: str):
    """On standard output, and nothing else there."""
    with Agent(tmp_path, PEER):
        done = run(store, tmp_path, "-o", output)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(begins)
    assert "node-1" in done.stdout
    assert done.stderr == ""


def test_a_session_that_is_down_is_a_finding(store, tmp_path):
    """Drawn, said on standard error, and in the exit code."""
    with Agent(tmp_path, PEER | {"state": "Idle", "reason": "hold timer expired"}):
        done = run(store, tmp_path)
    assert done.exit_code == 1
    assert done.stdout.startswith("<svg ")
    assert "hold timer expired" in done.stderr


def test_a_pool_is_drawn_as_its_blocks(store, tmp_path):
    """And one that does not exist is named beside those that do."""
    with Agent(tmp_path, PEER):
        done = run(store, tmp_path, "--pool", "pods")
        wrong = run(store, tmp_path, "--pool", "nosuch")
    assert done.exit_code == 0
    assert "pool pods 10.244.0.0/16: 0 of 1024 blocks taken" in done.stdout
    assert wrong.exit_code == 1
    assert "there is: pods" in wrong.stderr
    assert run(store, tmp_path, "--pool", "pods", "-o", "dot").exit_code == 2


def test_a_node_that_is_not_heard_makes_the_answer_partial(store, tmp_path):
    """As configured is not as it is."""
    arguments = ["--store", store, "--run-dir", str(tmp_path / "none"), "-A"]
    done = CliRunner().invoke(topology, arguments)
    assert done.exit_code == 4, done.output
    assert "node-1 was not heard" in done.stderr
    assert "not known here" in done.stdout
