"""Resources and what is kept of them: documents of every kind, selectors, the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import ip_network
from typing import Any

from routing.datastore.cache_format import CacheUnusable, decode, encode
from routing.datastore.documents import dump
from routing.datastore.resources import from_document, parse_resources, to_document
from routing.datastore.selector import Selector, SelectorError
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPFilterResource,
    BGPPeerResource,
    BlockResource,
    InvalidResource,
    IPPoolResource,
    Meta,
    NodeResource,
    Resource,
    SecretKeyRef,
    SecretResource,
    Snapshot,
)
from routing.topology import sessions_for
from tests.fuzz.documents import DOCUMENTS
from tests.fuzz.draw import Draw
from tests.fuzz.target import Broken, Target

POOLS = (
    IPPoolResource(Meta("pods"), ip_network("10.244.0.0/16"), 26),
    IPPoolResource(Meta("pods6"), ip_network("fd00::/64"), 122),
    IPPoolResource(
        Meta("named"), ip_network("10.250.0.0/24"), 28, namespace_selector="team == 'a'"
    ),
)


def read(document: Any) -> Resource | None:
    """The resource; None when it is refused in one sentence; Broken when it does not read back."""
    try:
        resource = from_document(document)
    except InvalidResource as error:
        if len(str(error).splitlines()) != 1:
            raise Broken(f"not one line: {error!r}") from None
        return None
    if from_document(to_document(resource, with_secrets=True)) != resource:
        raise Broken(f"does not read back: {resource}")
    return resource


def resource_document(data: bytes) -> bool:
    """A document of any kind with damage anywhere."""
    draw = Draw(data)
    document = draw.damaged(draw.choice(DOCUMENTS))
    if draw.below(8) == 7:
        # Parts of another kind in this one.
        other = draw.choice(DOCUMENTS)
        document |= {key: value for key, value in other.items() if draw.below(2)}
    return read(document) is not None


def document_seeds() -> Iterator[bytes]:
    """Each document unhurt, and with a little damage."""
    for number in range(len(DOCUMENTS)):
        yield bytes([number])
        for what in range(8):
            yield bytes([number, 1, 3, 1, 0, what, 0, 5])
            yield bytes([number, 2, 3, 1, 1, what, 3, 9, 2, 1, 0, what, 1, 4])


def resource_text(data: bytes) -> bool:
    """A file for ``slash32 apply``."""
    text = _drawn_text(data).decode("utf-8", "surrogateescape")
    try:
        resources = parse_resources(text, source="f")
    except InvalidResource as error:
        if len(str(error).splitlines()) != 1:
            raise Broken(f"not one line: {error!r}") from None
        return False
    shown = dump([to_document(each, with_secrets=True) for each in resources])
    if parse_resources(shown, source="f") != resources:
        raise Broken("does not read back as YAML")
    return True


_PIECES = (
    b": ", b"\n", b"- ", b"---\n", b'"', b"'", b"{", b"}", b"[", b"]", b"# ", b"&a ", b"*a",
    b"|\n", b">-\n", b"\t", b"  ", b"? ", b"~", b"null", b"yes", b"0x1F", b"1_000", b"<<: ",
    b"\\u0000", b"\xff", b"\xe2\x80\xa8", b"kind: Node\n", b"%YAML 1.1\n",
)  # fmt: skip


def _drawn_text(data: bytes) -> bytes:
    """A file as somebody wrote it, in YAML or JSON, with little or much damage; or any bytes."""
    draw = Draw(data)
    form = draw.below(4)
    if form == 3:
        return draw.rest()
    documents = [draw.choice(DOCUMENTS) for _ in range(1 + draw.below(3))]
    if form == 2:
        documents = [draw.damaged(each) for each in documents]
    if draw.below(2):
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}).encode()
    else:
        text = dump(documents).encode("utf-8", "surrogatepass")
    return draw.spliced(text, _PIECES)


def text_seeds() -> Iterator[bytes]:
    """YAML and JSON of every kind, the lists, and what YAML has against its readers."""
    for number in range(len(DOCUMENTS)):
        for form in (0, 1, 2):
            for kind in (0, 1):
                yield bytes([form, 0, number, kind])
                yield bytes([form, 1, number, number + 1, kind, 1, 0, 40, 0, number])
    for piece in range(len(_PIECES)):
        yield bytes([0, 0, piece, 0, 1, 0, 30 + piece, 0, piece])
    for text in (b"a: &a [x, x]\nb: *a\n", b"{" * 2000, b"? - - - [\n", dump(DOCUMENTS).encode()):
        yield b"\3" + text


def selector(data: bytes) -> bool:
    """An expression over labels."""
    try:
        found = Selector.parse(_drawn_selector(data))
    except SelectorError:
        return False
    for labels in ({}, {"rack": "a"}, {"rack": "b", "x": ""}):
        if found.matches(labels) not in (True, False):
            raise Broken("neither true nor false")
    return True


_LABELS = ("rack", "x.io/y", "a", "has", "all", "in", "x" * 63, "", "a-b", "1")
_VALUES = ("'b'", '"b"', "''", "'a b'", "'", "b", "'\u00e9'", '"\'"', "'&&'")


def _expression(draw: Draw, depth: int = 0) -> str:
    kind = draw.below(10 if depth < 4 else 7)
    label, value = draw.choice(_LABELS), draw.choice(_VALUES)
    if kind == 0:
        return draw.choice(("all()", "all( )", "global()", "ALL()", "all"))
    if kind == 1:
        return f"has({label})"
    if kind in (2, 3):
        return f"{label} {draw.choice(('==', '!=', '=', '==='))} {value}"
    if kind == 4:
        values = ", ".join(draw.choice(_VALUES) for _ in range(draw.below(4)))
        return f"{label} {draw.choice(('in', 'not in', 'notin'))} {{{values}}}"
    if kind in (5, 6):
        how = draw.choice(("contains", "starts with", "ends with", "starts  with", "startswith"))
        return f"{label} {how} {value}"
    if kind == 7:
        return f"!{_expression(draw, depth + 1)}"
    if kind == 8:
        return f"({_expression(draw, depth + 1)})"
    word = draw.choice((" && ", " || ", "&&", "||", " & ", " and "))
    return _expression(draw, depth + 1) + word + _expression(draw, depth + 1)


def _drawn_selector(data: bytes) -> str:
    """One of the language's, with a little damage; or any text."""
    draw = Draw(data)
    if draw.below(4) == 3:
        return draw.rest().decode("utf-8", "replace")
    text = _expression(draw).encode()
    pieces = (b"!", b"(", b")", b"'", b'"', b"{", b"}", b",", b"&&", b"||", b" ", b"\n", b"\xff")
    return draw.spliced(text, pieces, 2).decode("utf-8", "replace")


def selector_seeds() -> Iterator[bytes]:
    """Every operator."""
    for text in (
        b"all()",
        b"rack in {'a', \"b\"} && !has(x)",
        b"(a == 'b' || c != \"d\") && e not in {'f'} && g contains 'h' && i starts with 'j'",
        b"!" * 300 + b"has(a)",
        b"(" * 300 + b"has(a)" + b")" * 300,
    ):
        yield b"\3" + text
    for kind in range(10):
        for label in range(len(_LABELS)):
            yield bytes([0, kind, label, label % len(_VALUES), 0, label, label, 0, 1, 2])


# -- the cache ---------------------------------------------------------------------------------


def cache_bytes(data: bytes) -> bool:
    """The file as it is found."""
    try:
        snapshot = decode(_drawn_cache(data), node="node-1", boot_id="b")
    except CacheUnusable as error:
        if "\n" in str(error):
            raise Broken(f"not one line: {error!r}") from None
        return False
    sessions_for(snapshot, "node-1")
    return True


def _drawn_cache(data: bytes) -> bytes:
    """A header and a body, each damaged as text, mostly with the digest that belongs to them."""
    draw = Draw(data)
    form = draw.below(4)
    if form == 3:
        return draw.spliced(_sealed(), (b"0", b"f", b"\n", b" ", b"node=", b""), 4) + draw.rest()
    body = _sealed().partition(b"\n")[2]
    pieces = (
        b'"',
        b"{",
        b"}",
        b"[",
        b",",
        b":",
        b"null",
        b"0",
        b"1e999",
        b"NaN",
        b"\\",
        b"\xff",
        b"9",
    )
    if form:
        body = draw.spliced(body, pieces)
    header = b"slash32-cache 1 node=node-1 boot=b"
    if draw.below(4) == 3:
        header = draw.spliced(header, (b" ", b"2", b"node=", b"boot=", b"\n", b"\xff", b"="), 2)
    digest = hashlib.sha256(header + b"\n" + body).hexdigest().encode()
    return header + b" sha256=" + digest + b"\n" + body


def cache_body(data: bytes) -> bool:
    """A body with damage under a checksum that holds: another version's, or a forger's."""
    draw = Draw(data)
    body = draw.damaged(draw.damaged(_body()))
    text = json.dumps(body).encode() + b"\n"
    header = b"slash32-cache 1 node=node-1 boot=" + draw.choice((b"b", b"c"))
    digest = hashlib.sha256(header + b"\n" + text).hexdigest().encode()
    raw = header + b" sha256=" + digest + b"\n" + text
    try:
        snapshot = decode(raw, node="node-1", boot_id="b")
    except CacheUnusable as error:
        if "\n" in str(error):
            raise Broken(f"not one line: {error!r}") from None
        return False
    sessions_for(snapshot, "node-1")
    if decode(encode(snapshot, node="n", boot_id="b"), node="n", boot_id="b") != snapshot:
        raise Broken("is not written back alike")
    return True


@lru_cache(maxsize=1)
def _sealed() -> bytes:
    return encode(whole_snapshot(), node="node-1", boot_id="b")


def _body() -> Any:
    return json.loads(_sealed().partition(b"\n")[2])


def cache_seeds() -> Iterator[bytes]:
    """A whole one, cut ones, changed ones."""
    for form in range(4):
        yield bytes([form])
        for place in range(0, 240, 20):
            yield bytes([form, 1, place >> 4, place << 4 & 255, 0, place % 13, 2])
            yield bytes([form, 0, 3, 1, 0, place % 34, 0, place % 7, 2])


def body_seeds() -> Iterator[bytes]:
    """Some damage in each part."""
    yield b""
    for part in range(6):
        for what in range(8):
            yield bytes([1, part, 1, 0, 1, 1, 1, what, 0, 3])


# -- a whole cluster ---------------------------------------------------------------------------


def snapshot_of_all(resources: list[Resource]) -> Snapshot:
    def of(kind: type) -> tuple[Any, ...]:
        return tuple(each for each in resources if isinstance(each, kind))

    configurations = of(BGPConfigurationResource)
    passwords = {
        SecretKeyRef(secret.meta.name, key): password
        for secret in of(SecretResource)
        for key, password in secret.passwords.items()
    }
    return Snapshot(
        pools=of(IPPoolResource),
        nodes=of(NodeResource),
        peers=of(BGPPeerResource),
        filters=of(BGPFilterResource),
        blocks=tuple(each.block for each in of(BlockResource)),
        bgp=configurations[0] if configurations else BGPConfigurationResource(Meta("default")),
        passwords=passwords,
        in_sync=True,
    )


@lru_cache(maxsize=1)
def whole_snapshot() -> Snapshot:
    """Every kind, as a cluster would have it."""
    return snapshot_of_all([from_document(each) for each in DOCUMENTS])


TARGETS = (
    Target(
        "resource-document",
        "a document of each kind, damaged anywhere",
        resource_document,
        document_seeds,
    ),
    Target(
        "resource-text",
        "YAML and JSON as they are applied",
        resource_text,
        text_seeds,
        (b"kind: ", b"spec:\n", b"apiVersion: slash32.io/v1"),
        floor=0.1,
        weight=5,
    ),
    Target(
        "selector",
        "an expression over labels",
        selector,
        selector_seeds,
        (b" in {", b"has(", b" && ", b" || ", b"starts with"),
        floor=0.1,
        weight=15,
    ),
    Target(
        "cache-bytes",
        "the last-known-good cache as bytes",
        cache_bytes,
        cache_seeds,
        (b"slash32-cache 1 ",),
        floor=0.05,
        weight=5,
    ),
    Target(
        "cache-body",
        "a damaged cache whose checksum holds",
        cache_body,
        body_seeds,
        weight=5,
    ),
)
