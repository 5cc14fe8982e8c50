"""diff(desired, actual) for tables keyed as the thing itself is keyed. Pure and generic."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Delta(Generic[K, V]):
    """What to change: values to create, (old, new) to replace, values to delete."""

    create: Mapping[K, V] = field(default_factory=dict)
    replace: Mapping[K, tuple[V, V]] = field(default_factory=dict)
    delete: Mapping[K, V] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.create or self.replace or self.delete)

    def __len__(self) -> int:
        return len(self.create) + len(self.replace) + len(self.delete)


@dataclass(frozen=True, slots=True)
class Failure(Generic[K]):
    """One change that did not happen; collected, never thrown in mid-pass."""

    key: K
    operation: str
    error: str


def diff(
    desired: Mapping[K, V],
    actual: Mapping[K, V],
    may_delete: Callable[[K, V], bool] = lambda _key, _value: True,
) -> Delta[K, V]:
    """The change that turns ``actual`` into ``desired``.

    ``actual`` holds only what is ours. ``may_delete`` is the gate: a False keeps the entry (it is
    held, and the next pass asks again). Creation and replacement are never gated.

    Laws (tests/property): applying diff(d, a) to a gives d where nothing is held;
    diff(d, d) is empty.
    """
    create = {key: value for key, value in desired.items() if key not in actual}
    replace = {
        key: (actual[key], value)
        for key, value in desired.items()
        if key in actual and actual[key] != value
    }
    delete = {
        key: value for key, value in actual.items() if key not in desired and may_delete(key, value)
    }
    return Delta(create, replace, delete)
