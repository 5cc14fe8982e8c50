"""What is written beside resources (statuses, Events, Leases), held against the double and a real
kube-apiserver alike: nothing here looks behind the API."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from cni.wish import PodWish, WishRefused
from lab.apiserver.server import ApiDouble
from routing.controller.election import Election, LeaseConflict
from routing.controller.kubernetes_leases import KubernetesLeases
from routing.datastore.kubernetes import KubernetesStore
from routing.datastore.kubernetes_board import EVENT_MIN_S
from routing.datastore.kubernetes_client import MERGE_PATCH
from routing.datastore.kubernetes_documents import EVENTS, NODES
from routing.datastore.kubernetes_pods import KubernetesPods
from routing.datastore.snapshot import (
    BGPPeerResource,
    Condition,
    ConditionStatus,
    EventNote,
    Meta,
    NodeResource,
    ResourceStatus,
    StoreError,
)
from tests.fakes.kube_apiserver import NAMESPACE
from tests.fakes.reported import POOL, STATUS, Clock

PEER = BGPPeerResource(Meta("tor"), ip_address("192.0.2.254"), 64512)


@pytest.fixture
def clock():
    """Of Events and Leases."""
    return Clock()


@pytest.fixture(params=["double", "real"])
async def store(request, tmp_path, clock):
    """On either API."""
    double = None
    if request.param == "double":
        double = ApiDouble()
        await double.start()
        kubeconfig = double.write_kubeconfig(tmp_path / "kubeconfig")
    else:
        server, paths = request.getfixturevalue("real")
        leases = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
        server.wipe([*paths, EVENTS, leases])
        kubeconfig = server.kubeconfig
    one = await KubernetesStore.open(kubeconfig, reporter="node-a", clock=clock)
    yield one
    await one.close()
    if double is not None:
        await double.stop()


async def test_statuses_are_beside_specs(store):
    """Generation and spec stay; a status that says less takes the rest away."""
    await store.create(POOL)
    await store.create(PEER)
    full = Condition("Exhausted", ConditionStatus.TRUE, "Exhausted", "all 4 blocks", 1)
    await store.set_status(
        "IPPool", "four", ResourceStatus({"blockSize": 26, "blocks": 4}, (full,))
    )
    await store.set_status("BGPPeer", "tor", ResourceStatus({"nodes": 1, "established": "0/1"}))

    pool = await store.get("IPPool", "four")
    assert (pool.meta.generation, replace(pool, meta=POOL.meta)) == (1, POOL)
    found = await store.get_status("IPPool", "four")
    assert found.columns == {"blockSize": 26, "blocks": 4}
    assert [replace(each, changed_at="") for each in found.conditions] == [full]
    assert (await store.get_status("BGPPeer", "tor")).columns["established"] == "0/1"
    await store.set_status("IPPool", "four", ResourceStatus({"blockSize": 26}))
    assert await store.get_status("IPPool", "four") == ResourceStatus({"blockSize": 26})
    updated = await store.update(replace(pool, disabled=True, meta=(
        await store.get("IPPool", "four")).meta
    ))  # fmt: skip
    assert updated.meta.generation == 2
    assert (await store.get_status("IPPool", "four")).columns == {"blockSize": 26}


async def test_a_node_status_is_made_and_replaced(store):
    """With and without its Node; also after somebody deleted it."""
    await store.put_node_status(STATUS)
    await store.create(NodeResource(Meta("node-a")))
    await store.put_node_status(replace(STATUS, observed_at="2026-11-26T10:01:00Z"))
    await store.delete("NodeStatus", "node-a")
    await store.put_node_status(STATUS)

    (found,) = await store.list("NodeStatus")
    assert replace(found, meta=STATUS.meta) == STATUS


async def test_the_nodes_condition_is_ours_alone(store):
    """NetworkUnavailable is set and set back; the conditions of others stay as they are."""
    await store.create(NodeResource(Meta("node-a")))
    server = store._board._server
    path = f"{NODES}/node-a/status"
    kubelets = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "x"}
    body = {"status": {"conditions": [kubelets]}}
    await server.request("PATCH", path, body=body, content_type=MERGE_PATCH)

    async def conditions():
        found = (await server.request("GET", f"{NODES}/node-a"))["status"]["conditions"]
        return {each["type"]: (each["status"], each["reason"]) for each in found}

    await store.set_network_unavailable("node-a", "no BGP session is left")
    assert await conditions() == {
        "Ready": ("True", "KubeletReady"),
        "NetworkUnavailable": ("True", "Slash32NotReady"),
    }
    await store.set_network_unavailable("node-a", None)
    assert (await conditions())["NetworkUnavailable"] == ("False", "Slash32Ready")
    await store.set_network_unavailable("not-there", None)


async def test_an_event_is_written_and_counted(store, clock):
    """One object; the second time its series counts."""
    note = EventNote("BGPPeer", "tor", "PeerDown", "node-a: Hold Timer Expired (4/0)")
    for _ in range(2):
        await store.note_event(note)
        await store.note_event(note)
        clock.now_s += EVENT_MIN_S

    events, _ = await store.server.list(EVENTS)
    (event,) = [each for each in events if each["reason"] == "PeerDown"]
    assert event["note"] == note.message
    assert event["series"]["count"] == 3
    assert event["regarding"]["name"] == "tor"


async def test_a_lease_changes_hands_by_compare_and_swap(store, clock):
    """As kubectl get leases shows it."""
    leases = KubernetesLeases(store.server, namespace=NAMESPACE)
    one, two = (
        Election(leases, name="controller", identity=name, clock=clock) for name in ("one", "two")
    )
    assert await one.step()
    assert not await two.step()
    lease = await leases.get("controller")
    assert lease is not None
    assert lease.holder == "one"
    await one.step()
    with pytest.raises(LeaseConflict):
        await leases.update(lease)
    await one.resign()

    assert await two.step()
    found = await leases.get("controller")
    assert found is not None
    assert (found.holder, found.transitions) == ("two", 1)


async def test_annotations_of_pods_are_found(store):
    """In the API's own Pods and Namespaces."""
    pods = KubernetesPods(store.server, node="node-a", pools=lambda: [POOL])
    for name, given in (
        ("web", {"cni.projectcalico.org/ipv4pools": '["four"]'}),
        ("fixed", {"slash32.io/addresses": '["10.0.0.7"]'}),
    ):
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "annotations": given},
            "spec": {"nodeName": "node-a", "containers": [{"name": "c", "image": "i"}]},
        }
        await store.server.request("POST", "/api/v1/namespaces/default/pods", body=body)
    try:
        await store.server.request("GET", "/api/v1/namespaces/default")
    except StoreError:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}
        await store.server.request("POST", "/api/v1/namespaces", body=body)

    assert await pods.wish("default", "web", "") == PodWish(pools_v4=("four",))
    with pytest.raises(WishRefused, match="not allowed in namespace default"):
        await pods.wish("default", "fixed", "")
