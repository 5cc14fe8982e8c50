"""Runs ExaBGP 5.0.15 with a few of its functions replaced; ``slash32 speaker`` starts it.

    python3 -I exabgp_tuned.py server exabgp.conf

What is replaced, and why, is in files that are loaded from here: exabgp_habits.py (what a node
cannot live with), exabgp_attributes.py (RFC 7606), exabgp_hotpath.py and exabgp_certain.py (speed),
and exabgp_turns.py (idle CPU). No code of ExaBGP is copied, and its files stay as they are.

They are changes of ExaBGP's inside, so none is made unless this is exactly the ExaBGP they were
written for: the version, and a fingerprint of the source of every function that is replaced or
relied on. At the first difference, or when SLASH32_EXABGP is ``stock``, ExaBGP runs **stock**: as
it comes, with one line in the log that says why. What runs is in SLASH32_EXABGP_MODE, which the
bridge passes on to the agent. Stock is slower, has its own habits, and does not know ``show
slash32``: it answers ``error``.

Nothing else of ours is imported, and nothing of ours imports this.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import types
from typing import Any

VERSION = "5.0.15"
MODE = "SLASH32_EXABGP_MODE"
TUNED, STOCK = "tuned", "stock"
PARTS = (
    "exabgp_habits.py", "exabgp_attributes.py", "exabgp_hotpath.py", "exabgp_certain.py",
    "exabgp_turns.py",
)  # fmt: skip
"""In the order in which they are installed: a later one may wrap what an earlier one replaced."""


class Mismatch(Exception):
    """This is not the ExaBGP that the changes were written for; the sentence says what differs."""


def fingerprint(name: str) -> str:
    """Of one function, named ``module:qualified.name``.

    Raises:
        Mismatch: there is no such function, or no source of it.
    """
    import hashlib

    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        source = inspect.getsource(inspect.unwrap(getattr(found, "__func__", found)))
    except (ImportError, AttributeError, OSError, TypeError) as error:
        raise Mismatch(f"{name}: {error}") from None
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _load(name: str) -> Any:
    """One of our files next to this one, by its path: isolated mode does not look in our directory.

    Raises:
        Mismatch: it is not there.
    """
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    spec = importlib.util.spec_from_file_location(f"slash32_{name[:-3]}", path)
    if spec is None or spec.loader is None:
        raise Mismatch(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(fingerprints: dict[str, str]) -> None:
    """Compares the installed ExaBGP with the one that was looked at.

    Raises:
        Mismatch: it is another.
    """
    version = importlib.import_module("exabgp.version").release
    if version != VERSION:
        raise Mismatch(f"ExaBGP is {version}, the changes are for {VERSION}")
    for name, expected in fingerprints.items():
        if fingerprint(name) != expected:
            raise Mismatch(f"{name} is not the function the changes were written for")


def tune() -> str:
    """Makes all changes, or none. Returns what runs now, for MODE."""
    if os.environ.get("SLASH32_EXABGP", TUNED) == STOCK:
        return f"{STOCK}: by setting"
    try:
        parts = [_load(name) for name in PARTS]
        for part in parts:
            check(part.FINGERPRINTS)
    except Mismatch as error:
        return f"{STOCK}: {error}"
    for part in parts:
        part.install()
    return TUNED


def _leave_out() -> None:
    """Not loaded, for nothing here needs them, 8 MiB: OpenSSL, which asyncio and hashlib ask for
    and do without when there is none; the debugger that ``exabgp.debug.pdb`` would start; asyncio,
    of which one function is used, to step through generators; and the names of 5,000 ports, by
    which a flow rule may be written."""
    if os.environ.get("SLASH32_EXABGP", TUNED) == STOCK:
        return
    for name in ("ssl", "_hashlib"):
        # The documented way to say that there is none.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    _instead("pdb")
    _instead("asyncio", run=_run, get_event_loop=_no_event_loop)
    try:
        resource = importlib.import_module("exabgp.protocol.resource").Resource
    except (ImportError, AttributeError):
        return
    numbers = type("Port", (resource,), {"NAME": "port", "names": {}, "codes": {}})
    _instead("exabgp.protocol.ip.port", Port=numbers)


def _instead(name: str, **contents: Any) -> None:
    """A module with these contents and no other, unless the real one is there already."""
    module = types.ModuleType(name)
    vars(module).update(contents)
    sys.modules.setdefault(name, module)


def _run(steps: Any) -> Any:
    """What ``asyncio.run`` makes of a coroutine that waits for nothing."""
    try:
        steps.send(None)
    except StopIteration as end:
        return end.value
    steps.close()
    raise RuntimeError("a coroutine of ExaBGP's waits for something")


def _no_event_loop() -> None:
    raise RuntimeError("there is no event loop")


def main() -> int:
    """ExaBGP's own command line, on the changed ExaBGP."""
    _leave_out()
    mode = tune()
    if mode != TUNED:
        sys.stderr.write(f"slash32 speaker: ExaBGP runs {mode}\n")
    os.environ[MODE] = mode
    return int(importlib.import_module("exabgp.application.main").main() or 0)


if __name__ == "__main__":
    sys.exit(main())
