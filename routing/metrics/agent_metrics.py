"""The measuring parts of one agent: what is put around its ports, and the scrape of it all."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from bgp.speaker import Speaker
from cni.ipam.allocator import Allocator
from cni.server import Verbs
from cni.timings import Timings, timed
from routing.metrics.cni_verbs import (
    ALLOCATOR_PHASES,
    HOST_ROUTE_PHASES,
    WIRING_PHASES,
    TimedVerbs,
)
from routing.metrics.families import Observation
from routing.metrics.fib_tally import FibTally
from routing.reconcile import Reconciler

F = TypeVar("F")
W = TypeVar("W")
R = TypeVar("R")
A = TypeVar("A")


class AgentMetrics:
    """Counts at the ports; ``observe`` adds what the parts believe at the moment it is called."""

    def __init__(self, *, node: str, version: str, clock: Callable[[], float]) -> None:
        self._node = node
        self._version = version
        self._clock = clock
        self._fib = FibTally(clock)
        self._requests = Timings()
        self._phases = Timings()

    def fib(self, fib: F) -> F:
        """The loop's Fib, counted."""
        return self._fib.around(fib)

    def wiring(self, wiring: W) -> W:
        """The verbs' Wiring, timed."""
        return timed(wiring, WIRING_PHASES, self._phases)

    def host_routes(self, routes: R) -> R:
        """The verbs' HostRoutes, timed."""
        return timed(routes, HOST_ROUTE_PHASES, self._phases)

    def allocator(self, allocator: A) -> A:
        """The verbs' AddressAllocator, timed."""
        return timed(allocator, ALLOCATOR_PHASES, self._phases)

    def verbs(self, verbs: Verbs) -> Verbs:
        """The CNI server's Verbs, timed."""
        return TimedVerbs(verbs, self._requests)

    def bgp_changed(self, reason: str) -> None:
        """The speaker's ``on_change``: an UPDATE starts the clock."""
        if reason.startswith("update:"):
            self._fib.heard_update()

    def observe(
        self,
        *,
        loop: Reconciler,
        speaker: Speaker,
        allocator: Allocator,
        is_ready: bool,
        cache_file: Path | None = None,
        writable: Mapping[str, bool] = MappingProxyType({}),
    ) -> Observation:
        """Everything the metrics are made of, now; nothing is read from the kernel or the store.

        Args:
            cache_file: the node's copy of the store, whose age is told.
            writable: the agent's directories, and whether each can be written.
        """
        return Observation(
            now_s=self._clock(),
            wall_s=time.time(),
            version=self._version,
            python=platform.python_version(),
            node=self._node,
            report=loop.report,
            snapshot=loop.snapshot,
            sessions=speaker.sessions(),
            is_speaker_connected=speaker.is_connected,
            unreadable_lines=speaker.unreadable_lines,
            fib=self._fib,
            cni_requests=self._requests,
            cni_phases=self._phases,
            own_blocks=allocator.blocks(),
            ipam_problems=allocator.problems(),
            last_peers=loop.last_peers,
            store_error=loop.store_error,
            store_read_at_s=loop.store_read_at_s,
            cache_saved_at_s=self._written_at_s(cache_file),
            edge_error=loop.edge_error,
            is_ready=is_ready,
            writable=writable,
            is_exabgp_tuned=not speaker.exabgp_mode.startswith("stock"),
        )

    def _written_at_s(self, file: Path | None) -> float | None:
        """When a file was last written, on our clock; None when it is not there."""
        try:
            written_s = file.stat().st_mtime if file is not None else None
        except OSError:
            return None
        return None if written_s is None else self._clock() - (time.time() - written_s)
