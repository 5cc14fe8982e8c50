"""What an event of the kernel may mean for our routes. Pure. Links' events are fib.py's: one that
goes down is news only when it stays down."""

from __future__ import annotations

import sys
from collections.abc import Collection
from socket import AF_INET6

from cni import netlink as nl
from cni.netlink import Event
from routing.event_filter import RTPROT_KERNEL
from routing.next_hop_objects import RTM_DELNEXTHOP
from routing.routes import PROTOCOL, TABLE_MAIN
from routing.rtmessage import OUR_METRICS

METRICS_TOLD = tuple(
    nl.ATTRIBUTE.pack(8, nl.RTA_PRIORITY) + metric.to_bytes(4, sys.byteorder)
    for metric in OUR_METRICS
)
"""Ours, as they stand in every announcement of a route that has one."""


def disturbs(event: Event) -> bool:
    """Whether our routes may be others after ``event``: a link's go with it, unannounced, and so
    does one whose key another program takes over; that has its protocol and a metric of ours."""
    if event.kind not in (nl.RTM_NEWROUTE, nl.RTM_DELROUTE):
        return True
    is_ours = len(event.body) >= nl.RTMSG.size and event.body[5] == PROTOCOL
    return is_ours or any(metric in event.body for metric in METRICS_TOLD)


def reason_of(event: Event, own_ports: Collection[int]) -> str | None:
    """Why an event about an address, a nexthop or a route may concern us; None when it is our own
    doing (by the port of the socket that asked for it) or about something else."""
    if event.kind in (nl.RTM_NEWADDR, nl.RTM_DELADDR):
        # Link-local addresses decide nothing here, and every IPv6 pod link brings one.
        is_local = len(event.body) > 3 and event.body[3] == nl.RT_SCOPE_LINK
        return None if is_local else "address"
    if event.kind == RTM_DELNEXTHOP:
        # The kernel tells nobody of the IPv4 routes that go with it.
        return None if event.port_id in own_ports else "route"
    if event.kind not in (nl.RTM_NEWROUTE, nl.RTM_DELROUTE):
        return None
    if event.port_id in own_ports or len(event.body) < nl.RTMSG.size:
        return None
    fields = nl.RTMSG.unpack_from(event.body)
    family, length, table, protocol, flags = (fields[i] for i in (0, 1, 4, 5, 8))
    # The local table, and what the kernel itself adds, follow links and addresses; clones are path
    # MTU and redirect caches.
    if table != TABLE_MAIN or flags & nl.RTM_F_CLONED or protocol == RTPROT_KERNEL:
        return None
    if event.port_id == 0 and protocol == PROTOCOL and length == 128 and family == AF_INET6:
        # The kernel itself took a pod's route with its link; the link's own news tell of it.
        return None
    return "route"
