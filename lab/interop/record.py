"""``python -m lab.interop.record DIRECTORY``: what a real daemon says in one session.

One file a daemon, one message a line, in hex, without the OPEN: its table, prefixes that come and
go, its answer to a ROUTE-REFRESH, KEEPALIVEs, and how it says goodbye. tests/golden/streams was
made with it; a test reads every stream with stock and with tuned ExaBGP.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

from cni.netns import inside
from lab import namespaces, processes
from lab.bench.announcer import open_netns
from lab.interop.daemon import Daemon
from lab.interop.model import DaemonPlan, Neighbour, Origin
from lab.interop.run import DAEMONS
from lab.plan import LabFailure

NODE_ASN, ROUTER_ASN = 64601, 64512
US, THEM = IPv4Address("172.30.0.1"), IPv4Address("172.30.0.0")
US6, THEM6 = IPv6Address("fd00:30::1"), IPv6Address("fd00:30::")
SESSION_DEADLINE_S = 40.0
QUIET_S = 2.0
_MARKER = b"\xff" * 16
_OPEN = bytes([4]) + NODE_ASN.to_bytes(2, "big") + bytes([0, 9]) + US.packed
_CAPABILITIES = bytes.fromhex("01040001000101040002000102004104") + NODE_ASN.to_bytes(4, "big")
_REFRESH = (b"\x00\x01\x00\x01", b"\x00\x02\x00\x01")

TABLE = tuple(
    Origin(
        ip_network(prefix),
        communities=(f"{ROUTER_ASN}:{number}",) if number % 3 else (),
        large_communities=(f"{ROUTER_ASN}:1:{number}",) if number % 4 == 1 else (),
    )
    for number, prefix in enumerate(
        [
            *(f"10.244.{number}.0/26" for number in range(16)),
            "10.0.0.0/8", "10.245.0.1/32", "0.0.0.0/0",
            *(f"fd44:10:244::{number}00/122" for number in range(8)),
            "::/0",
        ]
    )
)  # fmt: skip
LATER = tuple(
    Origin(ip_network(prefix))
    for prefix in ("10.246.0.0/26", "10.246.0.64/26", "fd44:10:246::/122")
)


def _message(kind: int, body: bytes = b"") -> bytes:
    return _MARKER + (19 + len(body)).to_bytes(2, "big") + bytes([kind]) + body


def _read(session: socket.socket) -> bytes:
    """One message, whole; empty at the end."""
    header = session.recv(19, socket.MSG_WAITALL)
    if len(header) < 19:
        return b""
    rest = int.from_bytes(header[16:18], "big") - 19
    return header + (session.recv(rest, socket.MSG_WAITALL) if rest else b"")


def _read_until_quiet(session: socket.socket, into: list[bytes]) -> None:
    """Until nothing but KEEPALIVEs has come for a while; answers those."""
    session.settimeout(0.2)
    quiet_from_s = time.monotonic()
    while time.monotonic() - quiet_from_s < QUIET_S:
        try:
            message = _read(session)
        except TimeoutError:
            continue
        if not message:
            return
        into.append(message)
        if message[18] == 4:
            session.sendall(_message(4))
        else:
            quiet_from_s = time.monotonic()


def _session(listener: socket.socket) -> tuple[socket.socket, list[bytes]]:
    """The daemon's connection, established, and what came with it after its OPEN."""
    end_s = time.monotonic() + SESSION_DEADLINE_S
    while time.monotonic() < end_s:
        session, _ = listener.accept()
        session.settimeout(SESSION_DEADLINE_S)
        option = bytes([2, len(_CAPABILITIES)]) + _CAPABILITIES
        session.sendall(_message(1, _OPEN + bytes([len(option)]) + option))
        if _read(session)[18:19] == b"\x01":
            session.sendall(_message(4))
            return session, []
        session.close()
    raise LabFailure("no session")


def record(kind: type[Daemon], directory: Path) -> Path:
    """Runs one daemon and writes its file.

    Raises:
        LabFailure: it did not start, or no session came up.
    """
    tag = f"s32rec-{os.getpid()}"
    router, node = f"{tag}-r", f"{tag}-n"
    scratch = Path(tempfile.mkdtemp(prefix=f"{tag}-"))
    scratch.chmod(0o755)
    namespaces.create([router, node])
    try:
        namespaces.ip_batch(
            router,
            [
                f"link add node type veth peer name uplink netns {node}",
                f"addr add {THEM}/31 dev node", f"addr add {THEM6}/127 dev node nodad",
                "link set node up",
            ],
        )  # fmt: skip
        namespaces.ip_batch(
            node,
            [
                f"addr add {US}/31 dev uplink",
                f"addr add {US6}/127 dev uplink nodad",
                "link set uplink up",
            ],
        )
        fd = open_netns(node)
        with inside(fd):
            listener = socket.create_server((str(US), 179))
        os.close(fd)
        listener.settimeout(SESSION_DEADLINE_S)
        daemon = kind(namespace=router, directory=scratch / kind.name)
        us = Neighbour(US, NODE_ASN, families=(4, 6))
        daemon.configure(DaemonPlan(ROUTER_ASN, THEM, THEM, THEM6, us, TABLE))
        daemon.start()
        session, said = _session(listener)
        with session, listener:
            _read_until_quiet(session, said)
            for origin in LATER:
                daemon.announce(origin)
            _read_until_quiet(session, said)
            for origin in (*LATER[:2], TABLE[0], TABLE[-2]):
                daemon.withdraw(origin)
            _read_until_quiet(session, said)
            for family in _REFRESH:
                session.sendall(_message(5, family))
            _read_until_quiet(session, said)
            daemon.shut_down_session("rack 7 is moved")
            _read_until_quiet(session, said)
        out = directory / f"{kind.title_and_version().lower().replace(' ', '-')}.hex"
        out.write_text("".join(f"{message.hex()}\n" for message in said))
        return out
    finally:
        inodes = [namespaces.inode(name) for name in (router, node)]
        processes.stop(processes.inside([each for each in inodes if each is not None]))
        for name in (router, node):
            namespaces.delete(name)
        shutil.rmtree(scratch, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Records all daemons that are installed."""
    directory = Path(arguments[0])
    directory.mkdir(parents=True, exist_ok=True)
    for kind in DAEMONS.values():
        if kind.is_installed():
            print(record(kind, directory))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
