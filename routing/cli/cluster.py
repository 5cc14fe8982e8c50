"""What the store says of the cluster, read once for a command."""

from __future__ import annotations

from routing.cli.resources import with_store
from routing.datastore.opening import Store
from routing.datastore.snapshot import NodeStatusResource, Snapshot


def read_cluster(store: str) -> tuple[Snapshot, list[NodeStatusResource]]:
    """The store as it is, and what nodes reported to it.

    Raises:
        StoreError: the store cannot be read.
    """

    async def read(opened: Store) -> tuple[Snapshot, list[NodeStatusResource]]:
        snapshot = await opened.snapshot()
        found = await opened.list("NodeStatus")
        return snapshot, [each for each in found if isinstance(each, NodeStatusResource)]

    return with_store(store, read)
