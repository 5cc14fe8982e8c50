"""How long a question to every node takes, beside the same question to one.

    python -m lab.bench.fleet [--nodes 5] [--rounds 10] [--store embedded|kubernetes]

Builds a lab. ``slash32 peers -A`` and ``status -A`` hear each node by running the command there
(nsenter; ssh or kubectl exec take as long as they take), all at once. The commands take turns, so
that a busy machine is as unfair to one as to the other. Prints medians and ratios; there is no pass
or fail. What is aimed at: 1.5 s for the peers of five nodes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

from lab import build, namespaces, teardown
from lab.plan import Shape
from lab.waiting import Progress

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("peers", "--local"),
    ("peers", "-A"),
    ("status", "--local"),
    ("status", "-A"),
)


def measure(lab: build.Lab, rounds: int) -> dict[tuple[str, ...], list[float]]:
    """Seconds of each command in each round, on the first node."""
    node = lab.plan.nodes[0]
    environment = {
        **build.environment(lab.paths),
        "SLASH32_RUN_DIR": str(lab.paths.run_dir(node.name)),
        "SLASH32_VIA": build.way_to_nodes(lab),
    }
    found: dict[tuple[str, ...], list[float]] = {each: [] for each in COMMANDS}
    for _ in range(rounds):
        for arguments, times in found.items():
            begin_s = time.perf_counter()
            namespaces.run(
                build.slash32_command(*arguments, "-o", "json"),
                namespace=node.namespace,
                env=environment,
            )
            times.append(time.perf_counter() - begin_s)
    return found


def main() -> None:
    """Builds, measures, prints, takes away."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--store", choices=("embedded", "kubernetes"), default="embedded")
    given = parser.parse_args()
    shape = Shape(nodes=given.nodes, tors=1, pods=1, store=given.store)
    lab = build.claim(f"fleet{os.getpid()}", shape, progress=Progress(sys.stderr))
    try:
        build.up(lab)
        lab.finish()
        found = measure(lab, given.rounds)
    finally:
        teardown.down(lab)
    for arguments, times in found.items():
        one = statistics.median(found[arguments[0], "--local"])
        median = statistics.median(times)
        print(f"{' '.join(arguments):<16} {given.nodes} nodes, {given.store}"
              f"  median {median * 1000:6.0f} ms  least {min(times) * 1000:6.0f} ms"
              f"  {median / one:5.2f} x one node's")  # fmt: skip


if __name__ == "__main__":
    main()
