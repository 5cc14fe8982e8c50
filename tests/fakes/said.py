"""What a RouteBatch says, in the words of one UPDATE."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bgp.nlri import prefix_of
from bgp.paths import Event, RouteBatch, Update


def in_words(events: Iterable[Event]) -> Iterator[Event]:
    """``events`` with each RouteBatch as the Update that says the same."""
    for event in events:
        if not isinstance(event, RouteBatch):
            yield event
            continue
        refused = {rejection.prefix for rejection in event.rejected}
        routes = {prefix_of(nlri): said for nlri, said in event.routes.items()}
        yield Update(
            event.peer,
            tuple(said.path(prefix) for prefix, said in routes.items() if said is not None),
            tuple(p for p, said in routes.items() if said is None and p not in refused),
            event.rejected,
        )
