"""BlockUsage: which addresses of one block are in use, resting, or free. Pure.

The order of use is longest-unused first: addresses that were never given out come first, in
address order, then those released, the one that was released first at the head. A released
address rests for the cool-down before it may be given out again, because routers, conntrack
entries and clients remember the pod that had it.

Every address of a block is usable, the first and the last too: pods hold them as /32 and /128, so
no subnet exists whose network or broadcast address they could be (Calico does the same).

Nothing here is stored. The kernel's pod links are the journal; usage is rebuilt from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from cni.attachment import Address, Attachment
from cni.ipam.pool import Prefix


class AddressInUse(ValueError):
    """An address was to be taken for a second attachment."""


class NotInBlock(ValueError):
    """An address was offered to a block that does not contain it."""


@dataclass(slots=True)
class BlockUsage:
    """The use of one block.

    Attributes:
        cidr: the block.
        cooldown_s: how long a released address rests.
        used: address -> the attachment that holds it.
    """

    cidr: Prefix
    cooldown_s: float
    used: dict[Address, Attachment] = field(default_factory=dict)
    _released_s: dict[Address, float] = field(default_factory=dict)
    """Released and not taken again: address -> when (s), oldest first. A dict keeps that order."""
    _released_by: dict[Address, Attachment] = field(default_factory=dict)
    """Who held each of those last, where it is known."""
    _fresh: int = 0
    """Every address before this ordinal is used or was released; those after it may be fresh."""

    def assign(self, attachment: Attachment, now_s: float) -> Address | None:
        """Takes the longest-unused address that is not resting, or None when there is none."""
        address = self.peek(now_s)
        if address is not None:
            self._take(address, attachment)
        return address

    def peek(self, now_s: float) -> Address | None:
        """The address ``assign`` would give now; changes nothing a caller can see."""
        while self._fresh < self.cidr.num_addresses:
            address = self._at(self._fresh)
            if address not in self.used and address not in self._released_s:
                return address
            self._fresh += 1
        for address, released_s in self._released_s.items():
            if now_s >= released_s + self.cooldown_s:
                return address
            break
        return None

    def adopt(self, address: Address, attachment: Attachment) -> None:
        """Marks an address as held by an attachment, whatever rest it was in.

        Raises:
            NotInBlock: the block does not contain it.
            AddressInUse: another attachment holds it.
        """
        self._check(address)
        holder = self.used.get(address)
        if holder is not None and holder != attachment:
            raise AddressInUse(f"{address} is held by {holder}")
        self._take(address, attachment)

    def release(self, address: Address, now_s: float) -> bool:
        """Gives an address back, to rest from ``now_s``. False when it was not in use."""
        holder = self.used.pop(address, None)
        if holder is None:
            return False
        self._released_s[address] = now_s
        self._released_by[address] = holder
        return True

    def rest(self, address: Address, released_s: float) -> None:
        """Notes a release that happened elsewhere (an earlier agent's), in time order.

        Raises:
            NotInBlock: the block does not contain it.
        """
        self._check(address)
        if address in self.used:
            return
        self._released_s[address] = released_s
        self._released_s = dict(sorted(self._released_s.items(), key=lambda item: item[1]))

    def resting(self, now_s: float) -> dict[Address, float]:
        """The addresses in cool-down, and when each was released (s), oldest first."""
        return {
            address: released_s
            for address, released_s in self._released_s.items()
            if now_s < released_s + self.cooldown_s
        }

    def rest_s(self, address: Address, attachment: Attachment, now_s: float) -> float:
        """Seconds until ``attachment`` may have ``address`` again: 0.0 when it does not rest.

        Whoever held it last need not wait: what others remember of the address is its own.
        """
        if self._released_by.get(address) == attachment:
            return 0.0
        released_s = self._released_s.get(address)
        return 0.0 if released_s is None else max(0.0, released_s + self.cooldown_s - now_s)

    def cooling(self, now_s: float) -> int:
        """How many addresses rest."""
        return len(self.resting(now_s))

    def free(self, now_s: float) -> int:
        """How many addresses could be given out now."""
        return self.cidr.num_addresses - len(self.used) - self.cooling(now_s)

    def next_free_s(self, now_s: float) -> float | None:
        """Seconds until an address can be given out: 0.0 now, None while all are in use."""
        if self.peek(now_s) is not None:
            return 0.0
        oldest = next(iter(self._released_s.values()), None)
        return None if oldest is None else max(0.0, oldest + self.cooldown_s - now_s)

    def _take(self, address: Address, attachment: Attachment) -> None:
        self._released_s.pop(address, None)
        self._released_by.pop(address, None)
        self.used[address] = attachment

    def _at(self, ordinal: int) -> Address:
        value = int(self.cidr.network_address) + ordinal
        # Not cidr[ordinal]: ip_address(int) would read a small IPv6 number as IPv4.
        return IPv4Address(value) if isinstance(self.cidr, IPv4Network) else IPv6Address(value)

    def _check(self, address: Address) -> None:
        if address.version != self.cidr.version or address not in self.cidr:
            raise NotInBlock(f"{address} is not in block {self.cidr}")
