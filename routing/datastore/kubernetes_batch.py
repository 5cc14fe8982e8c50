"""Batch: several resources in one go on an API server, which has no transactions.

So every rule is judged first, and the server asked for a dry run of each; only then the first one
is written. What fails after that leaves those before it written, and the error says nothing else:
the same command again does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from routing.datastore.kubernetes_documents import changed_object, new_object, node_patch
from routing.datastore.kubernetes_objects import Objects, readable, stored_meta
from routing.datastore.preconditions import Key, check_preconditions, named
from routing.datastore.resources import block_resource, kind_of
from routing.datastore.rules import check_deleted, check_written
from routing.datastore.snapshot import (
    Applied,
    BlockResource,
    Datastore,
    IPPoolResource,
    Meta,
    NodeResource,
    NodeStatusResource,
    NotFound,
    Resource,
)

APPLY_ORDER = (
    "Secret", "Node", "IPPool", "BGPFilter", "BGPConfiguration", "BGPPeer", "Block", "NodeStatus"
)  # fmt: skip
"""What is referred to comes before what refers to it; deletions go the other way."""


class Batch:
    """The several-at-once operations of one store."""

    def __init__(self, store: Datastore, objects: Objects) -> None:
        self._store = store
        self._objects = objects

    async def apply(self, resources: Sequence[Resource]) -> Sequence[Applied]:
        """Creates or updates all of them, one after another.

        Raises:
            NotFound, Conflict: one names a version or uid that is not the stored one.
            InvalidResource: a rule forbids one; nothing was written.
            StoreError: the server cannot be asked; some may be written.
        """
        ordered = sorted(resources, key=lambda r: APPLY_ORDER.index(kind_of(r)))
        stored = await self._store.list("IPPool")
        pools = {p.meta.name: p for p in (*stored, *ordered) if isinstance(p, IPPoolResource)}
        for resource in ordered:
            await self._judge(resource, list(pools.values()))
        outcomes: dict[Key, Applied] = {}
        for resource in ordered:
            outcomes[_key(resource)] = await self._apply_one(resource)
        return [outcomes[_key(resource)] for resource in resources]

    async def _judge(self, resource: Resource, pools: Sequence[IPPoolResource]) -> None:
        key, meta = _key(resource), resource.meta
        try:
            current = await self._objects.fetch(key)
        except NotFound:
            if meta.resource_version or meta.uid:
                raise NotFound(
                    f"{named(key)} is not there, yet a version of it was given"
                ) from None
            check_written(None, resource, pools=lambda: pools)
            if not isinstance(resource, NodeStatusResource):
                await self._objects.create(key, new_object(resource), is_dry=True)
            return
        version, uid = meta.resource_version or None, meta.uid or None
        check_preconditions(stored_meta(current), key, version, uid)
        if isinstance(resource, NodeResource):
            node_patch(current, resource)
            return
        check_written(readable(key, current), resource, pools=lambda: pools)
        if not isinstance(resource, NodeStatusResource):
            await self._objects.replace(key, changed_object(current, resource), is_dry=True)

    async def _apply_one(self, resource: Resource) -> Applied:
        key, meta = _key(resource), resource.meta
        try:
            has = stored_meta(await self._objects.fetch(key))
        except NotFound:
            return Applied(await self._store.create(resource), "created")
        version = meta.resource_version or has.resource_version
        new = await self._store.update(
            _with_meta(resource, replace(meta, resource_version=version, uid=has.uid))
        )
        is_same = new.meta.resource_version == has.resource_version
        return Applied(new, "unchanged" if is_same else "configured")

    async def delete_all(self, keys: Sequence[Key]) -> None:
        """Deletes all of them, one after another, after a look whether all are there.

        Raises:
            NotFound: one is not there; nothing was deleted.
            InvalidResource: a rule forbids one; nothing was deleted.
            StoreError: the server cannot be asked; some may be gone.
        """
        pools = []
        for key in keys:
            found = readable(key, await self._objects.fetch(key))
            if isinstance(found, IPPoolResource):
                pools.append(found)
        if pools:
            blocks = [
                each
                for each in await self._store.list("Block")
                if isinstance(each, BlockResource) and _key(each) not in keys
            ]
            for pool in pools:
                check_deleted(pool, blocks=lambda: blocks)
        for kind, name in sorted(keys, key=lambda key: -APPLY_ORDER.index(key[0])):
            await self._store.delete(kind, name)


def _key(resource: Resource) -> Key:
    return (kind_of(resource), resource.meta.name)


def _with_meta(resource: Resource, meta: Meta) -> Resource:
    if isinstance(resource, BlockResource):
        return block_resource(resource.block, meta)
    return replace(resource, meta=meta)
