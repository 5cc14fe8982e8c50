"""The API double's switches that the fault matrix stands on: each does its damage, and ends."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from lab.apiserver.server import ApiDouble
from lab.apiserver.state import KINDS, ApiError, Key, State

POOLS = next(kind for kind in KINDS if kind.kind == "IPPool")


def put(state: State, name: str) -> None:
    state.create(POOLS, "", {"metadata": {"name": name}, "spec": {"cidr": "10.9.0.0/16"}})


async def listed(session: aiohttp.ClientSession, api: ApiDouble) -> list[str]:
    async with session.get(f"{api.url}/apis/slash32.io/v1/ippools") as answer:
        items: list[dict[str, Any]] = (await answer.json())["items"]
        return [item["metadata"]["name"] for item in items]


async def test_a_server_that_lags_lists_what_was_and_takes_writes_as_they_are():
    """Beside one that does not, before the same state."""
    state = State()
    current, late = ApiDouble(state), ApiDouble(state)
    await current.start()
    await late.start()
    try:
        put(state, "before")
        put(state, "gone")
        late.lag_s = 0.0001
        async with aiohttp.ClientSession() as session:
            while await listed(session, late) != ["before", "gone"]:
                pass
            late.lag_s = 3600.0
            late._times.clear()
            put(state, "after")
            state.delete(Key(POOLS, "", "gone"), {})

            assert await listed(session, late) == ["before", "gone"]
            assert await listed(session, current) == ["after", "before"]
            url = f"{late.url}/apis/slash32.io/v1/ippools/after"
            async with session.get(url) as answer:
                assert answer.status == 200
    finally:
        await current.stop()
        await late.stop()


async def test_a_share_of_the_requests_is_refused_evenly():
    """Every second one of four."""
    api = ApiDouble()
    await api.start()
    try:
        api.fault(verb="list", resource="ippools", status=500, share=0.5, times=100)
        async with aiohttp.ClientSession() as session:
            found = []
            for _ in range(4):
                async with session.get(f"{api.url}/apis/slash32.io/v1/ippools") as answer:
                    found.append(answer.status)
    finally:
        await api.stop()
    assert found == [200, 500, 200, 500]


def test_a_server_that_compares_nothing_takes_every_write():
    """The control's: on a sound one the second write is refused."""
    state = State()
    put(state, "one")
    with pytest.raises(ApiError, match="exists"):
        put(state, "one")
    state.compares = False
    put(state, "one")
    stale = {"metadata": {"name": "one", "resourceVersion": "1"}, "spec": {"cidr": "10.9.0.0/16"}}
    state.replace(Key(POOLS, "", "one"), stale)
    assert len(state.list(POOLS, "")) == 1
