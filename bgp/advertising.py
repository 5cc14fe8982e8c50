"""What is asked of a speaker, and what it says it could not do. Pure.

``bgp`` does not know routing.delta; the shapes here are the same on purpose, so that the hub's
deltas go in and what comes out reads like its failures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bgp.paths import Address, Advertisement, Prefix

AdvertisementKey = tuple[Address, Prefix]


class BgpFailure(Exception):
    """Something could not be done; the sentence says what and why. Trying again may help."""


class AdvertisementDelta(Protocol):
    """What ``apply`` needs of routing.delta.Delta."""

    @property
    def create(self) -> Mapping[AdvertisementKey, Advertisement]:
        """To announce."""

    @property
    def replace(self) -> Mapping[AdvertisementKey, tuple[Advertisement, Advertisement]]:
        """(old, new): to announce anew; BGP replaces implicitly."""

    @property
    def delete(self) -> Mapping[AdvertisementKey, Advertisement]:
        """To withdraw."""


@dataclass(frozen=True, slots=True)
class NotSent:
    """One announcement or withdrawal that did not happen. Fields as in routing.delta.Failure."""

    key: AdvertisementKey
    operation: str
    error: str
