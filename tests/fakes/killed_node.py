"""A node whose agent dies: its namespace and files, its runtime's side, and its judge."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cni.attachment import Attachment
from cni.launcher.build import compiler_for
from lab import oracle
from routing.datastore.local import LocalStore
from routing.datastore.resources import parse_resources
from tests.fakes.launcher import execute, launcher
from tests.fakes.netns import Fabric, Namespace, wait_until
from tests.fakes.runtime import Outcome

NODE = "node1"
NETWORK = "slash32"
NODE_ADDRESSES = ("10.9.0.1", "fd09::1")
ANSWER_DEADLINE_S = 20.0
CONVERGENCE_DEADLINE_S = 4.0
AGENT = "tests.fakes.killable_agent"

RESOURCES = """
apiVersion: slash32.io/v1
kind: IPPool
metadata: {name: v4}
spec: {cidr: 10.244.0.0/24, blockSize: 26}
---
apiVersion: slash32.io/v1
kind: IPPool
metadata: {name: v6}
spec: {cidr: "fd44:10:244::/118", blockSize: 122}
---
apiVersion: slash32.io/v1
kind: Node
metadata: {name: node1}
spec: {}
"""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox of the runtime: its container and the namespace it lives in."""

    container_id: str
    netns: str

    @property
    def attachment(self) -> Attachment:
        """Its one interface."""
        return Attachment(NETWORK, self.container_id, "eth0")


@dataclass(frozen=True, slots=True)
class At:
    """Where something happens to an agent: the step, and one of killable_agent.MOMENTS."""

    step: str
    moment: str


@dataclass
class Forge:
    """The process that forks agents. Lines it prints arrive in a queue."""

    process: subprocess.Popen[bytes]
    answers: queue.Queue[dict[str, int]] = field(default_factory=queue.Queue)
    ready: set[int] = field(default_factory=set)
    ended: dict[int, int] = field(default_factory=dict)
    """pid to the number of the signal that ended it, 0 for none."""

    def order(self, document: dict[str, Any]) -> None:
        """Sends one order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(document).encode() + b"\n")
        self.process.stdin.flush()

    def read(self) -> None:
        """A thread's body: until the process ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(json.loads(line))
        self.answers.put({})

    def hear(self, deadline_s: float = ANSWER_DEADLINE_S) -> dict[str, int]:
        """The next answer, also noted."""
        try:
            answer = self.answers.get(timeout=deadline_s)
        except queue.Empty:
            raise TimeoutError(f"nothing from the forge within {deadline_s} s") from None
        if not answer:
            raise RuntimeError("the forge is gone")
        if "ready" in answer:
            self.ready.add(answer["ready"])
        if "ended" in answer:
            self.ended[answer["ended"]] = answer["signal"]
        return answer


class KilledNode:
    """One node in namespaces of its own. ``fresh`` before each story, ``judge`` after it."""

    def __init__(self, fabric: Fabric, root: Path, forge: Forge, node: Namespace) -> None:
        self._fabric = fabric
        self._root = root
        self._forge = forge
        self.node = node
        self._numbers = itertools.count(1)
        self._containers = itertools.count(1)
        self._spare: list[Namespace] = []
        self._lent: list[Namespace] = []
        self._template = root / "template.db"
        self._agents: list[int] = []
        self.directory = root
        self.command = launcher(_quickest_form()).command
        self.settings: dict[str, Any] = {}
        _make_store(self._template)

    # -- the agent -------------------------------------------------------------------------

    @property
    def run_dir(self) -> Path:
        """The agent's."""
        return self.directory / "run"

    def fresh(self, **settings: Any) -> None:
        """New files as after an installation; the namespaces stay. ``settings`` are the agent's."""
        self.stop()
        if oracle.examine(self.netns, alive=[]):
            self._wipe()
        self._spare += self._lent
        self._lent = []
        self.directory = self._root / str(next(self._numbers))
        self.run_dir.mkdir(parents=True)
        (self.directory / "state").mkdir()
        shutil.copy(self._template, self.directory / "store.db")
        self.settings = {"node": NODE, **settings}

    @property
    def netns(self) -> str:
        """The node's namespace."""
        return f"/run/netns/{self.node.name}"

    def start(self, scope: str = "", at: At | None = None, *, wait: bool = True) -> int:
        """Starts an agent; its pid, once it serves (or has ended, when it may)."""
        start = {
            **self.settings,
            "run_dir": str(self.run_dir),
            "state_dir": str(self.directory / "state"),
            "store": str(self.directory / "store.db"),
        }
        steps = self.directory / "steps"
        steps.unlink(missing_ok=True)
        order: dict[str, Any] = {
            "start": start,
            "log": str(self.directory / "agent.log"),
            "steps": str(steps),
        }
        if scope:
            order |= {"scope": scope, "at": [at.step, at.moment] if at else None}
        self._forge.order(order)
        while "pid" not in (answer := self._forge.hear()):
            pass
        pid = answer["pid"]
        self._agents.append(pid)
        while wait and pid not in self._forge.ready | set(self._forge.ended):
            self._forge.hear()
        return pid

    @property
    def last_agent(self) -> int:
        """The pid of the agent that was started last."""
        return self._agents[-1]

    def stop(self, number: int = signal.SIGKILL) -> None:
        """Ends every agent and waits for it."""
        for pid in self._agents:
            if pid not in self._forge.ended:
                self._forge.order({"end": pid, "signal": int(number)})
        for pid in self._agents:
            self.wait_end(pid)
        self._agents.clear()

    def wait_end(self, pid: int, deadline_s: float = ANSWER_DEADLINE_S) -> int:
        """The signal that ended an agent, 0 for none."""
        while pid not in self._forge.ended:
            self._forge.hear(deadline_s)
        return self._forge.ended[pid]

    @property
    def steps(self) -> list[str]:
        """What the last agent crossed."""
        path = self.directory / "steps"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def log(self) -> str:
        """What the agents of this story wrote."""
        path = self.directory / "agent.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # -- the runtime -----------------------------------------------------------------------

    def sandbox(self) -> Sandbox:
        """A new sandbox in a namespace that nothing of ours is in."""
        if not self._spare:
            self._spare.append(self._fabric.namespace("pod"))
        namespace = self._spare.pop()
        self._lent.append(namespace)
        container_id = f"{os.getpid():x}{next(self._containers):08x}"
        return Sandbox(container_id, f"/run/netns/{namespace.name}")

    def destroy(self, sandbox: Sandbox) -> None:
        """The sandbox's namespace goes, as when its processes died."""
        namespace = next(n for n in self._lent if sandbox.netns.endswith(f"/{n.name}"))
        self._lent.remove(namespace)
        namespace.close()

    def call(self, command: str, sandbox: Sandbox, **conf: Any) -> Outcome:
        """One execution of the launcher."""
        stdin = json.dumps(self.configuration | conf).encode()
        return execute(self.command, environment_of(command, sandbox), stdin)

    @property
    def configuration(self) -> dict[str, Any]:
        """What goes to the launcher's standard input."""
        return {
            "cniVersion": "1.1.0",
            "name": NETWORK,
            "type": "slash32",
            "socket": str(self.run_dir / "cni.sock"),
        }

    def add(self, sandbox: Sandbox) -> list[str]:
        """An ADD that must succeed; the pod's addresses."""
        outcome = self.call("ADD", sandbox)
        assert outcome.status == 0, (outcome, self.log)
        return addresses_of(outcome)

    def delete(self, sandbox: Sandbox) -> None:
        """A DEL that must succeed."""
        outcome = self.call("DEL", sandbox)
        assert (outcome.status, outcome.stdout) == (0, b""), (outcome, self.log)

    # -- the judge -------------------------------------------------------------------------

    def findings(self, alive: Sequence[Sandbox]) -> list[str]:
        """What the oracle says now."""
        living = [oracle.Living(each.attachment, each.netns) for each in alive]
        return oracle.examine(self.netns, alive=living, run_dir=self.run_dir)

    def settle(self, alive: Sequence[Sandbox]) -> list[str]:
        """What the oracle still says when the node had its time; [] as soon as it is silent."""
        try:
            wait_until(
                lambda: not self.findings(alive),
                deadline_s=CONVERGENCE_DEADLINE_S,
                what="a silent oracle",
            )
        except TimeoutError:
            return self.findings(alive)
        return []

    def reaches(self, addresses: Sequence[str]) -> bool:
        """One ping to each from the node."""
        return all(
            self.node.run(
                *("ping", "-n", "-c", "1", "-W", "2", "-I", _own(address), address), check=False
            ).count(" 0% packet loss")
            == 1
            for address in addresses
        )

    def new_interfaces(self, sandbox: Sandbox) -> list[str]:
        """What is in a sandbox's namespace beside its loopback."""
        namespace = next(n for n in self._lent if sandbox.netns.endswith(f"/{n.name}"))
        return [each["ifname"] for each in namespace.ip_json("link show") if each["ifname"] != "lo"]

    def _wipe(self) -> None:
        """After a story that failed: takes away what it left, so that the next is judged alone."""
        for link in self.node.ip_json("link show"):
            if link["ifname"] != "lo":
                self.node.ip(f"link del {link['ifname']}", check=False)
        for family in ("-4", "-6"):
            self.node.ip(f"{family} route flush proto 132", check=False)


def problems_of(node: KilledNode, alive: Sequence[Sandbox], addresses: Sequence[str]) -> list[str]:
    """What is wrong with a node at the end of a story: by the oracle, and by ping to the living."""
    found = node.settle(alive)
    if not node.reaches(addresses):
        found.append(f"no answer to a ping of {', '.join(addresses)}")
    return found


def addresses_of(outcome: Outcome) -> list[str]:
    """The addresses in the answer to an ADD."""
    return [each["address"].partition("/")[0] for each in outcome.json["ips"]]


def environment_of(command: str, sandbox: Sandbox) -> dict[str, str]:
    """What a runtime sets."""
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": sandbox.container_id,
        "CNI_NETNS": sandbox.netns,
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0",
    }


def _own(address: str) -> str:
    return NODE_ADDRESSES[ip_address(address).version == 6]


def _quickest_form() -> str:
    """The static launcher where it can be built, else the plugin in Python."""
    return "x86-64" if os.uname().machine == "x86_64" and compiler_for("x86-64") else "python"


def _make_store(path: Path) -> None:
    async def make() -> None:
        store = LocalStore(path)
        await store.apply(parse_resources(RESOURCES, source="the test"))
        await store.close()

    asyncio.run(make())


@contextlib.contextmanager
def killed_node(root: Path) -> Iterator[KilledNode]:
    """A node for the length of a block; its agents and namespaces do not outlive it."""
    with Fabric() as fabric:
        node = fabric.namespace("node")
        for address in NODE_ADDRESSES:
            node.ip(
                f"address add {address} dev lo nodad"
                if ":" in address
                else f"address add {address} dev lo"
            )
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{node.name}", "--", sys.executable, "-m", AGENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        forge = Forge(process)
        reader = threading.Thread(target=forge.read, name="forge")
        reader.start()
        try:
            yield KilledNode(fabric, root, forge, node)
        finally:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.wait(ANSWER_DEADLINE_S)
            reader.join(ANSWER_DEADLINE_S)
            process.stdout.close()
