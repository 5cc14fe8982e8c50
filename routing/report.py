"""What a pass believed and did, as one value for views, status and metrics. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from bgp.nlri import prefix_of
from cni.observed import ObservedLink
from routing.delta import Failure
from routing.desired import Desired
from routing.links import LinkState
from routing.route_diff import HeldRoutes
from routing.routes import Route, RouteKey

STORE_OUT_OF_SYNC = "store-out-of-sync"
"""The gate that is closed while the store cannot be read."""


@dataclass(frozen=True, slots=True)
class Held:
    """Something the loop would delete or withdraw, and the gate that is closed."""

    what: str
    gate: str


@dataclass(slots=True)
class HeldList(Sequence[Held]):
    """All that a pass holds: routes, of which there may be very many, and others."""

    others: list[Held] = field(default_factory=list)
    routes: HeldRoutes = field(default_factory=HeldRoutes)

    def __len__(self) -> int:
        return len(self.others) + len(self.routes.single) + len(self.routes.grouped)

    def __iter__(self) -> Iterator[Held]:
        yield from self.others
        for key, gate in self.routes.single:
            yield Held(f"route {key.prefix}", gate)
        for nlri in self.routes.grouped:
            yield Held(f"route {prefix_of(nlri)}", self.routes.gate)

    @overload
    def __getitem__(self, index: int) -> Held: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Held]: ...
    def __getitem__(self, index: int | slice) -> Held | Sequence[Held]:
        return list(self)[index]

    def gates(self) -> set[str]:
        """Which gates are closed."""
        gates = {held.gate for held in self.others} | {gate for _, gate in self.routes.single}
        return gates | {self.routes.gate} if self.routes.grouped else gates


@dataclass(slots=True)
class PassReport:
    """What the last pass believed and did; the CLI prints this."""

    desired: Desired = field(default_factory=Desired)
    actual: Mapping[RouteKey, Route] = field(default_factory=dict)
    links: Mapping[str, LinkState] = field(default_factory=dict)
    pods: tuple[ObservedLink, ...] = ()
    failures: tuple[Failure[str], ...] = ()
    held: Sequence[Held] = ()
    contested: Mapping[RouteKey, str] = field(default_factory=dict)
    """Routes of ours in front of another program's, and a sentence that names it."""
    finished_at_s: float | None = None
    passes: int = 0
    untold: int = 0
    """Of a part (part.py): the changes that are not in its tables."""

    @property
    def has_learned_routes(self) -> bool:
        """Whether a route learned by BGP is kept, from a path that may be stale or, by a new agent,
        until a peer has spoken. One that is held for the store's sake alone says nothing: its
        session may be gone."""
        if self.desired.remote.has_routes():
            return True
        held = self.held
        gates = held.gates() if isinstance(held, HeldList) else {each.gate for each in held}
        return bool(gates - {STORE_OUT_OF_SYNC})
