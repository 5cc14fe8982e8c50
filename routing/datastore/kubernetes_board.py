"""Board: statuses and Events in the Kubernetes API, for people.

Nothing of correctness rests on it, so it is sparing: a status that says the same is not written,
and an Event about the same thing for the same reason is written at most once in ``EVENT_MIN_S``,
with those in between counted.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from routing.datastore.kubernetes_client import (
    JSON,
    MERGE_PATCH,
    STRATEGIC_MERGE_PATCH,
    ApiServer,
    Object,
    Refused,
)
from routing.datastore.kubernetes_documents import (
    CUSTOM,
    EVENTS,
    NODES,
    Regarding,
    event_name,
    event_object,
    node_status_object,
    read_status,
    status_patch,
)
from routing.datastore.preconditions import not_found
from routing.datastore.resources import API_VERSION
from routing.datastore.snapshot import EventNote, NodeStatusResource, ResourceStatus, StoreError

EVENT_MIN_S = 60.0
EVENTS_MAX = 1000
"""Notes remembered; the longest unheard is forgotten."""
MESSAGE_MAX = 1024
"""Characters of a condition's message."""
WRITES_MAX = 4
"""Tries of a status whose version moved between read and write."""

UidOf = Callable[[str, str], str]
"""(kind, name) -> uid, or "" where it is not known."""


@dataclass(slots=True)
class _Said:
    """What was last written for one (kind, name, reason)."""

    at_s: float
    unsaid: int = 0


class Board:
    """The StatusBoard's part of a KubernetesStore."""

    def __init__(
        self,
        server: ApiServer,
        *,
        reporter: str,
        uid_of: UidOf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._clock = clock
        self._reporter = reporter
        self._uid_of = uid_of
        self._node_status_versions: dict[str, str] = {}
        self._said: OrderedDict[tuple[str, str, str], _Said] = OrderedDict()
        self._counts: OrderedDict[str, int] = OrderedDict()

    # -- NodeStatus ------------------------------------------------------------------------

    async def create_node_status(self, status: NodeStatusResource) -> None:
        """Raises AlreadyExists through Refused's translation by the caller; StoreError."""
        await self.put_node_status(status)

    async def put_node_status(self, status: NodeStatusResource) -> None:
        """Creates or replaces the NodeStatus of a node: one request when nobody else wrote it.

        Raises:
            StoreError: it cannot be written.
        """
        name = status.meta.name
        document = node_status_object(status, now=_now_s())
        path = f"{CUSTOM['NodeStatus']}/{name}"
        version = self._node_status_versions.pop(name, "")
        for _ in range(WRITES_MAX):
            try:
                if not version:
                    version = await self._node_status_version(path, document)
                document["metadata"] = {"name": name, "resourceVersion": version}
                written = await self._server.request("PUT", f"{path}/status", body=document)
            except Refused as refused:
                if refused.status not in (404, 409):
                    raise
                version = ""
                continue
            self._node_status_versions[name] = _version(written)
            return
        raise StoreError(f"{self._server.name}: NodeStatus {name!r} is written by somebody else")

    async def _node_status_version(self, path: str, document: Object) -> str:
        try:
            return _version(await self._server.request("GET", path))
        except Refused as refused:
            if refused.status != 404 or refused.reason != "NotFound":
                raise
        name = document["metadata"]["name"]
        metadata: Object = {"name": name}
        uid = self._uid_of("Node", name)
        if uid:
            # Kubernetes' garbage collection takes the report away with its node.
            owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}
            metadata["ownerReferences"] = [owner]
        body = {"apiVersion": API_VERSION, "kind": "NodeStatus", "metadata": metadata}
        created = await self._server.request("POST", CUSTOM["NodeStatus"], body=body)
        return _version(created)

    # -- statuses of IPPools and BGPPeers --------------------------------------------------

    async def set_status(self, kind: str, name: str, status: ResourceStatus) -> None:
        """Replaces columns and conditions; what says the same is not written.

        Raises:
            NotFound: there is no such resource.
            StoreError: it cannot be written.
        """
        current = await self._object(kind, name)
        patch = status_patch(current, status, now=_now_s())
        if patch is None:
            return
        try:
            await self._server.request(
                "PATCH",
                f"{self._path(kind)}/{name}/status",
                body=patch,
                content_type=MERGE_PATCH,
            )
        except Refused as refused:
            if refused.status == 404:
                raise not_found((kind, name)) from None
            raise

    async def get_status(self, kind: str, name: str) -> ResourceStatus:
        """What was last set, or an empty one. Raises NotFound, StoreError."""
        return read_status(await self._object(kind, name))

    async def _object(self, kind: str, name: str) -> Object:
        try:
            return await self._server.request("GET", f"{self._path(kind)}/{name}")
        except Refused as refused:
            if refused.status == 404:
                raise not_found((kind, name)) from None
            raise

    def _path(self, kind: str) -> str:
        path = CUSTOM.get(kind)
        if path is None:
            raise StoreError(f"{self._server.name}: a {kind} has no status of ours")
        return path

    # -- the Node's condition --------------------------------------------------------------

    async def set_network_unavailable(self, node: str, why: str | None) -> None:
        """Sets the condition that keeps new pods off a node whose network does not work.

        Args:
            node: its name; a Node that is not there needs no condition.
            why: a sentence, or None for a network that works (the condition is False then).

        Raises:
            StoreError: it cannot be written.
        """
        now = _now_s()
        condition = {
            "type": "NetworkUnavailable",
            "status": "False" if why is None else "True",
            "reason": "Slash32Ready" if why is None else "Slash32NotReady",
            "message": "slash32 serves pods on this node" if why is None else why[:MESSAGE_MAX],
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        try:
            # Strategic: a plain merge patch would replace kubelet's conditions by this one.
            await self._server.request(
                "PATCH",
                f"{NODES}/{node}/status",
                body={"status": {"conditions": [condition]}},
                content_type=STRATEGIC_MERGE_PATCH,
            )
        except Refused as refused:
            if refused.status != 404:
                raise

    # -- Events ----------------------------------------------------------------------------

    async def note_event(self, event: EventNote) -> None:
        """Writes the Event, or counts it when the same was written just now.

        Raises:
            StoreError: it cannot be written; it stays counted.
        """
        key = (event.kind, event.name, event.reason)
        now_s = self._clock()
        said = self._said.get(key)
        if said is not None and now_s - said.at_s < EVENT_MIN_S:
            said.unsaid += 1
            return
        unsaid = 0 if said is None else said.unsaid
        self._said[key] = _Said(now_s, unsaid)
        self._said.move_to_end(key)
        name = event_name(event, self._reporter)
        count = self._counts.get(name, 0) + 1 + unsaid
        await self._write_event(event, name, count)
        self._said[key].unsaid = 0
        self._counts[name] = count
        self._counts.move_to_end(name)
        for memory in (self._said, self._counts):
            while len(memory) > EVENTS_MAX:
                memory.popitem(last=False)

    async def _write_event(self, event: EventNote, name: str, count: int) -> None:
        regarding = Regarding(
            "v1" if f"/{event.kind.lower()}s" == NODES.removeprefix("/api/v1") else API_VERSION,
            event.kind,
            event.name,
            self._uid_of(event.kind, event.name),
        )
        document = event_object(
            event, regarding, reporter=self._reporter, now=_now_us(), count=count
        )
        if count == 1:
            with contextlib.suppress(_Exists):
                await self._post_event(document)
                return
            # A note from before we were started; one more of it.
            count = 2
        document = event_object(
            event, regarding, reporter=self._reporter, now=_now_us(), count=count
        )
        try:
            await self._server.request(
                "PATCH",
                f"{EVENTS}/{name}",
                body={"series": document["series"]},
                content_type=MERGE_PATCH,
            )
        except Refused as refused:
            if refused.status != 404:
                raise
            # It was too old, and Kubernetes forgot it.
            with contextlib.suppress(_Exists):
                await self._post_event(document)

    async def _post_event(self, document: Object) -> None:
        try:
            await self._server.request("POST", EVENTS, body=document, content_type=JSON)
        except Refused as refused:
            if refused.reason == "AlreadyExists":
                raise _Exists from None
            raise


class _Exists(Exception):
    """The Event is there already."""


def _version(document: Object) -> str:
    metadata: Any = document.get("metadata") or {}
    return str(metadata.get("resourceVersion") or "")


def _now_s() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _now_us() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
