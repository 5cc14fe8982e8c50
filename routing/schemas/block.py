"""The schema of Block. Pure."""

from __future__ import annotations

from cni.ipam.block import BlockState
from routing.datastore.fields import NAME_MAX_CHARACTERS, NAME_PATTERN
from routing.datastore.kinds.block import AFFINITY
from routing.schemas.parts import (
    IMMUTABLE,
    Schema,
    choice,
    cidr,
    mapping,
    name,
    rule,
    ruled,
    text,
)

SPEC: Schema = mapping(
    "The range, and who has it.",
    {
        "cidr": ruled(cidr("The range of addresses."), rule("self == oldSelf", IMMUTABLE)),
        "pool": ruled(name("The IPPool it was taken from."), rule("self == oldSelf", IMMUTABLE)),
        "affinity": ruled(
            text(
                "The node that has claimed it: host:<node name>.",
                at_most=len(AFFINITY) + NAME_MAX_CHARACTERS,
                pattern=f"{AFFINITY}{NAME_PATTERN}",
            ),
            rule("self == oldSelf", IMMUTABLE),
        ),
        "state": choice(
            "pending: claimed, not used yet. confirmed: addresses are given out and the block is "
            "announced. pendingDeletion: to be given back; nothing new is taken from it.",
            [each.value for each in BlockState],
        ),
    },
    required=["cidr", "pool", "affinity", "state"],
)

ROOT_RULES = (
    rule(
        "self.metadata.name == "
        "self.spec.cidr.replace('.', '-').replace(':', '-').replace('/', '-')",
        "the name must be that of the cidr, with '-' for each of . : and /: creating the object "
        "is how a node takes the block",
    ),
)
