"""BGPPeer: which routers which nodes speak to. Field names and meanings as in Calico v3. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from routing.datastore.fields import (
    Fields,
    parse_address,
    parse_asn,
    parse_duration_s,
    parse_endpoint,
    parse_name,
    parse_selector,
)
from routing.datastore.kinds.attributes import attributes_document, read_attributes
from routing.datastore.kinds.secret import password_ref_document, read_password_ref
from routing.datastore.snapshot import Address, BGPPeerResource, LimitAction, Meta

HOLD_TIME_MIN_S = 3
"""RFC 4271 section 4.2 allows 0 or at least 3."""
HOLD_TIME_MAX_S = 65535
RESTART_TIME_MAX_S = 4095
"""12 bits (RFC 4724 section 3)."""
FILTERS_MAX = 32
HOPS_MAX = 254
PREFIXES_MAX = 10_000_000
LOCAL_ASNS_MAX = 255
USE_NODE_IP = "UseNodeIP"
SOURCE_NONE = "None"
DEFAULT_PORT = 179

NEXT_HOP_SELF = "slash32 announces its own addresses alone, with the node as their next hop"
"""Said of every field that would ask for another next hop."""

REFUSED = {
    "reachableBy": (
        "slash32 writes no routes to peers; a router that is not on the node's link needs the "
        "node's own route, and multihopTTL or ttlSecurity"
    ),
    "localWorkloadSelector": "slash32 does not speak BGP with pods",
}
ONLY: dict[str, tuple[tuple[object, ...], str]] = {
    "keepOriginalNextHop": ((False,), f"must be false: {NEXT_HOP_SELF}"),
    "nextHopMode": (("Auto", "Self"), f"must be Auto or Self: {NEXT_HOP_SELF}"),
    "reversePeering": (
        ("Auto",),
        "must be Auto: a node that peerSelector selects speaks back of its own accord",
    ),
    "failureDetectionMode": (("None",), "must be None: slash32 has no BFD; see holdTime"),
    "restartMode": (
        ("GracefulRestart",),
        "must be GracefulRestart: slash32 does not do long-lived graceful restart",
    ),
    "birdGatewayMode": (
        ("Recursive",),
        "must be Recursive: slash32 asks the kernel for the way to a next hop",
    ),
}
"""Fields of Calico's that are accepted where they say what slash32 does anyway."""


@dataclass(frozen=True, slots=True)
class _Remote:
    """Whom a peer resource means."""

    address: Address | None
    port: int
    asn: int | None
    selector: str | None


def read(meta: Meta, spec: Fields) -> BGPPeerResource:
    """A BGPPeer from its document's spec. Raises InvalidResource."""
    remote = _remote(spec)
    node = spec.optional("node", parse_name)
    selector = spec.optional("nodeSelector", parse_selector)
    if node is not None and selector is not None:
        raise spec.error("nodeSelector", selector, "node and nodeSelector exclude each other")
    source, is_source_free = _source(spec, remote)
    ttl_hops = spec.optional_integer("ttlSecurity", low=1, high=HOPS_MAX)
    multihop = spec.optional_integer("multihopTTL", low=1, high=255)
    if ttl_hops is not None and multihop is not None:
        raise spec.error("multihopTTL", multihop, "ttlSecurity and multihopTTL exclude each other")
    for key, why in REFUSED.items():
        spec.never(key, why)
    for key, (allowed, why) in ONLY.items():
        spec.only(key, allowed, why)
    max_prefixes, action = _limit(spec)
    return BGPPeerResource(
        meta=meta,
        peer_ip=remote.address,
        asn=remote.asn,
        port=remote.port,
        node=node,
        node_selector=selector,
        peer_selector=remote.selector,
        source_address=source,
        is_source_free=is_source_free,
        local_asn=spec.optional("localASNumber", parse_asn),
        hold_time_s=_hold_time_s(spec),
        max_restart_time_s=read_restart_time_s(spec, "maxRestartTime"),
        password=read_password_ref(spec, "password"),
        ttl_security_hops=ttl_hops,
        multihop_ttl=multihop,
        allowed_local_asns=spec.integer(
            "numAllowedLocalASNumbers", default=0, low=0, high=LOCAL_ASNS_MAX
        ),
        is_passive=spec.flag("passive", default=False),
        filters=spec.distinct("filters", parse_name, at_most=FILTERS_MAX),
        max_prefixes=max_prefixes,
        limit_action=action,
        export=read_attributes(spec.section("export")),
        extended_next_hop=spec.flag("extendedNextHop", default=False),
    )


def _remote(spec: Fields) -> _Remote:
    endpoint = spec.optional("peerIP", parse_endpoint)
    selector = spec.optional("peerSelector", parse_selector)
    asn = spec.optional("asNumber", parse_asn)
    if selector is not None:
        if endpoint is not None:
            raise spec.error("peerSelector", selector, "peerIP and peerSelector exclude each other")
        if asn is not None:
            raise spec.error(
                "asNumber", asn, "must be absent beside peerSelector: each node has its own"
            )
        return _Remote(None, DEFAULT_PORT, None, selector)
    if endpoint is None:
        raise spec.error("peerIP", None, "is required and was not given, nor was peerSelector")
    if asn is None:
        raise spec.error("asNumber", None, "is required beside peerIP and was not given")
    return _Remote(endpoint[0], endpoint[1], asn, None)


def _source(spec: Fields, remote: _Remote) -> tuple[Address | None, bool]:
    """(the address asked for, whether the kernel may choose)."""
    value = spec.take("sourceAddress", USE_NODE_IP)
    if value == USE_NODE_IP:
        return None, False
    if value == SOURCE_NONE:
        return None, True
    source: Address = spec.parsed("sourceAddress", value, parse_address)
    if remote.address is not None and source.version != remote.address.version:
        raise spec.error("sourceAddress", str(source), "must be of the family of peerIP")
    return source, False


def read_restart_time_s(spec: Fields, key: str) -> int:
    """How long routes outlive a restart (RFC 4724); 120 s when absent. Raises InvalidResource."""
    restart_s: int = spec.parsed(key, spec.take(key, "120s"), parse_duration_s)
    if restart_s > RESTART_TIME_MAX_S:
        raise spec.error(key, f"{restart_s}s", f"must be at most {RESTART_TIME_MAX_S}s (RFC 4724)")
    return restart_s


def _hold_time_s(spec: Fields) -> int:
    """The hold time, from holdTime, from keepaliveTime (a third of it), or 9 s.

    ExaBGP sends keepalives at a third of the negotiated hold time and takes no other figure
    (RFC 4271 section 4.4 recommends the third), so the two fields say one thing.
    """
    has_keepalive = spec.has("keepaliveTime")
    keepalive_s = spec.parsed("keepaliveTime", spec.take("keepaliveTime", "3s"), parse_duration_s)
    default = f"{3 * keepalive_s}s"
    hold_s: int = spec.parsed("holdTime", spec.take("holdTime", default), parse_duration_s)
    if hold_s == 0:
        raise spec.error(
            "holdTime", "0s", "must not be 0: a router that died would never be noticed"
        )
    if not HOLD_TIME_MIN_S <= hold_s <= HOLD_TIME_MAX_S:
        raise spec.error(
            "holdTime",
            f"{hold_s}s",
            f"must be from {HOLD_TIME_MIN_S}s to {HOLD_TIME_MAX_S}s (RFC 4271)",
        )
    if has_keepalive and keepalive_s * 3 != hold_s:
        raise spec.error(
            "keepaliveTime", f"{keepalive_s}s", f"must be a third of holdTime ({hold_s}s)"
        )
    return hold_s


def _limit(spec: Fields) -> tuple[int | None, LimitAction]:
    most = spec.optional_integer("maxPrefixes", low=1, high=PREFIXES_MAX)
    actions = [each.value for each in LimitAction]
    default = LimitAction.STOP_INSTALLING.value
    action = LimitAction(spec.choice("maxPrefixAction", actions, default=default))
    if most is None and spec.has("maxPrefixAction"):
        raise spec.error("maxPrefixAction", action.value, "needs maxPrefixes, which was not given")
    return most, action


def endpoint_text(address: Address, port: int) -> str:
    """An address and a port as peerIP has them, in the shortest form."""
    if port == DEFAULT_PORT:
        return str(address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def spec(peer: BGPPeerResource) -> dict[str, Any]:
    """The spec of the document that ``read`` reads back."""
    source = None if peer.source_address is None else str(peer.source_address)
    limits = None if peer.max_prefixes is None else peer.limit_action.value
    document: dict[str, Any] = {
        "peerIP": None if peer.peer_ip is None else endpoint_text(peer.peer_ip, peer.port),
        "peerSelector": peer.peer_selector,
        "asNumber": peer.asn,
        "holdTime": f"{peer.hold_time_s}s",
        "maxRestartTime": f"{peer.max_restart_time_s}s",
        "node": peer.node,
        "nodeSelector": peer.node_selector,
        "sourceAddress": SOURCE_NONE if peer.is_source_free else source,
        "localASNumber": peer.local_asn,
        "password": None if peer.password is None else password_ref_document(peer.password),
        "ttlSecurity": peer.ttl_security_hops,
        "multihopTTL": peer.multihop_ttl,
        "numAllowedLocalASNumbers": peer.allowed_local_asns or None,
        "passive": peer.is_passive or None,
        "filters": list(peer.filters) or None,
        "maxPrefixes": peer.max_prefixes,
        "maxPrefixAction": limits,
        "export": attributes_document(peer.export) or None,
        "extendedNextHop": peer.extended_next_hop or None,
    }
    return {key: value for key, value in document.items() if value is not None}
