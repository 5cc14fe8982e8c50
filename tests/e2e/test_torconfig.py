"""What `slash32 tor-config` prints is loaded into the real router, and the session comes up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from lab.interop.bird import Bird, parse_routes
from lab.interop.daemon import Daemon
from lab.interop.model import Origin, Prefix
from lab.interop.openbgpd import OpenBgpd
from lab.interop.pairing import Link, far_blocks, own_blocks, plan_for
from lab.interop.run import DAEMONS
from lab.interop.stand import NODE, TOR_ASN, Stand, secret

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.exabgp,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

KEY = "a-key-of-the-operators"
GUARDS = {"ttlSecurity": 1, "password": {"secretKeyRef": {"name": "bgp", "key": "tor"}}}
LISTEN = ("--listen-range", "172.30.0.0/31")
UNWANTED = ip_network("203.0.113.0/24")
"""The router has it, and nothing allows it: it must not get as far as our import policy."""

BASE = {
    "bird": (
        "log stderr all;\nrouter id {address};\nprotocol device {{ scan time 1; }}\n"
        "protocol static {{ ipv4; {routes4} }}\nprotocol static {{ ipv6; {routes6} }}\n"
    ),
    "frr": (
        "frr defaults datacenter\nlog stdout\n"
        "router bgp {asn}\n no bgp network import-check\nexit\n"
    ),
    "gobgp": "",
    "openbgpd": 'socket "{socket}"\nfib-update no\nlisten on {address}\n',
}
"""What the router's operator has already, and a way to ask it."""


@pytest.fixture(params=sorted(DAEMONS))
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    """A node with an agent; the router is still to be started."""
    daemon = DAEMONS[request.param]
    if not daemon.is_installed():
        pytest.skip(f"needs {daemon.package}")
    made = Stand(daemon, tag=f"s32i-{os.getpid()}-{daemon.name}-tc")
    try:
        made.build()
        yield made
    finally:
        left = made.close()
    assert left == []


def routes_of(daemon: Daemon) -> set[Prefix]:
    """What the router has from us."""
    if isinstance(daemon, Bird):
        # Its protocols have the names that tor-config gave them.
        found = parse_routes(daemon._birdc("show", "route", "where", "source=RTS_BGP", "all"))
    else:
        found = daemon.routes()
    return {route.prefix for route in found}


@pytest.mark.parametrize("guarded", [True, False], ids=["MD5 and GTSM", "open"])
def test_the_real_router_takes_it_and_the_session_comes_up(stand: Stand, guarded: bool) -> None:
    """By a listen range (or by name, where a range can have no key); routes both ways, and none
    that no policy allows.
    """
    rack = stand.racks[0]
    wanted = far_blocks((4, 6))
    plan = plan_for(rack, families=(4, 6), origins=[Origin(p) for p in (*wanted, UNWANTED)])
    stand.apply(secret("bgp", {"tor": KEY}))
    stand.peer(
        "tor1",
        {
            "peerIP": str(rack.address),
            "asNumber": TOR_ASN,
            "node": NODE,
            **(GUARDS if guarded else {}),
            **({"passive": True} if guarded and not stand.kind.accepts_keyed else {}),
        },
    )
    daemon = stand.daemon()
    printed = stand.slash32(
        *("tor-config", "--vendor", daemon.name, "--store", str(stand.store)),
        *(() if guarded and not stand.kind.accepts_keyed else LISTEN),
    )
    assert KEY not in printed
    daemon.configure(plan)
    daemon.write_config(_base(daemon, plan.origins, rack.address) + _filled(printed, guarded))
    daemon.start()
    if daemon.name in ("frr", "openbgpd"):
        for origin in plan.origins:
            daemon.announce(origin)
    link = Link(daemon, plan, rack)
    stand.wait(lambda: _missing(stand, link), "the session")
    # OpenBGPD on Linux has no IPv6 next hop on a session over IPv4: docs/interop.md.
    versions = (4,) if isinstance(daemon, OpenBgpd) else (4, 6)
    stand.wait(
        lambda: [f"{p} is not there" for p in set(own_blocks((4, 6))) - routes_of(daemon)],
        "our blocks at the router",
    )
    stand.wait(
        lambda: stand.missing_in_kernel(
            {p: {rack.of_family(p.version)} for p in wanted if p.version in versions}
        ),
        "the router's in our kernel",
    )
    seen = {row["prefix"] for row in stand.view("routes")}
    assert str(UNWANTED) not in seen


def _filled(printed: str, guarded: bool) -> str:
    """As its operator would: the password in the place of its marker, and only there."""
    lines = [
        line if line[:1] in "#!" else line.replace("REPLACE-WITH-SECRET-bgp-tor", KEY)
        for line in printed.splitlines()
    ]
    assert any(KEY in line for line in lines) == guarded
    return "\n".join([*lines, ""])


def _base(daemon: Daemon, origins: tuple[Origin, ...], address: object) -> str:
    routes = {
        version: " ".join(
            f"route {o.prefix} unreachable;" for o in origins if o.prefix.version == version
        )
        for version in (4, 6)
    }
    return BASE[daemon.name].format(
        address=address,
        asn=TOR_ASN,
        socket=daemon.directory / "bgpd.sock",
        routes4=routes[4],
        routes6=routes[6],
    )


def _missing(stand: Stand, link: Link) -> list[str]:
    row = stand.peer_row(link.address)
    return [] if row.get("state") == "Established" else [f"our side: {row}"]
