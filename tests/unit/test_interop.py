"""The interoperability stand's pure parts: configurations, what daemons print, the table."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest

from lab.interop import bird, frr, gobgp, openbgpd
from lab.interop.catalogue import CASES
from lab.interop.daemon import Daemon
from lab.interop.model import DaemonPlan, Neighbour, Origin, RibRoute
from lab.interop.results import Cell, Outcome, table
from lab.interop.run import DAEMONS, LIMITS

US = Neighbour(ip_address("172.30.0.1"), 64601, (4, 6))
PLAN = DaemonPlan(
    asn=64512,
    router_id=IPv4Address("172.30.0.0"),
    address=ip_address("172.30.0.0"),
    address6=IPv6Address("fd00:30::"),
    neighbour=US,
    origins=(Origin(ip_network("10.244.1.0/26"), ("64512:7",), ("64512:1:2",)),),
)


@pytest.mark.parametrize("name", DAEMONS)
def test_a_configuration_has_what_was_asked_and_nothing_unasked(name: str, tmp_path: Path) -> None:
    """Password, TTL, limit and communities appear with their cause."""
    daemon: Daemon = DAEMONS[name](namespace="none", directory=tmp_path)
    plain = daemon.render_config(PLAN)
    assert "64601" in plain
    assert plain == daemon.render_config(PLAN)
    guarded = replace(US, password="s3cret", is_ttl_secured=True, max_prefixes=98765)
    full = daemon.render_config(replace(PLAN, neighbour=guarded))
    for word in ("s3cret", "98765"):
        assert word in full
        assert word not in plain
    assert any("ttl" in line for line in full.splitlines())
    assert not any("ttl" in line for line in plain.splitlines())


def test_a_configuration_is_private(tmp_path: Path) -> None:
    """Passwords stand in it."""
    daemon = bird.Bird(namespace="none", directory=tmp_path / "d")
    daemon.configure(PLAN)
    daemon.configure(PLAN)
    assert daemon.config_file.stat().st_mode & 0o777 == 0o600


ROUTE = RibRoute(
    ip_network("10.244.0.0/26"),
    ip_address("172.30.0.1"),
    (64601,),
    ("64601:42",),
    ("64601:0:4200000000",),
)


def test_what_bird_shows_of_a_route() -> None:
    """birdc's text: prefix, next hop, path and both kinds of communities."""
    text = """BIRD 2.0.12 ready.
Table master4:
10.244.0.0/26        unicast [node 22:40:01.012] * (100) [AS64601i]
\tvia 172.30.0.1 on node
\tType: BGP univ
\tBGP.origin: IGP
\tBGP.as_path: 64601
\tBGP.next_hop: 172.30.0.1
\tBGP.local_pref: 100
\tBGP.community: (64601,42)
\tBGP.large_community: (64601, 0, 4200000000)
"""
    assert bird.parse_routes(text) == [ROUTE]


def test_what_bird_shows_of_a_session() -> None:
    """State and last error, in its words."""
    text = """node       BGP        ---        start  22:40:01.012  Idle
  BGP state:          Idle
    Last error:       BGP Error: Hold timer expired
"""
    seen = bird.parse_session(text)
    assert (seen.is_established, seen.state) == (False, "Idle")
    assert seen.last_error == "BGP Error: Hold timer expired"


def test_what_frr_shows_of_a_route() -> None:
    """vtysh's JSON; paths of other neighbours are none of ours."""
    ours = {
        "peer": {"peerId": "172.30.0.1"},
        "nexthops": [{"ip": "172.30.0.1"}, {"ip": "fe80::1", "scope": "link-local"}],
        "aspath": {"string": "64601"},
        "community": {"string": "64601:42"},
        "largeCommunity": {"string": "64601:0:4200000000"},
    }
    others = {**ours, "peer": {"peerId": "172.30.9.9"}}
    detail = {"paths": [others, ours]}
    assert frr.parse_paths("10.244.0.0/26", detail, "172.30.0.1") == [ROUTE]


def test_what_gobgp_shows_of_a_route() -> None:
    """Attributes by their numbers."""
    path = {
        "attrs": [
            {"type": 2, "as_paths": [{"segment_type": 2, "num": 1, "asns": [64601]}]},
            {"type": 3, "nexthop": "172.30.0.1"},
            {"type": 8, "communities": [(64601 << 16) | 42]},
            {
                "type": 32,
                "value": [{"ASN": 64601, "LocalData1": 0, "LocalData2": 4200000000}],
            },
        ]
    }
    assert gobgp.parse_path("10.244.0.0/26", path) == ROUTE


def test_what_openbgpd_shows_of_a_route() -> None:
    """bgpctl's JSON."""
    entry = {
        "prefix": "10.244.0.0/26",
        "exit_nexthop": "172.30.0.1",
        "aspath": "64601",
        "communities": ["64601:42"],
        "large_communities": ["64601:0:4200000000"],
    }
    assert openbgpd.parse_entry(entry) == ROUTE


def test_the_table_has_a_cell_for_each_and_a_reason_for_what_is_not_ok() -> None:
    """Limits are numbered, failures stand out, and what was not run is empty."""
    cells = [
        Cell("bird", "ipv4", Outcome.OK, "1.0 s"),
        Cell("frr", "ipv4", Outcome.LIMIT, "it cannot"),
        Cell("bird", "ipv6", Outcome.FAIL, "no session"),
    ]
    text = table(
        cells,
        titles={"ipv4": "IPv4", "ipv6": "IPv6", "md5": "MD5"},
        daemons={"bird": "BIRD 2", "frr": "FRR 8"},
    )
    assert text == (
        "| | BIRD 2 | FRR 8 |\n"
        "|---|---|---|\n"
        "| IPv4 | ok, 1.0 s | limit [1] |\n"
        "| IPv6 | **FAIL** |  |\n"
        "\nLimits of the peers, each seen in this run:\n\n"
        "1. FRR 8, IPv4: it cannot\n"
        "\nFailures:\n\n"
        "- BIRD 2, IPv6: no session\n"
    )


def test_a_limit_belongs_to_a_case_and_a_daemon_that_exist() -> None:
    """A misspelt one would never be looked at."""
    for daemon, case in LIMITS:
        assert daemon in DAEMONS
        assert case in CASES
