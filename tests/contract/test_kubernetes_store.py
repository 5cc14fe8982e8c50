"""What KubernetesStore does when the API server is slow, gone, silent or of another opinion."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from cni import eager
from cni.ipam.block import Block, BlockExists, BlockState, BlockStoreError
from lab.apiserver.server import ApiDouble
from lab.apiserver.state import KINDS, Key
from routing.datastore import kubernetes_client
from routing.datastore.kubernetes import KubernetesStore
from routing.datastore.kubernetes_watch import Pace
from routing.datastore.snapshot import (
    BGPPeerResource,
    Conflict,
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

PACE = Pace(
    grace_s=0.2, backoff_first_s=0.02, backoff_max_s=0.1, sync_wait_s=5.0, absent_retry_s=0.1
)
POOL = IPPoolResource(Meta("four"), ip_network("10.0.0.0/24"), 26)
PEER = BGPPeerResource(Meta("tor"), ip_address("192.0.2.254"), 64512)
BLOCK = Block(ip_network("10.0.0.64/26"), "four", "node-a", BlockState.PENDING)
CUSTOM = {kind.kind: kind for kind in KINDS if kind.api_version == "slash32.io/v1"}
CORE = {kind.kind: kind for kind in KINDS if kind.api_version == "v1"}


@pytest.fixture
async def api():
    """The double, up."""
    double = ApiDouble()
    double.bookmark_s = 0.05
    await double.start()
    yield double
    await double.stop()


@asynccontextmanager
async def opened(api, tmp_path, pace=PACE):
    """A store on the double."""
    store = await KubernetesStore.open(api.write_kubeconfig(tmp_path / "kubeconfig"), pace=pace)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(api, tmp_path):
    """One store with short waits."""
    async with opened(api, tmp_path) as one:
        yield one


async def until(holds, deadline_s=10.0):
    """Waits for a condition; fails with what it said last."""
    end_s = time.monotonic() + deadline_s
    while not (found := await holds()):
        assert time.monotonic() < end_s, f"not so after {deadline_s} s: {found!r}"
        await asyncio.sleep(0.01)
    return found


def put(api, kind, name, *, namespace="", **fields):
    """An object as kubectl would write it, past every rule of ours."""
    known = CUSTOM.get(kind) or CORE[kind]
    body = {"metadata": {"name": name}, **fields}
    return api.state.create(known, namespace, body)


def pools(store):
    """A condition's question: the names of the pools the store's snapshot has."""

    async def ask():
        try:
            return [pool.meta.name for pool in (await store.snapshot()).pools]
        except StoreError:
            return None

    return ask


# -- following the server ------------------------------------------------------------------


async def test_a_watch_that_goes_on_needs_no_list(api, store):
    """Ended by the server, it is taken up where it was; bookmarks carry quiet kinds along."""
    await store.snapshot()
    lists = api.calls["list", "ippools"]
    for number in range(3):
        put(api, "Node", f"node-{number}")
    await until(lambda: _has_caught_up(api, store))
    api.state.compact()
    await api.down()
    await api.up()
    put(api, "IPPool", "late", spec={"cidr": "10.9.0.0/16"})

    async def has_late():
        return await pools(store)() == ["late"]

    await until(has_late)

    assert api.calls["list", "ippools"] == lists


async def _has_caught_up(api, store):
    """Whether every mirror has read of the last version, a quiet kind's by a bookmark. What was
    only sent is lost when the connection is reset."""
    versions = [int(mirror._version or 0) for mirror in store._mirrors._reflectors()]
    return min(versions) >= api.state.version


async def test_after_410_everything_is_listed_again(api, store):
    """What came and what went while nobody looked; nothing is doubled or left."""
    put(api, "IPPool", "gone", spec={"cidr": "10.8.0.0/16"})
    assert await until(pools(store)) == ["gone"]
    await api.down()
    api.state.delete(Key(CUSTOM["IPPool"], "", "gone"), {})
    put(api, "IPPool", "new", spec={"cidr": "10.9.0.0/16"})
    api.state.compact()
    await api.up()

    async def is_new():
        return await pools(store)() == ["new"]

    await until(is_new)


async def test_a_watch_that_falls_silent_is_noticed(api, tmp_path):
    """The connection stands and says nothing, bookmarks and its end included: it is listed anew.

    The control is the same store with the deadline far away: it goes on believing.
    """
    brisk = replace(PACE, watch_s=1.0, slack_s=0.2)
    patient = replace(PACE, watch_s=600.0)
    async with (
        opened(api, tmp_path, brisk) as noticing,
        opened(api, tmp_path, patient) as believing,
    ):
        assert await pools(noticing)() == []
        assert await pools(believing)() == []
        api.is_silent = True
        put(api, "IPPool", "unheard", spec={"cidr": "10.9.0.0/16"})

        async def noticed():
            return await pools(noticing)() == ["unheard"]

        await until(noticed)
        assert await pools(believing)() == []


def test_silence_is_noticed_within_70_seconds():
    """With the waits that agents run with."""
    pace = Pace()

    assert pace.watch_s + pace.slack_s <= 70


async def test_a_server_that_is_gone_makes_the_snapshot_fail_and_comes_back(api, store):
    """Not at once (a restart is no news), then with the reason; changed() wakes for both."""
    await store.create(POOL)
    assert (await store.snapshot()).in_sync
    await api.down()
    assert [pool.meta.name for pool in (await store.snapshot()).pools] == ["four"]

    async with asyncio.timeout(5):
        await store.changed()
    with pytest.raises(StoreError, match=r"/apis/slash32.io/v1/.*: kubernetes http://127"):
        await until(lambda: _raises(store))
    await api.up()
    async with asyncio.timeout(5):
        await store.changed()

    async def is_back():
        return await pools(store)() == ["four"]

    await until(is_back)


async def _raises(store):
    await store.snapshot()
    return False


async def test_a_store_can_be_opened_while_the_server_is_away(api, tmp_path):
    """It says so at the first snapshot, and works once the server is there."""
    await api.down()
    async with opened(api, tmp_path) as store:
        with pytest.raises(StoreError):
            await store.snapshot()
        await api.up()

        async def is_there():
            return await pools(store)() == []

        await until(is_there)


async def test_waits_after_failures_grow_and_differ(api, tmp_path):
    """A server that refuses everything is asked a few times, not in a loop."""
    async with opened(api, tmp_path, replace(PACE, backoff_max_s=5.0)) as store:
        await store.snapshot()
        api.fault(verb="watch", status=500, times=10_000)
        await api.down()
        await api.up()
        before = api.calls["watch", "ippools"]
        await asyncio.sleep(0)

        async def asked_thrice():
            return api.calls["watch", "ippools"] >= before + 3

        began_s = time.monotonic()
        await until(asked_thrice)

    # 0.02 s and doubled each time, from half of it: five tries take 0.15 s at the very least.
    assert api.calls["watch", "ippools"] - before < 20
    assert time.monotonic() - began_s < 5


async def test_a_heartbeat_of_a_node_is_no_change(api, store):
    """Kubelets write every Node's status all the time."""
    node = put(api, "Node", "node-a")
    await store.snapshot()
    waiting = asyncio.create_task(store.changed())
    key = Key(CORE["Node"], "", "node-a")
    api.state.patch(key, {"status": {"conditions": [{"type": "Ready"}]}}, is_status=True)

    # The next change ends the wait, so the first would have.
    put(api, "IPPool", "four", spec={"cidr": "10.9.0.0/16"})
    async with asyncio.timeout(5):
        await waiting
    assert [pool.meta.name for pool in (await store.snapshot()).pools] == ["four"]
    assert node["metadata"]["resourceVersion"] != api.state.get(key)["metadata"]["resourceVersion"]


async def test_only_secrets_that_are_referred_to_are_read(api, store):
    """Each by its name; a cluster's other Secrets are nobody's business."""
    await store.create(replace(PEER, password=SecretKeyRef("bgp", "tor")))
    assert (await store.snapshot()).passwords == {}
    await store.create(SecretResource(Meta("other"), {"tor": Password("not ours")}))
    await store.create(SecretResource(Meta("bgp"), {"tor": Password("one")}))

    async def has_it():
        found = (await store.snapshot()).passwords.get(SecretKeyRef("bgp", "tor"))
        return found == Password("one")

    await until(has_it)

    assert {query["fieldSelector"] for query in api.secret_queries} == {"metadata.name=bgp"}


# -- writing -------------------------------------------------------------------------------


async def test_a_claim_whose_answer_was_cut_off_is_found_to_have_happened(api, store):
    """Nobody knows, says the error; the IPAM looks with list_blocks, which holds it."""
    await store.create(POOL)
    api.fault(verb="create", resource="blocks", after_commit=True)

    with pytest.raises(BlockStoreError):
        await store.create_block(BLOCK)

    (found,) = await store.list_blocks()
    assert (found.cidr, found.node) == (BLOCK.cidr, "node-a")
    with pytest.raises(BlockExists):
        await store.create_block(BLOCK)


async def test_a_request_may_begin_outside_a_task(store):
    """As an ADD does that claims a block or asks for a pod (cni/eager.py)."""
    await store.create(POOL)
    ended = asyncio.Event()
    claimed = []

    async def claim():
        claimed.append(await store.create_block(BLOCK))

    loop = asyncio.get_running_loop()
    loop.call_soon(lambda: eager.start(claim(), loop=loop, name="claim", on_end=ended.set))
    async with asyncio.timeout(5):
        await ended.wait()

    assert [block.cidr for block in claimed] == [BLOCK.cidr]


async def test_429_is_waited_for_and_500_is_an_error(api, store):
    """What was refused unread is asked again; what may have happened is not."""
    api.fault(verb="create", resource="ippools", status=429, retry_after_s=0.05, times=2)
    await store.create(POOL)
    assert api.calls["create", "ippools"] == 3

    api.fault(verb="create", resource="bgppeers", status=500)
    with pytest.raises(StoreError, match="HTTP 500"):
        await store.create(PEER)
    assert api.calls["create", "bgppeers"] == 1


async def test_409_is_a_conflict_and_a_slow_answer_is_given_up(api, store, monkeypatch):
    """The deadline is one request's, and says how long it waited."""
    created = await store.create(POOL)
    api.fault(verb="update", resource="ippools", status=409)
    with pytest.raises(Conflict, match="changed meanwhile"):
        await store.update(replace(created, disabled=True))

    monkeypatch.setitem(kubernetes_client.ApiServer.request.__kwdefaults__, "timeout_s", 0.1)
    api.fault(verb="get", resource="ippools", slow_s=2.0)
    with pytest.raises(StoreError, match=r"no answer in 0\.1 s"):
        await store.get("IPPool", "four")


async def test_a_write_leaves_what_is_others_business(api, store):
    """Owner references, finalizers and kubectl's own annotation survive an update of ours."""
    applied = "kubectl.kubernetes.io/last-applied-configuration"
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}
    body = {"name": "tor", "annotations": {applied: "{}"}, "ownerReferences": [owner]}
    api.state.create(
        CUSTOM["BGPPeer"], "", {"metadata": body, "spec": {"peerIP": "192.0.2.1", "asNumber": 1}}
    )
    peer = await store.get("BGPPeer", "tor")
    assert isinstance(peer, BGPPeerResource)
    assert peer.meta.annotations == {}

    await store.update(replace(peer, asn=2))

    stored = api.state.get(Key(CUSTOM["BGPPeer"], "", "tor"))
    assert stored["spec"]["asNumber"] == 2
    assert stored["metadata"]["ownerReferences"] == [owner]
    assert stored["metadata"]["annotations"] == {applied: "{}"}


async def test_a_kind_whose_definition_is_missing_is_said(api, store):
    """404 without a metav1.Status: the CRDs are not installed."""
    await store.create(POOL)
    api.missing.add("bgppeers")

    with pytest.raises(StoreError, match="is the CustomResourceDefinition of BGPPeer installed"):
        await store.create(PEER)
    with pytest.raises(NotFound):
        await store.get("IPPool", "none")


async def test_apply_judges_all_before_it_writes_one(api, store):
    """A rule of ours or a refusal of the server's for the last one: the first is not there."""
    overlapping = IPPoolResource(Meta("x"), ip_network("10.0.0.0/8"), 26)
    with pytest.raises(InvalidResource, match="overlaps"):
        await store.apply([PEER, POOL, overlapping])
    api.fault(verb="create", resource="ippools", status=422, reason="Invalid")
    with pytest.raises(InvalidResource):
        await store.apply([PEER, POOL])
    assert await store.list("BGPPeer") == []

    first = await store.apply([PEER, POOL])
    second = await store.apply([replace(PEER, asn=64999), POOL])

    assert [each.outcome for each in first] == ["created"] * 2
    assert [each.outcome for each in second] == ["configured", "unchanged"]
    with pytest.raises(NotFound):
        await store.delete_all([("IPPool", "four"), ("BGPPeer", "none")])
    await store.delete_all([("IPPool", "four"), ("BGPPeer", "tor")])
    assert await store.list("IPPool") == []


# -- objects that somebody else wrote ------------------------------------------------------


async def test_a_malformed_object_stays_at_its_last_good_value(api, store):
    """The others are read on; the problem names the field until it is mended."""
    put(api, "IPPool", "four", spec={"cidr": "10.0.0.0/24"})
    put(api, "IPPool", "five", spec={"cidr": "10.5.0.0/24"})
    await until(pools(store))
    key = Key(CUSTOM["IPPool"], "", "four")
    api.state.patch(key, {"spec": {"vxlanMode": "Always"}})

    async def is_told():
        await store.snapshot()
        return [(p.kind, p.name, p.reason) for p in store.problems()]

    assert await until(is_told) == [("IPPool", "four", "Malformed")]
    assert "spec.vxlanMode = 'Always': must be Never" in store.problems()[0].text
    assert await pools(store)() == ["five", "four"]
    api.state.patch(key, {"spec": {"vxlanMode": None}})

    async def is_mended():
        return not await is_told()

    await until(is_mended)


async def test_of_two_pools_that_overlap_the_younger_gives_no_blocks(api, store):
    """Nobody asks a rule of ours with kubectl; all nodes take the same pool for disabled."""
    put(api, "IPPool", "z-old", spec={"cidr": "10.0.0.0/16"})
    api.state.patch(Key(CUSTOM["IPPool"], "", "z-old"), {"metadata": {"labels": {"made": "first"}}})
    old = api.state.get(Key(CUSTOM["IPPool"], "", "z-old"))["metadata"]
    old["creationTimestamp"] = "2020-01-01T00:00:00Z"
    put(api, "IPPool", "a-young", spec={"cidr": "10.0.4.0/24"})
    put(api, "Block", "10-9-0-0-26", spec={
        "cidr": "10.9.0.0/26", "pool": "z-old", "affinity": "host:node-a", "state": "confirmed"
    })  # fmt: skip
    snapshot = await store.snapshot()

    assert {pool.meta.name: pool.disabled for pool in snapshot.pools} == {
        "a-young": True,
        "z-old": False,
    }
    assert [(p.name, p.reason) for p in store.problems()] == [
        ("a-young", "Overlapping"),
        ("10-9-0-0-26", "NotOfItsPool"),
    ]


async def test_a_kubernetes_node_says_its_addresses_and_annotations_more(api, store):
    """InternalIPs, unless an annotation of ours (or Calico's) has another; ASN and drain."""
    addresses = [
        {"type": "Hostname", "address": "node-a"},
        {"type": "InternalIP", "address": "192.0.2.11"},
        {"type": "InternalIP", "address": "fd00::11"},
    ]
    for name, given in (
        ("node-a", {}),
        ("node-b", {"projectcalico.org/IPv4Address": "192.0.2.12/24"}),
        ("node-c", {"slash32.io/as-number": "64601", "slash32.io/drain": "true"}),
    ):
        api.state.create(CORE["Node"], "", {"metadata": {"name": name, "annotations": given}})
        api.state.patch(
            Key(CORE["Node"], "", name), {"status": {"addresses": addresses}}, is_status=True
        )

    nodes = {node.meta.name: node for node in (await store.snapshot()).nodes}

    assert nodes["node-a"].addresses == (ip_address("192.0.2.11"), ip_address("fd00::11"))
    assert nodes["node-b"].addresses == (ip_address("192.0.2.12"), ip_address("fd00::11"))
    assert (nodes["node-c"].asn, nodes["node-c"].is_drained) == (64601, True)
    assert (nodes["node-a"].asn, nodes["node-a"].is_drained) == (None, False)


async def test_labels_of_a_kubernetes_node_are_not_ours_to_change(store):
    """The sentence says where to."""
    node = await store.create(NodeResource(Meta("node-a", labels={"rack": "a"})))

    with pytest.raises(InvalidResource, match="kubectl label node"):
        await store.update(replace(node, meta=replace(node.meta, labels={"rack": "b"})))
