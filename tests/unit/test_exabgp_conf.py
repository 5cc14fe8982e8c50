"""exabgp.conf: rendered from typed values, refused from anything else, accepted by ExaBGP."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest

from bgp.advertising import AdvertisementKey
from bgp.conf_file import read_conf, write_conf
from bgp.exabgp_conf import MAX_PASSWORD_BYTES, MAX_PEERS, Conf, ConfError, announced_in, render
from bgp.paths import Address, Advertisement, Family, Peer
from bgp.supervise import exabgp_environment

TOR = Peer(
    name="tor1",
    address=ip_address("192.0.2.2"),
    remote_asn=65000,
    local_asn=65001,
    local_address=ip_address("192.0.2.1"),
    router_id=IPv4Address("192.0.2.1"),
)
TOR6 = replace(
    TOR,
    name="tor2",
    address=ip_address("2001:db8::2"),
    local_address=ip_address("2001:db8::1"),
    port=1179,
    hold_time_s=90,
    graceful_restart_s=0,
    families=(Family.IPV6,),
    remote_asn=4_200_000_000,
)
LISTENER = replace(TOR, is_passive=True, listens=True, listen_port=1790)
GUARDED = replace(TOR, password='p"w}; run /bin/sh', ttl_security_hops=1)
FAR = replace(TOR6, families=tuple(Family), extended_next_hop=True, multihop_ttl=4)
HOSTILE = 'x";\n}\nprocess evil {\n  run /bin/sh -c reboot;\n}\n#'


BLOCK = ip_network("10.244.1.64/26")
BLOCK6 = ip_network("fd00:10:1::40/122")
COLOURED = Advertisement(
    BLOCK,
    communities=("65535:0", "65001:7"),
    large_communities=("65001:2:3", "65001:1:4294967295"),
    med=0,
    local_pref=150,
    prepend=2,
)


def conf(
    *peers: Peer,
    socket_path: str = "/run/slash32/bgp.sock",
    announced: Mapping[AdvertisementKey, Advertisement] | None = None,
) -> Conf:
    return render(
        {peer.address: peer for peer in peers},
        python=sys.executable,
        bridge="/opt/slash32/bgp/bridge.py",
        socket_path=socket_path,
        announced=announced,
    )


def told(peer: Peer, *advertisements: Advertisement) -> dict[AdvertisementKey, Advertisement]:
    return {(peer.address, value.prefix): value for value in advertisements}


def test_every_setting_we_rely_on_is_written() -> None:
    """The text for one peer, whole."""
    rendered = conf(TOR)
    assert rendered.text == (
        "# Rendered by slash32; edits are overwritten.\n"
        "process agent {\n"
        f"  run {sys.executable} -IS /opt/slash32/bgp/bridge.py /run/slash32/bgp.sock;\n"
        "  encoder json;\n"
        "}\n"
        "neighbor 192.0.2.2 {\n"
        f'  description "{rendered.mark}";\n'
        "  router-id 192.0.2.1;\n"
        "  local-address 192.0.2.1;\n"
        "  local-as 65001;\n"
        "  peer-as 65000;\n"
        "  hold-time 9;\n"
        "  connect 179;\n"
        "  passive false;\n"
        "  outgoing-ttl 1;\n"
        "  group-updates true;\n"
        "  manual-eor true;\n"
        "  adj-rib-in false;\n"
        "  adj-rib-out true;\n"
        "  family { ipv4 unicast; ipv6 unicast; }\n"
        "  capability { graceful-restart 120; route-refresh enable; }\n"
        "  api { processes [ agent ]; neighbor-changes; "
        "receive { parsed; open; update; refresh; notification; } }\n"
        "}\n"
    )


def test_the_mark_changes_with_any_change_and_only_then() -> None:
    """The order in which peers are given is no change."""
    assert conf(TOR, TOR6) == conf(TOR6, TOR)
    marks = {conf(TOR).mark, conf(TOR6).mark, conf(TOR, TOR6).mark, conf().mark}
    marks |= {conf(replace(TOR, hold_time_s=10)).mark, conf(TOR, socket_path="/x").mark}
    assert len(marks) == 6


def test_a_peers_name_does_not_reach_the_file() -> None:
    """It is the one value that a user words freely."""
    assert conf(replace(TOR, name=HOSTILE)) == conf(TOR)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"address": IPv6Address("fe80::1%" + HOSTILE.replace("/", ""))}, "scope"),
        ({"local_address": IPv6Address("fe80::1%;}")}, "scope"),
        ({"address": HOSTILE}, "address"),
        ({"local_address": ip_address("2001:db8::1")}, "local_address"),
        ({"local_address": TOR.address}, "local_address"),
        ({"local_address": ip_address("224.0.0.1")}, "local_address"),
        ({"router_id": ip_address("2001:db8::1")}, "router_id"),
        ({"router_id": IPv4Address(0)}, "router_id"),
        ({"router_id": HOSTILE}, "router_id"),
        ({"remote_asn": 0}, "remote_asn"),
        ({"remote_asn": 2**32 - 1}, "remote_asn"),
        ({"remote_asn": HOSTILE}, "remote_asn"),
        ({"remote_asn": True}, "remote_asn"),
        ({"local_asn": -1}, "local_asn"),
        ({"hold_time_s": 2}, "hold_time_s"),
        ({"hold_time_s": 9.0}, "hold_time_s"),
        ({"hold_time_s": 65536}, "hold_time_s"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"graceful_restart_s": 4096}, "graceful_restart_s"),
        ({"families": ()}, "families"),
        ({"families": (HOSTILE,)}, "families"),
        ({"is_passive": True}, "is_passive without listens"),
        ({"listens": True, "listen_port": 0}, "listen_port"),
        ({"listens": True, "listen_port": HOSTILE}, "listen_port"),
        ({"password": ""}, "password"),
        ({"password": "x" * (MAX_PASSWORD_BYTES + 1)}, "password"),
        ({"password": "secret\n"}, "password"),
        ({"password": 7}, "password"),
        ({"ttl_security_hops": 0}, "ttl_security_hops"),
        ({"ttl_security_hops": 255}, "ttl_security_hops"),
        ({"ttl_security_hops": HOSTILE}, "ttl_security_hops"),
        ({"multihop_ttl": 0}, "multihop_ttl"),
        ({"multihop_ttl": HOSTILE}, "multihop_ttl"),
        ({"ttl_security_hops": 1, "multihop_ttl": 2}, "exclude each other"),
        ({"extended_next_hop": True, "families": (Family.IPV4,)}, "extended_next_hop"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(change: dict[str, object], names: str) -> None:
    """Whoever built the Peer: nothing that is not a number or an address is written."""
    peer = replace(TOR, **change)  # type: ignore[arg-type]
    with pytest.raises(ConfError) as caught:
        conf(peer)
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_each_setting_of_a_session_stands_where_it_belongs() -> None:
    """Passive and listen, password, GTSM, multihop, RFC 8950; and none of them unasked."""
    plain = conf(TOR).text
    for word in ("listen ", "md5", "incoming-ttl", "nexthop"):
        assert word not in plain
    assert "  passive true;\n  listen 1790;\n" in conf(LISTENER).text
    assert "  incoming-ttl 255;\n  outgoing-ttl 255;\n" in conf(GUARDED).text
    assert "  incoming-ttl 252;\n" in conf(replace(TOR, ttl_security_hops=4)).text
    assert "  outgoing-ttl 4;\n" in conf(FAR).text
    assert "  nexthop { ipv4 unicast ipv6; }\n" in conf(FAR).text
    # A session with a router inside our own AS may have hops between (RFC 4271 has no limit).
    assert "ttl" not in conf(replace(TOR, remote_asn=TOR.local_asn)).text


@pytest.mark.parametrize("password", ['p"w}; run /bin/sh', "\u00fc\u00f6", HOSTILE[:3], "x" * 80])
def test_a_password_is_written_in_base64_and_nowhere_shown(password: str) -> None:
    """Its own characters would be ExaBGP's syntax; a Peer that is printed does not have it."""
    peer = replace(TOR, password=password)
    text = conf(peer).text
    (line,) = [line for line in text.splitlines() if "md5-password" in line]
    encoded = line.split('"')[1]
    assert base64.b64decode(encoded).decode() == password
    assert "md5-base64 true;" in text
    assert password not in text
    assert repr(password) not in repr(peer)
    assert encoded not in repr(peer)


def test_our_routes_are_written_and_read_back() -> None:
    """What ExaBGP announces when it starts without an agent, with every attribute."""
    announced = told(TOR, COLOURED) | told(
        FAR, Advertisement(BLOCK, ip_address("2001:db8::1")), Advertisement(BLOCK6)
    )
    text = conf(TOR, FAR, announced=announced).text
    assert announced_in(text) == announced
    assert "    route 10.244.1.64/26 next-hop self as-path [ 65001 65001 65001 ] med 0" in text
    assert announced_in(conf(TOR, FAR).text) == {}


def test_ipv4_over_ipv6_has_its_next_hop_spelled_out() -> None:
    """ExaBGP's `self` is of the prefix's family; where RFC 8950 is off the route is left out."""
    announced = told(FAR, Advertisement(BLOCK))
    assert "route 10.244.1.64/26 next-hop 2001:db8::1;" in conf(FAR, announced=announced).text
    plain = replace(FAR, extended_next_hop=False)
    assert conf(plain, announced=announced).text == conf(plain).text


def test_routes_are_no_part_of_the_mark() -> None:
    """ExaBGP has them from the agent: a change of theirs asks for no reload."""
    assert conf(TOR, announced=told(TOR, COLOURED)).mark == conf(TOR).mark
    assert conf(TOR, announced=told(TOR, COLOURED)).text != conf(TOR).text


@pytest.mark.parametrize(
    "unsayable",
    [
        told(TOR6, Advertisement(BLOCK)),
        told(TOR, Advertisement(BLOCK6)),
        told(TOR, Advertisement(BLOCK, communities=("1:1 ];\n} process evil { run /bin/sh; }",))),
        told(TOR, Advertisement(BLOCK, large_communities=("1:1:1;",))),
        told(TOR, Advertisement(BLOCK, IPv6Address("fe80::1%;}"))),
        told(TOR, Advertisement(BLOCK, med=HOSTILE)),  # type: ignore[arg-type]
        told(TOR, Advertisement(BLOCK, prepend=10**6)),
        told(replace(TOR, address=ip_address("192.0.2.77")), Advertisement(BLOCK)),
    ],
)
def test_a_route_that_cannot_be_said_is_left_out(
    unsayable: dict[AdvertisementKey, Advertisement],
) -> None:
    """The hub is told by `apply`; the file must not cost the session, nor take a word."""
    text = conf(TOR, TOR6, announced=unsayable).text
    assert text == conf(TOR, TOR6).text


def test_a_file_of_somebody_elses_has_no_routes_for_us() -> None:
    """Whatever stands in it: nothing is raised, and nothing is made up."""
    neighbor = "neighbor 192.0.2.2 {\n"
    for text in (
        "",
        "neighbor x {",
        "route 10.0.0.0/8 next-hop self;",
        neighbor + "neighbor x {\nroute 10.0.0.0/8 next-hop self;",
        neighbor + "route",
        neighbor + "route 10.0.0.1/8 next-hop self;",
        neighbor + "route 10.0.0.0/8 med 5;",
    ):
        assert announced_in(text) == {}


@pytest.mark.parametrize(
    "path",
    ["/run/a;b", "/run/a b", "/run/a\nb", '/run/"', "/run/{", "relative", "", "/run/\u00fc"],
)
def test_a_path_that_could_mean_something_is_refused(path: str) -> None:
    """The bridge's command line has only characters without a meaning to ExaBGP."""
    with pytest.raises(ConfError, match="socket path"):
        conf(TOR, socket_path=path)


def test_too_many_peers_are_refused() -> None:
    """The limit is said."""
    peers: dict[Address, Peer] = {
        address: replace(TOR, address=address)
        for address in (IPv4Address(int(TOR.address) + n) for n in range(MAX_PEERS + 1))
    }
    with pytest.raises(ConfError, match=f"limit {MAX_PEERS}"):
        render(peers, python="/p", bridge="/b", socket_path="/s")


def test_a_peer_filed_under_another_address_is_refused() -> None:
    """The key is the peer's identity; two truths are none."""
    with pytest.raises(ConfError, match="filed under"):
        render({ip_address("192.0.2.3"): TOR}, python="/p", bridge="/b", socket_path="/s")


@pytest.mark.exabgp
@pytest.mark.parametrize(
    "peers",
    [(), (TOR,), (TOR, TOR6), (LISTENER, FAR), (GUARDED,)],
    ids=["none", "one", "both", "passive-and-far", "guarded"],
)
def test_exabgp_itself_accepts_the_file(peers: tuple[Peer, ...], tmp_path: Path) -> None:
    """`exabgp validate` on what we render, as the speaker command would run it."""
    announced: dict[AdvertisementKey, Advertisement] = {}
    for peer in peers:
        announced |= told(peer, COLOURED) if peer.address.version == 4 else {}
        announced |= told(peer, Advertisement(BLOCK6, ip_address("2001:db8::1")))
    file = tmp_path / "exabgp.conf"
    file.write_text(conf(*peers, announced=announced).text)
    finished = subprocess.run(
        [sys.executable, "-I", "-m", "exabgp", "validate", "-nrv", str(file)],
        env=exabgp_environment(os.environ),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    for peer in peers:
        assert f"neighbor  {peer.address}" in finished.stderr + finished.stdout


@pytest.mark.exabgp
def test_exabgp_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    """So the test above can fail."""
    file = tmp_path / "exabgp.conf"
    file.write_text(conf(TOR).text.replace("manual-eor", "manual-aeiou"))
    finished = subprocess.run(
        [sys.executable, "-I", "-m", "exabgp", "validate", "-nrv", str(file)],
        env=exabgp_environment(os.environ),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert finished.returncode != 0


def test_the_file_is_private_and_never_half_written(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask; what is left of a killed writer, or planted, is replaced."""
    file = tmp_path / "exabgp.conf"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("untouched")
    (tmp_path / "exabgp.conf.new").symlink_to(elsewhere)
    assert read_conf(str(file)) is None
    before = os.umask(0)
    try:
        write_conf(str(file), "first\n")
        write_conf(str(file), "second\n")
    finally:
        os.umask(before)
    assert read_conf(str(file)) == "second\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert elsewhere.read_text() == "untouched"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "exabgp.conf"]
