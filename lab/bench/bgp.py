"""``python -m lab.bench.bgp``: UPDATE to kernel, ours beside BIRD 2, FRR and GoBGP, in one run.

Method: two routers that only announce (announcer.py) and one system under test, each in a network
namespace, over veth pairs. The systems take turns within every cell and round, and each is started
anew for it. A time ends when sampled prefixes, the first and the last among them, are in the kernel
as they should be, and a dump then counts them all. GoBGP programs no kernel here: its times end in
its RIB, which is asked by its own command line, and so are upper bounds by some 30 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6

from cni import netlink as nl
from cni.netlink import NetlinkError
from cni.netlink_socket import NetlinkSocket
from lab import namespaces
from lab.bench.announcer import END_OF_RIB, Announcer, Load, Prefix, open_netns
from lab.bench.figures import percentile
from lab.bench.speaker_alone import SpeakerAlone
from lab.bench.systems import PEER_ASN, SYSTEMS, Slash32, System, own, router, router_v6
from lab.interrupts import Interrupted, interruptible
from lab.plan import LabFailure

DEADLINE_S = 60.0
POLL_S = 0.001
LATENCY_ROUNDS = 50
SETTLE_S = 1.0
ANNOUNCE_ROUNDS = 40
BIRD_TARGETS = {"load": 1.0, "member_lost": 0.1, "next_hop_lost": 0.1}
"""The ratio to BIRD not to exceed, by bench, from 10,000 prefixes on."""
OWN_TARGETS = {"peak_memory": (100_000, 150.0), "keepalive_gap": (0, 4.5)}
"""What ours is not to exceed, whoever the peer: up to this many prefixes, the value."""
HOWS = {"packed": (True, None), "single": (False, None), "one-path": (False, 1)}
BLOCKS = 4
"""Prefixes of each path where the number of paths is asked for: the blocks of a node."""


OURS = (Slash32.name, SpeakerAlone.name)
ALL_SYSTEMS: dict[str, type[System]] = {**SYSTEMS, SpeakerAlone.name: SpeakerAlone}


class NotInTime(LabFailure):
    """The system did not get there."""


class Kernel:
    """The forwarding table of the system's namespace, looked at from outside."""

    def __init__(self, netns_fd: int) -> None:
        self._socket = NetlinkSocket(netns_fd=netns_fd, receive_buffer_bytes=8 << 20)

    def gateways(self, prefix: Prefix) -> frozenset[str] | None:
        """Where the route of exactly this prefix leads; None when there is none."""
        family = AF_INET if prefix.version == 4 else AF_INET6
        body = nl.RTMSG.pack(family, prefix.max_prefixlen, 0, 0, 0, 0, 0, 0, nl.RTM_F_FIB_MATCH)
        body += nl.attribute(nl.RTA_DST, prefix.network_address.packed)
        try:
            answer = self._socket.get(nl.RTM_GETROUTE, body)
        except NetlinkError:
            return None
        if answer[1] != prefix.prefixlen or answer[7] != nl.RTN_UNICAST:
            return None
        parts = nl.attributes(answer, nl.RTMSG.size)
        found = [parts]
        multipath = parts.get(nl.RTA_MULTIPATH, b"")
        offset = 0
        while offset + nl.RTNEXTHOP.size <= len(multipath):
            length = int.from_bytes(multipath[offset : offset + 2], "little")
            found.append(nl.attributes(multipath[offset + nl.RTNEXTHOP.size : offset + length]))
            offset += (length + 3) & ~3
        hops = [each.get(nl.RTA_GATEWAY) for each in found]
        return frozenset(str(ip_address(hop)) for hop in hops if hop is not None)

    def count(self, load: Load) -> int:
        """How many routes of this length there are."""
        family = AF_INET if load.version == 4 else AF_INET6
        length, found = load.prefix(0).prefixlen, 0

        def keep(body: bytes) -> bool:
            nonlocal found
            found += body[1] == length
            return False

        body = nl.RTMSG.pack(family, 0, 0, 0, nl.RT_TABLE_MAIN, 0, 0, 0, 0)
        with contextlib.suppress(NetlinkError):
            self._socket.dump(nl.RTM_GETROUTE, body, keep=keep)
        return found


@dataclass(slots=True)
class Figures:
    """Samples by (bench, prefixes, paths, how, unit) and system."""

    samples: dict[tuple[str, int, int, str, str], dict[str, list[float]]] = field(
        default_factory=dict
    )

    def note(self, bench: str, load: Load, system: System, value: float, unit: str = "s") -> None:
        how = f"{load.how} v{load.version}"
        cell = self.samples.setdefault((bench, load.count, load.paths, how, unit), {})
        cell.setdefault(system.name, []).append(value)

    def rows(self) -> Iterator[tuple[str, int, int, str, str, float, str, float | None]]:
        """(bench, n, paths, how, unit, ours, peer's name, peer's median) of each pair."""
        for (bench, count, paths, how, unit), cell in self.samples.items():
            own_name = next((each for each in OURS if each in cell), "")
            if not own_name:
                continue
            ours = cell[own_name]
            peers = [name for name in cell if name not in OURS]
            for name in peers or ["-"]:
                theirs = statistics.median(cell[name]) if name in cell else None
                middle = statistics.median(ours)
                yield bench, count, paths, how, unit, middle, name, theirs


class Stage:
    """Two routers and the namespace of the system under test."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._runs = 0
        prefix = f"s32bgp-{os.getpid()}"
        self.namespace = f"{prefix}-sut"
        self.routers: dict[int, Announcer] = {}
        try:
            self._build(prefix)
        except BaseException:
            self._stack.close()
            raise

    def _build(self, prefix: str) -> None:
        def make(name: str) -> int:
            namespaces.create([name])
            self._stack.callback(namespaces.delete, name)
            fd = open_netns(name)
            self._stack.callback(os.close, fd)
            return fd

        sut_fd = make(self.namespace)
        for number in (1, 2):
            name = f"{prefix}-r{number}"
            fd = make(name)
            namespaces.ip_batch(
                self.namespace,
                [
                    f"link add up{number} type veth peer name down0 netns {name}",
                    f"addr add {own(number)}/24 dev up{number}",
                    f"addr add 2001:db8:99:{number}::1/64 dev up{number} nodad",
                    f"link set up{number} up",
                ],
            )
            namespaces.ip_batch(
                name,
                [
                    *(f"addr add {router(number, host)}/24 dev down0" for host in (2, 3)),
                    *(f"addr add {router_v6(number, host)}/64 dev down0 nodad" for host in (2, 3)),
                    "link set down0 up",
                ],
            )
            self.routers[number] = Announcer(fd, router(number), PEER_ASN)
            self._stack.callback(self.routers[number].close)
        self.kernel = Kernel(sut_fd)

    @contextlib.contextmanager
    def running(self, kind: type[System], routers: Sequence[int]) -> Iterator[System]:
        """One system with sessions to these routers; its routes are gone at the end."""
        self._runs += 1
        system = kind(self._directory / f"{self._runs}-{kind.name}", self.namespace)
        try:
            system.start(routers)
            for number in routers:
                self.routers[number].await_session()
            yield system
        finally:
            for each in self.routers.values():
                each.end_session()
            system.stop()
            self._flush()

    def _flush(self) -> None:
        """Takes all routes of whoever ran, and sees that they are gone.

        Raises:
            LabFailure: they are not; the next system would find them.
        """
        # With its object a route goes; `ip route flush` cannot name those that have one.
        with contextlib.suppress(LabFailure):
            namespaces.run(["ip", "nexthop", "flush"], namespace=self.namespace)
        for version in ("-4", "-6"):
            for protocol in ("132", "bird", "bgp", "zebra"):
                flush = ["ip", version, "route", "flush", "proto", protocol]
                with contextlib.suppress(LabFailure):
                    namespaces.run(flush, namespace=self.namespace)
        left = sum(self.kernel.count(Load(1, version)) for version in (4, 6))
        if left:
            raise LabFailure(f"{left} routes are left in the kernel")

    def until(self, system: System, load: Load, wanted: frozenset[str], what: str) -> float:
        """The time at which every route leads to exactly ``wanted``; empty: there is none left.

        Raises:
            NotInTime: it never came.
        """
        end_s = time.monotonic() + DEADLINE_S
        count = load.count if wanted else 0
        samples = load.samples()
        while time.monotonic() < end_s:
            if not system.programs_kernel:
                if system.route_count(load) == count:
                    return time.monotonic()
                continue
            # The first that is not there yet is asked first next time.
            while samples and self._is(samples[-1], wanted):
                samples.pop()
            now_s = time.monotonic()
            if not samples:
                if all(self._is(p, wanted) for p in load.samples()) and (
                    self.kernel.count(load) == count
                ):
                    return now_s
                samples = load.samples()
            time.sleep(POLL_S)
        raise NotInTime(f"{system.name}: {what}: not within {DEADLINE_S:g} s")

    def _is(self, prefix: Prefix, wanted: frozenset[str]) -> bool:
        return (self.kernel.gateways(prefix) or frozenset()) == wanted

    def close(self) -> None:
        """Ends the routers and removes the namespaces."""
        self._stack.close()


class Bench:
    """One run over all cells."""

    def __init__(self, stage: Stage, systems: Sequence[type[System]]) -> None:
        self._stage, self._systems = stage, systems
        self._failed: set[tuple[str, str, str, int]] = set()
        self.figures = Figures()

    def each(self, name: str, load: Load) -> None:
        """Every system in turn; one that fails is said to, and the rest goes on.

        Who failed is not asked the same again, with more prefixes or in another round: it would
        take its whole deadline each time.
        """
        work: Callable[[type[System], Load], None] = getattr(self, name)
        what = f"{name} {load}"
        for kind in self._systems:
            question = kind.name, name, f"{load.how} {load.origins}", load.version
            if question in self._failed:
                print(f"bench: {what}: {kind.name} has failed before; not asked", flush=True)
                continue
            print(f"bench: {what}: {kind.name}", flush=True)
            try:
                work(kind, load)
            except (LabFailure, OSError) as error:
                self._failed.add(question)
                print(f"bench: {what}: {kind.name} FAILED: {error}", flush=True)

    def table(self, kind: type[System], load: Load) -> None:
        """Session up to the last route; all next hops changed; all withdrawn; CPU, memory."""
        stage, first = self._stage, self._stage.routers[1]
        hop = _next_hop(load, 1)
        with stage.running(kind, [1]) as system:
            time.sleep(SETTLE_S)
            before_s = system.cpu_s()
            for bench, data, wanted in (
                ("load", load.announce(ip_address(hop), PEER_ASN), {hop}),
                ("change", load.announce(ip_address(_next_hop(load, 1, 3)), PEER_ASN),
                 {_next_hop(load, 1, 3)}),
                ("withdraw", load.withdraw(), set()),
            ):  # fmt: skip
                if bench == "change" and not system.programs_kernel:
                    continue
                started_s = time.monotonic()
                first.send(data + END_OF_RIB)
                done_s = stage.until(system, load, frozenset(wanted), bench)
                self.figures.note(bench, load, system, done_s - started_s)
                if bench == "load":
                    self.figures.note("load_cpu", load, system, system.cpu_s() - before_s)
                    self.figures.note("peak_memory", load, system, system.peak_mib(), "MiB")
            self.figures.note("keepalive_gap", load, system, first.longest_gap_s())

    def member(self, kind: type[System], load: Load) -> None:
        """One of two equally good routers goes: every route leads to the other."""
        stage = self._stage
        hops = [_next_hop(load, number) for number in (1, 2)]
        if not kind.programs_kernel:
            return
        with stage.running(kind, [1, 2]) as system:
            for number, hop in enumerate(hops, 1):
                data = load.announce(ip_address(hop), PEER_ASN)
                stage.routers[number].send(data + END_OF_RIB)
            stage.until(system, load, frozenset(hops), "both next hops")
            started_s = time.monotonic()
            stage.routers[2].end_session()
            done_s = stage.until(system, load, frozenset(hops[:1]), "one next hop")
            self.figures.note("member_lost", load, system, done_s - started_s)

    def moved(self, kind: type[System], load: Load) -> None:
        """The better of two routers goes, then the other: every route moves, and then goes."""
        stage = self._stage
        hops = [_next_hop(load, number) for number in (1, 2)]
        if not kind.programs_kernel:
            return
        with stage.running(kind, [1, 2]) as system:
            for number, hop in enumerate(hops, 1):
                detour = (64998, 64999) if number == 2 else ()
                data = load.announce(ip_address(hop), PEER_ASN, detour=detour)
                stage.routers[number].send(data + END_OF_RIB)
            stage.until(system, load, frozenset(hops[:1]), "the better next hop")
            time.sleep(SETTLE_S)
            for number, wanted, bench in ((1, hops[1:], "next_hop_lost"), (2, [], "all_lost")):
                started_s = time.monotonic()
                stage.routers[number].end_session()
                done_s = stage.until(system, load, frozenset(wanted), bench)
                self.figures.note(bench, load, system, done_s - started_s)

    def announce(self, kind: type[System], load: Load) -> None:
        """A prefix of ours, from the system's own interface to the peer, on a full table."""
        stage, first = self._stage, self._stage.routers[1]
        if load.version != 4 or kind.announce is System.announce:
            return
        with stage.running(kind, [1]) as system:
            first.send(load.announce(ip_address(_next_hop(load, 1)), PEER_ASN) + END_OF_RIB)
            if system.programs_kernel or isinstance(system, SpeakerAlone):
                hop = frozenset({_next_hop(load, 1)})
                stage.until(system, load, hop, "the full table")
            time.sleep(SETTLE_S)
            samples: list[float] = []
            for index in range(ANNOUNCE_ROUNDS):
                # No two of them are halves of one: ours would announce that instead.
                prefix = _One(1, first=200_000 + 4 * index).prefix(0)
                started_s = time.monotonic()
                system.announce(str(prefix))
                heard_s = first.heard_of(prefix, within_s=DEADLINE_S)
                samples.append((heard_s - started_s) * 1000)
                time.sleep(0.05)
            for percent in (50, 99):
                value = percentile(samples, percent)
                self.figures.note(f"announce_p{percent}", load, system, value, "ms")

    def latency(self, kind: type[System], load: Load) -> None:
        """One prefix more on a full table, again and again."""
        stage, first = self._stage, self._stage.routers[1]
        hop = _next_hop(load, 1)
        if not kind.programs_kernel:
            return
        samples: list[float] = []
        with stage.running(kind, [1]) as system:
            first.send(load.announce(ip_address(hop), PEER_ASN) + END_OF_RIB)
            stage.until(system, load, frozenset({hop}), "the full table")
            for index in range(LATENCY_ROUNDS):
                one = _One(1, load.version, first=load.count + index)
                data = one.announce(ip_address(hop), PEER_ASN)
                started_s = time.monotonic()
                first.send(data)
                while stage.kernel.gateways(one.prefix(0)) is None:
                    if time.monotonic() - started_s > DEADLINE_S:
                        raise NotInTime(f"{system.name}: one prefix more")
                samples.append((time.monotonic() - started_s) * 1000)
                time.sleep(0.02)
            for percent in (50, 99):
                value = percentile(samples, percent)
                self.figures.note(f"latency_p{percent}", load, system, value, "ms")


@dataclass(frozen=True, slots=True)
class _One(Load):
    """One prefix beyond those of a table."""

    first: int = 0

    def prefix(self, index: int) -> Prefix:
        return Load.prefix(self, self.first + index)


def _next_hop(load: Load, number: int, host: int = 2) -> str:
    return router(number, host) if load.version == 4 else router_v6(number, host)


def table(figures: Figures) -> str:
    """The rows for people, with what was to be reached."""
    lines = [("bench", "n", "paths", "how", "ours", "peer", "", "unit", "ratio", "target", "")]
    for bench, count, paths, how, unit, ours, name, theirs in figures.rows():
        ratio = ours / theirs if theirs else None
        target = BIRD_TARGETS.get(bench) if name == "bird" and count >= 10_000 else None
        verdict = ""
        if target is not None and ratio is not None:
            verdict = "reached" if ratio <= target else "MISSED"
        most, limit = OWN_TARGETS.get(bench, (0, None))
        if limit is not None and (not most or count <= most):
            target, verdict = limit, "reached" if ours <= limit else "MISSED"
        told = "-" if theirs is None else f"{theirs:.4g}"
        times = "-" if ratio is None else f"{ratio:.2f}"
        goal = "" if target is None else f"<= {target:g}"
        cell = bench, str(count), str(paths), how
        lines.append((*cell, f"{ours:.4g}", name, told, unit, times, goal, verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def asked_tables(sizes: str | None, paths: str | None) -> list[tuple[int, int | None]]:
    """How many prefixes each table has and of how many paths; None: as the announcer has it."""
    counts = [int(each) for each in sizes.split(",")] if sizes else []
    if paths is None:
        return [(count, None) for count in counts or (1000, 10_000, 50_000, 100_000)]
    wanted = [int(each) for each in paths.split(",")]
    if not counts:
        return [(BLOCKS * each, each) for each in wanted]
    return [(count, each) for count in counts for each in wanted if each <= count]


def main() -> int:
    """Runs the cells that are asked for; prints the table and writes the file."""
    parser = argparse.ArgumentParser(prog="bench-bgp", description=__doc__)
    parser.add_argument("--sizes", help="prefixes; 1000,10000,50000,100000 if none is given")
    parser.add_argument(
        "--paths", help=f"distinct AS_PATHs; without --sizes, {BLOCKS} prefixes of each"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--families", default="4,6")
    parser.add_argument("--benches", default="table,member,moved,latency,announce")
    parser.add_argument("--how", default="packed,single", help="and one-path: one attribute block")
    parser.add_argument("--out", default="build/bench-bgp.jsonl")
    options = parser.parse_args()
    systems = [ALL_SYSTEMS[name] for name in options.systems.split(",")]
    benches = options.benches.split(",")
    tables = asked_tables(options.sizes, options.paths)
    with tempfile.TemporaryDirectory(prefix="s32bgp-") as directory, interruptible():
        stage = Stage(Path(directory))
        bench = Bench(stage, systems)
        try:
            for count, paths in tables:
                for version in map(int, options.families.split(",")):
                    for _ in range(options.rounds):
                        for how in options.how.split(","):
                            is_packed, origins = HOWS[how]
                            load = Load(count, version, is_packed, origins or paths)
                            for name in benches:
                                # Only how a table comes depends on how it is packed.
                                if is_packed or name == "table":
                                    bench.each(name, load)
        except Interrupted:
            print("bench: interrupted; what there is:", flush=True)
        finally:
            stage.close()
    print(table(bench.figures))
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w") as lines:
        for each, count, of_paths, how, unit, ours, name, theirs in bench.figures.rows():
            row = {
                "bench": f"{each} {how}", "n": count, "paths": of_paths, "ours": ours,
                "peer_name": name, "peer": theirs, "unit": unit,
                "ratio": ours / theirs if theirs else None,
            }  # fmt: skip
            lines.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
