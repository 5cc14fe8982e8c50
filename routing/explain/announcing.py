"""The control plane of one prefix: owner, block, sessions, announced, received, best. Pure.

The order is that of cause and effect, so that the first thing wrong is the one to mend: a session
that is down is why nothing was announced, and that is why nothing was received.
"""

from __future__ import annotations

from routing.explain.case import Case, contains, pod_at, routes_to
from routing.explain.evidence import (
    AgentEvidence,
    BlockFacts,
    NodeEvidence,
    PathFacts,
    SessionFacts,
)
from routing.explain.reasons import cause_of
from routing.explain.steps import Chain

STORE = "store"


def add_ownership(chain: Chain, case: Case) -> None:
    """Who owns the address: pool, block, pod."""
    title = "the address belongs to a block of a node"
    if case.cluster.error and not case.cluster.blocks:
        chain.unknown("ipam", STORE, title, f"the store cannot be read: {case.cluster.error}")
        return
    where = "an agent's memory" if case.cluster.error else STORE
    pool, block = case.pool, case.block
    if pool is None and block is None:
        chain.ok("ipam", where, title, f"{case.destination} is in no IPPool: it is not a pod's")
        return
    # An agent remembers blocks, not the pools they came from.
    no_pool = "a pool that only the store knows" if case.cluster.error else "no IPPool any more"
    pool_text = f"IPPool {pool.name} {pool.cidr}" if pool else no_pool
    if block is None:
        chain.wrong(
            "ipam", where, title,
            f"{case.destination} is in {pool_text}, and no node has claimed a block with it",
            fault="no-block",
            remedy="no pod can have this address; see `slash32 blocks`, and `slash32 pods` for "
            "the address the pod really has",
        )  # fmt: skip
        return
    disabled = ", which is disabled (no new addresses)" if pool and pool.disabled else ""
    chain.ok(
        "ipam", where, title,
        f"{case.destination} is in block {block.cidr} of {pool_text}{disabled}",
    )  # fmt: skip
    _add_block(chain, case, block, where)
    if case.has_pod:
        _add_holder(chain, case, block)


def _add_block(chain: Chain, case: Case, block: BlockFacts, where: str) -> None:
    title = "the block is confirmed by its owner"
    if block.state != "confirmed":
        chain.wrong(
            "block", where, title,
            f"block {block.cidr} of {block.node} is {block.state}",
            fault="block-not-confirmed",
            remedy=f"only a confirmed block is routed; see that the agent on {block.node} runs",
        )  # fmt: skip
    elif case.cluster.nodes and block.node not in case.cluster.nodes:
        chain.wrong(
            "block", where, title,
            f"block {block.cidr} belongs to {block.node}, and there is no such Node",
            fault="owner-gone",
            remedy=f"create Node {block.node} again, or delete the block if the node is gone",
        )  # fmt: skip
    else:
        chain.ok("block", where, title, f"{block.cidr} is {block.node}'s, confirmed")


def _add_holder(chain: Chain, case: Case, block: BlockFacts) -> None:
    title = "a pod on the owner has the address"
    owner = case.owner
    if owner is None or owner.kernel is None:
        why = owner.kernel_error if owner else "nobody asked it"
        chain.unknown(
            "holder", block.node, title, f"{block.node}'s kernel could not be seen: {why}"
        )
        return
    pod = pod_at(owner, case.destination)
    if pod is None:
        chain.wrong(
            "holder", block.node, title,
            f"no pod link on {block.node} has {case.destination}",
            fault="no-such-pod",
            remedy=f"see `slash32 pods --node {block.node}` for who is there; the pod may have "
            "been made anew with another address",
        )  # fmt: skip
        return
    chain.ok("holder", block.node, title, f"pod {pod.name} {pod.ifname} by link {pod.host_ifname}")


def add_control_plane(chain: Chain, case: Case) -> None:
    """From the owner's announcement to the best path on the packet's first node."""
    prefix = _prefix(case)
    if prefix is None:
        return
    if case.owner is not None and not case.is_local:
        _add_sessions(chain, case.owner, "announcing-sessions")
    if case.owner is not None:
        _add_announced(chain, case, case.owner, prefix)
    if case.is_local:
        return
    if _add_sessions(chain, case.origin, "receiving-sessions"):
        _add_received(chain, case, prefix)


def _prefix(case: Case) -> str | None:
    """What is announced for the destination: its block, or what the first node has learned."""
    if case.block is not None:
        return case.block.cidr
    agent = case.origin.agent
    paths = [p for p in agent.paths if contains(p.prefix, case.destination)] if agent else []
    if not paths:
        return None
    return max(paths, key=lambda p: int(p.prefix.rpartition("/")[2])).prefix


def _add_sessions(chain: Chain, node: NodeEvidence, id_: str) -> bool:
    """Returns whether a session is up, or may be."""
    title = "a BGP session is up"
    if node.agent is not None and not node.agent.speaker_connected:
        chain.wrong(
            id_, node.node, title, "ExaBGP is not connected to the agent",
            fault="speaker-down",
            remedy="see that `slash32 speaker` runs there, and its log",
        )  # fmt: skip
        return False
    sessions = node.sessions
    if sessions is None:
        chain.unknown(id_, node.node, title, f"the agent did not answer: {node.agent_error}")
        return True
    source = "" if node.agent else f" (as the node reported at {node.reported_at})"
    if not sessions:
        problems = "; ".join(node.agent.problems) if node.agent else ""
        chain.wrong(
            id_, node.node, title,
            "no BGP peer is configured for this node" + (f": {problems}" if problems else ""),
            fault="no-peers",
            remedy="see `slash32 get bgppeers`: a peer must select this node",
        )  # fmt: skip
        return False
    up = [each for each in sessions if each.is_established]
    down = [each for each in sessions if not each.is_established]
    if not up:
        causes = [(each, cause_of(each, node.kernel)) for each in down]
        first = causes[0][1]
        told = "; ".join(f"{each.name} {each.peer}: {cause.sentence}" for each, cause in causes)
        chain.wrong(
            id_, node.node, title, f"no session is up: {told}{source}",
            fault=first.fault, remedy=first.remedy,
        )  # fmt: skip
        return False
    words = ", ".join(f"{each.name} {each.peer} Established" for each in up)
    if down:
        lost = ", ".join(f"{d.peer} ({cause_of(d, node.kernel).sentence})" for d in down)
        words += f"; of {len(sessions)} sessions {len(down)} are down: {lost}"
    chain.ok(id_, node.node, title, words + source)
    return True


def _add_announced(chain: Chain, case: Case, owner: NodeEvidence, prefix: str) -> None:
    title = "the owner announces the block"
    agent = owner.agent
    if agent is None:
        chain.unknown(
            "announced", owner.node, title, f"the agent did not answer: {owner.agent_error}"
        )
        return
    told = [each.peer for each in agent.advertised if each.prefix == prefix]
    wider = [each for each in agent.advertised if each.prefix != prefix]
    up = {each.peer for each in agent.sessions if each.is_established}
    if up & set(told):
        chain.ok("announced", owner.node, title, f"{prefix} to {', '.join(told)}")
    elif wider:
        words = ", ".join(f"{each.prefix} to {each.peer}" for each in wider)
        chain.ok("announced", owner.node, title, f"{prefix} as part of {words}")
    elif up:
        why = _why_not_announced(case, agent, owner, prefix)
        chain.wrong(
            "announced", owner.node, title,
            f"{owner.node} announces {prefix} to nobody" + (f": {why}" if why else ""),
            fault="block-not-announced",
            remedy=f"see `slash32 routes {prefix} --node {owner.node}`: a block is announced once "
            "its own route is in the kernel and export policy lets it",
        )  # fmt: skip
    else:
        chain.unknown("announced", owner.node, title, f"no session of {owner.node} is up")


def _why_not_announced(case: Case, agent: AgentEvidence, owner: NodeEvidence, prefix: str) -> str:
    if case.pool is not None and case.pool.disable_bgp_export:
        return f"IPPool {case.pool.name} has disableBGPExport"
    waits = [each for each in (*agent.waits, *agent.problems) if prefix in each]
    if waits:
        return "; ".join(waits)
    if agent.store_error is not None:
        return f"the agent cannot read the store ({agent.store_error})"
    foreign = [r for r in routes_to(owner, prefix) if not r.is_ours]
    if foreign:
        return f"a foreign route holds its place: {foreign[0]}"
    state = next((w for w in agent.wanted if w.prefix == prefix and w.state != "ok"), None)
    return f"its own route is {state.state}: {state.detail}" if state else ""


def _add_received(chain: Chain, case: Case, prefix: str) -> None:
    node, agent = case.origin, case.origin.agent
    title = "the node has received it"
    if agent is None:
        chain.unknown("received", node.node, title, f"the agent did not answer: {node.agent_error}")
        return
    paths = [path for path in agent.paths if contains(path.prefix, case.destination)]
    exact = [path for path in paths if path.prefix == prefix]
    if not exact:
        exact = [p for p in paths if p.verdict == "best" and _is_narrower_than_default(p)]
    if not exact:
        _add_not_received(chain, case, agent, prefix)
        return
    senders = ", ".join(path.peer for path in exact)
    chain.ok("received", node.node, title, f"{exact[0].prefix} from {senders}")
    _add_accepted(chain, node, exact)


def _is_narrower_than_default(path: PathFacts) -> bool:
    return not path.prefix.endswith("/0")


def _add_not_received(chain: Chain, case: Case, agent: AgentEvidence, prefix: str) -> None:
    title = "the node has received it"
    up = [each for each in agent.sessions if each.is_established]
    empty = [each for each in up if each.received == 0]
    routers = ", ".join(f"{each.name} {each.peer}" for each in up)
    if up and len(empty) == len(up):
        chain.wrong(
            "received", case.origin.node, title,
            f"{routers} sends {case.origin.node} no route at all"
            + (", and says that this is all it has (End-of-RIB)" if up[0].is_complete else ""),
            fault="peer-sends-nothing",
            remedy="the router has no export policy for this node: FRR without a `route-map ... "
            "out` (and `in`) drops everything on eBGP sessions (RFC 8212; `(Policy)` in `show bgp "
            "summary`)",
        )  # fmt: skip
        return
    owner = case.owner.node if case.owner else "the owner"
    told = _owner_told(case, prefix)
    nothing_heard = _owner_hears_nothing(case)
    if nothing_heard is not None:
        chain.wrong(
            "received", f"router of {owner}", title,
            f"{case.origin.node} has not received {prefix}; {nothing_heard}",
            fault="peer-sends-nothing",
            remedy="the router has no policy for that node: FRR without `route-map ... in` and "
            "`out` drops everything on eBGP sessions (RFC 8212; `(Policy)` in `show bgp summary`)",
        )  # fmt: skip
        return
    chain.wrong(
        "received", f"router {routers}", title,
        f"{told}; {case.origin.node} receives {sum(e.received for e in up)} other prefixes from "
        f"{routers}, but not {prefix}",
        fault="filtered-at-router",
        remedy=f"look at the router's import policy for {owner} and its export policy for "
        f"{case.origin.node}: one of them drops {prefix}",
    )  # fmt: skip


def _owner_told(case: Case, prefix: str) -> str:
    agent = case.owner.agent if case.owner else None
    if agent is None:
        return f"whether {prefix} was announced is not known"
    told = [each.peer for each in agent.advertised if contains(each.prefix, case.destination)]
    return f"{agent.node} announces {prefix} to {', '.join(told)}"


def _owner_hears_nothing(case: Case) -> str | None:
    """A router that filters an owner both ways: the sign of no policy at all (RFC 8212)."""
    agent = case.owner.agent if case.owner else None
    if agent is None:
        return None
    up: list[SessionFacts] = [each for each in agent.sessions if each.is_established]
    if up and all(each.received == 0 for each in up):
        return f"its router sends {agent.node} no route at all either, and takes none from it"
    return None


def _add_accepted(chain: Chain, node: NodeEvidence, paths: list[PathFacts]) -> None:
    title = "import policy accepts it"
    rejected = [path for path in paths if path.verdict == "rejected"]
    usable = [path for path in paths if path.verdict != "rejected"]
    if not usable:
        first = rejected[0]
        told = "; ".join(f"from {path.peer}: {path.reason} ({path.detail})" for path in rejected)
        chain.wrong(
            "accepted", node.node, title, f"{first.prefix} is rejected {told}",
            fault=first.reason, remedy=_remedy_of_rejection(first),
        )  # fmt: skip
        return
    words = f"{len(usable)} of {len(paths)} paths"
    if rejected:
        words += "; rejected: " + ", ".join(f"from {p.peer} ({p.reason})" for p in rejected)
    chain.ok("accepted", node.node, title, words)
    best = [path for path in usable if path.verdict == "best"]
    others = [path for path in usable if path.verdict != "best"]
    title = "a path of it is best"
    if not best:
        told = ", ".join(f"{path.peer}: {path.detail or path.reason}" for path in others)
        chain.wrong(
            "best", node.node, title, f"none is used: {told}",
            fault="not-best", remedy=f"see `slash32 routes {paths[0].prefix} --learned`",
        )  # fmt: skip
        return
    words = ", ".join(f"from {path.peer} next hop {path.next_hop}" for path in best)
    if others:
        words += "; not used: " + ", ".join(f"from {p.peer} ({p.detail})" for p in others)
    chain.ok("best", node.node, title, words)


_REMEDIES = {
    "next-hop-off-link": "the router must announce a next hop that is on a link with this node "
    "(next-hop-self), and that link must be up",
    "next-hop-self": "the router sends our own next hop back; use next-hop-self there",
    "not-in-pool": "add the prefix to importAllow of BGPConfiguration default, or an IPPool",
    "default-route": "add the default route to importAllow of BGPConfiguration default",
    "too-long": "the router sends something longer than a block; announce blocks only",
    "own-block": "another machine announces addresses of our own block: find out which",
    "as-loop": "our ASN is in the path: give each rack its own ASN, or allow it with "
    "numAllowedLocalASNumbers",
    "max-prefix": "raise maxPrefixes of the BGPPeer, or announce fewer on the router",
}


def _remedy_of_rejection(path: PathFacts) -> str:
    return _REMEDIES.get(
        path.reason, f"see docs/policy.md for {path.reason}, and the router's announcement"
    )
