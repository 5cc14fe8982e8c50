"""Sessions and routes: each question is asked of a stand with one kind of daemon.

A case configures the daemon, applies BGPPeers and waits, with deadlines, for what must become true
on both sides. It returns the figure for its cell, or an empty text. Whatever is not as it must be
is a LabFailure; nothing in here knows which daemon it talks to.
"""

from __future__ import annotations

import time

from lab.interop.model import Origin
from lab.interop.pairing import (
    Families,
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
from lab.interop.stand import NODE, NODE_ASN, Stand, cluster

HOLD_TIME_S = 9
HOLD_MARGIN_S = 2.0
"""For the scheduler of a loaded machine, and for the poll that sees it."""
BIG_NODE_ASN = 4200000001
BIG_TOR_ASN = 4200000002
SHUTDOWN_TEXT = "maintenance at rack seven until noon"


def _exchange(stand: Stand, families: Families, version: int) -> str:
    begun_s = time.monotonic()
    link = begin(stand, plan_for(stand.racks[0], families=families, version=version))
    settle(stand, link)
    took_s = time.monotonic() - begun_s
    by_prefix = {route.prefix: route for route in link.daemon.routes()}
    for prefix in own_blocks(families):
        route, hop = by_prefix[prefix], link.rack.node_end(prefix.version)
        expect(route.next_hop == hop, f"next hop of {prefix} is {route.next_hop}, not {hop}")
        expect(route.as_path == (NODE_ASN,), f"AS path of {prefix} is {route.as_path}")
    extra = set(by_prefix) - set(own_blocks(families))
    expect(not extra, f"also announced: {', '.join(map(str, extra))}")
    more = Origin(far_blocks(families, 2)[-1])
    link.daemon.announce(more)
    hop = link.rack.of_family(more.prefix.version)
    stand.wait(lambda: stand.missing_in_kernel({more.prefix: {hop}}), "a later route")
    link.daemon.withdraw(more)
    stand.wait(
        lambda: [f"{more.prefix} is still there"] if more.prefix in stand.learned() else [],
        "the withdrawal",
    )
    return f"{took_s:.1f} s"


def ipv4(stand: Stand) -> str:
    """IPv4 over a session over IPv4; the figure: from nothing to routes on both sides."""
    return _exchange(stand, (4,), 4)


def ipv6(stand: Stand) -> str:
    """IPv6 over a session over IPv6."""
    return _exchange(stand, (6,), 6)


def both(stand: Stand) -> str:
    """Both families over one session over IPv4, each with a next hop of its own family."""
    return _exchange(stand, (4, 6), 4)


def ecmp(stand: Stand) -> str:
    """Two routers announce one prefix: one route over both, and over one when the other goes.

    It says so (Cease): a router that dies without a word has graceful restart on its side.
    """
    links = [begin(stand, plan_for(stand.racks[n]), number=n) for n in (0, 1)]
    for link in links:
        wait_for_session(stand, link)
    (prefix,) = far_blocks((4,))
    stand.wait(
        lambda: stand.missing_in_kernel({prefix: {link.address for link in links}}),
        "one route over both routers",
    )
    for link in links:
        wait_for_our_blocks(stand, link)
    begun_s = time.monotonic()
    links[1].daemon.shut_down_session("maintenance")
    stand.wait(
        lambda: stand.missing_in_kernel({prefix: {links[0].address}}), "the other router alone"
    )
    return f"{time.monotonic() - begun_s:.1f} s"


def four_byte_asn(stand: Stand) -> str:
    """Both sides' ASNs beyond 65535 (RFC 6793), whole in both AS paths."""
    stand.apply(*(d for d in cluster(BIG_NODE_ASN) if d["metadata"]["name"] == NODE))
    try:
        plan = plan_for(stand.racks[0], asn=BIG_TOR_ASN, node_asn=BIG_NODE_ASN)
        link = begin(stand, plan)
        settle(stand, link)
        (theirs,) = {route.as_path for route in link.daemon.routes()}
        expect(theirs == (BIG_NODE_ASN,), f"their AS path: {theirs}")
        ours = [
            r["as_path"] for r in stand.view("routes") if r["prefix"] == str(far_blocks((4,))[0])
        ]
        expect(ours == [[BIG_TOR_ASN]], f"our AS path: {ours}")
    finally:
        stand.apply(*(d for d in cluster() if d["metadata"]["name"] == NODE))
    return ""


def hold_timer(stand: Stand) -> str:
    """The peer freezes (SIGSTOP): noticed within the hold time, and it comes back."""
    link = begin(stand, plan_for(stand.racks[0], hold_time_s=HOLD_TIME_S))
    settle(stand, link)
    link.daemon.freeze()
    begun_s = time.monotonic()
    stand.wait(
        lambda: when(stand.peer_row(link.address)["state"] == "Established", "still Established"),
        "the hold timer",
        deadline_s=HOLD_TIME_S + HOLD_MARGIN_S,
    )
    took_s = time.monotonic() - begun_s
    reason = str(stand.peer_row(link.address)["reason"])
    expect("hold" in reason.lower(), f"the CLI's reason does not name the hold timer: {reason!r}")
    link.daemon.thaw()
    settle(stand, link)
    return f"{took_s:.1f} s of {HOLD_TIME_S}"


def gr_restarter(stand: Stand) -> str:
    """Our ExaBGP is killed: the peer keeps our routes until we are back (RFC 4724).

    The figure is how long the session was away.
    """
    link = begin(stand, plan_for(stand.racks[0]))
    settle(stand, link)
    begun_s = time.monotonic()
    stand.kill_exabgp()
    gone: list[str] = []

    def back() -> list[str]:
        gone.extend(stand.missing_at_peer(link.daemon, own_blocks((4,))))
        row = stand.peer_row(link.address)
        return when(row.get("state") != "Established" or row["flaps"] == 0, str(row))

    stand.wait(back, "the session after ExaBGP's death", deadline_s=60)
    took_s = time.monotonic() - begun_s
    # Until the peer has had our End-of-RIB: only that decides what it throws away.
    settled_s = time.monotonic() + 2.0

    def watched() -> list[str]:
        gone.extend(stand.missing_at_peer(link.daemon, own_blocks((4,))))
        return when(time.monotonic() < settled_s, "watching")

    stand.wait(watched, "our routes after End-of-RIB")
    expect(not gone, f"the peer dropped our route: {len(gone)} looks without it")
    settle(stand, link)
    return f"{took_s:.1f} s away"


def gr_helper(stand: Stand) -> str:
    """The peer is killed and restarted: we keep its routes until its End-of-RIB, and no longer."""
    kept, dropped = (Origin(prefix) for prefix in far_blocks((4,), 2))
    plan = plan_for(stand.racks[0], origins=[kept, dropped])
    link = begin(stand, plan)
    settle(stand, link)
    hop = {link.address}
    begun_s = time.monotonic()
    link.daemon.kill()
    gone: list[str] = []

    def away() -> list[str]:
        gone.extend(stand.missing_in_kernel({kept.prefix: hop, dropped.prefix: hop}))
        return when(stand.peer_row(link.address)["state"] == "Established", "still Established")

    stand.wait(away, "the loss of the session")
    # Over a second and more without a session the routes must stay.
    until_s = time.monotonic() + 1.5
    stand.wait(lambda: [*away(), *when(time.monotonic() < until_s, "watching")], "staleness")
    expect(not gone, f"{gone[0] if gone else ''} while the peer restarts")
    link.daemon.configure(plan_for(stand.racks[0], origins=[kept]))
    link.daemon.start(is_restart=True)

    def swept() -> list[str]:
        gone.extend(stand.missing_in_kernel({kept.prefix: hop}))
        row = stand.peer_row(link.address)
        return [
            *when(row["state"] != "Established", str(row)),
            *when(dropped.prefix in stand.learned(), f"{dropped.prefix} is still there"),
        ]

    stand.wait(swept, "the sweep at End-of-RIB", deadline_s=60)
    expect(not gone, f"{gone[0] if gone else ''} although it was announced before and after")
    return f"{time.monotonic() - begun_s:.1f} s"


def route_refresh(stand: Stand) -> str:
    """ROUTE-REFRESH both ways (RFC 2918): asked for, everything is sent again, nothing flaps."""
    link = begin(stand, plan_for(stand.racks[0]))
    settle(stand, link)
    before = link.daemon.session().updates_received
    link.daemon.refresh()
    stand.wait(
        lambda: when(link.daemon.session().updates_received <= before, "no UPDATE again"),
        "our answer to ROUTE-REFRESH",
    )
    flaps = stand.peer_row(link.address)["flaps"]
    expect(flaps == 0, f"the session flapped {flaps} times")
    settle(stand, link)
    return ""


def shutdown(stand: Stand) -> str:
    """Administrative shutdown with a text (RFC 9003): the text is in `slash32 peers`."""
    link = begin(stand, plan_for(stand.racks[0]))
    settle(stand, link)
    link.daemon.shut_down_session(SHUTDOWN_TEXT)
    stand.wait(
        lambda: when(stand.peer_row(link.address)["state"] == "Established", "still Established"),
        "the shutdown",
    )
    stand.wait(lambda: [str(p) for p in stand.learned()], "their routes to go")
    table = stand.slash32("peers", "--run-dir", str(stand.run_dir), ok=(0, 1))
    expect(SHUTDOWN_TEXT in table, f"the text is not in `slash32 peers`: {table}")
    return ""
