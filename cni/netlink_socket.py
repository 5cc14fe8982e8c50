"""A rtnetlink socket: sends many messages at once, learns of every failure, dumps tables.

A socket is bound to the namespace it was opened in for as long as it lives, whatever thread uses
it. The kernel works a request off inside the sender's send(), so the answers are queued when that
returns.

A batch is not atomic: the kernel goes on after a message it refused. It answers a refused message
always and an accepted one only on request, so we ask for one ACK, at the end of each send: silence
means accepted, and ten thousand routes cost one answer (360k against 60k routes a second).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
import threading
from collections.abc import Callable, Collection, Sequence
from types import TracebackType

from cni.netlink import (
    HEADER,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTM_GETROUTE,
    SIOCGIFINDEX,
    SIOCGIFNAME,
    SOL_NETLINK,
    Event,
    NetlinkError,
    Request,
    batches,
    error_head,
    messages,
    refusal_of,
    text,
)
from cni.netns import inside

_ACK = struct.Struct("=4xH2xI4xi16x")
"""Type, sequence and code of an acknowledgement that carries nothing else."""
_U16 = struct.Struct("=H")
_I32 = struct.Struct("=i")

_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 10, 11, 12
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33

BATCH_BYTES = 96 * 1024
"""What one send carries at most; the kernel refuses more than the send buffer (208 KiB)."""

ANSWER_BYTES = 2048
"""What one queued answer costs of the receive buffer at most (its socket buffer included)."""

ANSWER_DEADLINE_S = 10
"""The answers are there when send() returns; waiting longer means they never come."""

DUMP_ATTEMPTS = 8
"""A dump during which the table changed is inconsistent, and taken again this many times."""

FEW_MESSAGES = 64
"""What one send carries at most on a socket whose buffer was left as it is (208 KiB by default)."""

ALWAYS_FIT = 8
"""So many fit into one send and one buffer whatever they are: the most an ADD sends at once."""

_RAW = int(socket.SOCK_RAW | socket.SOCK_CLOEXEC)
_ANSWER_DEADLINE = struct.pack("ll", ANSWER_DEADLINE_S, 0)
_RECEIVE_BYTES = 128 * 1024
_REQUEST_AND_ACK = NLM_F_REQUEST | NLM_F_ACK
_SEQUENCE_MAX = 0x7FFF_FFFF
_IFREQ = struct.Struct("=16si20x")


class NetlinkSocket:
    """One rtnetlink socket. Thread-safe: one exchange at a time holds its lock.

    Args:
        netns_fd: the namespace it is opened in; None is the calling thread's.
        groups: multicast groups (RTNLGRP_*). A socket with groups is for ``events`` only.
        receive_buffer_bytes: forced above the system's limit when we may, else as far as it goes.
            None leaves it as it is, for a socket that is made for a few messages.
        protocol: NETLINK_ROUTE, or another that speaks in the same messages (NETLINK_NETFILTER).
        event_filter: a classic BPF program (``struct sock_filter``) that says which messages of
            the groups are queued at all.
    """

    def __init__(
        self,
        *,
        netns_fd: int | None = None,
        groups: Sequence[int] = (),
        receive_buffer_bytes: int | None = 1 << 20,
        protocol: int = socket.NETLINK_ROUTE,
        event_filter: bytes = b"",
    ) -> None:
        with inside(netns_fd):
            self._socket = socket.socket(socket.AF_NETLINK, _RAW, protocol)
        try:
            self._set_options(receive_buffer_bytes)
            if event_filter:
                self._attach_filter(event_filter)
            if groups:
                self._socket.bind((0, sum(1 << (group - 1) for group in groups)))
        except BaseException:
            self._socket.close()
            raise
        if groups:
            self._socket.setblocking(False)
        self._max_count = FEW_MESSAGES
        if receive_buffer_bytes is not None:
            buffer_bytes = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            self._max_count = max(1, buffer_bytes // ANSWER_BYTES)
        self._lock = threading.Lock()
        self._sequence = 0
        self._port_id = 0

    @property
    def port_id(self) -> int:
        """The socket's number in its namespace; the kernel gives it one at the latest now."""
        if not self._port_id:
            if not self._socket.getsockname()[0]:
                self._socket.bind((0, 0))
            self._port_id = self._socket.getsockname()[0]
        return self._port_id

    def _set_options(self, receive_buffer_bytes: int | None) -> None:
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ANSWER_DEADLINE)
        if receive_buffer_bytes is None:
            return
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer_bytes)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)

    def _attach_filter(self, program: bytes) -> None:
        steps = ctypes.create_string_buffer(program, len(program))
        # struct sock_fprog: the number of steps, and where they are.
        prog = struct.pack("@HP", len(program) // 8, ctypes.addressof(steps))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, prog)

    def fileno(self) -> int:
        """The descriptor, for a loop's reader and for the interface ioctls."""
        return self._socket.fileno()

    def ifindex(self, ifname: str) -> int | None:
        """The index of an interface in the socket's namespace; None when there is none.

        By ioctl, a microsecond: finding one name in a link dump costs 12 ms at 1000 pods.
        """
        name = ifname.encode()
        if len(name) > 15 or b":" in name:
            # The kernel would cut the name there and answer for another interface.
            return None
        return self._interface(SIOCGIFINDEX, _IFREQ.pack(name, 0))[1]

    def ifname(self, ifindex: int) -> str | None:
        """The name of an interface in the socket's namespace; None when there is none."""
        name = self._interface(SIOCGIFNAME, _IFREQ.pack(b"", ifindex))[0]
        return None if name is None else text(name)

    def _interface(self, question: int, request: bytes) -> tuple[bytes | None, int | None]:
        try:
            name, ifindex = _IFREQ.unpack(fcntl.ioctl(self._socket, question, request))
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENXIO):
                return None, None
            raise
        return name, ifindex

    def close(self) -> None:
        """Waits for the exchange under way, then closes. Closing twice is harmless."""
        with self._lock:
            self._socket.close()

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def execute(self, requests: Sequence[Request]) -> list[NetlinkError | None]:
        """Sends all, in order, and returns what came of each: None, or why it was refused.

        Raises:
            OSError: the socket itself failed (closed, no memory); what was sent is unknown.
        """
        outcomes: list[NetlinkError | None] = [None] * len(requests)
        with self._lock:
            if 0 < len(requests) <= ALWAYS_FIT <= self._max_count:
                # Cutting these into runs would cost as much as packing them.
                self._exchange(requests, 0, outcomes)
                return outcomes
            sizes = [16 + len(request.body) for request in requests]
            for start, stop in batches(sizes, max_bytes=BATCH_BYTES, max_count=self._max_count):
                self._exchange(requests[start:stop], start, outcomes)
        return outcomes

    def execute_packed(self, messages: bytearray, size: int) -> dict[int, NetlinkError]:
        """Sends whole messages of ``size`` bytes each, one after the other in ``messages``, whose
        sequence numbers are written here; which were refused, by their place.

        Raises:
            OSError: as ``execute``.
        """
        refused: dict[int, NetlinkError] = {}
        count = len(messages) // size
        at_once = max(1, min(self._max_count, BATCH_BYTES // size))
        with self._lock:
            for start in range(0, count, at_once):
                batch = messages[start * size : (start + at_once) * size]
                number = len(batch) // size
                first = self._next_sequences(number)
                stamps = struct.pack(f"={number}I", *range(first, first + number))
                for octet in range(4):
                    batch[8 + octet :: size] = stamps[octet::4]
                last = (number - 1) * size + 6
                (flags,) = _U16.unpack_from(batch, last)
                _U16.pack_into(batch, last, flags | NLM_F_ACK)
                for index, refusal in self._send_and_hear(batch, first, number).items():
                    refused[start + index] = refusal
        return refused

    def must(self, *requests: Request) -> None:
        """Sends all; raises the first refusal.

        Raises:
            NetlinkError: the kernel refused one. Those after it were done all the same.
        """
        for outcome in self.execute(requests):
            if outcome is not None:
                raise outcome

    def post(self, request: Request, is_settled: Callable[[], bool]) -> NetlinkError | None:
        """Sends one that the kernel works on for long; None, or why it was refused.

        Args:
            is_settled: asked when the kernel has done with it. Who says yes has heard by another
                way that it was done; then nothing is read, which spares a thread two turns at the
                interpreter's lock.

        Raises:
            OSError: the socket itself failed.
        """
        kind, flags, body = request
        with self._lock:
            sequence = self._next_sequence()
            flags |= NLM_F_REQUEST
            self._socket.send(HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body)
            if is_settled():
                return None
            # Not asked to, the kernel answers a refusal only, and has by now.
            while True:
                try:
                    data = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return None
                for answer, flags, answered, _port, payload in messages(data):
                    if answer == NLMSG_ERROR and answered == sequence:
                        return refusal_of(flags, payload)

    def get(self, kind: int, body: bytes, *, absent: Collection[int] = ()) -> bytes:
        """The body of the one message that answers a GET.

        Args:
            absent: refusals (errno) that are answered with b"": an exception costs as much as
                the question.

        Raises:
            NetlinkError: no such object, or the request was refused.
        """
        with self._lock:
            sequence = self._next_sequence()
            self._socket.send(HEADER.pack(16 + len(body), kind, NLM_F_REQUEST, sequence, 0) + body)
            while True:
                for answer, flags, answered, _port, payload in messages(self._receive()):
                    if answered != sequence:
                        continue
                    if answer == NLMSG_ERROR:
                        if absent and -_I32.unpack_from(payload)[0] in absent:
                            return b""
                        raise refusal_of(flags, payload) or NetlinkError(errno.ENOMSG)
                    return payload

    def dump(
        self, kind: int, body: bytes, *, keep: Callable[[bytes], bool] | None = None
    ) -> list[bytes]:
        """The bodies of every message of a dump, of one consistent moment.

        Args:
            keep: which bodies to return, of a table too big to hold; None: all.

        Raises:
            NetlinkError: refused; EINTR when the table kept changing for ``DUMP_ATTEMPTS`` dumps.
        """
        with self._lock:
            for _attempt in range(DUMP_ATTEMPTS):
                bodies = self._dump_once(kind, body, keep)
                if bodies is not None:
                    return bodies
        raise NetlinkError(errno.EINTR, f"the table changed during each of {DUMP_ATTEMPTS} dumps")

    def dump_routes(self, body: bytes, keep: Callable[[bytes], bool] | None = None) -> list[bytes]:
        """The bodies of a RTM_GETROUTE dump; none when the table does not exist yet.

        A new namespace has no IPv4 main table before its first route.

        Raises:
            NetlinkError: as ``dump``.
        """
        try:
            return self.dump(RTM_GETROUTE, body, keep=keep)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return []
            raise

    def events(self, *, max_datagrams: int) -> tuple[list[Event], bool]:
        """What the groups brought, without waiting, and whether the kernel dropped some of it."""
        found: list[Event] = []
        has_overflowed = False
        for _ in range(max_datagrams):
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                has_overflowed = True
                continue
            found += [Event(kind, port, body) for kind, _f, _s, port, body in messages(data)]
        return found, has_overflowed

    # -- inside one exchange, with the lock held ---------------------------------------------

    def _exchange(
        self, requests: Sequence[Request], start: int, outcomes: list[NetlinkError | None]
    ) -> None:
        first = self._next_sequences(len(requests))
        last = first + len(requests) - 1
        parts: list[bytes] = []
        number = first
        for kind, flags, body in requests:
            flags |= NLM_F_REQUEST if number < last else _REQUEST_AND_ACK
            parts += (HEADER.pack(16 + len(body), kind, flags, number, 0), body)
            number += 1
        for index, refusal in self._send_and_hear(b"".join(parts), first, len(requests)).items():
            outcomes[start + index] = refusal

    def _send_and_hear(
        self, data: bytes | bytearray, first: int, count: int
    ) -> dict[int, NetlinkError]:
        """Sends ``count`` messages whose sequence numbers begin with ``first`` and whose last asks
        for an ACK; which of them were refused."""
        last = count - 1
        refused: dict[int, NetlinkError] = {}
        self._socket.send(data)
        answered: set[int] = set()
        lost: NetlinkError | None = None
        while last not in answered:
            try:
                received = self._receive(wait=lost is None)
            except NetlinkError as error:
                if lost is not None and error.errno != errno.ENOBUFS:
                    break
                lost = error
                if error.errno != errno.ENOBUFS:
                    break
                continue
            if len(received) == _ACK.size and not answered and lost is None:
                kind, number, code = _ACK.unpack(received)
                if (kind, number, code) == (NLMSG_ERROR, first + last, 0):
                    return refused  # One answer, to the last: everything was accepted.
            for kind, flags, sequence, _port, payload in messages(received):
                index = sequence - first
                if kind == NLMSG_ERROR and 0 <= index <= last:
                    answered.add(index)
                    refusal = refusal_of(flags, payload)
                    if refusal is not None:
                        refused[index] = refusal
        if lost is not None:
            refused.update((index, lost) for index in range(count) if index not in answered)
        return refused

    def _dump_once(
        self, kind: int, body: bytes, keep: Callable[[bytes], bool] | None
    ) -> list[bytes] | None:
        sequence = self._next_sequence()
        flags = NLM_F_REQUEST | NLM_F_DUMP
        self._socket.send(HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body)
        bodies: list[bytes] = []
        is_interrupted = False
        while True:
            for answer, flags, answered, _port, payload in messages(self._receive()):
                if answered != sequence:
                    continue
                is_interrupted = is_interrupted or bool(flags & NLM_F_DUMP_INTR)
                if answer in (NLMSG_DONE, NLMSG_ERROR):
                    refusal = refusal_of(flags, payload, capped_bytes=error_head(answer))
                    if refusal is not None and refusal.errno == errno.EINTR:
                        return None
                    if refusal is not None:
                        raise refusal
                    return None if is_interrupted else bodies
                if keep is None or keep(payload):
                    bodies.append(payload)

    def _receive(self, *, wait: bool = True) -> bytes:
        """One datagram.

        Raises:
            NetlinkError: ENOBUFS the kernel dropped answers, ETIMEDOUT there is none.
        """
        try:
            return self._socket.recv(_RECEIVE_BYTES, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise NetlinkError(errno.ETIMEDOUT, "the kernel did not answer") from None
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise NetlinkError(errno.ENOBUFS, "the kernel's answer was lost") from None
            raise

    def _next_sequence(self) -> int:
        return self._next_sequences(1)

    def _next_sequences(self, count: int) -> int:
        """The first of ``count`` numbers in a row that no answer under way has."""
        if self._sequence + count > _SEQUENCE_MAX:
            self._sequence = 0
        first = self._sequence + 1
        self._sequence += count
        return first
