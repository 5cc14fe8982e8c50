"""What BGP writes on routes, as documents have it: communities and export attributes. Pure.

The patterns are shared with the custom resources' schemas, so that both accept the same texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from routing.datastore.fields import Fields, Malformed
from routing.datastore.snapshot import ExportAttributes

COMMUNITIES_MAX = 32
PREPEND_MAX = 10
"""More says nothing more: paths that long lose against every other already."""
U32_MAX = 4294967295

_U16 = "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}|0)"
_U32 = (
    "(429496729[0-5]|42949672[0-8][0-9]|4294967[01][0-9]{2}|429496[0-6][0-9]{3}"
    "|42949[0-5][0-9]{4}|4294[0-8][0-9]{5}|429[0-3][0-9]{6}|42[0-8][0-9]{7}|4[01][0-9]{8}"
    "|[1-3][0-9]{9}|[1-9][0-9]{0,8}|0)"
)
COMMUNITY_PATTERN = f"{_U16}:{_U16}"
"""RFC 1997: two numbers of 16 bits."""
LARGE_COMMUNITY_PATTERN = f"{_U32}:{_U32}:{_U32}"
"""RFC 8092: three numbers of 32 bits."""

_COMMUNITY = re.compile(COMMUNITY_PATTERN)
_LARGE = re.compile(LARGE_COMMUNITY_PATTERN)


def parse_community(value: object) -> str:
    """A standard community, ``a:b``. Raises Malformed."""
    if isinstance(value, str) and _COMMUNITY.fullmatch(value):
        return value
    raise Malformed("must be a community a:b of two numbers from 0 to 65535 (RFC 1997)")


def parse_large_community(value: object) -> str:
    """A large community, ``a:b:c``. Raises Malformed."""
    if isinstance(value, str) and _LARGE.fullmatch(value):
        return value
    raise Malformed("must be a large community a:b:c of numbers from 0 to 4294967295 (RFC 8092)")


def parse_any_community(value: object) -> str:
    """A community of either form. Raises Malformed."""
    if isinstance(value, str) and (_COMMUNITY.fullmatch(value) or _LARGE.fullmatch(value)):
        return value
    raise Malformed(
        "must be a community a:b of numbers from 0 to 65535, or a:b:c of numbers to 4294967295"
    )


def is_large(community: str) -> bool:
    """Whether a community that was parsed is a large one."""
    return community.count(":") == 2


def parted(communities: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(standard, large) of communities that were parsed, each in the order given."""
    given = tuple(communities)
    return (
        tuple(each for each in given if not is_large(each)),
        tuple(each for each in given if is_large(each)),
    )


def read_attributes(fields: Fields) -> ExportAttributes:
    """``export`` of a BGPPeer.

    Raises:
        InvalidResource: names the field, the value and the rule.
    """
    attributes = ExportAttributes(
        communities=fields.distinct("communities", parse_community, at_most=COMMUNITIES_MAX),
        large_communities=fields.distinct(
            "largeCommunities", parse_large_community, at_most=COMMUNITIES_MAX
        ),
        med=fields.optional_integer("med", low=0, high=U32_MAX),
        local_pref=fields.optional_integer("localPreference", low=0, high=U32_MAX),
        prepend=fields.integer("prepend", default=0, low=0, high=PREPEND_MAX),
    )
    fields.done()
    return attributes


def attributes_document(attributes: ExportAttributes) -> dict[str, Any]:
    """What ``read_attributes`` reads back; {} for no attributes."""
    document: dict[str, Any] = {
        "communities": list(attributes.communities),
        "largeCommunities": list(attributes.large_communities),
        "med": attributes.med,
        "localPreference": attributes.local_pref,
        "prepend": attributes.prepend or None,
    }
    return {key: value for key, value in document.items() if value not in ([], None)}
