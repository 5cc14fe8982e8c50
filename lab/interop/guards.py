"""What keeps a session honest: keys, TTLs, communities, limits; cases as those in cases.py."""

from __future__ import annotations

from typing import Any

from lab.interop.model import Origin
from lab.interop.pairing import (
    begin,
    expect,
    far_blocks,
    own_blocks,
    plan_for,
    settle,
    wait_for_our_blocks,
    wait_for_session,
    when,
)
from lab.interop.stand import NODE, SPARE_BLOCKS, Stand, block, block_name, resource, secret

KEY = "correct-horse-7"
OTHER_KEY = "incorrect-horse-8"
WITH_KEY: dict[str, Any] = {"password": {"secretKeyRef": {"name": "bgp", "key": "tor"}}}
REFUSALS = 2
"""How many attempts must have been refused before a session counts as one that does not come up."""
COMMUNITIES = ("64512:7", "64512:65535")
LARGE_COMMUNITIES = ("64512:1:4294967295",)
OURS = ("64601:42",)
OURS_LARGE = ("64601:0:4200000000",)


def md5(stand: Stand) -> str:
    """TCP-MD5 (RFC 2385) from a Secret; rotated on both sides, the session comes back."""
    stand.apply(secret("bgp", {"tor": KEY}))
    link = begin(stand, plan_for(stand.racks[0], password=KEY), spec=_with_key(stand))
    settle(stand, link)
    stand.apply(secret("bgp", {"tor": OTHER_KEY}))
    stand.wait(
        lambda: when(stand.peer_row(link.address)["state"] == "Established", "still Established"),
        "the session's reset after the rotation",
    )
    link.daemon.stop()
    link.daemon.configure(plan_for(stand.racks[0], password=OTHER_KEY))
    link.daemon.start()
    settle(stand, link)
    return "" if stand.kind.accepts_keyed else "node passive"


def _with_key(stand: Stand) -> dict[str, Any]:
    """The peer's spec; passive where the router has the key only when it connects itself."""
    return WITH_KEY if stand.kind.accepts_keyed else {**WITH_KEY, "passive": True}


def wrong_md5(stand: Stand) -> str:
    """Two different keys: refused by the kernel, attempt after attempt; set right, it comes up."""
    stand.apply(secret("bgp", {"tor": OTHER_KEY}))
    link = begin(stand, plan_for(stand.racks[0], password=KEY), spec=_with_key(stand))
    # Whoever is connected to refuses.
    whose = link.rack.namespace if stand.kind.accepts_keyed else stand.node
    _refused(stand, whose, "TCPMD5Failure")
    expect(stand.peer_row(link.address)["state"] != "Established", "it came up all the same")
    expect(not link.daemon.session().is_established, f"{link.daemon.name} says Established")
    stand.apply(secret("bgp", {"tor": KEY}))
    # OpenBGPD waits twice as long after each refusal.
    wait_for_session(stand, link, deadline_s=120)
    settle(stand, link)
    return "" if stand.kind.accepts_keyed else "node passive"


def gtsm(stand: Stand) -> str:
    """GTSM on both sides (RFC 5082); without it on ours the peer drops what we send."""
    link = begin(stand, plan_for(stand.racks[0], is_ttl_secured=True), spec={"ttlSecurity": 1})
    settle(stand, link)
    stand.peer("tor1", {k: v for k, v in stand.specs["tor1"].items() if k != "ttlSecurity"})
    _refused(stand, link.rack.namespace, "TCPMinTTLDrop")
    expect(stand.peer_row(link.address)["state"] != "Established", "it came up all the same")
    return ""


def _refused(stand: Stand, namespace: str, counter: str) -> None:
    before = stand.counter(namespace, counter)
    stand.wait(
        lambda: when(stand.counter(namespace, counter) < before + REFUSALS, f"{counter} stands"),
        f"{REFUSALS} attempts that the kernel refuses",
        deadline_s=60,
    )


def communities(stand: Stand) -> str:
    """Communities and large communities (RFC 1997, RFC 8092) both ways, and a filter on each."""
    marked, large, plain = far_blocks((4,), 3)
    stand.apply(
        resource(
            "BGPFilter",
            "marked",
            {
                "importV4": [
                    {"action": "Accept", "communities": {"values": [COMMUNITIES[0]]}},
                    {"action": "Accept", "communities": {"values": list(LARGE_COMMUNITIES)}},
                    {"action": "Reject"},
                ]
            },
        )
    )
    origins = [Origin(marked, COMMUNITIES), Origin(large, (), LARGE_COMMUNITIES), Origin(plain)]
    export = {"communities": list(OURS), "largeCommunities": list(OURS_LARGE)}
    spec = {"filters": ["marked"], "export": export}
    link = begin(stand, plan_for(stand.racks[0], origins=origins), spec=spec)
    wait_for_session(stand, link)
    stand.wait(
        lambda: stand.missing_in_kernel({p: {link.address} for p in (marked, large)}),
        "the routes with communities",
    )
    stand.wait(
        lambda: when(_reason(stand, str(plain)) != "filtered", f"{plain} is not filtered"),
        "the route without any to be rejected",
    )
    wait_for_our_blocks(stand, link)
    (ours,) = [r for r in link.daemon.routes() if r.prefix in own_blocks((4,))]
    expect(ours.communities == OURS, f"our communities arrive as {ours.communities}")
    expect(ours.large_communities == OURS_LARGE, f"large ones as {ours.large_communities}")
    return ""


def _reason(stand: Stand, prefix: str) -> str:
    rows = [r for r in stand.view("routes") if r["prefix"] == prefix and r["state"] == "rejected"]
    return str(rows[0]["reason"]) if rows else ""


def max_prefix(stand: Stand) -> str:
    """Ours: two are installed of the three that come. The peer's: it closes, and we say why."""
    three = far_blocks((4,), 3)
    spec = {"maxPrefixes": 2}
    plan = plan_for(stand.racks[0], origins=[Origin(prefix) for prefix in three])
    link = begin(stand, plan, spec=spec)
    wait_for_session(stand, link)
    stand.wait(
        lambda: when(set(stand.learned()) != set(three[:2]), f"learned: {list(stand.learned())}"),
        "two routes, and no third",
    )
    expect(_reason(stand, str(three[2])) == "max-prefix", f"{three[2]} is not said to be beyond")
    link.daemon.stop()
    link.daemon.configure(plan_for(stand.racks[0], origins=[], max_prefixes=1))
    link.daemon.start()
    wait_for_session(stand, link)
    wait_for_our_blocks(stand, link)
    # One after the other: FRR looks at the count before it adds, so it takes one more than it says.
    try:
        for spare in SPARE_BLOCKS:
            stand.apply(block(spare, NODE))
        stand.wait(lambda: _not_said(stand, link.address), "the peer's limit", deadline_s=60)
    finally:
        stand.delete("block", *map(block_name, SPARE_BLOCKS))
    return ""


def _not_said(stand: Stand, address: object) -> list[str]:
    row = next((r for r in stand.peers() if r["peer"] == str(address)), {})
    return when("maximum number of prefixes" not in str(row.get("reason")), str(row))
