"""How long ``slash32 status --local`` takes from exec to exit, beside a bare interpreter.

    python -m lab.bench.coldstart [--rounds 20]

The commands take turns, so that a busy machine is as unfair to one as to the other. No agent is
needed: a socket that is not there is asked for after everything was imported. Prints medians and
ratios; there is no pass or fail.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("python (bare)", ("-c", "pass")),
    ("python + click", ("-c", "import click")),
    ("slash32 --help", ("-m", "routing.cli.main", "--help")),
    ("slash32 status --local", ("-m", "routing.cli.main", "status", "--local",
                                "--run-dir", "/nonexistent")),
)  # fmt: skip


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of each command in each round."""
    found: dict[str, list[float]] = {name: [] for name, _ in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS:
            begin_s = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
            found[name].append(time.perf_counter() - begin_s)
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    found = measure(parser.parse_args().rounds)
    bare = statistics.median(found[COMMANDS[0][0]])
    for name, times in found.items():
        median, least = statistics.median(times), min(times)
        print(f"{name:<24} median {median * 1000:6.1f} ms  least {least * 1000:6.1f} ms"
              f"  {median / bare:5.2f} x bare")  # fmt: skip


if __name__ == "__main__":
    main()
