"""docs/without-kubernetes.md, read and done: its files written, its commands run, on two machines.

A machine is a network namespace and an enclosure whose /etc, /usr/local, /usr/lib/cni, /opt, /root
and /var/lib are its own. What stands in for systemd starts what the page's units say.
"""

import os
import re
import shlex
import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from lab import build, busybox_image, namespaces, processes
from lab.containerd import NEEDED_PROGRAMS as CONTAINERD_PROGRAMS
from lab.enclosure import ENVIRONMENT, Enclosure, Place
from lab.namespaces import CommandFailed
from lab.plan import LabFailure
from lab.podman import NEEDED_PROGRAMS as PODMAN_PROGRAMS
from lab.waiting import wait_until

PAGE = Path(__file__).resolve().parents[2] / "docs" / "without-kubernetes.md"
PRIVATE = ("/etc", "/opt", "/root", "/usr/lib/cni", "/usr/local", "/var/lib")
MACHINES = {"m1": ("192.0.2.0/31", "192.0.2.1/31"), "m2": ("192.0.2.2/31", "192.0.2.3/31")}
"""Name -> (the router's end of its link, its own)."""

BLOCKS_MIN = 20
"""Fewer, and the page was not read as it is meant."""
WAIT_DEADLINE_S = 45
SHORTER_RESTART = ("asNumber: 64512}", "asNumber: 64512, maxRestartTime: 5s}")
"""What is put in place of what: the router keeps routes for 120 s otherwise."""

DEBIAN_UNITS = {"containerd.service": "/usr/bin/containerd"}

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.bird,
    pytest.mark.exabgp,
    pytest.mark.skipif(
        any(
            shutil.which(program) is None
            for program in (*CONTAINERD_PROGRAMS, *PODMAN_PROGRAMS, "bird", "curl")
        ),
        reason="needs Debian's packages bird2, containerd, runc, podman and curl",
    ),
]

# What a sandbox without CAP_SYS_RESOURCE, on an overlay, with a cgroup to itself, wants besides.
PODMAN_WRAPPER = """#!/bin/sh
case $1 in
run) shift
     set -- run --cgroup-parent /{name} --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "$@" ;;
esac
exec /usr/bin/podman --storage-driver vfs --cgroup-manager cgroupfs --events-backend file "$@"
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of the page: a file (``path``), or commands for some machines."""

    path: str
    machines: tuple[str, ...]
    waits: bool
    text: str


def blocks():
    """Every block that is a file or has machines, in the page's order."""
    found = []
    for words, text in re.findall(
        r"^```(.*?)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    ):
        kind, *rest = words.split()
        if kind == "sh":
            machines = tuple(word for word in rest if word in MACHINES)
            if machines:
                found.append(Block("", machines, "wait" in rest, text))
        elif rest:
            found.append(Block(rest[0], tuple(MACHINES), waits=False, text=text))
    return found


class Machine:
    """One machine of the page."""

    def __init__(self, name, *, namespace, root):
        self.name = name
        self.enclosure = Enclosure(
            Place(
                name=namespace,
                namespace=namespace,
                root=root / name,
                kept=(root,),
                private=PRIVATE,
            )
        )
        self.variables = {"CONTAINERD_NAMESPACE": namespace, "CONTAINERD_SNAPSHOTTER": "native"}
        self._units: dict[str, processes.Process] = {}

    def boot(self):
        """Starts it and puts in what section 1 of the page installs."""
        hold = f"hostname {self.name} && exec sleep infinity"
        self.enclosure.open("init", ["unshare", "--uts", "--", "sh", "-c", hold])
        run = shlex.join(build.slash32_command())
        project = shlex.quote(str(build.PROJECT_DIR))
        script = f'#!/bin/sh\nPYTHONPATH={project} PYTHONSAFEPATH=1 exec {run} "$@"\n'
        self.write("/usr/local/bin/slash32", script, mode=0o755)
        wrapper = PODMAN_WRAPPER.format(name=self.enclosure.place.name)
        self.write("/usr/local/bin/podman", wrapper, mode=0o755)
        image = self.enclosure.place.root / "busybox.tar"
        busybox_image.build(image)
        self.enclosure.run(["cp", str(image), "/root/busybox.tar"])

    def write(self, path, text, *, mode=0o644):
        script = 'mkdir -p "$(dirname "$1")" && cat > "$1" && chmod "$2" "$1"'
        namespaces.run(
            self.enclosure.command(["sh", "-euc", script, "sh", path, f"{mode:o}"]),
            stdin=text,
            env=ENVIRONMENT,
        )

    def sh(self, text):
        """Runs commands of the page; what they printed."""
        out = ""
        # Line by line, so that systemctl can be ours.
        for line in text.strip().splitlines():
            if line.startswith("systemctl "):
                self.systemctl(*line.split()[1:])
            else:
                variables = [f"{key}={value}" for key, value in self.variables.items()]
                out += self.enclosure.run(["env", *variables, "sh", "-euc", line])
        return out

    def systemctl(self, verb, *words):
        units = [word for word in words if not word.startswith("-")]
        for unit in units:
            if verb == "enable":
                self._start_unit(unit)
            else:
                self._stop_unit(unit)

    def _unit_setting(self, unit, key):
        text = self.enclosure.run(["cat", f"/etc/systemd/system/{unit}"])
        (value,) = re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)
        return value

    def _start_unit(self, unit):
        start = DEBIAN_UNITS.get(unit) or self._unit_setting(unit, "ExecStart")
        variables = [f"{key}={value}" for key, value in self.variables.items()]
        script = f"hostname {self.name} && exec env {shlex.join(variables)} {start}"
        command = ["unshare", "--uts", "--", "sh", "-c", script]
        self._units[unit] = self.enclosure.start(unit, command)

    def _stop_unit(self, unit):
        process = self._units.pop(unit)
        if unit == "web.service":
            self.sh(self._unit_setting(unit, "ExecStop"))
            wait_until(
                lambda: [unit] if processes.is_alive(process) else [], what=unit, deadline_s=20
            )
        processes.stop([process])

    def give_up_on_dead_units(self):
        """systemd would start them again; here an end is a mistake of the page or of ours."""
        for unit, process in self._units.items():
            if not processes.is_alive(process):
                words = processes.log_tail(self.enclosure.place.log(unit))
                raise LabFailure(f"{unit} has ended: {words}")


def connect(stack, prefix):
    """The router and the machines as namespaces, joined."""
    names = {name: f"{prefix}-{name}" for name in ("tor", *MACHINES)}
    for name in names.values():
        stack.callback(namespaces.delete, name)
    namespaces.create(names.values())
    namespaces.write_sysctls(names["tor"], namespaces.ROUTER_SYSCTLS)
    for name, (near, far) in MACHINES.items():
        namespaces.ip_batch(
            names["tor"],
            [
                f"link add {name} type veth peer name uplink netns {names[name]}",
                f"addr add {near} dev {name}",
                f"link set {name} up",
            ],
        )
        namespaces.ip_batch(names[name], [f"addr add {far} dev uplink", "link set uplink up"])
    return names


@pytest.fixture
def machines(tmp_path):
    """The two machines, booted, and the namespace of the page's router between them."""
    prefix = f"s32t-{os.getpid()}-wk"
    root = Path(f"/run/{prefix}")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        root.mkdir(mode=0o700)
        names = connect(stack, prefix)
        (conf,) = (block.text for block in blocks() if block.path == "/etc/bird/bird.conf")
        (tmp_path / "bird.conf").write_text(conf)
        bird = processes.start(
            "bird",
            ["bird", "-f", "-c", str(tmp_path / "bird.conf"), "-s", str(root / "bird.ctl")],
            namespace=names["tor"],
            env=ENVIRONMENT,
            log=tmp_path / "bird.log",
        )
        stack.callback(processes.stop, [bird])
        found = {}
        for name in MACHINES:
            found[name] = Machine(name, namespace=names[name], root=root)
            stack.callback(found[name].enclosure.close)
            found[name].boot()
        yield found, names["tor"]


def own_address(machine):
    """The IPv4 address of the one container of a machine, by ``slash32 pods``."""
    text = machine.sh("slash32 pods -o json")
    (address,) = re.findall(r'"(10\.244\.[0-9.]+)"', text)
    return ip_address(address)


def do(block, machine):
    """Does a block on a machine; where the page waits, until it succeeds."""
    if not block.waits:
        return machine.sh(block.text)
    answers = []

    def missing():
        try:
            answers.append(machine.sh(block.text))
        except CommandFailed as error:
            machine.give_up_on_dead_units()
            return [str(error)]
        return []

    wait_until(missing, what=block.text.strip(), deadline_s=WAIT_DEADLINE_S)
    return answers[-1]


def test_the_page_can_be_done_as_it_stands(machines):
    """Every file and every command; then what the page says the answers are."""
    machines, router = machines
    done, seen = {}, set()
    for block in blocks():
        for name in block.machines:
            machine = machines[name]
            if block.path:
                machine.write(block.path, block.text.replace(*SHORTER_RESTART))
                continue
            done[name, block.text] = do(block, machine)
            seen.update(learned(router))
            if "web.service" in block.text and "enable" in block.text:
                web = wait_for_web(machine)
                for each in machines.values():
                    each.variables["WEB"] = str(web)

    wait_until(
        lambda: learned(router),
        what="a router without routes to containers, some time after the speakers have stopped",
        deadline_s=WAIT_DEADLINE_S,
    )
    assert any(SHORTER_RESTART[0] in block.text for block in blocks())
    assert seen == {"10.244.1.0/26", "10.244.2.0/26"}
    assert len(blocks()) >= BLOCKS_MIN
    assert "/32 " in said(done, "ctr run --cni --rm slash32.local/busybox:1 first")
    exchange = said(done, "podman exec client wget")
    (shown,) = re.findall(r"inet (10\.244\.2\.[0-9]+)/32", exchange)
    assert exchange.strip().splitlines()[-1].strip("[]").removeprefix("::ffff:") == shown
    assert "192.0.2.1" in said(done, "curl")


def learned(router):
    """The router's routes to containers, as its kernel has them."""
    shown = namespaces.ip_json(router, "-4", "route", "show", "proto", "bird")
    return [route["dst"] for route in shown if route["dst"].startswith("10.244.")]


def said(done, command):
    """What was printed where a command is."""
    (answer,) = (text for (_, block), text in done.items() if command in block)
    return answer


def wait_for_web(machine):
    """The web server's address once it has one."""
    answers = []

    def missing():
        try:
            answers.append(own_address(machine))
        except (CommandFailed, ValueError) as error:
            machine.give_up_on_dead_units()
            return [str(error)]
        return []

    wait_until(missing, what="web.service", deadline_s=WAIT_DEADLINE_S)
    return answers[-1]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd's programs")
def test_systemd_accepts_the_units_of_the_page(tmp_path):
    """``systemd-analyze verify``, with programs that exist in place of those the page installs."""
    units = [b for b in blocks() if b.path.startswith("/etc/systemd/")]
    assert len(units) >= len(("agent", "speaker", "web"))
    for unit in units:
        text = re.sub(r"^(Exec\w+=)\S+", rf"\g<1>{sys.executable}", unit.text, flags=re.MULTILINE)
        text = re.sub(r"^(Requires=).*$", "", text, flags=re.MULTILINE)
        (tmp_path / Path(unit.path).name).write_text(text)
    paths = [str(tmp_path / Path(unit.path).name) for unit in units]
    assert namespaces.run(["systemd-analyze", "verify", "--man=no", *paths]) == ""
