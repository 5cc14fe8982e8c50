"""cni.attach: the verbs over fakes, every failure switch, and what is left behind (nothing)."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from cni.attach import ADDRESS_ATTEMPTS, Attacher, HostRouteError, Unready, describe_netns
from cni.attachment import Attachment, PodRef
from cni.conntrack import ConntrackError
from cni.errors import CniError, Code
from cni.ipam.allocator import NoAddress
from cni.ipam.block import BlockStoreError
from cni.result import Dns, Interface, IpConfig, Result, host_cidr
from cni.spec import Command, NetConf, Request
from cni.wiring_errors import LinkExists, NamespaceGone, PodInterfaceExists, WiringError
from tests.fakes.cni import FIRST_ADDRESS, Node
from tests.fakes.edge import FakeConntrack

NETNS = 7
OTHER_NETNS = 8
ATTACHMENT = Attachment("slash32", "c0ffee", "eth0")


@pytest.fixture
def node() -> Node:
    """A node with nothing on it."""
    return Node()


@pytest.fixture
async def attacher(node: Node) -> AsyncIterator[Attacher]:
    """The verbs over that node's fakes."""
    made = make_attacher(node)
    yield made
    await made.close()


def make_attacher(
    node: Node, *, deadline_s: float = 30.0, conntrack: FakeConntrack | None = None
) -> Attacher:
    """Verbs over ``node``, with every descriptor a good namespace."""
    return Attacher(
        wiring=node.wires,
        host_routes=node.routes,
        allocator=node.allocator,
        mtu_bytes=lambda: 1500,
        readiness=lambda: node.unready,
        examine_netns=lambda _fd: None,
        deadline_s=deadline_s,
        conntrack=conntrack,
    )


def request(
    command: Command = Command.ADD,
    attachment: Attachment | None = ATTACHMENT,
    **netconf: Any,
) -> Request:
    """A request for ``attachment`` with fields of the network configuration changed."""
    conf = replace(NetConf(cni_version="1.1.0", name="slash32", type="slash32"), **netconf)
    return Request(
        command=command,
        netconf=conf,
        attachment=attachment,
        netns="/run/netns/pod",
        pod=PodRef("shop", "web-0"),
    )


async def add(attacher: Attacher, asked: Request | None = None, *, netns_fd: int = NETNS) -> Result:
    """An ADD that must succeed."""
    result = await attacher.handle(asked or request(), netns_fd)
    assert result is not None
    return result.result()


async def test_add_allocates_wires_routes_and_only_then_raises_the_pod_end(
    node: Node, attacher: Attacher
) -> None:
    """The host's route is there before the pod can send."""
    await add(attacher)

    assert node.journal == ["assign", "create", "ensure", "configure_pod"]


async def test_add_answers_with_both_ends_the_address_and_a_default_route(
    node: Node, attacher: Attacher
) -> None:
    """What containerd and CRI-O look for: the pod end with its sandbox, and its address."""
    node.allocator.make = lambda _n: (IPv4Address("10.244.0.9"), IPv6Address("fd00::9"))

    result = await add(attacher, request(mtu_bytes=1400, dns=Dns(domain="x")))

    assert result.interfaces == (
        Interface(ATTACHMENT.host_ifname, mac="ee:ee:ee:ee:ee:ee"),
        Interface("eth0", mac=node.wires.POD_MAC, mtu_bytes=1400, sandbox="/run/netns/pod"),
    )
    assert result.ips == (
        IpConfig(host_cidr(IPv4Address("10.244.0.9")), IPv4Address("169.254.1.1"), 1),
        IpConfig(host_cidr(IPv6Address("fd00::9")), IPv6Address("fe80::1"), 1),
    )
    assert [(str(each.dst), str(each.gw)) for each in result.routes] == [
        ("0.0.0.0/0", "169.254.1.1"),
        ("::/0", "fe80::1"),
    ]
    assert result.dns == Dns(domain="x")


async def test_the_mtu_is_the_uplinks_unless_configured(node: Node, attacher: Attacher) -> None:
    """The node's default is asked at each ADD."""
    result = await add(attacher)

    assert result.interfaces[1].mtu_bytes == 1500
    assert node.wires.wires[ATTACHMENT.host_ifname].link.pod == PodRef("shop", "web-0")


async def test_a_chained_add_appends_to_the_previous_result(attacher: Attacher) -> None:
    """Indices count from the interfaces that are there already; their DNS is kept."""
    previous = Result(interfaces=(Interface("net1", sandbox="/x"),), dns=Dns(domain="first"))

    result = await add(attacher, request(prev_result=previous, dns=Dns(domain="second")))

    assert [each.name for each in result.interfaces] == ["net1", ATTACHMENT.host_ifname, "eth0"]
    assert [each.interface for each in result.ips] == [2]
    assert result.dns == Dns(domain="first")


async def test_a_repeated_add_gets_the_same_answer(node: Node, attacher: Attacher) -> None:
    """One address, one link, looked after once more."""
    first = await add(attacher)
    second = await add(attacher)

    assert second == first
    assert node.allocator.given == 1
    assert node.wires.repaired == [ATTACHMENT.host_ifname]
    assert node.journal.count("create") == 1


async def test_a_repeated_add_mends_a_pod_end_in_place(node: Node, attacher: Attacher) -> None:
    """A pod may be running on that link: it is not taken away for a missing route."""
    first = await add(attacher)
    node.wires.wires[ATTACHMENT.host_ifname].is_configured = False

    assert await add(attacher) == first
    assert node.wires.wires[ATTACHMENT.host_ifname].is_configured
    assert "remove" not in node.journal


async def test_a_repeated_add_rebuilds_a_link_that_is_not_whole(
    node: Node, attacher: Attacher
) -> None:
    """Same address, new wire: here the pod came back in another namespace."""
    first = await add(attacher)
    second = await add(attacher, netns_fd=OTHER_NETNS)

    assert second == first
    assert node.wires.wires[ATTACHMENT.host_ifname].namespace == OTHER_NETNS
    assert node.journal.count("remove") == 1


async def test_a_repeated_add_keeps_the_address_whose_link_is_gone(
    node: Node, attacher: Attacher
) -> None:
    """The allocator knows it, the kernel does not: it is wired again."""
    first = await add(attacher)
    node.wires.wires.clear()

    assert await add(attacher) == first
    assert node.allocator.given == 1


async def test_a_repeated_add_that_fails_leaves_the_first_one_alone(
    node: Node, attacher: Attacher
) -> None:
    """A living pod does not pay for a trouble of the second call."""
    await add(attacher)
    before = node.leftovers
    node.wires.fail_next("read", WiringError("no consistent dump"))

    with pytest.raises(WiringError):
        await add(attacher)

    assert node.leftovers == before


@pytest.mark.parametrize(
    ("part", "verb", "error"),
    [
        ("wires", "repair", WiringError("could not be mended")),
        ("routes", "ensure", HostRouteError("the prefix is held")),
    ],
)
async def test_a_repeated_add_rebuilds_what_cannot_be_mended_in_place(
    node: Node, attacher: Attacher, part: str, verb: str, error: Exception
) -> None:
    """The same answer over a new link, instead of a failure that every repeat would see again."""
    first = await add(attacher)
    getattr(node, part).fail_next(verb, error)

    assert await add(attacher) == first
    assert node.journal.count("remove") == 1
    assert len(node.leftovers) == 3


@pytest.mark.parametrize(
    ("part", "verb", "error"),
    [
        ("allocator", "assign", NoAddress("pool blue is exhausted")),
        ("allocator", "assign", BlockStoreError("store unreachable")),
        ("wires", "create", WiringError("no memory")),
        ("wires", "create", NamespaceGone("gone")),
        ("wires", "create", LinkExists("taken")),
        ("wires", "create", PodInterfaceExists("eth0 is there")),
        ("wires", "create", OSError(1, "not permitted")),
        ("routes", "ensure", RuntimeError("a bug")),
        ("wires", "configure_pod", WiringError("address refused")),
        ("wires", "configure_pod", NamespaceGone("gone")),
    ],
)
async def test_an_add_that_fails_at_any_step_leaves_nothing(
    node: Node, attacher: Attacher, part: str, verb: str, error: Exception
) -> None:
    """No link, no route, no address; and the next ADD works."""
    getattr(node, part).fail_next(verb, error)

    with pytest.raises(type(error)) as caught:
        await add(attacher)

    assert caught.value is error
    assert node.leftovers == []
    await add(attacher)


async def test_undoing_goes_in_reverse(node: Node, attacher: Attacher) -> None:
    """Route, link, address: nothing is free while something can still use it."""
    node.wires.fail_next("configure_pod", WiringError("no"))

    with pytest.raises(WiringError):
        await add(attacher)

    assert node.journal == ["assign", "create", "ensure", "forget", "remove", "release"]


async def test_undoing_goes_on_past_a_step_that_fails_and_tells(
    node: Node, attacher: Attacher
) -> None:
    """The route goes; an address whose link may live on is kept for the runtime's DEL."""
    node.wires.fail_next("configure_pod", WiringError("no"))
    node.wires.fail_next("remove", WiringError("device busy"))

    with pytest.raises(WiringError) as caught:
        await add(attacher)

    assert caught.value.__notes__ == ["undoing it, remove failed: device busy"]
    assert not node.routes.routes
    assert node.leftovers == [f"link {ATTACHMENT.host_ifname}", f"addresses of {ATTACHMENT}"]
    await attacher.handle(request(Command.DEL), None)
    assert node.leftovers == []


async def test_a_foreign_link_of_that_name_is_left_alone(node: Node, attacher: Attacher) -> None:
    """ADD fails and changes nothing; a DEL finds nothing of ours, which is success."""
    node.wires.foreign_links.add(ATTACHMENT.host_ifname)

    with pytest.raises(LinkExists):
        await add(attacher)
    await attacher.handle(request(Command.DEL), None)

    assert node.leftovers == []
    assert "remove" not in node.journal


async def test_a_link_of_ours_that_the_address_book_does_not_know_is_rebuilt(
    node: Node, attacher: Attacher
) -> None:
    """Its address was somebody else's when the agent started; the pod gets another one."""
    first = await add(attacher)
    node.allocator.held.clear()

    second = await add(attacher)

    assert second.ips != first.ips
    assert len(node.wires.wires) == 1
    assert node.journal.count("remove") == 1


async def test_an_interface_that_is_there_already_is_an_error(
    node: Node, attacher: Attacher
) -> None:
    """The specification wants it so; nothing is left of the attempt."""
    node.wires.foreign_pod_interfaces.add((NETNS, "eth0"))

    with pytest.raises(PodInterfaceExists):
        await add(attacher)

    assert node.leftovers == []


async def test_an_address_routed_elsewhere_is_given_up_for_the_next(
    node: Node, attacher: Attacher
) -> None:
    """The pod gets the next one, and nothing of the first attempt is left."""
    node.routes.foreign = {FIRST_ADDRESS: "eth9"}

    result = await add(attacher)

    assert [each.address.ip for each in result.ips] == [FIRST_ADDRESS + 1]
    assert list(node.routes.routes) == [FIRST_ADDRESS + 1]
    assert len(node.wires.wires) == 1


async def test_after_three_addresses_routed_elsewhere_the_add_fails(
    node: Node, attacher: Attacher
) -> None:
    """The sentence of the last one names the holder; nothing is left."""
    node.routes.foreign = {FIRST_ADDRESS + n: f"eth{n}" for n in range(10)}

    with pytest.raises(HostRouteError, match="eth2"):
        await add(attacher)

    assert node.allocator.given == ADDRESS_ATTEMPTS
    assert node.leftovers == []


async def test_running_out_while_giving_up_addresses_tells_both(
    node: Node, attacher: Attacher
) -> None:
    """ "Exhausted" alone would send the operator looking at the wrong thing."""
    node.allocator.limit = 1
    node.routes.foreign = {FIRST_ADDRESS: "eth9"}

    with pytest.raises(NoAddress) as caught:
        await add(attacher)

    assert "eth9" in caught.value.__notes__[0]


async def test_an_add_beyond_its_deadline_is_undone(node: Node) -> None:
    """A store that never answers costs the deadline, not an address."""
    attacher = make_attacher(node, deadline_s=0.05)
    node.allocator.before_assign = lambda: asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await add(attacher)

    assert node.leftovers == []
    await attacher.close()


async def test_a_cancelled_add_is_undone(node: Node, attacher: Attacher) -> None:
    """The agent stops in the middle of an ADD: nothing is left."""
    reached = asyncio.Event()
    forever = asyncio.Event()

    async def hold(link: object) -> None:
        reached.set()
        await forever.wait()

    node.routes.ensure = hold  # type: ignore[method-assign]
    task = asyncio.create_task(add(attacher))
    await reached.wait()
    assert node.wires.wires
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert node.leftovers == []


async def test_verbs_of_one_attachment_take_turns(node: Node, attacher: Attacher) -> None:
    """A DEL that overtakes its ADD waits, and then removes what the ADD made."""
    gate = asyncio.Event()
    node.allocator.before_assign = gate.wait
    adding = asyncio.create_task(add(attacher))
    await asyncio.sleep(0)
    deleting = asyncio.create_task(attacher.handle(request(Command.DEL), None))
    await asyncio.sleep(0)
    assert not deleting.done()

    gate.set()
    await adding
    await deleting

    assert node.leftovers == []


async def test_verbs_of_different_attachments_do_not_wait_for_each_other(
    node: Node, attacher: Attacher
) -> None:
    """One ADD hangs in the store; another one passes it."""
    gate = asyncio.Event()
    node.allocator.before_assign = gate.wait
    hanging = asyncio.create_task(add(attacher))
    await asyncio.sleep(0)
    node.allocator.before_assign = lambda: None

    await add(attacher, request(attachment=Attachment("slash32", "other", "eth0")))

    assert not hanging.done()
    gate.set()
    await hanging


async def test_many_adds_at_once_get_different_addresses(node: Node, attacher: Attacher) -> None:
    """And no lock outlives its users."""
    attachments = [Attachment("slash32", f"c{n}", "eth0") for n in range(50)]

    results = await asyncio.gather(*(add(attacher, request(attachment=a)) for a in attachments))

    assert len({each.ips[0].address for each in results}) == 50
    assert len(attacher._turns) == 0


async def test_del_takes_the_link_first_and_frees_the_address_last(
    node: Node, attacher: Attacher
) -> None:
    """Otherwise the next pod could get an address that still has a wire."""
    await add(attacher)
    node.journal.clear()

    await attacher.handle(request(Command.DEL), None)

    assert node.journal == ["announce", "forget", "remove", "release"]
    assert node.leftovers == []


async def test_del_of_nothing_succeeds_as_often_as_it_is_asked(
    node: Node, attacher: Attacher
) -> None:
    """No namespace, no link, no address: success."""
    for _ in range(3):
        assert await attacher.handle(request(Command.DEL), None) is None

    assert node.leftovers == []


async def test_del_removes_an_attachment_known_only_by_its_link(
    node: Node, attacher: Attacher
) -> None:
    """The agent could not adopt its address at start."""
    await add(attacher)
    node.allocator.held.clear()
    node.routes.routes.clear()

    await attacher.handle(request(Command.DEL), None)

    assert node.leftovers == []


async def test_del_releases_an_attachment_known_only_by_its_address(
    node: Node, attacher: Attacher
) -> None:
    """Somebody removed the link by hand."""
    await add(attacher)
    node.wires.wires.clear()

    await attacher.handle(request(Command.DEL), None)

    assert node.leftovers == []


@pytest.mark.parametrize(("part", "verb"), [("wires", "remove"), ("routes", "forget")])
async def test_a_del_that_cannot_remove_keeps_the_address_and_can_be_repeated(
    node: Node, attacher: Attacher, part: str, verb: str
) -> None:
    """An address whose link may live on is not free; the runtime's next DEL finishes."""
    await add(attacher)
    getattr(node, part).fail_next(verb, WiringError("busy"))

    with pytest.raises(WiringError):
        await attacher.handle(request(Command.DEL), None)
    assert ATTACHMENT in node.allocator.held

    await attacher.handle(request(Command.DEL), None)
    assert node.leftovers == []


async def test_what_has_no_link_is_released_and_what_has_one_is_not(
    node: Node, attacher: Attacher
) -> None:
    """For the agent's own collection: it looks once more, with the attachment's turn."""
    await add(attacher)
    assert await attacher.release_linkless(ATTACHMENT) == ()
    assert len(node.leftovers) == 3

    node.wires.wires.clear()
    assert await attacher.release_linkless(ATTACHMENT) == (FIRST_ADDRESS,)
    assert node.leftovers == []
    assert await attacher.release_linkless(ATTACHMENT) == ()


async def test_the_collection_waits_for_a_verb_that_is_under_way(
    node: Node, attacher: Attacher
) -> None:
    """A repeated ADD that rebuilds the link has its turn; afterwards there is a link again."""
    await add(attacher)
    node.wires.wires.clear()
    hold = asyncio.Event()
    node.allocator.before_assign = hold.wait
    verb = asyncio.create_task(add(attacher))
    await asyncio.sleep(0)
    collecting = asyncio.create_task(attacher.release_linkless(ATTACHMENT))
    await asyncio.sleep(0)
    assert not verb.done()
    assert not collecting.done()
    hold.set()

    await verb
    assert await collecting == ()
    assert len(node.leftovers) == 3


async def check(attacher: Attacher, previous: Result) -> str:
    """The differences CHECK found, "" when it was content."""
    try:
        await attacher.handle(request(Command.CHECK, prev_result=previous), NETNS)
    except CniError as error:
        return error.details if error.code is Code.CHECK_FOUND_DIFFERENCES else repr(error)
    return ""


async def test_check_right_after_add_is_content(attacher: Attacher) -> None:
    """CRI-O calls it so, with the result of the ADD."""
    result = await add(attacher)

    assert await check(attacher, result) == ""


async def test_check_compares_the_mtu_of_the_previous_result(attacher: Attacher) -> None:
    """A later plugin of the chain may have changed it and said so."""
    result = await add(attacher)
    changed = replace(result.interfaces[1], mtu_bytes=1300)

    found = await check(attacher, replace(result, interfaces=(result.interfaces[0], changed)))

    assert found == "MTU is 1500, not 1300"


async def test_check_names_everything_that_differs(node: Node, attacher: Attacher) -> None:
    """Link, route, address and previous result, each in its own words."""
    result = await add(attacher)
    node.wires.differences = ["net.ipv4.conf.x.proxy_arp is 0, not 1"]
    node.routes.routes.clear()
    odd = replace(result.ips[0], address=host_cidr(IPv4Address("10.0.0.1")))

    found = await check(attacher, replace(result, ips=(odd,), interfaces=result.interfaces[1:]))

    for said in ("proxy_arp is 0", "host route", "no host interface", "10.244.0.1/32"):
        assert said in found


async def test_check_takes_addresses_of_other_plugins_interfaces_for_theirs(
    attacher: Attacher,
) -> None:
    """A chain may end with more interfaces and addresses than ours."""
    result = await add(attacher)
    other = IpConfig(host_cidr(IPv4Address("192.0.2.1")), None, 2)
    chained = replace(
        result,
        interfaces=(*result.interfaces, Interface("net1", sandbox="/x")),
        ips=(*result.ips, other, IpConfig(host_cidr(IPv4Address("192.0.2.2")))),
    )

    assert await check(attacher, chained) == ""


async def test_check_of_an_attachment_without_an_address_says_so(attacher: Attacher) -> None:
    """It was never added, or its address was lost."""
    assert "no address is assigned" in await check(attacher, Result())


@pytest.mark.parametrize("command", [Command.ADD, Command.CHECK])
async def test_a_namespace_that_cannot_be_opened_is_an_unknown_container(
    node: Node, attacher: Attacher, command: Command
) -> None:
    """Code 3: there is nothing to clean up, and nothing was changed."""
    with pytest.raises(CniError) as caught:
        await attacher.handle(request(command), None)

    assert caught.value.code is Code.UNKNOWN_CONTAINER
    assert "/run/netns/pod" in caught.value.msg
    assert node.journal == []


async def test_a_namespace_that_is_none_is_refused_before_anything_happens(node: Node) -> None:
    """Code 4, with the sentence of the examination."""
    attacher = Attacher(
        wiring=node.wires,
        host_routes=node.routes,
        allocator=node.allocator,
        mtu_bytes=lambda: 1500,
        readiness=lambda: None,
    )
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    with pytest.raises(CniError) as caught:
        await attacher.handle(request(), own)
    os.close(own)

    assert caught.value.code is Code.INVALID_ENVIRONMENT
    assert "host itself" in caught.value.msg
    assert node.journal == []
    await attacher.close()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/proc/self/ns/net", "host itself"),
        ("/proc/self/ns/uts", "not a network namespace"),
        ("/dev/null", "not a network namespace"),
        (__file__, "not a network namespace"),
        ("/", "not a network namespace"),
    ],
)
def test_what_is_no_pod_namespace_is_told_apart(path: str, said: str) -> None:
    """CNI_NETNS can name anything; the host's own namespace is the worst of it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert said in str(describe_netns(descriptor))
    finally:
        os.close(descriptor)


async def test_status_says_what_the_hub_says(node: Node, attacher: Attacher) -> None:
    """Ready: silence. Not ready: the hub's code and sentence."""
    asked = request(Command.STATUS, None)
    assert await attacher.handle(asked, None) is None

    node.unready = Unready(51, "no BGP session is established")
    with pytest.raises(CniError) as caught:
        await attacher.handle(asked, None)

    assert caught.value.code is Code.LIMITED_CONNECTIVITY
    assert caught.value.msg == "no BGP session is established"


async def fill(node: Node, attacher: Attacher) -> None:
    """Three whole pods, one link without address, one address without link, one other network."""
    for name in ("a", "b", "c", "link-only"):
        await add(attacher, request(attachment=Attachment("slash32", name, "eth0")))
    del node.allocator.held[Attachment("slash32", "link-only", "eth0")]
    node.allocator.held[Attachment("slash32", "address-only", "eth0")] = (FIRST_ADDRESS + 99,)
    await add(attacher, request(attachment=Attachment("other", "a", "eth0")))


def known(node: Node) -> set[tuple[str, str]]:
    """(network, container) of everything that is left."""
    links = {wire.link.attachment for wire in node.wires.wires.values()}
    return {(each.network, each.container_id) for each in links | set(node.allocator.held)}


def collect(*valid: str) -> Request:
    """A GC of our network that names these containers."""
    attachments = frozenset(Attachment("slash32", each, "eth0") for each in valid)
    return request(Command.GC, None, valid_attachments=attachments)


async def test_gc_removes_exactly_what_is_not_named(node: Node, attacher: Attacher) -> None:
    """By link, by address, in this network only."""
    await fill(node, attacher)

    await attacher.handle(collect("a", "b", "never-seen"), None)

    assert known(node) == {("slash32", "a"), ("slash32", "b"), ("other", "a")}


async def test_gc_goes_on_past_failures_and_reports_them_together(
    node: Node, attacher: Attacher
) -> None:
    """One that fails stops no other; the runtime reads of each."""
    await fill(node, attacher)
    node.routes.fail_next("forget", RuntimeError("first"))
    node.routes.fail_next("forget", RuntimeError("second"))

    with pytest.raises(CniError) as caught:
        await attacher.handle(collect("a"), None)

    assert caught.value.code is Code.GC_INCOMPLETE
    assert "2 of 4" in caught.value.msg
    assert "first" in caught.value.details
    assert "second" in caught.value.details
    await attacher.handle(collect("a"), None)
    assert known(node) == {("slash32", "a"), ("other", "a")}


async def test_a_released_addresss_connections_are_forgotten_before_it_is_free(node: Node) -> None:
    """Its next holder must not get what was meant for this one; a failure does not keep the DEL."""
    conntrack = FakeConntrack()
    attacher = make_attacher(node, conntrack=conntrack)
    try:
        for failing in (False, True):
            await attacher.handle(request(), netns_fd=0)
            held = node.allocator.addresses(ATTACHMENT)
            if failing:
                conntrack.fail_next("flush", ConntrackError("no"), times=len(held))
            await attacher.handle(request(Command.DEL), netns_fd=None)
            assert set(held) <= set(conntrack.flushed) or failing
            assert node.leftovers == []
    finally:
        await attacher.close()
