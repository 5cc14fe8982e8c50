"""ipam check: what the address books, the kernels and the store say of the same addresses. Pure.

Three witnesses that must agree: a node's book (who holds what), its pod links (the kernel's
journal), and the store's blocks (who owns what).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from itertools import combinations
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """``id`` is a token; ``what`` the address, block or pool; ``holder`` the container that holds
    an address, for `ipam release --from-report`."""

    id: str
    node: str
    what: str
    detail: str
    holder: str = ""


def audit(
    facts: Mapping[str, Mapping[str, Any]],
    *,
    nodes: Sequence[str],
    pools: Sequence[tuple[str, str]],
) -> list[Problem]:
    """All that does not agree.

    Args:
        facts: by node, its ``ipam`` view: blocks, holders, pods, problems.
        nodes: the store's Nodes; empty when it was not asked.
        pools: (name, CIDR).
    """
    blocks: dict[str, Row] = {}
    for node, told in facts.items():
        for row in told["blocks"]:
            if row["block"] not in blocks or row["node"] == node:
                blocks[row["block"]] = row
    return [
        *_pools(pools),
        *_blocks(blocks.values(), nodes, pools),
        *_twice(facts),
        *(each for node in sorted(facts) for each in _node(node, facts[node])),
    ]


def _pools(pools: Sequence[tuple[str, str]]) -> Iterator[Problem]:
    for (name, cidr), (other, cidr_of_other) in combinations(sorted(pools), 2):
        if _overlap(cidr, cidr_of_other):
            yield Problem("pools-overlap", "", name, f"{cidr} overlaps {cidr_of_other} of {other}")


def _blocks(
    blocks: Iterator[Row] | Any, nodes: Sequence[str], pools: Sequence[tuple[str, str]]
) -> Iterator[Problem]:
    rows = sorted(blocks, key=lambda row: str(row["block"]))
    for row in rows:
        block, owner = row["block"], row["node"]
        if nodes and owner not in nodes:
            yield Problem("block-without-node", owner, block, f"there is no Node {owner}")
        if row["state"] != "confirmed":
            yield Problem("block-not-confirmed", owner, block, f"it is {row['state']}")
        if pools and not any(_inside(block, cidr) for _, cidr in pools):
            yield Problem("block-without-pool", owner, block, "no IPPool has it")
    for one, other in combinations(rows, 2):
        if _overlap(one["block"], other["block"]):
            yield Problem(
                "blocks-overlap", one["node"], one["block"],
                f"it overlaps {other['block']} of {other['node']}",
            )  # fmt: skip


def _twice(facts: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    holders: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for node, told in facts.items():
        for pod in told["pods"]:
            for address in pod["addresses"]:
                holders[address].append((node, pod["host_ifname"]))
    for address, found in sorted(holders.items()):
        if len(found) > 1:
            who = " and ".join(f"{link} on {node}" for node, link in sorted(found))
            yield Problem("address-twice", found[0][0], address, f"held by {who}")


def _node(node: str, told: Mapping[str, Any]) -> Iterator[Problem]:
    own = [row["block"] for row in told["blocks"] if row["node"] == node]
    booked = {a: holder for holder in told["holders"] for a in holder["addresses"]}
    linked = {a: pod for pod in told["pods"] for a in pod["addresses"]}
    for address in sorted(booked.keys() - linked.keys(), key=_order):
        holder = booked[address]
        yield Problem(
            "booked-without-link", node, address,
            f"container {holder['container_id'][:12]} holds it and has no link; it is given back "
            "after a minute",
            holder["container_id"],
        )  # fmt: skip
    for address in sorted(linked.keys() - booked.keys(), key=_order):
        yield Problem(
            "link-without-book", node, address,
            f"{linked[address]['host_ifname']} has it and no one has booked it",
        )  # fmt: skip
    for address in sorted(linked, key=_order):
        if not any(_inside(address, block) for block in own):
            yield Problem(
                "address-outside-blocks", node, address,
                f"{linked[address]['host_ifname']} has it, and {node} owns no block with it",
            )  # fmt: skip
    for sentence in told["problems"]:
        yield Problem("ipam", node, "", str(sentence))


def _order(address: str) -> tuple[int, int]:
    parsed = ip_address(address)
    return parsed.version, int(parsed)


def _overlap(one: str, other: str) -> bool:
    first, second = ip_network(one), ip_network(other)
    return first.version == second.version and first.overlaps(second)


def _inside(inner: str, outer: str) -> bool:
    first, second = ip_network(inner), ip_network(outer)
    return first.version == second.version and first.subnet_of(second)  # type: ignore[arg-type]
