"""BGPFilter: the first rule that matches decides, and a route that none matches is accepted. Pure.

A name that no BGPFilter has rejects everything: what was to be kept out or kept in is not known
then, and a filter may well be created a moment after the peer that refers to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from routing.datastore.snapshot import (
    BGPFilterResource,
    ExportAttributes,
    FilterAction,
    FilterRule,
    MatchOperator,
    Snapshot,
)
from routing.routes import Prefix

FILTERED = "filtered"
FILTER_MISSING = "filter-missing"
NO_ATTRIBUTES = ExportAttributes()


class Direction(Enum):
    """Of a route, as this node sees it."""

    IMPORT = "import"
    EXPORT = "export"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reason`` None accepts; else a token, with ``detail`` a sentence. ``attributes`` are what
    the accepting rule sets."""

    reason: str | None = None
    detail: str = ""
    attributes: ExportAttributes = NO_ATTRIBUTES


class Filters:
    """All BGPFilters of a snapshot, by name."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._by_name: Mapping[str, BGPFilterResource] = {
            each.meta.name: each for each in snapshot.filters
        }

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that there is no BGPFilter of."""
        return [name for name in names if name not in self._by_name]

    def judge(
        self,
        names: Iterable[str],
        direction: Direction,
        prefix: Prefix,
        *,
        communities: frozenset[str] = frozenset(),
        as_path: tuple[int, ...] = (),
    ) -> Verdict:
        """What the filters ``names``, one after the other, say of a route."""
        for name in names:
            found = self._by_name.get(name)
            if found is None:
                return Verdict(FILTER_MISSING, f"there is no BGPFilter {name!r}")
            for number, rule in enumerate(_rules(found, direction, prefix.version), 1):
                if not matches(rule, prefix, communities=communities, as_path=as_path):
                    continue
                if rule.action is FilterAction.ACCEPT:
                    return Verdict(attributes=rule.set_attributes)
                return Verdict(
                    FILTERED,
                    f"BGPFilter {name!r}: {direction.value} rule {number} (IPv{prefix.version}) "
                    "rejects it",
                )
        return Verdict()


def compared_prefixes(snapshot: Snapshot) -> Iterator[Prefix]:
    """Every prefix that a rule of some filter names for import."""
    for each in snapshot.filters:
        for rule in (*each.import_v4, *each.import_v6):
            if rule.cidr is not None:
                yield rule.cidr


def compared_asns(snapshot: Snapshot) -> Iterator[int]:
    """Every AS number that a rule of some filter names for import."""
    for each in snapshot.filters:
        for rule in (*each.import_v4, *each.import_v6):
            yield from rule.as_path_prefix


def _rules(found: BGPFilterResource, direction: Direction, version: int) -> tuple[FilterRule, ...]:
    if direction is Direction.IMPORT:
        return found.import_v4 if version == 4 else found.import_v6
    return found.export_v4 if version == 4 else found.export_v6


def matches(
    rule: FilterRule, prefix: Prefix, *, communities: frozenset[str], as_path: tuple[int, ...]
) -> bool:
    """Whether every condition of ``rule`` holds. ``communities`` are the plain and large ones."""
    return (
        _matches_prefix(rule, prefix)
        and communities.issuperset(rule.communities)
        and as_path[: len(rule.as_path_prefix)] == rule.as_path_prefix
    )


def _matches_prefix(rule: FilterRule, prefix: Prefix) -> bool:
    if rule.cidr is None:
        return True
    operator = rule.operator or MatchOperator.IN
    if operator is MatchOperator.EQUAL:
        return prefix == rule.cidr
    if operator is MatchOperator.NOT_EQUAL:
        return prefix != rule.cidr
    lowest = 0 if rule.min_length is None else rule.min_length
    highest = prefix.max_prefixlen if rule.max_length is None else rule.max_length
    is_in = (
        prefix.version == rule.cidr.version
        and prefix.subnet_of(rule.cidr)  # type: ignore[arg-type]
        and lowest <= prefix.prefixlen <= highest
    )
    return is_in is (operator is MatchOperator.IN)
