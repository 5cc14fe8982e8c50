"""What a pass believed and did, as one value for views, status and metrics. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cni.wiring import ObservedLink
from routing.delta import Failure
from routing.desired import Desired
from routing.links import LinkState
from routing.routes import Route, RouteKey, RouteKind

STORE_OUT_OF_SYNC = "store-out-of-sync"
"""The gate that is closed while the store cannot be read."""


@dataclass(frozen=True, slots=True)
class Held:
    """Something the loop would delete or withdraw, and the gate that is closed."""

    what: str
    gate: str


@dataclass(slots=True)
class PassReport:
    """What the last pass believed and did; the CLI prints this."""

    desired: Desired = field(default_factory=Desired)
    actual: Mapping[RouteKey, Route] = field(default_factory=dict)
    links: Mapping[str, LinkState] = field(default_factory=dict)
    pods: tuple[ObservedLink, ...] = ()
    failures: tuple[Failure[str], ...] = ()
    held: tuple[Held, ...] = ()
    finished_at_s: float | None = None
    passes: int = 0

    @property
    def has_learned_routes(self) -> bool:
        """Whether a route learned by BGP is kept, from a path that may be stale or, by a new agent,
        until a peer has spoken. One that is held for the store's sake alone says nothing: its
        session may be gone."""
        return RouteKind.REMOTE in self.desired.kinds.values() or any(
            held.gate != STORE_OUT_OF_SYNC for held in self.held
        )
