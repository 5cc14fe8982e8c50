"""The schema of IPPool. Pure."""

from __future__ import annotations

from routing.datastore.fields import RESERVED
from routing.datastore.kinds.pool import (
    ASSIGNMENT_MODES,
    BLOCK_SIZES,
    DEFAULT_BLOCK_SIZES,
    NO_ENCAPSULATION,
    NO_LOAD_BALANCER,
    NO_NAT,
    NO_WORKLOAD,
    USES,
    USES_MAX,
)
from routing.schemas.parts import (
    IMMUTABLE,
    Schema,
    choice,
    cidr,
    conditions,
    count,
    flag,
    integer,
    listed,
    mapping,
    only,
    rule,
    ruled,
    selector,
    text,
)


def _block_size(of: str) -> str:
    """CEL: the block size of a spec, as the reader has it where none is given."""
    length = f"cidr({of}.cidr).prefixLength()"

    def at_least(size: int) -> str:
        return f"({length} > {size} ? {length} : {size})"

    default = (
        f"(cidr({of}.cidr).ip().family() == 4 ? {at_least(DEFAULT_BLOCK_SIZES[4])} : "
        f"{at_least(DEFAULT_BLOCK_SIZES[6])})"
    )
    return f"(has({of}.blockSize) ? {of}.blockSize : {default})"


def _reserved_rules() -> list[Schema]:
    """No pool may overlap what hosts use otherwise; a rule for each range, so that it is named."""
    rules = []
    for reserved, purpose in RESERVED:
        if getattr(reserved.network_address, "ipv4_mapped", None) is not None:
            continue  # No network that isCIDR() takes lies there, and cidr() would not take it.
        overlaps = f"cidr('{reserved}').containsCIDR(self) || cidr(self).containsCIDR('{reserved}')"
        rules.append(
            rule(f"!isCIDR(self) || !({overlaps})", f"must not reach into {reserved} ({purpose})")
        )
    return rules


_LOW4, _HIGH4 = BLOCK_SIZES[4]
_LOW6, _HIGH6 = BLOCK_SIZES[6]

SPEC: Schema = ruled(
    mapping(
        "Which addresses pods may have, and which nodes may take them.",
        {
            "cidr": ruled(
                cidr(
                    "The range pods' addresses come from, such as 10.244.0.0/16. It cannot be "
                    "changed, and must not overlap another pool's: of two that do, no blocks are "
                    "taken from the younger."
                ),
                rule("self == oldSelf", IMMUTABLE),
                *_reserved_rules(),
            ),
            "blockSize": integer(
                "The prefix length of the blocks that nodes claim and announce: 20 to 32 (IPv4), "
                "116 to 128 (IPv6), and not shorter than the cidr's. It cannot be changed. "
                "Default: 26 (IPv4), 122 (IPv6), or the cidr's where that is longer.",
                low=_LOW4,
                high=_HIGH6,
            ),
            "disabled": flag(
                "Whether no new addresses are given out. Addresses in use stay.", default=False
            ),
            "nodeSelector": selector(
                "Which nodes claim blocks here, in Calico's selector language over Node labels.",
                default="all()",
            ),
            "namespaceSelector": selector(
                "Pods of which namespaces get addresses here, over Namespace labels.",
                default="all()",
            ),
            "assignmentMode": choice(
                "Automatic, or Manual: only for pods that name the pool in an annotation.",
                ASSIGNMENT_MODES,
                default="Automatic",
            ),
            "disableBGPExport": flag(
                "Whether the pool's blocks are kept from BGP peers.", default=False
            ),
            "allowedUses": ruled(
                listed(
                    "For what the addresses are. Only Workload means something here; Tunnel is "
                    "accepted, since Calico writes it into every pool.",
                    ruled(
                        text("Workload or Tunnel.", at_most=64),
                        rule("self != 'LoadBalancer'", NO_LOAD_BALANCER),
                        rule(
                            f"self in {[*USES, 'LoadBalancer']}",
                            f"must be one of {', '.join(USES)}",
                        ),
                    ),
                    at_most=USES_MAX,
                ),
                rule("self.size() == 0 || self.exists(use, use == 'Workload')", NO_WORKLOAD),
            ),
            "ipipMode": only(("Never",), NO_ENCAPSULATION),
            "vxlanMode": only(("Never",), NO_ENCAPSULATION),
            "natOutgoing": only((False,), NO_NAT),
        },
        required=["cidr"],
    ),
    rule(
        "!has(self.blockSize) || !isCIDR(self.cidr) || "
        f"(cidr(self.cidr).ip().family() == 4 ? self.blockSize <= {_HIGH4} : "
        f"self.blockSize >= {_LOW6})",
        f"blockSize must be {_LOW4} to {_HIGH4} for IPv4, {_LOW6} to {_HIGH6} for IPv6",
    ),
    rule(
        "!has(self.blockSize) || !isCIDR(self.cidr) || "
        "self.blockSize >= cidr(self.cidr).prefixLength()",
        "a block must not be larger than the pool's cidr",
    ),
    rule(
        "!isCIDR(self.cidr) || !isCIDR(oldSelf.cidr) || "
        f"{_block_size('self')} == {_block_size('oldSelf')}",
        f"blockSize {IMMUTABLE}",
    ),
)

STATUS: Schema = mapping(
    "What the controller found.",
    {
        "blockSize": count("The block size in force, also where the spec leaves it to us."),
        "blocks": count("Blocks that nodes have claimed."),
        "conditions": conditions(),
    },
)
