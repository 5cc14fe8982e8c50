"""Packing, parsing and the rules of an exchange; the kernel is a script, and once the real one."""

from __future__ import annotations

import errno
import struct
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni import netlink as nl
from cni.netlink import (
    HEADER,
    MalformedMessage,
    NetlinkError,
    Request,
    attribute,
    attribute_text,
    attribute_u32,
    attributes,
    batches,
    messages,
    nested,
)
from cni.netlink_socket import ANSWER_BYTES, DUMP_ATTEMPTS, NetlinkSocket
from routing.routes import NextHop, Route, RouteKey
from routing.rtmessage import new_pod_route, new_route, parse_holder, parse_route
from tests.fakes.netns import Fabric

CASES = {"attributes": 0, "bytes": 0, "batches": 0, "routes": 0}
FLOOR = 100


# -- packing and parsing ---------------------------------------------------------------------


def test_attributes_are_padded_to_four_bytes():
    """As linux/netlink.h has it: the length without the padding."""
    assert attribute(1, b"abc") == struct.pack("=HH", 7, 1) + b"abc\0"
    assert attribute_u32(2, 5) == struct.pack("=HHI", 8, 2, 5)
    assert attribute_text(3, "lo") == struct.pack("=HH", 7, 3) + b"lo\0\0"
    assert nested(4, attribute_u32(1, 9)) == struct.pack("=HHHHI", 12, 4, 8, 1, 9)


@settings(max_examples=200)
@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40), max_size=8))
def test_what_was_packed_is_parsed_back(values):
    """Every type and payload, whatever the padding."""
    CASES["attributes"] += 1
    data = b"".join(attribute(kind, payload) for kind, payload in values.items())
    assert attributes(data) == values
    assert attributes(b"head" + data, 4) == values


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_malformed_message(data):
    """A kernel newer than we know must not end the agent."""
    CASES["bytes"] += 1
    for parse in (attributes, lambda each: list(messages(each))):
        try:
            parse(data)
        except MalformedMessage:
            continue


def test_parsing_stops_when_the_wanted_attributes_were_seen():
    """What follows, broken as it may be, is not looked at."""
    data = attribute_u32(1, 7) + attribute_u32(2, 8) + b"\1\0\0\0"
    assert set(attributes(data, wanted={1, 2})) == {1, 2}
    with pytest.raises(MalformedMessage):
        attributes(data)


@settings(max_examples=200)
@given(
    sizes=st.lists(st.integers(1, 60), max_size=40),
    max_bytes=st.integers(1, 100),
    max_count=st.integers(1, 10),
)
def test_batches_cover_every_message_once_and_keep_both_limits(sizes, max_bytes, max_count):
    """Only a message too big for any batch goes beyond, alone."""
    CASES["batches"] += 1
    runs = list(batches(sizes, max_bytes=max_bytes, max_count=max_count))
    assert [i for start, stop in runs for i in range(start, stop)] == list(range(len(sizes)))
    for start, stop in runs:
        assert 0 < stop - start <= max_count
        assert sum(sizes[start:stop]) <= max_bytes or stop - start == 1


ADDRESSES = {
    4: st.integers(0, 2**32 - 1).map(lambda n: ip_address(n.to_bytes(4, "big"))),
    6: st.integers(0, 2**128 - 1).map(lambda n: ip_address(n.to_bytes(16, "big"))),
}
NAMES = {"lo": 1, "up0": 2, "up1": 3, "pod0": 7}


@st.composite
def routes(draw) -> Route:
    version = draw(st.sampled_from([4, 6]))
    length = draw(st.integers(0, 32 if version == 4 else 128))
    network = ip_network((draw(ADDRESSES[version]).packed, length), strict=False)
    gateway_version = 6 if version == 6 else draw(st.sampled_from([4, 4, 6]))
    hop = st.builds(NextHop, st.sampled_from(sorted(NAMES)), st.none() | ADDRESSES[gateway_version])
    hops = draw(st.lists(hop, max_size=4, unique=True))
    from routing.routes import next_hop_order

    return Route(RouteKey(network), tuple(sorted(hops, key=next_hop_order)))


@settings(max_examples=150)
@given(routes())
def test_a_route_message_says_the_route(route):
    """Pack and parse are each other's inverse, IPv4 through IPv6 gateways included."""
    CASES["routes"] += 1
    numbers = {index: name for name, index in NAMES.items()}
    request = new_route(route, NAMES.get, 0)
    assert parse_route(request.body, numbers.get) == route
    holder = parse_holder(request.body)
    assert holder.is_ours
    assert holder.place == (
        route.key.prefix.version,
        route.key.prefix.network_address.packed,
        route.key.prefix.prefixlen,
    )


@pytest.mark.parametrize("prefix", ["10.244.1.5/32", "fd00::5/128"])
def test_a_pods_route_is_packed_as_every_other(prefix):
    """The short way says what the long one says."""
    key = RouteKey(ip_network(prefix))
    flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
    assert new_pod_route(key, 7) == new_route(Route(key, (NextHop("pod0"),)), NAMES.get, flags)
    with pytest.raises(ValueError, match="only metric"):
        new_pod_route(RouteKey(ip_network(prefix), metric=7), 7)


def test_an_ipv4_gateway_for_an_ipv6_prefix_is_refused():
    """The kernel has no such route."""
    route = Route(RouteKey(ip_network("fd00::/64")), (NextHop("up0", ip_address("192.0.2.1")),))
    with pytest.raises(ValueError, match=r"IPv4 gateway 192\.0\.2\.1"):
        new_route(route, NAMES.get, 0)


def test_enough_cases_ran():
    """A property test that ran nothing proves nothing."""
    assert all(count >= FLOOR for count in CASES.values()), CASES


# -- an exchange, against a script -----------------------------------------------------------


class ScriptedKernel:
    """Answers what ``answer(sequence, index)`` gives for each message sent, then times out."""

    def __init__(self, answer) -> None:
        self.answer = answer
        self.sent: list[tuple[int, int, int]] = []
        self.queue: list[bytes | OSError] = []

    def send(self, data: bytes) -> int:
        for kind, flags, sequence, _port, _body in messages(bytes(data)):
            self.queue += self.answer(sequence, len(self.sent))
            self.sent.append((kind, flags, sequence))
        return len(data)

    def recv(self, _size: int, _flags: int = 0) -> bytes:
        if not self.queue:
            raise BlockingIOError
        item = self.queue.pop(0)
        if isinstance(item, OSError):
            raise item
        return item

    def close(self) -> None:
        pass


def scripted(answer) -> tuple[NetlinkSocket, ScriptedKernel]:
    """A socket whose kernel is a script."""
    socket = NetlinkSocket()
    socket._socket.close()
    kernel = ScriptedKernel(answer)
    socket._socket = kernel  # type: ignore[assignment]
    return socket, kernel


def error(sequence: int, code: int, *, explanation: str = "", kind: int = 2) -> bytes:
    """An NLMSG_ERROR (or DONE) as the kernel writes it with capped ACKs."""
    body = struct.pack("=i", -code) + (b"\0" * 16 if kind == 2 else b"")
    flags = nl.NLM_F_CAPPED
    if explanation:
        flags |= nl.NLM_F_ACK_TLVS
        body += attribute_text(1, explanation)
    return HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body


def requests(count: int) -> list[Request]:
    """Some messages."""
    return [Request(nl.RTM_SETLINK, 0, struct.pack("=I", n)) for n in range(count)]


def test_silence_means_accepted_and_only_the_last_is_asked_for_an_ack():
    """One answer for any number of messages."""
    socket, kernel = scripted(lambda seq, index: [error(seq, 0)] if index == 4 else [])
    assert socket.execute(requests(5)) == [None] * 5
    assert [bool(flags & nl.NLM_F_ACK) for _k, flags, _s in kernel.sent] == [False] * 4 + [True]


def test_each_refusal_is_told_of_the_message_it_belongs_to():
    """With the kernel's explanation; messages after it are done all the same."""

    def answer(seq: int, index: int) -> list[bytes]:
        if index == 1:
            return [error(seq, errno.EEXIST, explanation="it is there")]
        return [error(seq, errno.ENODEV if index == 3 else 0)] if index == 3 else []

    socket, _kernel = scripted(answer)
    outcomes = socket.execute(requests(4))
    assert [o and o.errno for o in outcomes] == [None, errno.EEXIST, None, errno.ENODEV]
    assert str(outcomes[1]) == "File exists (it is there)"


def test_lost_answers_make_the_unanswered_unknown_not_accepted():
    """ENOBUFS drops some: what was heard stands, the rest must be read back."""

    def answer(seq: int, index: int) -> list[bytes | OSError]:
        if index == 0:
            return [error(seq, errno.EEXIST), OSError(errno.ENOBUFS, "")]
        return [error(seq, 0)] if index == 2 else []

    socket, _kernel = scripted(answer)
    outcomes = socket.execute(requests(3))
    assert [o and o.errno for o in outcomes] == [errno.EEXIST, errno.ENOBUFS, None]


def test_a_kernel_that_does_not_answer_is_a_failure_of_every_message():
    """Never a hang, never a success."""
    socket, _kernel = scripted(lambda _seq, _index: [])
    assert {o and o.errno for o in socket.execute(requests(3))} == {errno.ETIMEDOUT}
    socket, _kernel = scripted(lambda _s, index: [OSError(errno.ENOBUFS, "")] if index == 2 else [])
    assert {o and o.errno for o in socket.execute(requests(3))} == {errno.ENOBUFS}


def test_answers_to_older_requests_are_passed_over():
    """A reply that came after its deadline must not be taken for another's."""
    socket, _kernel = scripted(lambda seq, _index: [error(seq - 1, 1), error(seq, 0)])
    assert socket.execute(requests(1)) == [None]


def test_sequence_numbers_wrap_between_exchanges():
    """A process that lives for years."""
    socket, _kernel = scripted(lambda seq, index: [error(seq, 17 if index % 3 == 0 else 0)])
    socket._sequence = 0x7FFF_FFFD
    for _ in range(3):
        outcomes = socket.execute(requests(3))
        assert [o and o.errno for o in outcomes] == [17, None, None]


def test_a_posted_request_asks_for_no_answer_and_hears_of_a_refusal():
    """Silence is success: a refusal is queued when the send has returned."""
    socket, kernel = scripted(lambda _seq, _index: [])
    assert socket.post(requests(1)[0], lambda: False) is None
    assert [flags & nl.NLM_F_ACK for _k, flags, _s in kernel.sent] == [0]
    socket, _kernel = scripted(lambda seq, _index: [error(seq - 1, 1), error(seq, errno.EPERM)])
    outcome = socket.post(requests(1)[0], lambda: False)
    assert outcome is not None
    assert outcome.errno == errno.EPERM


def test_who_knows_how_it_ended_reads_no_answer_and_the_next_request_is_not_misled():
    """What is left in the queue is of an older request then."""
    socket, kernel = scripted(lambda seq, index: [error(seq, 0 if index else errno.EPERM)])
    assert socket.post(requests(1)[0], lambda: True) is None
    assert len(kernel.queue) == 1
    assert socket.execute(requests(1)) == [None]


def test_what_is_absent_needs_no_exception():
    """Only what was named counts as absent."""
    socket, _kernel = scripted(lambda seq, _index: [error(seq, errno.ENODEV)])
    assert socket.get(nl.RTM_GETLINK, b"", absent={errno.ENODEV}) == b""
    with pytest.raises(NetlinkError, match="No such device"):
        socket.get(nl.RTM_GETLINK, b"", absent={errno.ENXIO})


def part(sequence: int, body: bytes, *, flags: int = 0) -> bytes:
    """One message of a dump."""
    return HEADER.pack(16 + len(body), nl.RTM_NEWLINK, 2 | flags, sequence, 0) + body


def test_an_interrupted_dump_is_taken_again_and_not_for_ever():
    """NLM_F_DUMP_INTR: the table changed meanwhile, entries may be missing."""

    def answer(interrupted: int):
        def script(seq: int, index: int) -> list[bytes]:
            flags = nl.NLM_F_DUMP_INTR if index < interrupted else 0
            return [part(seq, b"%04d" % index, flags=flags), error(seq, 0, kind=3)]

        return script

    socket, kernel = scripted(answer(3))
    assert socket.dump(nl.RTM_GETLINK, b"") == [b"0003"]
    assert len(kernel.sent) == 4
    socket, kernel = scripted(answer(1000))
    with pytest.raises(NetlinkError, match="changed during each"):
        socket.dump(nl.RTM_GETLINK, b"")
    assert len(kernel.sent) == DUMP_ATTEMPTS


def test_a_dump_that_is_refused_raises_and_a_missing_route_table_is_empty():
    """Both ways the kernel has of saying it: ERROR, and DONE with a code."""
    for kind in (2, 3):
        socket, _kernel = scripted(lambda seq, _i, kind=kind: [error(seq, 2, kind=kind)])
        with pytest.raises(NetlinkError):
            socket.dump(nl.RTM_GETROUTE, b"")
        assert socket.dump_routes(b"") == []


# -- the real kernel -------------------------------------------------------------------------


def test_interfaces_are_found_by_name_and_number():
    """By ioctl, in the socket's namespace."""
    with NetlinkSocket() as socket:
        assert socket.ifindex("lo") == 1
        assert socket.ifname(1) == "lo"
        assert socket.ifindex("nosuch0") is None
        assert socket.ifindex("lo:1") is None
        assert socket.ifindex("x" * 16) is None
        assert socket.ifname(999_999) is None


def test_closing_twice_is_harmless_and_a_closed_socket_says_so():
    """Teardown order is nobody's concern."""
    socket = NetlinkSocket()
    socket.close()
    socket.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        socket.execute(requests(1))


@pytest.mark.netns
def test_every_failure_among_thousands_is_named_even_with_a_small_buffer():
    """Several sends, each small enough that all its answers fit, if all of them fail."""
    with Fabric() as fabric:
        host = fabric.namespace("nl")
        with NetlinkSocket(netns_fd=host.fd, receive_buffer_bytes=64 * ANSWER_BYTES) as socket:
            base = int(ip_address("10.0.0.0"))
            keys = [RouteKey(ip_network((base + 4 * n, 30))) for n in range(3000)]
            flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
            wanted = [new_route(Route(key, ()), NAMES.get, flags) for key in keys]
            assert socket.execute(wanted[::2]) == [None] * 1500
            codes = [o and o.errno for o in socket.execute(wanted)]
            assert codes == [errno.EEXIST, None] * 1500
            assert [o and o.errno for o in socket.execute(wanted)] == [errno.EEXIST] * 3000
