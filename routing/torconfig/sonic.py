"""SONiC with FRR's own configuration: what goes into the BGP container's vtysh."""

from __future__ import annotations

from routing.torconfig import frr
from routing.torconfig.side import RouterSide
from routing.torconfig.wording import heading

NOTES = (
    "SONiC must leave BGP's configuration to FRR: in config_db.json, DEVICE_METADATA, localhost,",
    '"docker_routing_config_mode": "split" (separated, without bgpcfgd\'s own peers).',
    "Then: docker exec -i bgp vtysh < this file; docker exec bgp vtysh -c 'write memory'.",
)


def render(side: RouterSide) -> str:
    """For vtysh in the container ``bgp``."""
    lines = [*heading(side, mark="!", notes=NOTES), "configure terminal", *frr.body(side), "end"]
    return "\n".join([*lines, ""])
