"""The embedded store alone: other processes, files that are damaged, newer or not a store at all.

What it shares with every Datastore is in ``test_datastore_contract``.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import queue
import signal
import sqlite3
import threading
import time
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from cni.ipam.block import Block, BlockExists, BlockState
from routing.datastore.database import APPLICATION_ID
from routing.datastore.local import LocalStore
from routing.datastore.resources import block_name, block_resource
from routing.datastore.snapshot import (
    BGPPeerResource,
    Conflict,
    InvalidResource,
    IPPoolResource,
    Meta,
    NodeResource,
    NotFound,
    StoreError,
)

POOL = IPPoolResource(Meta("four"), ip_network("10.0.0.0/24"), 26)
NODE = NodeResource(Meta("node-a", labels={"rack": "r1"}), (ip_address("192.0.2.1"),), 64601)
PEER = BGPPeerResource(Meta("tor"), ip_address("192.0.2.254"), 64512, node="node-a")
BLOCK = Block(ip_network("10.0.0.64/26"), "four", "node-a", BlockState.PENDING)


@pytest.fixture
async def local(tmp_path):
    """A LocalStore on a fresh file."""
    store = LocalStore(tmp_path / "store.db")
    yield store
    await store.close()


def claim_from_elsewhere(path: str, node: str, start: Any, results: Any) -> None:
    """One contender: its own store, the same CIDR."""

    async def run() -> str:
        store = LocalStore(path)
        start.wait(10)
        try:
            await store.create_block(replace(BLOCK, node=node))
            return "won"
        except BlockExists:
            return "exists"
        finally:
            await store.close()

    results.put(asyncio.run(run()))


@pytest.mark.parametrize("kind", ["threads", "processes"])
async def test_of_eight_who_claim_one_block_exactly_one_wins(local, tmp_path, kind):
    """From threads and from processes; the others are told it exists, none gets an error."""
    await local.create(POOL)
    path = str(tmp_path / "store.db")
    context = multiprocessing.get_context("fork")
    parts: tuple[Any, Any, Any] = (threading.Barrier(8), queue.Queue(), threading.Thread)
    if kind == "processes":
        parts = (context.Barrier(8), context.Queue(), context.Process)
    start, results, make = parts
    workers = [
        make(target=claim_from_elsewhere, args=(path, f"node-{i}", start, results))
        for i in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        await asyncio.to_thread(worker.join, 30)

    assert sorted(results.get(timeout=5) for _ in range(8)) == ["exists"] * 7 + ["won"]
    assert len(await local.list_blocks()) == 1


def open_from_elsewhere(path: str, start: Any, results: Any) -> None:
    """One of several who find no file."""

    async def run() -> None:
        store = LocalStore(path)
        await store.create(replace(NODE, meta=Meta(f"node-{os.getpid()}")))
        await store.close()

    start.wait(10)
    asyncio.run(run())
    results.put("done")


async def test_processes_that_make_the_file_at_once_share_it(tmp_path):
    """None sees half a file, and nobody's write goes to a file that lost."""
    path = tmp_path / "store.db"
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(6), context.Queue()
    workers = [
        context.Process(target=open_from_elsewhere, args=(str(path), start, results))
        for _ in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        await asyncio.to_thread(worker.join, 30)

    store = LocalStore(path, create=False)
    assert len(await store.list("Node")) == 6
    await store.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["store.db"]


def write_from_elsewhere(path: str) -> None:
    """A write by another process."""

    async def run() -> None:
        store = LocalStore(path)
        await store.create(NODE)
        await store.close()

    asyncio.run(run())


async def test_changed_wakes_on_another_processs_write(local, tmp_path):
    """Within a second, while the loop stays free."""
    await local.snapshot()
    waiting = asyncio.create_task(local.changed())
    process = multiprocessing.get_context("fork").Process(
        target=write_from_elsewhere, args=(str(tmp_path / "store.db"),)
    )
    process.start()

    async with asyncio.timeout(10):
        await waiting
    process.join(10)

    assert len((await local.snapshot()).nodes) == 1


@pytest.mark.parametrize("has_hints", [True, False], ids=["told", "polling"])
async def test_a_write_is_noticed_by_a_hint_or_by_polling(local, tmp_path, monkeypatch, has_hints):
    """With hints no poll is waited for; where the kernel gives none the polls alone do it."""
    if has_hints:
        monkeypatch.setattr("routing.datastore.local.SLOW_POLL_S", 600.0)
    else:
        monkeypatch.setattr("routing.datastore.file_watch.FileWatch.arm", lambda self: False)
    other = LocalStore(tmp_path / "store.db")
    for name in ("one", "two"):
        await local.snapshot()
        waiting = asyncio.create_task(local.changed())
        await asyncio.sleep(0)
        assert not waiting.done()
        await other.create(replace(PEER, meta=Meta(name)))
        async with asyncio.timeout(10):
            await waiting
    await other.close()


async def test_a_file_in_the_place_of_the_store_is_watched_too(local, tmp_path, monkeypatch):
    """The one that was replaced gives no more hints."""
    monkeypatch.setattr("routing.datastore.local.SLOW_POLL_S", 600.0)
    await local.snapshot()
    waiting = asyncio.create_task(local.changed())
    await asyncio.sleep(0)
    replaced = LocalStore(tmp_path / "new.db")
    await replaced.create(PEER)
    await replaced.close()
    (tmp_path / "new.db").rename(tmp_path / "store.db")
    with suppress(StoreError):
        async with asyncio.timeout(10):
            await waiting
    assert waiting.done()


async def test_apply_is_all_or_nothing(local):
    """The last resource breaks a rule: the first is not there either."""
    with pytest.raises(InvalidResource, match="overlaps"):
        await local.apply([NODE, POOL, IPPoolResource(Meta("x"), ip_network("10.0.0.0/8"), 26)])

    assert await local.list("Node") == []
    assert await local.list("IPPool") == []


async def test_apply_judges_the_whole_and_tells_what_it_did(local):
    """A block before its pool in one batch is fine; what is the same stays the same."""
    block = block_resource(BLOCK)

    first = await local.apply([block, POOL, NODE])
    second = await local.apply([POOL, replace(NODE, asn=65000), block])

    assert [each.outcome for each in first] == ["created"] * 3
    assert [each.outcome for each in second] == ["unchanged", "configured", "unchanged"]
    assert second[0].resource == first[1].resource


async def test_apply_with_a_version_is_a_compare_and_swap(local):
    """What was edited from an older reading is not written over a newer one."""
    (created,) = await local.apply([NODE])
    await local.apply([replace(NODE, asn=65000)])

    with pytest.raises(Conflict, match="changed meanwhile"):
        await local.apply([replace(created.resource, asn=65001)])
    with pytest.raises(NotFound, match="is not there"):
        await local.apply([replace(created.resource, meta=Meta("b", resource_version="7"))])


async def test_delete_all_is_all_or_nothing_and_judges_the_whole(local):
    """A pool may go with its blocks; one missing name keeps everything."""
    await local.apply([POOL, block_resource(BLOCK)])
    name = block_name(BLOCK.cidr)

    with pytest.raises(NotFound):
        await local.delete_all([("IPPool", "four"), ("Block", name), ("Node", "ghost")])
    with pytest.raises(InvalidResource, match="cannot be deleted while 1"):
        await local.delete_all([("IPPool", "four")])
    assert len(await local.list_blocks()) == 1
    await local.delete_all([("IPPool", "four"), ("Block", name)])

    assert (await local.snapshot()).pools == ()


async def test_the_store_outlives_its_processes(tmp_path):
    """Everything is there for the next one, versions going on from where they were."""
    store = LocalStore(tmp_path / "store.db")
    created = await store.create(NODE)
    await store.close()
    await store.close()

    again = LocalStore(tmp_path / "store.db")
    assert await again.get("Node", "node-a") == created
    later = await again.create(POOL)
    await again.close()
    assert int(later.meta.resource_version) > int(created.meta.resource_version)
    with pytest.raises(StoreError, match="is closed"):
        await again.list("Node")


async def test_a_writer_that_hangs_is_waited_for_without_stopping_the_loop(tmp_path):
    """The loop turns on; after the timeout the error names the store; then all is well again."""
    store = LocalStore(tmp_path / "store.db", busy_timeout_s=0.3)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    counting = asyncio.create_task(count_turns())
    with pytest.raises(StoreError, match=r"store\.db: another process is writing.*0\.3 s"):
        await store.create(NODE)
    assert await store.list("Node") == []
    counting.cancel()
    other.execute("ROLLBACK")
    other.close()
    await store.create(NODE)
    await store.close()

    assert turns > 5


def write_and_hang(path: str, ready: Any) -> None:
    """Begins a write and never ends it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE counter SET value = 4711")
    ready.set()
    time.sleep(60)


async def test_a_writer_killed_half_way_leaves_nothing(local, tmp_path):
    """Its transaction never was; the lock went with it."""
    created = await local.create(NODE)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=write_and_hang, args=(str(tmp_path / "store.db"), ready))
    process.start()
    assert await asyncio.to_thread(ready.wait, 10)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)

    updated = await local.update(replace(created, asn=65000))

    assert int(updated.meta.resource_version) == int(created.meta.resource_version) + 1


# -- files that are not a store ------------------------------------------------------------


def sqlite_file(path, *statements: str) -> None:
    """A SQLite file made by somebody."""
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_a_missing_directory_is_named(tmp_path):
    """Not made: a typing error must not become a directory tree."""
    with pytest.raises(StoreError, match=r"store .*: directory .*/no does not exist"):
        LocalStore(tmp_path / "no" / "store.db")


def test_a_missing_file_is_not_made_by_who_only_reads(tmp_path):
    """``get`` with a mistyped path is an error, not an empty cluster."""
    with pytest.raises(StoreError, match=r"store\.db: does not exist"):
        LocalStore(tmp_path / "store.db", create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"apiVersion: v1\n" * 100),
        lambda path: path.write_bytes(b"SQLite format 3\x00" + b"\x01" * 50),
        lambda path: sqlite_file(
            path, "CREATE TABLE precious (x)", "INSERT INTO precious VALUES (1)"
        ),
        lambda path: sqlite_file(path, "PRAGMA journal_mode = WAL", "CREATE TABLE precious (x)"),
    ],
    ids=["empty", "text", "cut", "foreign", "foreign wal"],
)
def test_a_file_that_is_not_ours_is_refused_and_not_changed(tmp_path, make):
    """Whatever it is, byte for byte, and nothing appears beside it."""
    path = tmp_path / "store.db"
    make(path)
    before = path.read_bytes()

    with pytest.raises(StoreError, match=r"store .*store\.db: is not a slash32 store"):
        LocalStore(path)

    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["store.db"]


async def test_a_store_that_was_damaged_is_an_error_and_not_an_empty_cluster(tmp_path):
    """A cut or scribbled file is named; nothing is repaired on a guess."""
    path = tmp_path / "store.db"
    store = LocalStore(path)
    await store.apply([replace(NODE, meta=Meta(f"node-{number}")) for number in range(200)])
    await store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
    damaged = path.read_bytes()

    with pytest.raises(StoreError, match=r"store\.db: "):
        store = LocalStore(path)
    assert path.read_bytes() == damaged


async def test_a_resource_that_cannot_be_read_is_named(tmp_path, local):
    """One bad row is an error for the snapshot; half a cluster would be believed."""
    await local.create(NODE)
    sqlite_file(tmp_path / "store.db", """UPDATE resource SET document = '{"kind": "Nodd"}'""")

    with pytest.raises(StoreError, match=r"Node 'node-a' cannot be read: .*must be one of"):
        await local.snapshot()


def test_a_journal_without_its_store_is_not_played_into_a_new_one(tmp_path):
    """SQLite would, for it goes by the name."""
    (tmp_path / "store.db-journal").write_bytes(b"left behind")

    with pytest.raises(StoreError, match=r"store\.db-journal is left of a store that is gone"):
        LocalStore(tmp_path / "store.db")

    assert [each.name for each in tmp_path.iterdir()] == ["store.db-journal"]


def test_a_newer_schema_is_refused_and_left_alone(tmp_path):
    """An old program must not write what it does not understand."""
    path = tmp_path / "store.db"
    sqlite_file(
        path,
        "CREATE TABLE resource (kind)",
        f"PRAGMA application_id = {APPLICATION_ID}",
        "PRAGMA user_version = 2",
    )
    before = path.read_bytes()

    with pytest.raises(StoreError, match=r"written by a newer slash32 \(schema 2; .* knows 1\)"):
        LocalStore(path)

    assert path.read_bytes() == before


async def test_a_store_that_was_deleted_or_replaced_is_noticed(tmp_path):
    """Not a word from the file that is gone; and the new one is read when it is there."""
    path = tmp_path / "store.db"
    store = LocalStore(path)
    await store.create(NODE)
    await store.snapshot()
    path.rename(tmp_path / "moved.db")

    with pytest.raises(StoreError, match=r"store\.db: does not exist"):
        await store.snapshot()
    with pytest.raises(StoreError, match="does not exist"):
        await store.changed()
    assert not path.exists()
    other = LocalStore(path)
    await other.create(POOL)
    async with asyncio.timeout(5):
        await store.changed()
    snapshot = await store.snapshot()
    await other.close()
    await store.close()

    assert (len(snapshot.pools), len(snapshot.nodes)) == (1, 0)
