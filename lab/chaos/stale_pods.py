"""O13: what the API server says of a pod is stale or wrong, and its sandbox lives.

Whoever collects addresses by pod objects frees the address of a living pod sooner or later: an
object is gone before its sandbox, made again under its name, or never written right. Here a pod is
alive while its link is. The control is in the same run: one with a perfect object and no link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from cni.attachment import Attachment
from cni.collect import GRACE_S
from lab import runtime
from lab.chaos.control_plane import answers
from lab.chaos.plugin import LOOK_EVERY_S, LOOK_TAKES_S
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.watch import Flow
from lab.chaos.world import World
from lab.plan import LabFailure

NODE = "node1"
NAMESPACE = "o13"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
GRACES = 3
"""For how many grace times the living ones are watched."""

Document = dict[str, Any]


@dataclass
class Alive:
    """One sandbox with a link, and the name of its pod object."""

    name: str
    sandbox: runtime.Sandbox
    addresses: list[str] = field(default_factory=list)


def _object(name: str, *, node: str = NODE, **annotations: str) -> Document:
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "c"}]},
    }  # fmt: skip


def _make(world: World, name: str, address: str = "", **said: str) -> str:
    """A Pod object that says so; its uid."""
    made = world.api(PODS, _object(name, **said))
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
    world.api(f"{PODS}/{name}/status", {"status": status if address else {}}, method="PATCH")
    return str(made["metadata"]["uid"])


def _remove(world: World, name: str) -> None:
    world.api(f"{PODS}/{name}", method="DELETE")


def _gone(world: World, pod: Alive) -> None:
    _remove(world, pod.name)


def _another_uid(world: World, pod: Alive) -> None:
    _remove(world, pod.name)
    _make(world, pod.name, "10.244.255.1")


def _renamed(world: World, pod: Alive) -> None:
    _remove(world, pod.name)
    _make(world, f"{pod.name}-2", pod.addresses[0])


def _elsewhere(world: World, pod: Alive) -> None:
    _remove(world, pod.name)
    _make(world, pod.name, pod.addresses[0], node="node2")


def _stale(world: World, pod: Alive) -> None:
    said = {"slash32.io/ipv4-pools": '["nowhere"]', "slash32.io/addresses": '["10.244.255.2"]'}
    world.api(f"{PODS}/{pod.name}", {"metadata": {"annotations": said}}, method="PATCH")
    status = {"phase": "Succeeded", "podIP": "10.244.255.2", "podIPs": [{"ip": "10.244.255.2"}]}
    world.api(f"{PODS}/{pod.name}/status", {"status": status}, method="PATCH")


STORIES: dict[str, Callable[[World, Alive], None]] = {
    "gone": _gone,
    "another-uid": _another_uid,
    "renamed": _renamed,
    "on-another-node": _elsewhere,
    "ended-with-stale-annotations": _stale,
}
"""What becomes of the object of a pod that lives. One more never had any."""


@contextmanager
def _pods_of(world: World, names: list[str]) -> Iterator[list[Alive]]:
    """Sandboxes on the node, added, each with a Pod object that is right; but the last."""
    plugin = world.lab.runtime_of(NODE)
    with suppress(LabFailure):
        world.api("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace",
                                         "metadata": {"name": NAMESPACE}})  # fmt: skip
    with ExitStack() as stack:
        made = []
        for number, name in enumerate(names):
            sandbox, _ = stack.enter_context(world.extra_pod(NODE, f"o13{number}"))
            uid = _make(world, name) if name != names[-1] else "of-nobody"
            stack.callback(_forget, world, name)
            told = dict(sandbox.arguments) | {
                "K8S_POD_NAMESPACE": NAMESPACE, "K8S_POD_NAME": name, "K8S_POD_UID": uid,
            }  # fmt: skip
            pod = Alive(name, replace(sandbox, arguments=tuple(told.items())))
            pod.addresses = runtime.addresses_in(plugin.add(pod.sandbox))
            made.append(pod)
        yield made


def _forget(world: World, name: str) -> None:
    for each in (name, f"{name}-2"):
        with suppress(LabFailure):
            _remove(world, each)


def _holders(world: World) -> str:
    return str(world.lab.ask(NODE, "ipam")["holders"])


def _v4(pod: Alive) -> str:
    return next(each for each in pod.addresses if ":" not in each)


def living_with_stale_objects(world: World, verdict: Verdict) -> None:
    """Objects change under living pods for several grace times, an agent is killed meanwhile; a pod
    whose object is perfect loses its link."""
    with _pods_of(world, [*STORIES, "dead", "without-object"]) as pods:
        dead = next(pod for pod in pods if pod.name == "dead")
        living = [pod for pod in pods if pod is not dead]
        held = [pod.name for pod in pods if pod.sandbox.container_id in _holders(world)]
        client = world.lab.plan.client.namespace
        with world.watching(*(Flow(pod.name, client, _v4(pod)) for pod in pods)) as watch:
            for pod in living:
                if pod.name in STORIES:
                    STORIES[pod.name](world, pod)
            network = runtime.load_network(world.lab.paths.cni_conf(NODE)).name
            link = Attachment(network, dead.sandbox.container_id, runtime.IFNAME).host_ifname
            world.run(NODE, "ip", "link", "delete", link)
            freed_s = world.wait(
                lambda: dead.sandbox.container_id not in _holders(world),
                "the dead one's addresses",
                GRACE_S + 2 * LOOK_EVERY_S + 10,
            )
            world.kill(f"agent-{NODE}")
            world.start_agent(NODE)
            world.wait(lambda: answers(world, NODE), "the new agent")
            world.for_seconds((GRACES - 1) * GRACE_S + LOOK_EVERY_S)
            holders = _holders(world)
        kept = [pod.name for pod in living if pod.sandbox.container_id in holders]
        for pod in living:
            world.lab.runtime_of(NODE).delete(pod.sandbox)
    world.settled()
    missed = sum(each.lost for each in watch.losses if each.flow != dead.name)
    sent = sum(each.sent for each in watch.losses if each.flow != dead.name)
    of_dead = sum(each.lost for each in watch.losses if each.flow == dead.name)
    verdict.note(
        f"{len(kept)} of {len(living)} living kept ({', '.join(pod.name for pod in living)}) for "
        f"{GRACES} grace times of {GRACE_S:.0f} s, an agent killed in between, {missed} of {sent} "
        "probes lost; control: "
        f"the dead one, whose object was right, released after {freed_s:.0f} s, {of_dead} "
        "probes to it lost"
    )
    verdict.must(len(held) == len(pods), f"only {held} held an address at first")
    verdict.must(
        len(kept) == len(living), f"released: {[p.name for p in living if p.name not in kept]}"
    )
    verdict.must(missed == 0, str(watch.losses))
    verdict.must(of_dead > 100, "the control within: no probe to the dead one was lost")
    verdict.must(freed_s >= GRACE_S, f"the dead one was released early, after {freed_s:.0f} s")
    verdict.must(
        freed_s <= GRACE_S + LOOK_EVERY_S + LOOK_TAKES_S, f"late: only after {freed_s:.0f} s"
    )


ROWS = [
    Row("O13", "six living pods whose objects are gone, of another uid, renamed, on another node, "
        "ended with stale annotations, or were never there; the agent killed; beside them one that "
        "is dead and whose object is right", f"never released, over {GRACES} grace times, 0 lost; "
        f"the dead one (the control within) freed after {GRACE_S:.0f} s and one look",
        Stage.KUBERNETES, living_with_stale_objects),
]  # fmt: skip
