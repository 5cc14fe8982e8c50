"""Executes the CNI plugin as a runtime does, and runs the agent's end beside a test."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cni.attach import Attacher, Wiring
from cni.server import CniServer
from tests.fakes.cni import Node

PLUGIN = Path(__file__).parents[2] / "cni" / "plugin.py"
EXEC_DEADLINE_S = 30.0

WITH_DEADLINE = """
import runpy, sys
sys.exit(runpy.run_path(sys.argv[1])["main"](deadline_s=float(sys.argv[2])))
"""


@dataclass(frozen=True)
class Outcome:
    """What an executed plugin left: exit status, stdout and stderr."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """Stdout, decoded."""
        decoded: dict[str, Any] = json.loads(self.stdout)
        return decoded

    @property
    def code(self) -> int:
        """The CNI error code."""
        assert self.status == 1, self.stdout
        assert set(self.json) == {"cniVersion", "code", "msg", "details"}
        return int(self.json["code"])


def execute(
    environment: Mapping[str, str] | Mapping[bytes, bytes],
    stdin: bytes,
    *,
    deadline_s: float | None = None,
) -> Outcome:
    """Runs plugin.py in an interpreter of its own, isolated and without site, as installed."""
    command = [os.path.realpath(sys.executable), "-IS"]
    if deadline_s is None:
        command.append(str(PLUGIN))
    else:
        command += ["-c", WITH_DEADLINE, str(PLUGIN), str(deadline_s)]
    done = subprocess.run(
        command,
        env=environment,
        input=stdin,
        capture_output=True,
        timeout=EXEC_DEADLINE_S,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr.decode())


@contextmanager
def agent_beside(path: str, node: Node, *, wiring: Wiring | None = None) -> Iterator[None]:
    """Serves ``path`` over the fakes of ``node``, in a loop of its own thread.

    ``wiring`` takes the place of the fake one.
    The fakes are touched by that thread while a plugin runs, by the test before and after.
    """
    ready = threading.Event()
    stop: asyncio.Event
    loop: asyncio.AbstractEventLoop
    failure: list[BaseException] = []

    async def serve() -> None:
        nonlocal stop, loop
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        node.wires.identify = lambda descriptor: os.fstat(descriptor).st_ino
        attacher = Attacher(
            wiring=node.wires if wiring is None else wiring,
            host_routes=node.routes,
            allocator=node.allocator,
            mtu_bytes=lambda: 1500,
            readiness=lambda: node.unready,
        )
        server = CniServer(path, attacher)
        await server.start()
        ready.set()
        await stop.wait()
        await server.close()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failure.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="agent-beside")
    thread.start()
    ready.wait(EXEC_DEADLINE_S)
    try:
        if failure:
            raise failure[0]
        yield
    finally:
        if not failure:
            loop.call_soon_threadsafe(stop.set)
        thread.join(EXEC_DEADLINE_S)
    if failure:
        raise failure[0]


@contextmanager
def network_namespace() -> Iterator[str]:
    """A network namespace that lives as long as a process of ours; its path."""
    # The shell says that it is in its namespace, then waits for its standard input to end.
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; read _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield f"/proc/{process.pid}/ns/net"
        process.communicate(b"\n")
