"""What a runtime asks of one pod's interface: a MAC and addresses (the CNI conventions). Pure.

A wish can come three ways, and some runtimes send the same one by two of them: by capability
(``runtimeConfig.mac``, ``runtimeConfig.ips``), as optional data (``args.cni.mac``,
``args.cni.ips``) and in CNI_ARGS (``MAC``, ``IP``). They are joined; two that contradict each other
are refused, since either choice would surprise somebody.

Whether an address can be had is the allocator's to say. Here is only what can be read from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import Any

from cni.attachment import Address
from cni.errors import CniError, Code, shown, undecodable
from cni.podlink import HOST_MAC
from cni.result import array_of, text_of

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
_ADDRESS = re.compile(r"[0-9a-fA-F:.]+(/[0-9]{1,3})?", re.ASCII)

Refusal = Callable[[str], CniError]
"""Makes the error for one field out of what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Requested:
    """``mac`` in lower case with colons; at most one address of each family, IPv4 first."""

    mac: str | None = None
    addresses: tuple[Address, ...] = ()


NOTHING = Requested()


def parse_requested(conf: Mapping[str, Any], args: Mapping[str, str]) -> Requested:
    """What the configuration and CNI_ARGS ask for.

    Args:
        conf: the network configuration, decoded.
        args: the pairs of CNI_ARGS.

    Raises:
        CniError: 6 a field of the wrong type, 7 a value that is none or contradicts another,
            4 the same in CNI_ARGS.
    """
    capabilities = _object_of(conf, "runtimeConfig")
    optional = _object_of(_object_of(conf, "args"), "cni", "args.")
    mac: str | None = None
    addresses: dict[int, Address] = {}
    for text, refuse in _texts("mac", capabilities, optional, args.get("MAC", "")):
        found = _parse_mac(text, refuse)
        if mac not in (None, found):
            raise refuse(f"is {found}, and {mac} is asked for as well")
        mac = found
    for text, refuse in _texts("ips", capabilities, optional, args.get("IP", "")):
        address = _parse_address(text, refuse)
        other = addresses.setdefault(address.version, address)
        if other != address:
            raise refuse(
                f"asks for {address}, and {other} is asked for as well; a pod gets one "
                f"IPv{address.version} address"
            )
    return Requested(mac, tuple(addresses[version] for version in sorted(addresses)))


def _texts(
    key: str, capabilities: Mapping[str, Any], optional: Mapping[str, Any], argument: str
) -> Iterator[tuple[str, Refusal]]:
    """Every wish of one kind, with what makes its refusal."""
    for fields, path in ((capabilities, "runtimeConfig."), (optional, "args.cni.")):
        if key == "mac":
            texts = [text] if (text := text_of(fields, key, path)) else []
        else:
            entries = array_of(fields, key, path)
            texts = [_text(each, f"{path}{key}[{n}]") for n, each in enumerate(entries)]
        for text in texts:
            yield text, _refusal(Code.INVALID_CONFIG, f"network configuration: {path}{key}")
    if argument:
        name = "MAC" if key == "mac" else "IP"
        yield argument, _refusal(Code.INVALID_ENVIRONMENT, f"CNI_ARGS {name}")


def _refusal(code: Code, field: str) -> Refusal:
    return lambda what: CniError(code, f"{field} {what}")


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise undecodable(field, f"is {shown(value)}, not a string")
    return value


def _object_of(mapping: Mapping[str, Any], key: str, path: str = "") -> Mapping[str, Any]:
    value = mapping.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise undecodable(path + key, f"is {shown(value)}, not an object")
    return value


def _parse_mac(text: str, refuse: Refusal) -> str:
    mac = text.lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise refuse(f"is {shown(text)}, not a MAC address of 6 bytes")
    if int(mac[:2], 16) & 1:
        raise refuse(f"is {shown(text)}, a group address; an interface needs a unicast one")
    if mac == "00:00:00:00:00:00":
        raise refuse(f"is {shown(text)}, which no interface can have")
    if mac == HOST_MAC:
        raise refuse(f"is {shown(text)}, the address of the host's end of every pod link")
    return mac


def _parse_address(text: str, refuse: Refusal) -> Address:
    """An address with or without a prefix length. The length says nothing: a pod has /32, /128."""
    if not _ADDRESS.fullmatch(text):
        raise refuse(f"has {shown(text)}, not an IP address")
    try:
        return ip_interface(text).ip if "/" in text else ip_address(text)
    except ValueError:
        raise refuse(f"has {shown(text)}, not an IP address") from None
