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
from functools import partial
from pathlib import Path
from typing import Protocol

from cni import loopback
from cni.attach import HostRouteError
from cni.eager import bounded, start
from cni.errors import CniError, Code
from cni.frame import REQUEST_MAX_BYTES, FrameError, split_request
from cni.ipam.allocator import NoAddress
from cni.ipam.block import BlockStoreError
from cni.ipam.requested import AddressRefused
from cni.podlink import AliasError
from cni.recorded import directory_of, replay, supersede
from cni.result import NEWEST_VERSION
from cni.spec import LOOPBACK_TYPE, Command, Request, asked_version, parse_request, render_error
from cni.wiring_errors import (
    LinkExists,
    NamespaceGone,
    OwnNamespace,
    PodInterfaceExists,
    WiringError,
)

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
_ROOM_BYTES = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
_CHUNK_BYTES = 16384
# As plain numbers: an enum's arithmetic costs more than the system call.
_RECEIVE_FLAGS = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_TRUNCATED = int(socket.MSG_CTRUNC)


class SocketInUse(Exception):
    """Another live agent answers on the CNI socket, or the path is something else's."""


class Answer(Protocol):
    """What a verb has to say."""

    def render(self, version: str) -> bytes:
        """As JSON in the form of a version of the specification."""


class Verbs(Protocol):
    """What does the work (cni/attach.py)."""

    async def handle(self, request: Request, netns_fd: int | None) -> Answer | None:
        """Does what ``request`` asks; None where the specification wants no output."""

    async def close(self) -> None:
        """Ends what runs in the background."""


@dataclass(slots=True, eq=False)
class _Connection:
    """One client: its socket, what it has sent so far, and who waits for what.

    ``deadline`` runs while its request is incomplete. ``task`` serves it, if serving it has to
    wait for anything (cni/eager.py).
    """

    sock: socket.socket
    data: bytearray = field(default_factory=bytearray)
    descriptors: list[int] = field(default_factory=list)
    is_reading: bool = True
    deadline: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None

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
        self._recorded = directory_of(socket_path)
        self._verbs = verbs
        self._max_connections = max_connections
        self._read_deadline_s = read_deadline_s
        self._listener: socket.socket | None = None
        self._accept_pause: asyncio.TimerHandle | None = None
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
        self._loop = asyncio.get_running_loop()
        self._accept_again()
        self._replaying = asyncio.create_task(self._replay_for_ever(), name="cni-replay")

    async def close(self) -> None:
        """Stops listening, lets verbs under way end for a moment, then cancels them."""
        if self._listener is not None:
            if self._replaying is not None:
                self._replaying.cancel()
                await asyncio.gather(self._replaying, return_exceptions=True)
                self._pause_accepting()
            self._listener.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._listener = None
        for connection in list(self._connections):
            if connection.is_reading:
                self._drop(connection)
        tasks = [each.task for each in self._connections if each.task is not None]
        if tasks:
            _, unfinished = await asyncio.wait(tasks, timeout=CLOSE_GRACE_S)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._verbs.close()

    # -- connections -----------------------------------------------------------------------

    def _accept_again(self) -> None:
        self._accept_pause = None
        if self._listener is not None:
            self._loop.add_reader(self._listener, self._accept)

    def _pause_accepting(self) -> None:
        if self._accept_pause is not None:
            self._accept_pause.cancel()
        if self._listener is not None:
            self._loop.remove_reader(self._listener)

    def _accept(self) -> None:
        """One client at a turn of the loop: those before it must have theirs."""
        if self._listener is None:
            return
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            # No descriptor or memory left. The listener stays readable, so without a pause
            # this would spin; the oldest silent client's place may be what is missing.
            log.warning("cni_accept_failed error=%s", errno.errorcode.get(error.errno or 0))
            self._make_room()
            self._pause_accepting()
            self._accept_pause = self._loop.call_later(ACCEPT_PAUSE_S, self._accept_again)
            return
        if len(self._connections) >= self._max_connections:
            self._make_room()
        connection = _Connection(client)
        self._connections[connection] = None
        # A launcher sends at once: mostly all of it is here.
        self._read(connection)

    async def _replay_for_ever(self) -> None:
        """A launcher that was refused an instant before we listened records its DEL after it."""
        while True:
            await asyncio.sleep(REPLAY_INTERVAL_S)
            await self._replay()

    async def _replay(self) -> None:
        try:
            await replay(self._recorded, self._verbs)
        except OSError as error:
            # A full disk, say. Without the directory launchers record nothing and say code 11.
            log.warning("recorded_del_unreachable error=%s", error)

    def _read(self, connection: _Connection) -> None:
        """Takes what is there of a request; serves it when that was its end."""
        try:
            is_complete = receive_request(connection.sock, connection.data, connection.descriptors)
        except (FrameError, OSError) as error:
            self._serve_now(connection, error)
            return
        if is_complete:
            self._serve_now(connection)
        elif connection.deadline is None:
            self._loop.add_reader(connection.sock, self._read, connection)
            connection.deadline = self._loop.call_later(
                self._read_deadline_s, self._give_up_reading, connection
            )

    def _give_up_reading(self, connection: _Connection) -> None:
        refusal = CniError(
            Code.TRY_AGAIN_LATER, f"no complete request within {self._read_deadline_s:g} s"
        )
        self._serve_now(connection, refusal)

    def _stop_reading(self, connection: _Connection) -> None:
        if connection.deadline is not None:
            connection.deadline.cancel()
            connection.deadline = None
            self._loop.remove_reader(connection.sock)

    def _serve_now(self, connection: _Connection, refusal: Exception | None = None) -> None:
        self._stop_reading(connection)
        if refusal is None and self._is_busy():
            refusal = CniError(
                Code.TRY_AGAIN_LATER,
                f"the slash32 agent is busy with {self._max_connections} requests; try again later",
            )
        connection.is_reading = False
        connection.task = start(
            self._serve(connection, refusal),
            loop=self._loop,
            name="cni-request",
            on_end=partial(self._close, connection),
        )

    def _is_busy(self) -> bool:
        if len(self._connections) < self._max_connections:
            return False
        return sum(not each.is_reading for each in self._connections) >= self._max_connections

    def _close(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)
        connection.close()

    def _drop(self, connection: _Connection) -> None:
        """Ends a connection whose request is incomplete, without a word."""
        self._stop_reading(connection)
        self._close(connection)

    def _make_room(self) -> None:
        """Drops the client that has been longest without completing its request, if any."""
        oldest = next((each for each in self._connections if each.is_reading), None)
        if oldest is not None:
            log.warning("cni_client_dropped connections=%d", len(self._connections))
            self._drop(oldest)

    async def _serve(self, connection: _Connection, refusal: Exception | None = None) -> None:
        reply = await self._reply(connection, refusal)
        try:
            await self._write(connection.sock, reply)
            # Now, and not when this has ended: the launcher waits for the end of file. A client
            # that is refused may still be sending, and a close would take the answer from it.
            if refusal is None:
                self._close(connection)
            else:
                connection.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            # The client went away or does not read (TimeoutError is an OSError); the verb stands.
            log.warning("cni_answer_not_read error=%s", type(error).__name__)

    async def _write(self, sock: socket.socket, reply: bytes) -> None:
        """An answer fits into the socket's buffer; only a GC's can be larger."""
        try:
            sent = sock.send(reply, _SEND_FLAGS)
        except BlockingIOError:
            sent = 0
        if sent < len(reply):
            sock.setblocking(False)
            rest = self._loop.sock_sendall(sock, reply[sent:])
            await bounded(rest, WRITE_DEADLINE_S)

    async def _reply(self, connection: _Connection, refusal: Exception | None) -> bytes:
        """Exit status and stdout for the plugin, whatever the client sent."""
        version = NEWEST_VERSION
        request: Request | None = None
        try:
            if refusal is not None:
                raise refusal
            if len(connection.descriptors) > 1:
                raise FrameError(f"{len(connection.descriptors)} descriptors came with one request")
            environment, stdin = split_request(bytes(connection.data))
            connection.data.clear()
            version = asked_version(stdin)
            request = parse_request(environment, stdin)
            fd = connection.descriptors[0] if connection.descriptors else None
            if request.command is Command.ADD and request.attachment is not None:
                supersede(self._recorded, request.attachment)
            answer: Answer | None
            if request.netconf.type == LOOPBACK_TYPE:
                answer = loopback.handle(request, fd)
            else:
                answer = await self._verbs.handle(request, fd)
            return b"\0" + (answer.render(version) if answer is not None else b"")
        except Exception as error:
            told = as_cni_error(error)
            # The sentences about bad input quote it; those about our own work do not.
            sentence = told.msg if told.code >= Code.INTERNAL else "-"
            # containerd asks for STATUS every 5 s; why it is not ready is the hub's to tell.
            is_status = told.code in (Code.NOT_AVAILABLE, Code.LIMITED_CONNECTIVITY)
            level = logging.DEBUG if is_status else logging.WARNING
            who = _who(request)
            log.log(level, "cni_request_failed request=%s code=%d msg=%s", who, told.code, sentence)
            return b"\1" + render_error(told, version=version)


def _who(request: Request | None) -> str:
    if request is None:
        return "-"
    return f"{request.command.value} {request.attachment or request.netconf.name}"


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


def receive_request(sock: socket.socket, data: bytearray, descriptors: list[int]) -> bool:
    """Reads what is there, into ``data`` and ``descriptors``; whether that was the end of file.

    Both are the caller's, so that it can close every descriptor however this ends. Never waits.

    Raises:
        FrameError: more than a request may hold, or more descriptors than fit.
        OSError: the connection broke.
    """
    while True:
        try:
            chunk, ancillary, flags, _ = sock.recvmsg(_CHUNK_BYTES, _ROOM_BYTES, _RECEIVE_FLAGS)
        except (BlockingIOError, InterruptedError):
            return False
        if ancillary:
            _collect_descriptors(ancillary, descriptors)
        if flags & _TRUNCATED or len(descriptors) > _MAX_DESCRIPTORS:
            raise FrameError("not all descriptors that came with it could be received")
        if not chunk:
            return True
        data += chunk
        if len(data) > REQUEST_MAX_BYTES:
            raise FrameError(f"it is larger than {REQUEST_MAX_BYTES} bytes")


def _collect_descriptors(ancillary: list[tuple[int, int, bytes]], descriptors: list[int]) -> None:
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
            descriptors.extend(numbers)


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
