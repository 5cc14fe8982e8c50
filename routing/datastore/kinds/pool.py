"""IPPool: where pods' addresses come from. Field names and meanings as in Calico v3. Pure."""

from __future__ import annotations

from typing import Any

from cni.ipam.pool import DEFAULT_BLOCK_SIZE_V4, DEFAULT_BLOCK_SIZE_V6
from routing.datastore.fields import Fields, host_range, parse_cidr, parse_selector
from routing.datastore.snapshot import IPPoolResource, Meta, Prefix

BLOCK_SIZES = {4: (20, 32), 6: (116, 128)}
"""Prefix lengths a block may have, by family: at most 4096 addresses, as in Calico."""
DEFAULT_BLOCK_SIZES = {4: DEFAULT_BLOCK_SIZE_V4, 6: DEFAULT_BLOCK_SIZE_V6}
ASSIGNMENT_MODES = ("Automatic", "Manual")
USES = ("Workload", "Tunnel")
"""allowedUses that may be said. Tunnel says nothing here, and Calico writes it into every pool."""
USES_MAX = 10

NO_ENCAPSULATION = "must be Never: slash32 routes pods' packets as they are, unencapsulated"
NO_NAT = "must be false: slash32 translates no addresses"
NO_LOAD_BALANCER = "slash32 gives addresses to pods alone; Services' are another program's to give"
NO_WORKLOAD = "must have Workload: slash32 takes addresses from pools for pods, and nothing else"


def read(meta: Meta, spec: Fields) -> IPPoolResource:
    """An IPPool from its document's spec. Raises InvalidResource."""
    cidr: Prefix = spec.parsed("cidr", spec.take("cidr"), parse_cidr)
    reserved = host_range(cidr)
    if reserved:
        raise spec.error("cidr", str(cidr), f"must not reach into {reserved}")
    low, high = BLOCK_SIZES[cidr.version]
    default = max(DEFAULT_BLOCK_SIZES[cidr.version], cidr.prefixlen)
    block_size = spec.integer("blockSize", default=default, low=low, high=high)
    if block_size < cidr.prefixlen:
        raise spec.error("blockSize", block_size, f"a /{block_size} block is larger than {cidr}")
    for key in ("ipipMode", "vxlanMode"):
        spec.only(key, ("Never",), NO_ENCAPSULATION)
    spec.only("natOutgoing", (False,), NO_NAT)
    _check_uses(spec)
    return IPPoolResource(
        meta=meta,
        cidr=cidr,
        block_size=block_size,
        disabled=spec.flag("disabled", default=False),
        node_selector=_selector(spec, "nodeSelector"),
        namespace_selector=_selector(spec, "namespaceSelector"),
        is_manual=spec.choice("assignmentMode", ASSIGNMENT_MODES, default="Automatic") == "Manual",
        disable_bgp_export=spec.flag("disableBGPExport", default=False),
    )


def _selector(spec: Fields, key: str) -> str:
    return str(spec.parsed(key, spec.take(key, "all()"), parse_selector))


def _check_uses(spec: Fields) -> None:
    uses = spec.items("allowedUses", at_most=USES_MAX)
    for key, use in uses:
        if use == "LoadBalancer":
            raise spec.error(key, use, NO_LOAD_BALANCER)
        if use not in USES:
            raise spec.error(key, use, f"must be one of {', '.join(USES)}")
    if uses and "Workload" not in [use for _, use in uses]:
        raise spec.error("allowedUses", [use for _, use in uses], NO_WORKLOAD)


def spec(pool: IPPoolResource) -> dict[str, Any]:
    """The spec of the document that ``read`` reads back."""
    document: dict[str, Any] = {
        "cidr": str(pool.cidr),
        "blockSize": pool.block_size,
        "disabled": pool.disabled,
        "nodeSelector": pool.node_selector,
    }
    if pool.namespace_selector != "all()":
        document["namespaceSelector"] = pool.namespace_selector
    if pool.is_manual:
        document["assignmentMode"] = "Manual"
    if pool.disable_bgp_export:
        document["disableBGPExport"] = True
    return document
