"""What Prometheus is told, and that it is told the truth."""

from __future__ import annotations

import os
import time
from ipaddress import ip_address, ip_network

import pytest
from prometheus_client.parser import text_string_to_metric_families

from routing.desired import Desired
from routing.last_peers import LastPeers
from routing.metrics.agent_metrics import AgentMetrics
from routing.metrics.observing import Scrape
from routing.ownership import OwnershipConflict
from routing.report import PassReport
from tests.fakes.observation import observation

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(**changes) -> Samples:
    text = Scrape(lambda: observation(**changes)).text().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("slash32_")
    }


def value(metric: str, of: Samples, **labels: str) -> float:
    return of[metric, tuple(sorted(labels.items()))]


TOR1 = {"peer": "172.30.0.0", "name": "tor1"}
TOR2 = {"peer": "172.30.1.0", "name": "tor2"}


def test_sessions_are_up_or_down_since_a_moment():
    """A session that is down has no moment at which it came up."""
    seen = samples()
    assert value("slash32_bgp_peer_up", seen, **TOR1, asn="64512") == 1
    assert value("slash32_bgp_peer_up", seen, **TOR2, asn="64512") == 0
    came_up = "slash32_bgp_peer_established_timestamp_seconds"
    assert value(came_up, seen, **TOR1) == 1_700_000_000 - 600
    assert (came_up, tuple(sorted(TOR2.items()))) not in seen
    assert value("slash32_bgp_session_flaps_total", seen, **TOR1) == 2


def test_a_session_of_an_absent_speaker_is_not_called_up():
    """What is known of it is a memory."""
    seen = samples(is_speaker_connected=False)
    assert value("slash32_bgp_peer_up", seen, **TOR1, asn="64512") == 0
    assert value("slash32_bgp_speaker_connected", seen) == 0


def test_an_exabgp_that_runs_as_it_comes_is_seen():
    """It is slower, and an upgrade may have done it without a word to anybody else."""
    assert value("slash32_bgp_exabgp_tuned", samples()) == 1
    assert value("slash32_bgp_exabgp_tuned", samples(is_exabgp_tuned=False)) == 0


def test_each_directory_of_the_agent_is_writable_or_not():
    """By path: there are two or three."""
    told = {path: value("slash32_disk_writable", samples(), path=path)
            for path in ("/run/slash32", "/var/lib/slash32")}  # fmt: skip
    assert told == {"/run/slash32": 1, "/var/lib/slash32": 0}


@pytest.mark.parametrize(
    ("direction", "number"), [("received", 2), ("accepted", 1), ("rejected", 1), ("announced", 1)]
)
def test_prefixes_of_a_session_add_up(direction: str, number: int):
    """Received is accepted and rejected."""
    assert value("slash32_bgp_peer_prefixes", samples(), **TOR1, direction=direction) == number


def test_a_rejection_has_its_reason():
    """By token, not by prefix: prefixes are without bound."""
    assert value("slash32_bgp_rejected_prefixes", samples(), **TOR1, reason="not-in-pool") == 1


def test_routes_are_counted_by_kind_and_by_what_came_of_them():
    """Wanted, installed, refused, in conflict; what was put back."""
    seen = samples()
    assert value("slash32_routes_wanted", seen, kind="remote") == 1
    assert value("slash32_routes_installed", seen) == 2
    assert value("slash32_routes_failed", seen) == 1
    assert value("slash32_route_conflicts", seen) == 1
    assert value("slash32_route_changes_total", seen, operation="create", result="ok") == 2
    assert value("slash32_route_drift_repaired_total", seen, operation="create") == 3
    assert value("slash32_route_drift_repaired_total", seen, operation="replace") == 0
    assert value("slash32_held", seen) == 1


def test_update_to_kernel_is_a_cumulative_histogram():
    """In seconds; 4 ms lies in the bucket of 5 ms and all above."""
    seen = samples()
    name = "slash32_bgp_update_to_kernel_seconds"
    assert value(f"{name}_bucket", seen, le="0.002") == 0
    assert value(f"{name}_bucket", seen, le="0.005") == 1
    assert value(f"{name}_bucket", seen, le="+Inf") == 1
    assert value(f"{name}_count", seen) == 1
    assert value(f"{name}_sum", seen) == pytest.approx(0.004)


def test_addresses_and_blocks_are_counted_by_pool():
    """This node's addresses, the cluster's blocks."""
    seen = samples()
    for state, number in (("used", 5), ("resting", 1), ("free", 58)):
        assert value("slash32_ipam_addresses", seen, pool="pods", state=state) == number
    assert value("slash32_ipam_pool_blocks", seen, pool="pods", state="taken") == 1
    assert value("slash32_ipam_pool_blocks", seen, pool="pods", state="free") == 1023
    assert value("slash32_ipam_blocks", seen, state="confirmed") == 1


def test_cni_requests_carry_command_and_result():
    """And their phases."""
    seen = samples()
    name = "slash32_cni_request_duration_seconds_count"
    assert value(name, seen, command="ADD", result="ok") == 1
    assert value(name, seen, command="ADD", result="no_address") == 1
    assert value("slash32_cni_phase_duration_seconds_count", seen, phase="assign", result="ok") == 1


def test_ages_are_told_as_moments():
    """A moment goes on ageing when the agent hangs; what never was is absent."""
    seen = samples()
    assert value("slash32_store_last_read_timestamp_seconds", seen) == 1_700_000_000 - 5
    assert value("slash32_last_pass_timestamp_seconds", seen) == 1_700_000_000 - 10
    assert ("slash32_cache_saved_timestamp_seconds", ()) not in seen
    kept = samples(cache_saved_at_s=900.0)
    assert value("slash32_cache_saved_timestamp_seconds", kept) == 1_700_000_000 - 100


def test_names_follow_the_conventions():
    """Our prefix, base units, no pod and no learned prefix in a label."""
    for name, labels in samples():
        assert not name.endswith(("_ms", "_milliseconds", "_age"))
        assert {label for label, _ in labels} <= {
            "peer", "name", "asn", "direction", "reason", "kind", "operation", "result", "pool",
            "state", "command", "phase", "le", "version", "python", "path",
        }, name  # fmt: skip


def test_the_age_of_the_nodes_copy_is_that_of_its_file(tmp_path):
    """Nothing has to remember it; a copy that is not there has no age."""
    metrics = AgentMetrics(node="n1", version="0", clock=time.monotonic)
    file = tmp_path / "snapshot"
    assert metrics._written_at_s(None) is None
    assert metrics._written_at_s(file) is None
    file.touch()
    os.utime(file, (time.time() - 50, time.time() - 50))
    written_s = metrics._written_at_s(file)
    assert written_s is not None
    assert time.monotonic() - written_s == pytest.approx(50, abs=5)


def test_a_block_that_two_claim_is_counted():
    """An alert for what should never be."""
    conflict = OwnershipConflict(ip_network("10.244.2.0/26"), "n2", "n3", ip_address("172.30.0.0"))
    report = PassReport(desired=Desired(conflicts=(conflict,)))
    assert value("slash32_bgp_block_conflicts", samples(report=report)) == 1
    assert value("slash32_bgp_block_conflicts", samples()) == 0


def test_last_peers_that_are_kept_and_their_time():
    """Nothing kept is two zeros, so that the alert resolves."""
    kept = samples(last_peers=LastPeers(("tor1", "tor2"), 120.5, "gone"))
    assert value("slash32_bgp_last_peers_kept", kept) == 2
    assert value("slash32_bgp_last_peers_seconds_left", kept) == 120.5
    assert value("slash32_bgp_last_peers_kept", samples()) == 0
