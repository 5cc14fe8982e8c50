"""cni.attach, asked for a MAC and addresses: what ADD grants, CHECK finds and DEL forgets."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from cni.attach import Attacher, HostRouteError
from cni.errors import CniError, Code
from cni.ipam.requested import AddressRefused
from cni.requested import Requested
from cni.result import Result
from cni.server import as_cni_error
from cni.spec import Command, Request
from cni.wiring_errors import WiringError
from tests.fakes.cni import Node
from tests.unit.test_attach import ATTACHMENT, NETNS, make_attacher, request

MAC, OTHER_MAC = "c2:11:22:33:44:55", "c2:11:22:33:44:56"
V4, V6 = ip_address("10.244.9.9"), ip_address("fd00::9")


@pytest.fixture
def node() -> Node:
    """A dual-stack node."""
    made = Node()
    made.allocator.make = lambda n: (ip_address("10.244.0.1") + n, ip_address("fd00::1") + n)
    return made


@pytest.fixture
async def attacher(node: Node) -> AsyncIterator[Attacher]:
    """The verbs over that node's fakes."""
    made = make_attacher(node)
    yield made
    await made.close()


def asking(
    *addresses, mac: str | None = None, command: Command = Command.ADD, **netconf
) -> Request:
    """A request with these wishes."""
    return replace(request(command, **netconf), requested=Requested(mac, addresses))


async def add(attacher: Attacher, asked: Request) -> Result:
    """An ADD that must succeed."""
    result = await attacher.handle(asked, NETNS)
    assert result is not None
    return result.result()


async def check(attacher: Attacher, asked: Request) -> str:
    """What CHECK finds, in full; empty when all is right."""
    try:
        await attacher.handle(asked, NETNS)
    except CniError as error:
        return f"{error.code.name}: {error.details}"
    return ""


async def test_add_answers_with_what_was_asked_for(node: Node, attacher: Attacher) -> None:
    """The MAC on the pod's interface, the address in ips, the rest as ever."""
    result = await add(attacher, asking(V6, mac=MAC))

    assert [each.mac for each in result.interfaces] == ["ee:ee:ee:ee:ee:ee", MAC]
    assert [str(each.address) for each in result.ips] == ["10.244.0.1/32", "fd00::9/128"]
    assert node.wires.wires[ATTACHMENT.host_ifname].link.mac == MAC


async def test_a_repeated_add_with_the_same_wishes_changes_nothing(
    node: Node, attacher: Attacher
) -> None:
    """And one without any is content with what there is."""
    first = await add(attacher, asking(V4, mac=MAC))

    assert await add(attacher, asking(V4, mac=MAC)) == first
    assert await add(attacher, request()) == first
    assert node.journal.count("create") == 1


async def test_a_repeated_add_with_another_mac_rebuilds_the_link(
    node: Node, attacher: Attacher
) -> None:
    """Same addresses: they are the attachment's."""
    first = await add(attacher, asking(mac=MAC))
    second = await add(attacher, asking(mac=OTHER_MAC))

    assert second.interfaces[1].mac == OTHER_MAC
    assert second.ips == first.ips


async def test_a_repeated_add_with_other_addresses_is_refused_and_harms_nothing(
    node: Node, attacher: Attacher
) -> None:
    """A living pod keeps its link and its address."""
    await add(attacher, request())
    before, journal = node.leftovers, list(node.journal)

    with pytest.raises(AddressRefused, match=r"10\.244\.9\.9 cannot be given"):
        await add(attacher, asking(V4))

    assert node.leftovers == before
    assert "remove" not in node.journal[len(journal) :]


async def test_a_refused_address_leaves_nothing_and_has_a_code(
    node: Node, attacher: Attacher
) -> None:
    """101 for good, 11 where waiting helps."""
    for wait_s, code in ((None, Code.NO_ADDRESS), (7.5, Code.TRY_AGAIN_LATER)):
        refusal = AddressRefused(V4, "is in no IPPool", retry_after_s=wait_s)
        node.allocator.fail_next("assign", refusal)

        with pytest.raises(AddressRefused) as caught:
            await add(attacher, asking(V4))

        assert node.leftovers == []
        assert as_cni_error(caught.value).code is code
        assert as_cni_error(caught.value).msg == "the requested address 10.244.9.9 is in no IPPool"


async def test_check_compares_the_mac_with_prevresult(node: Node, attacher: Attacher) -> None:
    """A later plugin of the chain that has changed it has said so there."""
    result = await add(attacher, asking(mac=MAC))
    asked = asking(mac=MAC, command=Command.CHECK, prev_result=result)
    assert await check(attacher, asked) == ""

    node.wires.wires[ATTACHMENT.host_ifname].mac = OTHER_MAC

    assert f"CHECK_FOUND_DIFFERENCES: MAC address is {OTHER_MAC}" in await check(attacher, asked)
    host, pod = result.interfaces
    told = replace(result, interfaces=(host, replace(pod, mac=OTHER_MAC.upper())))
    tuned = asking(mac=MAC, command=Command.CHECK, prev_result=told)
    assert await check(attacher, tuned) == ""


async def test_check_compares_the_mac_that_was_asked_for_when_prevresult_has_none(
    node: Node, attacher: Attacher
) -> None:
    """And any MAC will do when nobody names one."""
    result = await add(attacher, asking(mac=MAC))
    host, pod = result.interfaces
    silent = replace(result, interfaces=(host, replace(pod, mac="")))
    node.wires.wires[ATTACHMENT.host_ifname].mac = OTHER_MAC

    asked = asking(mac=MAC, command=Command.CHECK, prev_result=silent)

    assert MAC in await check(attacher, asked)
    assert await check(attacher, replace(asked, requested=Requested())) == ""


async def test_check_names_an_address_that_was_asked_for_and_is_not_there(
    node: Node, attacher: Attacher
) -> None:
    """What the runtime's user believes counts as well as prevResult."""
    result = await add(attacher, request())

    found = await check(attacher, asking(V4, command=Command.CHECK, prev_result=result))

    assert "address 10.244.9.9 was asked for and is not assigned" in found


async def test_del_forgets_the_routes_of_the_addresses_held(node: Node, attacher: Attacher) -> None:
    """Named one by one: a route that leads elsewhere by now went with no link."""
    await add(attacher, asking(V4))
    stranger = replace(node.routes.routes[V4], attachment=replace(ATTACHMENT, container_id="x"))
    node.routes.routes[V4] = stranger

    await attacher.handle(request(Command.DEL), None)

    assert node.leftovers == []


async def test_undoing_forgets_no_route_that_was_never_ours(node: Node, attacher: Attacher) -> None:
    """ensure was refused because another pod has that route: it keeps it."""
    others = asking(V4)
    await add(attacher, replace(others, attachment=replace(ATTACHMENT, container_id="x")))
    theirs = dict(node.routes.routes)
    node.routes.fail_next("ensure", HostRouteError("10.244.9.9/32 is routed already"), times=3)

    with pytest.raises(HostRouteError):
        await add(attacher, others)

    assert node.routes.routes == theirs


async def test_undoing_after_the_route_was_made_forgets_it(node: Node, attacher: Attacher) -> None:
    """The pod end would not come up: no link, no route, no address."""
    node.wires.fail_next("configure_pod", WiringError("no"))

    with pytest.raises(WiringError):
        await add(attacher, asking(V4, V6))

    assert node.leftovers == []
