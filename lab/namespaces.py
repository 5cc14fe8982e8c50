"""Network namespaces, links and addresses, by iproute2's programs.

The lab uses the tools a person would, so that what it made can be looked at with them. It never
works in the root namespace: a veth pair is made from inside one of its two namespaces, with the
peer born in the other.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab import interrupts
from lab.plan import LabFailure, LabPlan, Link, Machine

NETNS_DIR = Path("/run/netns")
COMMAND_DEADLINE_S = 30.0
BRIDGE = "lan"

ROUTER_SYSCTLS: Mapping[str, str] = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    # Or Linux takes a link's IPv6 addresses away with the link, which no hardware router does.
    "net/ipv6/conf/all/keep_addr_on_down": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    # Without it every flow between two hosts takes one path and a second router stays idle.
    "net/ipv4/fib_multipath_hash_policy": "1",
    "net/ipv6/fib_multipath_hash_policy": "1",
}
"""For routers and the client. A node gets none: what it needs is the agent's business."""


class CommandFailed(LabFailure):
    """A program ended badly; the sentence holds its command line and its last words."""


def enter(namespace: str, argv: Sequence[str], *, cwd: str | None = None) -> list[str]:
    """The command line that runs ``argv`` in a namespace, and in directory ``cwd`` when given.

    nsenter only changes the network namespace. ``ip netns exec`` would also make a mount
    namespace and mount /sys anew for every command.
    """
    directory = [f"--wd={cwd}"] if cwd else []
    return ["nsenter", f"--net={NETNS_DIR / namespace}", *directory, "--", *argv]


def run(
    argv: Sequence[str],
    *,
    namespace: str | None = None,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    ok: tuple[int, ...] = (0,),
    deadline_s: float = COMMAND_DEADLINE_S,
) -> str:
    """Runs a program to its end and returns what it printed.

    It gets a session of its own, or Ctrl-C at the terminal would end it under our hands and
    leave a step half done.

    Raises:
        CommandFailed: it cannot be run, takes longer than ``deadline_s``, or its exit status is
            not one of ``ok``.
        Interrupted: the whole command was asked to end before this one began.
    """
    interrupts.check()
    command = enter(namespace, argv) if namespace else list(argv)
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            env=None if env is None else dict(env),
            timeout=deadline_s,
            start_new_session=True,
            check=False,
        )
    except OSError as error:
        raise CommandFailed(f"cannot run {command[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{' '.join(command)}: no end after {deadline_s:g} s") from None
    if done.returncode not in ok:
        words = f"{done.stdout.strip()}\n{done.stderr.strip()}".strip().splitlines() or [
            "no message"
        ]
        raise CommandFailed(
            f"{' '.join(command)}: exit status {done.returncode}: {' / '.join(words[-6:])}"
        )
    return done.stdout


def create(names: Iterable[str]) -> None:
    """Makes named namespaces with their loopback up.

    Raises:
        CommandFailed: one exists already, or this process may not make namespaces.
    """
    for name in names:
        run(["ip", "netns", "add", name])
        ip_batch(name, ["link set lo up"])


def delete(name: str) -> None:
    """Removes a named namespace; one that is not there is no failure.

    The kernel frees it, and every link in it, once no process is left inside.
    """
    if exists(name):
        try:
            run(["ip", "netns", "delete", name])
        except CommandFailed:
            if exists(name):
                raise


def exists(name: str) -> bool:
    return (NETNS_DIR / name).exists()


def inode(name: str) -> int | None:
    """What tells a namespace from another (nsfs inode), or None when the name is not mounted."""
    try:
        status = os.stat(NETNS_DIR / name)
    except FileNotFoundError:
        return None
    # The bare file of a half-made or half-removed namespace lies on another file system.
    return status.st_ino if status.st_dev == os.stat("/proc/self/ns/net").st_dev else None


def ip_batch(namespace: str, lines: Iterable[str]) -> None:
    """Runs several ``ip`` commands in one process; stops at the first that fails."""
    run(["ip", "-batch", "-"], namespace=namespace, stdin="".join(f"{line}\n" for line in lines))


def ip_json(namespace: str | None, *arguments: str) -> list[dict[str, Any]]:
    """What ``ip -json`` answers in a namespace (None: the one we are in)."""
    text = run(["ip", "-details", "-json", *arguments], namespace=namespace)
    return json.loads(text) if text.strip() else []


def write_sysctls(namespace: str, values: Mapping[str, str]) -> None:
    """Writes /proc/sys files, which show the namespace of whoever opens them."""
    script = "".join(f"echo {value} > /proc/sys/{path}\n" for path, value in values.items())
    run(["sh", "-e", "-c", script], namespace=namespace)


def _address_lines(ifname: str, addresses: Iterable[object]) -> list[str]:
    # nodad: an address that is still being checked cannot be used, and on a link of two ends
    # whose addresses we chose there is nobody to collide with.
    return [f"addr add {a} dev {ifname}" + (" nodad" if ":" in str(a) else "") for a in addresses]


def _make_link(link: Link, mtu_bytes: int) -> str:
    near, far = link.router_end, link.far_end
    return (
        f"link add {near.ifname} mtu {mtu_bytes} type veth "
        f"peer name {far.ifname} mtu {mtu_bytes} netns {far.machine.namespace}"
    )


def connect(plan: LabPlan, *, mtu_bytes: int) -> None:
    """Makes every link of the plan, addresses both ends and sets them up.

    Raises:
        CommandFailed: a step failed; what was made until then is left for the teardown.
    """
    routers = {tor.namespace for tor in plan.tors} | {plan.client.namespace}
    for namespace in sorted(routers):
        sysctls = dict(ROUTER_SYSCTLS)
        if not plan.shape.dual_stack:
            sysctls = {k: v for k, v in sysctls.items() if "/ipv6/" not in k}
        write_sysctls(namespace, sysctls)
    for maker in dict.fromkeys(link.router_end.machine for link in plan.links):
        made_here = [link for link in plan.links if link.router_end.machine == maker]
        lines = [_make_link(link, mtu_bytes) for link in made_here]
        if maker == plan.switch:
            # No spanning tree: a port forwards from its first moment.
            lines.append(f"link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0")
            lines += [f"link set {link.router_end.ifname} master {BRIDGE}" for link in made_here]
            lines.append(f"link set {BRIDGE} up")
        ip_batch(maker.namespace, lines)
    for machine in plan.machines:
        ip_batch(machine.namespace, _machine_lines(plan, machine))


def _machine_lines(plan: LabPlan, machine: Machine) -> list[str]:
    lines = _address_lines("lo", machine.loopback)
    for near, _ in plan.links_of(machine):
        lines += _address_lines(near.ifname, near.addresses)
        lines.append(f"link set {near.ifname} up")
    if machine == plan.client and plan.switch is None:
        lines += _client_routes(plan)
    return lines


def _client_routes(plan: LabPlan) -> list[str]:
    """The client's default route over every router, with its own address as the source."""
    ends = [tor_end for _, tor_end in plan.links_of(plan.client)]
    lines: list[str] = []
    for own in plan.client.loopback:
        hops = [
            f"nexthop via {end.ipv4 if own.version == 4 else end.ipv6} dev {end.machine.name}"
            for end in ends
        ]
        lines.append(f"route add default src {own.ip} {' '.join(hops)}")
    return lines


def default_routes(namespace: str) -> list[dict[str, Any]]:
    """Every default route of a namespace, of both families and all tables."""
    return [
        route
        for family in ("-4", "-6")
        for route in ip_json(namespace, family, "route", "show", "table", "all")
        if route.get("dst") == "default" and route.get("type") != "unreachable"
    ]


def translation_rules(namespace: str) -> list[str]:
    """What in a namespace could translate addresses: nft chains of type nat, iptables' nat."""
    listing = json.loads(run(["nft", "--json", "list", "ruleset"], namespace=namespace))
    found = [
        f"nft chain {chain.get('table')}/{chain.get('name')}"
        for entry in listing.get("nftables", [])
        if (chain := entry.get("chain")) and chain.get("type") == "nat"
    ]
    for path in ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"):
        tables = run(["sh", "-c", f"cat {path} 2>/dev/null || true"], namespace=namespace)
        found += [f"iptables table nat ({path})" for name in tables.split() if name == "nat"]
    return found
