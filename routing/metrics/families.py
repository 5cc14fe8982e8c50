"""The metrics of one node, from what it believes at the moment of the scrape. Pure.

Names and units follow Prometheus' conventions: a prefix, base units, ``_total`` on counters,
timestamps instead of ages (an age is ``time() - x``, and goes on growing when the agent hangs).
Label sets are bounded: by configured peers, by pools, by reason tokens; never a pod, a pod's
address or a learned prefix. The node is the scraper's to add (``instance``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from bgp.paths import PeerStatus, SessionState
from cni.ipam.block import Block, BlockState
from cni.timings import Timings
from routing.datastore.snapshot import Snapshot
from routing.desired import kind_counts
from routing.last_peers import LastPeers
from routing.metrics.fib_tally import FibTally
from routing.remote import counts_of
from routing.report import PassReport
from routing.routes import Address

FOREIGN_HOLDER = "held by protocol "
"""How routing/fib.py begins to name a foreign route that is in the way of one of ours."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What the families are made of, taken at one moment.

    Attributes:
        now_s: of the clock that ``report`` and ``sessions`` go by; ``wall_s`` is Unix time then.
        cni_requests: by (command, result). ``cni_phases``: by (phase, result).
        store_read_at_s, cache_saved_at_s: when last done, or None when never.
        own_blocks: (block, used, resting, free) of each confirmed block of this node.
        writable: the agent's directories, and whether each can be written.
    """

    now_s: float
    wall_s: float
    version: str
    python: str
    node: str
    report: PassReport
    snapshot: Snapshot
    sessions: Mapping[Address, PeerStatus]
    is_speaker_connected: bool
    unreadable_lines: int
    fib: FibTally
    cni_requests: Timings
    cni_phases: Timings
    own_blocks: Sequence[tuple[Block, int, int, int]] = ()
    ipam_problems: Sequence[str] = ()
    last_peers: LastPeers | None = None
    store_error: str | None = None
    store_read_at_s: float | None = None
    cache_saved_at_s: float | None = None
    edge_error: str | None = None
    is_ready: bool = True
    is_exabgp_tuned: bool = True
    writable: Mapping[str, bool] = field(default_factory=dict)

    def unix_s(self, at_s: float) -> float:
        """A moment of our clock as Unix time."""
        return self.wall_s - (self.now_s - at_s)


def families(seen: Observation) -> Iterator[Metric]:
    """Every metric, each named once."""
    yield from _node(seen)
    yield from _bgp(seen)
    yield from _routes(seen)
    yield from _ipam(seen)
    yield from _cni(seen)
    yield from _datastore(seen)


def _node(seen: Observation) -> Iterator[Metric]:
    info = InfoMetricFamily("slash32_build", "What runs here.")
    info.add_metric([], {"version": seen.version, "python": seen.python})
    yield info
    yield _gauge(
        "slash32_ready", "1 when CNI STATUS promises that pods can be added.", seen.is_ready
    )
    yield _counter(
        "slash32_passes", "Passes of the loop since the agent started.", seen.report.passes
    )
    last = _family("slash32_last_pass_timestamp_seconds", "When the last pass ended, Unix time.")
    if seen.report.finished_at_s is not None:
        last.add_metric([], seen.unix_s(seen.report.finished_at_s))
    yield last
    failing = _family(
        "slash32_pass_failures",
        "What failed in the last pass, by the operation that failed.",
        ["operation"],
    )
    for operation, number in sorted(Counter(f.operation for f in seen.report.failures).items()):
        failing.add_metric([operation], number)
    yield failing
    yield _gauge(
        "slash32_held", "Deletions and withdrawals that a closed gate keeps.", len(seen.report.held)
    )
    yield _gauge(
        "slash32_edge_in_place", "1 when the rules at the pods' edge hold.", seen.edge_error is None
    )
    writable = _family(
        "slash32_disk_writable",
        "1 when the agent can write there; 0 stops no packet and no verb, but is Degraded.",
        ["path"],
    )
    for path, is_writable in sorted(seen.writable.items()):
        writable.add_metric([path], float(is_writable))
    yield writable


def _bgp(seen: Observation) -> Iterator[Metric]:
    yield _gauge(
        "slash32_bgp_speaker_connected",
        "1 when ExaBGP is connected to the agent and was read back.",
        seen.is_speaker_connected,
    )
    yield _gauge(
        "slash32_bgp_exabgp_tuned",
        "1 when ExaBGP runs with our changes; 0 as it comes, which is slower (see its log).",
        seen.is_exabgp_tuned,
    )
    yield _counter(
        "slash32_bgp_unreadable_lines",
        "Lines of ExaBGP that made no sense and were skipped.",
        seen.unreadable_lines,
    )
    labels = ["peer", "name"]
    up = _family("slash32_bgp_peer_up", "1 when the session is Established.", [*labels, "asn"])
    since = _family(
        "slash32_bgp_peer_established_timestamp_seconds",
        "When the session came up, Unix time; absent while it is down.",
        labels,
    )
    flaps = CounterMetricFamily(
        "slash32_bgp_session_flaps", "How often an Established session was lost.", labels=labels
    )
    prefixes = _family(
        "slash32_bgp_peer_prefixes",
        "Prefixes of a session: received, of these accepted and rejected, and announced to it.",
        [*labels, "direction"],
    )
    refused = _family(
        "slash32_bgp_rejected_prefixes",
        "Received prefixes that import policy refuses, by reason.",
        [*labels, "reason"],
    )
    reasons = counts_of(seen.report.desired.rejected)
    for address, peer in seen.report.desired.peers.items():
        status = seen.sessions.get(address) or PeerStatus(address)
        is_up = status.state is SessionState.ESTABLISHED and seen.is_speaker_connected
        named = [str(address), peer.name]
        up.add_metric([*named, str(peer.remote_asn)], is_up)
        if is_up:
            since.add_metric(named, seen.unix_s(status.since_s))
        flaps.add_metric(named, status.flaps)
        by_reason = {reason: n for (of, reason), n in reasons.items() if of == address}
        rejected = sum(by_reason.values())
        for direction, number in (
            ("received", status.routes_received),
            # The tables move on between a pass and a scrape; less than none makes no sense.
            ("accepted", max(0, status.routes_received - rejected)),
            ("rejected", rejected),
            ("announced", status.routes_advertised),
        ):
            prefixes.add_metric([*named, direction], number)
        for reason, number in sorted(by_reason.items()):
            refused.add_metric([*named, reason], number)
    yield from (up, since, flaps, prefixes, refused)
    yield _gauge(
        "slash32_bgp_last_peers_kept",
        "Sessions kept although the store has no peer for them any more (keepLastPeersFor).",
        0 if seen.last_peers is None else len(seen.last_peers.sessions),
    )
    yield _gauge(
        "slash32_bgp_last_peers_seconds_left",
        "For how long they are kept still; 0 when none is.",
        0 if seen.last_peers is None else seen.last_peers.left_s,
    )
    yield _gauge(
        "slash32_bgp_block_conflicts",
        "Paths to a block from somebody who does not own it; they are not used.",
        len(seen.report.desired.conflicts),
    )
    yield _histogram(
        "slash32_bgp_update_to_kernel_seconds",
        "From an UPDATE's arrival at the agent to the kernel's acknowledgement of its routes.",
        seen.fib.update_to_kernel,
    )


def _routes(seen: Observation) -> Iterator[Metric]:
    wanted = _family("slash32_routes_wanted", "Routes this node should have, by kind.", ["kind"])
    for kind, number in sorted(kind_counts(seen.report.desired).items()):
        wanted.add_metric([kind], number)
    yield wanted
    yield _gauge("slash32_routes_installed", "Routes of ours in the kernel.", seen.fib.installed)
    failures = [f for f in seen.report.failures if f.key.startswith("route ")]
    yield _gauge(
        "slash32_routes_failed", "Routes the kernel refused in the last pass.", len(failures)
    )
    yield _gauge(
        "slash32_route_conflicts",
        "Wanted routes whose place in the kernel a foreign route holds.",
        sum(FOREIGN_HOLDER in failure.error for failure in failures) + len(seen.report.contested),
    )
    changes = CounterMetricFamily(
        "slash32_route_changes", "Changes of routes in the kernel.", labels=["operation", "result"]
    )
    for (operation, result), number in sorted(seen.fib.changes.items()):
        changes.add_metric([operation, result], number)
    yield changes
    drift = CounterMetricFamily(
        "slash32_route_drift_repaired",
        "Routes put back that somebody else had removed (create) or changed (replace).",
        labels=["operation"],
    )
    for operation in ("create", "replace"):
        drift.add_metric([operation], seen.fib.drift.get(operation, 0))
    yield drift
    yield _histogram(
        "slash32_route_apply_seconds", "One batch of route changes.", seen.fib.applying
    )


def _ipam(seen: Observation) -> Iterator[Metric]:
    blocks = _family("slash32_ipam_blocks", "Blocks of this node, by state.", ["state"])
    mine = Counter(block.state for block in seen.snapshot.blocks if block.node == seen.node)
    for block_state in BlockState:
        blocks.add_metric([block_state.value], mine[block_state])
    yield blocks
    addresses = _family(
        "slash32_ipam_addresses",
        "Addresses in confirmed blocks of this node: used, resting after use, free.",
        ["pool", "state"],
    )
    use: dict[str, list[int]] = {}
    for block, *numbers in seen.own_blocks:
        counted = use.setdefault(block.pool, [0, 0, 0])
        counted[:] = [a + b for a, b in zip(counted, numbers, strict=True)]
    for pool_name, counts in sorted(use.items()):
        for state, number in zip(("used", "resting", "free"), counts, strict=True):
            addresses.add_metric([pool_name, state], number)
    yield addresses
    pool_blocks = _family(
        "slash32_ipam_pool_blocks",
        "Blocks of a pool, the whole cluster's: taken and free. Every node says the same.",
        ["pool", "state"],
    )
    taken = Counter(block.pool for block in seen.snapshot.blocks)
    for pool in seen.snapshot.pools:
        size = 1 << (pool.block_size - pool.cidr.prefixlen)
        pool_blocks.add_metric([pool.meta.name, "taken"], taken[pool.meta.name])
        pool_blocks.add_metric([pool.meta.name, "free"], max(0, size - taken[pool.meta.name]))
    yield pool_blocks
    yield _gauge(
        "slash32_ipam_conflicts",
        "What is wrong with blocks of this node, such as one that is now another node's.",
        len(seen.ipam_problems),
    )
    yield _gauge("slash32_pods", "Pod links on this node.", len(seen.report.pods))


def _cni(seen: Observation) -> Iterator[Metric]:
    yield _histogram(
        "slash32_cni_request_duration_seconds",
        "CNI requests, by command and by the error code they ended with (ok for none).",
        seen.cni_requests,
        ["command", "result"],
    )
    yield _histogram(
        "slash32_cni_phase_duration_seconds",
        "The steps of ADD and DEL.",
        seen.cni_phases,
        ["phase", "result"],
    )


def _datastore(seen: Observation) -> Iterator[Metric]:
    yield _gauge(
        "slash32_store_up",
        "1 when the datastore could be read last time.",
        seen.store_error is None,
    )
    for name, text, at_s in (
        ("store_last_read", "When the datastore was last read.", seen.store_read_at_s),
        ("cache_saved", "When the node's copy of it was last written.", seen.cache_saved_at_s),
    ):
        family = _family(f"slash32_{name}_timestamp_seconds", f"{text} Unix time; absent if never.")
        if at_s is not None:
            family.add_metric([], seen.unix_s(at_s))
        yield family


def _family(name: str, text: str, labels: Sequence[str] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=float(value))


def _histogram(
    name: str, text: str, timings: Timings, labels: Sequence[str] = ()
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=labels)
    read = dict(timings.read())
    if not labels:
        # Without labels there is one series, and it is there from the start: a rate over a
        # histogram that appears with its first value misses that value.
        read.setdefault((), timings.empty())
    for key, histogram in sorted(read.items()):
        total, buckets = 0, []
        for bound_s, number in zip(
            [*timings.bounds_s, float("inf")], histogram.counts, strict=True
        ):
            total += number
            buckets.append(("+Inf" if bound_s == float("inf") else repr(bound_s), total))
        family.add_metric(list(key), buckets, histogram.sum_s)
    return family
