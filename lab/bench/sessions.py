"""``python -m lab.bench.sessions``: what one node carries with many sessions.

So many fake peers against one real node, agent and speaker as in production: until all sessions are
up, CPU while nothing happens, memory, and until the first and the last peer has heard of one block.
docs/scale.md is computed from it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from lab import namespaces
from lab.bench.announcer import END_OF_RIB, Announcer, open_netns
from lab.bench.systems import PEER_ASN, Slash32
from lab.plan import LabFailure

IDLE_S = 10.0
SETTLE_S = 15.0
DEADLINE_S = 60.0
BLOCK = "10.1.0.0/26"


def addresses_of(count: int) -> list[str]:
    """Of the peers, all on one link."""
    return [f"10.98.{1 + index // 200}.{1 + index % 200}" for index in range(count)]


def measure(count: int, directory: Path) -> dict[str, float]:
    """One node with ``count`` sessions; seconds, per cent of one core, MiB."""
    prefix = f"s32ses-{os.getpid()}-{count}"
    addresses = addresses_of(count)
    with ExitStack() as stack:
        for end in ("n", "p"):
            namespaces.create([f"{prefix}-{end}"])
            stack.callback(namespaces.delete, f"{prefix}-{end}")
        namespaces.ip_batch(
            f"{prefix}-n",
            [
                f"link add up1 type veth peer name down0 netns {prefix}-p",
                "addr add 10.98.0.1/16 dev up1",
                "link set up1 up",
            ],
        )
        namespaces.ip_batch(
            f"{prefix}-p",
            [*(f"addr add {each}/16 dev down0" for each in addresses), "link set down0 up"],
        )
        fd = open_netns(f"{prefix}-p")
        stack.callback(os.close, fd)
        peers = [Announcer(fd, each, PEER_ASN) for each in addresses]
        for peer in peers:
            stack.callback(peer.close)
        system = Slash32(directory / str(count), f"{prefix}-n")
        stack.callback(system.stop)
        return _measure(system, peers, addresses)


def _measure(
    system: Slash32, peers: Sequence[Announcer], addresses: Sequence[str]
) -> dict[str, float]:
    up_s: list[float] = []

    def greet(peer: Announcer) -> None:
        with suppress(LabFailure, OSError):
            peer.await_session()
            up_s.append(time.monotonic())
            peer.send(END_OF_RIB)

    threads = [threading.Thread(target=greet, args=(peer,), daemon=True) for peer in peers]
    for thread in threads:
        thread.start()
    system.start_with(addresses)
    for thread in threads:
        thread.join(DEADLINE_S)
    if len(up_s) < len(peers):
        raise LabFailure(f"{len(up_s)} of {len(peers)} sessions came up")
    time.sleep(SETTLE_S)
    before_s, began_s = system.cpu_s_by_name(), time.monotonic()
    time.sleep(IDLE_S)
    after_s, took_s = system.cpu_s_by_name(), time.monotonic() - began_s
    idle = {name: 100 * (after_s[name] - before_s.get(name, 0.0)) / took_s for name in after_s}
    heard = [len(peer.heard) for peer in peers]
    system.announce(BLOCK)
    end_s = time.monotonic() + DEADLINE_S
    while any(len(p.heard) == n for p, n in zip(peers, heard, strict=True)):
        if time.monotonic() > end_s:
            raise LabFailure("not every peer has heard of the block")
        time.sleep(0.005)
    told = [p.heard[n][0] for p, n in zip(peers, heard, strict=True)]
    return {
        "sessions": len(peers),
        "establish_s": max(up_s) - min(up_s),
        "idle_cpu_percent": sum(idle.values()),
        **{f"idle_cpu_percent_{name}": each for name, each in sorted(idle.items())},
        "peak_mib": system.peak_mib(),
        **{f"peak_mib_{name}": each for name, each in sorted(system.peak_mib_by_name().items())},
        "one_block_first_to_last_s": max(told) - min(told),
        "keepalive_gap_s": max(peer.longest_gap_s() for peer in peers),
    }


def main() -> int:
    """Prints one line for each size."""
    parser = argparse.ArgumentParser(prog="bench-sessions", description=__doc__)
    parser.add_argument("--sizes", default="50,100,250")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="s32ses-") as directory:
        for count in map(int, options.sizes.split(",")):
            figures = measure(count, Path(directory))
            print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
