"""YAML and JSON text to plain values and back, strictly. Pure.

YAML as Kubernetes people use it, without what makes it dangerous or surprising: no anchors and
aliases (a few lines of them expand to gigabytes), no tags, no duplicate keys (the last one would
win in silence), bounded size and depth. Plain scalars are read as YAML 1.2 does: ``no`` and
``0x10`` and ``12:30`` are text.

JSON is read as JSON, by the same rules: YAML's parser knows no surrogate pairs in escapes, with
which every JSON writer may write a character beyond U+FFFF.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import yaml

from routing.datastore.snapshot import InvalidResource

INPUT_MAX_BYTES = 1 << 20
DEPTH_MAX = 32

_BOOL = "tag:yaml.org,2002:bool"
_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_NULL = "tag:yaml.org,2002:null"

_RESOLVERS: tuple[tuple[str, re.Pattern[str], list[str]], ...] = (
    (_BOOL, re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    (_INT, re.compile(r"[-+]?[0-9]{1,20}\Z"), list("-+0123456789")),
    (
        _FLOAT,
        re.compile(
            r"[-+]?(?:[0-9]{21,}|(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
            r"|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        list("-+.0123456789"),
    ),
    (_NULL, re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
)


class InvalidDocument(InvalidResource):
    """The text is not a document, before any resource in it could be named."""

    def __init__(self, source: str, rule: str) -> None:
        super().__init__("document", source, "text", "", rule)
        self.args = (f"{source}: {rule}",)


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """libyaml's parser where PyYAML has it, with our scalar rules instead of YAML 1.1's."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or we would read as something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never writes an alias: we would refuse to read it."""
        del data
        return True


for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def load(text: str, *, source: str) -> list[Mapping[str, Any]]:
    """The non-empty documents of a YAML or JSON text, each a mapping.

    Args:
        text: at most 1 MiB.
        source: what to call it in errors, such as a file's name.

    Raises:
        InvalidDocument: the text breaks a rule; the sentence names the line where there is one.
    """
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidDocument(source, "is not text in UTF-8") from None
    if size_bytes > INPUT_MAX_BYTES:
        raise InvalidDocument(source, f"is larger than {INPUT_MAX_BYTES} bytes (1 MiB)")
    values = _load_json(text, source)
    if values is None:
        values = _load_yaml(text, source)
    documents: list[Mapping[str, Any]] = []
    for value in values:
        if value is None:
            continue
        if not isinstance(value, dict):
            raise InvalidDocument(source, "a document must be a mapping with apiVersion and kind")
        documents.append(value)
    return documents


def dump(documents: Iterable[Mapping[str, Any]]) -> str:
    """YAML that ``load`` reads back, keys in the order given."""
    return yaml.dump_all(
        documents, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=False
    )


def _load_json(text: str, source: str) -> list[Any] | None:
    """The text as one JSON value, or None when it is not JSON (nor too deep to be sure)."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InvalidDocument(source, f"{twice[:80]!r} is given twice")
        return found

    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_int=_number)
    except (json.JSONDecodeError, RecursionError):
        return None
    _check_plain(value, source)
    return [value]


def _number(text: str) -> int | float:
    """An integer of at most 20 digits; a longer one is no number any field of ours takes."""
    return int(text) if len(text) <= 20 else float("inf")


def _check_plain(value: Any, source: str) -> None:
    """Refuses what JSON can say and YAML cannot: half characters; and endless nesting."""
    level, depth = [value], 0
    while level:
        depth += any(isinstance(each, dict | list) for each in level)
        if depth > DEPTH_MAX:
            raise InvalidDocument(source, f"nested deeper than {DEPTH_MAX} levels")
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += [*each.keys(), *each.values()]
            elif isinstance(each, list):
                inner += each
            elif isinstance(each, str) and any("\ud800" <= c <= "\udfff" for c in each):
                raise InvalidDocument(source, "has half a surrogate pair in a text")
        level = inner


def _load_yaml(text: str, source: str) -> list[Any]:
    try:
        _check_events(yaml.parse(text, Loader=_Loader), source)
        return [_value(node, source) for node in yaml.compose_all(text, Loader=_Loader)]
    except yaml.YAMLError as error:
        raise InvalidDocument(source, _sentence(error)) from None


def _check_events(events: Iterable[Any], source: str) -> None:
    """Refuses what must not be built: parsing events needs no recursion, building nodes does."""
    depth = 0
    for event in events:
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise InvalidDocument(source, f"{line}: anchors and aliases are not accepted")
        if getattr(event, "tag", None) is not None:
            raise InvalidDocument(source, f"{line}: tags (such as {event.tag!r}) are not accepted")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_MAX:
                raise InvalidDocument(source, f"{line}: nested deeper than {DEPTH_MAX} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _value(node: Any, source: str) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, source) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return dict(_pairs(node, source))
    text = str(node.value)
    if node.tag == _BOOL:
        return text.lower() == "true"
    if node.tag == _INT:
        return int(text)
    if node.tag == _FLOAT:
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return None if node.tag == _NULL else text


def _pairs(node: Any, source: str) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    for key_node, value_node in node.value:
        key = _value(key_node, source) if isinstance(key_node, yaml.ScalarNode) else None
        line = f"line {key_node.start_mark.line + 1}"
        if not isinstance(key, str):
            raise InvalidDocument(source, f"{line}: a key must be text")
        if key in seen:
            raise InvalidDocument(source, f"{line}: {key[:80]!r} is given twice")
        seen.add(key)
        yield key, _value(value_node, source)


def _sentence(error: yaml.YAMLError) -> str:
    """One line of what PyYAML tells in several."""
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or error).splitlines()[0]
    if mark is None:
        return f"is not YAML: {problem}"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
