"""The identity of one pod interface, shared by everything that handles one.

CNI calls the pair (container id, interface name) an attachment. We add the network name, since a
runtime may run two networks of ours side by side and both may call their interface eth0 in
different sandboxes. Pod names are not part of the identity: they are not unique in time (a
StatefulSet pod is created again before its old sandbox got its DEL).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address

HOST_IFNAME_PREFIX = "s32"


@dataclass(frozen=True, order=True)
class Attachment:
    """One interface of one sandbox in one network (CNI specification 1.1, section 2).

    Without slots, so that what every verb asks of it a dozen times is worked out once.
    """

    network: str
    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.network}/{self.container_id[:12]}/{self.ifname}"

    @cached_property
    def host_ifname(self) -> str:
        """The host end's name: "s32" and 12 hex digits, 15 bytes, what IFNAMSIZ allows.

        Hashed from the whole identity, not from the pod's name: an old and a new sandbox of the
        same pod then never share a link, so a late DEL cannot hurt the newer one.
        """
        return f"{HOST_IFNAME_PREFIX}{_digest(self.network, self.container_id, self.ifname)[:12]}"

    @property
    def mac(self) -> str:
        """A unicast, locally administered MAC address for the pod end, from the same hash.

        So that nobody need ask the kernel which one it took, and a link that is made anew for the
        same sandbox has the one its neighbours know.
        """
        x = _digest(self.network, self.container_id, self.ifname)[12:22]
        return f"02:{x[:2]}:{x[2:4]}:{x[4:6]}:{x[6:8]}:{x[8:]}"


@lru_cache(maxsize=1024)
def _digest(network: str, container_id: str, ifname: str) -> str:
    return hashlib.sha256("\0".join((network, container_id, ifname)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PodRef:
    """Which Kubernetes pod asked, from CNI_ARGS; decoration for people, never an identity."""

    namespace: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
