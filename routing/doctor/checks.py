"""The checks: facts in, findings out. Each has an id that stays, evidence, and a remedy. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_network
from itertools import combinations

from routing.doctor.facts import Beside, Facts

MIN_KERNEL: tuple[int, int] = (5, 10)
MIN_MTU_BYTES = 1280
LEAST_FREE_PERCENT = 2.0


class Severity(Enum):
    """``ERROR`` is a finding (exit code 1); ``WARNING`` may be meant; ``UNKNOWN`` was not seen."""

    OK = "ok"
    ERROR = "error"
    WARNING = "warning"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    id: str
    severity: Severity
    evidence: str
    remedy: str = ""


Found = tuple[Severity, str, str]
Check = Callable[[Facts], Iterator[Found]]


def _error(evidence: str, remedy: str) -> Found:
    return Severity.ERROR, evidence, remedy


def _warning(evidence: str, remedy: str) -> Found:
    return Severity.WARNING, evidence, remedy


def _unknown(evidence: str, remedy: str = "") -> Found:
    return Severity.UNKNOWN, evidence, remedy


def _root(facts: Facts) -> Iterator[Found]:
    if not facts.is_root:
        yield _error("this is not root", "run it as root; agent and CNI need it too")


def _kernel(facts: Facts) -> Iterator[Found]:
    if facts.kernel < MIN_KERNEL:
        yield _error(
            f"Linux {facts.kernel[0]}.{facts.kernel[1]}",
            f"slash32 needs Linux {MIN_KERNEL[0]}.{MIN_KERNEL[1]} or later",
        )


def _programs(facts: Facts) -> Iterator[Found]:
    for program in facts.missing_programs:
        yield _error(
            f"no program {program} on PATH", f"install it; on Debian: {_PACKAGES[program]}"
        )


_PACKAGES = {"nft": "apt-get install nftables", "exabgp": "pip install exabgp==5.0.15"}


def _ip_forward(facts: Facts) -> Iterator[Found]:
    for family in ("ipv4", "ipv6"):
        if facts.sysctls.get(f"net.{family}.conf.all.forwarding") == "0":
            # Before the installation the agent's start is still to come, which turns it on.
            problem = _warning if facts.status is None else _error
            yield problem(
                f"net.{family}.conf.all.forwarding is 0: no packet of a pod goes anywhere",
                "the agent turns it on at its start; look in /etc/sysctl.d for what turns it off",
            )


def _rp_filter(facts: Facts) -> Iterator[Found]:
    if len(facts.uplinks) < 2:
        return
    for name in ("all", *(uplink.ifname for uplink in facts.uplinks)):
        if facts.sysctls.get(f"net.ipv4.conf.{name}.rp_filter") == "1":
            yield _error(
                f"net.ipv4.conf.{name}.rp_filter is 1 with {len(facts.uplinks)} uplinks: packets "
                "that come by another uplink than the answer takes are dropped",
                f"set net.ipv4.conf.{name}.rp_filter to 2 (loose, RFC 3704)",
            )


def _accept_ra(facts: Facts) -> Iterator[Found]:
    if facts.sysctls.get("net.ipv6.conf.all.forwarding") != "1":
        return
    for uplink in facts.uplinks:
        if facts.sysctls.get(f"net.ipv6.conf.{uplink.ifname}.accept_ra") == "1" and any(
            ":" in network for network in uplink.networks
        ):
            yield _warning(
                f"{uplink.ifname} has accept_ra=1, which does nothing while IPv6 forwarding is on",
                f"if the IPv6 default route comes by router advertisement, set "
                f"net.ipv6.conf.{uplink.ifname}.accept_ra to 2",
            )


def _ipv6(facts: Facts) -> Iterator[Found]:
    wants = [pool for pool in facts.pools or () if ":" in pool.cidr]
    if wants and facts.sysctls.get("net.ipv6.conf.all.disable_ipv6", "1") == "1":
        yield _error(
            f"IPPool {wants[0].name} is IPv6 and net.ipv6.conf.all.disable_ipv6 is 1 or missing",
            "enable IPv6 on this node, or take the pool away",
        )


def _neighbour_table(facts: Facts) -> Iterator[Found]:
    limit = facts.sysctls.get("net.ipv4.neigh.default.gc_thresh3")
    if limit is not None and int(limit) < 2 * (len(facts.pods) + 64):
        yield _error(
            f"net.ipv4.neigh.default.gc_thresh3 is {limit}, with {len(facts.pods)} pods here",
            "raise gc_thresh1, 2 and 3 (4096, 8192, 16384)",
        )


def _networkd(facts: Facts) -> Iterator[Found]:
    if facts.networkd is None:
        return
    for key in ("ManageForeignRoutes", "ManageForeignRoutingPolicyRules"):
        if facts.networkd.get(key.lower(), "yes").lower() not in ("no", "false", "0", "off"):
            problem = _error if key == "ManageForeignRoutes" else _warning
            yield problem(
                f"systemd-networkd runs with {key}=yes: it deletes routes that others made, at "
                "every restart and every carrier change",
                f"put [Network] {key}=no into /etc/systemd/networkd.conf.d/slash32.conf and "
                "restart systemd-networkd",
            )


def _network_manager(facts: Facts) -> Iterator[Found]:
    runs, is_told = facts.network_manager
    if runs and not is_told:
        yield _warning(
            "NetworkManager runs and no rule leaves our links alone",
            "put [keyfile] unmanaged-devices=interface-name:s32* into "
            "/etc/NetworkManager/conf.d/slash32.conf and reload it",
        )


def _conflists(facts: Facts) -> Iterator[Found]:
    if facts.network_files is None:
        yield _unknown("the CNI configuration directory cannot be read")
        return
    ours = sorted(each.name for each in facts.network_files if each.is_ours)
    others = sorted(each.name for each in facts.network_files if not each.is_ours)
    before = [name for name in others if not ours or name < ours[0]]
    if before:
        yield _error(
            f"the runtime takes {before[0]}, which sorts before "
            + (f"ours ({ours[0]})" if ours else "whatever we install"),
            "remove the other network's configuration once nobody uses it: runtimes take the first "
            "file by name",
        )
    elif others:
        yield _warning(
            f"another network's configuration is there: {', '.join(others)}",
            "ours comes first and is used; remove the other once nobody uses it",
        )


def _pools(facts: Facts) -> Iterator[Found]:
    if facts.pools is None:
        yield _unknown(f"the pools are not known: {facts.store_error}")
        return
    for one, other in combinations(facts.pools, 2):
        if _overlap(one.cidr, other.cidr):
            yield _error(
                f"IPPools {one.name} ({one.cidr}) and {other.name} ({other.cidr}) overlap",
                "make them disjoint: two nodes could give out one address",
            )
    for pool in facts.pools:
        for uplink in facts.uplinks:
            for network in uplink.networks:
                if _overlap(pool.cidr, network):
                    yield _error(
                        f"IPPool {pool.name} ({pool.cidr}) overlaps {network} on {uplink.ifname}",
                        "choose a pool that no link of a node is in",
                    )


def _foreign_routes(facts: Facts) -> Iterator[Found]:
    remedy = "find who adds it (another CNI's leftovers, a static route) and remove it"
    for foreign in facts.foreign_routes:
        prefix, sentence, beside = foreign.prefix, foreign.words, foreign.beside
        if prefix.endswith("/0"):
            # A default route of the machine's own is an operator's wish.
            continue
        if beside is Beside.INSTEAD_OF_OURS:
            yield _error(f"the kernel uses a route that is not ours: {sentence}", remedy)
        elif beside is Beside.BEHIND_OURS:
            yield _warning(
                f"another program has a route in the place of ours, which is in front of it and "
                f"used: {sentence}",
                remedy,
            )
        else:
            for pool in facts.pools or ():
                if _overlap(pool.cidr, prefix):
                    yield _error(
                        f"a route that is not ours lies in IPPool {pool.name}: {sentence}", remedy
                    )


def _mtu(facts: Facts) -> Iterator[Found]:
    for uplink in facts.uplinks:
        if uplink.mtu_bytes < MIN_MTU_BYTES:
            yield _error(
                f"{uplink.ifname} has MTU {uplink.mtu_bytes}",
                f"IPv6 needs {MIN_MTU_BYTES} (RFC 8200)",
            )
    if len({uplink.mtu_bytes for uplink in facts.uplinks}) > 1:
        told = ", ".join(f"{u.ifname} {u.mtu_bytes}" for u in facts.uplinks)
        yield _warning(
            f"uplinks have different MTUs: {told}",
            "give all of them the same, or start the agent with --mtu of the smallest",
        )
    least = min((uplink.mtu_bytes for uplink in facts.uplinks), default=None)
    bigger = [pod for pod in facts.pods if least is not None and pod["mtu_bytes"] > least]
    if bigger:
        yield _error(
            f"{len(bigger)} pods have a bigger MTU than an uplink ({least}), for instance "
            f"{bigger[0]['namespace']}/{bigger[0]['pod']} {bigger[0]['mtu_bytes']}",
            "raise the uplink's MTU, or make those pods anew",
        )


def _port_179(facts: Facts) -> Iterator[Found]:
    for listener in facts.listeners:
        yield _warning(
            f"something listens at {listener} port 179",
            "another BGP daemon (BIRD, FRR, another CNI's agent) may hold the port; with the "
            "node-to-node mesh it is ExaBGP itself",
        )


def _clock(facts: Facts) -> Iterator[Found]:
    if facts.is_clock_synchronised is False:
        yield _warning(
            "the kernel says that the clock is not synchronised",
            "run chrony or systemd-timesyncd: certificates and journals need the time",
        )


def _disk(facts: Facts) -> Iterator[Found]:
    for path in facts.read_only:
        yield _error(
            f"{path} is mounted read-only",
            "see the kernel's log for why (an error of the disk?), and mount it writable again",
        )
    if facts.state_free_percent is not None and facts.state_free_percent < LEAST_FREE_PERCENT:
        yield _error(
            f"{facts.state_free_percent:.1f} % free where the agent keeps its state",
            "make room: the store and the record of released addresses are written there",
        )


def _agent(facts: Facts) -> Iterator[Found]:
    if facts.status is None:
        yield _error(
            facts.agent_error or "no agent answers", "see that `slash32 agent` runs, and its log"
        )
        return
    for sentence in facts.status["findings"]:
        if not sentence.startswith("peer "):
            yield _error(sentence, "see `slash32 status --local`, and `slash32 explain` for a pod")


def _sessions(facts: Facts) -> Iterator[Found]:
    for peer in facts.peers:
        if peer["state"] != "Established":
            yield _error(
                f"{peer['peer']} ({peer['name']}) is {peer['state']}: "
                f"{peer.get('cause') or peer['reason'] or 'no reason is known'}",
                str(peer.get("remedy") or "see `slash32 peers --local`"),
            )
        elif peer["received"] == 0 and (peer["since_s"] or 0) > 10:
            yield _warning(
                f"{peer['peer']} ({peer['name']}) is Established and has sent nothing",
                "if it should: FRR without a route-map in and out drops everything on eBGP "
                "sessions (RFC 8212; `(Policy)` in `show bgp summary`)",
            )


CHECKS: tuple[tuple[str, Check, bool], ...] = (
    ("root", _root, True),
    ("kernel", _kernel, True),
    ("programs", _programs, True),
    ("ip-forward", _ip_forward, True),
    ("rp-filter", _rp_filter, True),
    ("accept-ra", _accept_ra, True),
    ("ipv6", _ipv6, True),
    ("neighbour-table", _neighbour_table, True),
    ("networkd", _networkd, True),
    ("network-manager", _network_manager, True),
    ("conflists", _conflists, True),
    ("pools", _pools, True),
    ("foreign-routes", _foreign_routes, True),
    ("mtu", _mtu, True),
    ("port-179", _port_179, True),
    ("clock", _clock, True),
    ("disk", _disk, True),
    ("agent", _agent, False),
    ("sessions", _sessions, False),
)
"""(id, check, whether it has a meaning before the installation)."""


def diagnose(facts: Facts, *, pre_install: bool = False) -> list[Finding]:
    """Every check's findings, in order; one that finds nothing says ok."""
    found: list[Finding] = []
    for name, check, is_early in CHECKS:
        if pre_install and not is_early:
            continue
        results = [Finding(name, *each) for each in check(facts)]
        found += results or [Finding(name, Severity.OK, "")]
    return found


def _overlap(one: str, other: str) -> bool:
    first, second = ip_network(one, strict=False), ip_network(other, strict=False)
    return first.version == second.version and first.overlaps(second)
