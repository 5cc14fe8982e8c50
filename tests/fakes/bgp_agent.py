"""An agent in a process of its own, to be stopped and killed: a Speaker and the least of a hub.

    python tests/fakes/bgp_agent.py <plan.json>

The plan has socket, conf, report (a file), peers (Peer's fields, addresses as strings) and announce
(prefixes). It announces them to every peer, sends End-of-RIB at each session's start, and writes
what it believes as one line of JSON to the report file whenever that changes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

from bgp.paths import Advertisement, Peer, SessionState
from bgp.speaker import BgpFailure, Speaker
from routing.delta import diff


def peer_from(words: dict[str, Any]) -> Peer:
    """A Peer from JSON."""
    return Peer(
        name=words["name"],
        address=ip_address(words["address"]),
        remote_asn=words["remote_asn"],
        local_asn=words["local_asn"],
        local_address=ip_address(words["local_address"]),
        router_id=IPv4Address(words["router_id"]),
        hold_time_s=words["hold_time_s"],
        graceful_restart_s=words["graceful_restart_s"],
    )


def write(path: str, text: str) -> None:
    """At once: a reader sees the old report or the new one."""
    Path(f"{path}.new").write_text(text)
    Path(f"{path}.new").rename(path)


async def run(plan: dict[str, Any]) -> None:
    """Until killed."""
    speaker = Speaker(
        socket_path=plan["socket"],
        conf_path=plan["conf"],
        clock=time.monotonic,
        on_change=lambda _reason: None,
    )
    peers = {peer.address: peer for peer in map(peer_from, plan["peers"])}
    wanted = {
        (address, prefix): Advertisement(prefix)
        for address in peers
        for prefix in map(ip_network, plan["announce"])
    }
    told: dict[object, float] = {}
    last = ""
    await speaker.start()
    await speaker.set_peers(peers)
    while True:
        changes = 0
        if speaker.is_connected:
            delta = diff(wanted, await speaker.adj_rib_out())
            changes = len(delta)
            await speaker.apply(delta)
            for address, status in speaker.sessions().items():
                is_new = told.get(address) != status.since_s
                if status.state is SessionState.ESTABLISHED and is_new:
                    try:
                        for family in peers[address].families:
                            await speaker.send_end_of_rib(address, family)
                        told[address] = status.since_s
                    except BgpFailure:
                        continue
        report = json.dumps(
            {
                "pid": os.getpid(),
                "connected": speaker.is_connected,
                "changed": changes,
                "paths": len(speaker.paths()),
                "complete": [str(a) for a in peers if speaker.is_complete(a)],
                "up": [str(a) for a, s in speaker.sessions().items() if s.state.value[0] == "E"],
            }
        )
        if report != last:
            write(plan["report"], report)
            last = report
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(run(json.loads(Path(sys.argv[1]).read_text())))
