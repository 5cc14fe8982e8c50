"""SIGKILL of the agent before and after every step of ADD, of DEL, and of a recorded DEL's replay.

Enumerated, not sampled: a first run without a kill lists the steps, then each gets a run of its
own. After each the runtime does what kubelet does, and the oracle must find nothing.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address

import pytest

from tests.fakes.killed_node import At, KilledNode, Sandbox, addresses_of, killed_node, problems_of
from tests.fakes.netns import run
from tests.fakes.runtime import Outcome

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

TRY_AGAIN_LATER = 11
STEPS_AT_LEAST = {"ADD": 20, "DEL": 7, "replay": 7}
"""Fewer means that the steps are not seen any more, and the tests below would test nothing."""
CLAIM = ("create_block", "update_block", "NEWLINK", "NEWROUTE", "write the reply")
"""What an ADD on a node without a block must consist of, among others."""

Story = Callable[[KilledNode, Sandbox, Outcome], list[str]]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KilledNode]:
    """One node for the module; every story has files of its own."""
    with killed_node(tmp_path_factory.mktemp("killed")) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_agent_outlives_its_test(node: KilledNode) -> Iterator[None]:
    yield
    node.stop()


def steps_of(node: KilledNode, scope: str) -> list[str]:
    """What a verb consists of when nobody disturbs it."""
    node.fresh()
    sandbox = node.sandbox()
    if scope == "replay":
        record_a_deletion(node, sandbox)
        node.start(scope)
    else:
        node.start(scope)
        node.add(sandbox)
        if scope == "DEL":
            node.delete(sandbox)
        # The remover's last steps may come after the answer.
        node.stop(signal.SIGTERM)
    steps = node.steps
    assert len(steps) >= STEPS_AT_LEAST[scope], steps
    return steps


def record_a_deletion(node: KilledNode, sandbox: Sandbox) -> list[str]:
    """A pod that was deleted while its agent was away; the addresses it had."""
    node.start()
    addresses = node.add(sandbox)
    node.stop()
    node.delete(sandbox)
    assert len(list((node.run_dir / "deleted").iterdir())) == 1
    return addresses


def new_pod_works(
    node: KilledNode, *, besides: tuple[Sandbox, ...] = (), resting: Sequence[str] = ()
) -> list[str]:
    """What is wrong after kubelet has made a sandbox anew, and after its end.

    ``resting``: addresses that a pod had a moment ago and that nobody may get yet.
    """
    sandbox = node.sandbox()
    addresses = node.add(sandbox)
    found = [f"{each} was given out at once" for each in addresses if each in resting]
    found += problems_of(node, [*besides, sandbox], addresses)
    node.delete(sandbox)
    return found + node.settle(besides)


def deleted_while_the_agent_is_away(
    node: KilledNode, sandbox: Sandbox, _outcome: Outcome
) -> list[str]:
    """DEL is recorded; the next agent does it; kubelet makes a new sandbox."""
    node.delete(sandbox)
    node.start()
    return new_pod_works(node)


def deleted_when_the_agent_is_back(
    node: KilledNode, sandbox: Sandbox, _outcome: Outcome
) -> list[str]:
    """A new agent, then DEL, then a new sandbox."""
    node.start()
    node.delete(sandbox)
    return new_pod_works(node)


def added_again(node: KilledNode, sandbox: Sandbox, outcome: Outcome) -> list[str]:
    """A runtime that repeats the ADD of the same sandbox gets one that works."""
    node.start()
    # Where the answer came, the pod must work as it is, before a second ADD could mend it.
    has_answer = outcome.status == 0
    found = problems_of(node, [sandbox], addresses_of(outcome)) if has_answer else []
    found += problems_of(node, [sandbox], node.add(sandbox))
    node.delete(sandbox)
    return found + new_pod_works(node)


ADD_STORIES = (
    ("before", deleted_while_the_agent_is_away),
    ("after", deleted_when_the_agent_is_back),
    ("after", added_again),
)
"""What is there after one step is what is there before the next, so every state is met by each."""


def test_the_oracle_sees_what_a_kill_leaves_when_nobody_deletes(node: KilledNode) -> None:
    """The control: without the runtime's DEL, the stories below would end in findings."""
    step = next(each for each in steps_of(node, "ADD") if "send SETLINK" in each)
    node.fresh()
    sandbox = node.sandbox()
    agent = node.start("ADD", At(step, "after"))
    node.call("ADD", sandbox)
    assert node.wait_end(agent) == signal.SIGKILL
    node.start()

    assert any(text.startswith("orphan link") for text in node.findings([]))
    node.delete(sandbox)
    assert node.settle([]) == []


def test_a_link_left_half_made_goes_although_nobody_deletes(node: KilledNode) -> None:
    """Without an alias no attachment is known, so no DEL, GC or collection could find it."""
    step = next(each for each in steps_of(node, "ADD") if each.endswith("send NEWLINK"))
    node.fresh()
    sandbox = node.sandbox()
    agent = node.start("ADD", At(step, "after"))
    node.call("ADD", sandbox)
    assert node.wait_end(agent) == signal.SIGKILL
    assert any(text.startswith("half-made link") for text in node.findings([]))

    node.start()
    assert node.settle([]) == []
    assert node.new_interfaces(sandbox) == []


@pytest.mark.parametrize(
    ("moment", "story"), ADD_STORIES, ids=[f"{m}-{s.__name__}" for m, s in ADD_STORIES]
)
def test_an_agent_killed_at_any_step_of_add_leaves_nothing(
    node: KilledNode, moment: str, story: Story
) -> None:
    """On a node without a block, so that claiming one is among the steps."""
    steps = steps_of(node, "ADD")
    assert all(any(part in step for step in steps) for part in CLAIM), steps
    problems: list[str] = []
    for step in steps:
        node.fresh()
        sandbox = node.sandbox()
        agent = node.start("ADD", At(step, moment))
        outcome = node.call("ADD", sandbox)
        assert node.wait_end(agent) == signal.SIGKILL, step
        assert node.steps == steps[: len(node.steps)]
        assert outcome.status == 0 or outcome.code == TRY_AGAIN_LATER
        problems += [f"{moment} {step}: {each}" for each in story(node, sandbox, outcome)]
    assert problems == []


DEL_STORIES = (
    ("before", deleted_while_the_agent_is_away),
    ("after", deleted_when_the_agent_is_back),
)


@pytest.mark.parametrize(
    ("moment", "story"), DEL_STORIES, ids=[f"{m}-{s.__name__}" for m, s in DEL_STORIES]
)
def test_an_agent_killed_at_any_step_of_del_leaves_nothing(
    node: KilledNode, moment: str, story: Story
) -> None:
    """Beside a living pod, which must not suffer."""
    steps = steps_of(node, "DEL")
    problems: list[str] = []
    for step in steps:
        node.fresh()
        bystander, sandbox = node.sandbox(), node.sandbox()
        agent = node.start("DEL", At(step, moment))
        addresses = node.add(bystander)
        resting = node.add(sandbox)
        outcome = node.call("DEL", sandbox)
        assert node.wait_end(agent) == signal.SIGKILL, step
        assert outcome.status == 0 or outcome.code == TRY_AGAIN_LATER
        if story is deleted_while_the_agent_is_away:
            node.delete(sandbox)
        node.start()
        if story is deleted_when_the_agent_is_back and outcome.status != 0:
            node.delete(sandbox)
        found = problems_of(node, [bystander], addresses)
        found += new_pod_works(node, besides=(bystander,), resting=resting)
        problems += [f"{moment} {step}: {each}" for each in found]
        node.delete(bystander)
    assert problems == []


TRACKING = """
table inet tracking {
  chain output {
    type filter hook output priority 0; policy accept;
    ct state invalid drop
  }
}
"""


def naming(node: KilledNode, address: str) -> int:
    """How many tracked connections of the node name an address."""
    written = f"={ip_address(address).exploded} "
    return node.node.run("cat", "/proc/net/nf_conntrack").count(written)


def test_an_agent_killed_before_it_forgot_connections_is_followed_by_one_that_does(
    node: KilledNode,
) -> None:
    """Otherwise the next holder of the address would get the old pod's packets."""
    node.fresh()
    run("nsenter", f"--net={node.netns}", "--", "nft", "-f", "-", stdin=TRACKING)
    try:
        for number in (1, 2):
            sandbox = node.sandbox()
            agent = node.start("DEL", At(f"KernelConntrack.flush #{number}", "before"))
            addresses = node.add(sandbox)
            assert node.reaches(addresses)
            assert all(naming(node, address) for address in addresses)
            node.call("DEL", sandbox)
            assert node.wait_end(agent) == signal.SIGKILL
            assert any(naming(node, address) for address in addresses)
            node.start()
            assert [naming(node, address) for address in addresses] == [0, 0]
            node.stop()
    finally:
        node.node.run("nft", "delete", "table", "inet", "tracking")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_agent_killed_at_any_step_of_a_replay_leaves_nothing(
    node: KilledNode, moment: str
) -> None:
    """The runtime was told yes: nobody will ask a second time."""
    problems: list[str] = []
    for step in steps_of(node, "replay"):
        node.fresh()
        resting = record_a_deletion(node, node.sandbox())
        agent = node.start("replay", At(step, moment))
        assert node.wait_end(agent) == signal.SIGKILL, step
        node.start()
        found = node.settle([]) + new_pod_works(node, resting=resting)
        problems += [f"{moment} {step}: {each}" for each in found]
    assert problems == []
