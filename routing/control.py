"""The agent's control socket: one JSON line in, one JSON document out.

The CLI asks for a view by name and prints what the agent believes; a query is a view with
arguments. One query changes something: ``release``, an address (routing/releasing.py). The socket
is 0600: what the agent knows of the network is for root.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from routing.asking import Unreachable, ask

__all__ = ["ControlServer", "Queries", "Unreachable", "Views", "ask"]

REQUEST_MAX_BYTES = 4096
REQUEST_DEADLINE_S = 5.0

Views = Mapping[str, Callable[[], Awaitable[Any]]]
Queries = Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Any]]]
"""Views that take arguments; a ValueError of theirs is the asker's fault and is told to it."""


class ControlServer:
    """Serves views on a Unix socket."""

    def __init__(self, path: Path, views: Views, queries: Queries | None = None) -> None:
        self._path = path
        self._views = views
        self._queries = queries or {}
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
            request = json.loads(line)
            name, arguments = request["view"], request.get("arguments", {})
            if name in self._queries:
                return {"view": name, "data": await self._queries[name](arguments)}
            view = self._views[name]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # The last: a thousand brackets, nested deeper than the decoder goes.
            known = ", ".join(sorted([*self._views, *self._queries]))
            return {"error": f"unknown request ({error}); views are {known}"}
        return {"view": name, "data": await view()}
