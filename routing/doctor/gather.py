"""Reads the facts from this machine: /proc, /etc, netlink, the agent. Changes nothing."""

from __future__ import annotations

import configparser
import ctypes
import json
import os
import re
import shutil
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path
from socket import AF_INET, AF_INET6, AF_UNSPEC
from typing import Any

from cni import netlink as nl
from cni.attachment import HOST_IFNAME_PREFIX
from cni.netlink_socket import NetlinkSocket
from routing.asking import Unreachable, ask
from routing.doctor.facts import Beside, Facts, ForeignRoute, NetworkFile, Uplink
from routing.explain.routes_now import parse_entry
from routing.rtmessage import protocol_name

PROGRAMS = ("nft", "exabgp")
OUR_TYPE = "slash32"
_SYSCTLS = (
    "net.ipv4.conf.all.forwarding", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.all.rp_filter",
    "net.ipv6.conf.all.disable_ipv6", "net.ipv4.neigh.default.gc_thresh3",
)  # fmt: skip
_KERNEL_PROTOCOL = 2
_UNSYNCHRONISED = 0x40
_LISTEN, _BGP_PORT = "0A", "00B3"


def gather(*, root: Path, run_dir: Path, state_dir: Path, conf_dir: Path) -> Facts:
    """Everything ``diagnose`` looks at.

    Args:
        root: where /etc and /run are; "/" but in tests.
    """
    uplinks = tuple(_uplinks()) if os.geteuid() == 0 else ()
    status, peers, pods, agent_error = _agent(run_dir)
    release = os.uname().release.split(".")
    return Facts(
        is_root=os.geteuid() == 0,
        kernel=(int(release[0]), int(re.sub(r"\D.*", "", release[1]) or 0)),
        sysctls=dict(_sysctls([uplink.ifname for uplink in uplinks])),
        networkd=_networkd(root),
        network_manager=_network_manager(root),
        network_files=_network_files(conf_dir),
        uplinks=uplinks,
        listeners=tuple(_listeners()),
        foreign_routes=tuple(_foreign_routes()) if os.geteuid() == 0 else (),
        is_clock_synchronised=_is_clock_synchronised(),
        missing_programs=tuple(p for p in PROGRAMS if _which(p) is None),
        state_free_percent=_free_percent(state_dir),
        read_only=tuple(str(each) for each in (run_dir, state_dir) if _is_read_only(each)),
        status=status,
        agent_error=agent_error,
        peers=peers,
        pods=pods,
    )


def _which(program: str) -> str | None:
    import sys

    # ExaBGP stands beside the interpreter in a virtual environment, nft in sbin.
    path = f"{os.environ.get('PATH', '')}:{Path(sys.executable).parent}:/usr/sbin:/sbin"
    return shutil.which(program, path=path)


def _agent(run_dir: Path) -> tuple[Any, list[Any], list[Any], str]:
    socket = run_dir / "agent.sock"
    try:
        status = ask(socket, "status", timeout_s=3.0)
        peers = ask(socket, "peers", timeout_s=3.0)
        pods = ask(socket, "pods", timeout_s=3.0)
    except Unreachable as error:
        return None, [], [], str(error)
    _add_causes(peers)
    return status, peers, pods, ""


def _add_causes(peers: list[Any]) -> None:
    from routing.explain.kernel import gather_peers
    from routing.explain.reasons import cause_of_row

    down = [peer for peer in peers if peer["state"] != "Established"]
    if not down:
        return
    try:
        kernel = gather_peers([peer["peer"] for peer in down])
    except OSError:
        kernel = None
    for peer in down:
        cause = cause_of_row(peer, kernel)
        peer["cause"], peer["remedy"] = f"{cause.fault}: {cause.sentence}", cause.remedy


def _sysctls(uplinks: list[str]) -> Iterator[tuple[str, str]]:
    names = [*_SYSCTLS]
    for ifname in uplinks:
        names += [f"net.ipv4.conf.{ifname}.rp_filter", f"net.ipv6.conf.{ifname}.accept_ra"]
    for name in names:
        family, *rest = name.removeprefix("net.").split(".", 2)
        path = Path("/proc/sys/net", family, *rest[:1], *_split_last(rest[1]))
        try:
            yield name, path.read_text().strip()
        except OSError:
            continue


def _split_last(text: str) -> list[str]:
    """An interface's name may hold dots (eth0.100); a sysctl's does not."""
    head, _, last = text.rpartition(".")
    return [head, last] if head else [last]


def _networkd(root: Path) -> dict[str, str] | None:
    """The [Network] section in force, keys in lower case; None when networkd does not run."""
    if not (root / "run/systemd/netif/links").is_dir():
        return None
    found: dict[str, str] = {}
    base = root / "etc/systemd/networkd.conf"
    extra = sorted((root / "etc/systemd/networkd.conf.d").glob("*.conf"))
    for path in (base, *extra):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        try:
            parser.read_string(path.read_text())
        except (OSError, configparser.Error, UnicodeDecodeError):
            continue
        if parser.has_section("Network"):
            found |= dict(parser.items("Network"))
    return found


def _network_manager(root: Path) -> tuple[bool, bool]:
    runs = (root / "run/NetworkManager").is_dir()
    rules = [
        *(root / "etc/NetworkManager").glob("*.conf"),
        *(root / "etc/NetworkManager/conf.d").glob("*.conf"),
    ]
    is_told = False
    for path in rules:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError):
            continue
        is_told = is_told or ("unmanaged-devices" in text and "s32" in text)
    return runs, is_told


def _network_files(conf_dir: Path) -> tuple[NetworkFile, ...] | None:
    try:
        paths = [p for p in conf_dir.iterdir() if p.suffix in (".conf", ".conflist", ".json")]
    except FileNotFoundError:
        return ()
    except OSError:
        return None
    return tuple(NetworkFile(path.name, _is_ours(path)) for path in sorted(paths))


def _is_ours(path: Path) -> bool:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(document, dict):
        return False
    plugins = document.get("plugins", [document])
    return any(isinstance(each, dict) and each.get("type") == OUR_TYPE for each in plugins)


def _uplinks() -> Iterator[Uplink]:
    with NetlinkSocket() as socket:
        links = socket.dump(nl.RTM_GETLINK, nl.IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0))
        bodies = socket.dump(nl.RTM_GETADDR, nl.IFADDRMSG.pack(AF_UNSPEC, 0, 0, 0, 0))
    networks: dict[int, list[str]] = {}
    for body in bodies:
        _family, length, _flags, scope, ifindex = nl.IFADDRMSG.unpack_from(body)
        parts = nl.attributes(body, nl.IFADDRMSG.size)
        packed = parts.get(nl.IFA_LOCAL) or parts.get(nl.IFA_ADDRESS)
        if packed and scope == nl.RT_SCOPE_UNIVERSE:
            network = ip_interface(f"{ip_address(packed)}/{length}").network
            networks.setdefault(ifindex, []).append(str(network))
    for body in links:
        ifindex = nl.IFINFOMSG.unpack_from(body)[2]
        parts = nl.attributes(body, nl.IFINFOMSG.size)
        name = nl.text(parts.get(nl.IFLA_IFNAME, b""))
        if ifindex in networks and name != "lo" and not name.startswith(HOST_IFNAME_PREFIX):
            yield Uplink(name, nl.u32(parts[nl.IFLA_MTU]), tuple(networks[ifindex]))


def _foreign_routes() -> Iterator[ForeignRoute]:
    ours: dict[str, int] = {}
    others = []
    with NetlinkSocket(receive_buffer_bytes=8 << 20) as socket:
        for family in (AF_INET, AF_INET6):
            head = nl.RTMSG.pack(family, 0, 0, 0, nl.RT_TABLE_MAIN, 0, 0, 0, 0)
            for body in socket.dump_routes(head):
                route = parse_entry(socket, body)
                if route.is_ours:
                    ours[route.prefix] = min(route.metric, ours.get(route.prefix, route.metric))
                elif route.protocol != _KERNEL_PROTOCOL:
                    others.append(route)
    for route in others:
        beside = Beside.NONE_OF_OURS
        if route.prefix in ours:
            is_used = route.metric <= ours[route.prefix]
            beside = Beside.INSTEAD_OF_OURS if is_used else Beside.BEHIND_OURS
        yield ForeignRoute(route.prefix, f"{route} ({protocol_name(route.protocol)})", beside)


def _listeners() -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == _LISTEN and port == _BGP_PORT:
                yield "every address" if set(address) == {"0"} else f"one {name} address"


class _Timex(ctypes.Structure):
    """struct timex (adjtimex(2)), as far as ``status``; the kernel writes the rest too."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def _is_clock_synchronised() -> bool | None:
    timex = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
        return None
    return not timex.status & _UNSYNCHRONISED


def _is_read_only(directory: Path) -> bool:
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _free_percent(state_dir: Path) -> float | None:
    for path in (state_dir, *state_dir.parents):
        if path.exists():
            usage = shutil.disk_usage(path)
            return 100.0 * usage.free / usage.total if usage.total else None
    return None
