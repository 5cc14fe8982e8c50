"""Hints that a file was written."""

import asyncio
import os

from routing.datastore.file_watch import FileWatch

SOON_S = 5.0
BRIEF_S = 0.05


async def test_a_write_is_told_and_reading_is_not(tmp_path):
    """What came before ``arm`` is forgotten."""
    path = tmp_path / "store"
    path.write_text("x")
    watch = FileWatch(path)
    assert watch.arm()

    path.read_text()
    assert not await watch.hint(BRIEF_S)
    waiting = asyncio.create_task(watch.hint(SOON_S))
    await asyncio.sleep(0)
    path.write_text("y")
    assert await waiting
    assert watch.arm()
    assert not await watch.hint(BRIEF_S)
    watch.close()


async def test_a_file_that_is_deleted_or_replaced_is_told(tmp_path):
    """And the new one is watched from the next ``arm`` on."""
    path, new = tmp_path / "store", tmp_path / "new"
    path.write_text("x")
    new.write_text("y")
    watch = FileWatch(path)
    with path.open():
        assert watch.arm()
        os.rename(new, path)
        assert await watch.hint(SOON_S)
    assert watch.arm()
    path.write_text("z")
    assert await watch.hint(SOON_S)
    path.unlink()
    assert not watch.arm()
    watch.close()


def test_closing_twice_is_harmless_and_nothing_is_watched_then(tmp_path):
    """As a store may be closed twice."""
    watch = FileWatch(tmp_path)
    assert watch.arm()
    watch.close()
    watch.close()
    assert not watch.arm()
