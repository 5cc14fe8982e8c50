"""What doctor knows of a machine, as plain values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


@dataclass(frozen=True, slots=True)
class NetworkFile:
    """A CNI configuration file, by name; ``is_ours`` by its plugins' type."""

    name: str
    is_ours: bool


@dataclass(frozen=True, slots=True)
class Uplink:
    """An interface that has a global address and is no pod's."""

    ifname: str
    mtu_bytes: int
    networks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pool:
    """An IPPool as the store has it."""

    name: str
    cidr: str


class Beside(Enum):
    """How a route that is not ours stands to ours to the same prefix."""

    NONE_OF_OURS = "none of ours"
    BEHIND_OURS = "behind ours"
    INSTEAD_OF_OURS = "instead of ours"


@dataclass(frozen=True, slots=True)
class ForeignRoute:
    """A route of the main table that is not ours; ``words`` name it and its protocol."""

    prefix: str
    words: str
    beside: Beside = Beside.NONE_OF_OURS


@dataclass(frozen=True, slots=True)
class Facts:
    """One machine. What is None could not be found out.

    Attributes:
        sysctls: dotted name to value; absent ones are left out.
        networkd: its configuration's [Network] keys, when systemd-networkd runs here.
        network_manager: whether it runs, and has a rule that leaves our links alone.
        listeners: local addresses that something listens on at the BGP port.
        is_clock_synchronised: as the kernel says (adjtimex).
        read_only: of the agent's directories, those on a file system that is mounted so.
        status: the agent's own status view; ``agent_error`` when it does not answer.
        peers, pods: the agent's views.
    """

    is_root: bool
    kernel: tuple[int, int]
    sysctls: Mapping[str, str] = field(default_factory=dict)
    networkd: Mapping[str, str] | None = None
    network_manager: tuple[bool, bool] = (False, False)
    network_files: tuple[NetworkFile, ...] | None = None
    uplinks: tuple[Uplink, ...] = ()
    pools: tuple[Pool, ...] | None = None
    store_error: str = ""
    listeners: tuple[str, ...] = ()
    foreign_routes: tuple[ForeignRoute, ...] = ()
    is_clock_synchronised: bool | None = None
    missing_programs: tuple[str, ...] = ()
    state_free_percent: float | None = None
    read_only: tuple[str, ...] = ()
    status: Mapping[str, Any] | None = None
    agent_error: str = ""
    peers: Sequence[Mapping[str, Any]] = ()
    pods: Sequence[Mapping[str, Any]] = ()
