"""What we answer about a pod link: the result of an ADD, and what CHECK holds against it. Pure."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface

from cni.attachment import Attachment
from cni.podlink import GATEWAY_V4, GATEWAY_V6, HOST_MAC, PodLink
from cni.result import NO_DNS, Cidr, Interface, IpConfig, Result, RouteConfig, host_cidr
from cni.spec import Request

_DEFAULT_V4 = RouteConfig(IPv4Interface("0.0.0.0/0"), GATEWAY_V4)
_DEFAULT_V6 = RouteConfig(IPv6Interface("::/0"), GATEWAY_V6)


def add_result(request: Request, link: PodLink, *, pod_mac: str) -> Result:
    """What ADD answers: the previous plugin's result with our interfaces, addresses and routes."""
    previous = request.netconf.prev_result or Result()
    pod_index = len(previous.interfaces) + 1
    gateways = [GATEWAY_V4 if each.version == 4 else GATEWAY_V6 for each in link.addresses]
    return Result(
        interfaces=(
            *previous.interfaces,
            Interface(name=link.host_ifname, mac=HOST_MAC),
            Interface(
                name=link.attachment.ifname,
                mac=pod_mac,
                mtu_bytes=link.mtu_bytes,
                sandbox=request.netns,
            ),
        ),
        ips=previous.ips
        + tuple(
            IpConfig(address=host_cidr(address), gateway=gateway, interface=pod_index)
            for address, gateway in zip(link.addresses, gateways, strict=True)
        ),
        routes=previous.routes
        + tuple(_DEFAULT_V4 if each.version == 4 else _DEFAULT_V6 for each in link.addresses),
        dns=request.netconf.dns if previous.dns == NO_DNS else previous.dns,
    )


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
