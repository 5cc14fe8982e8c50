"""The inputs that are kept: one text file a target, a bytes literal a line, so that a diff shows
what is new. Chosen by what they reach, the smallest first."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.target import Target

DIRECTORY = Path(__file__).parent / "corpus"
TARGET_MAX_BYTES = 24 * 1024
OURS = tuple(f"/{package}/" for package in ("cni", "bgp", "routing"))
ROOT = str(Path(__file__).parents[2])

Arc = tuple[str, int, int]


def read(name: str) -> list[bytes]:
    """The corpus of a target; [] when it has none."""
    path = DIRECTORY / f"{name}.txt"
    if not path.exists():
        return []
    lines = path.read_text(encoding="ascii").splitlines()
    return [ast.literal_eval(line) for line in lines if line]


def write(name: str, inputs: Iterable[bytes]) -> None:
    """Replaces it."""
    DIRECTORY.mkdir(exist_ok=True)
    text = "".join(f"{each!a}\n" for each in inputs)
    (DIRECTORY / f"{name}.txt").write_text(text, encoding="ascii")


def reached(run: Callable[[bytes], object], data: bytes) -> set[Arc]:
    """Which steps from line to line of our packages one input takes."""
    arcs: set[Arc] = set()

    def trace_calls(frame: FrameType, _event: str, _argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(ROOT) or not name[len(ROOT) :].startswith(OURS):
            return None
        last = -frame.f_code.co_firstlineno

        def trace_lines(inner: FrameType, event: str, _argument: Any) -> Any:
            nonlocal last
            if event == "line":
                arcs.add((name, last, inner.f_lineno))
                last = inner.f_lineno
            return trace_lines

        return trace_lines

    sys.settrace(trace_calls)
    try:
        run(data)
    except Exception:  # noqa: S110 - a finding is told elsewhere; here only the way to it counts
        pass
    finally:
        sys.settrace(None)
    return arcs


def chosen(target: Target, inputs: Iterable[bytes]) -> list[bytes]:
    """Of ``inputs`` those that reach what no smaller one does, as many as may be kept."""

    def all_reached(data: bytes) -> set[Arc]:
        return reached(target.run, data) | {("", 0, each) for each in target.reached(data)}

    known: set[Arc] = set()
    for seed in target.seeds():
        known |= all_reached(seed)
    kept: list[bytes] = []
    size = 0
    for data in sorted(set(inputs), key=lambda each: (len(each), each)):
        new = all_reached(data) - known
        if not new:
            continue
        known |= new
        size += len(ascii(data))
        if size > TARGET_MAX_BYTES:
            break
        kept.append(data)
    return kept
