"""Hears the nodes: this one by its kernel and its agent's socket, others where they are.

A node's evidence is what ``slash32 evidence`` prints there. How that command is run on another node
is a *way*: a command line with ``{node}`` in it (nsenter in a lab, ssh between machines), or
"kubectl" (the agent's pod on that node). Without a way, and when it fails, what remains is the
node's own report in the store (NodeStatus); its kernel is then unknown, and said to be.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from routing.asking import Unreachable, ask
from routing.explain.codec import MalformedEvidence, from_json
from routing.explain.evidence import AgentEvidence, NodeEvidence, Question, SessionFacts

AGENT_DEADLINE_S = 2.0
WAY_DEADLINE_S = 20.0
AT_ONCE = 8
KUBECTL = "kubectl"
NAMESPACE = "slash32-system"
AGENT_LABEL = "app.kubernetes.io/name=slash32"


class NotHeard(Exception):
    """A node could not be asked; the sentence says why."""


class Way(Protocol):
    """How a ``slash32`` command is run on another node."""

    def run(self, node: str, arguments: Sequence[str]) -> Any:
        """The JSON that the command prints there. Raises NotHeard."""


class CommandWay:
    """By a command line; ``{node}`` in it becomes the node's name.

    Args:
        template: for instance ``ssh root@{node} slash32``.
    """

    def __init__(self, template: str, *, deadline_s: float = WAY_DEADLINE_S) -> None:
        self._words = shlex.split(template)
        self._deadline_s = deadline_s

    def run(self, node: str, arguments: Sequence[str]) -> Any:
        """The JSON that the command prints there. Raises NotHeard."""
        words = [word.replace("{node}", node) for word in self._words]
        return _json_of([*words, *arguments], self._deadline_s)


class KubectlWay:
    """In the agent's pod of that node, by kubectl and its own configuration."""

    def __init__(self, *, namespace: str = NAMESPACE, deadline_s: float = WAY_DEADLINE_S) -> None:
        self._kubectl = ["kubectl", "-n", namespace]
        self._deadline_s = deadline_s

    def run(self, node: str, arguments: Sequence[str]) -> Any:
        """The JSON that the command prints there. Raises NotHeard."""
        listing = _output_of(
            [
                *self._kubectl,
                *("get", "pods", "-l", AGENT_LABEL, "-o", "name"),
                *("--field-selector", f"spec.nodeName={node},status.phase=Running"),
            ],
            self._deadline_s,
        ).split()
        if not listing:
            raise NotHeard(f"no agent pod runs on {node}")
        command = [*self._kubectl, "exec", "-c", "agent", listing[0], "--", "slash32", *arguments]
        return _json_of(command, self._deadline_s)


def way_of(text: str | None) -> Way | None:
    """The way that ``--via`` names."""
    if not text:
        return None
    return KubectlWay() if text == KUBECTL else CommandWay(text)


def _output_of(command: Sequence[str], deadline_s: float) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=deadline_s, check=False
        )
    except OSError as error:
        raise NotHeard(f"cannot run {command[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise NotHeard(f"no answer within {deadline_s:g} s") from None
    # 1 is an answer: the command there has findings.
    if done.returncode not in (0, 1) or not done.stdout:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise NotHeard(f"exit status {done.returncode}: {words[-1]}")
    return done.stdout


def _json_of(command: Sequence[str], deadline_s: float) -> Any:
    try:
        return json.loads(_output_of(command, deadline_s))
    except ValueError:
        raise NotHeard("what came back is not JSON") from None


def local_evidence(question: Question, *, node: str | None, run_dir: Path) -> NodeEvidence:
    """What this machine says: its agent on the socket, and the kernel of this namespace."""
    from routing.explain.kernel import gather

    found = NodeEvidence(node or "")
    addresses = [a for a in (question.destination, question.source) if a is not None]
    try:
        answer = ask(
            run_dir / "agent.sock", "about", {"addresses": addresses}, timeout_s=AGENT_DEADLINE_S
        )
        agent = from_json(AgentEvidence, answer, "agent")
        found = replace(found, node=agent.node, agent=agent)
    except (Unreachable, MalformedEvidence) as error:
        found = replace(found, agent_error=str(error))
    peers = [session.peer for session in found.sessions or ()]
    try:
        return replace(found, kernel=gather(question, peers))
    except OSError as error:
        return replace(found, kernel_error=str(error))


class Witnesses:
    """Everybody who can be asked.

    Args:
        here: this machine's node name; None when it is no node.
        run_dir: of the agent here.
        way: to the other nodes.
        reports: each node's sessions as it reported them to the store, and when.
    """

    def __init__(
        self,
        *,
        here: str | None,
        run_dir: Path,
        way: Way | None,
        reports: Mapping[str, tuple[str, tuple[SessionFacts, ...]]],
    ) -> None:
        self.here = here
        self._run_dir = run_dir
        self._way = way
        self._reports = reports

    def hear(self, node: str, question: Question) -> NodeEvidence:
        """The best evidence there is of ``node``; what is missing is said in it."""
        if node == self.here:
            return local_evidence(question, node=node, run_dir=self._run_dir)
        if self._way is None:
            return self._reported(node, "no way to it was given (--via)")
        arguments = ["evidence", question.destination]
        if question.source is not None:
            arguments += ["--source", question.source]
        if question.probe:
            arguments.append("--probe")
        try:
            found = from_json(NodeEvidence, self._way.run(node, arguments))
        except (NotHeard, MalformedEvidence) as error:
            return self._reported(node, str(error))
        return replace(found, node=node)

    def find_pod(self, name: str, nodes: Sequence[str]) -> dict[str, list[str]]:
        """Node -> addresses of the pod called ``name`` there (namespace/name, or name).

        Raises:
            NotHeard: it was found nowhere, and some nodes could not be asked.
        """
        silent: dict[str, str] = {}

        def ask_one(node: str) -> list[str]:
            try:
                if node == self.here:
                    return find_local_pod(name)
                if self._way is None:
                    raise NotHeard("no way to it was given (--via)")
                answer = self._way.run(node, ["evidence", "--find-pod", name])
                return [str(address) for address in answer["addresses"]]
            except (NotHeard, OSError, KeyError, TypeError) as error:
                silent[node] = str(error)
                return []

        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = dict(zip(nodes, pool.map(ask_one, nodes), strict=True))
        found = {node: addresses for node, addresses in found.items() if addresses}
        if not found and silent:
            told = "; ".join(f"{node}: {why}" for node, why in silent.items())
            raise NotHeard(f"pod {name} was not found, and not every node answered: {told}")
        return found

    def _reported(self, node: str, why: str) -> NodeEvidence:
        found = NodeEvidence(node, agent_error=why, kernel_error=why)
        if node not in self._reports:
            return found
        at, sessions = self._reports[node]
        return replace(found, reported_sessions=sessions, reported_at=at)


def find_local_pod(name: str) -> list[str]:
    """The addresses of the pod of that name here, from the links' own aliases.

    Raises:
        OSError: the kernel refused to be read.
    """
    from cni.wiring import KernelWiring
    from cni.wiring_errors import WiringError

    wiring = KernelWiring()
    try:
        links = wiring.read()
    except WiringError as error:
        raise OSError(str(error)) from None
    finally:
        wiring.close()
    found: list[str] = []
    for link in links:
        pod, container = link.record.pod, link.record.attachment.container_id
        names = {str(pod), pod.name} if pod else set()
        if name in names or (len(name) >= 12 and container.startswith(name)):
            found += [str(address) for address in link.record.addresses]
    return found
