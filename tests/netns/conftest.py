"""What the tests of sessions share: real routers, and our speaker with a real ExaBGP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fakes.bgp_world import RealSpeakers, Routers


@pytest.fixture
def routers(tmp_path: Path) -> Iterator[Routers]:
    """Namespaces for routers, none of which runs yet."""
    made = Routers(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
async def node(routers: Routers, tmp_path: Path) -> AsyncIterator[RealSpeakers]:
    """Our speaker beside ``routers``; its ExaBGP does not run yet.

    Modules about pods have a ``node`` of their own.
    """
    made = RealSpeakers(routers, tmp_path)
    try:
        yield made
    finally:
        await made.close()
