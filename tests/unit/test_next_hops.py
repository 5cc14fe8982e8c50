"""Next hops: connected, through another route, through another path; held when there is none."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network

from bgp.decision import best_paths
from bgp.paths import Origin, Path, Peer
from routing.links import LinkState
from routing.next_hops import LOOK_UPS_MAX, KernelRoute, Resolver, resolve_all, to_look_up
from routing.routes import NextHop

RR = ip_address("192.0.2.9")
RR2 = ip_address("192.0.2.10")
GATEWAY = ip_address("172.30.0.0")
GATEWAY2 = ip_address("172.30.1.0")
NODE2 = ip_address("10.0.0.2")
LINKS = {
    "up0": LinkState("up0", 1, True, 1500, (ip_interface("172.30.0.1/31"),)),
    "up1": LinkState("up1", 2, True, 1500, (ip_interface("172.30.1.1/31"),)),
}
VIA_UP0 = NextHop("up0", GATEWAY)
VIA_UP1 = NextHop("up1", GATEWAY2)


def path(prefix: str, next_hop, peer=RR) -> Path:
    return Path(peer, ip_network(prefix), ip_address(next_hop), (), 0, Origin.IGP)


def decide(paths):
    peers = {
        a: Peer(str(a), a, 65000, 65000, ip_address("192.0.2.1"), IPv4Address("192.0.2.1"))
        for a in (RR, RR2)
    }
    return best_paths(paths, peers)


def resolve(*paths: Path, links=LINKS, kernel=None):
    found, waiting = resolve_all(paths, Resolver(links, kernel or {}), decide)
    return {str(prefix): hops for (_, prefix), hops in found.items()}, waiting


def test_a_connected_next_hop_is_its_own_gateway():
    """No recursion where none is needed."""
    found, waiting = resolve(path("10.244.2.0/26", GATEWAY))
    assert (found, waiting) == ({"10.244.2.0/26": {VIA_UP0}}, [])


def test_another_programs_route_resolves_it():
    """A static route or an IGP towards the nodes of other racks; all of its gateways."""
    kernel = {NODE2: KernelRoute(24, (VIA_UP0, VIA_UP1))}
    found, _ = resolve(path("10.244.2.0/26", NODE2), kernel=kernel)
    assert found["10.244.2.0/26"] == {VIA_UP0, VIA_UP1}


def test_one_dead_gateway_does_not_take_the_others_along():
    """A leg over a link that has just lost its carrier is left out, the kernel would refuse all."""
    kernel = {NODE2: KernelRoute(24, (VIA_UP0, VIA_UP1))}
    down = {**LINKS, "up1": replace(LINKS["up1"], is_up=False)}
    found, _ = resolve(path("10.244.2.0/26", NODE2), kernel=kernel, links=down)
    assert found["10.244.2.0/26"] == {VIA_UP0}


def test_one_unreachable_path_of_a_multipath_leaves_the_other():
    """Two reflectors, two next hops, one known."""
    found, waiting = resolve(
        path("10.244.2.0/26", GATEWAY), path("10.244.2.0/26", "10.0.0.77", peer=RR2)
    )
    assert found["10.244.2.0/26"] == {VIA_UP0}
    assert [p.peer for p in waiting] == [RR2]


def test_a_route_on_the_link_makes_the_next_hop_its_own_gateway():
    """`ip route add 10.0.0.0/24 dev up0`: the kernel will ask for its MAC address there."""
    found, _ = resolve(
        path("10.244.2.0/26", NODE2), kernel={NODE2: KernelRoute(24, (NextHop("up0"),))}
    )
    assert found["10.244.2.0/26"] == {NextHop("up0", NODE2)}


def test_another_path_resolves_it():
    """The reflector says where the rack is, too: 10.0.0.0/24 via the gateway."""
    found, waiting = resolve(path("10.244.2.0/26", NODE2), path("10.0.0.0/24", GATEWAY))
    assert found["10.244.2.0/26"] == {VIA_UP0}
    assert waiting == []


def test_twice_over_and_no_further():
    """A chain of four is a mistake somewhere."""
    chain = [
        path("10.0.4.0/24", "10.0.3.1"),
        path("10.0.3.0/24", "10.0.2.1"),
        path("10.0.2.0/24", "10.0.1.1"),
        path("10.0.1.0/24", GATEWAY),
    ]
    found, waiting = resolve(*chain)
    assert set(found) == {"10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"}
    assert [str(p.prefix) for p in waiting] == ["10.0.4.0/24"]


def test_a_default_route_reaches_no_next_hop():
    """Everything would be reachable then; neither the kernel's nor a learned one counts."""
    kernel = {NODE2: KernelRoute(0, (VIA_UP0,))}
    found, waiting = resolve(
        path("10.244.2.0/26", NODE2), path("0.0.0.0/0", GATEWAY), kernel=kernel
    )
    assert set(found) == {"0.0.0.0/0"}
    assert len(waiting) == 1


def test_a_route_does_not_lead_to_its_own_next_hop():
    """10.0.0.0/24 via 10.0.0.2 would be a circle; so would two that lead to each other."""
    assert resolve(path("10.0.0.0/24", NODE2))[0] == {}
    found, waiting = resolve(path("10.0.0.0/24", "10.0.1.1"), path("10.0.1.0/24", "10.0.0.1"))
    assert found == {}
    assert len(waiting) == 2


def test_the_longer_of_two_ways_is_taken():
    """As the kernel would."""
    kernel = {NODE2: KernelRoute(24, (VIA_UP1,))}
    specific, _ = resolve(path("10.244.2.0/26", NODE2), path("10.0.0.2/32", GATEWAY), kernel=kernel)
    assert specific["10.244.2.0/26"] == {VIA_UP0}
    wide, _ = resolve(path("10.244.2.0/26", NODE2), path("10.0.0.0/16", GATEWAY), kernel=kernel)
    assert wide["10.244.2.0/26"] == {VIA_UP1}


def test_only_what_is_off_link_is_asked_of_the_kernel_and_not_too_much():
    """A peer that makes up next hops crowds out its own, not those in use."""
    many = [path("10.244.0.0/26", f"203.0.{n >> 8}.{n & 255}") for n in range(LOOK_UPS_MAX + 50)]
    used = ip_address("203.0.113.250")
    asked = to_look_up([*(each.next_hop for each in many), GATEWAY, used], LINKS, [used])
    assert asked[0] == used
    assert len(asked) == LOOK_UPS_MAX
    assert GATEWAY not in asked


def test_the_answer_does_not_depend_on_what_is_installed():
    """Two that lead to each other, over another's wider route: once ours are in the kernel it shows
    them instead of that one, so they must not have been resolved by it before."""
    circle = [path("10.0.0.0/24", "10.0.1.1"), path("10.0.1.0/24", "10.0.0.1")]
    wider = {ip_address(a): KernelRoute(16, (VIA_UP0,)) for a in ("10.0.0.1", "10.0.1.1")}
    before, _ = resolve(*circle, kernel=wider)
    after, _ = resolve(*circle, kernel={})
    assert before == after == {}
