"""Connection entries of a released address, in a namespace where somebody tracks connections."""

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from cni import conntrack
from cni.conntrack import ConntrackError, KernelConntrack
from cni.netlink import NetlinkError, Request
from cni.netlink_socket import NetlinkSocket
from cni.nfnetlink import NETLINK_NETFILTER, message_type, nfgenmsg
from tests.fakes.netns import Namespace, fabric, in_netns, run

pytestmark = pytest.mark.netns

CLIENT_V4, CLIENT_V6 = "10.7.0.1", "fd07::1"
OLD_POD, OTHER_POD = "10.7.0.2", "10.7.0.3"
OLD_POD_V6, OTHER_POD_V6 = "fd07::2", "fd07::3"
SERVICE = "10.7.7.7"
PORT = 5353

TRACKING = f"""
table inet tracking {{
  chain output {{
    type filter hook output priority 0; policy accept;
    ct state invalid drop
  }}
}}
table ip translating {{
  chain output {{
    type nat hook output priority -100; policy accept;
    ip daddr {SERVICE} dnat to {OLD_POD}
  }}
}}
"""


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A namespace in which every address below is local; nobody tracks anything yet."""
    with fabric() as made:
        namespace = made.namespace("ct")
        for each in (CLIENT_V4, OLD_POD, OTHER_POD):
            namespace.ip(f"address add {each}/32 dev lo")
        for each in (CLIENT_V6, OLD_POD_V6, OTHER_POD_V6):
            namespace.ip(f"address add {each}/128 dev lo nodad")
        namespace.ip(f"route add {SERVICE}/32 dev lo")
        yield namespace


@pytest.fixture(params=[True, False], ids=["kernel filters", "older kernel"])
def table(request: pytest.FixtureRequest, host: Namespace) -> Iterator[KernelConntrack]:
    """The driver, in both its ways."""
    made = KernelConntrack(netns_fd=host.fd, filters_deletion=request.param)
    yield made
    made.close()


@pytest.fixture
def send(host: Namespace) -> Iterator[Callable[..., None]]:
    """Sends a datagram from one address to another and waits until it is there."""
    with ExitStack() as stack:

        def udp(source: str, destination: str, *, reaches: str | None = None) -> None:
            family = socket.AF_INET6 if ":" in source else socket.AF_INET

            def make(address: str, port: int) -> socket.socket:
                made = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.bind((address, port))
                made.settimeout(5)
                return made

            sender, receiver = in_netns(
                host, lambda: (make(source, 0), make(reaches or destination, PORT))
            )
            sender.sendto(b"hello", (destination, PORT))
            receiver.recv(64)

        yield udp


def track(host: Namespace) -> None:
    """Somebody's rules switch conntrack on, and translate a service to the pod."""
    run("nsenter", f"--net=/run/netns/{host.name}", "--", "nft", "-f", "-", stdin=TRACKING)


def entries(host: Namespace) -> list[str]:
    """The table's lines."""
    return host.run("cat", "/proc/net/nf_conntrack").splitlines()


def naming(host: Namespace, address: str) -> int:
    """How many entries name ``address``, at any end, in any direction."""
    written = f"={ip_address(address).exploded}"
    return sum(f"{written} " in f"{line} " for line in entries(host))


def test_every_entry_of_an_address_goes_and_no_other(
    host: Namespace, table: KernelConntrack, send: Callable[..., None]
) -> None:
    """As opener, as answerer, and behind a translated service; a neighbour's flows stay."""
    track(host)
    send(OLD_POD, CLIENT_V4)
    send(CLIENT_V4, OLD_POD)
    send(CLIENT_V4, SERVICE, reaches=OLD_POD)
    send(CLIENT_V4, OTHER_POD)
    send(CLIENT_V6, OLD_POD_V6)
    send(OLD_POD_V6, CLIENT_V6)
    send(CLIENT_V6, OTHER_POD_V6)

    def left() -> tuple[int, ...]:
        return tuple(naming(host, each) for each in (OLD_POD, OTHER_POD, OLD_POD_V6, OTHER_POD_V6))

    assert left() == (3, 1, 2, 1)
    assert table.flush(ip_address(OLD_POD)) == 3
    assert left() == (0, 1, 2, 1)
    assert table.flush(ip_address(OLD_POD_V6)) == 2
    assert left() == (0, 1, 0, 1)
    assert len(entries(host)) == 2
    for gone in (OLD_POD, OLD_POD_V6):
        assert table.flush(ip_address(gone)) == 0
    assert len(entries(host)) == 2


def test_a_translation_made_for_the_old_pod_does_not_outlive_it(
    host: Namespace, table: KernelConntrack, send: Callable[..., None]
) -> None:
    """One flow, its service now backed by another pod: flushed, it reaches the new backend."""
    track(host)

    def open_all() -> tuple[socket.socket, dict[str, socket.socket]]:
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.bind((CLIENT_V4, 0))
        backends = {}
        for address in (OLD_POD, OTHER_POD):
            backends[address] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            backends[address].bind((address, PORT))
            backends[address].settimeout(5)
        return client, backends

    client, backends = in_netns(host, open_all)
    with ExitStack() as stack:
        for each in (client, *backends.values()):
            stack.enter_context(each)
        client.sendto(b"1", (SERVICE, PORT))
        assert backends[OLD_POD].recv(8) == b"1"
        host.run("nft", "flush", "chain", "ip", "translating", "output")
        rule = f"ip daddr {SERVICE} dnat to {OTHER_POD}"
        host.run("nft", "add", "rule", "ip", "translating", "output", *rule.split())
        client.sendto(b"2", (SERVICE, PORT))
        assert backends[OLD_POD].recv(8) == b"2"

        assert table.flush(ip_address(OLD_POD)) == 1

        client.sendto(b"3", (SERVICE, PORT))
        assert backends[OTHER_POD].recv(8) == b"3"


def test_where_nobody_tracks_it_costs_one_message(
    host: Namespace, table: KernelConntrack, send: Callable[..., None]
) -> None:
    """No walk through a table of 262,144 buckets; prints what it measured."""
    send(CLIENT_V4, OLD_POD)
    costs_us = []
    for _ in range(50):
        started_s = time.perf_counter()
        assert table.flush(ip_address(OLD_POD)) == 0
        costs_us.append((time.perf_counter() - started_s) * 1e6)
    median_us = sorted(costs_us)[25]
    print(f"nothing tracked: {median_us:.0f} us at the median of 50")  # noqa: T201 - measurement
    assert median_us < 1000
    assert entries(host) == []


def test_a_kernel_that_refuses_the_filter_is_served_the_older_way(
    host: Namespace, send: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EINVAL to a filtered deletion is remembered, and nothing is lost."""
    track(host)
    refused = 0

    class OlderKernel(NetlinkSocket):
        def execute(self, requests: Sequence[Request]) -> list[NetlinkError | None]:
            nonlocal refused
            if any(b"\x19\x80" in each.body for each in requests):  # CTA_FILTER, nested
                refused += 1
                return [NetlinkError(errno.EINVAL)] * len(requests)
            return super().execute(requests)

    monkeypatch.setattr(conntrack, "NetlinkSocket", OlderKernel)
    table = KernelConntrack(netns_fd=host.fd)
    for _ in range(2):
        send(CLIENT_V4, OLD_POD)
        assert table.flush(ip_address(OLD_POD)) == 1
        assert naming(host, OLD_POD) == 0
    assert refused == 1
    table.close()


def test_a_kernel_without_nfnetlink_has_nothing_to_forget(
    host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """socket() says EPROTONOSUPPORT; a driver without a socket answers 0."""

    def refuse(**_: object) -> object:
        raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))

    monkeypatch.setattr(conntrack, "NetlinkSocket", refuse)
    table = KernelConntrack(netns_fd=host.fd)
    assert table.flush(ip_address(OLD_POD)) == 0
    table.close()


def test_a_kernel_without_conntrack_has_nothing_to_forget(host: Namespace) -> None:
    """What nfnetlink answers for a subsystem it does not have is told from a failure."""
    with (
        NetlinkSocket(netns_fd=host.fd, protocol=NETLINK_NETFILTER) as netlink,
        pytest.raises(NetlinkError) as caught,
    ):
        netlink.get(message_type(200, 0), nfgenmsg(socket.AF_UNSPEC))
    assert caught.value.errno == errno.EINVAL


def test_a_refusal_is_an_error_that_names_the_address(host: Namespace) -> None:
    """A closed driver, as an example of one."""
    table = KernelConntrack(netns_fd=host.fd)
    table.close()
    table.close()
    with pytest.raises(ConntrackError, match=f"connection entries of {OLD_POD}"):
        table.flush(ip_address(OLD_POD))
