"""A node and two routers in namespaces: real ExaBGP, real BIRD, for contract and netns tests."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from bgp.paths import Address, Family, Peer
from bgp.speaker import Speaker
from bgp.supervise import exabgp_command, exabgp_environment
from tests.fakes.bird import BIRD, DEADLINE_S, POLL_S, Bird, wait_until

NODE_ASN = 65001
_serial = itertools.count()


def why_not() -> str | None:
    """Why real routers cannot run here, or None."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    if not Path(BIRD).exists():
        return f"needs {BIRD}"
    return None if shutil.which("ip") else "needs iproute2"


async def eventually(
    condition: Callable[[], object], *, what: str, deadline_s: float = DEADLINE_S
) -> None:
    """Returns when ``condition`` is true; fails with ``what`` at the deadline."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        await asyncio.sleep(POLL_S)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


class Routers:
    """Namespaces for one node and two routers, a veth to each, and a BIRD in each router's.

    Router n (1, 2) is 192.0.2+n... : node 10.255.n.1, router 10.255.n.2; IPv6 2001:db8:n::1, ::2.
    """

    def __init__(
        self, directory: Path, *, graceful_restart: bool = True, programs_kernel: bool = False
    ) -> None:
        self._prefix = f"s32t-{os.getpid()}-b{next(_serial)}"
        self.node = f"{self._prefix}-n"
        self._graceful_restart = graceful_restart
        self._programs_kernel = programs_kernel
        self._made: list[str] = []
        self._sends: dict[int, list[str]] = {1: [], 2: []}
        self.export_actions: dict[int, str] = {1: "", 2: ""}
        """BIRD statements for what a router exports: attributes that it adds."""
        self.session_version = {1: 4, 2: 4}
        """Over which version of IP a router's session runs; set before anything starts."""
        self.options: dict[int, str] = {1: "", 2: ""}
        """More statements for a router's BGP protocol, and for its IPv4 channel."""
        self.ipv4_options: dict[int, str] = {1: "", 2: ""}
        self.birds: dict[int, Bird] = {}
        try:
            self._build(directory)
        except BaseException:
            self.close()
            raise

    def _build(self, directory: Path) -> None:
        self._namespace(self.node)
        for number in (1, 2):
            netns = self.namespace(number)
            self._namespace(netns)
            _ip("-n", self.node, "link", "add", f"up{number}", "type", "veth",
                "peer", "name", "down0", "netns", netns)  # fmt: skip
            for where, link, end in ((self.node, f"up{number}", 1), (netns, "down0", 2)):
                _ip("-n", where, "addr", "add", f"10.255.{number}.{end}/24", "dev", link)
                _ip("-n", where, "addr", "add", f"2001:db8:{number}::{end}/64",
                    "dev", link, "nodad")  # fmt: skip
                _ip("-n", where, "link", "set", link, "up")
            self.birds[number] = Bird(
                netns=netns, directory=directory / f"r{number}", config=self._config(number)
            )

    def _namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._made.append(name)
        _ip("-n", name, "link", "set", "lo", "up")

    def close(self) -> None:
        """Ends the BIRDs and removes the namespaces."""
        for bird in self.birds.values():
            bird.kill()
        for name in reversed(self._made):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        self._made.clear()

    def namespace(self, number: int) -> str:
        """Router ``number``'s network namespace."""
        return f"{self._prefix}-r{number}"

    def swallow(self, number: int, host: int) -> Address:
        """An address on router ``number``'s link where everything sent vanishes unanswered."""
        address = ip_address(f"10.255.{number}.{host}")
        _ip("-n", self.node, "neigh", "add", str(address), "lladdr", "02:00:00:00:00:77",
            "dev", f"up{number}", "nud", "permanent")  # fmt: skip
        return address

    def peer(self, number: int, *, families: tuple[Family, ...] = tuple(Family)) -> Peer:
        """The node's session with router ``number``."""
        return Peer(
            name=f"router{number}",
            address=self._address(number, 2),
            remote_asn=65000 + 10 * number,
            local_asn=NODE_ASN,
            local_address=self._address(number, 1),
            router_id=IPv4Address("10.255.255.1"),
            families=families,
        )

    def _address(self, number: int, end: int) -> Address:
        if self.session_version[number] == 4:
            return ip_address(f"10.255.{number}.{end}")
        return ip_address(f"2001:db8:{number}::{end}")

    def sent(self, number: int) -> list[str]:
        """What router ``number`` announces at present."""
        return list(self._sends[number])

    def send(self, number: int, prefixes: Iterable[str]) -> None:
        """Router ``number`` announces exactly these from now on."""
        self._sends[number] = list(prefixes)
        self.reconfigure(number)

    def reconfigure(self, number: int) -> None:
        """Makes router ``number`` what the tables here say, now or at its start."""
        bird = self.birds[number]
        if bird.is_running:
            bird.configure(self._config(number))
        else:
            bird._config.write_text(self._config(number))

    def _config(self, number: int) -> str:
        statics = {
            version: "".join(
                f"  route {p} blackhole;\n"
                for p in self._sends[number]
                if (":" in p) == (version == 6)
            )
            for version in (4, 6)
        }
        restart = "graceful restart on;" if self._graceful_restart else "graceful restart off;"
        kernel = "protocol kernel { ipv4 { import none; export all; }; }"
        return f"""\
{kernel if self._programs_kernel else ""}
log stderr all;
router id 10.255.{number}.2;
debug protocols {{ states, packets }};
protocol device {{ scan time 60; }}
protocol static s4 {{ ipv4;
{statics[4]}}}
protocol static s6 {{ ipv6;
{statics[6]}}}
filter ours {{
  if source != RTS_STATIC then reject;
  {self.export_actions[number]}
  accept;
}}
protocol bgp node {{
  local {self._address(number, 2)} as {65000 + 10 * number};
  neighbor {self._address(number, 1)} as {NODE_ASN};
  {self.options[number]}
  hold time 9;
  {restart}
  connect delay time 1;
  error wait time 1,2;
  ipv4 {{ import all; export filter ours; {self.ipv4_options[number]} }};
  ipv6 {{ import all; export filter ours;
    next hop address 2001:db8:{number}::2; }};
}}
"""


class RealSpeakers:
    """The node: a Speaker in this process and an ExaBGP in the node's namespace."""

    def __init__(self, routers: Routers, directory: Path) -> None:
        self._routers = routers
        self._socket = directory / "bgp.sock"
        self.conf = directory / "exabgp.conf"
        self._log = directory / "exabgp.log"
        self.exabgp: subprocess.Popen[bytes] | None = None
        self.changes: list[str] = []
        self.speaker = self._new_speaker()

    def _new_speaker(self) -> Speaker:
        return Speaker(
            socket_path=str(self._socket),
            conf_path=str(self.conf),
            clock=time.monotonic,
            on_change=self.changes.append,
        )

    async def start(self) -> None:
        """The agent starts; ExaBGP too, as soon as there is a configuration for it."""
        await self.speaker.start()

    def start_exabgp(self) -> None:
        """Starts ExaBGP on the configuration that ``set_peers`` has written."""
        with self._log.open("ab") as log:
            self.exabgp = subprocess.Popen(
                ["ip", "netns", "exec", self._routers.node, *exabgp_command(str(self.conf))],
                env=exabgp_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def end_exabgp(self, *, kill: bool) -> None:
        """SIGKILL or SIGTERM, and waits for its end."""
        process, self.exabgp = self.exabgp, None
        if process is None:
            return
        if kill:
            process.kill()
        else:
            process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    async def connected(self) -> None:
        """Waits until the speaker has read ExaBGP back."""
        await eventually(lambda: self.speaker.is_connected, what="the speaker is connected")

    async def restart_agent(self) -> Speaker:
        """The agent is killed and starts again: nothing of the old Speaker survives."""
        await self.speaker.close()
        self.speaker = self._new_speaker()
        await self.speaker.start()
        await self.connected()
        return self.speaker

    async def close(self) -> None:
        """Ends the Speaker and ExaBGP."""
        await self.speaker.close()
        self.end_exabgp(kill=True)

    def log(self) -> str:
        """What ExaBGP and the bridge have written to stderr."""
        return self._log.read_text() if self._log.exists() else ""


def is_established(speaker: object, peer: Address) -> bool:
    """Whether a speaker's own view has the session up."""
    status = speaker.sessions().get(peer)  # type: ignore[attr-defined]
    return status is not None and status.state.value == "Established"


__all__ = [
    "Bird",
    "RealSpeakers",
    "Routers",
    "eventually",
    "is_established",
    "wait_until",
    "why_not",
]
