"""Everything that goes wrong around ADD and DEL, with the real agent; afterwards nothing leaks."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cni.errors import Code
from tests.fakes.killed_node import (
    At,
    KilledNode,
    Sandbox,
    addresses_of,
    killed_node,
    problems_of,
)
from tests.fakes.netns import run, wait_until
from tests.fakes.runtime import Outcome

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

SOON = {"resync_s": 0.05, "collect_grace_s": 0.1}
"""An agent that collects within a test's patience."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KilledNode]:
    """One node for the module; every story has files of its own."""
    with killed_node(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_agent_outlives_its_test(node: KilledNode) -> Iterator[None]:
    yield
    node.stop()


def new_pod_works(node: KilledNode) -> list[str]:
    """What is wrong after a sandbox was made and ended."""
    sandbox = node.sandbox()
    found = problems_of(node, [sandbox], node.add(sandbox))
    node.delete(sandbox)
    return found + node.settle([])


def steps_of(node: KilledNode, verb: str) -> list[str]:
    """What a verb consists of when nobody disturbs it."""
    node.fresh()
    sandbox = node.sandbox()
    node.start(verb)
    node.add(sandbox)
    steps = node.steps
    node.delete(sandbox)
    node.stop(signal.SIGTERM)
    steps = node.steps if verb == "DEL" else steps
    assert len(steps) > 6
    return steps


# -- the sandbox's namespace -------------------------------------------------------------------


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


@contextlib.contextmanager
def interrupted(
    node: KilledNode, verb: str, sandbox: Sandbox, step: str
) -> Iterator[list[Outcome]]:
    """A verb under way that rests before ``step`` while the block runs; its outcome afterwards."""
    outcome: list[Outcome] = []
    agent = node.last_agent
    caller = threading.Thread(target=lambda: outcome.append(node.call(verb, sandbox)))
    caller.start()
    try:
        wait_until(lambda: is_stopped(agent), what=f"the agent to rest before {step}")
        yield outcome
    finally:
        os.kill(agent, signal.SIGCONT)
        caller.join()


@pytest.mark.parametrize("has_del", [True, False], ids=["then-del", "no-del"])
def test_a_namespace_that_goes_at_any_step_of_add_leaves_nothing(
    node: KilledNode, has_del: bool
) -> None:
    """The agent holds it open until the ADD has ended; then it takes its link along."""
    problems: list[str] = []
    for step in steps_of(node, "ADD"):
        node.fresh(**SOON)
        sandbox = node.sandbox()
        node.start("ADD", At(step, "stop"))
        with interrupted(node, "ADD", sandbox, step):
            node.destroy(sandbox)
        if has_del:
            node.delete(sandbox)
        problems += [f"{step}: {each}" for each in node.settle([])]
    assert problems + new_pod_works(node) == []


def test_a_namespace_that_goes_at_any_step_of_del_leaves_nothing(node: KilledNode) -> None:
    """The kernel removes the link while the agent does."""
    problems: list[str] = []
    for step in steps_of(node, "DEL"):
        node.fresh()
        sandbox = node.sandbox()
        node.start("DEL", At(step, "stop"))
        node.add(sandbox)
        with interrupted(node, "DEL", sandbox, step) as outcome:
            node.destroy(sandbox)
        assert outcome[0].status == 0, (step, outcome)
        problems += [f"{step}: {each}" for each in node.settle([])]
    assert problems + new_pod_works(node) == []


def test_a_namespace_that_is_gone_before_del_and_one_nobody_deletes(node: KilledNode) -> None:
    """With a DEL the address is free at once; without one the agent collects it."""
    node.fresh(**SOON)
    node.start()
    deleted, forgotten, living = node.sandbox(), node.sandbox(), node.sandbox()
    node.add(deleted)
    node.add(forgotten)
    addresses = node.add(living)
    for sandbox in (deleted, forgotten):
        node.destroy(sandbox)
    node.delete(deleted)

    assert problems_of(node, [living], addresses) == []
    assert f"attachment_collected attachment={forgotten.attachment}" in node.log
    assert str(living.attachment) not in node.log.partition("attachment_collected")[2]
    node.delete(forgotten)
    node.delete(living)
    assert node.settle([]) == []


# -- a kernel that refuses ---------------------------------------------------------------------

REFUSALS = ("refuse", "refuse on", "halve", "lose")
"""EPERM once; EPERM from there on, undoing included; EPERM for all but the first of several
messages; ENOBUFS although it was done."""


UNDOING_REFUSED = (
    *("orphan link", "half-made link", "missing route", "link s32"),
    "allocated without a link",
)
"""What may stand until the runtime's DEL when the kernel refused the undoing as well: an address is
kept while nobody knows whether its link is gone. A link whose address is free again may not stand.
"""


def is_for_the_kernel(step: str) -> bool:
    """Whether the step is something a kernel can refuse."""
    return step.split()[2] in ("send", "get", "dump", "sysctl")


@pytest.mark.parametrize("moment", REFUSALS)
def test_a_kernel_that_refuses_at_any_step_of_add_leaves_nothing(
    node: KilledNode, moment: str
) -> None:
    """A failed ADD is followed by kubelet's DEL; one that succeeded must have wired the pod."""
    problems: list[str] = []
    steps = [step for step in steps_of(node, "ADD") if is_for_the_kernel(step)]
    assert len(steps) > 8
    failed = 0
    for step in steps:
        node.fresh()
        sandbox = node.sandbox()
        node.start("ADD", At(step, moment))
        outcome = node.call("ADD", sandbox)
        if outcome.status == 0:
            found = problems_of(node, [sandbox], addresses_of(outcome))
        else:
            failed += 1
            found = [f"code 100: {outcome.json}"] if outcome.code == Code.INTERNAL else []
            # Undone before any DEL; where undoing was refused too, book and kernel must agree.
            left = node.findings([]) if moment == "refuse on" else node.settle([])
            found += [each for each in left if not each.startswith(UNDOING_REFUSED)]
        node.delete(sandbox)
        found += node.settle([])
        problems += [f"{moment} {step}: {each}" for each in found]
    assert problems + new_pod_works(node) == []
    assert failed > 0


@pytest.mark.parametrize("moment", REFUSALS)
def test_a_kernel_that_refuses_at_any_step_of_del_leaves_nothing(
    node: KilledNode, moment: str
) -> None:
    """The runtime repeats a DEL that failed; the second one finds a willing kernel."""
    problems: list[str] = []
    for step in filter(is_for_the_kernel, steps_of(node, "DEL")):
        node.fresh()
        sandbox = node.sandbox()
        node.start("DEL", At(step, moment))
        node.add(sandbox)
        outcome = node.call("DEL", sandbox)
        found: list[str] = []
        if outcome.status != 0:
            found = [f"code 100: {outcome.json}"] if outcome.code == Code.INTERNAL else []
            node.delete(sandbox)
        found += node.settle([])
        problems += [f"{moment} {step}: {each}" for each in found]
    assert problems + new_pod_works(node) == []


# -- disks that are full -----------------------------------------------------------------------


@contextlib.contextmanager
def tiny_disk(directory: Path) -> Iterator[None]:
    """``directory`` on a file system of its own, of 128 KiB; what was in it is copied there."""
    held = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    run("mount", "-t", "tmpfs", "-o", "size=128k,mode=0700", "s32-tiny", str(directory))
    try:
        for name, data in held.items():
            (directory / name).write_bytes(data)
        yield
    finally:
        run("umount", "--lazy", str(directory))


def fill(directory: Path) -> Path:
    """Leaves no room; the file that takes it."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def test_a_full_state_disk_stops_no_verb(node: KilledNode) -> None:
    """The note of what rests cannot be written; that costs some cool-down after a kill, no more."""
    node.fresh()
    with tiny_disk(node.directory / "state"):
        fill(node.directory / "state")
        node.start()
        assert new_pod_works(node) == []
        node.stop()
        node.start()
        assert new_pod_works(node) == []
        node.stop()
    assert "cooldown_file_unwritable" in node.log


def test_a_full_run_disk_stops_no_agent_and_no_promise_is_made_there(node: KilledNode) -> None:
    """A DEL that cannot be recorded is refused, so the runtime repeats it; sockets need no room."""
    node.fresh()
    with tiny_disk(node.run_dir):
        fill(node.run_dir)
        node.start()
        sandbox = node.sandbox()
        addresses = node.add(sandbox)
        node.stop()
        refused = node.call("DEL", sandbox)
        assert refused.code in (Code.IO_FAILURE, Code.TRY_AGAIN_LATER)
        assert all(name.startswith(".") for name in os.listdir(node.run_dir / "deleted"))

        node.start()
        assert problems_of(node, [sandbox], addresses) == []
        node.delete(sandbox)
        assert node.settle([]) + new_pod_works(node) == []
        node.stop()


def test_a_full_store_gives_no_new_block_and_takes_nothing(node: KilledNode) -> None:
    """ADD without a block fails and leaves nothing; with one it needs no store; DEL never does."""
    node.fresh()
    disk = node.directory / "disk"
    disk.mkdir()
    (node.directory / "store.db").rename(disk / "store.db")
    with tiny_disk(disk):
        (node.directory / "store.db").symlink_to(disk / "store.db")
        node.settings["store"] = str(disk / "store.db")
        node.start()
        ballast = fill(disk)
        sandbox = node.sandbox()
        refused = node.call("ADD", sandbox)
        assert refused.code == Code.TRY_AGAIN_LATER, refused
        assert node.settle([]) == []
        node.delete(sandbox)

        ballast.unlink()
        addresses = node.add(sandbox)
        fill(disk)
        assert problems_of(node, [sandbox], addresses) + new_pod_works_beside(node, sandbox) == []
        node.delete(sandbox)
        assert node.settle([]) == []
        node.stop()


def new_pod_works_beside(node: KilledNode, bystander: Sandbox) -> list[str]:
    """What is wrong while a second pod lives beside the first."""
    sandbox = node.sandbox()
    found = problems_of(node, [bystander, sandbox], node.add(sandbox))
    node.delete(sandbox)
    return found + node.settle([bystander])


# -- many at once, and the wrong order ---------------------------------------------------------

PARALLEL = 50


def test_fifty_adds_at_once_give_fifty_pods(node: KilledNode) -> None:
    """Different addresses, all reachable; fifty DELs at once leave nothing."""
    node.fresh()
    node.start()
    sandboxes = [node.sandbox() for _ in range(PARALLEL)]
    with ThreadPoolExecutor(PARALLEL) as pool:
        outcomes = list(pool.map(node.add, sandboxes))
        given = [address for addresses in outcomes for address in addresses]
        assert len(set(given)) == 2 * PARALLEL
        assert problems_of(node, sandboxes, given) == []
        list(pool.map(node.delete, sandboxes))
    assert node.settle([]) == []


def test_an_agent_killed_amid_fifty_adds_leaves_nothing(node: KilledNode) -> None:
    """Wherever each of them was; those that were answered live on."""
    node.fresh()
    sandboxes = [node.sandbox() for _ in range(PARALLEL)]
    agent = node.start("ADD", At("send NEWROUTE,NEWROUTE #10", "stop"))
    with ThreadPoolExecutor(PARALLEL) as pool:
        calls = [pool.submit(node.call, "ADD", sandbox) for sandbox in sandboxes]
        wait_until(lambda: is_stopped(agent), what="the agent to rest in an ADD")
        os.kill(agent, signal.SIGKILL)
        outcomes = [call.result() for call in calls]
        node.wait_end(agent)
        node.start()
        added = [s for s, o in zip(sandboxes, outcomes, strict=True) if o.status == 0]
        failed = [s for s in sandboxes if s not in added]
        assert len(added) >= 5
        assert len(failed) > PARALLEL / 2
        list(pool.map(node.delete, failed))
        assert node.settle(added) == []
        list(pool.map(node.delete, added))
    assert node.settle([]) + new_pod_works(node) == []


def test_a_late_del_of_the_old_sandbox_does_not_touch_the_new_one(node: KilledNode) -> None:
    """A StatefulSet's pod is made again before its old sandbox got its DEL."""
    node.fresh(cooldown_s=0.0)
    node.start()
    old, new = node.sandbox(), node.sandbox()
    node.add(old)
    node.destroy(old)
    addresses = node.add(new)
    node.delete(old)
    assert problems_of(node, [new], addresses) == []

    node.stop()
    node.start()
    node.delete(old)
    assert problems_of(node, [new], addresses) == []
    node.delete(new)
    assert node.settle([]) == []


# -- things in the way -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plant",
    [
        "route add {v4}/32 dev {other} proto static",
        "route add {v4}/32 dev {other} proto static metric 4096",
        "route add {v4}/32 dev {other} proto 132 metric 1032",
        "-6 route add {v6}/128 dev {other} proto static metric 1",
        "-6 route add {v6}/128 dev {other} proto 132 metric 1032",
        "address add {v4}/32 dev lo",
        "-6 address add {v6}/128 dev lo nodad",
    ],
)
def test_an_address_that_leads_elsewhere_is_not_given_to_a_pod(
    node: KilledNode, plant: str
) -> None:
    """To a living pod's link or to the node itself: the pod gets the next one, and both work."""
    node.fresh(cooldown_s=0.0)
    node.start()
    other, earlier, sandbox = node.sandbox(), node.sandbox(), node.sandbox()
    node.add(other)
    v4, v6 = node.add(earlier)
    node.delete(earlier)
    node.stop()
    # Without cool-down and without memory, the next agent gives out the same again.
    node.start("ADD", At("Reconciler.ensure #1", "stop"))
    planted = plant.format(v4=v4, v6=v6, other=other.attachment.host_ifname)
    with interrupted(node, "ADD", sandbox, "ensure") as outcome:
        node.node.ip(planted)
    try:
        assert outcome[0].status == 0, (outcome, node.log)
        addresses = addresses_of(outcome[0])
        assert f"address_in_use attachment={sandbox.attachment} attempt=1" in node.log
        assert {v4 if "{v4}" in plant else v6}.isdisjoint(addresses)
        assert problems_of(node, [other, sandbox], addresses) == []
    finally:
        node.node.ip(planted.replace(" add ", " del ").removesuffix(" nodad"), check=False)
    node.delete(sandbox)
    node.delete(other)
    assert node.settle([]) == []


def test_a_foreign_link_of_the_host_interfaces_name_is_left_alone(node: KilledNode) -> None:
    """ADD fails with a sentence and leaves nothing; DEL succeeds and does not touch it."""
    node.fresh()
    node.start()
    sandbox = node.sandbox()
    name = sandbox.attachment.host_ifname
    node.node.ip(f"link add {name} type veth peer name foreign1")
    try:
        refused = node.call("ADD", sandbox)
        assert refused.code == Code.INTERFACE_EXISTS
        assert name in refused.json["msg"]
        assert node.findings([]) == []
        node.delete(sandbox)
        assert any(each["ifname"] == name for each in node.node.ip_json("link show"))
        assert new_pod_works(node) == []
    finally:
        node.node.ip(f"link del {name}", check=False)


def test_an_interface_of_that_name_in_the_pod_is_left_alone(node: KilledNode) -> None:
    """A plugin before us made an eth0: refused, and nothing of ours stays in either namespace."""
    node.fresh()
    node.start()
    sandbox = node.sandbox()
    inside = ("nsenter", f"--net={sandbox.netns}", "ip")
    run(*inside, "link", "add", "eth0", "type", "veth", "peer", "name", "foreign1")
    refused = node.call("ADD", sandbox)
    assert refused.code == Code.INTERFACE_EXISTS
    assert node.findings([]) == []
    assert set(node.new_interfaces(sandbox)) == {"eth0", "foreign1"}
    node.delete(sandbox)
    node.destroy(sandbox)
    assert node.settle([]) + new_pod_works(node) == []
