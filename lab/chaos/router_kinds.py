"""R2 and R3: the same death before other routers, and before none of what we do about it.

FRR takes BIRD's place on the lab's router for the time of a row; and an ExaBGP as its manual has it
takes the place of ours, which announces late and says at once that it has told everything.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

from bgp.supervise import exabgp_environment
from lab import namespaces
from lab.chaos.restarts import DOWN_S, LOST, must_lose
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.watch import Watch
from lab.chaos.world import World, zero
from lab.interop.frr import Frr
from lab.interop.model import DaemonTrouble
from lab.plan import client_subnets
from lab.routers import HOLD_TIME_S, KEEPALIVE_TIME_S, RESTART_TIME_S
from lab.waiting import wait_until

TOR = "tor1"
LATE_S = 2.0
LATE_LOST_S = (1.5, 2.5)
FRR_DEADLINE_S = 90.0
SECRET = "Kx2-chaos-rows"  # noqa: S105 - of a lab


class RouterFrr(Frr):
    """An FRR that was given its whole configuration; there may be no neighbour yet."""

    def _is_ready(self) -> bool:
        with suppress(DaemonTrouble):
            return bool(self.vtysh("show bgp summary json"))
        return False

    def established(self) -> set[str]:
        """The addresses of neighbours that are up."""
        with suppress(DaemonTrouble):
            found = self._json("show bgp neighbors json")
            return {
                address for address, row in found.items()
                if isinstance(row, dict) and row.get("bgpState") == "Established"
            }  # fmt: skip
        return set()


def frr_conf(world: World, *, is_dynamic: bool, is_helper: bool = True) -> str:
    """The lab's router in FRR's words: eBGP with every node, the default route and their blocks.

    ``is_dynamic``: a listen range instead of neighbours, with a password and GTSM.
    """
    plan, tor = world.lab.plan, world.machine(TOR)
    nodes = [far for _, far in plan.links_of(tor) if far.machine.asn is not None]
    names = ["NODES"] if is_dynamic else [str(end.ipv4) for end in nodes]
    lines = [
        "frr defaults datacenter",
        "log stdout informational",
        "ip prefix-list BLOCKS permit 10.244.0.0/16 ge 26 le 32",
        "ipv6 prefix-list BLOCKS permit fd44:10:244::/112 ge 122 le 128",
        f"router bgp {tor.asn}",
        f" bgp router-id {plan.links_of(tor)[0][0].ipv4}",
        " no bgp ebgp-requires-policy",
        " no bgp default ipv4-unicast",
        " bgp graceful-restart" if is_helper else " bgp graceful-restart-disable",
        *([f" bgp graceful-restart restart-time {RESTART_TIME_S}"] if is_helper else []),
    ]
    if is_dynamic:
        lines += [" neighbor NODES peer-group", " neighbor NODES remote-as external",
                  f" neighbor NODES password {SECRET}", " neighbor NODES ttl-security hops 1",
                  " bgp listen range 172.30.0.0/16 peer-group NODES"]  # fmt: skip
    else:
        lines += [f" neighbor {end.ipv4} remote-as {end.machine.asn}" for end in nodes]
    for name in names:
        lines += [f" neighbor {name} timers {KEEPALIVE_TIME_S} {HOLD_TIME_S}",
                  f" neighbor {name} timers connect 1",
                  f" neighbor {name} advertisement-interval 0"]  # fmt: skip
    for version in (4, 6):
        lines.append(f" address-family ipv{version} unicast")
        for name in names:
            lines += [f"  neighbor {name} activate", f"  neighbor {name} default-originate",
                      f"  neighbor {name} prefix-list BLOCKS in"]  # fmt: skip
        lines.append(" exit-address-family")
    return "\n".join([*lines, ""])


@contextmanager
def frr_instead(world: World, text: str) -> Iterator[RouterFrr]:
    """FRR in BIRD's place; BIRD again at the end."""
    namespace = world.machine(TOR).namespace
    directory = Path("/run") / f"s32-frr-{os.getpid()}"
    frr = RouterFrr(namespace=namespace, directory=directory)
    world.kill(f"bird-{TOR}")
    for family in ("-4", "-6"):
        world.run(TOR, "ip", family, "route", "flush", "proto", "bird", ok=(0, 1, 2))
    with ExitStack() as stack:
        stack.callback(world.settled)
        stack.callback(world.start_router, TOR)
        for subnet, gateway in _client_routes(world):
            world.run(TOR, "ip", "route", "add", subnet, "via", gateway)
            stack.callback(world.run, TOR, "ip", "route", "del", subnet, "via", gateway)
        stack.callback(_remove, directory)
        stack.callback(frr.stop)
        frr.write_config(text)
        frr.start()
        yield frr


def _remove(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def _client_routes(world: World) -> list[tuple[str, str]]:
    plan = world.lab.plan
    client = next(f for _, f in plan.links_of(world.machine(TOR)) if f.machine == plan.client)
    return [
        (str(subnet), str(client.ipv4 if subnet.version == 4 else client.ipv6))
        for subnet in client_subnets(plan)
    ]


def _all_up(world: World, up: Callable[[], int]) -> None:
    """Returns when every session is up at the router, nodes are healthy and packets cross."""
    count = len(world.nodes)
    world.wait(lambda: up() == count, "sessions at the router", FRR_DEADLINE_S)
    wait_until(lambda: _findings(world), what="healthy agents", deadline_s=FRR_DEADLINE_S)
    for flow in world.flows():
        source = "client" if flow.name.startswith("client") else world.pod_on(world.nodes[1]).name
        world.wait(lambda: world.reaches(source, flow.address), flow.name)  # noqa: B023


def _findings(world: World) -> list[str]:
    rows = {node: world.ask(node, "status") for node in world.nodes}
    return [
        f"{node}: {text}"
        for node, row in rows.items()
        for text in (row["findings"] if row else ["does not answer"])
    ]


@contextmanager
def _keyed(world: World) -> Iterator[None]:
    """Every node's peer with a password and GTSM."""
    world.apply(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: rows}\n"
        f"stringData: {{password: {SECRET}}}\n"
    )
    fields = {"password": {"secretKeyRef": {"name": "rows", "key": "password"}}, "ttlSecurity": 1}
    with ExitStack() as stack:
        for node in world.nodes:
            stack.enter_context(world.peer_edited(node, TOR, fields))
        yield


def _kill_and_watch(world: World, up: Callable[[], int]) -> tuple[Watch, float]:
    """What it cost, and how long the router was without a session."""
    with world.watching() as watch:
        begun_s = time.monotonic()
        world.kill_speaker("node1")
        world.for_seconds(DOWN_S)
        world.start_speaker("node1")
        world.wait(lambda: up() == len(world.nodes), "sessions at the router", FRR_DEADLINE_S)
        back_s = time.monotonic() - begun_s
        _all_up(world, up)
    return watch, back_s


def frr_without_helping(world: World, verdict: Verdict) -> None:
    """Control: FRR that keeps nothing for who restarts."""
    with frr_instead(world, frr_conf(world, is_dynamic=False, is_helper=False)) as frr:
        _all_up(world, lambda: len(frr.established()))
        watch, back_s = _kill_and_watch(world, lambda: len(frr.established()))
    verdict.note(str(watch))
    must_lose(verdict, watch, back_s)


def before_frr(world: World, verdict: Verdict) -> None:
    """Speaker killed, 3 s away; FRR with a neighbour for each node."""
    with frr_instead(world, frr_conf(world, is_dynamic=False)) as frr:
        _all_up(world, lambda: len(frr.established()))
        watch, _ = _kill_and_watch(world, lambda: len(frr.established()))
    zero(world, verdict, watch)


def before_frr_dynamic(world: World, verdict: Verdict) -> None:
    """The same with a listen range, MD5 and GTSM."""
    # The key inside: BIRD, which comes back at the end, has none.
    with frr_instead(world, frr_conf(world, is_dynamic=True)) as frr, _keyed(world):
        _all_up(world, lambda: len(frr.established()))
        watch, _ = _kill_and_watch(world, lambda: len(frr.established()))
    zero(world, verdict, watch)


def before_bird_dynamic(world: World, verdict: Verdict) -> None:
    """BIRD with a neighbour range, MD5 and GTSM."""
    path = world.lab.paths.bird_conf(TOR)
    before = path.read_text()
    head = before.partition("protocol bgp node1 from")[0]
    dynamic = (
        "protocol bgp nodes from node {\n  neighbor range 172.30.0.0/16 external;\n"
        f'  dynamic name "dyn"; password "{SECRET}"; ttl security on;\n}}\n'
    )

    def up() -> int:
        lines = [line for line in world.session_lines(TOR) if line.startswith("dyn")]
        return sum("Established" in line for line in lines)

    try:
        path.write_text(head + dynamic)
        with _keyed(world):
            world.birdc(TOR, "configure")
            _all_up(world, up)
            watch, _ = _kill_and_watch(world, up)
    finally:
        path.write_text(before)
        world.birdc(TOR, "configure")
    world.settled()
    zero(world, verdict, watch)


# -- ExaBGP as it comes ------------------------------------------------------------------------

_LATE = """#!/bin/sh
# Announces so long after the session is up, as a program that has to ask somebody first.
while read -r line; do
  case $line in
    *'"state": "up"'*) sleep {late_s}; printf '{routes}' ;;
  esac
done
"""


def end_of_rib_too_early(world: World, verdict: Verdict) -> None:
    """Control: ExaBGP sends End-of-RIB by itself, and its routes come when that is long over."""
    run_dir = world.lab.paths.run_dir("node1")
    conf = (run_dir / "exabgp.conf").read_text()
    routes = "".join(
        f"announce route {block} next-hop {'self' if ':' not in block else _own_v6(world)}\\n"
        for block in world.blocks_of("node1")
    )
    # Where programs may be executed; /run is often mounted without.
    script = world.lab.paths.programs / "late.sh"
    script.write_text(_LATE.format(late_s=LATE_S, routes=routes))
    script.chmod(0o755)
    plain = run_dir / "plain.conf"
    plain.write_text(_as_it_comes(conf, str(script)))
    with world.watching(world.flows()[0]) as watch:
        world.kill("agent-node1")
        world.kill_speaker("node1")
        with _exabgp(world, plain):
            world.wait(lambda: world.is_up_at(TOR, "node1"), "the session")
            world.for_seconds(LATE_S + 2.0)
    plain.unlink()
    world.start_speaker("node1")
    world.start_agent("node1")
    world.settled()
    verdict.note(str(watch))
    least_s, most_s = LATE_LOST_S
    verdict.must(least_s <= watch.longest_gap_s <= most_s, f"must lose {_LATE_LOST}: {watch}")


def _own_v6(world: World) -> str:
    (end,) = [near for near, _ in world.lab.plan.links_of(world.machine("node1"))]
    return str(ip_address(str(end.ipv6)))


def _as_it_comes(conf: str, program: str) -> str:
    """Our file without what we do against early End-of-RIB: no routes in it, none held back."""
    head, _, tail = conf.partition("  static {")
    text = head + tail.partition("\n  }\n")[2]
    lines = [
        f"  run {program};" if line.strip().startswith("run ") else line
        for line in text.splitlines()
        if line.strip() != "manual-eor true;"
    ]
    return "\n".join([*lines, ""])


@contextmanager
def _exabgp(world: World, conf: Path) -> Iterator[None]:
    with (world.lab.paths.log("exabgp-plain")).open("wb") as log:
        process = subprocess.Popen(
            namespaces.enter(
                world.lab.plan.namespace_of("node1"),
                [sys.executable, "-m", "exabgp", "server", str(conf)],
            ),
            env=exabgp_environment(os.environ),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            yield
        finally:
            process.kill()
            process.wait()


_ONE = Stage.ONE_TOR
_LATE_LOST = f"{LATE_LOST_S[0]:g} to {LATE_LOST_S[1]:g} s"

ROWS = [
    Row("R2a", f"control: FRR without graceful restart, speaker killed, {DOWN_S:g} s away",
        f"must lose {LOST}", _ONE, frr_without_helping),
    Row("R2", f"speaker killed, {DOWN_S:g} s away, FRR", "0 lost, 0 route events", _ONE, before_frr,
        control="R2a"),
    Row("R2b", "the same, FRR with a listen range, MD5 and GTSM", "0 lost, 0 route events", _ONE,
        before_frr_dynamic, control="R2a"),
    Row("R2c", "the same, BIRD with a neighbour range, MD5 and GTSM", "0 lost, 0 route events",
        _ONE, before_bird_dynamic, control="R0"),
    Row("R3", "control: ExaBGP as it comes: End-of-RIB first, routes 2 s after the session is up",
        f"must lose {_LATE_LOST}", _ONE, end_of_rib_too_early),
]  # fmt: skip
