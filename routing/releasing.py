"""Giving an address back by hand: what the agent makes of `slash32 ipam release ADDRESS`.

An address is never free while something here can still send from it. So one that has a link is
refused, by its holder's name; with ``force`` the link goes first, which is what CNI DEL does, and
only then the address. Never the one without the other: an address given to a second pod while the
first one has it is the fault that nobody finds.

What is released rests like any other, and the journal says who asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address, ip_network
from typing import Any, Protocol

import structlog

from cni.attach import HostRouteError
from cni.attachment import Address, Attachment
from cni.ipam.allocator import AddressConflict
from cni.ipam.block import Block
from cni.observed import ObservedLink
from cni.wiring_errors import WiringError

log = structlog.get_logger("routing.releasing")

WORDS_MAX_CHARACTERS = 80


class Outcome(Enum):
    """What became of an address; the values are what `ipam release -o json` prints."""

    RELEASED = "released"
    WOULD = "would-be-released"
    FREE = "free"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, as it came over the socket.

    ``holder``: the container id that a report names; another holder is another pod's address.
    ``is_meant``: False only says what would be done. ``by``: who asked, for the journal.
    """

    address: Address
    holder: str | None
    force: bool
    is_meant: bool
    by: str

    @classmethod
    def parse(cls, arguments: Mapping[str, Any]) -> Asked:
        """From JSON. Raises ValueError: no address, or none that is one."""
        text = str(arguments.get("address", ""))[:WORDS_MAX_CHARACTERS]
        return cls(
            address=ip_address(text),
            holder=str(arguments["holder"]) if arguments.get("holder") else None,
            force=arguments.get("force") is True,
            is_meant=arguments.get("is_meant") is True,
            by=str(arguments.get("by") or "somebody")[:WORDS_MAX_CHARACTERS],
        )


class Links(Protocol):
    """What is asked of cni/wiring.py."""

    def read(self) -> Sequence[ObservedLink]:
        """Every link of ours. Raises WiringError."""


class Book(Protocol):
    """What is asked of cni/ipam/allocator.py."""

    def holder(self, address: Address) -> Attachment | None:
        """Who holds it."""

    def adopt(self, attachment: Attachment, addresses: tuple[Address, ...]) -> None:
        """Notes what is in use; raises AddressConflict."""

    def resting(self) -> Iterable[Address]:
        """Every address in cool-down."""

    def blocks(self) -> Sequence[tuple[Block, int, int, int]]:
        """Our confirmed blocks."""


class Verbs(Protocol):
    """What is asked of cni/attach.py."""

    async def release_linkless(self, attachment: Attachment) -> tuple[Address, ...]:
        """Gives back what one without a link holds; () when it has one."""

    async def detach(self, attachment: Attachment) -> tuple[Address, ...]:
        """Takes its link away, then gives back what it holds."""


class Releases:
    """Answers the agent's query ``release``.

    Args:
        audit: writes one entry to the journal.
    """

    def __init__(
        self,
        *,
        node: str,
        links: Links,
        book: Book,
        verbs: Verbs,
        audit: Callable[[dict[str, Any]], None],
    ) -> None:
        self._node = node
        self._links = links
        self._book = book
        self._verbs = verbs
        self._audit = audit

    async def answer(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """One row of `ipam release`.

        Raises:
            ValueError: the request is malformed.
        """
        asked = Asked.parse(arguments)
        try:
            linked = [each for each in self._links.read() if asked.address in each.record.addresses]
        except WiringError as error:
            return self._row(asked, Outcome.FAILED, f"the links cannot be read: {error}")
        holders = {each.record.attachment: _named(each) for each in linked}
        booked = self._book.holder(asked.address)
        if booked is not None:
            holders.setdefault(booked, f"container {booked.container_id[:12]}, without a link")
        words = " and ".join(holders.values())
        if not holders:
            return self._row(asked, *self._nobodys(asked.address))
        if asked.holder is not None and all(h.container_id != asked.holder for h in holders):
            sentence = f"the report names another holder; now it is {words}"
            return self._row(asked, Outcome.REFUSED, sentence, words)
        if linked and not asked.force:
            return self._row(asked, Outcome.REFUSED, f"{words} has it", words)
        if not asked.is_meant:
            cut = "; its link goes with it, and the pod has no network then" if linked else ""
            return self._row(asked, Outcome.WOULD, f"held by {words}{cut}", words)
        return await self._release(asked, holders, words)

    async def _release(
        self, asked: Asked, holders: Mapping[Attachment, str], words: str
    ) -> dict[str, Any]:
        released: list[Address] = []
        for attachment in holders:
            try:
                if asked.force:
                    self._note_links_of(attachment)
                    released += await self._verbs.detach(attachment)
                else:
                    released += await self._verbs.release_linkless(attachment)
            except (WiringError, HostRouteError) as error:
                return self._row(asked, Outcome.FAILED, f"{words}: {error}", words)
        if not released:
            # An ADD was under way: it had the address before its link, and has both now.
            sentence = f"a link came up for it meanwhile: {words}"
            return self._row(asked, Outcome.REFUSED, sentence, words)
        for address in released:
            self._audit(
                {
                    "kind": "address",
                    "action": "released",
                    "prefix": str(ip_network(address)),
                    "reason": f"ipam release{' --force' if asked.force else ''} by {asked.by}",
                    "detail": f"held by {words}",
                }
            )
            log.warning("address_released", address=str(address), by=asked.by, held_by=words)
        listed = ", ".join(map(str, released))
        return self._row(asked, Outcome.RELEASED, f"{listed} of {words}; now resting", words)

    def _note_links_of(self, attachment: Attachment) -> None:
        """A link that nobody booked: booked now, its addresses rest once it is gone."""
        for link in self._links.read():
            if link.record.attachment == attachment:
                with suppress(AddressConflict):
                    self._book.adopt(attachment, link.record.addresses)

    def _nobodys(self, address: Address) -> tuple[Outcome, str]:
        if address in self._book.resting():
            return Outcome.FREE, "nobody holds it; it is resting, and free by itself after that"
        if any(address in block.cidr for block, *_ in self._book.blocks()):
            return Outcome.FREE, "nobody holds it"
        return Outcome.UNKNOWN, f"nobody holds it, and no block of {self._node} has it"

    def _row(self, asked: Asked, outcome: Outcome, detail: str, holder: str = "") -> dict[str, Any]:
        return {
            "node": self._node,
            "what": str(asked.address),
            "outcome": outcome.value,
            "holder": holder,
            "detail": detail,
        }


def _named(link: ObservedLink) -> str:
    pod = f"pod {link.record.pod}" if link.record.pod else "a container"
    return f"{pod} ({link.record.attachment.container_id[:12]}, link {link.ifname})"
