"""The HTTP server: read-only, loopback by name, bounded, and no reason not to route."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

import pytest

from routing.web.server import Reply, WebServer

pytestmark = pytest.mark.filterwarnings("error")


async def hello() -> Reply:
    return Reply(b"hello\n")


async def broken() -> Reply:
    raise RuntimeError("a secret of the inside")


PAGES = {"/metrics": hello, "/page": hello, "/broken": broken}


async def ask(
    port: int, path: str, *, host: str = "localhost", verb: str = "GET", to: str = "127.0.0.1"
) -> tuple[int, str, dict[str, str]]:
    """(status, body, headers in lower case) of one request."""
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(to, port)
        text = f"{verb} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        writer.write(text.encode())
        raw = (await reader.read()).decode()
        writer.close()
    head, _, body = raw.partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
    return int(first.split()[1]), body, headers


@pytest.fixture
async def server():
    served = WebServer(PAGES, port=0, max_connections=4)
    await served.start()
    yield served
    await served.close()


async def test_a_page_is_served_with_nothing_allowed(server: WebServer):
    """No script, no frame, no caching, no sniffing unless a page asks for it."""
    status, body, headers = await ask(server.ports[0], "/page")
    assert (status, body) == (200, "hello\n")
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("verb", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_nothing_can_be_changed(server: WebServer, verb: str):
    """There is nothing to write to."""
    assert (await ask(server.ports[0], "/page", verb=verb))[0] == 405


async def test_what_is_not_there_says_what_is(server: WebServer):
    """For the one who types."""
    status, body, _ = await ask(server.ports[0], "/status")
    assert status == 404
    assert "/metrics" in body


async def test_a_page_that_fails_tells_nothing_of_the_inside(server: WebServer):
    """The log does."""
    status, body, _ = await ask(server.ports[0], "/broken")
    assert status == 500
    assert "secret" not in body


@pytest.mark.parametrize("host", ["localhost", "localhost:9178", "127.0.0.1:9178", "[::1]:80"])
async def test_loopback_answers_to_its_own_names(server: WebServer, host: str):
    """Through kubectl port-forward too."""
    assert (await ask(server.ports[0], "/page", host=host))[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1:9178"])
async def test_loopback_does_not_answer_to_another_name(server: WebServer, host: str):
    """A name that somebody has pointed at 127.0.0.1 (DNS rebinding)."""
    status, body, _ = await ask(server.ports[0], "/page", host=host)
    assert status == 421
    assert "hello" not in body


async def test_only_the_metrics_are_on_another_address():
    """By whatever name the scraper has for the node. 127.0.0.2 stands for the node's address."""
    server = WebServer(PAGES, port=0, metrics_address=ip_address("127.0.0.2"))
    await server.start()
    try:
        _, port = server.ports
        assert (await ask(port, "/metrics", host="node-1", to="127.0.0.2"))[0] == 200
        assert (await ask(port, "/page", host="localhost", to="127.0.0.2"))[0] == 404
    finally:
        await server.close()


async def test_silent_clients_give_way_to_those_who_ask(server: WebServer):
    """Four places, all taken by clients that say nothing: the fifth is served all the same."""
    silent = [await asyncio.open_connection("127.0.0.1", server.ports[0]) for _ in range(4)]
    try:
        assert (await ask(server.ports[0], "/page"))[0] == 200
        async with asyncio.timeout(5):
            # The first one was let go.
            assert await silent[0][0].read() == b""
    except ConnectionResetError:
        pass
    finally:
        for _, writer in silent:
            writer.close()


async def test_a_taken_port_is_told_and_not_fatal():
    """The agent routes on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = WebServer(PAGES, port=taken.getsockname()[1])
        await server.start()
        assert server.ports == []
        await server.close()
