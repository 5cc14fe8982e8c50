"""B: hostile or broken BGP input, from a raw speaker in a router's place, against the whole node.

Each bad message names a prefix of its own that would be welcome if the message were sound, and was:
it was announced soundly before, and is in the kernel. After the bad message comes a sound UPDATE;
when that one's route is in the kernel, the bad one has been dealt with, and by the classes of RFC
7606 its prefix is gone (treat-as-withdraw), still there (attribute discard), or the session has
ended and is up again (session reset).
"""

from __future__ import annotations

import json
import select
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, ip_address, ip_network
from itertools import count
from pathlib import Path

from lab import namespaces
from lab.chaos.raw_speaker import MARKER
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.world import World
from lab.plan import TOR_ASN, LabFailure

SPEAKER = Path(__file__).with_name("raw_speaker.py")
UP_DEADLINE_S = 90.0
OURS = 64601
"""node1's ASN in every lab."""

WELL_KNOWN, OPTIONAL, PARTIAL_OPTIONAL = 0x40, 0x80, 0xC0


def attribute(flags: int, code: int, value: bytes) -> bytes:
    return struct.pack("!BBB", flags, code, len(value)) + value


def as_path(*asns: int) -> bytes:
    body = struct.pack(f"!BB{len(asns)}I", 2, len(asns), *asns) if asns else b""
    return attribute(WELL_KNOWN, 2, body)


def nlri(prefix: str) -> bytes:
    network = ip_network(prefix)
    octets = (network.prefixlen + 7) // 8
    return bytes([network.prefixlen]) + network.network_address.packed[:octets]


def update(attributes: bytes, announced: bytes, withdrawn: bytes = b"") -> bytes:
    body = struct.pack("!H", len(withdrawn)) + withdrawn
    body += struct.pack("!H", len(attributes)) + attributes + announced
    return MARKER + struct.pack("!HB", 19 + len(body), 2) + body


ORIGIN = attribute(WELL_KNOWN, 1, b"\x00")
PATH = as_path(TOR_ASN, 65010)


def next_hop(address: str) -> bytes:
    return attribute(WELL_KNOWN, 3, ip_address(address).packed)


class Fate(Enum):
    """What RFC 7606 and our import policy make of a bad message."""

    WITHDRAWN = "treated as a withdrawal"
    KEPT = "kept without the attribute"
    RESET = "the session ended"
    DENIED = "never installed"


@dataclass(frozen=True, slots=True)
class Bad:
    """One bad message, and what is owed for it. A DENIED prefix could not be announced before."""

    what: str
    message: bytes
    prefix: str
    fate: Fate = Fate.WITHDRAWN


def bad_messages(hop: str, own: str, own_block: str, other_block: str) -> Iterator[Bad]:
    """The table. ``hop`` is a sound next hop; blocks as text; ``own`` an address of the node."""
    number = count(1)

    def fresh() -> str:
        return str(IPv4Network((int(ip_address("10.244.128.0")) + 64 * next(number), 26)))

    good = ORIGIN + PATH + next_hop(hop)

    def with_attributes(what: str, attributes: bytes, fate: Fate = Fate.WITHDRAWN) -> Bad:
        prefix = fresh()
        return Bad(what, update(attributes, nlri(prefix)), prefix, fate)

    yield with_attributes("ORIGIN 9", attribute(WELL_KNOWN, 1, b"\x09") + PATH + next_hop(hop))
    yield with_attributes(
        "ORIGIN of two octets", attribute(WELL_KNOWN, 1, b"\x00\x00") + PATH + next_hop(hop)
    )
    yield with_attributes("no ORIGIN", PATH + next_hop(hop))
    yield with_attributes("no AS_PATH", ORIGIN + next_hop(hop))
    yield with_attributes("no NEXT_HOP", ORIGIN + PATH)
    for address in ("0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"):  # noqa: S104
        yield with_attributes(f"NEXT_HOP {address}", ORIGIN + PATH + next_hop(address))
    yield with_attributes("NEXT_HOP is the node itself", ORIGIN + PATH + next_hop(own))
    yield with_attributes("NEXT_HOP off the link", ORIGIN + PATH + next_hop("203.0.113.9"))
    yield with_attributes(
        "NEXT_HOP of three octets", ORIGIN + PATH + attribute(WELL_KNOWN, 3, b"\x0a\x00\x00")
    )
    yield with_attributes("unknown well-known attribute", good + attribute(WELL_KNOWN, 99, b"x"))
    yield with_attributes("own ASN in AS_PATH", ORIGIN + as_path(TOR_ASN, OURS) + next_hop(hop))
    yield with_attributes("empty AS_PATH on eBGP", ORIGIN + as_path() + next_hop(hop))
    yield with_attributes(
        "AS_PATH with a cut segment",
        ORIGIN + attribute(WELL_KNOWN, 2, b"\x02\x04\x00\x00\xfc\x00") + next_hop(hop),
    )
    yield with_attributes(
        "AS_PATH with a segment of an unknown type",
        ORIGIN + attribute(WELL_KNOWN, 2, b"\x07\x01\x00\x00\xfc\x00") + next_hop(hop),
    )
    yield with_attributes(
        "AS_PATH with an empty segment",
        ORIGIN + attribute(WELL_KNOWN, 2, PATH[3:] + b"\x02\x00") + next_hop(hop),
    )
    yield with_attributes("ORIGIN as optional", attribute(0xC0, 1, b"\x00") + PATH + next_hop(hop))
    yield with_attributes("MED of two octets", good + attribute(OPTIONAL, 4, b"\x00\x01"))
    yield with_attributes(
        "ONLY_TO_CUSTOMER of three octets", good + attribute(PARTIAL_OPTIONAL, 35, b"\x00\x00\x01")
    )
    yield with_attributes(
        "communities of three octets", good + attribute(PARTIAL_OPTIONAL, 8, b"abc")
    )
    # RFC 7606 section 3g: the first of two counts.
    yield with_attributes(
        "two NEXT_HOPs, the first is the node itself", ORIGIN + PATH + next_hop(own) + next_hop(hop)
    )
    for what, extra in (
        ("ATOMIC_AGGREGATE of one octet", attribute(WELL_KNOWN, 6, b"x")),
        ("AGGREGATOR of five octets", attribute(PARTIAL_OPTIONAL, 7, b"abcde")),
        ("LOCAL_PREF on eBGP", attribute(WELL_KNOWN, 5, b"\x00\x00\x03\xe7")),
        ("ORIGINATOR_ID on eBGP", attribute(OPTIONAL, 9, b"abcd")),
        ("CLUSTER_LIST of three octets on eBGP", attribute(OPTIONAL, 10, b"abc")),
        ("an unknown optional attribute", attribute(PARTIAL_OPTIONAL, 99, b"x" * 40)),
    ):
        yield with_attributes(what, good + extra, Fate.KEPT)
    prefix = fresh()
    yield Bad(
        "attribute length beyond the message",
        _with_attribute_length(update(good, nlri(prefix)), 4000), prefix, Fate.RESET,
    )  # fmt: skip
    yield Bad("prefix length 33", update(good, b"\x21\x0a\xf4\xff\x00\x00"), fresh(), Fate.RESET)
    yield Bad("NLRI cut short", update(good, b"\x1a\x0a\xf4"), fresh(), Fate.RESET)
    for what, denied in (
        ("loopback", "127.0.0.0/8"), ("class E", "240.0.0.0/4"), ("multicast", "224.0.0.0/4"),
        ("link-local", "169.254.0.0/16"), ("the uplinks' own net", "172.30.0.0/16"),
        ("an unknown net", "8.8.8.0/24"), ("more than the pool", "10.0.0.0/8"),
        ("our own block", own_block), ("a part of our own block", f"{own_block[:-2]}28"),
        ("one address of our own block", f"{own_block[:-3]}/32"),
        ("one address of another node's block", f"{other_block[:-3]}/32"),
    ):  # fmt: skip
        yield Bad(what, update(good, nlri(denied)), denied, Fate.DENIED)


def _with_attribute_length(message: bytes, length: int) -> bytes:
    return message[:21] + struct.pack("!H", length) + message[23:]


class Raw:
    """The raw speaker, driven."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._buffer = b""

    def send(self, message: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it was started with one
        self._process.stdin.write(message.hex().encode() + b"\n")
        self._process.stdin.flush()

    def next(self, deadline_s: float) -> dict[str, object]:
        """The next event.

        Raises:
            LabFailure: none came in time.
        """
        assert self._process.stdout is not None  # noqa: S101
        end_s = time.monotonic() + deadline_s
        while b"\n" not in self._buffer:
            left_s = max(0.0, end_s - time.monotonic())
            if not select.select([self._process.stdout], [], [], left_s)[0]:
                raise LabFailure(f"the raw speaker said nothing for {deadline_s:g} s")
            data = self._process.stdout.read1(65536)  # type: ignore[attr-defined]
            if not data:
                raise LabFailure("the raw speaker has ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return dict(json.loads(line))

    def wait_up(self) -> None:
        while self.next(UP_DEADLINE_S)["event"] != "up":
            pass

    def events(self) -> list[dict[str, object]]:
        """Those that have come by now."""
        found = []
        while True:
            try:
                found.append(self.next(0.0))
            except LabFailure:
                return found


@contextmanager
def raw_speaker(world: World, tor: str, *, asn: int = TOR_ASN) -> Iterator[Raw]:
    """In a router's place: its BIRD is ended first, and started again after."""
    world.kill(f"bird-{tor}", signal.SIGTERM)
    machine = world.machine(tor)
    _, address = ends(world, tor, world.nodes[0])
    process = subprocess.Popen(
        namespaces.enter(
            machine.namespace,
            [sys.executable, "-I", "-S", str(SPEAKER), str(address), str(asn)],
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield Raw(process)
    finally:
        process.kill()
        process.communicate()
        world.start_router(tor)
        world.settled()


def bad_input(world: World, verdict: Verdict) -> None:
    """A sound route, each bad message about it, then a sound one whose route must come."""
    near, far = ends(world, "tor2", "node1")
    hop, own = str(far), str(near)
    own_block, other_block = (
        next(b for b in world.blocks_of(node) if "." in b) for node in world.nodes[:2]
    )
    markers = (str(IPv4Network((int(ip_address("10.244.64.0")) + 64 * n, 26))) for n in count())
    fates: Counter[Fate] = Counter()
    wrong = []

    def sound(prefix: str) -> bytes:
        return update(ORIGIN + PATH + next_hop(hop), nlri(prefix))

    def comes(prefix: str, what: str) -> None:
        raw.send(sound(prefix))
        world.wait(lambda: prefix in prefixes_via(world, hop), what)

    with raw_speaker(world, "tor2") as raw:
        raw.wait_up()
        table = list(bad_messages(hop, own, own_block, other_block))
        for bad in table:
            if bad.fate is not Fate.DENIED:
                comes(bad.prefix, f"the sound route that is to suffer: {bad.what}")
            raw.send(bad.message)
            marker = next(markers)
            raw.send(sound(marker))
            is_reset = _was_reset(world, raw, marker, hop)
            is_there = bad.prefix in prefixes_via(world, hop)
            if is_reset:
                comes(marker, f"a sound route after: {bad.what}")
            seen = Fate.RESET if is_reset else Fate.KEPT if is_there else Fate.WITHDRAWN
            owed = Fate.WITHDRAWN if bad.fate is Fate.DENIED else bad.fate
            if seen is not owed:
                wrong.append(f"{bad.what}: {seen.value}, owed: {owed.value}")
            fates[bad.fate] += 1
    verdict.note(
        f"{len(table)} bad messages: "
        + ", ".join(f"{number} {fate.value}" for fate, number in fates.items())
        + f"; {len(wrong)} otherwise than owed"
    )
    verdict.must(not wrong, "; ".join(wrong))


def ends(world: World, tor: str, node: str) -> tuple[object, object]:
    """The addresses of the link between them: the node's, the router's."""
    for near, far in world.lab.plan.links_of(world.machine(node)):
        if far.machine.name == tor:
            return near.ipv4, far.ipv4
    raise LabFailure(f"no link from {node} to {tor}")


def prefixes_via(world: World, hop: str) -> set[str]:
    return {line.split()[0] for line in world.own_routes("node1") if f" via {hop} " in f"{line} "}


def _was_reset(world: World, raw: Raw, marker: str, hop: str) -> bool:
    """Waits until the sound route is there or the session has ended and is up again."""
    down = False

    def settled() -> bool:
        nonlocal down
        for event in raw.events():
            if event["event"] == "down":
                down = True
            if event["event"] == "up" and down:
                return True
        return not down and marker in prefixes_via(world, hop)

    world.wait(settled, "a sound route, or a new session", UP_DEADLINE_S)
    return down


def frozen_agent(world: World, verdict: Verdict) -> None:
    """The agent frozen for 30 s: ExaBGP keeps every session; then all is as before."""
    sessions = [world.session_lines(tor) for tor in world.tors]
    with world.watching() as watch:
        world.send("agent-node1", signal.SIGSTOP)
        try:
            world.for_seconds(30.0)
        finally:
            world.send("agent-node1", signal.SIGCONT)
        back_s = world.wait(lambda: world.is_healthy("node1"), "a healthy agent")
    verdict.note(f"{watch}; healthy {back_s:.1f} s after it went on")
    verdict.must(watch.lost == 0, str(watch))
    verdict.must([world.session_lines(t) for t in world.tors] == sessions, "a session was touched")


_TWO = Stage.TWO_TORS

ROWS = [
    Row("B1", "a sound route, then one of the bad UPDATEs about it, then a sound one: malformed "
        "and missing attributes, next hops that cannot be, lengths that lie, prefixes of others",
        "by the classes of RFC 7606: gone from the kernel and the session kept; kept without the "
        "attribute; the session ended; sound routes accepted after each", _TWO, bad_input),
    Row("B8", "the agent frozen for 30 s", "0 lost, sessions untouched", _TWO, frozen_agent,
        control="R0"),
]  # fmt: skip
