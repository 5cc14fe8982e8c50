"""SIGKILL of the launcher before each of its system calls that anybody else could notice.

strace lists the calls of an undisturbed run and then kills at each in turn, so nothing in the
launcher knows of it: neither in the static program nor in its twin in Python. What was done after
the last such call and before the next is nothing, so "before each" is "after each" too.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.launcher.build import compiler_for
from tests.fakes.killed_node import KilledNode, Sandbox, environment_of, killed_node, problems_of
from tests.fakes.launcher import launcher

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="kills are aimed with strace"),
]

FORMS = ("python", "x86-64")
NOTICEABLE = (
    *("connect", "sendmsg", "sendto", "shutdown", "recvfrom"),
    *("write", "fsync", "rename", "renameat", "unlink", "unlinkat", "exit_group"),
)
"""Reading a reply does nothing; the static launcher's read(2) is followed by write."""
CALLS_AT_LEAST = {"ADD": 4, "DEL": 4, "recorded DEL": 6}
CALL = re.compile(r"^\d+ +([a-z0-9_]+)\(", re.MULTILINE)
KILLED = 128 + 9
UNFINISHED_AGE_S = 600

Call = tuple[str, int]
"""A system call's name, and which one of that name, from 1."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KilledNode]:
    """One node for the module; every story has files of its own."""
    with killed_node(tmp_path_factory.mktemp("killed")) as made:
        yield made


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, node: KilledNode) -> Iterator[tuple[str, ...]]:
    """The command line of one form; no agent outlives its test."""
    if request.param != "python" and (os.uname().machine != "x86_64" or not compiler_for("x86-64")):
        pytest.skip("the static launcher cannot be built and run here")
    yield launcher(request.param).command
    node.stop()


def traced(
    node: KilledNode,
    form: tuple[str, ...],
    verb: str,
    sandbox: Sandbox,
    *,
    kill: Call | None = None,
) -> tuple[int, list[Call]]:
    """Runs the launcher, killed at one call; its exit status and the calls it made."""
    log = node.directory / "trace"
    options = ["-f", "-qq", "-o", str(log), "-e", f"trace={','.join(NOTICEABLE)}"]
    if kill is not None:
        options += ["-e", f"inject={kill[0]}:signal=KILL:when={kill[1]}"]
    done = subprocess.run(
        ["strace", *options, *form],
        env=environment_of(verb, sandbox) | {"PATH": os.environ["PATH"]},
        input=json.dumps(node.configuration).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    counts: dict[str, int] = {}
    calls: list[Call] = []
    for name in CALL.findall(log.read_text()):
        counts[name] = counts.get(name, 0) + 1
        calls.append((name, counts[name]))
    return done.returncode, calls


def calls_of(node: KilledNode, form: tuple[str, ...], what: str) -> list[Call]:
    """The calls of an undisturbed run."""
    node.fresh()
    sandbox = node.sandbox()
    node.start()
    if what != "ADD":
        node.add(sandbox)
    if what == "recorded DEL":
        node.stop()
    status, calls = traced(node, form, what.split()[-1], sandbox)
    assert status == 0
    if what == "recorded DEL":
        node.start()
    node.delete(sandbox)
    assert node.settle([]) == []
    assert len(calls) >= CALLS_AT_LEAST[what], calls
    return calls


def new_pod_works(node: KilledNode) -> list[str]:
    """What is wrong after the runtime has made a sandbox anew, and after its end."""
    sandbox = node.sandbox()
    found = problems_of(node, [sandbox], node.add(sandbox))
    node.delete(sandbox)
    return found + node.settle([])


def test_a_launcher_killed_during_add_leaves_nothing(
    node: KilledNode, form: tuple[str, ...]
) -> None:
    """The runtime sees a failure, asks for the DEL and makes a new sandbox."""
    problems: list[str] = []
    calls = calls_of(node, form, "ADD")
    node.fresh()
    node.start()
    for call in calls:
        sandbox = node.sandbox()
        status, _ = traced(node, form, "ADD", sandbox, kill=call)
        assert status in (-9, KILLED), call
        node.delete(sandbox)
        problems += [f"{call}: {each}" for each in node.settle([]) + new_pod_works(node)]
    assert problems == []


def test_a_launcher_killed_during_del_leaves_nothing(
    node: KilledNode, form: tuple[str, ...]
) -> None:
    """The runtime asks once more."""
    problems: list[str] = []
    calls = calls_of(node, form, "DEL")
    node.fresh()
    node.start()
    for call in calls:
        sandbox = node.sandbox()
        node.add(sandbox)
        status, _ = traced(node, form, "DEL", sandbox, kill=call)
        assert status in (-9, KILLED), call
        node.delete(sandbox)
        problems += [f"{call}: {each}" for each in node.settle([])]
    assert problems + new_pod_works(node) == []


@pytest.mark.parametrize("again", [True, False], ids=["asked-again", "not-asked-again"])
def test_a_launcher_killed_while_it_records_leaves_nothing(
    node: KilledNode, form: tuple[str, ...], again: bool
) -> None:
    """The agent is away. Whether the runtime asks again or its sandbox just ends: when the agent
    is back and as much time has passed as a launcher may take, no file and no address is left."""
    problems: list[str] = []
    for call in calls_of(node, form, "recorded DEL"):
        node.fresh(resync_s=0.1, collect_grace_s=0.2)
        sandbox = node.sandbox()
        node.start()
        node.add(sandbox)
        node.stop()
        status, _ = traced(node, form, "DEL", sandbox, kill=call)
        assert status in (-9, KILLED), call
        if again:
            node.delete(sandbox)
        else:
            node.destroy(sandbox)
        age(node.run_dir / "deleted")
        node.start()
        problems += [f"{call}: {each}" for each in node.settle([]) + new_pod_works(node)]
    assert problems == []


def age(directory: Path) -> None:
    """Makes unfinished files older than any launcher lives."""
    for path in directory.glob(".*"):
        status = path.stat()
        os.utime(path, (status.st_atime, status.st_mtime - UNFINISHED_AGE_S))
