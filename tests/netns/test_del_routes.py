"""After a DEL no route to the pod is in the kernel, whatever was done to its link and route before.

The verbs over the real wiring and the real FIB; the loop makes no pass, so what is gone is gone by
the DEL itself.
"""

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from ipaddress import ip_address

import pytest

from cni.attach import Attacher
from cni.spec import Command
from cni.wiring import KernelWiring
from routing.fib import KernelFib
from routing.reconcile import Reconciler
from tests.fakes.blocks import FakeBlocks
from tests.fakes.cni import FakeAllocator
from tests.fakes.edge import FakeEdge
from tests.fakes.netns import Fabric, Namespace
from tests.fakes.speaker import FakeSpeaker, FakeWorld
from tests.fakes.store import FakeDatastore
from tests.unit.test_attach import ATTACHMENT, request

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

V4, V6 = "10.1.0.1", "fd01::1"
LINK = ATTACHMENT.host_ifname
OURS = "proto 132 metric 1032"


class Bench:
    """A host with one pod on it, wired and routed by an ADD."""

    def __init__(self, host: Namespace, pod: Namespace, attacher: Attacher) -> None:
        self.host, self.pod, self.attacher = host, pod, attacher

    async def delete(self) -> float:
        """A DEL; how many seconds it took."""
        began_s = time.monotonic()
        await self.attacher.handle(request(Command.DEL), None)
        return time.monotonic() - began_s

    def routes(self) -> list[str]:
        """Every route of the main tables but the kernel's own."""
        return [line for line in self.host.routes().splitlines() if "proto kernel" not in line]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """Ready for the DEL."""
    async with AsyncExitStack() as stack:
        fabric = stack.enter_context(Fabric())
        host, pod = fabric.namespace("host"), fabric.namespace("pod")
        wiring = KernelWiring(netns_fd=host.fd)
        stack.callback(wiring.close)
        wiring.prepare_host()
        fib = KernelFib(netns_fd=host.fd)
        stack.push_async_callback(fib.close)
        loop = Reconciler(
            node="n1",
            store=FakeDatastore(),
            fib=fib,
            speaker=FakeSpeaker(FakeWorld(), clock=time.monotonic),
            pod_links=wiring,
            blocks=FakeBlocks(),
            edge=FakeEdge(),
            clock=time.monotonic,
        )
        allocator = FakeAllocator([])
        allocator.make = lambda n: (ip_address(V4) + n, ip_address(V6) + n)
        attacher = Attacher(
            wiring=wiring,
            host_routes=loop,
            allocator=allocator,
            mtu_bytes=lambda: 1500,
            readiness=lambda: None,
        )
        stack.push_async_callback(attacher.close)
        await attacher.handle(request(), pod.fd)
        yield Bench(host, pod, attacher)


def leave(_host: Namespace) -> None:
    """As it is."""


def point_elsewhere(host: Namespace) -> None:
    """An operator leads the pod's addresses to loopback, under our protocol."""
    host.ip(f"route replace {V4}/32 dev lo {OURS}")
    host.ip(f"route replace {V6}/128 dev lo {OURS}")


def point_elsewhere_without_link(host: Namespace) -> None:
    """And removes the link before, so that nothing goes with it."""
    host.ip(f"link del {LINK}")
    host.ip(f"route add {V4}/32 dev lo {OURS}")
    host.ip(f"route add {V6}/128 dev lo {OURS}")


def make_blackhole(host: Namespace) -> None:
    """Or makes them go nowhere."""
    host.ip(f"route replace blackhole {V4}/32 {OURS}")
    host.ip(f"route replace blackhole {V6}/128 {OURS}")


def remove_link(host: Namespace) -> None:
    """By hand; the routes went with it."""
    host.ip(f"link del {LINK}")


def remove_routes(host: Namespace) -> None:
    """By hand; there is nothing to delete, which is no error."""
    host.ip(f"route del {V4}/32 dev {LINK}")
    host.ip(f"-6 route del {V6}/128 dev {LINK}")


@pytest.mark.parametrize(
    "disturb",
    [
        leave,
        point_elsewhere,
        point_elsewhere_without_link,
        make_blackhole,
        remove_link,
        remove_routes,
    ],
)
async def test_no_route_of_the_pod_survives_its_del(
    bench: Bench, disturb: Callable[[Namespace], None]
) -> None:
    """Neither over its link nor anywhere else; and a second DEL finds nothing to complain of."""
    assert [line.split()[0] for line in bench.routes()] == [V4, V6]
    disturb(bench.host)

    await bench.delete()

    assert bench.routes() == []
    assert LINK not in bench.host.ip("link show")
    await bench.delete()


async def test_a_route_of_somebody_else_to_the_pods_address_stays(bench: Bench) -> None:
    """Another protocol, or another metric: not ours to delete."""
    bench.host.ip(f"route add {V4}/32 dev lo proto static metric 1032 table 7")
    bench.host.ip(f"link del {LINK}")
    bench.host.ip(f"route add {V4}/32 dev lo proto static metric 1032")
    bench.host.ip(f"route add {V6}/128 dev lo proto 132 metric 7")

    await bench.delete()

    assert [line.split()[0] for line in bench.routes()] == [V4, V6]
    assert V4 in bench.host.ip("route show table 7")


async def test_del_costs_the_same_among_ten_thousand_routes(bench: Bench) -> None:
    """One message for each address: no dump."""
    bench.host.ip_batch(
        [f"route add 172.16.{n // 256}.{n % 256}/32 dev lo {OURS}" for n in range(10_000)]
    )
    point_elsewhere_without_link(bench.host)

    took_s = await bench.delete()

    assert len(bench.routes()) == 10_000
    assert took_s < 0.05, f"{took_s * 1000:.1f} ms"
