"""The host end of a pod link: what it must be, the messages that make it so, what differs. No I/O.

Sysctls are named by their path below /proc/sys/net (``ipv4/conf/s32.../rp_filter``), and known by
their place in the kernel's devconf arrays, so one link message carries all but proxy_delay.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from socket import AF_INET, AF_INET6, AF_UNSPEC
from typing import NamedTuple

from cni import netlink as nl
from cni.netlink import Request, attribute, attribute_text, attribute_u32, nested
from cni.netns import dotted
from cni.podlink import GATEWAY_V6, HOST_MAC, PodLink

LINK_GROUP = 0x7332
"""IFLA_GROUP of every host end, from birth; ``ip link`` shows it as ``group 29490``."""

MIN_MTU_BYTES, MAX_MTU_BYTES = 68, 65535
"""What veth takes (RFC 791's least; ETH_MAX_MTU). The kernel refuses others without a word."""

IPV6_MIN_MTU_BYTES = 1280
"""Below this the kernel takes IPv6 off an interface (RFC 8200, section 5)."""

GEN_MODE_NONE = 1
"""IN6_ADDR_GEN_MODE_NONE: no link-local address of the kernel's own making."""

_V4_CONF = {
    "forwarding": 1,
    "proxy_arp": 3,
    "accept_redirects": 4,
    "send_redirects": 6,
    "rp_filter": 8,
}
"""IPV4_DEVCONF_* of linux/ip.h; the array starts at 1."""

_V6_CONF = {"forwarding": 0, "accept_ra": 3, "accept_redirects": 4, "disable_ipv6": 26}
"""DEVCONF_* of linux/ipv6.h; the array starts at 0."""

_EXT_MASK = attribute_u32(nl.IFLA_EXT_MASK, nl.RTEXT_FILTER_SKIP_STATS)
_NO_LINK = nl.IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0)
_KIND_VETH = attribute_text(nl.IFLA_INFO_KIND, "veth")
_RTGENMSG = struct.Struct("=Bxxx")
_NDTA_NAME, _NDTA_PARMS = 1, 6
_NDTPA_IFINDEX, _NDTPA_PROXY_DELAY = 1, 13
_ARP_CACHE = struct.pack("=Bxxx", AF_INET) + attribute_text(_NDTA_NAME, "arp_cache")


@dataclass(frozen=True, slots=True)
class HostEnd:
    """One link as the kernel describes it. ``sysctls`` maps a path to its value.

    ``peer_nsid`` is the asking namespace's own number for the namespace of the other end.
    """

    ifindex: int
    ifname: str
    is_up: bool
    has_carrier: bool
    mtu_bytes: int
    mac: str
    alias: str
    group: int
    peer_ifindex: int
    peer_nsid: int | None
    sysctls: Mapping[str, int] = field(default_factory=dict)
    addr_gen_mode: int | None = None

    @property
    def is_half_made(self) -> bool:
        """Ours, but left by an agent that ended before it could write the alias."""
        return self.group == LINK_GROUP and not self.alias and not self.is_up


# -- what it must be ---------------------------------------------------------------------------


def expected_sysctls(link: PodLink) -> dict[str, int]:
    """Path to value, for a kernel with IPv6. ``disable_ipv6`` comes first: it closes the door.

    send_redirects is off for the link, but the kernel ORs it with net.ipv4.conf.all; and
    rp_filter is the greater of the link's and all's. We leave the host's own to its operator.
    """
    name = link.host_ifname
    v4_conf, v6_conf = _v4_conf(link.ipv4 is not None), _v6_conf(link.ipv6 is not None)
    return {
        **{f"ipv6/conf/{name}/{key}": value for key, value in v6_conf.items()},
        **{f"ipv4/conf/{name}/{key}": value for key, value in v4_conf.items()},
        proxy_delay_path(name): 0,
    }


def _v4_conf(has_v4: bool) -> dict[str, int]:
    return {
        "forwarding": int(has_v4),
        "proxy_arp": int(has_v4),
        "accept_redirects": 0,
        "send_redirects": 0,
        "rp_filter": 1,
    }


def _v6_conf(has_v6: bool) -> dict[str, int]:
    conf = {"disable_ipv6": int(not has_v6), "accept_ra": 0, "accept_redirects": 0}
    return conf | {"forwarding": 1} if has_v6 else conf


def proxy_delay_path(ifname: str) -> str:
    """The one sysctl that no link message carries."""
    return f"ipv4/neigh/{ifname}/proxy_delay"


def slow_sysctls(link: PodLink) -> dict[str, int]:
    """Those that can only be written through /proc: IPv6 has no netlink knob for them."""
    prefix = f"ipv6/conf/{link.host_ifname}/"
    return {prefix + key: value for key, value in _v6_conf(link.ipv6 is not None).items()}


def host_differences(link: PodLink, found: HostEnd, *, has_gateway_v6: bool) -> Iterator[str]:
    """One sentence for each thing that is not as ``link`` wants it.

    Args:
        has_gateway_v6: fe80::1/64 is on the link. Asked for only when the pod has an IPv6 address.
    """
    name = link.host_ifname
    if found.alias != link.alias:
        yield f"alias of {name}: expected {link.alias!r}, found {found.alias!r}"
    if not found.is_up:
        yield f"state of {name}: expected UP, found DOWN"
    if found.mtu_bytes != link.mtu_bytes:
        yield f"MTU of {name}: expected {link.mtu_bytes}, found {found.mtu_bytes}"
    if found.mac != HOST_MAC:
        yield f"MAC address of {name}: expected {HOST_MAC}, found {found.mac}"
    for path, value in expected_sysctls(link).items():
        actual = found.sysctls.get(path)
        if actual is None and link.ipv6 is None and path.startswith("ipv6/"):
            continue  # No IPv6 on this kernel, or on a link of so small an MTU: nothing to close.
        if actual != value:
            was = "nothing" if actual is None else actual
            yield f"sysctl {dotted(path)}: expected {value}, found {was}"
    if link.ipv6 is not None:
        if found.addr_gen_mode != GEN_MODE_NONE:
            yield (
                f"addr_gen_mode of {name}: expected {GEN_MODE_NONE} (none), "
                f"found {found.addr_gen_mode}"
            )
        if not has_gateway_v6:
            yield f"address of {name}: expected {GATEWAY_V6}/64, found none such"


# -- messages ----------------------------------------------------------------------------------


def _mac_attribute(mac: str) -> bytes:
    return attribute(nl.IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))


_BORN_WITH = _mac_attribute(HOST_MAC) + attribute_u32(nl.IFLA_GROUP, LINK_GROUP)


def get_link(ifname: str) -> bytes:
    """The body of RTM_GETLINK for one name."""
    return _NO_LINK + attribute_text(nl.IFLA_IFNAME, ifname) + _EXT_MASK


def dump_veths() -> bytes:
    """The body of a RTM_GETLINK dump of every veth, without statistics."""
    return _NO_LINK + nested(nl.IFLA_LINKINFO, _KIND_VETH) + _EXT_MASK


def new_pair(link: PodLink, netns_fd: int, *, ifindex: int = 0, pod_ifindex: int = 0) -> Request:
    """The veth pair: host end DOWN in our namespace, pod end DOWN in ``netns_fd``.

    One queue a side: the kernel's default is one per possible CPU, 54 us and a sysfs entry each.

    Args:
        ifindex, pod_ifindex: the indexes of both ends; 0 leaves them to the kernel. It heeds a
            wish for the pod end only together with one for the host end.
    """
    own, between = _pair_around(link.attachment.ifname, link.mtu_bytes, pod_ifindex)
    body = (
        nl.IFINFOMSG.pack(AF_UNSPEC, 0, ifindex, 0, 0)
        + attribute_text(nl.IFLA_IFNAME, link.host_ifname)
        + own
        + attribute_u32(nl.IFLA_NET_NS_FD, netns_fd)
        + _mac_attribute(link.pod_mac)
        + between
    )
    return Request(nl.RTM_NEWLINK, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body)


@lru_cache(maxsize=64)
def _pair_around(ifname: str, mtu_bytes: int, pod_ifindex: int) -> tuple[bytes, bytes]:
    """What is the same for all pods, before and after the namespace and the MAC of the pod end."""
    queues = attribute_u32(nl.IFLA_NUM_TX_QUEUES, 1) + attribute_u32(nl.IFLA_NUM_RX_QUEUES, 1)
    ends = queues + attribute_u32(nl.IFLA_MTU, mtu_bytes)
    varies = attribute_u32(nl.IFLA_NET_NS_FD, 0) + _mac_attribute(HOST_MAC)
    peer = nested(
        nl.VETH_INFO_PEER,
        nl.IFINFOMSG.pack(AF_UNSPEC, 0, pod_ifindex, 0, 0),
        attribute_text(nl.IFLA_IFNAME, ifname),
        varies,
        ends,
    )
    info = nested(nl.IFLA_LINKINFO, _KIND_VETH, nested(nl.IFLA_INFO_DATA, peer))
    before, after = info.split(varies)
    return _BORN_WITH + ends + before, after


def set_fast_sysctls(link: PodLink, ifindex: int, *, alias: str | None = None) -> list[Request]:
    """IPv4 devconf, addr_gen_mode and proxy_delay; half the cost of writing to /proc.

    Args:
        alias: the journal entry of a link that has none yet, in the same message. Without a NUL:
            the kernel's limit of 255 counts every byte.
    """
    spec, delay = _settings(link.ipv4 is not None, link.ipv6 is not None)
    body = nl.IFINFOMSG.pack(AF_UNSPEC, 0, ifindex, 0, 0)
    if alias is not None:
        body += attribute(nl.IFLA_IFALIAS, alias.encode())
    # Otherwise the gateway's first answer waits up to 0.8 s (80 jiffies, random).
    parms = nested(_NDTA_PARMS, attribute_u32(_NDTPA_IFINDEX, ifindex), delay)
    return [
        Request(nl.RTM_SETLINK, 0, body + spec),
        Request(nl.RTM_SETNEIGHTBL, 0, _ARP_CACHE + parms),
    ]


@lru_cache(maxsize=4)
def _settings(has_v4: bool, has_v6: bool) -> tuple[bytes, bytes]:
    """IFLA_AF_SPEC with the IPv4 devconf, and the attribute for proxy_delay."""
    conf = [attribute_u32(_V4_CONF[key], value) for key, value in _v4_conf(has_v4).items()]
    families = [nested(AF_INET, nested(nl.IFLA_INET_CONF, *conf))]
    if has_v6:
        families.append(
            nested(AF_INET6, attribute(nl.IFLA_INET6_ADDR_GEN_MODE, bytes([GEN_MODE_NONE])))
        )
    delay = attribute(_NDTPA_PROXY_DELAY, struct.pack("=Q", 0))
    return nested(nl.IFLA_AF_SPEC, *families), delay


def set_mtu_and_mac(link: PodLink, ifindex: int) -> Request:
    """Puts both back to what they were at birth."""
    body = (
        nl.IFINFOMSG.pack(AF_UNSPEC, 0, ifindex, 0, 0)
        + attribute_u32(nl.IFLA_MTU, link.mtu_bytes)
        + _mac_attribute(HOST_MAC)
    )
    return Request(nl.RTM_SETLINK, 0, body)


def set_name(ifindex: int, ifname: str) -> Request:
    """Renames a link. Kernels before 6.2 refuse it (EBUSY) while the link is up."""
    body = nl.IFINFOMSG.pack(AF_UNSPEC, 0, ifindex, 0, 0) + attribute_text(nl.IFLA_IFNAME, ifname)
    return Request(nl.RTM_SETLINK, 0, body)


def set_down(ifindex: int) -> Request:
    """Takes a link down, and every route over it."""
    return Request(nl.RTM_SETLINK, 0, nl.IFINFOMSG.pack(AF_UNSPEC, 0, ifindex, 0, nl.IFF_UP))


def set_up(ifindex: int) -> Request:
    """Brings a link up. A message of its own: changes to a link that is up walk the IPv6 FIB."""
    return Request(
        nl.RTM_SETLINK, 0, nl.IFINFOMSG.pack(AF_UNSPEC, 0, ifindex, nl.IFF_UP, nl.IFF_UP)
    )


def delete_link(ifindex: int) -> Request:
    """Removes a link, its peer, and every route over it."""
    return Request(nl.RTM_DELLINK, 0, nl.IFINFOMSG.pack(AF_UNSPEC, 0, ifindex, 0, 0))


def add_gateway_v6(ifindex: int) -> Request:
    """fe80::1/64 on the host end, without duplicate address detection: nobody else can be there."""
    body = (
        nl.IFADDRMSG.pack(AF_INET6, 64, 0, nl.RT_SCOPE_LINK, ifindex)
        + attribute(nl.IFA_LOCAL, GATEWAY_V6.packed)
        + attribute(nl.IFA_ADDRESS, GATEWAY_V6.packed)
        + attribute_u32(nl.IFA_FLAGS, nl.IFA_F_NODAD)
    )
    return Request(nl.RTM_NEWADDR, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, body)


def get_nsid(netns_fd: int) -> bytes:
    """The body of RTM_GETNSID: what number our namespace has for another one."""
    return _RTGENMSG.pack(AF_UNSPEC) + attribute_u32(nl.NETNSA_FD, netns_fd)


def parse_nsid(body: bytes) -> int | None:
    """The number, or None when there is none yet: then no link leads there."""
    payload = nl.attributes(body, _RTGENMSG.size).get(nl.NETNSA_NSID, b"")
    nsid = _array_value(payload, 0)
    return None if nsid is None or nsid < 0 else nsid


def dump_addresses(family: int, ifindex: int) -> bytes:
    """The body of a RTM_GETADDR dump of one interface."""
    return nl.IFADDRMSG.pack(family, 0, 0, 0, ifindex)


# -- reading -----------------------------------------------------------------------------------


class Owned(NamedTuple):
    """As much of a link as says whose it is."""

    ifindex: int
    alias: str
    is_half_made: bool


def parse_owned(body: bytes) -> Owned:
    """The same of one RTM_NEWLINK body as ``parse_link``, at a tenth of its price.

    Raises:
        MalformedMessage: the body is not a link message.
    """
    _family, _type, ifindex, flags, _change = _unpack_link(body)
    found = nl.attributes(body, nl.IFINFOMSG.size, wanted=_WHOSE)
    alias = nl.text(found.get(nl.IFLA_IFALIAS, b""))
    is_of_group = _number(found, nl.IFLA_GROUP) == LINK_GROUP
    return Owned(ifindex, alias, is_of_group and not alias and not flags & nl.IFF_UP)


_WHOSE = frozenset({nl.IFLA_GROUP, nl.IFLA_IFALIAS})


def parse_link(body: bytes) -> HostEnd:
    """One RTM_NEWLINK body; ``proxy_delay`` is not in it.

    Raises:
        MalformedMessage: the body is not a link message.
    """
    _family, _type, ifindex, flags, _change = _unpack_link(body)
    found = nl.attributes(body, nl.IFINFOMSG.size)
    name = nl.text(found.get(nl.IFLA_IFNAME, b""))
    families = nl.attributes(found.get(nl.IFLA_AF_SPEC, b""))
    v4 = nl.attributes(families.get(AF_INET, b"")).get(nl.IFLA_INET_CONF, b"")
    v6_attributes = nl.attributes(families.get(AF_INET6, b""))
    v6 = v6_attributes.get(nl.IFLA_INET6_CONF, b"")
    sysctls = {
        f"ipv4/conf/{name}/{key}": value
        for key, place in _V4_CONF.items()
        if (value := _array_value(v4, place - 1)) is not None
    } | {
        f"ipv6/conf/{name}/{key}": value
        for key, place in _V6_CONF.items()
        if (value := _array_value(v6, place)) is not None
    }
    mode = v6_attributes.get(nl.IFLA_INET6_ADDR_GEN_MODE)
    return HostEnd(
        ifindex=ifindex,
        ifname=name,
        is_up=bool(flags & nl.IFF_UP),
        has_carrier=bool(flags & nl.IFF_LOWER_UP),
        mtu_bytes=_number(found, nl.IFLA_MTU),
        mac=found.get(nl.IFLA_ADDRESS, b"").hex(":"),
        alias=nl.text(found.get(nl.IFLA_IFALIAS, b"")),
        group=_number(found, nl.IFLA_GROUP),
        peer_ifindex=_number(found, nl.IFLA_LINK),
        peer_nsid=_array_value(found.get(nl.IFLA_LINK_NETNSID, b""), 0),
        sysctls=sysctls,
        addr_gen_mode=mode[0] if mode else None,
    )


def _unpack_link(body: bytes) -> tuple[int, int, int, int, int]:
    try:
        return nl.IFINFOMSG.unpack_from(body)
    except struct.error as error:
        raise nl.MalformedMessage(f"link message of {len(body)} bytes") from error


def _number(found: Mapping[int, bytes], kind: int) -> int:
    payload = found.get(kind)
    return 0 if payload is None else nl.u32(payload)


def _array_value(array: bytes, place: int) -> int | None:
    """The signed 32-bit number at ``place``; None when this kernel's array is shorter."""
    payload = array[place * 4 : place * 4 + 4]
    return int.from_bytes(payload, sys.byteorder, signed=True) if len(payload) == 4 else None
