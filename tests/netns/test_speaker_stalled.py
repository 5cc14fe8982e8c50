"""A peer that reads nothing any more (zero window), with many routes for it, and the other peer.

Half a minute, so only as row L9 of the fault matrix (``make chaos``).
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from datetime import datetime
from ipaddress import ip_network
from itertools import pairwise

import pytest

from bgp.paths import Advertisement
from routing.delta import diff
from tests.fakes.bgp_world import RealSpeakers, Routers, eventually, is_established, why_not
from tests.netns.test_speaker_sessions import begin, inside

pytestmark = [
    pytest.mark.netns,
    pytest.mark.exabgp,
    pytest.mark.bird,
    pytest.mark.timeout(180),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.skipif("SLASH32_CHAOS" not in os.environ, reason="a row of `make chaos`"),
]

ROUTES = 20_000
HOLD_S = 9.0
_GOT = re.compile(r"^(\S+ \S+) <TRACE> node: Got (KEEPALIVE|UPDATE)", re.MULTILINE)


async def test_a_stalled_peer_with_20000_routes_delays_no_others_keepalives(
    routers: Routers, node: RealSpeakers
) -> None:
    """No silence of over half the hold time at the other, from the stall to well after its end."""
    stalled, sound = routers.peer(1), routers.peer(2)
    # A window of a few KiB, as a router that has run out of buffers has.
    inside(routers.namespace(1), "sysctl", "-qw", "net.ipv4.tcp_rmem=4096 8192 16384")
    await begin(routers, node, stalled, sound)
    for peer in (stalled, sound):
        await eventually(
            lambda peer=peer: is_established(node.speaker, peer.address),  # type: ignore[misc]
            what=f"a session with {peer.name}",
            deadline_s=30,
        )
    began, queued, pid = _now(), [0], routers.birds[1].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        blocks = [ip_network((0x0A800000 + number * 64, 26)) for number in range(ROUTES)]
        wanted = {(stalled.address, block): Advertisement(block) for block in blocks}
        announcing = asyncio.create_task(node.speaker.apply(diff(wanted, {})))

        def is_stuck() -> bool:
            text = inside(routers.node, "ss", "-Htn", "dst", str(stalled.address))
            queued.extend(int(line.split()[2]) for line in text.splitlines())
            return max(queued) > 0

        await eventually(is_stuck, what="octets that wait for the window", deadline_s=60)
        await asyncio.wait_for(announcing, 60)
        # Until the stalled session's hold time is over, and half as long after it.
        until_s = time.monotonic() + 1.5 * HOLD_S
        await eventually(
            lambda: is_stuck() and time.monotonic() >= until_s,
            what="the end",
            deadline_s=2 * HOLD_S,
        )
    finally:
        os.kill(pid, signal.SIGCONT)
    gap_s = longest_silence_s(routers, began)
    # The control: an ExaBGP that hangs for more than half the hold time is seen to be silent.
    frozen = _now()
    assert node.exabgp is not None
    os.kill(node.exabgp.pid, signal.SIGSTOP)
    try:
        until_s = time.monotonic() + HOLD_S / 2 + 1
        await eventually(lambda: time.monotonic() >= until_s, what="the end", deadline_s=HOLD_S)
    finally:
        os.kill(node.exabgp.pid, signal.SIGCONT)
    control_s = longest_silence_s(routers, frozen)
    sys.stdout.write(
        f"measured: longest silence at the other peer {gap_s:.2f} s, hold time {HOLD_S:.0f} s; "
        f"up to {max(queued)} octets waited for the window; control: {control_s:.2f} s while "
        "ExaBGP itself was frozen\n"
    )
    assert max(queued) > 10_000, "the control: the peer was not stalled"
    assert gap_s <= HOLD_S / 2
    assert control_s > HOLD_S / 2, "the control: a frozen ExaBGP was not seen to be silent"
    assert routers.birds[2].sessions_so_far("node") == 1


def longest_silence_s(routers: Routers, since: datetime) -> float:
    """The longest time without a message at router 2 from a moment until now."""
    moments = [datetime.fromisoformat(found[1]) for found in _GOT.finditer(routers.birds[2].log())]
    seen = [since, *(moment for moment in moments if moment >= since), _now()]
    return max((b - a).total_seconds() for a, b in pairwise(seen))


def _now() -> datetime:
    """In local time, as BIRD's log."""
    return datetime.now()  # noqa: DTZ005
