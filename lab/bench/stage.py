"""What is measured on: two nodes with an uplink each, the agent on one, the drivers on both.

Ours and the peer's pods live on separate nodes, so that neither pays for the other's links. The
whole stage is inside a mount and a network namespace of the benchmark's own (see ``cni.main``):
when its last process ends, the kernel takes everything away.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cni.launcher.build import build, host_architecture
from lab import namespaces
from lab.plan import LabFailure
from lab.waiting import wait_until

OURS, PEER = "s32bench-ours", "s32bench-peer"
PEER_BIN = Path("/usr/lib/cni")
POD_MTU_BYTES = 1450
STARTED_DEADLINE_S = 20.0
CALL_DEADLINE_S = 120.0
QUIET_DEADLINE_S = 0.1
QUIET_LOOKS = 3
SETTLE_DEADLINE_S = 0.3
POLL_S = 0.001
NODE = "bench"
SLASH32 = (sys.executable, "-c", "from routing.cli.main import main; main()")
"""Needs no installation."""


class BenchFailure(LabFailure):
    """A measurement could not be made; the sentence says what failed."""


@dataclass(frozen=True, slots=True)
class Call:
    """One execution of a plugin."""

    command: str
    container: str
    netns: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What it took: ms of the whole process, and CPU ms of it and the children it waited for."""

    wall_ms: float
    cpu_ms: float


class Lines:
    """A program that answers lines with lines."""

    def __init__(self, argv: Sequence[str], *, namespace: str, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            namespaces.enter(namespace, argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=env,
        )

    def ask(self, question: str, *, answers: int = 1) -> list[str]:
        """Writes ``question`` and reads that many lines.

        Raises:
            BenchFailure: it answered with an error, or not at all.
        """
        assert self._process.stdin is not None  # noqa: S101 - asked for above
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        lines = []
        for _ in range(answers):
            line = self._process.stdout.readline()
            if not line or line.startswith("error:"):
                raise BenchFailure(f"{question.split()[0]}: {line.strip() or 'no answer'}")
            lines.append(line.rstrip("\n"))
        return lines

    def close(self) -> None:
        """Ends it."""
        with self._process:
            self._process.terminate()


class Driver:
    """Executes one plugin on one node (driver.c)."""

    def __init__(self, program: Path, *, plugin: Path, conf: Path, namespace: str) -> None:
        self._lines = Lines(
            [str(program), str(plugin), str(PEER_BIN), str(conf)],
            namespace=namespace,
            env={"PATH": os.environ["PATH"]},
        )

    def make_netns(self, paths: Sequence[Path]) -> None:
        """New network namespaces, bound to these files."""
        for start in range(0, len(paths), 100):
            self._lines.ask(f"netns {' '.join(map(str, paths[start : start + 100]))}")

    def drop_netns(self, paths: Sequence[Path]) -> None:
        """The end of them; what is in them goes too."""
        for start in range(0, len(paths), 100):
            self._lines.ask(f"drop {' '.join(map(str, paths[start : start + 100]))}")

    def run(self, calls: Sequence[Call]) -> tuple[list[Outcome], float]:
        """All calls at once; their outcomes, and ms until the last had ended.

        Raises:
            BenchFailure: one of them ended badly.
        """
        jobs = "\n".join(f"{c.command} {c.container} {c.netns} eth0" for c in calls)
        *lines, total = self._lines.ask(f"run {len(calls)}\n{jobs}", answers=len(calls) + 1)
        outcomes = []
        for call, line in zip(calls, lines, strict=True):
            status, wall_us, cpu_us, stdout = line.split(" ", 3)
            if status != "0":
                raise BenchFailure(f"{call.command} {call.container}: status {status}: {stdout}")
            outcomes.append(Outcome(float(wall_us) / 1000, float(cpu_us) / 1000))
        return outcomes, float(total.split()[1]) / 1000

    def close(self) -> None:
        """Ends the program."""
        self._lines.close()


class Floor:
    """The bare kernel on one node (floor.py)."""

    def __init__(self, *, namespace: str) -> None:
        self._lines = Lines(
            [sys.executable, "-m", "lab.bench.floor"],
            namespace=namespace,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd()},
        )

    def add(self, name: str, netns: Path) -> Outcome:
        """One pod."""
        wall_us, cpu_us = self._lines.ask(f"add {name} {netns}")[0].split()
        return Outcome(float(wall_us) / 1000, float(cpu_us) / 1000)

    def remove(self, name: str) -> tuple[Outcome, float]:
        """The same pod: until announced, and ms until acknowledged."""
        wall_us, cpu_us, acknowledged_us = self._lines.ask(f"del {name}")[0].split()
        return Outcome(float(wall_us) / 1000, float(cpu_us) / 1000), float(acknowledged_us) / 1000

    def close(self) -> None:
        """Ends the program."""
        self._lines.close()


@dataclass(frozen=True, slots=True)
class Agent:
    """The running agent, seen from outside."""

    pid: int

    def cpu_ms(self) -> float:
        """CPU time it has used, all its threads, dead ones too.

        By the process's CPU clock: /proc/<pid>/stat counts in ticks of 10 ms.
        """
        return time.clock_gettime(~self.pid << 3 | 2) * 1000

    def settled_cpu_ms(self) -> float:
        """The same once it has gone quiet, so that work done after the answer counts too."""
        until_s = time.monotonic() + SETTLE_DEADLINE_S
        now = self.cpu_ms()
        for _ in iter(lambda: time.monotonic() < until_s, False):
            before = now
            time.sleep(3 * POLL_S)
            now = self.cpu_ms()
            if now == before:
                break
        return now

    def rss_mib(self) -> float:
        """Resident memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise BenchFailure("the agent is gone")


def go_first(nice: int) -> None:
    """This process and what it starts before everything else on the machine.

    Where the kernel groups processes by session, niceness counts only inside a session, and the
    session has one of its own (sched(7), autogroup).
    """
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(f"{nice}\n")


def wait_for_quiet() -> bool:
    """Waits, for a moment, until nothing else wants a processor; whether that came true."""
    until_s = time.monotonic() + QUIET_DEADLINE_S
    looks = 0
    while looks < QUIET_LOOKS:
        runnable = Path("/proc/loadavg").read_text().split()[3].partition("/")[0]
        looks = looks + 1 if runnable == "1" else 0
        if time.monotonic() > until_s:
            return False
        time.sleep(POLL_S)
    return True


def make_nodes() -> None:
    """Two nodes, each with an addressed uplink and a default route into our own namespace.

    A node without them would be slower than a real one: without a global address the kernel looks
    for one on every link, for each route.
    """
    # Ours alone: this mount namespace is private.
    namespaces.NETNS_DIR.mkdir(parents=True, exist_ok=True)
    namespaces.run(["mount", "-t", "tmpfs", "tmpfs", str(namespaces.NETNS_DIR)])
    namespaces.create([OURS, PEER])
    for number, name in enumerate((OURS, PEER)):
        near, far = f"10.255.{number}.1/31", f"10.255.{number}.0/31"
        namespaces.run(["ip", "link", "add", f"up{number}", "type", "veth",
                        "peer", "name", "uplink0", "netns", name])  # fmt: skip
        namespaces.run(["ip", "addr", "add", far, "dev", f"up{number}"])
        namespaces.run(["ip", "link", "set", f"up{number}", "up"])
        namespaces.ip_batch(
            name,
            [
                f"addr add {near} dev uplink0",
                "link set uplink0 up",
                f"route add default via {far.partition('/')[0]}",
            ],
        )


def compile_driver(directory: Path) -> Path:
    """driver.c, compiled for this machine.

    Raises:
        BenchFailure: there is no C compiler, or it refused.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BenchFailure("no C compiler (cc): the driver must be compiled")
    out = directory / "driver"
    source = Path(__file__).with_name("driver.c")
    namespaces.run([compiler, "-O2", "-o", str(out), str(source)])
    return out


def resources() -> str:
    """What the agent's store needs for pods: a pool and this node."""
    return "\n---\n".join(
        json.dumps(
            {"apiVersion": "slash32.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        )
        for kind, name, spec in (
            ("IPPool", "pods", {"cidr": "10.244.0.0/16"}),
            ("Node", NODE, {"addresses": ["10.255.0.1"], "bgp": {"asNumber": 64601}}),
        )
    )


@contextlib.contextmanager
def running_agent(directory: Path, *, extra: Sequence[str]) -> Iterator[tuple[Agent, Path]]:
    """The agent on our node with its production settings; it and its configuration for CNI.

    Raises:
        BenchFailure: it did not come up; the sentence has the end of its log.
    """
    run_dir, store, log = directory / "run", directory / "store.db", directory / "agent.log"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd(), "HOME": str(directory)}
    namespaces.run(
        [*SLASH32, "apply", "--store", str(store), "-f", "-"], stdin=resources(), env=env
    )
    argv = [*SLASH32, "agent", "--node", NODE, "--run-dir", str(run_dir),
            "--state-dir", str(directory / "state"), "--store", str(store),
            "--mtu", str(POD_MTU_BYTES), *extra]  # fmt: skip
    with (
        log.open("wb") as output,
        subprocess.Popen(
            namespaces.enter(OURS, argv), env=env, stdout=output, stderr=output
        ) as process,
    ):
        try:

            def lacking() -> list[str]:
                if process.poll() is not None:
                    raise BenchFailure(f"the agent ended: {log.read_text()[-2000:]}")
                return [] if (run_dir / "cni.sock").exists() else ["its CNI socket"]

            wait_until(lacking, what="the agent", deadline_s=STARTED_DEADLINE_S)
            # nsenter became it: it executes its command without a fork.
            yield Agent(process.pid), _our_conf(directory, run_dir)
        finally:
            process.terminate()


def _our_conf(directory: Path, run_dir: Path) -> Path:
    conf = {
        "cniVersion": "1.0.0",
        "name": "bench",
        "type": "slash32",
        "socket": str(run_dir / "cni.sock"),
    }
    path = directory / "slash32.json"
    path.write_text(json.dumps(conf))
    return path


def peer_conf(directory: Path, name: str) -> Path:
    """ptp with host-local, as much like ours as it goes: routed, no translation, the same MTU."""
    conf = {
        "cniVersion": "1.0.0",
        "name": name,
        "type": "ptp",
        "ipMasq": False,
        "mtu": POD_MTU_BYTES,
        "ipam": {
            "type": "host-local",
            "dataDir": str(directory / name),
            "ranges": [[{"subnet": "10.88.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    path = directory / f"{name}.json"
    path.write_text(json.dumps(conf))
    return path


def our_plugin(directory: Path, *, form: str) -> Path:
    """The exec'd file: the static launcher, or the Python plugin as it would be installed."""
    out = directory / "slash32"
    if form == "python":
        from cni.install import render_plugin

        out.write_bytes(render_plugin(os.path.realpath(sys.executable)))
        out.chmod(0o755)
    else:
        build(out, arch=host_architecture())
    return out
