"""Attributes that are like known ones but for the AS numbers in their AS_PATH. Pure.

In a cluster every node's block has a path of its own, and nothing else of its own: a table of some
thousand routes is mostly attributes that are met for the first time. Which numbers stand in an
AS_SEQUENCE is asked by no rule of ``attribute_blocks.common_attributes`` nor of judgement.py (the
import policy does, later, for each), so all else that was found of the known ones is true of these.
"""

from __future__ import annotations

from bgp.adj_rib import AttributeSets
from bgp.attribute_blocks import numbers_of
from bgp.paths import PathAttributes

KIN_MAX = 2_000
"""What is known of one peer; beyond, all is forgotten. A router's attributes are of a few hundred
kinds, and what is sent once only is never asked for again."""


class Likeness:
    """What is known of one peer's attributes, its AS numbers apart.

    Attributes are given as bytes: what is before an MP_REACH_NLRI, its head (family and next hop),
    and what follows; or all of them and nothing, where there is none.

    Args:
        attributes: who gives the one object for each set of attributes.
    """

    def __init__(self, attributes: AttributeSets) -> None:
        self._sets = attributes
        self._places: dict[tuple[int, int, int], tuple[int, int]] = {}
        """Where the numbers are in all three together, by their sizes."""
        self._kin: dict[tuple[tuple[int, int, int], bytes, bytes], PathAttributes] = {}
        """By the same, what is before the numbers and what is after them: were the sizes not the
        same, other octets would be taken for numbers. The first of their kin."""

    def find(self, before: bytes, head: bytes = b"", after: bytes = b"") -> PathAttributes | None:
        """What these become; None where they are like none that is known."""
        sizes = len(before), len(head), len(after)
        place = self._places.get(sizes)
        if place is None:
            return None
        start, end = place
        joined = before + head + after
        kin = self._kin.get((sizes, joined[:start], joined[end:]))
        return None if kin is None else self._sets.of_kin(kin, joined[start:end])

    def learn(
        self, judged: PathAttributes, before: bytes, head: bytes = b"", after: bytes = b""
    ) -> None:
        """These, which ``common_attributes`` has read, are ``judged``."""
        sizes = len(before), len(head), len(after)
        place = numbers_of(before)
        if place is None:
            place = numbers_of(after)
            if place is None:
                return
            ahead = len(before) + len(head)
            place = place[0] + ahead, place[1] + ahead
        start, end = place
        self._places[sizes] = start, end
        joined = before + head + after
        if len(self._kin) >= KIN_MAX:
            self._kin.clear()
        self._kin[sizes, joined[:start], joined[end:]] = judged.kin

    def clear(self) -> None:
        """Forgets all."""
        self._places.clear()
        self._kin.clear()
