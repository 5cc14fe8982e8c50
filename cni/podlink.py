"""PodLink: everything one pod's veth pair should be, as one value. Pure.

The kernel is the journal. The host end's alias (IFLA_IFALIAS) carries the attachment and its
addresses, so an agent that starts with no memory knows every allocation from one link dump.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address

from cni.attachment import Address, Attachment, PodRef

ALIAS_MAX_BYTES = 255
"""IFALIASZ is 256 with the terminating NUL."""

ALIAS_TAG = "slash32"
ALIAS_VERSION = "1"

GATEWAY_V4 = IPv4Address("169.254.1.1")
"""The next hop every pod sees; the host end answers for it by proxy-ARP."""

GATEWAY_V6 = IPv6Address("fe80::1")
"""The host end's fixed link-local address; a link-local gateway needs no proxy-NDP."""

HOST_MAC = "ee:ee:ee:ee:ee:ee"


class AliasError(ValueError):
    """An alias that says it is ours but cannot be read, or an identity too long to write."""


@dataclass(frozen=True)
class PodLink:
    """One veth pair. ``addresses`` holds at most one address of each family, IPv4 first.

    ``mac`` is what the pod end's is asked to be, in lower case with colons; None for no wish.
    """

    attachment: Attachment
    addresses: tuple[Address, ...]
    mtu_bytes: int
    pod: PodRef | None = None
    mac: str | None = None

    @cached_property
    def host_ifname(self) -> str:
        return self.attachment.host_ifname

    @property
    def pod_mac(self) -> str:
        """What the pod end is born with: as asked, else one of the attachment's own."""
        return self.mac or self.attachment.mac

    @cached_property
    def ipv4(self) -> IPv4Address | None:
        for address in self.addresses:
            if isinstance(address, IPv4Address):
                return address
        return None

    @cached_property
    def ipv6(self) -> IPv6Address | None:
        for address in self.addresses:
            if isinstance(address, IPv6Address):
                return address
        return None

    @property
    def alias(self) -> str:
        return encode_alias(self.attachment, self.addresses, self.pod)


def encode_alias(attachment: Attachment, addresses: tuple[Address, ...], pod: PodRef | None) -> str:
    """``slash32|1|network|container|ifname|v4|v6|namespace/name``, at most 255 bytes.

    The pod's name comes last and is cut to fit: it is decoration. Everything before it is
    identity and must fit whole.

    Raises:
        AliasError: the identity alone does not fit.
    """
    v4 = v6 = "-"
    for address in addresses:
        if isinstance(address, IPv4Address):
            v4 = str(address)
        else:
            v6 = str(address)
    head = "|".join(
        (
            ALIAS_TAG,
            ALIAS_VERSION,
            attachment.network,
            attachment.container_id,
            attachment.ifname,
            v4,
            v6,
            "",
        )
    )
    room = ALIAS_MAX_BYTES - len(head.encode())
    if room < 0:
        raise AliasError(
            f"network name and container id are too long by {-room} bytes for a link alias "
            f"({ALIAS_MAX_BYTES} bytes)"
        )
    return head + (str(pod) if pod else "").encode()[:room].decode("utf-8", "ignore")


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """What an alias remembers of a pod link."""

    attachment: Attachment
    addresses: tuple[Address, ...]
    pod: PodRef | None


def decode_alias(alias: str) -> AliasRecord | None:
    """The record an alias carries, or None when the alias is not ours.

    Raises:
        AliasError: it carries our tag but not our form; such a link is reported, never removed.
    """
    if not alias.startswith(ALIAS_TAG + "|"):
        return None
    parts = alias.split("|", 7)
    if len(parts) != 8 or parts[1] != ALIAS_VERSION:
        raise AliasError(f"link alias {alias!r} has our tag but not our form")
    _, _, network, container_id, ifname, v4, v6, pod_text = parts
    try:
        # By family: one in the other's place would be written back as another alias.
        addresses = tuple(
            make(text) for make, text in ((IPv4Address, v4), (IPv6Address, v6)) if text != "-"
        )
    except ValueError as error:
        raise AliasError(f"link alias {alias!r}: {error}") from None
    namespace, slash, name = pod_text.partition("/")
    return AliasRecord(
        Attachment(network, container_id, ifname),
        addresses,
        PodRef(namespace, name) if slash else None,
    )
