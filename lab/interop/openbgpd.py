"""OpenBGPD's portable version: ``bgpd -d`` with a control socket of ours, asked by ``bgpctl``.

It drops its privileges to the package's user and locks its children into that user's home,
/run/openbgpd, which the package's service would make. We make it when it is not there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from lab.interop.daemon import Daemon, version_line
from lab.interop.model import DaemonPlan, DaemonTrouble, Origin, RibRoute, Session

CHROOT = Path("/run/openbgpd")


class OpenBgpd(Daemon):
    """OpenBGPD 7. On Linux it is a RIB only: it does not touch the kernel's routes."""

    name = "openbgpd"
    title = "OpenBGPD"
    package = "openbgpd"
    accepts_keyed = False
    programs = ("/usr/sbin/bgpd", "/usr/sbin/bgpctl")

    def render_config(self, plan: DaemonPlan) -> str:
        us = plan.neighbour
        lines = [
            f"AS {plan.asn}",
            f"router-id {plan.router_id}",
            f"listen on {plan.address}",
            f'socket "{self._socket}"',
            "fib-update no",
            f"holdtime {us.hold_time_s}",
            f"holdtime min {min(3, us.hold_time_s)}",
            "connect-retry 1",
            *(f"network {o.prefix}{_set_of(o)}" for o in plan.origins),
            f"neighbor {us.address} {{",
            f"  remote-as {us.asn}",
            f"  local-address {plan.address}",
            *(f"  announce IPv{v} {'unicast' if v in us.families else 'none'}" for v in (4, 6)),
            "  announce restart yes",
            "  enforce neighbor-as yes",
            *([f'  tcp md5sig password "{us.password}"'] if us.password else []),
            *(["  ttl-security yes"] if us.is_ttl_secured else []),
            *([f"  max-prefix {us.max_prefixes}"] if us.max_prefixes is not None else []),
            "}",
            "allow from any",
            "allow to any",
        ]
        return "\n".join([*lines, ""])

    @property
    def _socket(self) -> str:
        return str(self.directory / "bgpd.sock")

    def start(self, *, is_restart: bool = False) -> None:
        CHROOT.mkdir(mode=0o755, exist_ok=True)
        super().start(is_restart=is_restart)

    def _commands(self, *, is_restart: bool) -> Sequence[tuple[str, list[str]]]:
        del is_restart
        return [("openbgpd", [self.programs[0], "-d", "-v", "-f", str(self.config_file)])]

    def _clear(self) -> None:
        Path(self._socket).unlink(missing_ok=True)

    def _bgpctl(self, *words: str) -> str:
        return self.ask(self.programs[1], "-s", self._socket, *words)

    def _json(self, *words: str) -> dict[str, Any]:
        text = self._bgpctl("-j", *words)
        try:
            answer: dict[str, Any] = json.loads(text)
        except ValueError:
            raise DaemonTrouble(f"bgpctl {' '.join(words)}: {text[:200]}") from None
        return answer

    def _is_ready(self) -> bool:
        return bool(self._json("show", "neighbor").get("neighbors"))

    def routes(self) -> list[RibRoute]:
        found = self._json("show", "rib", "detail").get("rib", [])
        neighbour = str(self.plan.neighbour.address)
        return [
            parse_entry(entry)
            for entry in found
            if entry.get("neighbor", {}).get("remote_addr") == neighbour
        ]

    def session(self) -> Session:
        (seen, *_) = self._json("show", "neighbor").get("neighbors", [{}])
        return Session(
            is_established=seen.get("state") == "Established",
            state=str(seen.get("state", "unknown")),
            last_error=str(seen.get("last_error", seen.get("errors", ""))),
            updates_received=int(
                seen.get("stats", {}).get("update", {}).get("received", {}).get("updates", 0)
            ),
        )

    def announce(self, origin: Origin) -> None:
        self._bgpctl("network", "add", str(origin.prefix), *_attribute_words(origin))

    def withdraw(self, origin: Origin) -> None:
        self._bgpctl("network", "delete", str(origin.prefix))

    def refresh(self) -> None:
        self._bgpctl("neighbor", str(self.plan.neighbour.address), "refresh")

    def shut_down_session(self, reason: str) -> None:
        self._bgpctl("neighbor", str(self.plan.neighbour.address), "down", reason)

    @classmethod
    def version(cls) -> str:
        return version_line([cls.programs[0], "-V"])


def _attribute_words(origin: Origin) -> list[str]:
    words = [word for text in origin.communities for word in ("community", text)]
    return words + [w for text in origin.large_communities for w in ("large-community", text)]


def _set_of(origin: Origin) -> str:
    words = _attribute_words(origin)
    return f" set {{ {' '.join(words)} }}" if words else ""


def parse_entry(entry: dict[str, Any]) -> RibRoute:
    """One entry of ``bgpctl -j show rib detail``."""
    hop = entry["exit_nexthop"]
    return RibRoute(
        ip_network(entry["prefix"]),
        ip_address(hop),
        tuple(int(asn) for asn in str(entry.get("aspath", "")).split()),
        tuple(entry.get("communities", [])),
        tuple(entry.get("large_communities", [])),
    )
