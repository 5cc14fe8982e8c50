"""What we answer about a pod link: the result of an ADD, and what CHECK holds against it. Pure.

Most ADDs differ in six strings, and a result as values costs 0.1 ms to make and to write. So an
``Attached`` writes itself by a template, which the long way has made: they cannot part ways.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from json.encoder import encode_basestring_ascii

from cni.attachment import Address, Attachment
from cni.podlink import GATEWAY_V4, GATEWAY_V6, HOST_MAC, PodLink
from cni.result import (
    NO_DNS,
    Cidr,
    Interface,
    IpConfig,
    Result,
    RouteConfig,
    host_cidr,
    render_result,
)
from cni.spec import Request

_DEFAULT_V4 = RouteConfig(IPv4Interface("0.0.0.0/0"), GATEWAY_V4)
_DEFAULT_V6 = RouteConfig(IPv6Interface("::/0"), GATEWAY_V6)


_HOST, _MAC, _SANDBOX = "/host", "/mac", "/sandbox"
"""What stands for what differs: no interface name holds a slash."""
_ADDRESSES: dict[int, Address] = {4: IPv4Address("192.0.2.1"), 6: IPv6Address("2001:db8::1")}


@dataclass(frozen=True, slots=True)
class Attached:
    """What an ADD has achieved, not written yet."""

    request: Request
    link: PodLink
    pod_mac: str

    def result(self) -> Result:
        """As values."""
        return add_result(self.request, self.link, pod_mac=self.pod_mac)

    def render(self, version: str) -> bytes:
        """As JSON in the form of ``version``: what ``render_result`` writes of ``result()``."""
        netconf, link = self.request.netconf, self.link
        is_plain = netconf.prev_result is None and netconf.dns == NO_DNS
        if not is_plain or not self.pod_mac or not self.request.netns:
            return render_result(self.result(), version=version)
        versions = tuple(each.version for each in link.addresses)
        template = _template(version, link.attachment.ifname, link.mtu_bytes, versions)
        sandbox = encode_basestring_ascii(self.request.netns)
        text = template % (link.host_ifname, self.pod_mac, sandbox, *map(str, link.addresses))
        return text.encode("ascii")


@lru_cache(maxsize=64)
def _template(version: str, ifname: str, mtu_bytes: int, versions: tuple[int, ...]) -> str:
    """A text with ``%s`` for host end, MAC, sandbox (with its quotes) and each address."""
    addresses = tuple(_ADDRESSES[each] for each in versions)
    result = Result(
        interfaces=_interfaces(_HOST, ifname, _MAC, mtu_bytes, _SANDBOX),
        ips=_ips(addresses, 1),
        routes=_routes(addresses),
    )
    text = render_result(result, version=version).decode("ascii").replace("%", "%%")
    text = text.replace(f'"{_SANDBOX}"', "%s").replace(_HOST, "%s").replace(_MAC, "%s")
    for address in addresses:
        text = text.replace(f'"{address}/', '"%s/')
    return text


def add_result(request: Request, link: PodLink, *, pod_mac: str) -> Result:
    """What ADD answers: the previous plugin's result with our interfaces, addresses and routes."""
    previous = request.netconf.prev_result or Result()
    return Result(
        interfaces=previous.interfaces
        + _interfaces(
            link.host_ifname, link.attachment.ifname, pod_mac, link.mtu_bytes, request.netns
        ),
        ips=previous.ips + _ips(link.addresses, len(previous.interfaces) + 1),
        routes=previous.routes + _routes(link.addresses),
        dns=request.netconf.dns if previous.dns == NO_DNS else previous.dns,
    )


def _interfaces(
    host_ifname: str, ifname: str, pod_mac: str, mtu_bytes: int, sandbox: str
) -> tuple[Interface, ...]:
    pod = Interface(name=ifname, mac=pod_mac, mtu_bytes=mtu_bytes, sandbox=sandbox)
    return (Interface(name=host_ifname, mac=HOST_MAC), pod)


def _ips(addresses: tuple[Address, ...], pod_index: int) -> tuple[IpConfig, ...]:
    return tuple(
        IpConfig(
            address=host_cidr(each),
            gateway=GATEWAY_V4 if each.version == 4 else GATEWAY_V6,
            interface=pod_index,
        )
        for each in addresses
    )


def _routes(addresses: tuple[Address, ...]) -> tuple[RouteConfig, ...]:
    return tuple(_DEFAULT_V4 if each.version == 4 else _DEFAULT_V6 for each in addresses)


def _pod_index(previous: Result, attachment: Attachment) -> int | None:
    return next(
        (
            index
            for index, each in enumerate(previous.interfaces)
            if each.name == attachment.ifname and each.sandbox
        ),
        None,
    )


def as_promised(previous: Result, link: PodLink) -> PodLink:
    """``link`` with the MTU and the MAC of prevResult: a later plugin of the chain, which may have
    changed them, says so there. A version that has no such field leaves ours."""
    index = _pod_index(previous, link.attachment)
    if index is None:
        return link
    promised = previous.interfaces[index]
    return replace(
        link,
        mtu_bytes=promised.mtu_bytes or link.mtu_bytes,
        mac=promised.mac.lower() or link.mac,
    )


def differences_from_previous(previous: Result, link: PodLink) -> list[str]:
    """Where prevResult and what this node holds for the attachment part ways."""
    differences = []
    if not any(each.name == link.host_ifname and not each.sandbox for each in previous.interfaces):
        differences.append(f"prevResult has no host interface {link.host_ifname}")
    index = _pod_index(previous, link.attachment)
    if index is None:
        differences.append(f"prevResult has no pod interface {link.attachment.ifname}")
        return differences
    promised = {each.address for each in previous.ips if each.interface == index}
    held: set[Cidr] = {host_cidr(each) for each in link.addresses}
    differences += [
        f"address {each} of prevResult is not assigned to {link.attachment}"
        for each in sorted(promised - held, key=str)
    ]
    differences += [
        f"address {each} is assigned to {link.attachment} and missing in prevResult"
        for each in sorted(held - promised, key=str)
    ]
    return differences
