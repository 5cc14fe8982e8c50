"""B5: a peer that sends more than its maxPrefixes, from a raw speaker against the whole node.

What costs the agent memory and time is not a prefix but attributes that no other prefix has: a
router sends few of them, a hostile peer one with every prefix. So both are tried; meanwhile the
agent must answer whoever asks it, and give pods their addresses.
"""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from lab.chaos.hostile import (
    OPTIONAL,
    ORIGIN,
    PATH,
    Raw,
    as_path,
    attribute,
    ends,
    next_hop,
    prefixes_via,
    raw_speaker,
    update,
)
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.world import World
from lab.plan import TOR_ASN
from routing.asking import Unreachable, ask

LIMIT = 100
GROWTH_MAX_MIB = 50.0
ANSWER_MAX_S = 1.0
"""How long an answer of the agent, and an ADD, may take while prefixes pour in."""
ASK_TIMEOUT_S = 60.0
MANY_LIMIT = 1_000
WELCOME_BITS = 28
WELCOME = f"""apiVersion: slash32.io/v1
kind: IPPool
metadata: {{name: flooded}}
spec: {{cidr: 100.64.0.0/10, blockSize: {WELCOME_BITS}, disabled: true}}
"""
"""Room for 262,144 blocks, of which no node claims one."""


def too_many(world: World, verdict: Verdict) -> None:
    """50,000 prefixes of the pool, 900 of them blocks, from a peer whose limit is 100."""
    _, far = ends(world, "tor2", "node1")
    hop = str(far)
    _fresh_agent(world)
    with raw_speaker(world, "tor2") as raw:
        raw.wait_up()
        with world.peer_edited("node1", "tor2", {"maxPrefixes": LIMIT}):
            _exceed(world, verdict, raw, hop)
        # What is beyond the limit is kept, in a few bytes each: the peer need not say it again.
        freed_s = world.wait(
            lambda: len(prefixes_via(world, hop)) > 800, "the blocks, once there is no limit"
        )
        verdict.note(f"all installed {freed_s:.1f} s after the limit was lifted")
    world.settled()


def _exceed(world: World, verdict: Verdict, raw: Raw, hop: str) -> None:
    attributes = ORIGIN + PATH + next_hop(hop)
    base, beyond = int(ip_address("10.244.16.0")), "10.244.240.192/26"
    before_kib = _memory_kib(world)
    for first in range(0, 50_000, 500):
        # Single addresses: well formed, and none of them welcome.
        some = (b"\x20" + struct.pack("!I", base + first + n) for n in range(500))
        raw.send(update(attributes, b"".join(some)))
    blocks = (b"\x1a" + struct.pack("!I", base + 64 * n) for n in range(900))
    for block in blocks:
        raw.send(update(attributes, block))
    told_s = world.wait(
        lambda: "max-prefix" in json.dumps(world.ask("node1", "routes", beyond)),
        f"{beyond} to be refused by the limit",
    )
    # Asked, it answers from what it knows by then; the kernel follows in the next pass.
    world.wait(lambda: len(prefixes_via(world, hop)) >= LIMIT, "what is within the limit")
    installed = len(prefixes_via(world, hop))
    grown_mib = (_memory_kib(world) - before_kib) / 1024
    alive = world.is_up_at("tor1", "node1")
    verdict.note(
        f"told after {told_s:.1f} s, {installed} installed, agent grew by {grown_mib:.0f} MiB"
    )
    verdict.must(installed <= LIMIT, f"{installed} routes installed")
    verdict.must(alive, "the session with the other router was lost")
    verdict.must(grown_mib < GROWTH_MAX_MIB, f"the agent grew by {grown_mib:.0f} MiB")


def _fresh_agent(world: World) -> None:
    """Another one: what an earlier row made it grow by would hide what this one does."""
    world.kill("agent-node1")
    world.start_agent("node1")
    world.settled()


def _memory_kib(world: World) -> int:
    text = Path(f"/proc/{world.process('agent-node1').pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0])


# -- each prefix with attributes of its own --------------------------------------------------------


@dataclass
class Answers:
    """How long the agent's answers took, and an ADD."""

    number: int = 0
    longest_s: float = 0.0
    add_s: float = 0.0


@contextmanager
def asked_all_the_time(world: World) -> Iterator[Answers]:
    """Somebody asks node1's agent for its status ten times a second."""
    found, is_over = Answers(), threading.Event()
    socket = world.lab.paths.run_dir("node1") / "agent.sock"

    def go_on() -> None:
        while not is_over.wait(0.1):
            begun_s = time.monotonic()
            with suppress(Unreachable):
                ask(socket, "status", timeout_s=ASK_TIMEOUT_S)
                found.number += 1
            found.longest_s = max(found.longest_s, time.monotonic() - begun_s)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()


def _own_attributes(number: int, hop: str) -> bytes:
    """Such as no other number has: an AS path and a MED."""
    med = attribute(OPTIONAL, 4, struct.pack("!I", number))
    return ORIGIN + as_path(TOR_ASN, 100_000 + number, 65010) + next_hop(hop) + med


def _messages(total: int, hop: str) -> Iterator[bytes]:
    """``total`` UPDATEs of one prefix each: of every five one is unwelcome, a single address."""
    first = int(ip_address("100.64.0.0"))
    for number in range(total):
        length = 32 if number % 5 == 4 else WELCOME_BITS
        prefix = bytes((length,)) + struct.pack("!I", first + 16 * number)
        yield update(_own_attributes(number, hop), prefix)


def own_attributes(total: int) -> Callable[[World, Verdict], None]:
    """The experiment with so many prefixes."""

    def run(world: World, verdict: Verdict) -> None:
        _, far = ends(world, "tor2", "node1")
        _fresh_agent(world)
        world.apply(WELCOME)
        try:
            with raw_speaker(world, "tor2") as raw:
                raw.wait_up()
                _flood(world, verdict, raw, str(far), total)
        finally:
            world.delete("ippool", "flooded")
        world.settled()

    return run


def _status(world: World) -> str:
    rows = world.ask("node1", "status")
    return json.dumps(rows)


def _flood(world: World, verdict: Verdict, raw: Raw, hop: str, total: int) -> None:
    """Three quarters of the limit, then all; then without the limit."""
    messages = list(_messages(total, hop))
    welcome = total - total // 5
    last = IPv4Address(int(ip_address("100.64.0.0")) + 16 * (total - 2))
    beyond, sessions = f"{last}/{WELCOME_BITS}", world.session_lines("tor1")
    before_kib = _memory_kib(world)
    with world.peer_edited("node1", "tor2", {"maxPrefixes": MANY_LIMIT}):
        for message in messages[: MANY_LIMIT * 8 // 10]:
            raw.send(message)
        world.wait(lambda: "75 % are reached" in _status(world), "three quarters to be told")
        with asked_all_the_time(world) as answers:
            begun_s = time.monotonic()
            for message in messages[MANY_LIMIT * 8 // 10 :]:
                raw.send(message)
            answers.add_s = _add(world)
            world.wait(
                lambda: f"sends {total} prefixes" in _status(world),
                f"all {total} to have come and to be told",
                deadline_s=180.0,
            )
            told_s = time.monotonic() - begun_s
        world.wait(
            lambda: "max-prefix" in json.dumps(world.ask("node1", "routes", beyond)),
            f"{beyond} to be refused by the limit",
        )
        installed = len(prefixes_via(world, hop))
        grown_mib = (_memory_kib(world) - before_kib) / 1024
    with asked_all_the_time(world) as lifted:
        freed_s = world.wait(
            lambda: len(prefixes_via(world, hop)) >= welcome,
            "all that is welcome, once there is no limit",
            deadline_s=120.0,
        )
    verdict.note(
        f"75 % told; all told after {told_s:.1f} s, {installed} installed, agent grew by "
        f"{grown_mib:.0f} MiB; meanwhile the longest of {answers.number} answers took "
        f"{answers.longest_s:.2f} s, an ADD {answers.add_s:.2f} s; all {welcome:,} welcome ones "
        f"installed {freed_s:.1f} s after the limit was lifted (longest answer "
        f"{lifted.longest_s:.2f} s)"
    )
    verdict.must(installed == MANY_LIMIT, f"{installed} routes installed")
    verdict.must(world.session_lines("tor1") == sessions, "the other session was touched")
    verdict.must(grown_mib < GROWTH_MAX_MIB, f"the agent grew by {grown_mib:.0f} MiB")
    verdict.must(answers.longest_s < ANSWER_MAX_S, f"an answer took {answers.longest_s:.2f} s")
    verdict.must(
        lifted.longest_s < ANSWER_MAX_S,
        f"after the limit was lifted an answer took {lifted.longest_s:.2f} s",
    )
    verdict.must(answers.add_s < ANSWER_MAX_S, f"an ADD took {answers.add_s:.2f} s")


def _add(world: World) -> float:
    """How long an ADD takes now."""
    with world.extra_pod("node1", "b5") as (sandbox, _):
        begun_s = time.monotonic()
        world.lab.runtime_of("node1").add(sandbox)
        return time.monotonic() - begun_s


_TWO = Stage.TWO_TORS

ROWS = [
    Row("B5", "50,000 prefixes, of which 900 are welcome, limit 100",
        "told, at most 100 installed, +50 MiB at most, the other session lives; "
        "without limit all come", _TWO, too_many),
    Row("B5b", "50,000 prefixes, each with attributes of its own, four of five welcome, limit "
        "1,000", "told at 75 % and beyond; 1,000 installed, +50 MiB at most; agent answers within "
        "1 s, before and after the limit is lifted, and so does an ADD; the other "
        "session untouched; without limit all come",
        _TWO, own_attributes(50_000)),
    Row("B5c", "the same with 10,000", "the same", _TWO, own_attributes(10_000)),
]  # fmt: skip
