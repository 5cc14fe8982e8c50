"""Which store ``--store`` means: a file, or ``kubernetes``. The Kubernetes client is loaded late:
it costs half a second and 40 MB, which a node with an embedded store need not pay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from cni.wish import PodWishes
from routing.datastore.local import LocalStore
from routing.datastore.preconditions import Key
from routing.datastore.snapshot import Applied, Datastore, IPPoolResource, Resource
from routing.settings import KUBERNETES


class Wishes(PodWishes, Protocol):
    """Who follows the annotations of this node's pods."""

    def start(self) -> None:
        """Begins to."""

    async def close(self) -> None:
        """Ends it."""


class Store(Datastore, Protocol):
    """What both stores can do beyond the protocol, for the command line."""

    async def apply(self, resources: Sequence[Resource]) -> Sequence[Applied]:
        """Creates or updates all of them, judged as a whole."""

    async def delete_all(self, keys: Sequence[Key]) -> None:
        """Deletes all of them, judged as a whole."""


async def open_store(
    where: str | Path,
    *,
    kubeconfig: Path | None = None,
    create: bool = True,
    reporter: str = "slash32",
) -> Store:
    """The store that ``where`` names; the caller closes it.

    Args:
        where: a file's path, or ``kubernetes``. A file called so is ``./kubernetes``.
        kubeconfig: how to reach the API server; None for the service account of the pod we run in.
        create: whether a missing file is made.
        reporter: who writes Events.

    Raises:
        StoreError: it cannot be opened. An API server that is away is no error yet.
    """
    if str(where) != KUBERNETES:
        return LocalStore(where, create=create)
    from routing.datastore.kubernetes import KubernetesStore

    return await KubernetesStore.open(kubeconfig, reporter=reporter)


def pod_wishes(
    store: Datastore, *, node: str, pools: Callable[[], Iterable[IPPoolResource]]
) -> Wishes | None:
    """Who knows the annotations of the pods of ``node``; None where nobody does."""
    if isinstance(store, LocalStore):
        return None
    from routing.datastore.kubernetes import KubernetesStore
    from routing.datastore.kubernetes_pods import KubernetesPods

    if not isinstance(store, KubernetesStore):
        return None
    return KubernetesPods(store.server, node=node, pools=pools)
