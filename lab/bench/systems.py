"""The systems under test, each as its operator would run it: eBGP, ECMP, routes in the kernel."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from lab.bench.announcer import Load
from lab.namespaces import enter, run
from lab.plan import LabFailure
from routing.datastore.local import LocalStore
from routing.datastore.resources import parse_resources

ASN, PEER_ASN = 64601, 64512
STOP_DEADLINE_S = 10.0
_ROLES = {
    "exabgp_tuned.py": "exabgp", "bridge.py": "bridge", "supervise.py": "supervisor",
    "agent": "agent",
}  # fmt: skip
"""What is on the command line of each of ours."""


def own(number: int) -> str:
    """The system's address on the link to router ``number``."""
    return f"10.99.{number}.1"


def router(number: int, host: int = 2) -> str:
    """Router ``number``'s address; ``host`` 3 is a second next hop on the same link."""
    return f"10.99.{number}.{host}"


def router_v6(number: int, host: int = 2) -> str:
    """The same for IPv6."""
    return f"2001:db8:99:{number}::{host}"


class System(ABC):
    """One implementation; started afresh for every measurement."""

    name: str
    programs_kernel = True

    def __init__(self, directory: Path, namespace: str) -> None:
        self.directory, self.namespace = directory, namespace
        self._running: list[subprocess.Popen[bytes]] = []
        directory.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def start(self, routers: Sequence[int]) -> None:
        """Starts it with a session to each of these routers."""

    def route_count(self, load: Load) -> int:
        """How many routes its RIB has; only asked where it does not program the kernel."""
        raise LabFailure(f"{self.name} cannot be asked")

    def announce(self, prefix: str) -> None:
        """Announces one prefix to its peers by its own interface for that."""
        raise LabFailure(f"{self.name} has no way to announce {prefix}")

    def spawn(self, argv: Sequence[str], env: dict[str, str] | None = None) -> None:
        """Runs a program in the namespace; its words go to a file."""
        log = self.directory / f"{Path(argv[0]).name}-{len(self._running)}.log"
        with log.open("wb") as out:
            self._running.append(
                subprocess.Popen(
                    enter(self.namespace, argv),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=os.environ | (env or {}),
                    start_new_session=True,
                )
            )

    def stop(self) -> None:
        """Ends it; in the end by SIGKILL."""
        for process in reversed(self._running):
            process.terminate()
        end_s = time.monotonic() + STOP_DEADLINE_S
        for process in reversed(self._running):
            try:
                process.wait(max(0.1, end_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def processes(self) -> list[int]:
        """The pids of all that runs for it."""
        found, waiting = [], [process.pid for process in self._running]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                waiting += [int(word) for word in _read(task).split()]
        return found

    def cpu_s(self) -> float:
        """CPU time of all its processes so far."""
        return sum(self.cpu_s_by_name().values())

    def peak_mib(self) -> float:
        """The sum of what each of its processes had resident at most."""
        return sum(self.peak_mib_by_name().values())

    def cpu_s_by_name(self) -> dict[str, float]:
        """CPU time so far, by what each of its processes is."""
        found: dict[str, float] = {}
        for pid in self.processes():
            # The scheduler's own account, in nanoseconds: a tick is too coarse for an idle one.
            spent = sum(
                int(_read(task).split()[0] or 0)
                for task in Path(f"/proc/{pid}/task").glob("*/schedstat")
                if _read(task)
            )
            name = _role(pid)
            found[name] = found.get(name, 0.0) + spent / 1e9
        return found

    def peak_mib_by_name(self) -> dict[str, float]:
        """What was resident at most, by what each of its processes is."""
        found: dict[str, float] = {}
        for pid in self.processes():
            for line in _read(Path(f"/proc/{pid}/status")).splitlines():
                if line.startswith("VmHWM:"):
                    name = _role(pid)
                    found[name] = found.get(name, 0.0) + int(line.split()[1]) / 1024
        return found


def _role(pid: int) -> str:
    """``agent``, ``supervisor``, ``exabgp``, ``bridge``, or the program's own name."""
    argv = _read(Path(f"/proc/{pid}/cmdline")).split("\0")
    for word, role in _ROLES.items():
        if any(each == word or each.endswith(f"/{word}") for each in argv):
            return role
    return Path(argv[0]).name


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


class Slash32(System):
    """The real agent and the real speaker, production configuration, embedded store."""

    name = "slash32"

    def start(self, routers: Sequence[int]) -> None:
        self.start_with([router(number) for number in routers])

    def start_with(self, addresses: Sequence[str]) -> None:
        """Starts it with a session to each of these addresses."""
        peers = "".join(
            f"---\nkind: BGPPeer\napiVersion: slash32.io/v1\nmetadata: {{name: r{n}}}\n"
            f"spec: {{peerIP: {address}, asNumber: {PEER_ASN}}}\n"
            for n, address in enumerate(addresses)
        )
        resources = self.directory / "network.yaml"
        resources.write_text(
            "kind: IPPool\napiVersion: slash32.io/v1\nmetadata: {name: v4}\n"
            "spec: {cidr: 10.0.0.0/8, blockSize: 26}\n"
            "---\nkind: IPPool\napiVersion: slash32.io/v1\nmetadata: {name: v6}\n"
            "spec: {cidr: 'fd00::/96', blockSize: 122}\n"
            "---\nkind: BGPConfiguration\napiVersion: slash32.io/v1\nmetadata: {name: default}\n"
            f"spec: {{asNumber: {ASN}, nodeToNodeMeshEnabled: false}}\n"
            "---\nkind: Node\napiVersion: slash32.io/v1\nmetadata: {name: bench}\n"
            f"spec: {{addresses: [{own(1)}], bgp: {{asNumber: {ASN}}}}}\n" + peers
        )
        self._cli("apply", "-f", str(resources), "--store", str(self.directory / "store.db"))
        paths = ["--run-dir", str(self.directory / "run")]
        self.spawn(
            [*slash32_command(), "agent", "--node", "bench", *paths,
             "--state-dir", str(self.directory / "state"),
             "--store", str(self.directory / "store.db")]
        )  # fmt: skip
        self.spawn([*slash32_command(), "speaker", *paths])

    def announce(self, prefix: str) -> None:
        """A confirmed block of this node in the store, written by this process: a command of ours
        would first have to start an interpreter."""
        name = prefix.replace(".", "-").replace("/", "-")
        blocks = parse_resources(
            f"kind: Block\napiVersion: slash32.io/v1\nmetadata: {{name: {name}}}\n"
            f"spec: {{cidr: {prefix}, pool: v4, affinity: 'host:bench', state: confirmed}}\n",
            source="bench",
        )

        async def write() -> None:
            store = LocalStore(self.directory / "store.db", create=False)
            try:
                await store.apply(blocks)
            finally:
                await store.close()

        asyncio.run(write())

    def _cli(self, *words: str) -> str:
        return run([*slash32_command(), *words], namespace=self.namespace)


def slash32_command() -> list[str]:
    """The command line of this very tree."""
    return [sys.executable, "-c", "from routing.cli.main import main; main()"]


class Bird(System):
    """BIRD 2 with merged paths in the kernel."""

    name = "bird"

    def start(self, routers: Sequence[int]) -> None:
        peers = "".join(
            f"protocol bgp r{n} {{ local {own(n)} as {ASN}; neighbor {router(n)} as {PEER_ASN};"
            " hold time 9; keepalive time 3; connect delay time 0; "
            "ipv4 { import all; export where source = RTS_STATIC; next hop self; }; "
            "ipv6 { import all; export none; }; }\n"
            for n in routers
        )
        self._static = self.directory / "static.conf"
        self._static.write_text("")
        conf = self.directory / "bird.conf"
        conf.write_text(
            "router id 10.99.1.1;\nprotocol device {}\n"
            "protocol kernel { merge paths on; ipv4 { import none; export all; }; }\n"
            "protocol kernel { merge paths on; ipv6 { import none; export all; }; }\n"
            f'protocol static {{ ipv4;\ninclude "{self._static}";\n}}\n' + peers
        )
        self._socket = self.directory / "bird.ctl"
        self.spawn(["bird", "-f", "-c", str(conf), "-s", str(self._socket)])

    def announce(self, prefix: str) -> None:
        """One static route more and ``birdc configure``."""
        with self._static.open("a") as routes:
            routes.write(f"route {prefix} blackhole;\n")
        run(["birdc", "-s", str(self._socket), "configure"])


class Frr(System):
    """FRR: zebra for the kernel, bgpd for BGP."""

    name = "frr"

    def start(self, routers: Sequence[int]) -> None:
        neighbors = "".join(
            f" neighbor {router(n)} remote-as {PEER_ASN}\n neighbor {router(n)} timers 3 9\n"
            f" neighbor {router(n)} timers connect 1\n"
            for n in routers
        )
        both = "".join(
            f" address-family {family} unicast\n"
            + "".join(f"  neighbor {router(n)} activate\n" for n in routers)
            + " exit-address-family\n"
            for family in ("ipv4", "ipv6")
        )
        zebra, bgpd = self.directory / "zebra.conf", self.directory / "bgpd.conf"
        zebra.write_text("hostname bench\n")
        bgpd.write_text(
            f"router bgp {ASN}\n bgp router-id {own(1)}\n no bgp ebgp-requires-policy\n"
            f" bgp bestpath as-path multipath-relax\n no bgp default ipv4-unicast\n"
            f"{neighbors}{both}"
        )
        # They give up root for a user of their own, who must reach these files.
        self.directory.parent.chmod(0o755)
        for path in (self.directory, zebra, bgpd):
            shutil.chown(path, "frr", "frr")
        common = ["-z", str(self.directory / "zserv"), "--vty_socket", str(self.directory),
                  "-P", "0", "-u", "frr", "-g", "frr"]  # fmt: skip
        for program, conf in (("zebra", zebra), ("bgpd", bgpd)):
            pid = str(self.directory / f"{program}.pid")
            self.spawn([f"/usr/lib/frr/{program}", "-f", str(conf), "-i", pid, *common])
            self._await(self.directory / f"{program}.vty")

    def _await(self, path: Path) -> None:
        end_s = time.monotonic() + STOP_DEADLINE_S
        while not path.exists():
            if time.monotonic() > end_s:
                raise LabFailure(f"{path} did not appear")
            time.sleep(0.01)


class GoBgp(System):
    """GoBGP: a RIB only, no kernel; its figures are to the last route in its RIB."""

    name = "gobgp"
    programs_kernel = False

    def start(self, routers: Sequence[int]) -> None:
        peers = "".join(
            f'[[neighbors]]\n[neighbors.config]\nneighbor-address = "{router(n)}"\n'
            f"peer-as = {PEER_ASN}\n[neighbors.timers.config]\nhold-time = 9\n"
            "keepalive-interval = 3\nconnect-retry = 1\nidle-hold-time-after-reset = 1\n"
            + "".join(
                "[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\n"
                f'afi-safi-name = "{family}-unicast"\n'
                for family in ("ipv4", "ipv6")
            )
            for n in routers
        )
        conf = self.directory / "gobgpd.toml"
        conf.write_text(f'[global.config]\nas = {ASN}\nrouter-id = "{own(1)}"\nport = -1\n{peers}')
        self.spawn(["gobgpd", "-f", str(conf), "--api-hosts", "127.0.0.1:50051", "--pprof-disable"])

    def announce(self, prefix: str) -> None:
        """``gobgp global rib add``."""
        run(["gobgp", "global", "rib", "add", prefix], namespace=self.namespace)

    def route_count(self, load: Load) -> int:
        family = "ipv4" if load.version == 4 else "ipv6"
        argv = ["gobgp", "global", "rib", "summary", "-a", family]
        said = run(argv, namespace=self.namespace, ok=(0, 1))
        for line in said.splitlines():
            if line.startswith("Destination:"):
                return int(line.split()[1].rstrip(","))
        return 0


SYSTEMS: dict[str, type[System]] = {each.name: each for each in (Slash32, Bird, Frr, GoBgp)}
