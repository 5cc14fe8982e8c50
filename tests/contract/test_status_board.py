"""Statuses and Events on the API: written on change, rate-limited, and never in a spec's way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lab.apiserver.server import ApiDouble
from lab.apiserver.state import KINDS, Key
from routing.datastore.kubernetes import KubernetesStore
from routing.datastore.kubernetes_board import EVENT_MIN_S
from routing.datastore.snapshot import (
    Condition,
    ConditionStatus,
    EventNote,
    Meta,
    NodeResource,
    NotFound,
    ResourceStatus,
    StoreError,
)
from tests.fakes.reported import POOL, STATUS, Clock

EVENTS = next(each for each in KINDS if each.api_version == "events.k8s.io/v1")
EXHAUSTED = Condition("Exhausted", ConditionStatus.TRUE, "NoBlockLeft", "all 4 blocks taken", 1)


@pytest.fixture
async def api():
    """The double, up."""
    double = ApiDouble()
    await double.start()
    yield double
    await double.stop()


@pytest.fixture
def clock():
    """For the rate of Events."""
    return Clock()


@pytest.fixture
async def store(api, tmp_path, clock):
    """The board is the store's."""
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    one = await KubernetesStore.open(kubeconfig, reporter="node-a", clock=clock)
    yield one
    await one.close()


async def test_a_status_is_beside_the_spec(api, store):
    """The generation stays, the resource reads back the same, and only a change is written."""
    pool = await store.create(POOL)
    assert await store.get_status("IPPool", "four") == ResourceStatus()
    status = ResourceStatus({"blocks": 4, "blockSize": 26}, (EXHAUSTED,))

    await store.set_status("IPPool", "four", status)
    await store.set_status("IPPool", "four", status)

    read = await store.get("IPPool", "four")
    assert (read.meta.generation, replace(read, meta=POOL.meta)) == (1, POOL)
    assert read.meta.resource_version != pool.meta.resource_version
    found = await store.get_status("IPPool", "four")
    assert found.columns == status.columns
    (condition,) = found.conditions
    assert condition.changed_at.endswith("Z")
    assert replace(condition, changed_at="") == EXHAUSTED
    assert api.calls["patch", "ippools/status"] == 1


async def test_a_status_is_replaced_as_a_whole(store):
    """A column that is not said any more is gone."""
    await store.create(POOL)
    await store.set_status(
        "IPPool", "four", ResourceStatus({"blocks": 1, "blockSize": 26}, (EXHAUSTED,))
    )
    await store.set_status("IPPool", "four", ResourceStatus({"blockSize": 27}))

    assert await store.get_status("IPPool", "four") == ResourceStatus({"blockSize": 27})
    with pytest.raises(NotFound):
        await store.set_status("IPPool", "none", ResourceStatus({"blockSize": 27}))
    with pytest.raises(StoreError, match="has no status of ours"):
        await store.set_status("Secret", "x", ResourceStatus())


async def test_a_condition_keeps_its_time_while_it_says_the_same(store):
    """A message that changes is written; the transition is when the status changed."""
    await store.create(POOL)
    old = replace(EXHAUSTED, changed_at="2020-01-01T00:00:00Z")
    await store.set_status("IPPool", "four", ResourceStatus({}, (old,)))
    await store.set_status(
        "IPPool", "four", ResourceStatus({}, (replace(EXHAUSTED, message="all 5 blocks"),))
    )

    (condition,) = (await store.get_status("IPPool", "four")).conditions
    assert (condition.message, condition.changed_at) == ("all 5 blocks", "2020-01-01T00:00:00Z")

    false = replace(EXHAUSTED, status=ConditionStatus.FALSE)
    await store.set_status("IPPool", "four", ResourceStatus({}, (false,)))
    (condition,) = (await store.get_status("IPPool", "four")).conditions
    assert condition.changed_at > "2020-01-01T00:00:00Z"


async def test_a_node_reports_in_one_request(api, store):
    """Made at the first time, owned by its Node; then one PUT each, unless somebody else wrote."""
    node = await store.create(NodeResource(Meta("node-a")))
    await store.snapshot()

    await store.put_node_status(STATUS)
    again = replace(STATUS, observed_at="2026-11-26T10:01:00Z")
    before = sum(api.calls.values())
    await store.put_node_status(again)
    assert sum(api.calls.values()) - before == 1

    read = await store.get("NodeStatus", "node-a")
    assert replace(read, meta=STATUS.meta) == again
    key = Key(next(each for each in KINDS if each.kind == "NodeStatus"), "", "node-a")
    (owner,) = api.state.get(key)["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Node", node.meta.uid)

    api.state.patch(key, {"metadata": {"labels": {"somebody": "else"}}})
    await store.put_node_status(STATUS)
    await store.delete("NodeStatus", "node-a")
    await store.put_node_status(STATUS)
    assert (await store.get("NodeStatus", "node-a")).observed_at == STATUS.observed_at


async def test_an_event_says_whom_it_is_about_and_repeats_are_counted(api, store, clock):
    """At most one write a minute for the same thing; then one write with the count."""
    pool = await store.create(POOL)
    note = EventNote("IPPool", "four", "PoolExhausted", "all 4 blocks taken")
    await store._mirrors.snapshot()

    for _ in range(3):
        await store.note_event(note)
    (event,) = api.state.list(EVENTS, "default")
    assert event["regarding"] == {
        "apiVersion": "slash32.io/v1",
        "kind": "IPPool",
        "name": "four",
        "uid": pool.meta.uid,
    }
    assert (event["type"], event["reason"], event["note"]) == ("Warning", note.reason, note.message)
    assert event["reportingInstance"] == "node-a"
    assert "series" not in event
    clock.now_s += EVENT_MIN_S
    await store.note_event(note)

    (event,) = api.state.list(EVENTS, "default")
    assert event["series"]["count"] == 4


async def test_an_event_that_could_not_be_written_is_still_counted(api, store, clock):
    """And an author who was restarted goes on with the Event that is there."""
    note = EventNote("Node", "node-a", "PeerDown", "tor: hold timer expired (4/0)")
    api.fault(verb="create", resource="events", status=500)
    with pytest.raises(StoreError):
        await store.note_event(note)
    clock.now_s += EVENT_MIN_S
    await store.note_event(note)
    kubeconfig = store.server._kubeconfig
    other = await KubernetesStore.open(kubeconfig, reporter="node-a")
    await other.note_event(note)
    await other.close()

    (event,) = api.state.list(EVENTS, "default")
    assert event["regarding"]["apiVersion"] == "v1"
    assert event["series"]["count"] == 2
