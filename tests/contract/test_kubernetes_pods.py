"""Annotations of this node's pods: from the mirror, from the API in time, or not at all."""

from __future__ import annotations

import asyncio
import time
from ipaddress import ip_network

import pytest

from cni.wish import NO_WISH, PodWish, WishRefused
from lab.apiserver.server import ApiDouble
from lab.apiserver.state import KINDS, Key
from routing.datastore.kubernetes_client import ApiServer
from routing.datastore.kubernetes_pods import ASK_TIMEOUT_S, KubernetesPods
from routing.datastore.kubernetes_watch import Pace
from routing.datastore.snapshot import IPPoolResource, Meta

POOL = IPPoolResource(Meta("four"), ip_network("10.0.0.0/16"), 26)
POD = next(kind for kind in KINDS if kind.kind == "Pod")
NAMESPACE = next(kind for kind in KINDS if kind.kind == "Namespace")
WISH = PodWish(pools_v4=("four",))
PACE = Pace(grace_s=0.2, backoff_first_s=0.02, backoff_max_s=0.1)


@pytest.fixture
async def api():
    """The double with one namespace."""
    double = ApiDouble()
    double.state.create(NAMESPACE, "", {"metadata": {"name": "shop"}})
    await double.start()
    yield double
    await double.stop()


@pytest.fixture
async def pods(api, tmp_path):
    """Of node-a; following from the first test's word on."""
    server = await ApiServer.connect(api.write_kubeconfig(tmp_path / "kubeconfig"))
    found = KubernetesPods(server, node="node-a", pools=lambda: [POOL], pace=PACE)
    yield found
    await found.close()
    await server.close()


def add(api, name, node="node-a", value='["four"]'):
    """A pod that is bound to a node; its uid."""
    metadata = {"name": name, "annotations": {"slash32.io/ipv4-pools": value, "other": "x"}}
    made = api.state.create(POD, "shop", {"metadata": metadata, "spec": {"nodeName": node}})
    return made["metadata"]["uid"]


async def until(holds):
    """Waits for a condition."""
    end_s = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.01)


async def test_a_pod_of_this_node_is_known_without_asking(api, pods):
    """From the watch; the pods of other nodes are none of ours."""
    pods.start()
    await until(lambda: api.calls["watch", "pods"] and api.calls["watch", "namespaces"])
    uid = add(api, "web")
    add(api, "other", node="node-b")
    await until(lambda: "shop/web" in pods._pods.entries)

    assert await pods.wish("shop", "web", uid) == WISH
    assert await pods.wish("shop", "web", "") == WISH
    assert api.calls["get", "pods"] == 0
    assert list(pods._pods.entries) == ["shop/web"]


async def test_a_pod_that_is_not_here_yet_is_asked_for(api, pods):
    """The watch may be a moment behind the runtime."""
    uid = add(api, "web")

    assert await pods.wish("shop", "web", uid) == WISH
    assert await pods.wish("shop", "ghost", "") is NO_WISH
    assert await pods.wish("shop", "web", "of-an-earlier-pod") is NO_WISH


async def test_a_malformed_annotation_is_refused(api, pods):
    """By its name."""
    uid = add(api, "web", value="four")

    with pytest.raises(WishRefused, match=r"slash32\.io/ipv4-pools: must be a JSON list"):
        await pods.wish("shop", "web", uid)


async def test_without_the_api_what_is_known_is_believed_and_nobody_waits(api, pods):
    """A known pod's wish is honoured; an unknown pod wishes nothing, at once."""
    pods.start()
    uid = add(api, "web")
    await until(lambda: "shop/web" in pods._pods.entries and "shop" in pods._namespaces.entries)
    await api.down()
    await until(lambda: pods._pods.fault and pods._namespaces.fault)

    assert await pods.wish("shop", "web", uid) == WISH
    assert await pods.wish("shop", "new", "") is NO_WISH


async def test_an_api_that_does_not_answer_is_not_waited_for(api, pods):
    """A second each for the pod and its namespace, and the ADD goes on."""
    add(api, "web")
    api.fault(verb="get", slow_s=30.0, times=2)
    began_s = time.monotonic()

    assert await pods.wish("shop", "web", "") is NO_WISH
    assert time.monotonic() - began_s >= ASK_TIMEOUT_S
    assert api.state.get(Key(POD, "shop", "web"))
