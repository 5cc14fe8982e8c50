"""Rows that are whole test modules: what enumerates hundreds of cases is a test already.

The row runs them in a process of its own and counts. Skipped is not passed: a row of which nothing
ran, or less than it names, is red.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable

from lab.build import PROJECT_DIR
from lab.chaos.rows import Row, Skipped, Stage, Verdict

SUITE_DEADLINE_S = 580.0
SOAK_DEADLINE_S = 7200.0

_COUNTS = re.compile(r"(\d+) (passed|failed|skipped|errors?|xfailed)")

_MEASURED = re.compile(r"^measured: (.+)$", re.MULTILINE)
"""What a test has printed for the table."""


def counts_of(text: str) -> dict[str, int]:
    """The closing line of pytest: what -> how many. Pure."""
    closing = text.strip().splitlines()[-1] if text.strip() else ""
    return {what.removesuffix("s"): int(number) for number, what in _COUNTS.findall(closing)}


def suite(*nodes: str, at_least: int, needs: str = "") -> Callable[[object, Verdict], None]:
    """An experiment: these tests, of which ``at_least`` must have passed and none anything else.

    ``needs``: a variable of the environment without which this machine cannot run them.
    """

    def run(_world: object, verdict: Verdict) -> None:
        if needs and not os.environ.get(needs):
            raise Skipped(f"{needs} is not set")
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "--tb=line",
                "-rP",
                "-p",
                "no:cacheprovider",
                *nodes,
            ],
            cwd=PROJECT_DIR,
            env={**os.environ, "SLASH32_CHAOS": "1"},
            capture_output=True,
            text=True,
            timeout=SUITE_DEADLINE_S,
            check=False,
        )
        counts = counts_of(done.stdout)
        passed = counts.get("passed", 0)
        verdict.note(f"{passed} cases passed")
        for figures in _MEASURED.findall(done.stdout):
            verdict.note(figures)
        others = {what: number for what, number in counts.items() if what != "passed"}
        verdict.must(not others and done.returncode == 0, f"{others or done.stdout[-300:]}")
        verdict.must(passed >= at_least, f"only {passed} cases ran, {at_least} are owed")

    return run


def whole_soak(_world: object, verdict: Verdict) -> None:
    """``make soak``: 20,000 pairs, 200 ends of the agent; half an hour and more."""
    done = subprocess.run(
        [sys.executable, "-m", "lab.soak"],
        cwd=PROJECT_DIR,
        capture_output=True,
        text=True,
        timeout=SOAK_DEADLINE_S,
        check=False,
    )
    closing = done.stdout.strip().splitlines()[-1:] or [done.stderr[-300:]]
    verdict.note(f"{closing[0]}; the figures of the recorded run: [soak.md](soak.md)")
    verdict.must(done.returncode == 0, closing[0])


_NETNS = "tests/netns"
_UNIT = "tests/unit"
_E2E = "tests/e2e"

ROWS = [
    Row("B2", "over 50,000 damaged lines, events, conversations and UPDATEs into our decoders; "
        "random ones and mutated ones by property tests", "0 unhandled exceptions, 0 routes that "
        "break a rule; some taken, some refused by each (a million: fuzzing.md)", Stage.NO_LAB,
        suite("tests/fuzz/test_many_bgp_cases.py", "tests/property/test_bgp_codec.py",
              "tests/property/test_adj_rib_property.py", at_least=11)),
    Row("B9", "ExaBGP's child killed again and again; the agent behind it too",
        "nothing moves at the peer (control within: the death of ExaBGP itself does)", Stage.NO_LAB,
        suite(f"{_NETNS}/test_speaker_exabgp.py", "-k",
              "bridge_that_is_killed or killed_again_and_again", at_least=2)),
    Row("L9", "a peer that reads nothing (zero window) with 20,000 routes for it",
        "no silence of over half the hold time (4.5 s) at the other peer (control within: a frozen "
        "ExaBGP is seen to be silent)", Stage.NO_LAB,
        suite(f"{_NETNS}/test_speaker_stalled.py", at_least=1)),
    Row("A3", "the agent killed at every step of ADD, DEL and replay, store calls included",
        "0 leaked, 0 doubled", Stage.NO_LAB,
        suite(f"{_NETNS}/test_kill_steps.py", at_least=6), control="C0"),
    Row("A8", "claim, release, pool and node changes in random order",
        "invariants after every step (control within: on a store that compares nothing, and with "
        "agents that do not read the kernel, the same machine finds it)", Stage.NO_LAB,
        suite("tests/property/test_ipam_machine.py", at_least=4)),
    Row("A14", "two families, one of them exhausted", "ADD fails, the other family not leaked",
        Stage.NO_LAB, suite(f"{_NETNS}/test_first_packet.py::test_an_exhausted_family_leaves_no_"
                            "half_assigned_pod", at_least=1), control="C0"),
    Row("A16", "an address is free again", "rests for its cool-down, longest unused first (control "
        "within: without one it is given out again at once)",
        Stage.NO_LAB, suite("tests/unit/test_usage.py", at_least=11)),
    Row("C0", "control: leaks planted in a real kernel and in an address book",
        "the oracle must find each", Stage.NO_LAB,
        suite(f"{_NETNS}/test_oracle.py", at_least=18)),
    Row("C3", "namespace gone, netlink refused, disk full, at each step of ADD and DEL",
        "a typed error or success; nothing left", Stage.NO_LAB,
        suite(f"{_NETNS}/test_faults.py", at_least=10), control="C0"),
    Row("C4", "launcher killed at each step", "nothing left", Stage.NO_LAB,
        suite(f"{_NETNS}/test_kill_launcher.py", at_least=3), control="C0"),
    Row("C6", "CHECK after each thing somebody can change", "each named, in its own words",
        Stage.NO_LAB, suite(f"{_NETNS}/test_wiring.py", f"{_NETNS}/test_plugin_and_kernel.py",
                            at_least=30)),
    Row("C10", "unknown versions, huge or broken stdin, hostile names",
        "the specification's error codes", Stage.NO_LAB,
        suite("tests/unit/test_spec.py", "tests/property/test_spec_property.py", at_least=40)),
    Row("S1", "router advertisements, redirects, DHCPv6 answers from a pod",
        "the host unchanged (each shown to work without our rule)", Stage.NO_LAB,
        suite(f"{_NETNS}/test_pod_security.py", "-k", "advertisement or redirect or dhcpv6",
              at_least=5)),
    Row("S3", "spoofed sources, rp_filter forced to 0", "0 of 20 leave (20 of 20 without us)",
        Stage.NO_LAB, suite(f"{_NETNS}/test_pod_security.py", "-k", "spoofed or without_an_address",
                            at_least=2)),
    Row("S4", "ARP poisoning and sweeps", "the node answers for the gateway alone, learns nothing",
        Stage.NO_LAB, suite(f"{_NETNS}/test_pod_security.py", "-k", "arp", at_least=2)),
    Row("S5", "a pod at the node's BGP port and the agent's socket", "refused, at once",
        Stage.NO_LAB, suite(f"{_NETNS}/test_pod_security.py", "-k", "bgp_port or socket",
                            at_least=3)),
    Row("K11", "the first packet after ADD, of 40 new pods in each family",
        "round trip within 5 ms (nine of ten; worst told), answered at the first request; the "
        "kernel's proxy_delay must show", Stage.NO_LAB,
        suite(f"{_NETNS}/test_first_packet.py", "-k", "the_first_packet", at_least=5)),
    Row("K6b", "installed, used, uninstalled, on a machine that others use too",
        "links, addresses, routes, rules, nexthops, nftables, sysctls, sockets and files as before",
        Stage.NO_LAB, suite(f"{_NETNS}/test_uninstall.py", at_least=1)),
    Row("A7", "an address or a block comes back between a collector's look and its release",
        "the release does not happen (control within: in a store that compares nothing, or by who "
        "does not look again, it does)", Stage.NO_LAB,
        suite(f"{_UNIT}/test_collect.py", f"{_UNIT}/test_block_collector.py",
              f"{_UNIT}/test_allocator.py", f"{_UNIT}/test_allocator_giving_back.py",
              "-k", "last_moment or came_back or comes_back or "
              "half_knowledge or taken_back or used_between or late_list or gets_a_pod or control",
              at_least=16)),
    Row("A15", "an address in another node's block is asked for (no block is ever borrowed)",
        "refused, nothing claimed", Stage.NO_LAB,
        suite(f"{_UNIT}/test_requested_addresses.py",
              f"{_E2E}/test_specification.py::test_an_address_in_another_nodes_block_is_refused",
              at_least=15)),
    Row("C7", "GC: links whole, half, without namespace or cut; and twice",
        "exactly what is not named goes", Stage.NO_LAB,
        suite(f"{_E2E}/test_specification.py::test_gc_removes_exactly_what_is_not_named",
              f"{_NETNS}/test_plugin_and_kernel.py::"
              "test_gc_keeps_who_is_named_and_removes_who_is_not", at_least=2), control="C0"),
    Row("C8", "STATUS: ready, no pool, every session down (C5: no agent)",
        "0, 50, 51 with peer and reason", Stage.NO_LAB,
        suite(f"{_E2E}/test_specification.py", "-k", "status_is", at_least=2)),
    Row("C13", "chained with portmap and bandwidth, and with a plugin that fails",
        "prevResult honoured, nothing left", Stage.NO_LAB,
        suite(f"{_E2E}/test_chained.py", at_least=5), control="C0"),
    Row("O11", "soak: 20,000 ADD/DEL with killed launchers, 200 ends of the agent",
        "memory, descriptors, links, routes flat, 0 leaks, 0 doubled", Stage.NO_LAB, whole_soak,
        is_long=True),
    Row("O13a", "the collector: a living link, a moment without, a look that sees nothing",
        "never released (control within: without that look, or with half the time, it is)",
        Stage.NO_LAB,
        suite(f"{_UNIT}/test_collect.py", "-k", "living or came_back or sees_nothing or "
              "last_moment or one_look or control", at_least=7)),
    Row("S6", "a pod or its namespace asks for a pool or an address it may not have",
        "refused with its reason", Stage.NO_LAB,
        suite(f"{_UNIT}/test_pod_annotations.py", "tests/contract/test_kubernetes_pods.py",
              at_least=12)),
    Row("S9", "with a stolen agent's token, at a real kube-apiserver: another node's Block and "
        "NodeStatus, any Node, Pod or Secret, what operators wish; its own beside it",
        "403 for all, its own taken (needs KUBEBUILDER_ASSETS)", Stage.NO_LAB,
        suite("tests/contract/test_admission_contract.py", "-k", "agent", at_least=4,
              needs="KUBEBUILDER_ASSETS")),
    Row("S11", "agent and speaker without each capability they have",
        "the manifest's are needed and enough", Stage.NO_LAB,
        suite(f"{_NETNS}/test_capabilities.py", at_least=8)),
    Row("S12", "MD5 wrong or changed, GTSM from afar", "no session, others untouched (control "
        "within: with the right key and the right TTL each comes up)",
        Stage.NO_LAB, suite(f"{_NETNS}/test_speaker_sessions.py", "-k", "password or gtsm",
                            at_least=4)),
]  # fmt: skip
