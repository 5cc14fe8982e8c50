"""exabgp.conf: rendered from typed values, refused from anything else, accepted by ExaBGP."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from bgp.conf_file import read_conf, write_conf
from bgp.exabgp_conf import MAX_PEERS, Conf, ConfError, render
from bgp.paths import Address, Family, Peer
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
HOSTILE = 'x";\n}\nprocess evil {\n  run /bin/sh -c reboot;\n}\n#'


def conf(*peers: Peer, socket_path: str = "/run/slash32/bgp.sock") -> Conf:
    return render(
        {peer.address: peer for peer in peers},
        python=sys.executable,
        bridge="/opt/slash32/bgp/bridge.py",
        socket_path=socket_path,
    )


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
        "  group-updates true;\n"
        "  manual-eor true;\n"
        "  adj-rib-in true;\n"
        "  adj-rib-out true;\n"
        "  family { ipv4 unicast; ipv6 unicast; }\n"
        "  capability { graceful-restart 120; route-refresh enable; }\n"
        "  api { processes [ agent ]; neighbor-changes; "
        "receive { parsed; update; refresh; notification; } }\n"
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
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(change: dict[str, object], names: str) -> None:
    """Whoever built the Peer: nothing that is not a number or an address is written."""
    peer = replace(TOR, **change)  # type: ignore[arg-type]
    with pytest.raises(ConfError) as caught:
        conf(peer)
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


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
@pytest.mark.parametrize("peers", [(), (TOR,), (TOR, TOR6)], ids=["none", "one", "both"])
def test_exabgp_itself_accepts_the_file(peers: tuple[Peer, ...], tmp_path: Path) -> None:
    """`exabgp validate` on what we render, as the speaker command would run it."""
    file = tmp_path / "exabgp.conf"
    file.write_text(conf(*peers).text)
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
