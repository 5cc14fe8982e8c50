"""A cluster for tests of pictures: two routers, three nodes, and what they report."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from cni.ipam.block import Block, BlockState
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPPeerResource,
    IPPoolResource,
    Meta,
    NodeResource,
    Snapshot,
)
from routing.picture.model import Observed, Report

TORS = ("tor1", "tor2")


def address(node: int, tor: int) -> str:
    """Of a router on the link to a node."""
    return f"172.30.{tor - 1}.{2 * (node - 1)}"


def snapshot(nodes: int = 3, *, mesh: bool = False, owner: str = "") -> Snapshot:
    """Each node linked to both routers, one block each; the last block is ``owner``'s if given."""
    names = [f"node{number}" for number in range(1, nodes + 1)]
    blocks = [
        Block(ip_network(f"10.244.{number}.0/26"), "pods", name, BlockState.CONFIRMED)
        for number, name in enumerate(names, 1)
    ]
    if owner:
        blocks[-1] = replace(blocks[-1], node=owner)
    return Snapshot(
        pools=(IPPoolResource(Meta("pods"), ip_network("10.244.0.0/16"), 26),),
        nodes=tuple(
            NodeResource(Meta(name), (ip_address(f"192.0.2.{number}"),), asn=64600 + number)
            for number, name in enumerate(names, 1)
        ),
        peers=()
        if mesh
        else tuple(
            BGPPeerResource(
                Meta(f"{name}-{tor}", labels={"slash32.io/router": tor}),
                ip_address(address(number, tor_number)),
                64512,
                node=name,
            )
            for number, name in enumerate(names, 1)
            for tor_number, tor in enumerate(TORS, 1)
        ),
        blocks=tuple(blocks),
        bgp=BGPConfigurationResource(Meta("default"), mesh_enabled=mesh),
        in_sync=True,
    )


def observed(node: int, tor: int, **changes: object) -> Observed:
    """An Established session with a router."""
    seen = Observed(
        address(node, tor), "Established", f"node{node}-tor{tor}", 64512, 3, 3, 1, since_s=60.0
    )
    return replace(seen, **changes)  # type: ignore[arg-type]


def report(node: int, *sessions: Observed, **changes: object) -> Report:
    """A node whose sessions are these; without any, both with the routers."""
    seen = sessions or (observed(node, 1), observed(node, 2))
    whole = Report(seen, "its agent", pods=2, use={f"10.244.{node}.0/26": (2, 64)})
    return replace(whole, **changes)  # type: ignore[arg-type]


def reports(nodes: int = 3) -> dict[str, Report]:
    """Everything well."""
    return {f"node{number}": report(number) for number in range(1, nodes + 1)}


def mesh_reports(nodes: int) -> dict[str, Report]:
    """Every node Established with every other."""
    return {
        f"node{number}": Report(
            tuple(
                Observed(f"192.0.2.{other}", "Established", "", 64600 + other, 1, 1, 1)
                for other in range(1, nodes + 1)
                if other != number
            ),
            "its agent",
        )
        for number in range(1, nodes + 1)
    }
