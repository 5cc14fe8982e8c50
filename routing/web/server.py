"""The agent's HTTP server: everything on loopback, metrics alone on an address for a scraper.

Invariants:
  * Nothing can be changed here: GET and HEAD only.
  * What names pods and routes is served on loopback alone, and only to who asks for loopback by
    name: a page in an operator's browser that has its own name resolve to 127.0.0.1 gets nothing.
  * A client that is slow or silent costs nobody else anything: connections are bounded, and the
    oldest gives way. Pods can reach the node's address.
  * A port that is taken is no reason not to route: it is told, and tried again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import cast

import structlog
from aiohttp import web

log = structlog.get_logger("routing.web")

LOOPBACK = "127.0.0.1"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
METRICS_PATH = "/metrics"
MAX_CONNECTIONS = 64
ANSWER_DEADLINE_S = 10.0
RETRY_S = 30.0
CLOSE_GRACE_S = 0.5
NOTHING_ALLOWED = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""The Content-Security-Policy of what is not a page."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What one path answers."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    policy: str = NOTHING_ALLOWED
    headers: Mapping[str, str] = field(default_factory=dict)


Pages = Mapping[str, Callable[[], Awaitable[Reply]]]


class WebServer:
    """Serves ``pages`` by path.

    Args:
        pages: path -> what answers it.
        port: on 127.0.0.1 and on ``metrics_address``.
        metrics_address: where ``/metrics`` is served besides; None for nowhere.
    """

    def __init__(
        self,
        pages: Pages,
        *,
        port: int,
        metrics_address: IPv4Address | IPv6Address | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._doors = [_Door(LOOPBACK, port, pages, max_connections, by_loopback_name=True)]
        if metrics_address is not None:
            only = {path: page for path, page in pages.items() if path == METRICS_PATH}
            door = _Door(str(metrics_address), port, only, max_connections, by_loopback_name=False)
            self._doors.append(door)
        self._opening: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listens; where that fails, goes on trying in the background."""
        for door in self._doors:
            if not await door.open():
                self._opening.append(asyncio.create_task(door.open_at_last(), name="web-open"))

    async def close(self) -> None:
        """Stops listening."""
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for door in self._doors:
            await door.close()

    @property
    def ports(self) -> list[int]:
        """The ports of those that listen; for port 0, which is any."""
        return [door.port for door in self._doors if door.port]


class _Door:
    """One address we listen on."""

    def __init__(
        self, host: str, port: int, pages: Pages, max_connections: int, *, by_loopback_name: bool
    ) -> None:
        self._host = host
        self._port = port
        self._pages = pages
        self._max_connections = max_connections
        self._by_loopback_name = by_loopback_name
        self._runner: web.ServerRunner | None = None
        self._listener: asyncio.Server | None = None

    @property
    def port(self) -> int:
        if self._listener is None:
            return 0
        return cast(int, self._listener.sockets[0].getsockname()[1])

    async def open(self) -> bool:
        """Whether we listen now."""
        server = web.Server(self._answer, access_log=None)
        runner = web.ServerRunner(server, handle_signals=False)
        await runner.setup()
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                lambda: self._admit(server),
                self._host,
                self._port,
                family=socket.AF_INET6 if ":" in self._host else socket.AF_INET,
            )
        except OSError as error:
            await runner.cleanup()
            reason = error.strerror or str(error)
            log.warning("http_not_listening", address=self._host, port=self._port, error=reason)
            return False
        self._runner = runner
        log.info("http_listening", address=self._host, port=self.port)
        return True

    async def open_at_last(self) -> None:
        """Tries until it listens."""
        while True:
            await asyncio.sleep(RETRY_S)
            if await self.open():
                return

    async def close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        if self._runner is not None:
            for connection in self._runner.server.connections if self._runner.server else []:
                if connection.transport is not None:
                    connection.transport.abort()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_GRACE_S):
                    await self._runner.cleanup()

    def _admit(self, server: web.Server) -> asyncio.BaseProtocol:
        """A connection's protocol; the oldest connection goes when there are too many."""
        open_now = server.connections
        if len(open_now) >= self._max_connections and open_now[0].transport is not None:
            open_now[0].transport.abort()
        return server()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        reply = await self._reply(request)
        headers = {
            "Content-Security-Policy": reply.policy,
            "Content-Type": reply.content_type,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Server": "slash32",
            "Cross-Origin-Resource-Policy": "same-origin",
            **reply.headers,
        }
        return web.Response(body=reply.body, status=reply.status, headers=headers)

    async def _reply(self, request: web.BaseRequest) -> Reply:
        if request.method not in ("GET", "HEAD"):
            return Reply(b"read-only\n", status=405, headers={"Allow": "GET, HEAD"})
        if self._by_loopback_name and _name_of(request.host) not in LOOPBACK_NAMES:
            return Reply(b"ask for this by the name localhost\n", status=421)
        page = self._pages.get(request.path)
        if page is None:
            known = " ".join(sorted(self._pages))
            return Reply(f"no such page; there is: {known}\n".encode(), status=404)
        try:
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                return await page()
        except TimeoutError:
            return Reply(b"the agent did not answer in time\n", status=503)
        except Exception as error:
            log.exception("http_page_failed", path=request.path, error=str(error))
            return Reply(b"the agent failed at this; its log says why\n", status=500)


def _name_of(host: str) -> str:
    """The name in a Host header: without the port, and an IPv6 address without its brackets."""
    if host.startswith("["):
        name = host[1:].partition("]")[0]
        with suppress(ValueError):
            return str(ip_address(name))
        return name
    return host.partition(":")[0].lower()
