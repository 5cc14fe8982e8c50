"""cni.attach and a pod's annotations: what is asked, of whom, and what is refused."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import pytest

from cni.attach import Attacher
from cni.errors import CniError, Code
from cni.requested import Requested
from cni.wish import NO_WISH, PodWish, WishRefused
from tests.fakes.cni import Node
from tests.unit.test_attach import NETNS, request

V4, OTHER_V4, V6 = ip_address("10.244.9.9"), ip_address("10.244.9.10"), ip_address("fd00::9")


@dataclass
class Annotations:
    """Says ``answer`` of every pod, or raises it; ``asked`` notes the questions."""

    answer: PodWish | WishRefused = NO_WISH
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    async def wish(self, namespace: str, name: str, uid: str) -> PodWish:
        """``answer``."""
        self.asked.append((namespace, name, uid))
        if isinstance(self.answer, WishRefused):
            raise self.answer
        return self.answer


@pytest.fixture
def node() -> Node:
    """A dual-stack node."""
    made = Node()
    made.allocator.make = lambda n: (ip_address("10.244.0.1") + n, ip_address("fd00::1") + n)
    return made


@pytest.fixture
def annotations() -> Annotations:
    """Pods that ask for nothing."""
    return Annotations()


@pytest.fixture
async def attacher(node: Node, annotations: Annotations) -> AsyncIterator[Attacher]:
    """The verbs over that node's fakes."""
    made = Attacher(
        wiring=node.wires,
        host_routes=node.routes,
        allocator=node.allocator,
        mtu_bytes=lambda: 1500,
        readiness=lambda: None,
        examine_netns=lambda _fd: None,
        wishes=annotations,
    )
    yield made
    await made.close()


async def addresses_of(attacher: Attacher, *requested) -> list[str]:
    """The addresses that an ADD is answered with."""
    asked = replace(request(), requested=Requested(None, requested))
    result = await attacher.handle(asked, NETNS)
    assert result is not None
    return [str(each.address.ip) for each in result.result().ips]


async def test_a_pod_that_asks_for_nothing_gets_any_address(
    node: Node, attacher: Attacher, annotations: Annotations
) -> None:
    """It is asked for by its name, and no pools are named to the allocator."""
    assert await addresses_of(attacher) == ["10.244.0.1", "fd00::1"]
    assert annotations.asked == [("shop", "web-0", "")]
    assert node.allocator.pools_asked == [((), ())]


async def test_a_sandbox_without_a_pod_is_not_asked_for(
    attacher: Attacher, annotations: Annotations
) -> None:
    """podman's containers have no annotations that anybody could know."""
    await attacher.handle(replace(request(), pod=None), NETNS)

    assert annotations.asked == []


async def test_pools_reach_the_allocator(
    node: Node, attacher: Attacher, annotations: Annotations
) -> None:
    """By family, in their order."""
    annotations.answer = PodWish(pools_v4=("blue", "green"))

    await addresses_of(attacher)

    assert node.allocator.pools_asked == [(("blue", "green"), ())]


async def test_addresses_of_both_are_joined(attacher: Attacher, annotations: Annotations) -> None:
    """One family each, or the same address twice."""
    annotations.answer = PodWish(addresses=(V4,))

    assert await addresses_of(attacher, V4, V6) == [str(V4), str(V6)]


async def test_a_repeated_add_gets_the_same_answer(
    node: Node, attacher: Attacher, annotations: Annotations
) -> None:
    """The wish is the same, and so is the address."""
    annotations.answer = PodWish(addresses=(V4,))

    first = await addresses_of(attacher)

    assert await addresses_of(attacher) == first
    assert node.journal.count("create") == 1


async def test_two_addresses_of_one_family_are_refused(
    node: Node, attacher: Attacher, annotations: Annotations
) -> None:
    """Either choice would surprise somebody."""
    annotations.answer = PodWish(addresses=(V4,))

    with pytest.raises(CniError) as caught:
        await addresses_of(attacher, OTHER_V4)

    assert caught.value.code == Code.INVALID_CONFIG
    assert str(V4) in caught.value.msg
    assert str(OTHER_V4) in caught.value.msg
    assert node.leftovers == []


async def test_a_refused_annotation_is_told_as_it_is(
    node: Node, attacher: Attacher, annotations: Annotations
) -> None:
    """The sentence reaches the pod's events through the runtime."""
    annotations.answer = WishRefused("annotation slash32.io/pools is {, not JSON")

    with pytest.raises(CniError) as caught:
        await addresses_of(attacher)

    assert (caught.value.code, caught.value.msg) == (
        Code.INVALID_CONFIG,
        "annotation slash32.io/pools is {, not JSON",
    )
    assert node.journal == []
