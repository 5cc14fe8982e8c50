"""BGPConfiguration ``default``: what all nodes' BGP has in common. As in Calico v3. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from routing.datastore.fields import (
    Fields,
    Malformed,
    parse_asn,
    parse_cidr,
    parse_duration_s,
    parse_name,
)
from routing.datastore.kinds.attributes import (
    COMMUNITIES_MAX,
    parse_any_community,
    parted,
)
from routing.datastore.kinds.peer import FILTERS_MAX, read_restart_time_s
from routing.datastore.kinds.secret import password_ref_document, read_password_ref
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    InvalidResource,
    Meta,
    PrefixAdvertisement,
)

NAME = "default"
DEFAULT_ASN = 64512
KEEP_LAST_PEERS_S = 600
KEEP_LAST_PEERS_MAX_S = 86400
IMPORT_ALLOW_MAX = 256
NAMED_COMMUNITIES_MAX = 500
ADVERTISEMENTS_MAX = 500
INTERFACES_MAX = 64
COMMUNITY_NAME_PATTERN = "[a-zA-Z0-9_.-]{1,128}"

NO_SERVICES = (
    "must be empty: slash32 announces pods' addresses; kube-proxy or another program announces "
    "Services'"
)
REFUSED = {
    "localWorkloadPeeringIPV4": "slash32 does not speak BGP with pods",
    "localWorkloadPeeringIPV6": "slash32 does not speak BGP with pods",
    "ipv4NormalRoutePriority": "slash32's routes have one metric of their own, 1032",
    "ipv6NormalRoutePriority": "slash32's routes have one metric of their own, 1032",
    "ipv4ElevatedRoutePriority": "slash32's routes have one metric of their own, 1032",
    "ipv6ElevatedRoutePriority": "slash32's routes have one metric of their own, 1032",
}
ONLY: dict[str, tuple[tuple[object, ...], str]] = {
    "logSeverityScreen": (
        ("Info",),
        "must be Info: how much the agent logs is said on its command line",
    ),
    "bindMode": (
        ("NodeIP",),
        "must be NodeIP: slash32 listens on the node's own addresses alone, never on all",
    ),
    "programClusterRoutes": (
        ("Enabled",),
        "must be Enabled: slash32 is what writes the cluster's routes",
    ),
    "serviceLoadBalancerAggregation": (("Enabled",), "must be Enabled: there is nothing to split"),
}
"""Fields of Calico's that are accepted where they say what slash32 does anyway."""
SERVICES = ("serviceClusterIPs", "serviceExternalIPs", "serviceLoadBalancerIPs")

_COMMUNITY_NAME = re.compile(COMMUNITY_NAME_PATTERN)


def read(meta: Meta, spec: Fields) -> BGPConfigurationResource:
    """The BGPConfiguration from its document's spec. Raises InvalidResource."""
    if meta.name != NAME:
        raise InvalidResource(
            "BGPConfiguration", meta.name, "metadata.name", meta.name, f"must be {NAME}"
        )
    mesh_enabled = spec.flag("nodeToNodeMeshEnabled", default=True)
    mesh_password = read_password_ref(spec, "nodeMeshPassword")
    mesh_restart_s = read_restart_time_s(spec, "nodeMeshMaxRestartTime")
    mesh_filters = spec.distinct("meshFilters", parse_name, at_most=FILTERS_MAX)
    for key in SERVICES:
        if spec.items(key, at_most=1000):
            raise spec.error(key, spec.values[key], NO_SERVICES)
    # slash32 announces no interface's networks, so that all of them are ignored already.
    for key, item in spec.items("ignoredInterfaces", at_most=INTERFACES_MAX):
        if not isinstance(item, str):
            raise spec.error(key, item, "must be text")
    for key, why in REFUSED.items():
        spec.never(key, why)
    for key, (allowed, why) in ONLY.items():
        spec.only(key, allowed, why)
    return BGPConfigurationResource(
        meta=meta,
        asn=spec.parsed("asNumber", spec.take("asNumber", DEFAULT_ASN), parse_asn),
        listen_port=spec.integer("listenPort", default=179, low=1, high=65535),
        import_allow=spec.distinct("importAllow", parse_cidr, at_most=IMPORT_ALLOW_MAX),
        mesh_enabled=mesh_enabled,
        mesh_password=mesh_password,
        mesh_max_restart_time_s=mesh_restart_s,
        mesh_filters=mesh_filters,
        prefix_advertisements=_advertisements(spec, _named_communities(spec)),
        export_pod_routes=spec.flag("exportPodRoutes", default=False),
        aggregate=spec.flag("aggregate", default=True),
        keep_last_peers_s=_keep_last_peers_s(spec),
    )


def _keep_last_peers_s(spec: Fields) -> int:
    key = "keepLastPeersFor"
    kept_s: int = spec.parsed(key, spec.take(key, f"{KEEP_LAST_PEERS_S}s"), parse_duration_s)
    if kept_s > KEEP_LAST_PEERS_MAX_S:
        raise spec.error(key, f"{kept_s}s", f"must be at most {KEEP_LAST_PEERS_MAX_S}s")
    return kept_s


def _named_communities(spec: Fields) -> Mapping[str, str]:
    named: dict[str, str] = {}
    for entry in spec.sections("communities", at_most=NAMED_COMMUNITIES_MAX):
        name = entry.parsed("name", entry.take("name"), _parse_community_name)
        if name in named:
            raise entry.error("name", name, "is given twice")
        named[name] = entry.parsed("value", entry.take("value"), parse_any_community)
        entry.done()
    return named


def _parse_community_name(value: object) -> str:
    if isinstance(value, str) and _COMMUNITY_NAME.fullmatch(value):
        return value
    raise Malformed("must be a name: letters, digits, hyphens, dots or _, at most 128")


def _advertisements(spec: Fields, named: Mapping[str, str]) -> tuple[PrefixAdvertisement, ...]:
    def parse(value: object) -> str:
        if isinstance(value, str) and value in named:
            return named[value]
        try:
            return parse_any_community(value)
        except Malformed as error:
            raise Malformed(f"{error}, or a name from spec.communities") from None

    found: list[PrefixAdvertisement] = []
    for entry in spec.sections("prefixAdvertisements", at_most=ADVERTISEMENTS_MAX):
        cidr = entry.parsed("cidr", entry.take("cidr"), parse_cidr)
        if any(cidr == each.cidr for each in found):
            raise entry.error("cidr", str(cidr), "is given twice")
        communities = entry.distinct("communities", parse, at_most=COMMUNITIES_MAX)
        if not communities:
            raise entry.error("communities", [], "must have at least one community")
        entry.done()
        found.append(PrefixAdvertisement(cidr, *parted(communities)))
    return tuple(found)


def spec(resource: BGPConfigurationResource) -> dict[str, Any]:
    """The spec of the document that ``read`` reads back; communities by value, not by name."""
    document: dict[str, Any] = {
        "asNumber": resource.asn,
        "listenPort": resource.listen_port,
        "nodeToNodeMeshEnabled": resource.mesh_enabled,
        "importAllow": [str(each) for each in resource.import_allow],
    }
    if resource.mesh_password is not None:
        document["nodeMeshPassword"] = password_ref_document(resource.mesh_password)
    if resource.mesh_max_restart_time_s != 120:
        document["nodeMeshMaxRestartTime"] = f"{resource.mesh_max_restart_time_s}s"
    if resource.mesh_filters:
        document["meshFilters"] = list(resource.mesh_filters)
    if resource.prefix_advertisements:
        document["prefixAdvertisements"] = [
            {
                "cidr": str(each.cidr),
                "communities": [*each.communities, *each.large_communities],
            }
            for each in resource.prefix_advertisements
        ]
    if resource.export_pod_routes:
        document["exportPodRoutes"] = True
    if not resource.aggregate:
        document["aggregate"] = False
    if resource.keep_last_peers_s != KEEP_LAST_PEERS_S:
        document["keepLastPeersFor"] = f"{resource.keep_last_peers_s}s"
    return document
