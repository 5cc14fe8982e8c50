"""What a real FRR does to us when its operator forgot something, each told apart by its own name.

No policy (RFC 8212, `bgp ebgp-requires-policy`), a wrong AS number, another password. FRR itself is
asked that the fault is there: `(Policy)` in its summary.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from lab import build, namespaces
from lab.interop.frr import Frr
from lab.interop.model import DaemonPlan
from lab.interop.pairing import far_blocks, plan_for
from lab.interop.stand import NODE, TOR_ASN, Stand

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.exabgp,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
    pytest.mark.skipif(not Frr.is_installed(), reason="needs frr"),
]

(FAR,) = far_blocks((4,))
NO_POLICY = " no bgp ebgp-requires-policy"


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    made = Stand(Frr, tag=f"s32f-{os.getpid()}")
    try:
        made.build()
        rack = made.racks[0]
        spec = {"peerIP": str(rack.address), "asNumber": TOR_ASN, "node": NODE}
        made.peer("tor1", spec)
        yield made
    finally:
        left = made.close()
    assert left == []


def frr(stand: Stand, plan: DaemonPlan, *, change: tuple[str, str] = ("", "")) -> Frr:
    """A router with the plan's configuration, ``change`` made to it; it runs."""
    for old in stand.daemons:
        old.stop()
    daemon = stand.daemon()
    assert isinstance(daemon, Frr)
    daemon.configure(plan)
    text = daemon.render_config(plan)
    assert change[0] in text
    daemon.write_config(text.replace(*change) if change[0] else text)
    daemon.start()
    return daemon


def asked(stand: Stand, *arguments: str) -> Any:
    """A command on the node, which has SLASH32_NODE as in an agent's pod."""
    text = namespaces.run(
        build.slash32_command(*arguments, "-o", "json"),
        namespace=stand.node,
        env=stand.environment | {"SLASH32_RUN_DIR": str(stand.run_dir), "SLASH32_NODE": NODE},
        ok=(0, 1, 4),
    )
    return json.loads(text)


def first_wrong(stand: Stand) -> str:
    """The fault that explain names for an address behind the router."""
    report = asked(stand, "explain", str(FAR[5]))
    return str((report.get("firstWrong") or {}).get("fault", ""))


def sessions_check(stand: Stand) -> list[dict[str, Any]]:
    """What doctor says of sessions."""
    return [row for row in asked(stand, "doctor") if row["id"] == "sessions"]


def becomes(stand: Stand, fault: str) -> None:
    stand.wait(
        lambda: [] if (found := first_wrong(stand)) == fault else [f"it says {found!r}"],
        fault or "nothing wrong that is the router's", deadline_s=60,
    )  # fmt: skip


def test_a_router_without_policy_is_told_from_one_that_filters(stand: Stand):
    """Up, End-of-RIB, and not one route: no policy. With policy the same router's route is there;
    with one that drops this block alone it is a filter."""
    plan = plan_for(stand.racks[0])
    router = frr(stand, plan, change=(NO_POLICY, " bgp ebgp-requires-policy"))
    stand.wait(lambda: stand.missing_session(router, plan.address), "the session")
    assert "(Policy)" in router.vtysh("show bgp ipv4 unicast summary")
    assert router.routes() == []
    becomes(stand, "peer-sends-nothing")
    remedy = asked(stand, "explain", str(FAR[5]))["firstWrong"]["remedy"]
    assert "RFC 8212" in remedy
    assert "route-map" in remedy
    stand.wait(
        lambda: [] if "RFC 8212" in sessions_check(stand)[0]["remedy"] else ["not named"],
        "doctor names it",
    )

    us = plan.neighbour.address
    router.vtysh(
        "configure terminal", "route-map ALL permit 10", "exit", f"router bgp {plan.asn}",
        "address-family ipv4 unicast", f"neighbor {us} route-map ALL in",
        f"neighbor {us} route-map ALL out",
    )  # fmt: skip
    # What lies beyond the router is nobody's node here: that, and not the router, is wrong then.
    stand.wait(lambda: stand.missing_in_kernel({FAR: {plan.address}}), "the route over the router")
    assert first_wrong(stand) not in ("peer-sends-nothing", "filtered-at-router")
    assert "(Policy)" not in router.vtysh("show bgp ipv4 unicast summary")

    other = far_blocks((4,), 2)[1]
    router.vtysh(
        "configure terminal", f"ip prefix-list OTHER seq 5 permit {other}",
        "route-map ALL permit 10", "match ip address prefix-list OTHER", "exit",
        f"router bgp {plan.asn}", "address-family ipv4 unicast", f"network {other}",
    )  # fmt: skip
    becomes(stand, "filtered-at-router")


def test_a_wrong_as_number_is_named(stand: Stand):
    """The router closes with Bad Peer AS."""
    plan = plan_for(stand.racks[0], node_asn=64999)
    frr(stand, plan)
    becomes(stand, "peer-wrong-asn")


def test_another_password_looks_like_silence_and_says_so(stand: Stand):
    """The kernel drops segments without the right signature: this end cannot know more."""
    plan = plan_for(stand.racks[0], password="other")
    frr(stand, plan)
    becomes(stand, "peer-silent-syn")
    # Between two attempts there is no SYN to look at, and what was last heard is told instead.
    stand.wait(
        lambda: [] if "TCP-MD5" in sessions_check(stand)[0]["evidence"] else ["not named"],
        "doctor names it",
    )
