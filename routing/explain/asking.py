"""From an operator's words to a case: who is meant, which nodes to hear, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

from routing.explain.case import Case, block_of
from routing.explain.evidence import ClusterEvidence, NodeEvidence, Question
from routing.explain.witnesses import NotHeard, Witnesses


class NotFound(Exception):
    """What was asked about is nowhere."""


class Unclear(ValueError):
    """What was asked has no meaning, or more than one."""


@dataclass(frozen=True, slots=True)
class _Target:
    """What was named: an address; ``node`` when it is a pod that was found there."""

    address: str
    node: str | None = None
    is_prefix: bool = False


def make_case(
    subject: str,
    *,
    start: str | None,
    cluster: ClusterEvidence,
    witnesses: Witnesses,
    probe: bool = False,
) -> Case:
    """Hears every witness the question needs.

    Args:
        subject: a pod (namespace/name or name), an address or a prefix.
        start: a node or a pod; None is this node or, elsewhere, any other node.

    Raises:
        NotFound: a pod or a node of that name does not exist.
        Unclear: the words mean nothing, or two pods are called so.
        NotHeard: a pod may be on a node that did not answer.
    """
    if start is not None and start not in cluster.nodes and "/" not in start and not _is_ip(start):
        _require_pod_like(start)
    target = _target(subject, cluster, witnesses, version=None)
    first = None
    if start is not None and start not in _nodes(cluster, witnesses):
        version = ip_address(target.address).version
        first = _target(start, cluster, witnesses, version=version)
        if first.is_prefix:
            raise Unclear(f"--from {start}: a node or a pod, not a prefix")
        if target.node is not None and ip_address(first.address).version != version:
            target = _target(subject, cluster, witnesses, version=ip_address(first.address).version)
    owner_name = target.node
    if owner_name is None:
        block = block_of(cluster, target.address)
        owner_name = block.node if block else None
    origin_name = _origin(start, first, owner_name, cluster, witnesses)
    question = Question(target.address, None if first is None else first.address)
    origin = witnesses.hear(origin_name, replace(question, probe=probe))
    source = question.source or _source_of(origin)
    owner: NodeEvidence | None = None
    if owner_name == origin_name:
        owner = origin
    elif owner_name is not None:
        owner = witnesses.hear(owner_name, replace(question, source=source))
    return Case(
        subject=subject,
        destination=target.address,
        has_pod=not target.is_prefix,
        source=source,
        cluster=_with_memory(cluster, origin, owner),
        origin=origin,
        owner=owner,
    )


def _require_pod_like(text: str) -> None:
    if not text or len(text) > 253 or any(each.isspace() for each in text):
        raise Unclear(f"{text[:80]!r} is no pod, address, prefix or node")


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _nodes(cluster: ClusterEvidence, witnesses: Witnesses) -> Sequence[str]:
    found = list(cluster.nodes)
    if witnesses.here is not None and witnesses.here not in found:
        found.insert(0, witnesses.here)
    return found


def _target(
    text: str, cluster: ClusterEvidence, witnesses: Witnesses, *, version: int | None
) -> _Target:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        network = None
    if network is not None:
        if "/" in text and network.prefixlen < network.max_prefixlen:
            return _Target(str(network.network_address), is_prefix=True)
        return _Target(str(network.network_address))
    _require_pod_like(text)
    found = witnesses.find_pod(text, _nodes(cluster, witnesses))
    if not found:
        raise NotFound(f"no pod {text!r} on any node")
    if len(found) > 1:
        raise Unclear(f"pod {text!r} is on {', '.join(sorted(found))}; give its namespace/name")
    ((node, addresses),) = found.items()
    fitting = [a for a in addresses if version is None or ip_address(a).version == version]
    return _Target((fitting or addresses)[0], node)


def _origin(
    start: str | None,
    first: _Target | None,
    owner: str | None,
    cluster: ClusterEvidence,
    witnesses: Witnesses,
) -> str:
    if first is not None:
        if first.node is not None:
            return first.node
        block = block_of(cluster, first.address)
        if block is None:
            raise NotFound(f"--from {start}: no node owns a block with {first.address}")
        return block.node
    if start is not None:
        return start
    if witnesses.here is not None:
        return witnesses.here
    others = [node for node in cluster.nodes if node != owner]
    if not others:
        raise NotFound("there is no node to start from; give one with --from")
    return others[0]


def _source_of(origin: NodeEvidence) -> str | None:
    """The address the first node would send from."""
    lookups = origin.kernel.lookups if origin.kernel else ()
    return lookups[0].preferred_source if lookups else None


def _with_memory(
    cluster: ClusterEvidence, origin: NodeEvidence, owner: NodeEvidence | None
) -> ClusterEvidence:
    """While the store is away, the blocks that an agent remembers."""
    if not cluster.error:
        return cluster
    blocks = [
        block
        for node in (owner, origin)
        if node is not None and node.agent is not None
        for block in node.agent.blocks
    ]
    return replace(cluster, blocks=tuple(dict.fromkeys(blocks)))


__all__ = ["NotFound", "NotHeard", "Unclear", "make_case"]
