"""GoBGP: ``gobgpd`` with a TOML file, asked through ``gobgp`` in its namespace."""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from lab.interop.daemon import Daemon, version_line
from lab.interop.model import DaemonPlan, DaemonTrouble, Origin, RibRoute, Session

API_PORT = 50051
ESTABLISHED = 6
_NEXT_HOP, _AS_PATH, _COMMUNITIES, _MP_REACH, _LARGE = 3, 2, 8, 14, 32
"""Path attribute types (RFC 4271, 1997, 4760, 8092)."""


class GoBgp(Daemon):
    """GoBGP 3. It is a RIB only: nothing reaches a kernel without zebra."""

    name = "gobgp"
    title = "GoBGP"
    package = "gobgpd"
    programs = ("/usr/bin/gobgpd", "/usr/bin/gobgp")

    def render_config(self, plan: DaemonPlan) -> str:
        us = plan.neighbour
        lines = [
            "[global.config]",
            f"  as = {plan.asn}",
            f'  router-id = "{plan.router_id}"',
            "[[neighbors]]",
            "  [neighbors.config]",
            f'    neighbor-address = "{us.address}"',
            f"    peer-as = {us.asn}",
            *([f'    auth-password = "{us.password}"'] if us.password else []),
            "  [neighbors.transport.config]",
            f'    local-address = "{plan.address}"',
            "  [neighbors.timers.config]",
            f"    hold-time = {us.hold_time_s}",
            f"    keepalive-interval = {max(1, us.hold_time_s // 3)}",
            "    connect-retry = 1",
            "    idle-hold-time-after-reset = 1",
            "  [neighbors.graceful-restart.config]",
            "    enabled = true",
            f"    restart-time = {us.restart_time_s}",
        ]
        if us.is_ttl_secured:
            lines += [
                "  [neighbors.ttl-security.config]",
                "    enabled = true",
                "    ttl-min = 255",
            ]
        for version in us.families:
            lines += [
                "  [[neighbors.afi-safis]]",
                "    [neighbors.afi-safis.config]",
                f'      afi-safi-name = "ipv{version}-unicast"',
                "    [neighbors.afi-safis.mp-graceful-restart.config]",
                "      enabled = true",
            ]
            if us.max_prefixes is not None:
                lines += [
                    "    [neighbors.afi-safis.prefix-limit.config]",
                    f"      max-prefixes = {us.max_prefixes}",
                ]
        return "\n".join([*lines, ""])

    def _commands(self, *, is_restart: bool) -> Sequence[tuple[str, list[str]]]:
        command = [self.programs[0], "-f", str(self.config_file), "-t", "toml", "-p"]
        command += ["--pprof-disable", "--api-hosts", f"127.0.0.1:{API_PORT}"]
        return [("gobgpd", [*command, *(["-r"] if is_restart else [])])]

    def start(self, *, is_restart: bool = False) -> None:
        super().start(is_restart=is_restart)
        for origin in self.plan.origins:
            self.announce(origin)

    def _gobgp(self, *words: str) -> str:
        return self.ask(self.programs[1], "-p", str(API_PORT), *words)

    def _json(self, *words: str) -> Any:
        text = self._gobgp("-j", *words)
        try:
            return json.loads(text)
        except ValueError:
            raise DaemonTrouble(f"gobgp {' '.join(words)}: {text[:200]}") from None

    def _is_ready(self) -> bool:
        # Not its neighbors: those of a range are there when they connect.
        return "AS:" in self._gobgp("global")

    def routes(self) -> list[RibRoute]:
        found: list[RibRoute] = []
        neighbour = str(self.plan.neighbour.address)
        for version in self.plan.neighbour.families:
            table = self._json("global", "rib", "-a", f"ipv{version}")
            for prefix, paths in table.items():
                found += [
                    parse_path(prefix, path)
                    for path in paths
                    if path.get("neighbor-ip", path.get("source-id")) == neighbour
                ]
        return found

    def session(self) -> Session:
        seen = self._json("neighbor", str(self.plan.neighbour.address))
        state = seen.get("state", {})
        number = int(state.get("session_state", 0))
        return Session(
            is_established=number == ESTABLISHED,
            state=str(number),
            last_error=str(state.get("disconnect_message", "")),
            updates_received=int(state.get("messages", {}).get("received", {}).get("update", 0)),
        )

    def announce(self, origin: Origin) -> None:
        self._rib("add", origin)

    def withdraw(self, origin: Origin) -> None:
        self._rib("del", origin)

    def _rib(self, verb: str, origin: Origin) -> None:
        words = ["global", "rib", "-a", f"ipv{origin.prefix.version}", verb, str(origin.prefix)]
        if origin.communities:
            words += ["community", ",".join(origin.communities)]
        if origin.large_communities:
            words += ["large-community", ",".join(origin.large_communities)]
        if origin.prefix.version == 6:
            # Left alone it would write ::ffff:<its IPv4 address> on a session over IPv4.
            words += ["nexthop", str(self.plan.address6)]
        self._gobgp(*words)

    def refresh(self) -> None:
        self._gobgp("neighbor", str(self.plan.neighbour.address), "softresetin")

    def shut_down_session(self, reason: str) -> None:
        self._gobgp("neighbor", str(self.plan.neighbour.address), "shutdown", "--reason", reason)

    @classmethod
    def version(cls) -> str:
        return version_line([cls.programs[0], "--version"])


def parse_path(prefix: str, path: dict[str, Any]) -> RibRoute:
    """One path of ``gobgp -j global rib``."""
    attributes = {attribute["type"]: attribute for attribute in path["attrs"]}
    hop = attributes.get(_NEXT_HOP) or attributes[_MP_REACH]
    segments = attributes.get(_AS_PATH, {}).get("as_paths") or []
    return RibRoute(
        ip_network(prefix),
        ip_address(hop["nexthop"]),
        tuple(int(asn) for segment in segments for asn in segment.get("asns", [])),
        tuple(f"{c >> 16}:{c & 0xFFFF}" for c in _values(attributes, _COMMUNITIES, "communities")),
        tuple(
            f"{c['ASN']}:{c['LocalData1']}:{c['LocalData2']}" if isinstance(c, dict) else str(c)
            for c in _values(attributes, _LARGE, "value")
        ),
    )


def _values(attributes: dict[int, dict[str, Any]], number: int, key: str) -> list[Any]:
    return attributes.get(number, {}).get(key) or []
