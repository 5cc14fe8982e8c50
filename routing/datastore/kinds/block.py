"""Block: a range of addresses and the node that has claimed it. Pure."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from cni.ipam.block import Block, BlockState
from routing.datastore.fields import Fields, Malformed, parse_cidr, parse_name
from routing.datastore.snapshot import BlockResource, InvalidResource, Meta, Prefix

AFFINITY = "host:"


def block_name(cidr: Prefix) -> str:
    """The name of the Block of a CIDR: ``10-244-1-0-26``, ``fd44-10---122``.

    One-to-one with the CIDR, so that creating the resource is the lock, and a DNS-1123 name, which
    Kubernetes asks of every object and a CIDR is not.
    """
    return re.sub(r"[.:/]", "-", str(cidr))


def block_resource(block: Block, meta: Meta | None = None) -> BlockResource:
    """A block in the store's form; version and uid are the same in both."""
    if meta is None:
        meta = Meta(block_name(block.cidr), resource_version=block.resource_version, uid=block.uid)
    versioned = replace(block, resource_version=meta.resource_version, uid=meta.uid)
    return BlockResource(meta, versioned)


def read(meta: Meta, spec: Fields) -> BlockResource:
    """A Block from its document's spec. Raises InvalidResource."""
    cidr: Prefix = spec.parsed("cidr", spec.take("cidr"), parse_cidr)
    if meta.name != block_name(cidr):
        raise InvalidResource(
            "Block", meta.name, "metadata.name", meta.name, f"must be {block_name(cidr)}"
        )
    pool = spec.parsed("pool", spec.take("pool"), parse_name)
    affinity = spec.take("affinity")
    node = affinity.removeprefix(AFFINITY) if isinstance(affinity, str) else ""
    try:
        parse_name(node)
    except Malformed:
        node = ""
    if not node or affinity != AFFINITY + node:
        raise spec.error("affinity", affinity, "must be host:<node name>")
    state = spec.choice("state", [each.value for each in BlockState])
    return block_resource(Block(cidr, pool, node, BlockState(state)), meta)


def spec(resource: BlockResource) -> dict[str, Any]:
    """The spec of the document that ``read`` reads back."""
    block = resource.block
    return {
        "cidr": str(block.cidr),
        "pool": block.pool,
        "affinity": AFFINITY + block.node,
        "state": block.state.value,
    }
