"""Who is elected, and for how long; and both kinds of leases under one suite."""

from __future__ import annotations

import asyncio
import fcntl
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from routing.controller.election import Election, Lease, LeaseConflict, LeaseError
from routing.controller.file_leases import FileLeases
from tests.fakes.leases import FakeLeases

NAME = "controller"


class Scene:
    """Candidates with clocks of their own, which the test moves together."""

    def __init__(self) -> None:
        self.leases = FakeLeases()
        self.now_s = 0.0

    def candidate(self, identity: str, *, ahead_s: float = 0.0, wall: int = 2026) -> Election:
        return Election(
            self.leases,
            name=NAME,
            identity=identity,
            clock=lambda: self.now_s + ahead_s,
            wall=lambda: datetime(wall, 1, 1, tzinfo=UTC),
        )


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_the_first_is_elected_and_stays_so_while_it_renews(scene: Scene):
    """The other waits; the record says who and since how many changes."""
    first, second = scene.candidate("a"), scene.candidate("b")
    for _ in range(20):
        assert await first.step()
        assert not await second.step()
        scene.now_s += 5
    assert second.holder == "a"
    assert scene.leases.stored[NAME].transitions == 0


async def test_another_takes_over_when_the_record_has_not_moved(scene: Scene):
    """Not before it is 15 s old, as the waiting one has seen it."""
    first, second = scene.candidate("a"), scene.candidate("b")
    await first.step()
    scene.now_s += 7
    assert not await second.step()
    scene.now_s += 14.9
    assert not await second.step()
    scene.now_s += 0.1
    assert await second.step()
    assert not first.is_elected
    assert not await first.step()
    assert scene.leases.stored[NAME].transitions == 1


async def test_the_holder_ends_its_term_before_anybody_can_take_over(scene: Scene):
    """Also when its clock, or the time of day, is years away."""
    first = scene.candidate("a", ahead_s=1e9, wall=1999)
    second = scene.candidate("b", wall=2099)
    await first.step()
    await second.step()
    together = 0
    scene.leases.is_away = True
    for _ in range(200):
        scene.now_s += 0.1
        await first.step()
        scene.leases.is_away = False
        await second.step()
        scene.leases.is_away = True
        together += first.is_elected and second.is_elected
    assert together == 0
    assert second.is_elected


async def test_a_store_that_is_away_for_a_moment_changes_nothing(scene: Scene):
    """The term runs on; then it ends, with the reason told."""
    first = scene.candidate("a")
    await first.step()
    scene.leases.is_away = True
    scene.now_s += 5
    assert await first.step()
    assert "unreachable" in (first.fault or "")
    scene.now_s += 5.1
    assert not await first.step()
    scene.leases.is_away = False
    assert await first.step()
    assert first.fault is None


async def test_a_renewal_whose_answer_was_lost_is_found(scene: Scene):
    """The record is its own; nobody waits."""
    first = scene.candidate("a")
    scene.leases.lose_answer_next()
    assert not await first.step()
    assert await first.step()


async def test_who_resigns_is_followed_at_once(scene: Scene):
    """And has no say any more."""
    first, second = scene.candidate("a"), scene.candidate("b")
    await first.step()
    await first.resign()
    assert not first.is_elected
    assert await second.step()
    await first.resign()
    assert scene.leases.stored[NAME].holder == "b"


async def test_two_that_start_at_once_are_one(scene: Scene):
    """Create is the lock."""
    candidates = [scene.candidate(name) for name in "abc"]
    elected = await asyncio.gather(*(each.step() for each in candidates))
    assert sum(elected) == 1


async def test_a_record_that_claims_to_be_good_for_ever_is_not_believed(scene: Scene):
    """Somebody's mistake must not stop the work for good."""
    await scene.leases.create(Lease(NAME, "ghost", duration_s=10**9))
    first = scene.candidate("a")
    assert not await first.step()
    scene.now_s += 300
    assert await first.step()


async def test_cancelling_gives_the_lease_back(scene: Scene):
    """As SIGTERM does."""
    first = scene.candidate("a")
    running = asyncio.create_task(first.run())
    async with asyncio.timeout(5):
        while not first.is_elected:  # noqa: ASYNC110
            await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert scene.leases.stored[NAME].holder == ""


# -- every kind of leases ------------------------------------------------------------------


@pytest.fixture(params=["fake", "file"])
def leases(request: pytest.FixtureRequest, tmp_path: Path):
    return FakeLeases() if request.param == "fake" else FileLeases(tmp_path / "leases")


async def test_leases_are_compared_and_swapped(leases):
    """The second writer of one version loses; names do not meet."""
    assert await leases.get(NAME) is None
    created = await leases.create(Lease(NAME, "a", renewed_at="x"))
    assert await leases.get(NAME) == created
    assert created.version
    with pytest.raises(LeaseConflict):
        await leases.create(Lease(NAME, "b"))
    updated = await leases.update(replace(created, holder="b", transitions=1))
    assert updated.version != created.version
    with pytest.raises(LeaseConflict):
        await leases.update(replace(created, holder="c"))
    with pytest.raises(LeaseConflict):
        await leases.update(Lease("another", "c", version="1"))
    await leases.create(Lease("another", "c"))
    assert await leases.get(NAME) == updated


async def test_a_file_of_garbage_is_no_lease(tmp_path: Path):
    """It is written anew."""
    path = tmp_path / "leases"
    for garbage in (b"{", b"[1]", b'[{"name":"x"}]', b"\xff" * 9, b'[{"name":1,"holder":2}]'):
        path.write_bytes(garbage)
        leases = FileLeases(path)
        assert await leases.get(NAME) is None
        created = await leases.create(Lease(NAME, "a"))
        assert await leases.get(NAME) == created


async def test_a_file_that_is_locked_or_cannot_be_made_is_an_error(tmp_path: Path):
    """A stopped process that holds the lock must not stop this one."""
    path = tmp_path / "leases"
    held = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(LeaseError, match="locked by another process"):
        await FileLeases(path).get(NAME)
    os.close(held)
    assert await FileLeases(path).get(NAME) is None
    with pytest.raises(LeaseError, match="No such file"):
        await FileLeases(tmp_path / "no" / "leases").get(NAME)
