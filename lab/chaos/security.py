"""S: what an attacker would find: secrets, modes of files, slow clients, names that inject."""

from __future__ import annotations

import os
import socket
import stat
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import yaml

from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.world import World
from lab.plan import LabFailure

SECRET = "Xq7-chaos-secret-Zp3"  # noqa: S105 - made for this row, to be looked for
SLOW_CLIENTS = 1000
INJECTIONS = (
    "x; run /bin/true",
    "x\n  run /bin/true;",
    'x" ; process evil { run /bin/true; }',
    "../../etc/passwd",
    "x\x00y",
    "$(touch /tmp/owned)",
)


def secret_stays_secret(world: World, verdict: Verdict) -> None:
    """An MD5 password between node1 and its router; then every place it might show is searched."""
    secret = (
        "apiVersion: v1\nkind: Secret\nmetadata: {name: bgp}\n"
        f"stringData: {{password: {SECRET}}}\n"
    )
    world.apply(secret)
    session = "neighbor 172.30.0.1 as 64601;"
    fields = {"password": {"secretKeyRef": {"name": "bgp", "key": "password"}}}
    with (
        world.bird_edited("tor1", (session, f'{session}\n  password "{SECRET}";')),
        world.peer_edited("node1", "tor1", fields),
    ):
        world.settled()
        up = world.is_up_at("tor1", "node1")
        places = _where(world, SECRET)
    world.settled()
    verdict.note(f"session with MD5 up: {up}; found in {len(places)} places it must not be")
    verdict.must(up, "the session with the password did not come up")
    verdict.must(not places, f"the password is in {places}")


def _where(world: World, secret: str) -> list[str]:
    """Logs, command lines, environments, answers, and files that others may read."""
    found = []
    root = world.lab.paths.root
    for path in root.rglob("*"):
        with suppress(OSError):
            if not path.is_file() or path.name in {"bird.conf", "store.db"}:
                continue
            is_log = path.suffix == ".log"
            is_open = bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
            if (is_log or is_open) and secret in path.read_text(errors="replace"):
                found.append(str(path.relative_to(root)))
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            for name in ("cmdline", "environ"):
                with suppress(OSError):
                    if secret.encode() in (entry / name).read_bytes():
                        found.append(f"{entry}/{name}")
    for view in ("status", "peers", "routes", "get"):
        arguments = (view,) if view != "get" else ("peers",)
        if secret in str(world.ask("node1", *arguments)):
            found.append(f"slash32 {view}")
    return found


def file_modes(world: World, verdict: Verdict) -> None:
    """What is on the node's disk after all has run."""
    run_dir = world.lab.paths.run_dir("node1")
    wrong = []
    seen = 0
    for path in [*run_dir.rglob("*"), *world.lab.paths.cni_bin("node1").iterdir()]:
        with suppress(FileNotFoundError):
            mode = path.lstat().st_mode
            seen += 1
            if mode & (stat.S_ISUID | stat.S_ISGID):
                wrong.append(f"{path.name}: set-id")
            if mode & stat.S_IWOTH and not stat.S_ISLNK(mode):
                wrong.append(f"{path.name}: writable for all")
            if (stat.S_ISSOCK(mode) or path.name == "exabgp.conf") and mode & 0o077:
                wrong.append(f"{path.name}: {mode & 0o777:o}")
    verdict.note(f"{seen} files and sockets looked at")
    verdict.must(not wrong, "; ".join(wrong))


def slow_clients(world: World, verdict: Verdict) -> None:
    """A thousand connections that say half a request: ADD is as fast as without them."""
    plugin = world.lab.runtime_of("node1")

    def add_s(tag: str) -> float:
        with world.extra_pod("node1", tag) as (sandbox, _):
            begun_s = time.monotonic()
            plugin.add(sandbox)
            took_s = time.monotonic() - begun_s
            plugin.delete(sandbox)
            return took_s

    alone_s = sorted(add_s(f"p{n}") for n in range(5))[2]
    path = str(world.lab.paths.run_dir("node1") / "cni.sock")
    with ExitStack() as connections:
        refused = 0
        for _ in range(SLOW_CLIENTS):
            client = connections.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(1.0)
            try:
                client.connect(path)
                client.send(b"\x00")
            except OSError:
                refused += 1
        crowded_s = sorted(add_s(f"q{n}") for n in range(5))[2]
    verdict.note(
        f"ADD {alone_s * 1000:.0f} ms alone, {crowded_s * 1000:.0f} ms beside {SLOW_CLIENTS} "
        f"slow clients ({refused} refused)"
    )
    verdict.must(crowded_s < max(1.0, 5 * alone_s), f"{crowded_s:.2f} s beside slow clients")


def injected_names(world: World, verdict: Verdict) -> None:
    """Texts that would be commands in exabgp.conf or a shell, wherever a resource takes a text."""
    conf = world.lab.paths.run_dir("node1") / "exabgp.conf"
    before = conf.read_text()
    taken = []
    for text in INJECTIONS:
        for spec, name in (
            ({"peerIP": "192.0.2.77", "asNumber": 64999}, text),
            ({"peerIP": text, "asNumber": 64999}, "chaos"),
            ({"peerIP": "192.0.2.77", "asNumber": text}, "chaos"),
            ({"peerIP": "192.0.2.77", "asNumber": 64999, "sourceAddress": text}, "chaos"),
        ):
            document = {
                "apiVersion": "slash32.io/v1", "kind": "BGPPeer",
                "metadata": {"name": name}, "spec": spec,
            }  # fmt: skip
            try:
                world.apply(yaml.safe_dump(document))
                taken.append(f"{name!r} {spec}")
            except LabFailure:
                continue
    after = conf.read_text()
    verdict.note(f"{len(INJECTIONS) * 4} tried, {len(taken)} taken")
    verdict.must(not taken, f"taken: {taken[:2]}")
    verdict.must(before == after, "exabgp.conf has changed")


def stolen_socket(world: World, verdict: Verdict) -> None:
    """A process without privileges at the agent's sockets."""
    run_dir = world.lab.paths.run_dir("node1")
    refused = []
    for name in ("cni.sock", "agent.sock", "bgp.sock"):
        path = run_dir / name
        if not path.exists():
            continue
        pid = os.fork()
        if pid == 0:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                socket.socket(socket.AF_UNIX).connect(str(path))
            except OSError:
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) == 1:
            refused.append(name)
        else:
            verdict.must(False, f"{name} takes a connection of nobody")
    verdict.note(f"refused at {', '.join(refused)}")
    verdict.must(len(refused) >= 2, "too few sockets were there to try")


_ONE = Stage.ONE_TOR

ROWS = [
    Row("S7", "a password for BGP, then a search for it",
        "in no log, process list, environment, answer or file that others read", _ONE,
        secret_stays_secret),
    Row("S8", "files and sockets on the node", "no set-id, none writable for all, sockets 0600",
        _ONE, file_modes, is_quick=True),
    Row("S10", f"{SLOW_CLIENTS} slow clients on the agent's socket", "ADD unaffected", _ONE,
        slow_clients),
    Row("S13", "texts that inject, in every field that takes a text",
        "refused, exabgp.conf unchanged", _ONE, injected_names, is_quick=True),
    Row("S14", "nobody's process at the agent's sockets", "refused", _ONE, stolen_socket),
]  # fmt: skip
