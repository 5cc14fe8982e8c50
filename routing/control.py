"""The agent's control socket: one JSON line in, one JSON document out, read-only.

The CLI asks for a view by name and prints what the agent believes. The socket is 0600: what the
agent knows of the network is for root.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

REQUEST_MAX_BYTES = 4096
REQUEST_DEADLINE_S = 5.0
REPLY_MAX_BYTES = 256 * 1024 * 1024

Views = Mapping[str, Callable[[], Awaitable[Any]]]


class Unreachable(Exception):
    """The agent does not answer; the sentence says where it was looked for and why it failed."""


class ControlServer:
    """Serves views on a Unix socket."""

    def __init__(self, path: Path, views: Views) -> None:
        self._path = path
        self._views = views
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Binds the socket, 0600 from its first moment; a dead agent's socket is replaced."""
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(self._path.lstat().st_mode):
                self._path.unlink()
        previous = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(
                self._answer, path=str(self._path), limit=REQUEST_MAX_BYTES
            )
        finally:
            os.umask(previous)

    async def close(self) -> None:
        """Stops answering and removes the socket."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        self._path.unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_DEADLINE_S):
                line = await reader.readline()
            writer.write(json.dumps(await self._reply(line)).encode() + b"\n")
            async with asyncio.timeout(REQUEST_DEADLINE_S):
                await writer.drain()
        except (TimeoutError, OSError, ValueError):
            # A client that is slow, gone or talks too much is its own affair.
            pass
        finally:
            writer.close()

    async def _reply(self, line: bytes) -> dict[str, Any]:
        try:
            name = json.loads(line)["view"]
            view = self._views[name]
        except (ValueError, KeyError, TypeError):
            return {"error": f"unknown request; views are {', '.join(sorted(self._views))}"}
        return {"view": name, "data": await view()}


def ask(path: Path, view: str, *, timeout_s: float = 5.0) -> Any:
    """The agent's answer to one view.

    Raises:
        Unreachable: no agent answers at ``path`` within ``timeout_s``, or not in our form.
    """
    chunks: list[bytes] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(timeout_s)
            client.connect(str(path))
            client.sendall(json.dumps({"view": view}).encode() + b"\n")
            size = 0
            while chunk := client.recv(1 << 20):
                chunks.append(chunk)
                size += len(chunk)
                if size > REPLY_MAX_BYTES:
                    raise Unreachable(f"the agent's answer on {path} is larger than 256 MiB")
    except OSError as error:
        reason = error.strerror or str(error) or "no answer in time"
        raise Unreachable(f"no slash32 agent answers on {path}: {reason}") from None
    try:
        reply = json.loads(b"".join(chunks))
        if "error" in reply:
            raise Unreachable(f"the agent on {path} says: {reply['error']}")
        return reply["data"]
    except (ValueError, KeyError, TypeError):
        raise Unreachable(f"the answer on {path} is not a slash32 agent's") from None
