"""Sessions as engineers configure them, against a real BIRD: keys, TTLs, ports, families."""

from __future__ import annotations

import base64
import re
import subprocess
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from bgp.paths import Advertisement, Family, Peer
from routing.delta import diff
from tests.fakes.bgp_world import RealSpeakers, Routers, eventually, is_established, why_not

pytestmark = [
    pytest.mark.netns,
    pytest.mark.exabgp,
    pytest.mark.bird,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

BLOCK = ip_network("10.244.1.64/26")
BLOCK6 = ip_network("fd00:10:1::40/122")
LEARNED, LEARNED6 = "10.9.0.0/26", "2001:db8:9::/64"
OLD_KEY, NEW_KEY = "an old secret", "a new se{cret}"


async def begin(routers: Routers, node: RealSpeakers, *peers: Peer) -> None:
    """The routers of these peers and ExaBGP run; nothing waited for but the speaker."""
    for peer in peers:
        number = int(peer.name.removeprefix("router"))
        routers.reconfigure(number)
        routers.birds[number].start()
    await node.start()
    await node.speaker.set_peers({peer.address: peer for peer in peers})
    node.start_exabgp()
    await node.connected()


async def exchange(routers: Routers, node: RealSpeakers, peer: Peer, *hops: str) -> None:
    """The session comes up; our blocks go out with ``hops``, and what the router sent is here."""
    number = int(peer.name.removeprefix("router"))
    # An unsigned RST is no answer to a signed SYN, and the next SYN takes its time.
    await eventually(
        lambda: is_established(node.speaker, peer.address),
        what=f"session {number}",
        deadline_s=30,
    )
    wanted = {
        (peer.address, block): Advertisement(block, None if hop == "self" else ip_address(hop))
        for block, hop in zip((BLOCK, BLOCK6), hops, strict=False)
    }
    mine = {k: v for k, v in (await node.speaker.adj_rib_out()).items() if k[0] == peer.address}
    assert await node.speaker.apply(diff(wanted, mine)) == []
    for family in peer.families:
        await node.speaker.send_end_of_rib(peer.address, family)
    await eventually(lambda: node.speaker.is_complete(peer.address), what="complete")
    await eventually(
        lambda: set(routers.birds[number].routes("node")) == {str(key[1]) for key in wanted},
        what="announced",
    )


def inside(netns: str, *command: str) -> str:
    """What a command prints in a namespace."""
    return subprocess.run(
        ["ip", "netns", "exec", netns, *command],
        check=True, capture_output=True, text=True, timeout=10,
    ).stdout  # fmt: skip


def attempt(node: RealSpeakers, peer: Peer) -> str:
    """What the last attempt to open that session came to, as the agent knows it."""
    return node.speaker.sessions()[peer.address].attempt


def counter(netns: str, name: str) -> int:
    """One of the kernel's TCP counters in a namespace (/proc/net/netstat)."""
    text = inside(netns, "cat", "/proc/net/netstat")
    names, values = (line.split() for line in text.splitlines() if line.startswith("TcpExt:"))
    return int(dict(zip(names, values, strict=True))[name])


def key(text: str) -> str:
    return f'password "{text}";'


# -- MD5 -----------------------------------------------------------------------------------------


async def test_a_new_password_resets_that_session_alone_and_loses_no_path(
    routers: Routers, node: RealSpeakers
) -> None:
    """Rotation: ours first, the router's some time later; the other session does not notice."""
    routers.options = {1: key(OLD_KEY), 2: key(OLD_KEY)}
    one, two = (replace(routers.peer(n), password=OLD_KEY) for n in (1, 2))
    routers.send(1, [LEARNED])
    routers.send(2, [LEARNED])
    await begin(routers, node, one, two)
    await exchange(routers, node, one, "self")
    await exchange(routers, node, two, "self")
    untouched = routers.birds[2].sessions_so_far("node"), routers.birds[2].route_changes("node")
    rotated = replace(one, password=NEW_KEY)
    await node.speaker.set_peers({one.address: rotated, two.address: two})
    await eventually(lambda: not is_established(node.speaker, one.address), what="session 1 ends")
    failures = counter(routers.namespace(1), "TCPMD5Failure")
    await eventually(
        lambda: counter(routers.namespace(1), "TCPMD5Failure") > failures, what="a refused attempt"
    )
    assert not is_established(node.speaker, one.address)
    # Both sides hold the other's routes meanwhile.
    assert node.speaker.sessions()[one.address].routes_stale == 1
    assert str(BLOCK) in routers.birds[1].routes("node")
    routers.options[1] = key(NEW_KEY)
    routers.reconfigure(1)
    await exchange(routers, node, rotated, "self")
    assert len(node.speaker.paths()) == 2
    assert untouched == (
        routers.birds[2].sessions_so_far("node"),
        routers.birds[2].route_changes("node"),
    )
    assert node.speaker.sessions()[two.address].flaps == 0


async def test_a_password_is_seen_by_nobody(routers: Routers, node: RealSpeakers) -> None:
    """Not in a log, a command line, an environment or a file that others can read."""
    routers.options[1] = key(OLD_KEY)
    peer = replace(routers.peer(1), password=OLD_KEY)
    await begin(routers, node, peer)
    await exchange(routers, node, peer, "self")
    wrong = replace(peer, password=NEW_KEY)
    await node.speaker.set_peers({peer.address: wrong})
    await eventually(lambda: not is_established(node.speaker, peer.address), what="refused")
    secrets = [text.encode() for text in (OLD_KEY, NEW_KEY)]
    secrets += [base64.b64encode(text) for text in secrets]
    places: dict[str, bytes] = {
        "log": node.log().encode(),
        "sessions": repr(node.speaker.sessions()).encode(),
        "peer": repr(wrong).encode(),
        "reasons": repr(node.changes).encode(),
    }
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            for file in ("cmdline", "environ"):
                try:
                    places[f"{process.name}/{file}"] = (process / file).read_bytes()
                except OSError:
                    continue
    for path in node.conf.parent.rglob("*"):
        # BIRD's own file is BIRD's operator's.
        if path.is_file() and "bird" not in path.name and path.stat().st_mode & 0o077:
            places[str(path)] = path.read_bytes()
    found = [where for where, data in places.items() if any(s in data for s in secrets)]
    assert found == []
    assert node.conf.stat().st_mode & 0o777 == 0o600
    assert secrets[3] in node.conf.read_bytes()


async def test_a_wrong_password_stops_that_session_and_no_other(
    routers: Routers, node: RealSpeakers
) -> None:
    """Refused by the kernel before BGP begins; set right, it comes up."""
    routers.options = {1: key(NEW_KEY), 2: key(OLD_KEY)}
    one, two = (replace(routers.peer(n), password=OLD_KEY) for n in (1, 2))
    await begin(routers, node, one, two)
    await exchange(routers, node, two, "self")
    await eventually(
        lambda: counter(routers.namespace(1), "TCPMD5Failure") >= 2, what="refused twice"
    )
    assert not is_established(node.speaker, one.address)
    await eventually(lambda: attempt(node, one) == "no answer", what="the silence is told")
    assert attempt(node, two) == ""
    await node.speaker.set_peers({one.address: replace(one, password=NEW_KEY), two.address: two})
    await exchange(routers, node, one, "self")
    assert attempt(node, one) == ""
    assert routers.birds[2].sessions_so_far("node") == 1


# -- TTL, ports, who connects --------------------------------------------------------------------


async def test_gtsm_lets_neighbours_in_and_nobody_from_afar(
    routers: Routers, node: RealSpeakers
) -> None:
    """RFC 5082: with it on both sides the session is there; a TTL of 1 is dropped unread."""
    routers.options = {1: "ttl security on;", 2: "ttl security on;"}
    one = replace(routers.peer(1), ttl_security_hops=1)
    two = routers.peer(2)
    routers.send(1, [LEARNED])
    await begin(routers, node, one, two)
    await exchange(routers, node, one, "self")
    await eventually(
        lambda: counter(routers.namespace(2), "TCPMinTTLDrop") >= 1, what="dropped by router 2"
    )
    assert not is_established(node.speaker, two.address)
    await eventually(lambda: attempt(node, two) == "not acknowledged", what="the reason is told")
    drops = counter(routers.node, "TCPMinTTLDrop")
    # And the other way round: the router sends with TTL 1, and it is we who drop it.
    routers.options[1] = ""
    routers.reconfigure(1)
    await eventually(lambda: counter(routers.node, "TCPMinTTLDrop") > drops, what="dropped by us")
    await eventually(lambda: not is_established(node.speaker, one.address), what="its end")
    # It was up before: a session that ends is looked at too.
    # The router's kernel may have acknowledged our OPEN before BIRD gave the connection its TTL.
    await eventually(
        lambda: attempt(node, one) in {"not acknowledged", "no word"}, what="the reason is told"
    )
    assert "TTL" in node.speaker.sessions()[one.address].reason


@pytest.mark.parametrize("guarded", ["", "md5", "ttl", "md5 ttl"])
async def test_a_passive_peer_is_waited_for_on_its_port(
    routers: Routers, node: RealSpeakers, guarded: str
) -> None:
    """We never connect; the router does, to the port and address we listen on."""
    guard = " ".join({"md5": key(OLD_KEY), "ttl": "ttl security on;"}[g] for g in guarded.split())
    routers.options[1] = f"neighbor port 1790; {guard}"
    peer = replace(
        routers.peer(1),
        is_passive=True,
        listens=True,
        listen_port=1790,
        password=OLD_KEY if "md5" in guarded else None,
        ttl_security_hops=1 if "ttl" in guarded else None,
    )
    routers.send(1, [LEARNED])
    await begin(routers, node, peer)
    await exchange(routers, node, peer, "self")
    shown = inside(routers.node, "ss", "-Htn", "state", "established")
    assert re.search(r"10\.255\.1\.1:1790\s+10\.255\.1\.2:", shown), shown


async def test_a_router_on_another_port_is_found(routers: Routers, node: RealSpeakers) -> None:
    """`port` of the peer; the router does not connect to us."""
    routers.options[1] = "local port 1179; passive on;"
    peer = replace(routers.peer(1), port=1179)
    await begin(routers, node, peer)
    await exchange(routers, node, peer, "self")


# -- families ------------------------------------------------------------------------------------


async def test_both_families_over_one_session_each_with_its_own_next_hop(
    routers: Routers, node: RealSpeakers
) -> None:
    """IPv6 over a session over IPv4."""
    routers.send(1, [LEARNED, LEARNED6])
    peer = routers.peer(1)
    await begin(routers, node, peer)
    await exchange(routers, node, peer, "self", "2001:db8:1::1")
    hops = {str(prefix): str(path.next_hop) for (_, prefix), path in node.speaker.paths().items()}
    assert hops == {LEARNED: "10.255.1.2", LEARNED6: "2001:db8:1::2"}
    assert routers.birds[1].routes("node") == {
        str(BLOCK): "10.255.1.1",
        str(BLOCK6): "2001:db8:1::1",
    }


async def test_ipv6_alone_over_ipv6(routers: Routers, node: RealSpeakers) -> None:
    """No IPv4 anywhere in the session."""
    routers.session_version[1] = 6
    routers.send(1, [LEARNED6])
    peer = routers.peer(1, families=(Family.IPV6,))
    await begin(routers, node, peer)
    await eventually(lambda: is_established(node.speaker, peer.address), what="session")
    wanted = {(peer.address, BLOCK6): Advertisement(BLOCK6)}
    assert await node.speaker.apply(diff(wanted, {})) == []
    await node.speaker.send_end_of_rib(peer.address, Family.IPV6)
    await eventually(
        lambda: routers.birds[1].routes("node") == {str(BLOCK6): "2001:db8:1::1"}, what="ours"
    )
    await eventually(lambda: len(node.speaker.paths()) == 1, what="theirs")
    (path,) = node.speaker.paths().values()
    assert str(path.next_hop) == "2001:db8:1::2"


async def test_ipv4_goes_over_ipv6_next_hops(routers: Routers, node: RealSpeakers) -> None:
    """RFC 8950, both ways, over a session over IPv6; and a restart of the agent finds it again."""
    routers.session_version[1] = 6
    routers.ipv4_options[1] = "extended next hop on;"
    routers.send(1, [LEARNED, LEARNED6])
    peer = replace(routers.peer(1), extended_next_hop=True)
    await begin(routers, node, peer)
    await exchange(routers, node, peer, "self", "self")
    assert routers.birds[1].routes("node") == {
        str(BLOCK): "2001:db8:1::1",
        str(BLOCK6): "2001:db8:1::1",
    }
    hops = {str(prefix): str(path.next_hop) for (_, prefix), path in node.speaker.paths().items()}
    assert hops == {LEARNED: "2001:db8:1::2", LEARNED6: "2001:db8:1::2"}
    out = await node.speaker.adj_rib_out()
    await node.restart_agent()
    await node.speaker.set_peers({peer.address: peer})
    assert await node.speaker.adj_rib_out() == out
