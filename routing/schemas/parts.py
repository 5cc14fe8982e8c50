"""Building blocks of structural schemas: OpenAPI v3 as Kubernetes takes it, and CEL rules. Pure.

Every text has a maxLength and every list a maxItems: without them the API server counts a rule as
if it ran over megabytes and refuses the whole definition. Rules stand on the field they are about
where they can, so that the error names it. A rule whose text must parse first is true where it does
not: another rule says that, and one mistake is one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from routing.datastore.fields import (
    ASN_MAX,
    ASN_PATTERN,
    CIDR_PATTERN,
    DURATION_PATTERN,
    NAME_MAX_CHARACTERS,
    NAME_PATTERN,
)
from routing.datastore.kinds.status import (
    CONDITIONS_MAX,
    COUNT_MAX,
    MESSAGE_MAX_CHARACTERS,
    REASON_MAX_CHARACTERS,
    REASON_PATTERN,
    TIME_PATTERN,
    TYPE_PATTERN,
)
from routing.datastore.selector import LENGTH_MAX as SELECTOR_MAX_CHARACTERS

Schema = dict[str, Any]

CIDR_MAX_CHARACTERS = 49
ADDRESS_MAX_CHARACTERS = 45
DURATION_MAX_CHARACTERS = 20
ASN_MAX_CHARACTERS = 11
ANY_MAX_CHARACTERS = 1024
"""Of a text that is refused whatever it says."""

FLOAT_EXACT_MAX = 2**53

IS_NETWORK = "isCIDR(self) && cidr(self) == cidr(self).masked()"
NOT_A_NETWORK = (
    "must be a network such as 10.244.0.0/16 or fd00:10:244::/64, without host bits and not "
    "IPv4-mapped"
)
IMMUTABLE = "cannot be changed; create another object"


def rule(expression: str, message: str) -> Schema:
    """One x-kubernetes-validations entry."""
    return {"rule": expression, "message": message}


def ruled(schema: Schema, *rules: Schema) -> Schema:
    """The schema with rules after those it has."""
    return {**schema, "x-kubernetes-validations": [*_rules_of(schema), *rules]}


def _rules_of(schema: Schema) -> list[Schema]:
    found: list[Schema] = schema.get("x-kubernetes-validations", [])
    return found


# -- scalars -------------------------------------------------------------------------------


def text(
    description: str,
    *,
    at_most: int,
    at_least: int = 0,
    pattern: str | None = None,
    default: str | None = None,
) -> Schema:
    """A text of ``at_least`` to ``at_most`` characters, all of it as ``pattern`` says."""
    schema: Schema = {"description": description, "type": "string", "maxLength": at_most}
    if at_least:
        schema["minLength"] = at_least
    if pattern is not None:
        schema["pattern"] = f"^({pattern})$"
    if default is not None:
        schema["default"] = default
    return schema


def choice(description: str, values: Sequence[str], *, default: str | None = None) -> Schema:
    """One of some texts."""
    schema: Schema = {"description": description, "type": "string", "enum": list(values)}
    return schema if default is None else schema | {"default": default}


def flag(description: str, *, default: bool) -> Schema:
    """true or false."""
    return {"description": description, "type": "boolean", "default": default}


def integer(description: str, *, low: int, high: int, default: int | None = None) -> Schema:
    """A whole number from low to high."""
    schema: Schema = {
        "description": description,
        "type": "integer",
        "format": "int64",
        "minimum": low,
    }
    # The API server keeps bounds as floating point, where 2**63 - 1 is 2**63: a bound that no
    # int64 has, and every value is refused. The format says it already.
    if high <= FLOAT_EXACT_MAX:
        schema["maximum"] = high
    return schema if default is None else schema | {"default": default}


def name(description: str) -> Schema:
    """A name of another object: DNS-1123 subdomain."""
    return text(description, at_most=NAME_MAX_CHARACTERS, pattern=NAME_PATTERN)


def cidr(description: str, *, version: int | None = None) -> Schema:
    """A network without host bits, of one family if given."""
    schema = ruled(
        text(description, at_most=CIDR_MAX_CHARACTERS, pattern=CIDR_PATTERN),
        rule(IS_NETWORK, NOT_A_NETWORK),
    )
    if version is None:
        return schema
    return ruled(
        schema,
        rule(
            f"!isCIDR(self) || cidr(self).ip().family() == {version}",
            f"must be of IPv{version}, as the list of rules it is in",
        ),
    )


def asn(description: str, *, default: int | None = None) -> Schema:
    """An AS number: a whole number, or text in plain or asdot form."""
    schema = ruled(
        {
            "description": description,
            "x-kubernetes-int-or-string": True,
            "maxLength": ASN_MAX_CHARACTERS,
            "pattern": f"^({ASN_PATTERN})$",
            "minimum": 1,
            "maximum": ASN_MAX,
        },
        rule(
            "type(self) == string ? !(self in ['0', '0.0']) : self >= 1",
            f"must be an AS number from 1 to {ASN_MAX}",
        ),
    )
    return schema if default is None else schema | {"default": default}


def duration(description: str, *rules: tuple[str, str], default: str | None = None) -> Schema:
    """Whole seconds as "9s", "2m" or "1h30m"; each rule is (expression over ``time``, message)."""
    pattern = f"^({DURATION_PATTERN})$"
    schema = text(
        description,
        # Each part has a digit and a letter, and there is one at least.
        at_least=2,
        at_most=DURATION_MAX_CHARACTERS,
        pattern=DURATION_PATTERN,
        default=default,
    )
    return ruled(
        schema,
        *(
            rule(
                f"self.size() < 2 || !self.matches('{pattern}') || "
                + expression.replace("time", "duration(self)"),
                message,
            )
            for expression, message in rules
        ),
    )


def selector(description: str, *, default: str | None = None) -> Schema:
    """Calico's selector language. Only the agents can parse it."""
    return text(description, at_least=1, at_most=SELECTOR_MAX_CHARACTERS, default=default)


def moment(description: str) -> Schema:
    """RFC 3339, UTC, whole seconds."""
    return text(description, at_most=20, pattern=TIME_PATTERN)


def count(description: str) -> Schema:
    """A number of things."""
    return integer(description, low=0, high=COUNT_MAX)


# -- structures ----------------------------------------------------------------------------


def mapping(
    description: str, properties: Mapping[str, Schema], *, required: Sequence[str] = ()
) -> Schema:
    """An object with these properties."""
    schema: Schema = {
        "description": description,
        "type": "object",
        "properties": dict(properties),
    }
    return schema | {"required": list(required)} if required else schema


def listed(
    description: str,
    items: Schema,
    *,
    at_most: int,
    at_least: int = 0,
    is_set: bool = False,
    key: str | None = None,
) -> Schema:
    """A list; ``is_set``: no scalar twice; ``key``: no two objects with the same."""
    schema: Schema = {
        "description": description,
        "type": "array",
        "maxItems": at_most,
        "items": items,
    }
    if at_least:
        schema["minItems"] = at_least
    if key is not None:
        schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
    else:
        schema["x-kubernetes-list-type"] = "set" if is_set else "atomic"
    return schema


def conditions() -> Schema:
    """metav1.Conditions, one of each type."""
    return listed(
        "What holds and what does not, each with a reason (one word) and a message (a sentence).",
        mapping(
            "A condition, as Kubernetes' own objects have them.",
            {
                "type": text("What it is about.", at_most=63, pattern=TYPE_PATTERN),
                "status": choice("Whether it holds.", ["True", "False", "Unknown"]),
                "reason": text(
                    "Why, in one word.", at_most=REASON_MAX_CHARACTERS, pattern=REASON_PATTERN
                ),
                "message": text("Why, in a sentence.", at_most=MESSAGE_MAX_CHARACTERS),
                "observedGeneration": count("The metadata.generation that was judged."),
                "lastTransitionTime": moment("When the status last changed."),
            },
            required=["type", "status", "reason"],
        ),
        at_most=CONDITIONS_MAX,
        key="type",
    )


# -- what Calico has and we do not ---------------------------------------------------------


def refused(why: str, shape: Schema) -> Schema:
    """A field of Calico's that is never accepted. It is in the schema so that it is not dropped."""
    return ruled({"description": f"Refused: {why}.", **shape}, rule("false", why))


def only(allowed: Sequence[object], why: str) -> Schema:
    """A field of Calico's that is accepted where it says what we do anyway."""
    if all(isinstance(each, bool) for each in allowed):
        shape: Schema = {"type": "boolean"}
        expression = "self" if allowed == (True,) else "!self"
    else:
        shape = {"type": "string", "maxLength": ANY_MAX_CHARACTERS}
        expression = f"self in [{', '.join(repr(each) for each in allowed)}]"
    return ruled({"description": f"{why[0].upper()}{why[1:]}.", **shape}, rule(expression, why))


ANY_TEXT: Schema = {"type": "string", "maxLength": ANY_MAX_CHARACTERS}
ANY_INTEGER: Schema = {"type": "integer", "format": "int64"}
ANY_OBJECT: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
