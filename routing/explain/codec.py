"""Evidence <-> JSON, by the dataclasses' own annotations. Pure and strict.

A node of another version may send a field we do not know: that is ignored, for it is evidence and
not a wish. A field of the wrong type is refused by its path.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class MalformedEvidence(ValueError):
    """What came is not evidence; the sentence names the field."""


def to_json(value: Any) -> Any:
    """Dataclasses as objects, tuples as arrays; what is empty or default stays in."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: to_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in value.items()}
    return value


def from_json(kind: type[T], data: Any, where: str = "evidence") -> T:
    """The dataclass ``kind`` that ``to_json`` wrote.

    Raises:
        MalformedEvidence: something is missing or of another type.
    """
    if not isinstance(data, dict):
        raise MalformedEvidence(f"{where}: an object was expected")
    hints = _hints(kind)
    known = {
        name: _value(hint, data[name], f"{where}.{name}")
        for name, hint in hints.items()
        if name in data
    }
    try:
        return kind(**known)
    except TypeError as error:
        raise MalformedEvidence(f"{where}: {error}") from None


def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind)}


def _value(hint: Any, data: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in get_args(hint):
            return None
        (inner,) = (each for each in get_args(hint) if each is not type(None))
        return _value(inner, data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise MalformedEvidence(f"{where}: an array was expected")
        inner = get_args(hint)[0]
        return tuple(_value(inner, each, f"{where}[{i}]") for i, each in enumerate(data))
    if origin is not None:
        if not isinstance(data, dict):
            raise MalformedEvidence(f"{where}: an object was expected")
        inner = get_args(hint)[1]
        return {str(key): _value(inner, each, f"{where}.{key}") for key, each in data.items()}
    if is_dataclass(hint):
        return from_json(hint, data, where)  # type: ignore[arg-type]
    if not isinstance(data, hint) or (hint is int and isinstance(data, bool)):
        raise MalformedEvidence(f"{where}: {hint.__name__} was expected")
    return data
