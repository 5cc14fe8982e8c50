"""One target under atheris (libFuzzer), in a process of its own; tests/fuzz/__main__.py starts it.

    python -m tests.fuzz.guided TARGET CASES DIRECTORY

DIRECTORY/seeds is read, DIRECTORY/found is where libFuzzer keeps what reached something new, and
DIRECTORY/result.json says what came of it. A finding does not end the run: the next one may hide
behind it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

INPUT_MAX_BYTES = 4096
SLOW_S = 10.0
"""A case that takes longer has found a way to keep an agent busy."""
FINDINGS_MAX = 50


class Run:
    """Counts, and remembers the first input of each finding by where it was raised."""

    def __init__(self, run: Any, cases: int, result: Path) -> None:
        self._run, self._cases, self._result = run, cases, result
        self._done = self._accepted = 0
        self._slowest_s = 0.0
        self._begun_s = time.monotonic()
        self._findings: dict[str, dict[str, str]] = {}

    def one_input(self, data: bytes) -> None:
        """One case. Does not return from the last."""
        begun_s = time.thread_time()
        try:
            self._accepted += bool(self._run(data))
        except Exception as error:
            self._note(error, data)
        took_s = time.thread_time() - begun_s
        if took_s > SLOW_S:
            self._note(TimeoutError(f"{took_s:.1f} s of CPU"), data)
        self._slowest_s = max(self._slowest_s, took_s)
        self._done += 1
        if self._done >= self._cases:
            self.write()
            sys.stdout.flush()
            os._exit(0)

    def _note(self, error: Exception, data: bytes) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [each for each in frames if "site-packages" not in each.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "-"
        key = f"{type(error).__name__} at {where}"
        if key not in self._findings and len(self._findings) < FINDINGS_MAX:
            self._findings[key] = {"what": str(error)[:400], "input": ascii(data)}

    def write(self) -> None:
        """What came of it so far."""
        self._result.write_text(
            json.dumps(
                {
                    "cases": self._done,
                    "accepted": self._accepted,
                    "seconds": time.monotonic() - self._begun_s,
                    "slowest_s": self._slowest_s,
                    "findings": self._findings,
                }
            )
        )


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    name, cases, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    # All of ours, whatever the target: what it does not reach costs nothing.
    with atheris.instrument_imports(include=["cni", "bgp", "routing"]):
        from tests.fuzz.registry import TARGETS
    target = TARGETS[name]
    if target.guide is not None:
        target.guide(atheris.instrument_func)
    options = ["-max_len=4096", "-timeout=60", "-rss_limit_mb=2048", "-print_final_stats=0",
               "-verbosity=0", f"-artifact_prefix={directory}/"]  # fmt: skip
    if target.tokens:
        tokens = directory / "tokens"
        tokens.write_text("".join(f'"{_escaped(token)}"\n' for token in target.tokens))
        options.append(f"-dict={tokens}")
    run = Run(target.run, cases, directory / "result.json")
    places = [str(directory / "found"), str(directory / "seeds")]
    atheris.Setup([sys.argv[0], f"-runs={2 * cases}", *options, *places], run.one_input)
    atheris.Fuzz()


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


if __name__ == "__main__":
    main()
