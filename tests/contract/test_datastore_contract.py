"""One suite for every Datastore: the fake, the embedded store, and the Kubernetes API.

The API is our double and, where KUBEBUILDER_ASSETS leads to one, a real kube-apiserver with etcd
and our CRDs. Each store is also tried as two handles, as two nodes have them. Only ``snapshot()``
may be a moment behind another's write.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from cni.ipam.block import Block, BlockConflict, BlockExists, BlockState, BlockStoreError
from lab.apiserver.server import ApiDouble
from routing.datastore.kubernetes import KubernetesStore
from routing.datastore.kubernetes_watch import Pace
from routing.datastore.local import LocalStore
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
