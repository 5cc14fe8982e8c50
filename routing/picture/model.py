"""What a picture shows, as values: routers, nodes, their blocks, and the sessions between. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum


class State(Enum):
    """Of a session, as it is drawn; each has a shape of its own."""

    UP = "up"
    STARTING = "starting"
    DOWN = "down"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Observed:
    """What a node says of one of its sessions. ``since_s`` is how long it is so."""

    address: str
    state: str
    name: str = ""
    asn: int = 0
    received: int = 0
    accepted: int = 0
    announced: int = 0
    since_s: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of one node beyond the store's configuration.

    ``source``: where from, in words. ``use``: block -> (used, size) where known.
    """

    sessions: tuple[Observed, ...] = ()
    source: str = ""
    pods: int | None = None
    use: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """One session as one node sees it; ``remote`` is a router's key or a node's name.

    ``seen`` is None when nobody was heard who knows. ``problems``: what does not fit.
    """

    node: str
    name: str
    address: str
    asn: int
    remote: str
    is_to_node: bool
    state: State
    seen: Observed | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Router:
    """A router outside the cluster, by each address that nodes know it by."""

    key: str
    title: str
    asn: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BlockChip:
    """A block of a node. ``used`` None: not known here."""

    cidr: str
    pool: str
    state: str
    used: int | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster. ``source`` is empty when it was not heard."""

    name: str
    asn: int
    addresses: tuple[str, ...]
    blocks: tuple[BlockChip, ...]
    sessions: tuple[Session, ...]
    source: str = ""
    pods: int | None = None
    problems: tuple[str, ...] = ()

    def all_problems(self) -> Iterator[str]:
        """The node's own, then its sessions'."""
        yield from self.problems
        for session in self.sessions:
            for problem in session.problems:
                yield f"{session.name} {session.address}: {problem}"


@dataclass(frozen=True, slots=True)
class Picture:
    """All of it. ``title`` and ``caption`` are for the head; ``problems`` belong to no node."""

    routers: tuple[Router, ...]
    nodes: tuple[Node, ...]
    title: str = "slash32"
    caption: str = ""
    problems: tuple[str, ...] = ()

    def all_problems(self) -> list[str]:
        """Every mismatch, the node's name before it."""
        found = list(self.problems)
        found += [f"{node.name}: {text}" for node in self.nodes for text in node.all_problems()]
        return found

    def is_healthy(self) -> bool:
        """No mismatch, and no session that is known to be down or not known."""
        return not self.all_problems() and all(
            session.state is State.UP for node in self.nodes for session in node.sessions
        )
