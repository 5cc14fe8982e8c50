"""What forwarding was before the first agent made this machine a router, for the uninstall.

Turning forwarding on for all interfaces turns it on for each, and IPv4's accept_redirects off
(Documentation/networking/ip-sysctl.rst), so all of these are noted. Once: a second agent would note
what the first one made of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import structlog

from cni.netns import Sysctls

log = structlog.get_logger("routing.host")

FILE = "sysctls"
SWITCHES = ("ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding")
_PROC = Path("/proc/sys/net")


def note(state_dir: Path, sysctls: Sysctls) -> None:
    """Writes it down unless that has been done. A disk that refuses costs the way back, no more."""
    path = state_dir / FILE
    if path.exists():
        return
    values = {each: found for each in _paths() if (found := sysctls.read(each)) is not None}
    fresh = path.with_name(f"{FILE}.new")
    try:
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            json.dump(values, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    except OSError as error:
        log.warning("sysctls_not_noted", path=str(path), error=error.strerror)


def _paths() -> list[str]:
    found = [*SWITCHES, "ipv4/conf/all/accept_redirects"]
    for family in ("ipv4", "ipv6"):
        names = sorted(each.name for each in (_PROC / family / "conf").glob("*"))
        found += [f"{family}/conf/{name}/forwarding" for name in names if name != "all"]
    return found


def differences(state_dir: Path, sysctls: Sysctls) -> dict[str, str]:
    """What must be written, in this order, for things to be as they were; {} when they are, when
    nothing was noted, or when forwarding was on before us."""
    try:
        was = json.loads((state_dir / FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return {}
    if not isinstance(was, Mapping):
        return {}
    found: dict[str, str] = {}
    for switch in SWITCHES:
        if was.get(switch) != "0" or sysctls.read(switch) != "1":
            continue
        family = switch.partition("/")[0]
        found[switch] = "0"
        # The switch sets all of its family: what was otherwise is written after it.
        for path, value in was.items():
            if path.startswith(f"{family}/") and path not in SWITCHES:
                is_default = value == ("1" if path.endswith("accept_redirects") else "0")
                if not is_default and sysctls.read(path) is not None:
                    found[path] = value
    return found
