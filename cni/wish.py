"""PodWish: what a pod's annotations ask of its addresses. Pure.

The agent cannot know annotations from the CNI request; whoever can (the Kubernetes datastore) is
asked through ``PodWishes``. A lab or a machine without Kubernetes has nobody to ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cni.attachment import Address


@dataclass(frozen=True, slots=True)
class PodWish:
    """Pools by name to take the address from, in order, by family; or the very addresses.

    ``pools_v4`` () means any pool that needs no naming. ``addresses`` holds at most one of each
    family and excludes pools.
    """

    pools_v4: tuple[str, ...] = ()
    pools_v6: tuple[str, ...] = ()
    addresses: tuple[Address, ...] = ()


NO_WISH = PodWish()


class WishRefused(Exception):
    """The annotations ask for what cannot or may not be given; the sentence says which and why."""


class PodWishes(Protocol):
    """Who knows the annotations of the pods of this node."""

    async def wish(self, namespace: str, name: str, uid: str) -> PodWish:
        """What the pod asks for; NO_WISH when it asks for nothing or nobody can be asked in time.

        Args:
            namespace: of the pod.
            name: of the pod.
            uid: of the pod, "" when the runtime did not say.

        Raises:
            WishRefused: an annotation is malformed, or not allowed in this namespace.
        """
