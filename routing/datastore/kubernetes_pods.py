"""KubernetesPods: the annotations of this node's pods, from the API when it can be asked.

The node's Pods and the cluster's Namespaces are mirrored, so that an ADD seldom waits for the API
server: a pod is bound to its node, and so here, before its sandbox is made. One that is not here
yet is asked for, for a second at most. While the API is away what is known is believed, and a pod
that nobody here has heard of wishes nothing: ADD needs no API server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from cni.wish import NO_WISH, PodWish
from routing.datastore.kubernetes_client import ApiServer, Object
from routing.datastore.kubernetes_watch import Pace, Reflector
from routing.datastore.pod_annotations import READ, Annotated, wish_of
from routing.datastore.snapshot import IPPoolResource, StoreError

log = structlog.get_logger("routing.datastore")

ASK_TIMEOUT_S = 1.0
PODS, NAMESPACES = "/api/v1/pods", "/api/v1/namespaces"


class KubernetesPods:
    """The PodWishes of one node.

    Args:
        server: the client edge.
        node: this node's name.
        pools: the pools as they are now.
        pace: timeouts and waits.
    """

    def __init__(
        self,
        server: ApiServer,
        *,
        node: str,
        pools: Callable[[], Iterable[IPPoolResource]],
        pace: Pace | None = None,
    ) -> None:
        self._server = server
        self._pools = pools
        self._pods = Reflector(
            server,
            PODS,
            _annotated,
            _nothing,
            field_selector=f"spec.nodeName={node}",
            is_namespaced=True,
            pace=pace,
        )
        self._namespaces = Reflector(server, NAMESPACES, _annotated, _nothing, pace=pace)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to follow the server."""
        for name, mirror in (("pods", self._pods), ("namespaces", self._namespaces)):
            self._tasks.append(asyncio.create_task(mirror.run(), name=f"mirror {name}"))

    async def close(self) -> None:
        """Ends the watches; may be called twice."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def wish(self, namespace: str, name: str, uid: str) -> PodWish:
        """See PodWishes. Raises WishRefused."""
        pod = await self._known(self._pods, f"{namespace}/{name}", f"{namespace}/pods/{name}", uid)
        place = await self._known(self._namespaces, namespace, namespace, "")
        if pod is None or place is None:
            log.debug("pod_unknown", namespace=namespace, pod=name)
            return NO_WISH
        return wish_of(pod, place, self._pools())

    async def _known(
        self, mirror: Reflector[Annotated], key: str, path: str, uid: str
    ) -> Annotated | None:
        entry = mirror.entries.get(key)
        if entry is not None and uid in ("", entry.uid):
            return entry.value
        if mirror.fault:
            return None
        try:
            document = await self._server.request(
                "GET", f"{NAMESPACES}/{path}", timeout_s=ASK_TIMEOUT_S
            )
        except StoreError as error:
            log.info("pod_not_asked", key=key, reason=str(error))
            return None
        found = _annotated(document)
        # Another pod of the same name has come and gone since the runtime was told of this one.
        return found if uid in ("", found.uid) else None


def _annotated(document: Object) -> Annotated:
    metadata = document.get("metadata") or {}
    annotations = metadata.get("annotations") or {}
    return Annotated(
        name=str(metadata.get("name")),
        uid=str(metadata.get("uid") or ""),
        labels=dict(metadata.get("labels") or {}),
        annotations={key: str(annotations[key]) for key in READ if key in annotations},
    )


def _nothing() -> None:
    """Nobody waits for news of a pod."""
