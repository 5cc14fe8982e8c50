"""Top-of-rack routers: BIRD 2, configured as an operator's rack would be.

Each router peers by eBGP with every node linked to it and, where there are several, by iBGP with
the other routers, so that a reply finds its way whichever router it reaches. A router takes only
pod blocks from a node, and gives a node the default route and the other nodes' blocks.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network

from lab import namespaces, processes
from lab.plan import LabPaths, LabPlan, LinkEnd, Machine, client_subnets
from lab.processes import Process

HOLD_TIME_S = 9
KEEPALIVE_TIME_S = 3
RESTART_TIME_S = 120

_TIMERS = (
    f"  hold time {HOLD_TIME_S}; keepalive time {KEEPALIVE_TIME_S};\n"
    "  connect delay time 1; connect retry time 1; error wait time 1, 4;\n"
    f"  graceful restart on; graceful restart time {RESTART_TIME_S};\n"
)

_PROTOCOL = re.compile(
    r"^(?P<name>\S+)\s+BGP\s+\S+\s+(?P<state>\S+)\s+(?P<since>\S+)\s*(?P<info>.*)$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class RouterSession:
    """One line of ``birdc show protocols``."""

    router: str
    neighbour: str
    state: str
    info: str

    @property
    def is_established(self) -> bool:
        return self.info == "Established"


def bird_conf(plan: LabPlan, tor: Machine) -> str:
    """BIRD's configuration of one router. Deterministic."""
    if plan.switch is not None:
        return reflector_conf(plan, tor)
    links = plan.links_of(tor)
    router_id = links[0][0].ipv4
    parts = [f"log stderr all;\nrouter id {router_id};\n", _tables(plan)]
    parts += [_static(plan, tor, version) for version in _versions(plan)]
    parts.append(_templates(plan))
    for _, far in links:
        if far.machine.asn is not None:
            template = "other_router" if far.machine in plan.tors else "node"
            parts.append(
                f"protocol bgp {far.machine.name} from {template} {{\n"
                f"  neighbor {far.ipv4} as {far.machine.asn};\n}}\n"
            )
    return "\n".join(parts)


def reflector_conf(plan: LabPlan, reflector: Machine) -> str:
    """A route reflector (RFC 4456): nodes are its clients, its kernel has none of their routes.

    ``gateway direct`` of BIRD's iBGP default would look next hops up; nothing is forwarded here.
    """
    own, _ = plan.links_of(reflector)[0]
    to_node, to_reflector = (
        "".join(
            f"  ipv{cidr.version} {{\n"
            f"    import where net ~ [ {cidr}+ ];\n    export where {what};\n  }};\n"
            for _, cidr, _size in plan.shape.pools
        )
        for what in ("source = RTS_BGP", "source ~ [ RTS_BGP ]")
    )
    parts = [
        f"log stderr all;\nrouter id {own.ipv4};\n",
        "protocol device { scan time 1; }\n",
        "protocol direct {" + "".join(f" ipv{v};" for v in _versions(plan)) + " }\n",
        f"template bgp node {{\n  local {own.ipv4} as {reflector.asn};\n"
        f"  rr client; rr cluster id {own.ipv4};\n{_TIMERS}{to_node}}}\n",
    ]
    parts += [
        f"protocol bgp {end.machine.name} from node {{\n"
        f"  neighbor {end.ipv4} as {end.machine.asn};\n}}\n"
        for end in _node_ends(plan)
    ]
    # To each other they are plain iBGP peers: a node may be a client of only one.
    parts += [
        f"protocol bgp {end.machine.name} {{\n  local {own.ipv4} as {reflector.asn};\n"
        f"  neighbor {end.ipv4} as {end.machine.asn};\n{_TIMERS}{to_reflector}}}\n"
        for end in _other_reflectors(plan, reflector)
    ]
    return "\n".join(parts)


def _versions(plan: LabPlan) -> tuple[int, ...]:
    return (4, 6) if plan.shape.dual_stack else (4,)


def _tables(plan: LabPlan) -> str:
    """The router's kernel tables: everything it knows but its own links and the default.

    The default route is announced and not installed: behind this router there is no world.
    """
    text = "protocol device { scan time 1; }\n"
    text += "protocol direct {" + "".join(f" ipv{v};" for v in _versions(plan)) + " }\n"
    for version in _versions(plan):
        everything = "0.0.0.0/0" if version == 4 else "::/0"
        text += (
            f"protocol kernel kernel{version} {{\n  merge paths yes;\n"
            f"  graceful restart on;\n  ipv{version} {{\n"
            f"    import none;\n"
            f"    export where source != RTS_DEVICE && net != {everything};\n  }};\n}}\n"
        )
    return text


def _static(plan: LabPlan, tor: Machine, version: int) -> str:
    everything = "0.0.0.0/0" if version == 4 else "::/0"
    lines = [f"  route {everything} unreachable;"]
    client = next(far for _, far in plan.links_of(tor) if far.machine == plan.client)
    gateway = client.ipv4 if version == 4 else client.ipv6
    lines += [
        f"  route {subnet} via {gateway};"
        for subnet in client_subnets(plan)
        if subnet.version == version
    ]
    body = "\n".join(lines)
    return f"protocol static static{version} {{\n  ipv{version};\n{body}\n}}\n"


def _templates(plan: LabPlan) -> str:
    """How a router speaks to a node, and to another router."""
    timers = f"  local as {plan.tors[0].asn};\n  direct;\n{_TIMERS}"
    to_node, to_router = "", ""
    for _, cidr, block_size in plan.shape.pools:
        version = 4 if isinstance(cidr, IPv4Network) else 6
        everything = "0.0.0.0/0" if version == 4 else "::/0"
        blocks = f"{cidr}{{{block_size},{cidr.max_prefixlen}}}"
        to_node += (
            f"  ipv{version} {{\n"
            f"    import where net ~ [ {blocks} ];\n"
            f"    export where net ~ [ {everything}, {blocks} ];\n"
            "    next hop self;\n  };\n"
        )
        told = f"source ~ [ RTS_DEVICE, RTS_STATIC, RTS_BGP ] && net != {everything}"
        # Everything a router knows by itself, or from its nodes, is told to the other routers.
        to_router += (
            f"  ipv{version} {{\n    import all;\n"
            f"    export where {told};\n    next hop self;\n  }};\n"
        )
    return (
        f"template bgp node {{\n{timers}{to_node}}}\n"
        f"template bgp other_router {{\n{timers}{to_router}}}\n"
    )


def start(
    plan: LabPlan,
    paths: LabPaths,
    tor: Machine,
    env: Mapping[str, str],
    *,
    is_restart: bool = False,
) -> Process:
    """Writes a router's configuration and starts its BIRD in the foreground of a session.

    ``is_restart`` leaves a configuration that is there alone and has BIRD recover what its peers
    keep for it (graceful restart, RFC 4724).

    Raises:
        LabFailure: BIRD is not installed.
    """
    conf = paths.bird_conf(tor.name)
    conf.parent.mkdir(parents=True, exist_ok=True)
    if not (is_restart and conf.exists()):
        conf.write_text(bird_conf(plan, tor))
    recover = ["-R"] if is_restart else []
    bird = shutil.which("bird", path=env["PATH"]) or "bird"
    return processes.start(
        f"bird-{tor.name}",
        [bird, "-f", *recover, "-c", str(conf), "-s", str(paths.bird_socket(tor.name))],
        namespace=tor.namespace,
        env=env,
        log=paths.log(f"bird-{tor.name}"),
    )


def show_protocols(paths: LabPaths, tor: Machine) -> str:
    """What ``birdc show protocols`` prints for a router.

    Raises:
        CommandFailed: BIRD does not answer.
    """
    return namespaces.run(["birdc", "-s", str(paths.bird_socket(tor.name)), "show", "protocols"])


def parse_protocols(router: str, text: str) -> list[RouterSession]:
    """The BGP sessions in the answer to ``show protocols``."""
    return [
        RouterSession(router, found["name"], found["state"], found["info"].strip())
        for found in _PROTOCOL.finditer(text)
    ]


def sessions(paths: LabPaths, tor: Machine) -> list[RouterSession]:
    """A router's sessions now; raises CommandFailed when BIRD does not answer."""
    return parse_protocols(tor.name, show_protocols(paths, tor))


def peer_ends(plan: LabPlan, tor: Machine) -> list[LinkEnd]:
    """The far ends a router has a session with."""
    if plan.switch is not None:
        return [*_node_ends(plan), *_other_reflectors(plan, tor)]
    return [far for _, far in plan.links_of(tor) if far.machine.asn is not None]


def _node_ends(plan: LabPlan) -> list[LinkEnd]:
    return [near for node in plan.nodes for near, _ in plan.links_of(node)]


def _other_reflectors(plan: LabPlan, reflector: Machine) -> list[LinkEnd]:
    return [near for tor in plan.tors if tor != reflector for near, _ in plan.links_of(tor)]
