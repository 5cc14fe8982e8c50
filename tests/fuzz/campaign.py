"""One target of a campaign, in a process of its own; __main__.py starts them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.fuzz import corpus
from tests.fuzz.registry import TARGETS

ROOT = Path(__file__).parents[2]
SECONDS_A_CASE = 0.2
"""A campaign that takes longer than this a case, and five minutes, is stopped."""

NO_RESULT: dict[str, Any] = {"cases": 0, "accepted": 0, "seconds": 0.0, "slowest_s": 0.0}
"""Of a target whose process came to another end than its last case; that is a finding too."""


def campaign(name: str, cases: int, *, keep: bool) -> dict[str, Any]:
    """One target: what guided.py says, and how large its corpus is now."""
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="slash32-fuzz-") as place:
        directory = Path(place)
        for each in ("seeds", "found"):
            (directory / each).mkdir()
        seeds = [*target.seeds(), *corpus.read(name)]
        for number, seed in enumerate(seeds):
            (directory / "seeds" / str(number)).write_bytes(seed)
        command = [sys.executable, "-m", "tests.fuzz.guided", name, str(cases), place]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=300 + cases * SECONDS_A_CASE,
                check=False,
            )
            why = f"exit code {done.returncode}; {done.stderr[-2000:]}"
        except subprocess.TimeoutExpired as error:
            why = str(error)
        written = directory / "result.json"
        result: dict[str, Any] = (
            json.loads(written.read_text())
            if written.exists()
            else NO_RESULT | {"findings": {"no end": {"what": why, "input": ""}}}
        )
        found = [each.read_bytes() for each in (directory / "found").iterdir()]
    if keep:
        corpus.write(name, corpus.chosen(target, [*corpus.read(name), *found]))
    result["corpus"] = len(corpus.read(name))
    return result
