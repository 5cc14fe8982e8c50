"""KubernetesStore: the Datastore in the Kubernetes API, and the StatusBoard beside it.

Three ways to read, each for its reader:

- ``snapshot()`` comes from mirrors (``kubernetes_watch``) and asks the server nothing, for it is
  taken at every pass of every agent. It holds our own writes at once, others' a moment later; when
  a mirror has lost the server for longer than a grace, it raises, and the agent deletes nothing.
- ``get`` and ``list`` ask the server, and hold every write that was acknowledged to anyone.
- ``list_blocks`` asks too, and not the mirror: after a claim whose answer was lost the IPAM looks
  here whether it happened, and a mirror may be behind just then. It is one request for each claim,
  not for each pod.

Writes are one object each: create is POST, update is PUT with the resourceVersion that was read,
delete has uid and resourceVersion as preconditions. What concerns other objects (a pool that
overlaps, a block that is none of its pool's) is looked up before the write; between look and write
another may come, and kubectl looks up nothing, so ``problems()`` tells of what is there all the
same, and an overlapping younger pool is taken for disabled.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from routing.datastore.kubernetes_batch import Batch
from routing.datastore.kubernetes_board import Board
from routing.datastore.kubernetes_client import ApiServer, Object
from routing.datastore.kubernetes_documents import (
    changed_object,
    new_object,
    node_patch,
    read_object,
)
from routing.datastore.kubernetes_mirrors import Mirrors
from routing.datastore.kubernetes_objects import Objects, readable, stored_meta
from routing.datastore.kubernetes_watch import Pace
from routing.datastore.preconditions import Key, check_preconditions
from routing.datastore.resources import kind_of, spec_of
from routing.datastore.rules import check_deleted, check_written
from routing.datastore.snapshot import (
    Applied,
    BlockResource,
    EventNote,
    InvalidResource,
    IPPoolResource,
    NodeResource,
    NodeStatusResource,
    NotFound,
    Problem,
    Resource,
    ResourceStatus,
    Snapshot,
)
from routing.datastore.stored_blocks import StoredBlocks

log = structlog.get_logger("routing.datastore")

DEFAULT_NAMESPACE = "slash32-system"

Resources = list[Resource]


class KubernetesStore(StoredBlocks):
    """A Datastore and StatusBoard on an API server. Watches begin with the first snapshot().

    Args:
        server: the client edge; the store closes it.
        namespace: slash32's own, for Secrets.
        reporter: who writes Events, such as the node's name.
        pace: timeouts and waits.
        clock: monotonic seconds, for the rate of Events.
    """

    def __init__(
        self,
        server: ApiServer,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        reporter: str = "slash32",
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._objects = Objects(server, namespace=namespace)
        self._batch = Batch(self, self._objects)
        self._mirrors = Mirrors(server, self._objects.path, pace=pace or Pace())
        self._board = Board(server, reporter=reporter, uid_of=self._mirrors.uid_of, clock=clock)

    @classmethod
    async def open(
        cls,
        kubeconfig: Path | None = None,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        reporter: str = "slash32",
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> KubernetesStore:
        """A store by kubeconfig, or by the service account of the pod we run in.

        The API server itself need not be there yet.

        Raises:
            StoreError: there is no usable configuration.
        """
        server = await ApiServer.connect(kubeconfig)
        return cls(server, namespace=namespace, reporter=reporter, pace=pace, clock=clock)

    @property
    def server(self) -> ApiServer:
        """The client edge, for what is no resource of ours (Pods, Leases)."""
        return self._server

    async def close(self) -> None:
        """Ends the watches and the connections; may be called twice."""
        await self._mirrors.close()
        await self._server.close()

    # -- what the agent runs on ------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        """What the mirrors hold, in sync.

        Raises:
            StoreError: a kind was never listed yet, or its mirror no longer follows the server.
        """
        return await self._mirrors.snapshot()

    async def changed(self) -> None:
        """Returns when the mirrors changed since the last snapshot(); see there."""
        await self._mirrors.changed()

    def problems(self) -> Sequence[Problem]:
        """What is wrong with stored objects, as far as the mirrors know."""
        return self._mirrors.problems()

    # -- resources -------------------------------------------------------------------------

    async def get(self, kind: str, name: str) -> Resource:
        """One resource, from the server.

        Raises:
            NotFound: there is none.
            InvalidResource: it is there, and malformed.
            StoreError: the server cannot be asked.
        """
        return read_object(kind, await self._objects.fetch((kind, name)))

    async def list(self, kind: str) -> Resources:
        """All resources of a kind, by name, from the server; malformed ones are left out (logged).

        Raises:
            StoreError: the server cannot be asked.
        """
        objects, _ = await self._server.list(self._objects.path(kind))
        found = []
        for document in objects:
            try:
                found.append(read_object(kind, document))
            except InvalidResource as error:
                log.warning("kubernetes_object_invalid", kind=kind, reason=str(error))
        return sorted(found, key=lambda resource: resource.meta.name)

    async def create(self, resource: Resource) -> Resource:
        """Stores a new resource.

        Raises:
            AlreadyExists: its kind and name are taken.
            InvalidResource: a rule forbids it, ours or the schema's.
            StoreError: it may have happened or not.
        """
        if isinstance(resource, NodeStatusResource):
            await self._board.create_node_status(resource)
            return await self.get("NodeStatus", resource.meta.name)
        key = _key(resource)
        await self._judge(None, resource)
        document = await self._objects.create(key, new_object(resource))
        return self._took(key, document)

    async def update(self, resource: Resource) -> Resource:
        """Replaces a resource whose resource version (and uid, if given) still match.

        Equal content is left as it is, version and all. Of a Node, only annotations of ours are
        written.

        Raises:
            NotFound: there is none.
            Conflict: it changed since it was read.
            InvalidResource: a rule forbids it, ours or the schema's.
            StoreError: it may have happened or not.
        """
        key, meta = _key(resource), resource.meta
        current = await self._objects.fetch(key)
        check_preconditions(stored_meta(current), key, meta.resource_version, meta.uid or None)
        if isinstance(resource, NodeStatusResource):
            await self._board.put_node_status(resource)
            return await self.get("NodeStatus", meta.name)
        if isinstance(resource, NodeResource):
            patch = node_patch(current, resource)
            if patch is None:
                return read_object("Node", current)
            return self._took(key, await self._objects.ask("PATCH", key, body=patch))
        old = readable(key, current)
        if old is not None and _content(old) == _content(resource):
            return old
        await self._judge(old, resource)
        return self._took(key, await self._objects.replace(key, changed_object(current, resource)))

    async def delete(
        self, kind: str, name: str, *, resource_version: str | None = None, uid: str | None = None
    ) -> None:
        """Deletes a resource.

        Raises:
            NotFound: there is none.
            Conflict: a precondition that was given does not hold.
            InvalidResource: a rule forbids it.
            StoreError: it may have happened or not.
        """
        key = (kind, name)
        if kind == "IPPool":
            pool = readable(key, await self._objects.fetch(key))
            blocks = [r for r in await self.list("Block") if isinstance(r, BlockResource)]
            if pool is not None:
                check_deleted(pool, blocks=lambda: blocks)
        preconditions = {"resourceVersion": resource_version, "uid": uid}
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {k: v for k, v in preconditions.items() if v is not None},
        }
        answer = await self._objects.ask("DELETE", key, body=body)
        gone: Any = answer.get("details") or answer.get("metadata") or {}
        if not (answer.get("metadata") or {}).get("deletionTimestamp"):
            self._mirrors.forget(kind, name, str(gone.get("uid") or uid or ""))

    async def apply(self, resources: Sequence[Resource]) -> Sequence[Applied]:
        """Creates or updates all of them, one after another; see Batch."""
        return await self._batch.apply(resources)

    async def delete_all(self, keys: Sequence[Key]) -> None:
        """Deletes all of them, one after another; see Batch."""
        await self._batch.delete_all(keys)

    # -- StatusBoard -----------------------------------------------------------------------

    async def put_node_status(self, status: NodeStatusResource) -> None:
        """Creates or replaces the NodeStatus of a node. Raises StoreError."""
        await self._board.put_node_status(status)

    async def set_status(self, kind: str, name: str, status: ResourceStatus) -> None:
        """Replaces the status of an IPPool or BGPPeer. Raises NotFound, StoreError."""
        await self._board.set_status(kind, name, status)

    async def get_status(self, kind: str, name: str) -> ResourceStatus:
        """The status last set, or an empty one. Raises NotFound, StoreError."""
        return await self._board.get_status(kind, name)

    async def set_network_unavailable(self, node: str, why: str | None) -> None:
        """Sets the node's condition NetworkUnavailable. Raises StoreError."""
        await self._board.set_network_unavailable(node, why)

    async def note_event(self, event: EventNote) -> None:
        """Records an Event, rate-limited. Raises StoreError."""
        await self._board.note_event(event)

    # -- rules -----------------------------------------------------------------------------

    def _took(self, key: Key, document: Object) -> Resource:
        """What the server made of a write, for the caller and for the mirror."""
        self._mirrors.put(key[0], document)
        return read_object(key[0], document)

    async def _judge(self, old: Resource | None, new: Resource) -> None:
        """The rules between resources, with the pools as they are now."""
        pools: Sequence[IPPoolResource] = []
        if isinstance(new, IPPoolResource):
            others = [p for p in await self.list("IPPool") if p.meta.name != new.meta.name]
            pools = [*(p for p in others if isinstance(p, IPPoolResource)), new]
        elif isinstance(new, BlockResource):
            with contextlib.suppress(NotFound):
                found = await self.get("IPPool", new.block.pool)
                pools = [found] if isinstance(found, IPPoolResource) else []
        check_written(old, new, pools=lambda: pools)


def _key(resource: Resource) -> Key:
    return (kind_of(resource), resource.meta.name)


def _content(resource: Resource) -> tuple[object, ...]:
    meta = resource.meta
    return (spec_of(resource), dict(meta.labels), dict(meta.annotations))
