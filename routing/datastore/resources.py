"""Resources <-> documents: typed values from YAML and JSON, with errors that name the field. Pure.

The documents are the custom resources': ``apiVersion: slash32.io/v1``, a kind, metadata, spec or
status; field names and meanings as in Calico v3 where the meaning is the same. Unknown fields are
refused by name, and fields of Calico's that we do not honour with the reason, never ignored. What
is in each kind is in ``kinds/``; rules that need other resources are in ``rules.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from routing.datastore.documents import InvalidDocument, load
from routing.datastore.fields import Fields
from routing.datastore.kinds import (
    bgpfilter,
    block,
    configuration,
    node,
    peer,
    pool,
    secret,
    status,
)
from routing.datastore.kinds.block import block_name, block_resource
from routing.datastore.metadata import metadata_document, read_meta
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPFilterResource,
    BGPPeerResource,
    BlockResource,
    InvalidResource,
    IPPoolResource,
    Meta,
    NodeResource,
    NodeStatusResource,
    Resource,
    SecretResource,
)

__all__ = [
    "API_VERSION",
    "KINDS",
    "api_version_of",
    "block_name",
    "block_resource",
    "from_document",
    "kind_of",
    "parse_resources",
    "resolve_kind",
    "spec_of",
    "to_document",
    "with_meta",
]

API_VERSION = "slash32.io/v1"
LIST_API_VERSIONS = ("v1", API_VERSION)

_ALIASES = {
    "IPPool": ("ippool", "ippools", "pool", "pools"),
    "Node": ("node", "nodes"),
    "BGPPeer": ("bgppeer", "bgppeers", "peer", "peers"),
    "BGPFilter": ("bgpfilter", "bgpfilters", "filter", "filters"),
    "BGPConfiguration": ("bgpconfiguration", "bgpconfigurations", "bgpconfig", "bgpconfigs"),
    "Block": ("block", "blocks"),
    "NodeStatus": ("nodestatus", "nodestatuses", "status"),
    "Secret": ("secret", "secrets"),
}
KINDS = tuple(_ALIASES)
_LISTS = ("List", *(f"{kind}List" for kind in KINDS))
"""kubectl writes List; calicoctl writes IPPoolList and the like."""
_CORE = ("Secret",)
"""Kinds that are Kubernetes' own, ``apiVersion: v1``."""
_NEEDS_SPEC = ("IPPool", "BGPPeer", "Block")
_MAY_HAVE_STATUS = ("IPPool", "BGPPeer", "Block", "BGPFilter", "BGPConfiguration")


def resolve_kind(word: str) -> str | None:
    """The kind an operator means by a word (any case, singular or plural), or None."""
    return next((kind for kind, words in _ALIASES.items() if word.lower() in words), None)


def kind_of(resource: Resource) -> str:
    """The kind of a resource, as its document has it."""
    match resource:
        case IPPoolResource():
            return "IPPool"
        case NodeResource():
            return "Node"
        case BGPPeerResource():
            return "BGPPeer"
        case BGPConfigurationResource():
            return "BGPConfiguration"
        case BlockResource():
            return "Block"
        case BGPFilterResource():
            return "BGPFilter"
        case NodeStatusResource():
            return "NodeStatus"
        case SecretResource():
            return "Secret"


def api_version_of(kind: str) -> str:
    """The apiVersion of documents of a kind."""
    return "v1" if kind in _CORE else API_VERSION


def parse_resources(text: str, *, source: str) -> list[Resource]:
    """Every resource of a YAML or JSON text: several documents and ``List`` are opened.

    Raises:
        InvalidResource: a document or a resource breaks a rule, or one is given twice.
    """
    found: dict[tuple[str, str], Resource] = {}
    for document in _opened(load(text, source=source), source):
        resource = from_document(document)
        key = (kind_of(resource), resource.meta.name)
        if key in found:
            raise InvalidResource(*key, "metadata.name", key[1], f"is given twice in {source}")
        found[key] = resource
    if not found:
        raise InvalidDocument(source, "holds no resource")
    return list(found.values())


def _opened(documents: Iterable[Mapping[str, Any]], source: str) -> list[Mapping[str, Any]]:
    opened: list[Mapping[str, Any]] = []
    for document in documents:
        kind = document.get("kind")
        if kind not in _LISTS:
            opened.append(document)
            continue
        # Its items may be Secrets, whose values no error may show.
        fields = Fields(str(kind), source, "", document, hides=kind == "SecretList")
        fields.take("kind")
        version = fields.take("apiVersion")
        if version not in LIST_API_VERSIONS:
            raise fields.error("apiVersion", version, f"must be {' or '.join(LIST_API_VERSIONS)}")
        metadata = fields.section("metadata")
        for key in ("resourceVersion", "continue", "remainingItemCount", "selfLink"):
            metadata.known(key)
        metadata.done()
        for key, item in fields.items("items", at_most=100_000):
            if not isinstance(item, dict) or item.get("kind") in _LISTS:
                raise fields.error(key, item, "must be a resource")
            opened.append(item)
        fields.done()
    return opened


def from_document(document: Mapping[str, Any], *, is_stored: bool = False) -> Resource:
    """The resource a document describes.

    Fields that are unknown are errors in what people write, where they are mistakes; in what a
    store has (``is_stored``) a later version wrote them, before this one was put back.

    A ``status`` beside a spec is what agents reported, and no part of the resource.

    Raises:
        InvalidResource: names the field, the value and the rule.
    """
    kind = document.get("kind")
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    top = Fields(
        kind if isinstance(kind, str) else "document",
        name if isinstance(name, str) else "",
        "",
        document,
        hides=_may_be_secret(document),
        is_stored=is_stored,
    )
    kind = top.take("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise top.named_error("kind", kind, f"must be one of {', '.join(KINDS)}, List")
    version = top.take("apiVersion")
    if version != api_version_of(kind):
        raise top.named_error("apiVersion", version, f"must be {api_version_of(kind)}")
    meta = read_meta(top.section("metadata", is_required=True), is_namespaced=kind in _CORE)
    resource = _read(kind, meta, top)
    top.done()
    return resource


def _may_be_secret(document: Mapping[str, Any]) -> bool:
    """Also where the kind is misspelt: what has data is not repeated to the terminal."""
    return document.get("kind") == "Secret" or "data" in document or "stringData" in document


def _read(kind: str, meta: Meta, top: Fields) -> Resource:
    if kind == "Secret":
        return secret.read(meta, top)
    if kind == "NodeStatus":
        top.section("spec").done()
        reported = top.section("status")
        found = status.read_node_status(meta, reported)
        reported.done()
        return found
    spec = top.section("spec", is_required=kind in _NEEDS_SPEC)
    if kind in _MAY_HAVE_STATUS and top.has("status"):
        top.section("status")
    resource = _READERS[kind](meta, spec)
    spec.done()
    return resource


_READERS: Mapping[str, Callable[[Meta, Fields], Resource]] = {
    "IPPool": pool.read,
    "Node": node.read,
    "BGPPeer": peer.read,
    "BGPFilter": bgpfilter.read,
    "BGPConfiguration": configuration.read,
    "Block": block.read,
}


def with_meta(resource: Resource, *, resource_version: str, uid: str, generation: int) -> Resource:
    """The resource as the store has it: with the store's own version, uid and generation."""
    meta = replace(resource.meta, resource_version=resource_version, uid=uid, generation=generation)
    if isinstance(resource, BlockResource):
        return block_resource(resource.block, meta)
    return replace(resource, meta=meta)


def to_document(resource: Resource, *, with_secrets: bool = False) -> dict[str, Any]:
    """The document of a resource; ``from_document`` reads it back to an equal value.

    Args:
        with_secrets: a Secret's values stand in it, for a store to keep. Without, they are hidden,
            and the document cannot be read back.
    """
    kind = kind_of(resource)
    document = {
        "apiVersion": api_version_of(kind),
        "kind": kind,
        "metadata": metadata_document(resource.meta),
    }
    match resource:
        case SecretResource(passwords=passwords):
            return document | secret.content(passwords, with_secrets=with_secrets)
        case NodeStatusResource():
            return document | {"status": status.node_status_document(resource)}
        case _:
            return document | {"spec": spec_of(resource)}


def spec_of(resource: Resource) -> dict[str, Any]:
    """The spec of a resource's document; what ``generation`` counts changes of.

    A NodeStatus has none. A Secret's are its passwords, which print as stars: to compare only.
    """
    match resource:
        case IPPoolResource():
            return pool.spec(resource)
        case NodeResource():
            return node.spec(resource)
        case BGPPeerResource():
            return peer.spec(resource)
        case BGPFilterResource():
            return bgpfilter.spec(resource)
        case BGPConfigurationResource():
            return configuration.spec(resource)
        case BlockResource():
            return block.spec(resource)
        case SecretResource(passwords=passwords):
            return dict(passwords)
        case NodeStatusResource():
            return {}
