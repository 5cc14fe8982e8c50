"""FRR: zebra and bgpd by hand, each with sockets and pid files in a directory of ours.

Debian's init script would use /etc/frr and /run/frr, which belong to whoever runs FRR on this
machine. Both drop their privileges to the user ``frr``, so that user owns the directory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from lab.interop.daemon import Daemon, version_line
from lab.interop.model import DaemonPlan, DaemonTrouble, Origin, RibRoute, Session

USER = "frr"


class Frr(Daemon):
    """FRR 8; zebra puts learned routes into its namespace's kernel."""

    name = "frr"
    title = "FRR"
    package = "frr"
    programs = ("/usr/lib/frr/zebra", "/usr/lib/frr/bgpd", "/usr/bin/vtysh")

    def render_config(self, plan: DaemonPlan) -> str:
        us = plan.neighbour
        keepalive_s = max(1, us.hold_time_s // 3)
        lines = [
            "frr defaults datacenter",
            "log stdout informational",
            *_route_maps(plan.origins),
            f"router bgp {plan.asn}",
            f" bgp router-id {plan.router_id}",
            " no bgp ebgp-requires-policy",
            " no bgp default ipv4-unicast",
            " no bgp network import-check",
            " bgp graceful-restart",
            # Without it FRR says that its kernel has lost the routes, and they go at its return.
            " bgp graceful-restart preserve-fw-state",
            f" bgp graceful-restart restart-time {us.restart_time_s}",
            f" neighbor {us.address} remote-as {us.asn}",
            f" neighbor {us.address} timers {keepalive_s} {us.hold_time_s}",
            f" neighbor {us.address} timers connect 1",
            f" neighbor {us.address} advertisement-interval 0",
        ]
        if us.password:
            lines.append(f" neighbor {us.address} password {us.password}")
        if us.is_ttl_secured:
            lines.append(f" neighbor {us.address} ttl-security hops 1")
        for version in (4, 6):
            lines.append(f" address-family ipv{version} unicast")
            lines += [
                f"  network {origin.prefix}{_map_of(origin)}"
                for origin in plan.origins
                if origin.prefix.version == version
            ]
            if version in us.families:
                lines.append(f"  neighbor {us.address} activate")
                if us.max_prefixes is not None:
                    lines.append(f"  neighbor {us.address} maximum-prefix {us.max_prefixes}")
            lines.append(" exit-address-family")
        return "\n".join([*lines, ""])

    def write_config(self, text: str) -> None:
        super().write_config(text)
        for path in (self.directory, self.config_file):
            shutil.chown(path, USER, USER)

    def _commands(self, *, is_restart: bool) -> Sequence[tuple[str, list[str]]]:
        # zebra -K keeps the routes of the last life for so many seconds; bgpd takes them over.
        del is_restart
        zebra_conf = self.directory / "zebra.conf"
        zebra_conf.write_text("")
        shutil.chown(zebra_conf, USER, USER)
        shared = ["--vty_socket", str(self.directory), "-z", str(self.directory / "zserv.api")]
        # Each has its vty on TCP too unless told not to, with port 0.
        shared += ["-P", "0", "-u", USER, "-g", USER]
        zebra, bgpd = self.programs[0], self.programs[1]
        pids = {name: ["-i", str(self.directory / f"{name}.pid")] for name in ("zebra", "bgpd")}
        return [
            ("zebra", [zebra, "-f", str(zebra_conf), *pids["zebra"], *shared]),
            ("bgpd", [bgpd, "-f", str(self.config_file), *pids["bgpd"], *shared]),
        ]

    def _not_begun(self, name: str) -> list[str]:
        # A bgpd that finds no zebra tries again after ten seconds; a session that comes up before
        # has no IPv6 next hop to give, for bgpd does not know the link's addresses yet.
        if name == "zebra" and not (self.directory / "zserv.api").is_socket():
            return ["zebra has no socket"]
        return []

    def _clear(self) -> None:
        for path in (*self.directory.glob("*.vty"), *self.directory.glob("*.pid")):
            path.unlink()
        (self.directory / "zserv.api").unlink(missing_ok=True)

    def vtysh(self, *commands: str) -> str:
        """What vtysh prints for commands in one session."""
        words = [word for command in commands for word in ("-c", command)]
        return self.ask(self.programs[2], "--vty_socket", str(self.directory), *words)

    def _json(self, command: str) -> dict[str, Any]:
        text = self.vtysh(command)
        try:
            answer: dict[str, Any] = json.loads(text)
        except ValueError:
            raise DaemonTrouble(f"frr: {command}: {text[:200]}") from None
        return answer

    def _is_ready(self) -> bool:
        return all((self.directory / f"{name}.vty").exists() for name in ("zebra", "bgpd")) and (
            "routerId" in self._json("show bgp summary json").get("ipv4Unicast", {})
            or bool(self._neighbour())
        )

    def _neighbour(self) -> dict[str, Any]:
        address = str(self.plan.neighbour.address)
        found: dict[str, Any] = self._json("show bgp neighbors json").get(address, {})
        return found

    def routes(self) -> list[RibRoute]:
        found: list[RibRoute] = []
        for version in self.plan.neighbour.families:
            table = self._json(f"show bgp ipv{version} unicast json").get("routes", {})
            for prefix, paths in table.items():
                if any(path.get("peerId") == str(self.plan.neighbour.address) for path in paths):
                    detail = self._json(f"show bgp ipv{version} unicast {prefix} json")
                    found += parse_paths(prefix, detail, str(self.plan.neighbour.address))
        return found

    def session(self) -> Session:
        seen = self._neighbour()
        return Session(
            is_established=seen.get("bgpState") == "Established",
            state=str(seen.get("bgpState", "unknown")),
            last_error=str(
                seen.get("lastErrorCodeSubcode")
                or seen.get("lastResetDueTo")
                or seen.get("reasonForLastReset", "")
            ),
            updates_received=int(seen.get("messageStats", {}).get("updatesRecv", 0)),
        )

    def announce(self, origin: Origin) -> None:
        self._network(origin, is_wanted=True)

    def withdraw(self, origin: Origin) -> None:
        self._network(origin, is_wanted=False)

    def _network(self, origin: Origin, *, is_wanted: bool) -> None:
        no = "" if is_wanted else "no "
        self.vtysh(
            "configure terminal",
            *_route_maps([origin]),
            f"router bgp {self.plan.asn}",
            f"address-family ipv{origin.prefix.version} unicast",
            f"{no}network {origin.prefix}{_map_of(origin) if is_wanted else ''}",
        )

    def refresh(self) -> None:
        for version in self.plan.neighbour.families:
            self.vtysh(f"clear bgp ipv{version} unicast {self.plan.neighbour.address} in")

    def shut_down_session(self, reason: str) -> None:
        self.vtysh(
            "configure terminal",
            f"router bgp {self.plan.asn}",
            f"neighbor {self.plan.neighbour.address} shutdown message {reason}",
        )

    @classmethod
    def version(cls) -> str:
        return version_line([cls.programs[1], "--version"])


def _map_name(origin: Origin) -> str:
    return "ORIGIN-" + str(origin.prefix).translate(str.maketrans(":./", "---"))


def _map_of(origin: Origin) -> str:
    has_attributes = origin.communities or origin.large_communities
    return f" route-map {_map_name(origin)}" if has_attributes else ""


def _route_maps(origins: Sequence[Origin]) -> list[str]:
    lines: list[str] = []
    for origin in origins:
        if not _map_of(origin):
            continue
        lines.append(f"route-map {_map_name(origin)} permit 10")
        if origin.communities:
            lines.append(f" set community {' '.join(origin.communities)}")
        if origin.large_communities:
            lines.append(f" set large-community {' '.join(origin.large_communities)}")
        lines.append("exit")
    return lines


def parse_paths(prefix: str, detail: dict[str, Any], neighbour: str) -> list[RibRoute]:
    """The paths from a neighbour in the answer to ``show bgp <family> <prefix> json``."""
    found: list[RibRoute] = []
    for path in detail.get("paths", []):
        if path.get("peer", {}).get("peerId") != neighbour:
            continue
        # IPv6 has a global and a link-local next hop.
        hops = [h for h in path.get("nexthops", []) if h.get("scope", "global") == "global"]
        found.append(
            RibRoute(
                ip_network(prefix),
                ip_address(hops[0]["ip"]),
                tuple(int(asn) for asn in str(path["aspath"]["string"]).split() if asn.isdigit()),
                tuple(path.get("community", {}).get("string", "").split()),
                tuple(path.get("largeCommunity", {}).get("string", "").split()),
            )
        )
    return found
