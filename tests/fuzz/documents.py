"""Well-made documents of every kind, to be damaged."""

from __future__ import annotations

from typing import Any

_META = {"labels": {"rack": "a", "x.io/y": "b"}, "annotations": {"note": "any text at all"}}
_OURS: list[dict[str, Any]] = [
    {"apiVersion": "slash32.io/v1", "kind": kind, "metadata": {"name": name, **_META}, where: body}
    for kind, name, where, body in (
        ("IPPool", "pods", "spec", {
            "cidr": "10.244.0.0/16", "blockSize": 26, "disabled": False,
            "nodeSelector": "all()", "namespaceSelector": "has(team)",
            "disableBGPExport": False, "assignmentMode": "Automatic"}),
        ("IPPool", "six", "spec", {"cidr": "fd00::/64", "blockSize": 122}),
        ("Node", "node-1", "spec", {
            "addresses": ["192.0.2.11", "2001:db8::11"], "bgp": {"asNumber": 64601}}),
        ("Node", "node-2", "spec", {"addresses": ["192.0.2.12"]}),
        ("BGPPeer", "tor", "spec", {
            "peerIP": "192.0.2.1", "asNumber": 64512, "holdTime": "9s", "node": "node-1",
            "password": {"secretKeyRef": {"name": "bgp", "key": "tor"}}, "filters": ["f"],
            "maxPrefixes": 100, "maxPrefixAction": "StopInstalling", "sourceAddress": "None",
            "ttlSecurity": 1, "maxRestartTime": "120s", "numAllowedLocalASNumbers": 0,
            "export": {"med": 5, "communities": ["64512:1"], "prepend": 1}}),
        ("BGPPeer", "reflectors", "spec", {
            "nodeSelector": "!has(rr)", "peerSelector": "rack in {'a', \"b\"} && !has(x)"}),
        ("BGPConfiguration", "default", "spec", {
            "asNumber": 64512, "nodeToNodeMeshEnabled": True, "importAllow": ["0.0.0.0/0"],
            "listenPort": 179, "meshFilters": ["f"],
            "nodeMeshPassword": {"secretKeyRef": {"name": "bgp", "key": "mesh"}},
            "communities": [{"name": "c", "value": "64512:7"}],
            "prefixAdvertisements": [{"cidr": "10.244.0.0/16", "communities": ["c", "1:2:3"]}]}),
        ("BGPFilter", "f", "spec", {
            "importV4": [{"action": "Reject", "matchOperator": "In", "cidr": "10.0.0.0/8",
                          "prefixLength": {"min": 9, "max": 32}}],
            "exportV4": [{"action": "Accept", "communities": {"values": ["64512:1"]},
                          "operations": [{"addCommunity": {"value": "64512:9"}}]}],
            "exportV6": [], "importV6": [{"action": "Accept"}]}),
        ("Block", "10-244-1-0-26", "spec", {
            "cidr": "10.244.1.0/26", "pool": "pods", "affinity": "host:node-1",
            "state": "confirmed"}),
        ("NodeStatus", "node-1", "status", {
            "version": "0.1.0", "observedAt": "2026-01-31T12:00:00Z",
            "peers": [{"name": "tor", "address": "192.0.2.1", "asNumber": 64512,
                       "state": "Established", "since": "2026-01-31T12:00:00Z", "reason": "why",
                       "received": 1}],
            "routes": {"pod": 2}, "addresses": {"used": 2}, "conditions": [
                {"type": "Ready", "status": "True", "reason": "AsWished", "message": "all is well",
                 "observedGeneration": 1, "lastTransitionTime": "2026-01-31T12:00:00Z"}]}),
    )
]  # fmt: skip
DOCUMENTS: tuple[dict[str, Any], ...] = (
    *_OURS,
    {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "bgp", **_META},
        "stringData": {"tor": "s3cret", "mesh": "other"},
    },
)
"""One of each kind at least, with every sort of field."""
