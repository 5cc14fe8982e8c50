"""Typed reading of ExaBGP's JSON: each function returns its type or says what was there. Pure."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any, cast

from bgp.exabgp_commands import ProtocolError
from bgp.paths import Address


def json_of(text: str) -> object:
    """What ``text`` says.

    Raises:
        ProtocolError: it is not JSON.
    """
    try:
        return cast(object, json.loads(text))
    except (ValueError, RecursionError) as error:
        # RecursionError: a million opening brackets are not worth the agent's life.
        raise ProtocolError(f"not JSON: {error}") from None


def object_of(value: object, what: str) -> dict[str, Any]:
    """``value``, an object.

    Raises:
        ProtocolError: it is none.
    """
    if not isinstance(value, dict):
        raise ProtocolError(f"{what}: expected an object, got {type(value).__name__}")
    return value


def list_of(value: object, what: str) -> list[Any]:
    """``value``, a list.

    Raises:
        ProtocolError: it is none.
    """
    if not isinstance(value, list):
        raise ProtocolError(f"{what}: expected a list, got {type(value).__name__}")
    return value


def integer_of(value: object, what: str) -> int:
    """``value``, a whole number.

    Raises:
        ProtocolError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise ProtocolError(f"{what}: expected a whole number, got {value!r:.80}")
    return value


def address_of(value: object, what: str) -> Address:
    """``value``, an address in digits without a scope.

    Raises:
        ProtocolError: it is none.
    """
    if isinstance(value, str) and "%" not in value:
        try:
            return ip_address(value)
        except ValueError:
            pass
    raise ProtocolError(f"{what}: expected an address, got {value!r:.80}")
