"""The last-known-good cache as bytes: a snapshot in, a snapshot out, or the reason why not. Pure.

Form: one header line, then JSON.

    slash32-cache 1 node=<name> boot=<boot id> sha256=<64 hex digits>

The digest covers the header before it and everything after it, so a flipped bit or a missing end
anywhere is seen. Whose cache it is stands in it: a disk image or a directory that was copied to
another machine must not make that one announce blocks which it does not own.

What is not in it: passwords. They have a file of their own, in the same form, on a tmpfs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from cni.ipam.block import Block, BlockState
from routing.datastore.resources import block_resource, from_document, to_document
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPFilterResource,
    BGPPeerResource,
    BlockResource,
    InvalidResource,
    IPPoolResource,
    NodeResource,
    Password,
    Resource,
    SecretKeyRef,
    Snapshot,
)

MAGIC = "slash32-cache"
VERSION = 1
HEADER_MAX_BYTES = 1024

T = TypeVar("T", bound=Resource)


class CacheUnusable(ValueError):
    """The bytes are no cache of this node; the sentence says why."""


def encode(snapshot: Snapshot, *, node: str, boot_id: str) -> bytes:
    """The snapshot without passwords, as a cache of ``node`` written during boot ``boot_id``."""
    body = {
        "pools": _documents(snapshot.pools),
        "nodes": _documents(snapshot.nodes),
        "peers": _documents(snapshot.peers),
        "filters": _documents(snapshot.filters),
        "blocks": _documents(block_resource(block) for block in snapshot.blocks),
        "bgp": to_document(snapshot.bgp),
        "peersGoneAt": snapshot.peers_gone_at_s,
    }
    return _sealed(body, node=node, boot_id=boot_id)


def decode(raw: bytes, *, node: str, boot_id: str) -> Snapshot:
    """What ``encode`` was given, out of sync and without passwords.

    Written during an earlier boot it comes without this node's own blocks: all its pods are gone,
    and how long the machine was off nobody knows. Its blocks may be another node's by now.

    Raises:
        CacheUnusable: damaged, of another node or version, or not readable by this version.
    """
    body, written_during = _opened(raw, node=node)
    try:
        blocks = tuple(each.block for each in _resources(body, "blocks", BlockResource))
        snapshot = Snapshot(
            pools=_resources(body, "pools", IPPoolResource),
            nodes=_resources(body, "nodes", NodeResource),
            peers=_resources(body, "peers", BGPPeerResource),
            filters=_resources(body, "filters", BGPFilterResource),
            blocks=blocks,
            bgp=_resource(body["bgp"], BGPConfigurationResource),
            peers_gone_at_s=_moment(body.get("peersGoneAt")),
        )
    except (InvalidResource, KeyError, TypeError, ValueError, AttributeError) as error:
        # Its digest holds, so another version of slash32 wrote it.
        raise CacheUnusable(f"holds what this version cannot read: {error}") from None
    if written_during != boot_id:
        return replace(snapshot, blocks=tuple(b for b in blocks if b.node != node))
    return snapshot


def encode_passwords(
    passwords: Mapping[SecretKeyRef, Password], *, node: str, boot_id: str
) -> bytes:
    """The passwords, for a file on a tmpfs."""
    rows = [[ref.name, ref.key, password.reveal()] for ref, password in passwords.items()]
    return _sealed({"passwords": sorted(rows)}, node=node, boot_id=boot_id)


def decode_passwords(raw: bytes, *, node: str) -> dict[SecretKeyRef, Password]:
    """What ``encode_passwords`` was given.

    Raises:
        CacheUnusable: damaged, or of another node or version; no value is quoted.
    """
    body, _ = _opened(raw, node=node)
    try:
        return {
            SecretKeyRef(str(name), str(key)): Password(str(text))
            for name, key, text in body["passwords"]
        }
    except (KeyError, TypeError, ValueError):
        raise CacheUnusable("holds no list of passwords") from None


def _sealed(body: Mapping[str, Any], *, node: str, boot_id: str) -> bytes:
    header = f"{MAGIC} {VERSION} node={node} boot={boot_id}".encode()
    rest = json.dumps(body, separators=(",", ":")).encode() + b"\n"
    return header + b" sha256=" + _digest(header, rest) + b"\n" + rest


def _opened(raw: bytes, *, node: str) -> tuple[Any, str]:
    """The body and the boot id of a sealed text; raises CacheUnusable."""
    line, _, rest = raw[:HEADER_MAX_BYTES].partition(b"\n")
    header, _, digest = line.rpartition(b" sha256=")
    rest = raw[len(line) + 1 :]
    words = header.decode("ascii", "replace").split(" ")
    if words[0] != MAGIC or len(words) != 4:
        raise CacheUnusable("does not begin as a cache of slash32 does")
    if digest != _digest(header, rest):
        raise CacheUnusable("is damaged or cut short: its checksum does not hold")
    _, version, owner, boot = words
    if version != str(VERSION):
        raise CacheUnusable(f"has format version {version}, and {VERSION} is known")
    if owner != f"node={node}":
        raise CacheUnusable(f"belongs to {owner.removeprefix('node=')!r}, and this is {node!r}")
    try:
        return json.loads(rest), boot.removeprefix("boot=")
    except (ValueError, RecursionError):
        raise CacheUnusable("holds no JSON, although its checksum holds") from None


def _moment(value: object) -> float | None:
    """Unix time; versions before this one did not write it."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise TypeError(f"{value!r} stands where a moment must be")


def _digest(header: bytes, rest: bytes) -> bytes:
    return hashlib.sha256(header + b"\n" + rest).hexdigest().encode()


def _documents(resources: Iterable[Resource]) -> list[dict[str, Any]]:
    return [to_document(resource) for resource in resources]


def _resources(body: Mapping[str, Any], key: str, kind: type[T]) -> tuple[T, ...]:
    return tuple(_resource(document, kind) for document in body[key])


def _resource(document: Mapping[str, Any], kind: type[T]) -> T:
    found = from_document(document, is_stored=True)
    if not isinstance(found, kind):
        raise TypeError(f"a {type(found).__name__} stands where a {kind.__name__} must be")
    return found


def essence(snapshot: Snapshot, *, node: str) -> tuple[object, object]:
    """What must differ for a snapshot to be worth writing: (at once, before long).

    Resource versions count for blocks only. A Node's version moves with every heartbeat of its
    kubelet; a cache that is written (and fsynced) for each of them is written all the time. What
    is only other nodes' business may wait a little, for the same reason.
    """
    own = own_confirmed(snapshot.blocks, node)
    urgent = (
        _unversioned(snapshot.pools),
        _unversioned(each for each in snapshot.nodes if each.meta.name == node),
        _unversioned(snapshot.peers),
        _unversioned(snapshot.filters),
        _unversioned((snapshot.bgp,)),
        own,
        snapshot.peers_gone_at_s,
    )
    return urgent, (_unversioned(snapshot.nodes), snapshot.blocks)


def own_confirmed(blocks: Iterable[Block], node: str) -> list[Block]:
    """The blocks that a restarted agent of ``node`` would give addresses from."""
    return [b for b in blocks if b.node == node and b.state is BlockState.CONFIRMED]


def _unversioned(resources: Iterable[Any]) -> tuple[object, ...]:
    return tuple(replace(r, meta=replace(r.meta, resource_version="")) for r in resources)
