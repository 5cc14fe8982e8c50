"""What a kube-apiserver says to a custom resource, from its definition alone.

Strict as ``kubectl apply`` asks for: an unknown field is an error. JSON Schema by jsonschema, CEL
by the Rust implementation behind ``cel``, with Kubernetes' functions for addresses and networks;
list types here. What it cannot know, the cost of a rule, only the real server says.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv6Network, ip_address, ip_network
from typing import Any

import cel
import jsonschema
from cel.stdlib import EXTENSIONS

Schema = Mapping[str, Any]


def refusals(schema: Schema, document: Any, old: Any = None) -> list[str]:
    """Every sentence the server would refuse the document with; [] when it takes it.

    Args:
        schema: the openAPIV3Schema.
        document: the object that is written, without defaults.
        old: the object that is there, when it is an update.
    """
    found = list(_unknown(schema, document, ""))
    value = defaulted(schema, document)
    found += [_at(error) for error in _validator(_key(schema)).iter_errors(value)]
    found += _doubled(schema, value, "")
    if not found:
        # The server does so too: rules may then rely on the types.
        found += _broken(schema, value, None if old is None else defaulted(schema, old), "")
    return found


# -- JSON Schema ---------------------------------------------------------------------------

_SCHEMAS: dict[int, Schema] = {}


def _key(schema: Schema) -> int:
    _SCHEMAS[id(schema)] = schema
    return id(schema)


@lru_cache(maxsize=64)
def _validator(key: int) -> Any:
    # OpenAPI 3.0 has draft 4's numbers.
    return jsonschema.Draft4Validator(_plain(_SCHEMAS[key]))


def _at(error: Any) -> str:
    return f"{'.'.join(map(str, error.absolute_path))}: {error.message}"


def _plain(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {
        key: _plain(value)
        for key, value in schema.items()
        if not key.startswith("x-kubernetes-") and key not in ("default", "format", "description")
    }
    if isinstance(schema.get("properties"), dict):
        plain["properties"] = {k: _plain(v) for k, v in schema["properties"].items()}
    if schema.get("format") == "int64":
        plain.setdefault("maximum", 2**63 - 1)
    if schema.get("x-kubernetes-int-or-string"):
        plain["type"] = ["integer", "string"]
    if isinstance(plain.get("pattern"), str):
        # RE2's $ is the end of the text, Python's also stands before a last line end.
        plain["pattern"] = re.sub(r"\$\Z", r"\\Z", plain["pattern"])
    return plain


def _properties(schema: Schema) -> Mapping[str, Any]:
    found: Mapping[str, Any] = schema.get("properties") or {}
    return found


def _unknown(schema: Schema, value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for index, each in enumerate(value):
            yield from _unknown(schema.get("items") or {}, each, f"{path}[{index}]")
    elif isinstance(value, dict) and "properties" in schema:
        for key, each in value.items():
            if key not in schema["properties"]:
                yield f"{path}.{key}: unknown field"
            else:
                yield from _unknown(schema["properties"][key], each, f"{path}.{key}")


def defaulted(schema: Schema, value: Any) -> Any:
    """The value with the schema's defaults in it."""
    if isinstance(value, list):
        return [defaulted(schema.get("items") or {}, each) for each in value]
    if not isinstance(value, dict):
        return value
    result = dict(value)
    for key, inner in _properties(schema).items():
        if key not in result and "default" in inner:
            result[key] = copy.deepcopy(inner["default"])
        if key in result:
            result[key] = defaulted(inner, result[key])
    return result


def _doubled(schema: Schema, value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in _properties(schema).items():
            if key in value:
                yield from _doubled(inner, value[key], f"{path}.{key}")
    if not isinstance(value, list):
        return
    keys = schema.get("x-kubernetes-list-map-keys")
    kind = schema.get("x-kubernetes-list-type")
    seen: list[Any] = []
    for index, each in enumerate(value):
        one = [each.get(key) for key in keys] if keys and isinstance(each, dict) else each
        if kind in ("set", "map") and one in seen:
            yield f"{path}[{index}]: duplicate value"
        seen.append(one)
        yield from _doubled(schema.get("items") or {}, each, f"{path}[{index}]")


# -- CEL -----------------------------------------------------------------------------------


def _broken(schema: Schema, value: Any, old: Any, path: str) -> Iterator[str]:
    for each in schema.get("x-kubernetes-validations", []):
        expression = each["rule"]
        if "oldSelf" in expression and old is None:
            continue
        if not evaluate(expression, value, old):
            yield f"{path or '<root>'}: {each['message']}"
    if isinstance(value, dict):
        for key, inner in _properties(schema).items():
            if key in value:
                was = old.get(key) if isinstance(old, dict) else None
                yield from _broken(inner, value[key], was, f"{path}.{key}")
    elif isinstance(value, list):
        for index, one in enumerate(value):
            # Items of a list cannot be told apart from what they were (but by their keys).
            yield from _broken(schema.get("items") or {}, one, None, f"{path}[{index}]")


def evaluate(expression: str, value: Any, old: Any = None) -> bool:
    """What a rule says. Raises what ``cel`` raises where it cannot be evaluated."""
    context = cel.Context()
    for name, function in _functions_of(expression):
        context.add_function(name, function)
    context.add_variable("self", value)
    if old is not None:
        context.add_variable("oldSelf", old)
    result = _program(expression).execute(context)
    if not isinstance(result, bool):
        raise TypeError(f"{expression} says {result!r}, neither true nor false")
    return result


@lru_cache(maxsize=4096)
def _program(expression: str) -> Any:
    return cel.compile(expression)


@lru_cache(maxsize=4096)
def _functions_of(expression: str) -> list[tuple[str, Callable[..., Any]]]:
    """Those it calls: adding every one each time would cost more than the evaluation."""
    called = set(re.findall(r"\w+", expression))
    known = {**EXTENSIONS["strings"], **_FUNCTIONS}
    return [(name, function) for name, function in known.items() if name in called]


def _is_ip(text: str) -> bool:
    """netip.ParseAddr's way, without zones and IPv4-mapped addresses, as Kubernetes has it."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return "%" not in text and getattr(address, "ipv4_mapped", None) is None


def _is_cidr(text: str) -> bool:
    host, slash, length = text.partition("/")
    if not slash or not _is_ip(host) or not re.fullmatch("0|[1-9][0-9]*", length):
        return False
    return int(length) <= ip_address(host).max_prefixlen


def _cidr(text: str) -> dict[str, str]:
    if not _is_cidr(text):
        raise ValueError(f"{text!r} is no CIDR")
    host, _, length = text.partition("/")
    return {"cidr": f"{ip_address(host)}/{length}"}


def _ip(value: Any) -> dict[str, str]:
    """ip("…"), or the address of a network."""
    if isinstance(value, dict):
        return {"ip": value["cidr"].partition("/")[0]}
    if not _is_ip(value):
        raise ValueError(f"{value!r} is no address")
    return {"ip": str(ip_address(value))}


def _network(value: Any) -> Any:
    return ip_network((value if isinstance(value, dict) else _cidr(value))["cidr"], strict=False)


def _contains(outer: Any, inner: Any) -> bool:
    one, other = _network(outer), _network(inner)
    return isinstance(one, IPv6Network) == isinstance(other, IPv6Network) and other.subnet_of(one)


def _is_global_unicast(value: dict[str, str]) -> bool:
    address = ip_address(value["ip"])
    return not (
        address.is_unspecified
        or address.is_loopback
        or address.is_multicast
        or address.is_link_local
        or str(address) == "255.255.255.255"
    )


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "isIP": _is_ip,
    "ip": _ip,
    "isCIDR": _is_cidr,
    "cidr": _cidr,
    "family": lambda value: ip_address(value["ip"]).version,
    "isGlobalUnicast": _is_global_unicast,
    "isLoopback": lambda value: ip_address(value["ip"]).is_loopback,
    "prefixLength": lambda value: int(value["cidr"].partition("/")[2]),
    "masked": lambda value: {"cidr": str(_network(value))},
    "containsCIDR": _contains,
}
