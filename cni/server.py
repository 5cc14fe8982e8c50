"""The agent's end of the CNI socket: frames in, verbs done, CNI answers out.

Invariants:
  * The socket is the door to root's network: mode 0600 in a directory of mode 0700.
  * A client that is slow, silent or broken costs itself its connection and nobody else anything.
    Connections, bytes and seconds are bounded; when all places are taken, the client that has
    been longest without completing its request gives way.
  * Every descriptor that arrives is closed, whatever becomes of its request.
  * Exceptions become CNI errors here, in ``as_cni_error``, and nowhere else.
  * Standard input and environment are never logged: they carry what a runtime likes to hide.

plugin.py describes the protocol.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cni.attach import HostRouteError
from cni.errors import CniError, Code
from cni.frame import REQUEST_MAX_BYTES, FrameError, split_request
from cni.ipam.allocator import NoAddress
from cni.ipam.block import BlockStoreError
from cni.ipam.requested import AddressRefused
from cni.podlink import AliasError
from cni.recorded import directory_of, replay, supersede
from cni.result import NEWEST_VERSION, Result, render_result
from cni.spec import Command, Request, asked_version, parse_request, render_error
from cni.wiring import LinkExists, NamespaceGone, OwnNamespace, PodInterfaceExists, WiringError

log = logging.getLogger(__name__)

READ_DEADLINE_S = 5.0
"""The plugin sends at once what it has read already."""
WRITE_DEADLINE_S = 5.0
MAX_CONNECTIONS = 256
"""A node starts at most about 110 pods at once; each connection holds two descriptors."""
LISTEN_BACKLOG = 1024
CLOSE_GRACE_S = 5.0
"""How long verbs under way may go on when the agent stops; then they are cancelled and undone."""
PROBE_DEADLINE_S = 1.0
ACCEPT_PAUSE_S = 0.05
"""Between two tries of accept when the process has no descriptor left."""
REPLAY_INTERVAL_S = 30.0
_MAX_DESCRIPTORS = 8
_CHUNK_BYTES = 65536


class SocketInUse(Exception):
    """Another live agent answers on the CNI socket, or the path is something else's."""


class Verbs(Protocol):
    """What does the work (cni/attach.py)."""

    async def handle(self, request: Request, netns_fd: int | None) -> Result | None:
        """Does what ``request`` asks; None where the specification wants no output."""

    async def close(self) -> None:
        """Ends what runs in the background."""


@dataclass(slots=True, eq=False)
class _Connection:
    """One client: its socket, the task that serves it, and what it has sent so far."""

    sock: socket.socket
    task: asyncio.Task[None] | None = None
    data: bytearray = field(default_factory=bytearray)
    descriptors: list[int] = field(default_factory=list)
    is_reading: bool = True

    def close(self) -> None:
        self.sock.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()


class CniServer:
    """Serves the CNI socket.

    Args:
        socket_path: where to listen; its directory is made with mode 0700 when it is missing.
        verbs: does the work; closed with the server.
        max_connections, read_deadline_s: the bounds, smaller in tests.
    """

    def __init__(
        self,
        socket_path: str,
        verbs: Verbs,
        *,
        max_connections: int = MAX_CONNECTIONS,
        read_deadline_s: float = READ_DEADLINE_S,
    ) -> None:
        self._path = socket_path
        self._verbs = verbs
        self._max_connections = max_connections
        self._read_deadline_s = read_deadline_s
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._replaying: asyncio.Task[None] | None = None
        self._connections: dict[_Connection, None] = {}
        """In order of arrival: the first that still reads is the one to give way."""

    async def start(self) -> None:
        """Listens.

        Raises:
            SocketInUse: a live agent answers on the path, or something that is no socket is there.
            OSError: the socket cannot be made.
        """
        Path(self._path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_stale_socket(self._path)
        self._listener = open_listener(self._path)
        # Listening first: from here on a launcher waits for us instead of recording its DEL, and
        # no ADD is served before the deletions that came before it.
        await self._replay()
        self._accepting = asyncio.create_task(self._accept(self._listener), name="cni-accept")
        self._replaying = asyncio.create_task(self._replay_for_ever(), name="cni-replay")

    async def close(self) -> None:
        """Stops listening, lets verbs under way end for a moment, then cancels them."""
        if self._accepting is not None and self._listener is not None:
            background = [t for t in (self._accepting, self._replaying) if t is not None]
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            self._listener.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._accepting = self._listener = None
        for connection in list(self._connections):
            if connection.is_reading and connection.task is not None:
                connection.task.cancel()
        tasks = [each.task for each in self._connections if each.task is not None]
        if tasks:
            _, unfinished = await asyncio.wait(tasks, timeout=CLOSE_GRACE_S)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._verbs.close()

    # -- connections -----------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                # No descriptor or memory left. The listener stays readable, so without a pause
                # this would spin; the oldest silent client's place may be what is missing.
                log.warning("cni_accept_failed error=%s", errno.errorcode.get(error.errno or 0))
                self._make_room()
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            client.setblocking(False)
            if len(self._connections) >= self._max_connections:
                self._make_room()
            self._open(client)
            # accept does not wait while clients queue; the tasks it feeds must have their turn.
            await asyncio.sleep(0)

    async def _replay_for_ever(self) -> None:
        """A launcher that was refused an instant before we listened records its DEL after it."""
        while True:
            await asyncio.sleep(REPLAY_INTERVAL_S)
            await self._replay()

    async def _replay(self) -> None:
        try:
            await replay(directory_of(self._path), self._verbs)
        except OSError as error:
            # A full disk, say. Without the directory launchers record nothing and say code 11.
            log.warning("recorded_del_unreachable error=%s", error)

    def _open(self, client: socket.socket) -> None:
        connection = _Connection(client)
        self._connections[connection] = None
        connection.task = asyncio.create_task(self._serve(connection), name="cni-request")
        # Not a finally in _serve: a task cancelled before its first step never enters it.
        connection.task.add_done_callback(lambda _task: self._close(connection))

    def _close(self, connection: _Connection) -> None:
        del self._connections[connection]
        connection.close()

    def _make_room(self) -> None:
        """Drops the client that has been longest without completing its request, if any."""
        oldest = next((each for each in self._connections if each.is_reading), None)
        if oldest is not None and oldest.task is not None:
            log.warning("cni_client_dropped connections=%d", len(self._connections))
            oldest.is_reading = False
            oldest.task.cancel()

    async def _serve(self, connection: _Connection) -> None:
        reply = await self._reply(connection)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(WRITE_DEADLINE_S):
                await loop.sock_sendall(connection.sock, reply)
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            # The client went away or does not read (TimeoutError is an OSError); the verb stands.
            log.warning("cni_answer_not_read error=%s", type(error).__name__)

    async def _reply(self, connection: _Connection) -> bytes:
        """Exit status and stdout for the plugin, whatever the client sent."""
        version, who = NEWEST_VERSION, "-"
        try:
            environment, stdin = await self._read(connection)
            version = asked_version(stdin)
            request = parse_request(environment, stdin)
            who = f"{request.command.value} {request.attachment or request.netconf.name}"
            fd = connection.descriptors[0] if connection.descriptors else None
            if request.command is Command.ADD and request.attachment is not None:
                supersede(directory_of(self._path), request.attachment)
            result = await self._verbs.handle(request, fd)
            return b"\0" + (render_result(result, version=version) if result is not None else b"")
        except Exception as error:
            refusal = as_cni_error(error)
            # The sentences about bad input quote it; those about our own work do not.
            told = refusal.msg if refusal.code >= Code.INTERNAL else "-"
            # containerd asks for STATUS every 5 s; why it is not ready is the hub's to tell.
            is_status = refusal.code in (Code.NOT_AVAILABLE, Code.LIMITED_CONNECTIVITY)
            level = logging.DEBUG if is_status else logging.WARNING
            log.log(level, "cni_request_failed request=%s code=%d msg=%s", who, refusal.code, told)
            return b"\1" + render_error(refusal, version=version)

    async def _read(self, connection: _Connection) -> tuple[dict[str, str], bytes]:
        """The request's environment and standard input.

        Raises:
            CniError: 11, too many verbs are under way or the client is too slow.
            FrameError: not a request of ours.
        """
        if sum(not each.is_reading for each in self._connections) >= self._max_connections:
            raise CniError(
                Code.TRY_AGAIN_LATER,
                f"the slash32 agent is busy with {self._max_connections} requests; try again later",
            )
        try:
            async with asyncio.timeout(self._read_deadline_s):
                await receive_request(connection.sock, connection.data, connection.descriptors)
        except TimeoutError:
            raise CniError(
                Code.TRY_AGAIN_LATER,
                f"no complete request within {self._read_deadline_s:g} s",
            ) from None
        if len(connection.descriptors) > 1:
            raise FrameError(f"{len(connection.descriptors)} descriptors came with one request")
        parts = split_request(bytes(connection.data))
        connection.is_reading = False
        connection.data.clear()
        return parts


def as_cni_error(error: Exception) -> CniError:
    """What a runtime is told about ``error``: the only such translation."""
    details = "; ".join(getattr(error, "__notes__", ()))
    if isinstance(error, CniError):
        joined = "; ".join(filter(None, (error.details, details)))
        return CniError(error.code, error.msg, joined)
    code, msg = code_and_sentence(error)
    if code is Code.INTERNAL:
        log.error("cni_request_failed", exc_info=error)
    return CniError(code, msg, details)


def code_and_sentence(error: Exception) -> tuple[Code, str]:
    """The code and the sentence that stand for ``error``; nothing is logged."""
    match error:
        case CniError():
            return error.code, error.msg
        case FrameError():
            return Code.DECODE_FAILURE, f"malformed request on the CNI socket: {error}"
        case TimeoutError():
            return Code.TRY_AGAIN_LATER, "the agent did not finish in time; try again later"
        case NoAddress() | AddressRefused():
            # A resting address clears up by itself, an exhausted pool by an operator.
            waits = error.retry_after_s is not None
            return Code.TRY_AGAIN_LATER if waits else Code.NO_ADDRESS, str(error)
        case BlockStoreError():
            return Code.TRY_AGAIN_LATER, f"the datastore gave no address block: {error}"
        case HostRouteError():
            return Code.HOST_ROUTE_FAILED, str(error)
        case NamespaceGone():
            return Code.UNKNOWN_CONTAINER, str(error)
        case OwnNamespace():
            return Code.INVALID_ENVIRONMENT, f"CNI_NETNS: {error}"
        case PodInterfaceExists() | LinkExists():
            return Code.INTERFACE_EXISTS, str(error)
        case WiringError():
            return Code.WIRING_FAILED, str(error)
        case AliasError():
            return Code.INVALID_ENVIRONMENT, str(error)
        case _:
            return Code.INTERNAL, f"the slash32 agent failed: {type(error).__name__}: {error}"


# -- the frame ---------------------------------------------------------------------------------


async def receive_request(sock: socket.socket, data: bytearray, descriptors: list[int]) -> None:
    """Reads up to the end of file, into ``data`` and ``descriptors``.

    Both are the caller's, so that it can close every descriptor however this ends.

    Raises:
        FrameError: more than a request may hold, or more descriptors than fit.
        OSError: the connection broke.
    """
    loop = asyncio.get_running_loop()
    room = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
    while True:
        try:
            chunk, ancillary, flags, _ = sock.recvmsg(
                _CHUNK_BYTES, room, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except (BlockingIOError, InterruptedError):
            await _readable(loop, sock)
            continue
        _collect_descriptors(ancillary, descriptors)
        if flags & socket.MSG_CTRUNC or len(descriptors) > _MAX_DESCRIPTORS:
            raise FrameError("not all descriptors that came with it could be received")
        if not chunk:
            return
        data += chunk
        if len(data) > REQUEST_MAX_BYTES:
            raise FrameError(f"it is larger than {REQUEST_MAX_BYTES} bytes")


def _collect_descriptors(ancillary: list[tuple[int, int, bytes]], descriptors: list[int]) -> None:
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
            descriptors.extend(numbers)


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """Returns when ``sock`` has something to read; asyncio has no recvmsg of its own."""
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


# -- the socket file ---------------------------------------------------------------------------


def remove_stale_socket(path: str) -> None:
    """Removes the socket file of an agent that is gone.

    Raises:
        SocketInUse: somebody answers there, or it is not a socket.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketInUse(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_DEADLINE_S)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except (TimeoutError, BlockingIOError):
            # A full backlog is an owner too.
            raise SocketInUse(f"another agent listens on {path} and does not answer") from None
    raise SocketInUse(f"another agent answers on {path}")


def open_listener(path: str) -> socket.socket:
    """A listening socket at ``path``, never open to others, not even for an instant."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        previous = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(previous)
        listener.listen(LISTEN_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
