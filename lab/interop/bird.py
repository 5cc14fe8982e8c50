"""BIRD 2 in the dialect of its configuration and of ``birdc``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import pairwise

from lab.interop.daemon import Daemon, version_line
from lab.interop.model import DaemonPlan, Origin, RibRoute, Session

_BLOCK = re.compile(r"^(?P<prefix>[0-9a-f.:]+/\d+)\s", re.MULTILINE)
_ATTRIBUTE = re.compile(r"^\s*BGP\.(?P<name>\w+): ?(?P<value>.*)$", re.MULTILINE)
_UPDATES = re.compile(r"Import updates:\s+(\d+)")


class Bird(Daemon):
    """BIRD 2; learned routes go into its namespace's kernel."""

    name = "bird"
    title = "BIRD"
    package = "bird2"
    programs = ("/usr/sbin/bird", "/usr/sbin/birdc")

    def render_config(self, plan: DaemonPlan) -> str:
        us = plan.neighbour
        parts = [
            f"log stderr all;\nrouter id {plan.router_id};\n"
            "protocol device { scan time 1; }\nprotocol direct { ipv4; ipv6; }\n"
        ]
        for version in (4, 6):
            routes = "".join(
                f"  route {origin.prefix} unreachable{_attributes(origin)};\n"
                for origin in plan.origins
                if origin.prefix.version == version
            )
            parts.append(
                f"protocol kernel kernel{version} {{\n  merge paths yes;\n"
                f"  ipv{version} {{ import none; export where source = RTS_BGP; }};\n}}\n"
                f"protocol static origins{version} {{\n  ipv{version};\n{routes}}}\n"
            )
        password = f'  password "{us.password}";\n' if us.password else ""
        secured = "  ttl security on;\n" if us.is_ttl_secured else ""
        limit = (
            f" import limit {us.max_prefixes} action disable;"
            if us.max_prefixes is not None
            else ""
        )
        channels = "".join(
            f"  ipv{version} {{ import all;{limit} export where source = RTS_STATIC;"
            " next hop self; };\n"
            for version in us.families
        )
        parts.append(
            f"protocol bgp node {{\n  local {plan.address} as {plan.asn};\n"
            f"  neighbor {us.address} as {us.asn};\n{password}{secured}"
            f"  hold time {us.hold_time_s}; keepalive time {max(1, us.hold_time_s // 3)};\n"
            "  connect delay time 1; connect retry time 1; error wait time 1, 4;\n"
            f"  graceful restart on; graceful restart time {us.restart_time_s};\n{channels}}}\n"
        )
        return "".join(parts)

    @property
    def _socket(self) -> str:
        return str(self.directory / "bird.ctl")

    def _commands(self, *, is_restart: bool) -> Sequence[tuple[str, list[str]]]:
        # -R: this is a graceful restart, and the kernel's routes of the last life are kept.
        command = [self.programs[0], "-f", "-c", str(self.config_file), "-s", self._socket]
        command += ["-P", str(self.directory / "bird.pid")]
        return [("bird", [*command, *(["-R"] if is_restart else [])])]

    def _clear(self) -> None:
        (self.directory / "bird.ctl").unlink(missing_ok=True)

    def _birdc(self, *words: str) -> str:
        return self.ask(self.programs[1], "-s", self._socket, *words)

    def _is_ready(self) -> bool:
        return "up and running" in self._birdc("show", "status").lower()

    def routes(self) -> list[RibRoute]:
        return parse_routes(self._birdc("show", "route", "protocol", "node", "all"))

    def session(self) -> Session:
        return parse_session(self._birdc("show", "protocols", "all", "node"))

    def announce(self, origin: Origin) -> None:
        self._with_origins((*self.plan.origins, origin))

    def withdraw(self, origin: Origin) -> None:
        self._with_origins(tuple(o for o in self.plan.origins if o != origin))

    def _with_origins(self, origins: tuple[Origin, ...]) -> None:
        self.configure(replace(self.plan, origins=origins))
        self._birdc("configure")

    def refresh(self) -> None:
        self._birdc("reload", "in", "node")

    def shut_down_session(self, reason: str) -> None:
        self._birdc("disable", "node", f'"{reason}"')

    @classmethod
    def version(cls) -> str:
        return version_line([cls.programs[0], "--version"])


def _attributes(origin: Origin) -> str:
    def tuples(texts: tuple[str, ...]) -> list[str]:
        return [f"({text.replace(':', ',')})" for text in texts]

    added = [f"bgp_community.add({text});" for text in tuples(origin.communities)]
    added += [f"bgp_large_community.add({text});" for text in tuples(origin.large_communities)]
    return f" {{ {' '.join(added)} }}" if added else ""


def parse_routes(text: str) -> list[RibRoute]:
    """The paths in the answer to ``show route ... all``."""
    found: list[RibRoute] = []
    bounds = [*(match.start() for match in _BLOCK.finditer(text)), len(text)]
    for start, end in pairwise(bounds):
        block = text[start:end]
        attributes = {m["name"]: m["value"].strip() for m in _ATTRIBUTE.finditer(block)}
        prefix = _BLOCK.match(block)
        if prefix is None or "next_hop" not in attributes:
            continue
        found.append(
            RibRoute(
                ip_network(prefix["prefix"]),
                # "global link-local" for IPv6
                ip_address(attributes["next_hop"].split()[0]),
                tuple(int(asn) for asn in attributes.get("as_path", "").split()),
                _colons(attributes.get("community", "")),
                _colons(attributes.get("large_community", "")),
            )
        )
    return found


def _colons(text: str) -> tuple[str, ...]:
    """``(1,2) (3, 4, 5)`` as 1:2 and 3:4:5."""
    return tuple(
        ":".join(part.strip() for part in group.split(","))
        for group in re.findall(r"\(([^)]*)\)", text)
    )


def parse_session(text: str) -> Session:
    """The answer to ``show protocols all``."""
    fields = dict(re.findall(r"^\s+([A-Z][\w ]+?):\s+(.*)$", text, re.MULTILINE))
    state = fields.get("BGP state", "")
    return Session(
        is_established=state == "Established",
        state=state or "down",
        last_error=fields.get("Last error", ""),
        updates_received=sum(int(number) for number in _UPDATES.findall(text)),
    )
