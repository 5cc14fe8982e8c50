"""Result: what an ADD answers, for every CNI version from 0.3.0 to 1.1.0. Pure.

The value is that of the newest version. ``render_result`` leaves out what the asked version does
not know (an interface's MTU is 1.1.0) and adds what it wants (``ips[].version`` up to 0.4.0);
``parse_result`` reads all of them. The readers of decoded JSON at the top serve spec.py too: each
raises ``CniError`` with code 6 and the path of the field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_interface,
)
from typing import Any, TypeVar

from cni.attachment import Address
from cni.errors import shown, undecodable

Cidr = IPv4Interface | IPv6Interface
"""An address with a prefix length; the host bits are kept (10.1.0.5/16)."""

T = TypeVar("T")

SUPPORTED_VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST_VERSION = SUPPORTED_VERSIONS[-1]
_VERSIONS_WITH_IP_VERSION = frozenset({"0.3.0", "0.3.1", "0.4.0"})

_CIDR = re.compile(r"[0-9a-fA-F:.]+/[0-9]{1,3}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Interface:
    """``interfaces[]``; ``sandbox`` is empty for an interface of the host."""

    name: str
    mac: str = ""
    mtu_bytes: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


@dataclass(frozen=True, slots=True)
class IpConfig:
    """``ips[]``; ``interface`` is an index into ``Result.interfaces``."""

    address: Cidr
    gateway: Address | None = None
    interface: int | None = None


@dataclass(frozen=True, slots=True)
class RouteConfig:
    """``routes[]``; everything after ``gw`` exists since 1.1.0."""

    dst: Cidr
    gw: Address | None = None
    mtu_bytes: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


@dataclass(frozen=True, slots=True)
class Dns:
    """``dns``: passed through, we configure no resolver."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


NO_DNS = Dns()


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an ADD, independent of the version it will be written in (section 5)."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IpConfig, ...] = ()
    routes: tuple[RouteConfig, ...] = ()
    dns: Dns = NO_DNS

    def render(self, version: str) -> bytes:
        """As JSON in the form of ``version``."""
        return render_result(self, version=version)


# -- readers of decoded JSON -------------------------------------------------------------------


def text_of(mapping: Mapping[str, Any], key: str, path: str = "") -> str:
    """``mapping[key]`` as text; an absent key or a null is empty, as in Go."""
    value = mapping.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise undecodable(path + key, f"is {shown(value)}, not a string")
    return value


def integer(value: object, field: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise undecodable(field, f"is {shown(value)}, not an integer")
    return value


def array_of(mapping: Mapping[str, Any], key: str, path: str = "") -> list[Any]:
    value = mapping.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise undecodable(path + key, f"is {shown(value)}, not an array")
    return value


def _each(
    mapping: Mapping[str, Any],
    key: str,
    path: str,
    parse: Callable[[Mapping[str, Any], str], T],
) -> tuple[T, ...]:
    parsed = []
    for index, entry in enumerate(array_of(mapping, key, f"{path}.")):
        here = f"{path}.{key}[{index}]"
        if not isinstance(entry, dict):
            raise undecodable(here, f"is {shown(entry)}, not an object")
        parsed.append(parse(entry, f"{here}."))
    return tuple(parsed)


def _number(mapping: Mapping[str, Any], key: str, path: str) -> int:
    value = mapping.get(key)
    return 0 if value is None else integer(value, path + key)


def _optional_number(mapping: Mapping[str, Any], key: str, path: str) -> int | None:
    value = mapping.get(key)
    return None if value is None else integer(value, path + key)


# -- parse ---------------------------------------------------------------------------------------


def parse_result(value: object, *, path: str = "result") -> Result:
    """A result of any version from 0.3.0 on, from decoded JSON.

    Raises:
        CniError: 6, a field of the wrong type or an address that is none, with its path.
    """
    if not isinstance(value, dict):
        raise undecodable(path, f"is {shown(value)}, not an object")
    result = Result(
        interfaces=_each(value, "interfaces", path, _parse_interface),
        ips=_each(value, "ips", path, _parse_ip),
        routes=_each(value, "routes", path, _parse_route),
        dns=parse_dns(value.get("dns"), f"{path}.dns"),
    )
    for index, each in enumerate(result.ips):
        if each.interface is not None and not 0 <= each.interface < len(result.interfaces):
            raise undecodable(
                f"{path}.ips[{index}].interface",
                f"is {shown(each.interface)}; there are {len(result.interfaces)} interfaces",
            )
    return result


def _parse_interface(entry: Mapping[str, Any], path: str) -> Interface:
    return Interface(
        name=text_of(entry, "name", path),
        mac=text_of(entry, "mac", path),
        mtu_bytes=_number(entry, "mtu", path),
        sandbox=text_of(entry, "sandbox", path),
        socket_path=text_of(entry, "socketPath", path),
        pci_id=text_of(entry, "pciID", path),
    )


def _parse_cidr(entry: Mapping[str, Any], key: str, path: str) -> Cidr:
    text = text_of(entry, key, path)
    # ip_interface alone takes netmasks (/255.255.0.0), zones and bare addresses too.
    if not _CIDR.fullmatch(text):
        raise undecodable(path + key, f"is {shown(text)}, not an address in CIDR notation")
    try:
        return ip_interface(text)
    except ValueError:
        raise undecodable(
            path + key, f"is {shown(text)}, not an address in CIDR notation"
        ) from None


def _parse_address(entry: Mapping[str, Any], key: str, path: str) -> Address | None:
    text = text_of(entry, key, path)
    if not text:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        raise undecodable(path + key, f"is {shown(text)}, not an IP address") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise undecodable(path + key, f"is {shown(text)}; a zone means nothing here")
    return address


def _parse_ip(entry: Mapping[str, Any], path: str) -> IpConfig:
    return IpConfig(
        address=_parse_cidr(entry, "address", path),
        gateway=_parse_address(entry, "gateway", path),
        interface=_optional_number(entry, "interface", path),
    )


def _parse_route(entry: Mapping[str, Any], path: str) -> RouteConfig:
    return RouteConfig(
        dst=_parse_cidr(entry, "dst", path),
        gw=_parse_address(entry, "gw", path),
        mtu_bytes=_number(entry, "mtu", path),
        advmss=_number(entry, "advmss", path),
        priority=_number(entry, "priority", path),
        table=_optional_number(entry, "table", path),
        scope=_optional_number(entry, "scope", path),
    )


def parse_dns(value: object, path: str) -> Dns:
    if value is None:
        return Dns()
    if not isinstance(value, dict):
        raise undecodable(path, f"is {shown(value)}, not an object")

    def texts(key: str) -> tuple[str, ...]:
        entries = array_of(value, key, f"{path}.")
        for index, entry in enumerate(entries):
            if not isinstance(entry, str):
                raise undecodable(f"{path}.{key}[{index}]", f"is {shown(entry)}, not a string")
        return tuple(entries)

    return Dns(
        nameservers=texts("nameservers"),
        domain=text_of(value, "domain", f"{path}."),
        search=texts("search"),
        options=texts("options"),
    )


# -- render ------------------------------------------------------------------------------------


def render_result(result: Result, *, version: str) -> bytes:
    """``result`` as JSON in the form of ``version`` (section 5, ADD Success)."""
    newest = version == NEWEST_VERSION
    with_ip_version = version in _VERSIONS_WITH_IP_VERSION
    return encode(
        {
            "cniVersion": version,
            "interfaces": [_interface_fields(each, newest) for each in result.interfaces],
            "ips": [_ip_fields(each, with_ip_version) for each in result.ips],
            "routes": [_route_fields(each, newest) for each in result.routes],
            "dns": _present(
                nameservers=list(result.dns.nameservers),
                domain=result.dns.domain,
                search=list(result.dns.search),
                options=list(result.dns.options),
            ),
        }
    )


def _present(**fields: object) -> dict[str, object]:
    """The fields that hold something; a zero counts as absent, as in Go's omitempty."""
    return {key: value for key, value in fields.items() if value}


def _interface_fields(each: Interface, newest: bool) -> dict[str, object]:
    fields: dict[str, object] = {"name": each.name, **_present(mac=each.mac)}
    if newest:
        fields |= _present(mtu=each.mtu_bytes)
    fields |= _present(sandbox=each.sandbox)
    if newest:
        fields |= _present(socketPath=each.socket_path, pciID=each.pci_id)
    return fields


def _ip_fields(each: IpConfig, with_ip_version: bool) -> dict[str, object]:
    fields: dict[str, object] = {}
    if with_ip_version:
        fields["version"] = str(each.address.version)
    fields["address"] = str(each.address)
    if each.gateway is not None:
        fields["gateway"] = str(each.gateway)
    if each.interface is not None:
        fields["interface"] = each.interface
    return fields


def _route_fields(each: RouteConfig, newest: bool) -> dict[str, object]:
    fields: dict[str, object] = {"dst": str(each.dst)}
    if each.gw is not None:
        fields["gw"] = str(each.gw)
    if newest:
        fields |= _present(mtu=each.mtu_bytes, advmss=each.advmss, priority=each.priority)
        # Table and scope 0 are values of their own.
        fields |= {
            key: value
            for key, value in (("table", each.table), ("scope", each.scope))
            if value is not None
        }
    return fields


def encode(fields: Mapping[str, object]) -> bytes:
    # ASCII only: a lone surrogate, which JSON can carry in, would not survive UTF-8.
    return json.dumps(fields).encode("ascii") + b"\n"


def host_cidr(address: Address) -> Cidr:
    """``address`` as the /32 or /128 a pod gets."""
    if isinstance(address, IPv4Address):
        return IPv4Interface((address, 32))
    return IPv6Interface((address, 128))
