"""Node: what the embedded store knows of a node; under Kubernetes the v1 Node says it. Pure."""

from __future__ import annotations

from typing import Any

from routing.datastore.fields import Fields, parse_address, parse_asn
from routing.datastore.snapshot import Meta, NodeResource


def read(meta: Meta, spec: Fields) -> NodeResource:
    """A Node from its document's spec. Raises InvalidResource."""
    addresses = tuple(
        spec.parsed(key, value, parse_address) for key, value in spec.items("addresses", at_most=2)
    )
    if len({address.version for address in addresses}) < len(addresses):
        raise spec.error(
            "addresses", [str(a) for a in addresses], "must have at most one of each family"
        )
    for address in addresses:
        if address.is_loopback:
            raise spec.error("addresses", str(address), "must not be a loopback address")
    bgp = spec.section("bgp")
    asn = bgp.optional("asNumber", parse_asn)
    is_drained = bgp.flag("drained", default=False)
    bgp.done()
    in_order = tuple(sorted(addresses, key=lambda a: a.version))
    return NodeResource(meta, in_order, asn, is_drained)


def spec(node: NodeResource) -> dict[str, Any]:
    """The spec of the document that ``read`` reads back."""
    document: dict[str, Any] = {"addresses": [str(each) for each in node.addresses]}
    bgp: dict[str, Any] = {}
    if node.asn is not None:
        bgp["asNumber"] = node.asn
    if node.is_drained:
        bgp["drained"] = True
    return document | {"bgp": bgp} if bgp else document
