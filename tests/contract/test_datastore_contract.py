"""One suite for every Datastore: the fake, the embedded store, and the Kubernetes API.

The API is our double and, where KUBEBUILDER_ASSETS leads to one, a real kube-apiserver with etcd
and our CRDs. Each store is also tried as two handles, as two nodes have them. Only ``snapshot()``
may be a moment behind another's write.
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

from cni.ipam.block import Block, BlockConflict, BlockExists, BlockState, BlockStoreError
from lab.apiserver.server import ApiDouble
from routing.datastore.database import APPLICATION_ID
from routing.datastore.kubernetes import KubernetesStore
from routing.datastore.kubernetes_watch import Pace
from routing.datastore.local import LocalStore
from routing.datastore.resources import block_name, block_resource
from routing.datastore.snapshot import (
    AlreadyExists,
    BGPConfigurationResource,
    BGPFilterResource,
    BGPPeerResource,
    Conflict,
    FilterAction,
    FilterRule,
    InvalidResource,
    IPPoolResource,
    Meta,
    NodeResource,
    NotFound,
    Password,
    SecretKeyRef,
    SecretResource,
    StoreError,
)
from tests.fakes.store import FakeDatastore

POOL = IPPoolResource(Meta("four"), ip_network("10.0.0.0/24"), 26)
NODE = NodeResource(Meta("node-a", labels={"rack": "r1"}), (ip_address("192.0.2.1"),), 64601)
PEER = BGPPeerResource(Meta("tor"), ip_address("192.0.2.254"), 64512, node="node-a")
BLOCK = Block(ip_network("10.0.0.64/26"), "four", "node-a", BlockState.PENDING)


STORES = (
    ("fake", 1),
    *((store, handles) for store in ("local", "kubernetes", "real") for handles in (1, 2)),
)
"""(which store, how many handles on its state)."""
PACE = Pace(backoff_first_s=0.02, backoff_max_s=0.2, sync_wait_s=10.0)


@pytest.fixture(params=STORES, ids=lambda param: f"{param[0]} {param[1]}")
async def stores(request, tmp_path):
    """(the store to write to, the store to read from): the same, or two of the same state."""
    store, handles = request.param
    double = None
    opened: list[Any] = []
    if store == "fake":
        opened = [FakeDatastore()]
    elif store == "local":
        opened = [LocalStore(tmp_path / "store.db") for _ in range(handles)]
    else:
        if store == "kubernetes":
            double = ApiDouble()
            await double.start()
            kubeconfig = double.write_kubeconfig(tmp_path / "kubeconfig")
        else:
            server, paths = request.getfixturevalue("real")
            server.wipe(paths)
            kubeconfig = server.kubeconfig
        opened = [await KubernetesStore.open(kubeconfig, pace=PACE) for _ in range(handles)]
    yield opened[0], opened[-1]
    for each in opened:
        await each.close()
    if double is not None:
        await double.stop()


async def snapshot_when(store, holds):
    """The first snapshot of which ``holds`` is true, within 10 s; else the last one, to fail on."""
    snapshot = await store.snapshot()
    with suppress(TimeoutError):
        async with asyncio.timeout(10):
            while not holds(snapshot):
                await store.changed()
                snapshot = await store.snapshot()
    return snapshot


# -- resources -----------------------------------------------------------------------------


async def test_what_was_created_is_read_back_with_version_uid_and_generation(stores):
    """get() gives what create() returned, and that is what was given."""
    write, read = stores
    peer = replace(PEER, meta=Meta("tor", labels={"rack": "r1"}, annotations={"note": "x y"}))

    created = await write.create(peer)

    assert await read.get("BGPPeer", "tor") == created
    assert created.meta.resource_version
    assert created.meta.uid
    assert created.meta.generation == 1
    assert replace(created, meta=peer.meta) == peer
    assert (created.meta.labels, created.meta.annotations) == ({"rack": "r1"}, {"note": "x y"})


async def test_a_node_is_read_back_as_it_was_created(stores):
    """Its addresses, ASN and labels; on a Kubernetes store it is a v1 Node."""
    write, read = stores

    created = await write.create(NODE)

    assert await read.get("Node", "node-a") == created
    assert replace(created, meta=NODE.meta) == NODE
    assert created.meta.labels == {"rack": "r1"}


async def test_a_name_is_taken_once_for_each_kind(stores):
    """AlreadyExists; the same name of another kind is another thing."""
    write, read = stores
    await write.create(NODE)

    with pytest.raises(AlreadyExists, match="Node 'node-a' exists already"):
        await read.create(replace(NODE, asn=1))
    await write.create(replace(PEER, meta=Meta("node-a")))

    assert (await read.get("Node", "node-a")).asn == 64601


async def test_what_is_not_there_is_not_found(stores):
    """get, update and delete say so alike."""
    write, read = stores

    with pytest.raises(NotFound, match="Node 'ghost' was not found"):
        await read.get("Node", "ghost")
    with pytest.raises(NotFound):
        await write.update(replace(NODE, meta=Meta("ghost", resource_version="1")))
    with pytest.raises(NotFound):
        await write.delete("Node", "ghost")


async def test_an_update_needs_the_version_that_is_stored(stores):
    """Of two who read the same version, the second to write loses."""
    write, read = stores
    mine = await write.create(NODE)
    theirs = await read.get("Node", "node-a")

    updated = await write.update(replace(mine, asn=65000))

    assert updated.meta.resource_version != mine.meta.resource_version
    with pytest.raises(Conflict, match="changed meanwhile"):
        await read.update(replace(theirs, asn=65001))
    with pytest.raises(Conflict):
        await read.update(replace(NODE, asn=65002))
    assert (await read.get("Node", "node-a")).asn == 65000


async def test_an_update_of_another_object_of_the_same_name_is_refused(stores):
    """The uid tells a resource from a later one."""
    write, read = stores
    old = await write.create(NODE)
    await write.delete("Node", "node-a")
    new = await write.create(NODE)

    assert new.meta.uid != old.meta.uid
    assert new.meta.resource_version != old.meta.resource_version
    with pytest.raises(Conflict, match="another object"):
        await read.update(
            replace(new, meta=replace(new.meta, uid=old.meta.uid), asn=1),
        )


async def test_generation_counts_changes_of_the_spec_only(stores):
    """A label changes the version, not the generation; nothing changed changes neither."""
    write, _ = stores
    first = await write.create(PEER)

    labelled = await write.update(replace(first, meta=replace(first.meta, labels={"a": "b"})))
    same = await write.update(labelled)
    changed = await write.update(replace(same, asn=65001))

    assert labelled.meta.resource_version != first.meta.resource_version
    assert same == labelled
    assert [r.meta.generation for r in (first, labelled, changed)] == [1, 1, 2]


async def test_a_delete_keeps_its_preconditions(stores):
    """A version or uid that does not hold deletes nothing."""
    write, read = stores
    created = await write.create(NODE)
    version, uid = created.meta.resource_version, created.meta.uid

    with pytest.raises(Conflict):
        await read.delete("Node", "node-a", resource_version="999999")
    with pytest.raises(Conflict):
        await read.delete("Node", "node-a", uid="no-such-uid")
    assert await read.list("Node") == [created]
    await read.delete("Node", "node-a", resource_version=version, uid=uid)

    assert await write.list("Node") == []


async def test_lists_are_in_name_order(stores):
    """However they were created."""
    write, read = stores
    for name in ("b", "a10", "c", "a2"):
        await write.create(replace(NODE, meta=Meta(name)))

    assert [r.meta.name for r in await read.list("Node")] == ["a10", "a2", "b", "c"]
    snapshot = await snapshot_when(read, lambda found: len(found.nodes) == 4)
    assert [n.meta.name for n in snapshot.nodes] == ["a10", "a2", "b", "c"]


async def test_a_snapshot_holds_everything(stores):
    """Typed, in sync, with the default configuration where none is stored."""
    write, read = stores
    empty = await read.snapshot()
    assert empty.in_sync
    assert (empty.bgp.asn, empty.pools) == (64512, ())
    pool = await write.create(POOL)
    node = await write.create(NODE)
    peer = await write.create(PEER)
    block = await write.create_block(BLOCK)
    configuration = await write.create(BGPConfigurationResource(Meta("default"), asn=64999))

    snapshot = await snapshot_when(
        read,
        lambda found: (
            found.pools and found.nodes and found.peers and found.blocks and found.bgp.asn == 64999
        ),
    )

    assert (snapshot.pools, snapshot.nodes, snapshot.peers) == ((pool,), (node,), (peer,))
    assert (snapshot.blocks, snapshot.bgp) == ((block,), configuration)
    assert [p.name for p in snapshot.pools_for("node-a")] == ["four"]


async def test_a_snapshot_holds_filters_and_the_passwords_that_are_referred_to(stores):
    """Those of peers and of the mesh, and no other key of any Secret."""
    write, read = stores
    secret = SecretResource(
        Meta("bgp"), {key: Password(f"of-{key}") for key in ("tor", "mesh", "other")}
    )
    await write.create(secret)
    rule = await write.create(BGPFilterResource(Meta("none"), (FilterRule(FilterAction.REJECT),)))
    await write.create(replace(PEER, password=SecretKeyRef("bgp", "tor"), filters=("none",)))
    await write.create(
        BGPConfigurationResource(Meta("default"), mesh_password=SecretKeyRef("bgp", "mesh"))
    )
    await write.create(
        replace(PEER, meta=Meta("lost"), password=SecretKeyRef("bgp", "no-such-key"))
    )

    snapshot = await snapshot_when(
        read, lambda found: found.filters and len(found.passwords) == len(found.peers) == 2
    )

    assert snapshot.filters == (rule,)
    assert snapshot.passwords == {
        SecretKeyRef("bgp", "tor"): Password("of-tor"),
        SecretKeyRef("bgp", "mesh"): Password("of-mesh"),
    }


# -- rules between resources ---------------------------------------------------------------


async def test_a_pool_that_overlaps_another_is_refused_by_its_name(stores):
    """Inside, around, or equal; and the state is untouched."""
    write, read = stores
    await write.create(POOL)
    before = await snapshot_when(read, lambda found: found.pools)

    for cidr in ("10.0.0.0/25", "10.0.0.0/16", "10.0.0.0/24"):
        with pytest.raises(InvalidResource, match=r"overlaps IPPool 'four' \(10\.0\.0\.0/24\)"):
            await write.create(IPPoolResource(Meta("other"), ip_network(cidr), 28))

    assert await read.snapshot() == before


async def test_cidr_and_block_size_of_a_pool_stay(stores):
    """Blocks were cut by them; the rest may change."""
    write, read = stores
    pool = await write.create(POOL)

    with pytest.raises(InvalidResource, match=r"spec\.cidr = .*cannot be changed"):
        await write.update(replace(pool, cidr=ip_network("10.0.0.0/23")))
    with pytest.raises(InvalidResource, match=r"spec\.blockSize = 28: cannot be changed"):
        await write.update(replace(pool, block_size=28))
    assert await read.get("IPPool", "four") == pool
    disabled = await write.update(replace(pool, disabled=True))
    assert await read.get("IPPool", "four") == disabled


async def test_a_pool_with_blocks_is_not_deleted(stores):
    """The error counts them and names their nodes."""
    write, read = stores
    await write.create(POOL)
    block = await write.create_block(BLOCK)

    with pytest.raises(InvalidResource, match=r"while 1 of its blocks are claimed \(by node-a\)"):
        await write.delete("IPPool", "four")
    assert len(await read.list("IPPool")) == 1
    await write.delete_block(block)
    await write.delete("IPPool", "four")

    assert (await snapshot_when(read, lambda found: not found.pools)).pools == ()


@pytest.mark.parametrize(
    ("cidr", "pool", "rule"),
    [
        ("10.0.0.64/26", "none", "no such IPPool"),
        ("10.0.0.64/27", "four", "must be a /26 inside IPPool 'four'"),
        ("10.0.1.64/26", "four", "must be a /26 inside IPPool 'four'"),
        ("fd00::/122", "four", "must be a /26 inside IPPool 'four'"),
    ],
)
async def test_a_block_is_one_of_its_pools(stores, cidr, pool, rule):
    """So blocks can never overlap: they are cut from pools that do not."""
    write, read = stores
    await write.create(POOL)

    with pytest.raises(BlockStoreError, match=rule):
        await write.create_block(Block(ip_network(cidr), pool, "node-a", BlockState.PENDING))

    assert await read.list_blocks() == []


# -- blocks --------------------------------------------------------------------------------


async def test_a_block_is_claimed_once_and_confirmed_by_who_read_it_last(stores):
    """create is the lock, update the compare-and-swap, delete asks for the version too."""
    write, read = stores
    await write.create(POOL)
    pending = await write.create_block(BLOCK)

    with pytest.raises(BlockExists):
        await read.create_block(replace(BLOCK, node="node-b"))
    confirmed = await write.update_block(replace(pending, state=BlockState.CONFIRMED))
    with pytest.raises(BlockConflict):
        await read.update_block(replace(pending, state=BlockState.PENDING_DELETION))
    with pytest.raises(BlockConflict):
        await read.delete_block(pending)
    assert await read.list_blocks() == [confirmed]
    assert confirmed.uid == pending.uid
    await read.delete_block(confirmed)
    with pytest.raises(BlockConflict):
        await read.delete_block(confirmed)
    with pytest.raises(BlockConflict):
        await write.update_block(confirmed)

    assert await write.list_blocks() == []


async def test_a_block_never_changes_hands(stores):
    """Its owner, pool and CIDR stay; only deleting and claiming anew makes it another's."""
    write, read = stores
    await write.create(POOL)
    block = await write.create_block(BLOCK)

    with pytest.raises(BlockStoreError, match=r"spec\.affinity = 'host:node-b': cannot be changed"):
        await write.update_block(replace(block, node="node-b"))

    assert await read.list_blocks() == [block]


# -- watching ------------------------------------------------------------------------------


async def test_changed_wakes_on_a_write_and_not_before(stores):
    """A write by anyone; a write since the snapshot is not missed."""
    write, read = stores
    await read.snapshot()
    waiting = asyncio.create_task(read.changed())
    await asyncio.sleep(0)
    assert not waiting.done()

    await write.create(NODE)
    async with asyncio.timeout(5):
        await waiting
        await read.changed()
    await read.snapshot()

    again = asyncio.create_task(read.changed())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await asyncio.shield(again)
    await write.delete("Node", "node-a")
    async with asyncio.timeout(5):
        await again


# -- the embedded store alone --------------------------------------------------------------


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
