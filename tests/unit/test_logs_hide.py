"""No secret, no standard input and no environment in a log line, whatever goes wrong."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from ipaddress import IPv4Address, ip_address

import pytest
import structlog

from bgp.paths import Peer
from cni.frame import MAGIC, REQUEST_MAX_BYTES
from cni.result import Result
from cni.server import CniServer
from cni.spec import Request
from routing.datastore.snapshot import Meta, Password, SecretResource
from routing.telemetry import LeafFormatter, configure_logging

MARK = "hunter2-do-not-tell"


@pytest.fixture
def logged(monkeypatch):
    """Everything both kinds of loggers write, as the agent configures them."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    configure_logging(level="debug", style="json")
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


class FailingVerbs:
    """Every verb fails with a sentence of its own, and none quotes its input."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def handle(self, request: Request, netns_fd: int | None) -> Result | None:
        raise self.error

    async def close(self) -> None:
        pass


def frame(stdin: bytes) -> bytes:
    """A request whose environment carries the mark too (cni/plugin.py describes the form)."""
    environment = {
        "CNI_COMMAND": "DEL",
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "",
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAME={MARK}",
        "CNI_PATH": f"/opt/{MARK}",
    }
    words = b"".join(f"{key}={value}".encode() + b"\0" for key, value in environment.items())
    return MAGIC + words + b"\0" + stdin


async def send(path: str, data: bytes) -> bytes:
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(data)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
    return answer


INPUTS = {
    "not JSON": MARK.encode(),
    "a wrong field": json.dumps(
        {"cniVersion": "1.1.0", "name": "net", "type": "slash32", "mtu": MARK}
    ).encode(),
    "an unknown version": json.dumps({"cniVersion": MARK, "name": "n", "type": "t"}).encode(),
    "a broken previous result": json.dumps(
        {"cniVersion": "1.1.0", "name": "net", "type": "slash32", "prevResult": MARK}
    ).encode(),
    "a good one": json.dumps(
        {"cniVersion": "1.1.0", "name": "net", "type": "slash32", "args": {"cni": {"x": MARK}}}
    ).encode(),
    "too much": b" " * (REQUEST_MAX_BYTES + 1) + MARK.encode(),
}


@pytest.mark.parametrize("stdin", INPUTS.values(), ids=INPUTS)
async def test_a_request_that_fails_is_logged_without_its_input(tmp_path, logged, stdin: bytes):
    """Bad input is quoted to the runtime that sent it, never in the log."""
    server = CniServer(str(tmp_path / "cni.sock"), FailingVerbs(RuntimeError("broken inside")))
    await server.start()
    try:
        answer = await send(str(tmp_path / "cni.sock"), frame(stdin))
    finally:
        await server.close()
    assert answer[:1] == b"\1"
    assert "cni_request_failed" in logged.getvalue()
    assert MARK not in logged.getvalue()


def test_passwords_print_as_nothing_wherever_they_are(logged):
    """In a line, in an object within a line, in a traceback."""
    log = structlog.get_logger("test")
    peer = Peer(
        "tor", ip_address("192.0.2.1"), 64512, 64601, ip_address("192.0.2.2"),
        IPv4Address("192.0.2.2"), password=MARK,
    )  # fmt: skip
    secret = SecretResource(Meta("bgp"), {"key": Password(MARK)})
    log.info("peer_configured", peer=peer, secret_name=secret, held=[secret])
    log.info("spread", password=MARK, Md5Password=MARK, stdin=MARK, environment=MARK, token=MARK)
    try:
        raise ValueError(f"{peer} {secret}")
    except ValueError:
        log.exception("failed")
    text = logged.getvalue()
    assert text.count("\n") == 3
    assert MARK not in text
    assert '"password": "***"' in text


def test_every_line_is_one_object_in_a_pod(logged):
    """Ours and the leaves' alike, so that a collector needs one parser."""
    structlog.get_logger("routing.x").warning("route_lost", prefix="10.0.0.0/8")
    logging.getLogger("cni.attach").warning("pod_lost link=%s", "s32\nabc")
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["route_lost", "pod_lost link=s32\nabc"]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    assert isinstance(logging.getLogger().handlers[0].formatter, LeafFormatter)
