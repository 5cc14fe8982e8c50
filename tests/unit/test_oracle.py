"""The oracle finds every kind of leak that is planted, names it, and nothing on a sound node."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from cni.attachment import Address, Attachment
from cni.podlink import PodLink
from lab.oracle import (
    GATEWAYS,
    LINK_GROUP,
    Book,
    HostRoute,
    Inside,
    Link,
    Living,
    Seen,
    judge,
    waiting_files,
)

ONE = Attachment("slash32", "1" * 64, "eth0")
OTHER = Attachment("slash32", "2" * 64, "eth0")
V4, V6 = ip_address("10.244.0.1"), ip_address("fd44::1")
OTHER_V4 = ip_address("10.244.0.2")
ADDRESSES = {ONE: (V4, V6), OTHER: (OTHER_V4,)}


def host_link(attachment: Attachment, *addresses: Address) -> Link:
    """The host end as the product writes it."""
    link = PodLink(attachment, addresses, 1500)
    return Link(link.host_ifname, alias=link.alias, group=LINK_GROUP)


def pod_side(*addresses: Address) -> Inside:
    """A pod's namespace as it should be."""
    return Inside(
        links=(Link("lo"), Link("eth0", addresses=frozenset(addresses))),
        routes=(HostRoute(GATEWAYS[4], "eth0", 3),),
        defaults=frozenset(GATEWAYS[each.version] for each in addresses),
    )


def sound() -> Seen:
    """Two pods, one dual-stack; an uplink, the gateway's route and a route learned by BGP."""
    return Seen(
        node=Inside(
            links=(
                Link("lo", addresses=frozenset({ip_address("172.16.0.1")})),
                Link("uplink0", addresses=frozenset({ip_address("172.30.0.1")})),
                *(host_link(who, *addresses) for who, addresses in ADDRESSES.items()),
            ),
            routes=(
                HostRoute(GATEWAYS[4], "lo", 132, 1032),
                HostRoute(ip_address("10.9.9.9"), "uplink0", 132, 1032, has_gateway=True),
                *(
                    HostRoute(address, who.host_ifname, 132, 1032)
                    for who, addresses in ADDRESSES.items()
                    for address in addresses
                ),
            ),
        ),
        pods={Living(who, f"/run/netns/{who}"): pod_side(*a) for who, a in ADDRESSES.items()},
        book=Book(
            held={who: frozenset(addresses) for who, addresses in ADDRESSES.items()},
            used={"10.244.0.0/26": 2, "fd44::/122": 1},
        ),
    )


def on_node(
    seen: Seen, *, links: tuple[Link, ...] = (), routes: tuple[HostRoute, ...] = ()
) -> Seen:
    """More of it on the node."""
    node = replace(seen.node, links=seen.node.links + links, routes=seen.node.routes + routes)
    return replace(seen, node=node)


def without_links(seen: Seen, *names: str) -> Seen:
    """Links gone from the node, and their routes with them."""
    node = Inside(
        tuple(each for each in seen.node.links if each.ifname not in names),
        tuple(each for each in seen.node.routes if each.ifname not in names),
    )
    return replace(seen, node=node)


def without_route(seen: Seen, address: Address) -> Seen:
    """One route gone."""
    routes = tuple(each for each in seen.node.routes if each.address != address)
    return replace(seen, node=replace(seen.node, routes=routes))


def with_pod(seen: Seen, inside: Inside | None) -> Seen:
    """The first pod's namespace looks like this."""
    return replace(seen, pods={**seen.pods, Living(ONE, f"/run/netns/{ONE}"): inside})


def with_book(seen: Seen, **held: frozenset[Address]) -> Seen:
    """``one`` and ``other`` hold this; ``used`` follows."""
    named = {"one": ONE, "other": OTHER, "third": Attachment("slash32", "3" * 64, "eth0")}
    book = {named[name]: addresses for name, addresses in held.items()}
    count = sum(address.version == 4 for each in book.values() for address in each)
    used = {"10.244.0.0/26": count, "fd44::/122": 1}
    return replace(seen, book=Book(book, used))


def changed_link(seen: Seen, ifname: str, **fields: object) -> Seen:
    """One link of the node with other fields."""
    links = tuple(
        replace(each, **fields) if each.ifname == ifname else each  # type: ignore[arg-type]
        for each in seen.node.links
    )
    return replace(seen, node=replace(seen.node, links=links))


def test_a_sound_node_has_no_findings() -> None:
    """Nor has one without pods, nor one whose agent was not asked."""
    assert judge(sound()) == []
    assert judge(replace(sound(), book=None)) == []
    assert judge(Seen(Inside(links=(Link("lo"),)))) == []


IF_ONE, IF_OTHER = ONE.host_ifname, OTHER.host_ifname
STRANGER = Attachment("slash32", "9" * 64, "eth0")

PLANTED: list[tuple[str, Callable[[Seen], Seen], list[str]]] = [
    (
        "a sandbox without a link",
        lambda seen: without_links(seen, IF_OTHER),
        ["missing link", "stale address 10.244.0.2", "allocated without a link"],
    ),
    ("a namespace that is gone", lambda seen: with_pod(seen, None), ["missing namespace"]),
    (
        "a pod without its interface",
        lambda seen: with_pod(seen, Inside(links=(Link("lo"),))),
        ["missing interface"],
    ),
    (
        "a pod without one address and its way out",
        lambda seen: with_pod(seen, pod_side(V4)),
        ["missing address fd44::1", "missing default route by fe80::1"],
    ),
    (
        "a pod with an address too many",
        lambda seen: with_pod(seen, pod_side(V4, V6, ip_address("10.244.0.9"))),
        ["stale address 10.244.0.9"],
    ),
    (
        "a pod whose interface is down",
        lambda seen: with_pod(
            seen,
            replace(
                pod_side(V4, V6),
                links=(Link("eth0", is_up=False, addresses=frozenset({V4, V6})),),
            ),
        ),
        ["interface eth0 of slash32/111111111111/eth0 is down"],
    ),
    (
        "a link whose sandbox is gone",
        lambda seen: replace(
            seen, pods={k: v for k, v in seen.pods.items() if k.attachment != OTHER}
        ),
        [f"orphan link {IF_OTHER}"],
    ),
    (
        "a link left half made",
        lambda seen: on_node(seen, links=(Link("s32abc", group=LINK_GROUP, is_up=False),)),
        ["half-made link s32abc"],
    ),
    (
        "our group under a foreign alias",
        lambda seen: on_node(seen, links=(Link("x0", alias="mine", group=LINK_GROUP),)),
        ["half-made link x0"],
    ),
    (
        "an alias with our tag and not our form",
        lambda seen: on_node(seen, links=(Link("s32bad", alias="slash32|1|cut"),)),
        ["link s32bad has an unreadable alias"],
    ),
    (
        "two links of one attachment",
        lambda seen: on_node(seen, links=(replace(host_link(OTHER, OTHER_V4), ifname="s32twice"),)),
        [
            "link s32twice",
            "duplicate links",
            "missing route 10.244.0.2 dev s32twice",
        ],
    ),
    (
        "a link that is down",
        lambda seen: changed_link(seen, IF_ONE, is_up=False),
        [f"link {IF_ONE} of"],
    ),
    (
        "a route of ours over a link that is not",
        lambda seen: on_node(
            seen, routes=(HostRoute(ip_address("10.244.0.7"), "uplink0", 132, 1032),)
        ),
        ["orphan route 10.244.0.7 dev uplink0"],
    ),
    (
        "a route of ours to a pod that has another address",
        lambda seen: on_node(
            seen, routes=(HostRoute(ip_address("10.244.0.7"), IF_ONE, 132, 1032),)
        ),
        ["stale route 10.244.0.7"],
    ),
    (
        "a pod without its IPv6 route",
        lambda seen: without_route(seen, V6),
        [f"missing route fd44::1 dev {IF_ONE}"],
    ),
    (
        "one address on two links",
        lambda seen: changed_link(seen, IF_OTHER, alias=host_link(OTHER, V4).alias),
        [
            "missing address 10.244.0.1 in the pod of slash32/222222222222",
            "stale address 10.244.0.2 in the pod",
            "stale route 10.244.0.2",
            f"missing route 10.244.0.1 dev {IF_OTHER}",
            "duplicate address 10.244.0.1: link of slash32/111111111111",
            "book and link of slash32/222222222222",
        ],
    ),
    (
        "a pod's address on the node itself",
        lambda seen: changed_link(seen, "lo", addresses=frozenset({V4})),
        ["duplicate address 10.244.0.1: link of slash32/111111111111/eth0, the node's lo"],
    ),
    (
        "a second way to a pod's address",
        lambda seen: on_node(seen, routes=(HostRoute(V4, IF_OTHER, 4),)),
        ["duplicate route 10.244.0.1"],
    ),
    (
        "one address inside two pods",
        lambda seen: with_pod(
            seen,
            replace(
                pod_side(V4, V6),
                links=(*pod_side(V4, V6).links, Link("eth1", addresses=frozenset({OTHER_V4}))),
            ),
        ),
        ["duplicate address inside pods 10.244.0.2"],
    ),
    (
        "an allocation without a link",
        lambda seen: with_book(
            seen,
            one=frozenset({V4, V6}),
            other=frozenset({OTHER_V4}),
            third=frozenset({ip_address("10.244.0.3")}),
        ),
        ["allocated without a link: slash32/333333333333/eth0 holds 10.244.0.3"],
    ),
    (
        "a link without an allocation",
        lambda seen: with_book(seen, one=frozenset({V4, V6})),
        ["link without allocation: slash32/222222222222/eth0 has 10.244.0.2"],
    ),
    (
        "a book that says another address",
        lambda seen: with_book(
            seen, one=frozenset({V4, V6}), other=frozenset({ip_address("10.244.0.3")})
        ),
        ["book and link of slash32/222222222222/eth0 differ: 10.244.0.3 and 10.244.0.2"],
    ),
    (
        "one address allocated twice",
        lambda seen: with_book(seen, one=frozenset({V4, V6}), other=frozenset({V4})),
        ["book and link", "duplicate allocation 10.244.0.1"],
    ),
    (
        "a block that counts more than is held",
        lambda seen: replace(
            seen, book=Book(seen.book.held if seen.book else {}, {"10.244.0.0/26": 3})
        ),
        ["block 10.244.0.0/26 counts 3 used addresses, and 2"],
    ),
    (
        "a recorded deletion that nobody does",
        lambda seen: replace(seen, files=("00ff00ff00ff00ff",)),
        ["file left in deleted/: 00ff00ff00ff00ff"],
    ),
]


@pytest.mark.parametrize(
    ("plant", "expected"), [each[1:] for each in PLANTED], ids=[each[0] for each in PLANTED]
)
def test_what_is_planted_is_found_and_nothing_else(
    plant: Callable[[Seen], Seen], expected: list[str]
) -> None:
    """Each sentence begins with what kind of finding it is, in the order of the judging."""
    found = judge(plant(sound()))

    assert len(found) == len(expected), found
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True)), found


def test_waiting_files_are_named(tmp_path: Path) -> None:
    """Finished and half-written ones; a directory that was never made holds none."""
    assert waiting_files(tmp_path) == ()
    (tmp_path / "deleted").mkdir()
    (tmp_path / "deleted" / "00ff").touch()
    (tmp_path / "deleted" / ".12").touch()
    assert waiting_files(tmp_path) == (".12", "00ff")
