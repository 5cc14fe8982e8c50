"""The agent's own collection: addresses whose link went away without a DEL are given back.

containerd calls neither CHECK nor GC, and sometimes no DEL. A pod's link dies with the pod's
namespace, in the kernel; its addresses would stay allocated for ever. So the address book is
compared with the links again and again, and an attachment without a link gives its addresses up.

Never on one look: it must have had no link in two looks at least ``grace_s`` apart, and whoever
releases it looks once more while no verb can be at work on it. The other way round is no waste but
a danger: a link that the book does not know uses an address that the book calls free. It is
adopted, never removed: it may be somebody's living pod.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Protocol

from cni.attachment import Address, Attachment
from cni.ipam.allocator import AddressConflict
from cni.observed import ObservedLink
from cni.wiring_errors import WiringError

log = logging.getLogger(__name__)

GRACE_S = 60.0
"""Twice what one verb may take, so an ADD that is under way now was not at the first look."""


class Links(Protocol):
    """What is asked of cni/wiring.py."""

    def read(self) -> list[ObservedLink]:
        """Every link of ours."""


class Book(Protocol):
    """What is asked of cni/ipam/allocator.py."""

    def attachments(self) -> Iterable[Attachment]:
        """Everybody who holds an address."""

    def addresses(self, attachment: Attachment) -> tuple[Address, ...]:
        """What it holds."""

    def adopt(self, attachment: Attachment, addresses: tuple[Address, ...]) -> None:
        """Notes what is in use; raises AddressConflict when somebody else holds one."""


Release = Callable[[Attachment], Awaitable[tuple[Address, ...]]]
"""Takes an attachment's turn, makes sure that it has no link, and gives its addresses back; ()
when it had a link or held nothing."""


def absences(
    holders: Iterable[Attachment],
    linked: Collection[Attachment],
    *,
    before_s: Mapping[Attachment, float],
    now_s: float,
) -> dict[Attachment, float]:
    """Since when (s) each holder was seen without a link, at this look and all since then. Pure.

    Args:
        holders: who holds an address now.
        linked: who has a link now.
        before_s: what this returned at the last look.
    """
    return {each: before_s.get(each, now_s) for each in holders if each not in linked}


class Collector:
    """Compares the address book with the links.

    Args:
        links, book: what is compared.
        release: gives back what one attachment holds.
        clock: monotonic seconds.
        grace_s: how long an attachment must have been without a link.
    """

    def __init__(
        self,
        *,
        links: Links,
        book: Book,
        release: Release,
        clock: Callable[[], float],
        grace_s: float = GRACE_S,
    ) -> None:
        self._links = links
        self._book = book
        self._release = release
        self._clock = clock
        self._grace_s = grace_s
        self._absent_since_s: dict[Attachment, float] = {}
        self._conflicts: frozenset[Attachment] = frozenset()

    async def run(self, interval_s: float) -> None:
        """Looks every ``interval_s``, for ever."""
        while True:
            await asyncio.sleep(interval_s)
            await self.look()

    async def look(self) -> None:
        """One look; never raises for what it could not read or release: the next one comes."""
        try:
            links = self._links.read()
        except WiringError as error:
            # Nothing was seen, so nothing was seen missing.
            log.warning("collection_blind error=%s", error)
            return
        # No await between reading and adopting. DEL frees an address only after the link is gone,
        # so what is here and unknown is not on its way out.
        self._adopt(links)
        now_s = self._clock()
        self._absent_since_s = absences(
            self._book.attachments(),
            {each.record.attachment for each in links},
            before_s=self._absent_since_s,
            now_s=now_s,
        )
        for attachment, since_s in list(self._absent_since_s.items()):
            if now_s - since_s >= self._grace_s:
                await self._collect(attachment, now_s - since_s)

    def _adopt(self, links: Iterable[ObservedLink]) -> None:
        conflicts: set[Attachment] = set()
        for link in links:
            attachment, addresses = link.record.attachment, link.record.addresses
            if not addresses or self._book.addresses(attachment):
                continue
            try:
                self._book.adopt(attachment, addresses)
            except AddressConflict as error:
                conflicts.add(attachment)
                if attachment not in self._conflicts:
                    log.error("address_held_twice link=%s error=%s", link.ifname, error)
            else:
                log.warning(
                    "link_adopted attachment=%s addresses=%s", attachment, _listed(addresses)
                )
        self._conflicts = frozenset(conflicts)

    async def _collect(self, attachment: Attachment, absent_s: float) -> None:
        try:
            released = await self._release(attachment)
        except Exception as error:
            # It keeps its place in the list and is tried again at the next look.
            log.warning("collection_failed attachment=%s error=%s", attachment, error)
            return
        self._absent_since_s.pop(attachment, None)
        if released:
            log.warning(
                "attachment_collected attachment=%s addresses=%s without_link_s=%.0f",
                attachment,
                _listed(released),
                absent_s,
            )


def _listed(addresses: tuple[Address, ...]) -> str:
    return ",".join(str(each) for each in addresses)
