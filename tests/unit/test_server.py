"""cni.server: frames, descriptors, bounds and errors, over real sockets with fake verbs."""

import array
import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cni.attach import HostRouteError
from cni.errors import CniError, Code
from cni.frame import MAGIC, REQUEST_MAX_BYTES, FrameError, split_request
from cni.ipam.allocator import NoAddress
from cni.ipam.block import BlockConflict, BlockStoreError
from cni.podlink import AliasError
from cni.result import Interface, Result
from cni.server import (
    CniServer,
    SocketInUse,
    as_cni_error,
)
from cni.spec import Request
from cni.wiring_errors import (
    LinkExists,
    NamespaceGone,
    OwnNamespace,
    PodInterfaceExists,
    WiringError,
)

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/run/netns/pod",
    "CNI_IFNAME": "eth0",
}
CONF = b'{"cniVersion": "1.1.0", "name": "slash32"}'
DEADLINE_S = 5.0

Handler = Callable[[Request, int | None], Awaitable[Result | None]]


class RecordingVerbs:
    """Answers every request with ``answer``, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Request, str | None]] = []
        self.answer: Handler | None = None
        self.is_closed = False

    async def handle(self, request: Request, netns_fd: int | None) -> Result | None:
        """Notes the request and where the descriptor leads."""
        where = os.readlink(f"/proc/self/fd/{netns_fd}") if netns_fd is not None else None
        self.asked.append((request, where))
        return await self.answer(request, netns_fd) if self.answer else None

    async def close(self) -> None:
        """Notes it."""
        self.is_closed = True


@pytest.fixture
def verbs() -> RecordingVerbs:
    """Verbs that succeed silently."""
    return RecordingVerbs()


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A socket path in a directory that does not exist yet."""
    return str(tmp_path / "run" / "cni.sock")


@pytest.fixture
async def server(path: str, verbs: RecordingVerbs) -> AsyncIterator[CniServer]:
    """A server that is listening."""
    made = CniServer(path, verbs, read_deadline_s=DEADLINE_S)
    await made.start()
    yield made
    await made.close()


def frame(environment: dict[str, str] | None = None, stdin: bytes = CONF) -> bytes:
    """A request as the plugin writes it."""
    entries = "".join(f"{k}={v}\0" for k, v in (environment or ENVIRONMENT).items())
    return MAGIC + entries.encode() + b"\0" + stdin


async def exchange(path: str, data: bytes, *, descriptors: list[int] | None = None) -> bytes:
    """Sends ``data`` and the end of file; everything that came back."""

    def talk() -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE_S)
            client.connect(path)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors or []))
                client.sendmsg([data[:1]], [rights] if descriptors else [])
                client.sendall(data[1:])
                client.shutdown(socket.SHUT_WR)
            reply = b""
            with contextlib.suppress(ConnectionResetError):
                while chunk := client.recv(65536):
                    reply += chunk
            return reply

    return await asyncio.to_thread(talk)


def error_of(reply: bytes) -> dict[str, object]:
    """The CNI error in a reply with exit status 1."""
    assert reply[:1] == b"\1"
    decoded: dict[str, object] = json.loads(reply[1:])
    assert set(decoded) == {"cniVersion", "code", "msg", "details"}
    return decoded


async def until(condition: Callable[[], bool]) -> None:
    """Returns when ``condition`` holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - a condition of the kernel has no event
            await asyncio.sleep(0.005)


def open_descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


async def test_a_request_reaches_the_verbs_and_its_result_comes_back(
    server: CniServer, path: str, verbs: RecordingVerbs
) -> None:
    """Exit status 0, then the result in the asked version."""

    async def answer(_request: Request, _fd: int | None) -> Result:
        return Result(interfaces=(Interface("eth0", sandbox="/run/netns/pod"),))

    verbs.answer = answer
    reply = await exchange(path, frame())

    assert reply[:1] == b"\0"
    assert json.loads(reply[1:])["interfaces"] == [{"name": "eth0", "sandbox": "/run/netns/pod"}]
    request, where = verbs.asked[0]
    assert request.netconf.name == "slash32"
    assert where is None


async def test_a_verb_without_output_answers_with_one_byte(server: CniServer, path: str) -> None:
    """DEL, CHECK, STATUS and GC print nothing on success."""
    assert await exchange(path, frame(ENVIRONMENT | {"CNI_COMMAND": "DEL"})) == b"\0"


async def test_the_namespace_arrives_open_and_is_closed_afterwards(
    server: CniServer, path: str, verbs: RecordingVerbs, tmp_path: Path
) -> None:
    """The descriptor leads where the client's did."""
    target = tmp_path / "netns"
    target.touch()
    descriptor = os.open(target, os.O_RDONLY)
    before = open_descriptors()

    await exchange(path, frame(), descriptors=[descriptor])

    assert verbs.asked[0][1] == str(target)
    await until(lambda: open_descriptors() == before)
    os.close(descriptor)


@pytest.mark.parametrize("count", [2, 8, 9, 200])
async def test_more_than_one_descriptor_is_refused_and_all_are_closed(
    server: CniServer, path: str, verbs: RecordingVerbs, count: int
) -> None:
    """Whether they fit into the ancillary buffer or not."""
    descriptor = os.open("/dev/null", os.O_RDONLY)
    before = open_descriptors()

    reply = await exchange(path, frame(), descriptors=[descriptor] * count)

    assert error_of(reply)["code"] == Code.DECODE_FAILURE
    assert verbs.asked == []
    await until(lambda: open_descriptors() == before)
    os.close(descriptor)


async def test_a_request_may_arrive_byte_by_byte(server: CniServer, path: str) -> None:
    """A stream has no messages."""
    reader, writer = await asyncio.open_unix_connection(path)
    for byte in frame(ENVIRONMENT | {"CNI_COMMAND": "DEL"}):
        writer.write(bytes([byte]))
        await writer.drain()
    writer.write_eof()

    assert await reader.read() == b"\0"
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it begins with"),
        (b"GET / HTTP/1.1\r\n\r\n", "it begins with"),
        (b"slash32-cni 2\0\0{}", "it begins with"),
        (MAGIC, "no end"),
        (MAGIC + b"CNI_COMMAND=ADD", "no end"),
        (MAGIC + b"CNI_COMMAND=ADD\0", "no end"),
        (MAGIC + b"CNI_COMMAND\0\0{}", "not CNI_*=VALUE"),
        (MAGIC + b"PATH=/bin\0\0{}", "not CNI_*=VALUE"),
        (MAGIC + b"CNI_IFNAME=\xff\0\0{}", "not UTF-8"),
        (MAGIC + b"\0" + b"x" * REQUEST_MAX_BYTES, "larger than 1048576"),
    ],
)
async def test_a_malformed_frame_is_told_as_a_cni_error(
    server: CniServer, path: str, verbs: RecordingVerbs, data: bytes, said: str
) -> None:
    """Code 6 with what is wrong; the verbs never hear of it."""
    error = error_of(await exchange(path, data))

    assert error["code"] == Code.DECODE_FAILURE
    assert said in str(error["msg"])
    assert error["cniVersion"] == "1.1.0"
    assert verbs.asked == []


async def test_a_refusal_is_written_in_the_asked_version(server: CniServer, path: str) -> None:
    """The runtime may not understand a newer one."""
    stdin = b'{"cniVersion": "0.3.1", "name": "a/b"}'

    error = error_of(await exchange(path, frame(stdin=stdin)))

    assert error["cniVersion"] == "0.3.1"
    assert error["code"] == Code.INVALID_CONFIG


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CniError(Code.CHECK_FOUND_DIFFERENCES, "x"), Code.CHECK_FOUND_DIFFERENCES),
        (FrameError("x"), Code.DECODE_FAILURE),
        (TimeoutError(), Code.TRY_AGAIN_LATER),
        (NoAddress("x"), Code.NO_ADDRESS),
        (NoAddress("x", retry_after_s=1.5), Code.TRY_AGAIN_LATER),
        (BlockStoreError("x"), Code.TRY_AGAIN_LATER),
        (BlockConflict("x"), Code.TRY_AGAIN_LATER),
        (HostRouteError("x"), Code.HOST_ROUTE_FAILED),
        (NamespaceGone("x"), Code.UNKNOWN_CONTAINER),
        (LinkExists("x"), Code.INTERFACE_EXISTS),
        (PodInterfaceExists("x"), Code.INTERFACE_EXISTS),
        (OwnNamespace("x"), Code.INVALID_ENVIRONMENT),
        (WiringError("x"), Code.WIRING_FAILED),
        (AliasError("x"), Code.INVALID_ENVIRONMENT),
        (ZeroDivisionError("x"), Code.INTERNAL),
        (OSError(5, "x"), Code.INTERNAL),
    ],
)
async def test_every_failure_has_its_code(
    server: CniServer, path: str, verbs: RecordingVerbs, error: Exception, code: Code
) -> None:
    """And what undoing could not undo travels as details."""
    error.add_note("undoing it, remove failed: busy")

    async def fail(_request: Request, _fd: int | None) -> Result:
        raise error

    verbs.answer = fail
    told = error_of(await exchange(path, frame()))

    assert told["code"] == code
    assert told["msg"]
    assert told["details"] == "undoing it, remove failed: busy"
    assert as_cni_error(error).code is code


async def test_a_silent_client_delays_nobody_and_is_told_in_time(
    path: str, verbs: RecordingVerbs
) -> None:
    """It waits for its own deadline; others are served at once."""
    server = CniServer(path, verbs, read_deadline_s=0.2)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(MAGIC)

    for _ in range(5):
        assert await exchange(path, frame()) == b"\0"

    assert error_of(await reader.read())["code"] == Code.TRY_AGAIN_LATER
    writer.close()
    await writer.wait_closed()
    await server.close()


async def test_a_verb_under_way_delays_nobody(
    server: CniServer, path: str, verbs: RecordingVerbs
) -> None:
    """One ADD waits for the datastore; another client is answered meanwhile."""
    gate = asyncio.Event()

    async def answer(request: Request, _fd: int | None) -> None:
        if request.attachment is not None and request.attachment.container_id == "slow":
            await gate.wait()

    verbs.answer = answer
    slow = asyncio.create_task(exchange(path, frame(ENVIRONMENT | {"CNI_CONTAINERID": "slow"})))
    await until(lambda: len(verbs.asked) == 1)

    assert await exchange(path, frame()) == b"\0"
    assert not slow.done()
    gate.set()
    assert await slow == b"\0"


async def test_hundreds_of_silent_clients_do_not_keep_a_good_one_out(
    path: str, verbs: RecordingVerbs
) -> None:
    """Places are bounded; who has been silent longest gives way."""
    server = CniServer(path, verbs, max_connections=16)
    await server.start()
    silent = []
    for number in range(300):
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        silent.append(client)
        if number % 50 == 0:
            assert await exchange(path, frame()) == b"\0"

    assert await exchange(path, frame()) == b"\0"
    await until(lambda: len(server._connections) <= 16)
    for client in silent:
        client.close()
    await server.close()


async def test_when_every_place_is_at_work_a_client_is_told_to_come_back(
    path: str, verbs: RecordingVerbs
) -> None:
    """Code 11; work under way is never thrown out for it."""
    server = CniServer(path, verbs, max_connections=2)
    await server.start()
    gate = asyncio.Event()

    async def answer(_request: Request, _fd: int | None) -> None:
        await gate.wait()

    verbs.answer = answer
    busy = [asyncio.create_task(exchange(path, frame())) for _ in range(2)]
    await until(lambda: len(verbs.asked) == 2)

    told = error_of(await exchange(path, frame()))

    assert told["code"] == Code.TRY_AGAIN_LATER
    assert "busy" in str(told["msg"])
    gate.set()
    assert await asyncio.gather(*busy) == [b"\0", b"\0"]
    await server.close()


async def test_a_client_that_leaves_before_its_answer_harms_nobody(
    server: CniServer, path: str, verbs: RecordingVerbs
) -> None:
    """The verb was done; the next client is served."""
    gate = asyncio.Event()

    async def answer(_request: Request, _fd: int | None) -> None:
        await gate.wait()

    verbs.answer = answer
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    client.sendall(frame())
    client.shutdown(socket.SHUT_WR)
    await until(lambda: len(verbs.asked) == 1)
    client.close()
    gate.set()

    assert await exchange(path, frame()) == b"\0"


async def test_the_socket_is_roots_alone(server: CniServer, path: str) -> None:
    """Mode 0600 in a directory of mode 0700."""
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700


async def test_a_stale_socket_is_replaced(path: str, verbs: RecordingVerbs) -> None:
    """An agent that was killed leaves one behind."""
    os.mkdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    server = CniServer(path, verbs)
    await server.start()

    assert await exchange(path, frame()) == b"\0"
    await server.close()


async def test_a_live_agent_keeps_its_socket(
    server: CniServer, path: str, verbs: RecordingVerbs
) -> None:
    """A second one refuses to start and harms nothing."""
    second = CniServer(path, verbs)

    with pytest.raises(SocketInUse, match=r"answers on .*cni\.sock"):
        await second.start()

    await second.close()
    assert await exchange(path, frame()) == b"\0"


async def test_what_is_no_socket_is_not_replaced(path: str, verbs: RecordingVerbs) -> None:
    """Somebody's file stays."""
    os.mkdir(os.path.dirname(path))
    precious = Path(path)
    precious.write_text("precious")

    with pytest.raises(SocketInUse, match="not a socket"):
        await CniServer(path, verbs).start()

    assert precious.read_text() == "precious"


async def test_closing_ends_silent_clients_and_closes_the_verbs(
    path: str, verbs: RecordingVerbs
) -> None:
    """No socket file, no descriptor and no task is left."""
    before = open_descriptors()
    server = CniServer(path, verbs)
    await server.start()
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    await until(lambda: len(server._connections) == 1)

    await server.close()

    assert client.recv(1) == b""
    client.close()
    assert verbs.is_closed
    assert not os.access(path, os.F_OK)
    assert open_descriptors() == before


async def test_closing_cancels_a_verb_that_does_not_end(
    path: str, verbs: RecordingVerbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a moment of grace; the verb undoes itself."""
    monkeypatch.setattr("cni.server.CLOSE_GRACE_S", 0.05)
    server = CniServer(path, verbs)
    await server.start()
    was_cancelled = asyncio.Event()

    async def answer(_request: Request, _fd: int | None) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()

    verbs.answer = answer
    hanging = asyncio.create_task(exchange(path, frame()))
    await until(lambda: len(verbs.asked) == 1)

    await server.close()

    assert was_cancelled.is_set()
    assert await hanging == b""


async def test_neither_stdin_nor_environment_is_logged(
    server: CniServer, path: str, verbs: RecordingVerbs, caplog: pytest.LogCaptureFixture
) -> None:
    """Not on success, not on refusal, not on a crash of ours."""
    caplog.set_level("DEBUG")
    secret = "hunter2"
    conf = json.dumps({"cniVersion": "1.1.0", "name": "n", "token": secret}).encode()

    async def crash(_request: Request, _fd: int | None) -> None:
        raise ZeroDivisionError

    await exchange(path, frame(stdin=conf))
    await exchange(path, frame(stdin=conf[:-1]))
    await exchange(path, frame(ENVIRONMENT | {"CNI_ARGS": f"TOKEN={secret}"}))
    await exchange(path, frame(ENVIRONMENT | {"CNI_COMMAND": secret}))
    verbs.answer = crash
    await exchange(path, frame(stdin=conf))

    assert "ZeroDivisionError" in caplog.text
    assert secret not in caplog.text


def test_split_request_keeps_every_byte_of_stdin() -> None:
    """NULs and equals signs included."""
    environment, stdin = split_request(MAGIC + b"CNI_ARGS=A=1;B=2\0\0" + b"\0{=\xff\0")

    assert environment == {"CNI_ARGS": "A=1;B=2"}
    assert stdin == b"\0{=\xff\0"
