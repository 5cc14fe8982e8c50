"""Resources <-> documents: typed values from YAML and JSON, with errors that name the field. Pure.

The documents are those the custom resources will have: ``apiVersion: slash32.io/v1``, a kind,
metadata, spec; field names and meanings as in Calico v3 where the meaning is the same. Unknown
fields are refused by name, never ignored. Rules that need other resources are in ``rules.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from cni.ipam.block import Block, BlockState
from cni.ipam.pool import DEFAULT_BLOCK_SIZE_V4, DEFAULT_BLOCK_SIZE_V6
from routing.datastore.documents import InvalidDocument, load
from routing.datastore.fields import (
    Fields,
    Malformed,
    host_range,
    parse_address,
    parse_asn,
    parse_cidr,
    parse_duration_s,
    parse_endpoint,
    parse_name,
    parse_selector,
)
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
    Prefix,
    Resource,
    SecretResource,
)

API_VERSION = "slash32.io/v1"
LIST_API_VERSIONS = ("v1", API_VERSION)

BLOCK_SIZES = {4: (20, 32), 6: (116, 128)}
"""Prefix lengths a block may have, by family: at most 4096 addresses, as in Calico."""
HOLD_TIME_MIN_S = 3
"""RFC 4271 section 4.2 allows 0 or at least 3."""
HOLD_TIME_MAX_S = 65535
RESTART_TIME_MAX_S = 4095
"""12 bits (RFC 4724 section 3)."""
IMPORT_ALLOW_MAX = 256
LABELS_MAX = 256
ANNOTATIONS_MAX_BYTES = 256 * 1024
"""As Kubernetes limits them."""
AFFINITY = "host:"

_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_OPAQUE = re.compile(r"[!-~]{0,64}")

_ALIASES = {
    "IPPool": ("ippool", "ippools", "pool", "pools"),
    "Node": ("node", "nodes"),
    "BGPPeer": ("bgppeer", "bgppeers", "peer", "peers"),
    "BGPConfiguration": ("bgpconfiguration", "bgpconfigurations", "bgpconfig", "bgpconfigs"),
    "Block": ("block", "blocks"),
}
KINDS = tuple(_ALIASES)


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


def block_name(cidr: Prefix) -> str:
    """The name of the Block of a CIDR: ``10-244-1-0-26``, ``fd44-10---122``.

    One-to-one with the CIDR, so that creating the resource is the lock, and a DNS-1123 name, which
    Kubernetes asks of every object and a CIDR is not.
    """
    return re.sub(r"[.:/]", "-", str(cidr))


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
        if document.get("kind") != "List":
            opened.append(document)
            continue
        fields = Fields("List", source, "", document)
        fields.take("kind")
        version = fields.take("apiVersion")
        if version not in LIST_API_VERSIONS:
            raise fields.error("apiVersion", version, f"must be {' or '.join(LIST_API_VERSIONS)}")
        metadata = fields.section("metadata")
        metadata.take("resourceVersion", "")
        metadata.done()
        for key, item in fields.items("items", at_most=100_000):
            if not isinstance(item, dict) or item.get("kind") == "List":
                raise fields.error(key, item, "must be a resource")
            opened.append(item)
        fields.done()
    return opened


def from_document(document: Mapping[str, Any]) -> Resource:
    """The resource a document describes.

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
    )
    kind = top.take("kind")
    if not isinstance(kind, str) or kind not in _READERS:
        raise top.error("kind", kind, f"must be one of {', '.join(KINDS)}, List")
    version = top.take("apiVersion")
    if version != API_VERSION:
        raise top.error("apiVersion", version, f"must be {API_VERSION}")
    meta = _meta(top.section("metadata", is_required=True))
    spec = top.section("spec", is_required=kind in ("IPPool", "BGPPeer", "Block"))
    resource = _READERS[kind](meta, spec)
    spec.done()
    top.done()
    return resource


def _meta(fields: Fields) -> Meta:
    name = fields.parsed("name", fields.take("name"), parse_name)
    meta = Meta(
        name=name,
        labels=_labels(fields.section("labels")),
        annotations=_annotations(fields.section("annotations")),
        resource_version=_opaque(fields, "resourceVersion"),
        uid=_opaque(fields, "uid"),
        generation=fields.integer("generation", default=0, low=0, high=2**63 - 1),
    )
    fields.done()
    return meta


def _opaque(fields: Fields, key: str) -> str:
    value = fields.text(key, "") or ""
    if not _OPAQUE.fullmatch(value):
        raise fields.error(key, value, "must be at most 64 printable characters without blanks")
    return value


def _check_qualified(fields: Fields, key: str, value: object) -> None:
    prefix, slash, name = key.rpartition("/")
    try:
        if slash:
            parse_name(prefix)
    except Malformed:
        name = ""
    if not _LABEL_NAME.fullmatch(name):
        raise fields.error(key, value, "is not a label name: [DNS name/]up to 63 characters")


def _labels(fields: Fields) -> dict[str, str]:
    labels: dict[str, str] = {}
    if len(fields.values) > LABELS_MAX:
        raise fields.error("", len(fields.values), f"must have at most {LABELS_MAX} entries")
    for key, value in fields.values.items():
        _check_qualified(fields, key, value)
        if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
            raise fields.error(
                key, value, "must be text: up to 63 letters, digits, inner hyphens, dots or _"
            )
        labels[key] = value
    return labels


def _annotations(fields: Fields) -> dict[str, str]:
    size_bytes = 0
    for key, value in fields.values.items():
        _check_qualified(fields, key, value)
        if not isinstance(value, str):
            raise fields.error(key, value, "must be text")
        size_bytes += len(key) + len(value.encode("utf-8", "replace"))
    if size_bytes > ANNOTATIONS_MAX_BYTES:
        raise fields.error("", size_bytes, f"must be at most {ANNOTATIONS_MAX_BYTES} bytes in all")
    return dict(fields.values)


def _read_pool(meta: Meta, spec: Fields) -> IPPoolResource:
    cidr: Prefix = spec.parsed("cidr", spec.take("cidr"), parse_cidr)
    reserved = host_range(cidr)
    if reserved:
        raise spec.error("cidr", str(cidr), f"must not reach into {reserved}")
    low, high = BLOCK_SIZES[cidr.version]
    default = DEFAULT_BLOCK_SIZE_V4 if cidr.version == 4 else DEFAULT_BLOCK_SIZE_V6
    block_size = spec.integer("blockSize", default=max(default, cidr.prefixlen), low=low, high=high)
    if block_size < cidr.prefixlen:
        raise spec.error("blockSize", block_size, f"a /{block_size} block is larger than {cidr}")
    for key in ("ipipMode", "vxlanMode"):
        mode = spec.take(key, "Never")
        if mode != "Never":
            raise spec.error(
                key, mode, "must be Never: slash32 routes pods' packets as they are, unencapsulated"
            )
    nat = spec.take("natOutgoing", False)
    if nat is not False:
        raise spec.error("natOutgoing", nat, "must be false: slash32 translates no addresses")
    return IPPoolResource(
        meta=meta,
        cidr=cidr,
        block_size=block_size,
        disabled=spec.flag("disabled", default=False),
        node_selector=spec.parsed(
            "nodeSelector", spec.take("nodeSelector", "all()"), parse_selector
        ),
    )


def _read_node(meta: Meta, spec: Fields) -> NodeResource:
    addresses = tuple(
        spec.parsed(key, value, parse_address) for key, value in spec.items("addresses", at_most=2)
    )
    if len({address.version for address in addresses}) < len(addresses):
        raise spec.error(
            "addresses", [str(a) for a in addresses], "must have at most one of each family"
        )
    for address in addresses:
        if address.is_loopback:
            raise spec.error("addresses", str(address), "must not be a loopback address")
    bgp = spec.section("bgp")
    asn = bgp.parsed("asNumber", bgp.take("asNumber"), parse_asn) if bgp.has("asNumber") else None
    bgp.take("asNumber", None)
    bgp.done()
    return NodeResource(meta, tuple(sorted(addresses, key=lambda a: a.version)), asn)


def _read_peer(meta: Meta, spec: Fields) -> BGPPeerResource:
    peer_ip, port = spec.parsed("peerIP", spec.take("peerIP"), parse_endpoint)
    asn = spec.parsed("asNumber", spec.take("asNumber"), parse_asn)
    node = spec.take("node", None)
    selector = spec.take("nodeSelector", None)
    if spec.has("node"):
        spec.parsed("node", node, parse_name)
    if spec.has("nodeSelector"):
        spec.parsed("nodeSelector", selector, parse_selector)
    if node is not None and selector is not None:
        raise spec.error("nodeSelector", selector, "node and nodeSelector exclude each other")
    source = None
    if spec.has("sourceAddress"):
        source = spec.parsed("sourceAddress", spec.take("sourceAddress"), parse_address)
        if source.version != peer_ip.version:
            raise spec.error("sourceAddress", str(source), "must be of the family of peerIP")
    spec.take("sourceAddress", None)
    restart_s = spec.parsed("maxRestartTime", spec.take("maxRestartTime", "120s"), parse_duration_s)
    if restart_s > RESTART_TIME_MAX_S:
        raise spec.error(
            "maxRestartTime", f"{restart_s}s", f"must be at most {RESTART_TIME_MAX_S}s (RFC 4724)"
        )
    return BGPPeerResource(
        meta=meta,
        peer_ip=peer_ip,
        asn=asn,
        port=port,
        node=node,
        node_selector=selector,
        source_address=source,
        hold_time_s=_hold_time_s(spec),
        max_restart_time_s=restart_s,
    )


def _hold_time_s(spec: Fields) -> int:
    """The hold time, from holdTime, from keepaliveTime (a third of it), or 9 s.

    ExaBGP sends keepalives at a third of the negotiated hold time and takes no other figure
    (RFC 4271 section 4.4 recommends the third), so the two fields say one thing.
    """
    has_keepalive = spec.has("keepaliveTime")
    keepalive_s = spec.parsed("keepaliveTime", spec.take("keepaliveTime", "3s"), parse_duration_s)
    default = f"{3 * keepalive_s}s"
    hold_s: int = spec.parsed("holdTime", spec.take("holdTime", default), parse_duration_s)
    if hold_s == 0:
        raise spec.error(
            "holdTime", "0s", "must not be 0: a router that died would never be noticed"
        )
    if not HOLD_TIME_MIN_S <= hold_s <= HOLD_TIME_MAX_S:
        raise spec.error(
            "holdTime",
            f"{hold_s}s",
            f"must be from {HOLD_TIME_MIN_S}s to {HOLD_TIME_MAX_S}s (RFC 4271)",
        )
    if has_keepalive and keepalive_s * 3 != hold_s:
        raise spec.error(
            "keepaliveTime", f"{keepalive_s}s", f"must be a third of holdTime ({hold_s}s)"
        )
    return hold_s


def _read_configuration(meta: Meta, spec: Fields) -> BGPConfigurationResource:
    if meta.name != "default":
        raise InvalidResource(
            "BGPConfiguration", meta.name, "metadata.name", meta.name, "must be default"
        )
    allow = tuple(
        spec.parsed(key, value, parse_cidr)
        for key, value in spec.items("importAllow", at_most=IMPORT_ALLOW_MAX)
    )
    for prefix in allow:
        if allow.count(prefix) > 1:
            raise spec.error("importAllow", str(prefix), "is given twice")
    return BGPConfigurationResource(
        meta=meta,
        asn=spec.parsed("asNumber", spec.take("asNumber", 64512), parse_asn),
        listen_port=spec.integer("listenPort", default=179, low=1, high=65535),
        import_allow=allow,
    )


def _read_block(meta: Meta, spec: Fields) -> BlockResource:
    cidr: Prefix = spec.parsed("cidr", spec.take("cidr"), parse_cidr)
    if meta.name != block_name(cidr):
        raise InvalidResource(
            "Block", meta.name, "metadata.name", meta.name, f"must be {block_name(cidr)}"
        )
    pool = spec.parsed("pool", spec.take("pool"), parse_name)
    affinity = spec.take("affinity")
    node = affinity.removeprefix(AFFINITY) if isinstance(affinity, str) else ""
    try:
        parse_name(node)
    except Malformed:
        node = ""
    if not node or affinity != AFFINITY + node:
        raise spec.error("affinity", affinity, "must be host:<node name>")
    state = spec.take("state")
    if state not in [each.value for each in BlockState]:
        known = ", ".join(each.value for each in BlockState)
        raise spec.error("state", state, f"must be one of {known}")
    return block_resource(Block(cidr, pool, node, BlockState(state)), meta)


def block_resource(block: Block, meta: Meta | None = None) -> BlockResource:
    """A block in the store's form; version and uid are the same in both."""
    if meta is None:
        meta = Meta(block_name(block.cidr), resource_version=block.resource_version, uid=block.uid)
    versioned = replace(block, resource_version=meta.resource_version, uid=meta.uid)
    return BlockResource(meta, versioned)


def with_meta(resource: Resource, *, resource_version: str, uid: str, generation: int) -> Resource:
    """The resource as the store has it: with the store's own version, uid and generation."""
    meta = replace(resource.meta, resource_version=resource_version, uid=uid, generation=generation)
    if isinstance(resource, BlockResource):
        return block_resource(resource.block, meta)
    return replace(resource, meta=meta)


_READERS: Mapping[str, Callable[[Meta, Fields], Resource]] = {
    "IPPool": _read_pool,
    "Node": _read_node,
    "BGPPeer": _read_peer,
    "BGPConfiguration": _read_configuration,
    "Block": _read_block,
}


def to_document(resource: Resource) -> dict[str, Any]:
    """The document of a resource; ``from_document`` reads it back to an equal value."""
    meta = resource.meta
    metadata: dict[str, Any] = {"name": meta.name}
    if meta.labels:
        metadata["labels"] = dict(meta.labels)
    if meta.annotations:
        metadata["annotations"] = dict(meta.annotations)
    if meta.resource_version:
        metadata["resourceVersion"] = meta.resource_version
    if meta.uid:
        metadata["uid"] = meta.uid
    if meta.generation:
        metadata["generation"] = meta.generation
    return {
        "apiVersion": API_VERSION,
        "kind": kind_of(resource),
        "metadata": metadata,
        "spec": spec_of(resource),
    }


def spec_of(resource: Resource) -> dict[str, Any]:
    """The spec of a resource's document; what ``generation`` counts changes of."""
    match resource:
        case IPPoolResource():
            return {
                "cidr": str(resource.cidr),
                "blockSize": resource.block_size,
                "disabled": resource.disabled,
                "nodeSelector": resource.node_selector,
            }
        case NodeResource():
            spec: dict[str, Any] = {"addresses": [str(each) for each in resource.addresses]}
            return spec if resource.asn is None else spec | {"bgp": {"asNumber": resource.asn}}
        case BGPPeerResource():
            return _peer_spec(resource)
        case BGPConfigurationResource():
            return {
                "asNumber": resource.asn,
                "listenPort": resource.listen_port,
                "importAllow": [str(each) for each in resource.import_allow],
            }
        case BlockResource(block=block):
            return {
                "cidr": str(block.cidr),
                "pool": block.pool,
                "affinity": AFFINITY + block.node,
                "state": block.state.value,
            }
        case BGPFilterResource() | NodeStatusResource() | SecretResource():
            raise NotImplementedError(kind_of(resource))


def _peer_spec(peer: BGPPeerResource) -> dict[str, Any]:
    host = f"[{peer.peer_ip}]" if peer.peer_ip and peer.peer_ip.version == 6 else str(peer.peer_ip)
    spec: dict[str, Any] = {
        "peerIP": str(peer.peer_ip) if peer.port == 179 else f"{host}:{peer.port}",
        "asNumber": peer.asn,
        "holdTime": f"{peer.hold_time_s}s",
        "maxRestartTime": f"{peer.max_restart_time_s}s",
    }
    optional = {
        "node": peer.node,
        "nodeSelector": peer.node_selector,
        "sourceAddress": None if peer.source_address is None else str(peer.source_address),
    }
    return spec | {key: value for key, value in optional.items() if value is not None}
