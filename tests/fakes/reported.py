"""What a node reports and when, for tests of statuses and Events on an API."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from routing.datastore.snapshot import (
    Condition,
    ConditionStatus,
    IPPoolResource,
    Meta,
    NodeStatusResource,
    PeerReport,
)

POOL = IPPoolResource(Meta("four"), ip_network("10.0.0.0/24"), 26)
STATUS = NodeStatusResource(
    Meta("node-a"),
    version="0.1.0",
    observed_at="2026-11-26T10:00:00Z",
    peers=(PeerReport("tor", ip_address("192.0.2.254"), 64512, "Established", accepted=3),),
    routes={"pod": 2, "remote": 3},
    addresses={"used": 2, "free": 62},
    conditions=(Condition("Ready", ConditionStatus.TRUE, "Ready", "", 0, "2026-11-26T09:00:00Z"),),
)


class Clock:
    """Stands still until a test turns it. Seconds."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s
