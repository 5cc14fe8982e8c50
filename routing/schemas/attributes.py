"""What several kinds share: passwords, communities, what is written on routes. Pure."""

from __future__ import annotations

from routing.datastore.kinds.attributes import (
    COMMUNITIES_MAX,
    COMMUNITY_PATTERN,
    LARGE_COMMUNITY_PATTERN,
    PREPEND_MAX,
    U32_MAX,
)
from routing.datastore.kinds.peer import FILTERS_MAX, RESTART_TIME_MAX_S
from routing.datastore.kinds.secret import KEY_PATTERN, NOT_OPTIONAL
from routing.schemas.parts import (
    Schema,
    duration,
    integer,
    listed,
    mapping,
    name,
    only,
    text,
)

COMMUNITY_MAX_CHARACTERS = 11
LARGE_COMMUNITY_MAX_CHARACTERS = 32
ANY_COMMUNITY_PATTERN = f"{COMMUNITY_PATTERN}|{LARGE_COMMUNITY_PATTERN}"


def any_community(description: str) -> Schema:
    """A community of either form."""
    return text(description, at_most=LARGE_COMMUNITY_MAX_CHARACTERS, pattern=ANY_COMMUNITY_PATTERN)


def password(description: str) -> Schema:
    """A reference to a key of a Secret in slash32's namespace."""
    return mapping(
        description,
        {
            "secretKeyRef": mapping(
                "Which key of which Secret, in the namespace slash32 runs in.",
                {
                    "name": name("The Secret's name."),
                    "key": text("Its key.", at_most=253, pattern=KEY_PATTERN),
                    "optional": only((False,), NOT_OPTIONAL),
                },
                required=["name", "key"],
            )
        },
        required=["secretKeyRef"],
    )


def restart_time(description: str) -> Schema:
    """A restart time of graceful restart."""
    return duration(
        description,
        (
            f"time <= duration('{RESTART_TIME_MAX_S}s')",
            f"must be at most {RESTART_TIME_MAX_S}s (RFC 4724)",
        ),
        default="120s",
    )


def filters(description: str) -> Schema:
    """Names of BGPFilters."""
    return listed(description, name("A BGPFilter."), at_most=FILTERS_MAX, is_set=True)


def export_attributes(description: str) -> Schema:
    """What is written on routes that are announced."""
    return mapping(
        description,
        {
            "communities": listed(
                "Standard communities to add (RFC 1997).",
                text(
                    "Two numbers of 16 bits: a:b.",
                    at_most=COMMUNITY_MAX_CHARACTERS,
                    pattern=COMMUNITY_PATTERN,
                ),
                at_most=COMMUNITIES_MAX,
                is_set=True,
            ),
            "largeCommunities": listed(
                "Large communities to add (RFC 8092).",
                text(
                    "Three numbers of 32 bits: a:b:c.",
                    at_most=LARGE_COMMUNITY_MAX_CHARACTERS,
                    pattern=LARGE_COMMUNITY_PATTERN,
                ),
                at_most=COMMUNITIES_MAX,
                is_set=True,
            ),
            "med": integer("MULTI_EXIT_DISC.", low=0, high=U32_MAX),
            "localPreference": integer("LOCAL_PREF, on iBGP sessions alone.", low=0, high=U32_MAX),
            "prepend": integer(
                "How many times more our AS number stands in AS_PATH.",
                low=0,
                high=PREPEND_MAX,
                default=0,
            ),
        },
    )
