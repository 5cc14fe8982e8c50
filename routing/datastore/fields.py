"""Fields: reading one mapping of a document, field by field, with errors that name the field. Pure.

Each ``take`` removes the field from what is left; ``done`` refuses the rest by name. A field that
nobody reads would be a promise that nobody keeps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_interface, ip_network
from typing import Any, TypeVar

from routing.datastore.selector import Selector, SelectorError
from routing.datastore.snapshot import Address, InvalidResource, Prefix

ASN_MAX = 4294967295
"""Four bytes (RFC 6793)."""
NAME_MAX_CHARACTERS = 253
SHOWN_MAX_CHARACTERS = 120
"""How much of a bad value an error repeats."""

NAME_PATTERN = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*"
CIDR_PATTERN = "[0-9A-Fa-f:.]{2,45}/[0-9]{1,3}"
U16_PATTERN = (
    "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}|0)"
)
U32_PATTERN = (
    "(429496729[0-5]|42949672[0-8][0-9]|4294967[01][0-9]{2}|429496[0-6][0-9]{3}"
    "|42949[0-5][0-9]{4}|4294[0-8][0-9]{5}|429[0-3][0-9]{6}|42[0-8][0-9]{7}|4[01][0-9]{8}"
    "|[1-3][0-9]{9}|[1-9][0-9]{0,8}|0)"
)
ASN_PATTERN = f"({U32_PATTERN}|{U16_PATTERN}[.]{U16_PATTERN})"
"""Plain or asdot. The patterns are the schemas' too: RE2 and Python read them alike."""
DURATION_PATTERN = "([0-9]{1,4}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?"

_NAME = re.compile(NAME_PATTERN)
_CIDR = re.compile(CIDR_PATTERN)
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]{2,45}")
_ENDPOINT = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\]:([0-9]{1,5})|([0-9.]{7,15}):([0-9]{1,5})")
_ASN = re.compile(ASN_PATTERN)
_DURATION = re.compile(r"(?=[0-9])(?:([0-9]{1,4})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6})s)?")

_ABSENT: Any = object()

T = TypeVar("T")


class Malformed(ValueError):
    """A value breaks a rule; its text is the rule."""


@dataclass(slots=True)
class Fields:
    """One mapping of a document.

    Attributes:
        kind, name: whose document it is, for errors.
        path: where in the document, such as ``spec``; "" at the top.
        hides: whether errors say ``***`` for every value, as for a Secret's.
        is_stored: a store has it, so what is unknown here is of a later version, and passed over.
    """

    kind: str
    name: str
    path: str
    values: Mapping[str, Any]
    hides: bool = False
    is_stored: bool = False
    _seen: list[str] = field(default_factory=list)

    def error(self, key: str, value: object, rule: str) -> InvalidResource:
        """The error for a field of this mapping."""
        seen = "***" if self.hides and value is not None else shown(value)
        return InvalidResource(self.kind, self.name, self._at(key), seen, rule)

    def named_error(self, key: str, value: object, rule: str) -> InvalidResource:
        """The same for a field that is never secret: kind and apiVersion."""
        return InvalidResource(self.kind, self.name, self._at(key), shown(value), rule)

    def take(self, key: str, default: Any = _ABSENT) -> Any:
        """The raw value, or the default.

        Raises:
            InvalidResource: absent, and no default was given.
        """
        self._seen.append(key)
        if key in self.values:
            return self.values[key]
        if default is _ABSENT:
            raise InvalidResource(
                self.kind, self.name, self._at(key), None, "is required and was not given"
            )
        return default

    def has(self, key: str) -> bool:
        """Whether the field was given."""
        return key in self.values

    def known(self, key: str) -> None:
        """Counts the field among the known ones without reading it."""
        self._seen.append(key)

    def never(self, key: str, why: str) -> None:
        """Refuses a field of Calico's that we cannot honour; ``why`` is the sentence."""
        if self.has(key):
            raise self.error(key, self.values[key], why)

    def only(self, key: str, allowed: Sequence[object], why: str) -> None:
        """Accepts a field with the values that say what we do anyway; refuses others: ``why``."""
        value = self.take(key, allowed[0])
        # By type too: 0 equals false, and is none.
        if not any(type(value) is type(each) and value == each for each in allowed):
            raise self.error(key, value, why)

    def choice(self, key: str, allowed: Sequence[str], *, default: str = _ABSENT) -> str:
        """One of some texts."""
        value = self.take(key, default)
        if isinstance(value, str) and value in allowed:
            return value
        raise self.error(key, value, f"must be one of {', '.join(allowed)}")

    def optional(self, key: str, parse: Callable[[object], T]) -> T | None:
        """``parse`` of the value (it may raise Malformed), or None when the field is absent."""
        if not self.has(key):
            self.known(key)
            return None
        found: T = self.parsed(key, self.take(key), parse)
        return found

    def text(self, key: str, default: str | None = _ABSENT) -> str | None:
        """A text, or the default."""
        value = self.take(key, default)
        if value is default or isinstance(value, str):
            return value
        raise self.error(key, value, "must be text")

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false."""
        value = self.take(key, default)
        if isinstance(value, bool):
            return value
        raise self.error(key, value, "must be true or false")

    def integer(self, key: str, *, default: int = _ABSENT, low: int, high: int) -> int:
        """A whole number from low to high; required when there is no default."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, value, f"must be a whole number from {low} to {high}")
        return value

    def optional_integer(self, key: str, *, low: int, high: int) -> int | None:
        """A whole number from low to high, or None when the field is absent."""
        if not self.has(key):
            self.known(key)
            return None
        return self.integer(key, low=low, high=high)

    def items(self, key: str, *, at_most: int) -> list[tuple[str, Any]]:
        """A list's items, each with the key to report it under; [] when absent."""
        value = self.take(key, [])
        if not isinstance(value, list):
            raise self.error(key, value, "must be a list")
        if len(value) > at_most:
            raise self.error(key, value, f"must have at most {at_most} items")
        return [(f"{key}[{index}]", item) for index, item in enumerate(value)]

    def distinct(self, key: str, parse: Callable[[object], T], *, at_most: int) -> tuple[T, ...]:
        """A list's items, parsed, none of them twice; () when absent."""
        found: list[T] = []
        for where, item in self.items(key, at_most=at_most):
            value: T = self.parsed(where, item, parse)
            if value in found:
                raise self.error(key, str(value), "is given twice")
            found.append(value)
        return tuple(found)

    def sections(self, key: str, *, at_most: int) -> list[Fields]:
        """A list of mappings; [] when absent."""
        found = []
        for where, item in self.items(key, at_most=at_most):
            if not isinstance(item, dict):
                raise self.error(where, item, "must be a mapping")
            found.append(
                Fields(self.kind, self.name, self._at(where), item, self.hides, self.is_stored)
            )
        return found

    def section(self, key: str, *, is_required: bool = False, hides: bool = False) -> Fields:
        """A mapping inside this one; an empty one when absent. ``hides``: as the attribute."""
        value = self.take(key) if is_required else self.take(key, {})
        is_hidden = self.hides or hides
        inner = Fields(self.kind, self.name, self._at(key), {}, is_hidden, self.is_stored)
        if not isinstance(value, dict):
            raise inner.error("", value, "must be a mapping")
        inner.values = value
        return inner

    def parsed(self, key: str, value: object, parse: Any) -> Any:
        """``parse(value)``, its Malformed turned into an error that names the field."""
        try:
            return parse(value)
        except Malformed as error:
            raise self.error(key, value, str(error)) from None

    def done(self) -> None:
        """Refuses every field that was not taken, unless a store has it.

        Raises:
            InvalidResource: names the first of them, and those known here.
        """
        if self.is_stored:
            return
        for key, value in self.values.items():
            if key not in self._seen:
                known = ", ".join(dict.fromkeys(self._seen))
                raise self.error(key, value, f"unknown field; known: {known}")

    def _at(self, key: str) -> str:
        return ".".join(part for part in (self.path, key[:80]) if part)


def shown(value: object) -> object:
    """A value short enough for an error."""
    if isinstance(value, str):
        return value if len(value) <= SHOWN_MAX_CHARACTERS else value[:SHOWN_MAX_CHARACTERS] + "…"
    if isinstance(value, list):
        return f"a list of {len(value)}" if len(repr(value)) > SHOWN_MAX_CHARACTERS else value
    if isinstance(value, dict):
        return f"a mapping of {len(value)}" if len(repr(value)) > SHOWN_MAX_CHARACTERS else value
    return value


def parse_name(value: object) -> str:
    """A DNS-1123 subdomain, as Kubernetes names are. Raises Malformed."""
    if isinstance(value, str) and len(value) <= NAME_MAX_CHARACTERS and _NAME.fullmatch(value):
        return value
    raise Malformed(
        "must be a DNS-1123 subdomain: lower-case letters, digits, inner hyphens and dots, "
        f"at most {NAME_MAX_CHARACTERS} characters and 63 between dots"
    )


def parse_cidr(value: object) -> Prefix:
    """A network in CIDR form without host bits. Raises Malformed."""
    rule = "must be a network such as 10.244.0.0/16 or fd00:10:244::/64"
    if not isinstance(value, str) or not _CIDR.fullmatch(value):
        raise Malformed(rule)
    try:
        interface = ip_interface(value)
    except ValueError:
        raise Malformed(rule) from None
    if interface.ip != interface.network.network_address:
        raise Malformed(f"has host bits set; the network is {interface.network}")
    length = interface.network.prefixlen - 96
    _check_not_mapped(interface.ip, f"/{length}" if length >= 0 else "")
    return interface.network


def _check_not_mapped(address: Address, length: str = "") -> None:
    """IPv4 in IPv6's clothes: the kernel, BGP and the API server each read it differently."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        raise Malformed(f"must not be IPv4-mapped; write {address.ipv4_mapped}{length}")


def parse_address(value: object) -> Address:
    """An address without zone or length that a host may have. Raises Malformed.

    A zone (``%eth0``) is arbitrary text to Python's parser; none gets past the pattern.
    """
    if not isinstance(value, str) or not _ADDRESS.fullmatch(value):
        raise Malformed("must be an IPv4 or IPv6 address")
    try:
        address = ip_address(value)
    except ValueError:
        raise Malformed("must be an IPv4 or IPv6 address") from None
    if address.is_unspecified or address.is_multicast or address.is_link_local:
        raise Malformed("must not be an unspecified, multicast or link-local address")
    if address == IPv4Address("255.255.255.255"):
        raise Malformed("must not be the broadcast address")
    _check_not_mapped(address)
    return address


def parse_endpoint(value: object) -> tuple[Address, int]:
    """``address``, ``a.b.c.d:port`` or ``[v6]:port``; port 179 when absent. Raises Malformed."""
    rule = "must be an address, a.b.c.d:port or [v6]:port"
    found = _ENDPOINT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        try:
            return parse_address(value), 179
        except Malformed as error:
            is_form = str(error).startswith("must be")
            raise Malformed(rule if is_form else str(error)) from None
    port = int(found[2] or found[4])
    if not 1 <= port <= 65535:
        raise Malformed("the port must be from 1 to 65535")
    return parse_address(found[1] or found[3]), port


def parse_asn(value: object) -> int:
    """An AS number: 1 to 4294967295, also as text, plain or asdot (RFC 5396). Raises Malformed."""
    rule = f"must be an AS number from 1 to {ASN_MAX}"
    if isinstance(value, float):
        raise Malformed(f'{rule}; write asdot in quotes, such as "1.10"')
    asn = None
    if isinstance(value, str):
        if _ASN.fullmatch(value):
            high, dot, low = value.rpartition(".")
            asn = (int(high) << 16) + int(low) if dot else int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        asn = value
    if asn is None or not 1 <= asn <= ASN_MAX:
        raise Malformed(rule)
    return asn


def parse_duration_s(value: object) -> int:
    """Whole seconds from a duration such as "9s", "2m" or "1h30m". Raises Malformed."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise Malformed('must be a duration in whole seconds such as "9s" or "2m"')
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


def parse_selector(value: object) -> str:
    """A selector's text, once it has been parsed. Raises Malformed."""
    if not isinstance(value, str):
        raise Malformed("must be a selector, such as all() or has(rack)")
    if not value.strip():
        raise Malformed("must not be empty; write all() for everything")
    try:
        Selector.parse(value)
    except SelectorError as error:
        raise Malformed(f"is not a selector: {error}") from None
    return value


def host_range(prefix: Prefix) -> str:
    """What the range is reserved for when pods may not have addresses of it, or ""."""
    for reserved, purpose in RESERVED:
        if isinstance(prefix, IPv4Network) == isinstance(reserved, IPv4Network) and (
            prefix.overlaps(reserved)
        ):
            return f"{reserved} ({purpose})"
    return ""


RESERVED: tuple[tuple[Prefix, str], ...] = tuple(
    (ip_network(text), purpose)
    for text, purpose in (
        ("0.0.0.0/8", "this network"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::ffff:0:0/96", "IPv4-mapped"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    )
)
