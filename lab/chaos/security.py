"""S: what an attacker would find: modes of files, slow clients, names that inject."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from statistics import median

import yaml

from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.world import World
from lab.plan import LabFailure

SLOW_CLIENTS = 1000
TURNS, ADDS_A_TURN = 10, 6
MEDIAN_MOST, P99_MOST, AMID_MOST = 1.25, 2.0, 4.0
"""Beside slow clients, times alone. The p99 of sixty is the slowest one: an ADD that met another
program of this machine's on its core, in either turn."""
INJECTIONS = (
    "x; run /bin/true",
    "x\n  run /bin/true;",
    'x" ; process evil { run /bin/true; }',
    "../../etc/passwd",
    "x\x00y",
    "$(touch /tmp/owned)",
)

_HEAD = "apiVersion: slash32.io/v1\nkind: BGPPeer\nmetadata: {name: large}\n"
_BOMB = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij"))
LARGE = {
    "a YAML bomb": f"a: &a [x, x, x]\n{_BOMB}{_HEAD}spec: {{peerIP: 192.0.2.77, asNumber: *j}}\n",
    "a megabyte in one field": f"{_HEAD}spec: {{peerIP: 192.0.2.7, asNumber: {'9' * (1 << 20)}}}\n",
    "a thousand levels": f"{_HEAD}spec: {'[' * 1000}{']' * 1000}\n",
}
LARGE_MOST_S = 10.0
NOBODY = 65534


def file_modes(world: World, verdict: Verdict) -> None:
    """What is on the node's disk after all has run; then, as the control, the same look at what
    must not be there: it has to find each."""
    run_dir = world.lab.paths.run_dir("node1")
    beside = list(world.lab.paths.cni_bin("node1").iterdir())
    seen, wrong = _wrong_modes([*run_dir.rglob("*"), *beside])
    with _planted(run_dir) as planted:
        _, found = _wrong_modes([*run_dir.rglob("*"), *beside])
    missed = [what for what in planted if what not in found]
    verdict.note(
        f"{seen} files and sockets looked at; control: of {len(planted)} planted there, such as "
        f'"{planted[0]}", {len(planted) - len(missed)} found'
    )
    verdict.must(not wrong, "; ".join(wrong))
    verdict.must(not missed, f"the control within: not found: {'; '.join(missed)}")


def _wrong_modes(paths: Iterable[Path]) -> tuple[int, list[str]]:
    """How many are there, and a sentence for each mode that must not be."""
    wrong = []
    seen = 0
    for path in paths:
        with suppress(FileNotFoundError):
            mode = path.lstat().st_mode
            seen += 1
            if mode & (stat.S_ISUID | stat.S_ISGID):
                wrong.append(f"{path.name}: set-id")
            if mode & stat.S_IWOTH and not stat.S_ISLNK(mode):
                wrong.append(f"{path.name}: writable for all")
            if (stat.S_ISSOCK(mode) or path.name == "exabgp.conf") and mode & 0o077:
                wrong.append(f"{path.name}: {mode & 0o777:o}")
    return seen, wrong


@contextmanager
def _planted(directory: Path) -> Iterator[list[str]]:
    """Files and a socket that must not be there; what is to be said of each."""
    home = directory / "planted"
    home.mkdir(mode=0o700)
    try:
        for name, mode in (("open", 0o606), ("set-uid", 0o4700), ("set-gid", 0o2700)):
            (home / name).touch()
            (home / name).chmod(mode)
        (home / "exabgp.conf").touch()
        (home / "exabgp.conf").chmod(0o640)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(home / "sock"))
            (home / "sock").chmod(0o644)
            yield [
                "open: writable for all", "set-uid: set-id", "set-gid: set-id",
                "exabgp.conf: 640", "sock: 644",
            ]  # fmt: skip
    finally:
        shutil.rmtree(home)


def slow_clients(world: World, verdict: Verdict) -> None:
    """A thousand connections that say half a request or announce far too long a one, and ADDs
    beside them. In turns with ADDs alone: a machine that is busy for a while is so for both."""
    path = str(world.lab.paths.run_dir("node1") / "cni.sock")
    turns: list[tuple[list[float], list[float]]] = []
    amid: list[float] = []
    held: list[int] = []
    for turn in range(TURNS):
        alone = _adds_s(world, f"p{turn}")
        with ExitStack() as connections:
            clients = [_slow_client(connections, path, n) for n in range(SLOW_CLIENTS)]
            # The agent is at work on a thousand new connections; then it only holds them.
            first, *crowded = _adds_s(world, f"q{turn}")
            amid.append(first)
            turns.append((alone, crowded))
            held.append(sum(_is_open(client) for client in clients))
    ratio = median(median(crowded) / median(alone) for alone, crowded in turns)
    alone, crowded = (sorted(s for turn in turns for s in turn[which]) for which in (0, 1))
    verdict.note(
        f"{len(crowded)} ADDs beside {SLOW_CLIENTS} connections ({min(held)} at least still held "
        f"after) take {ratio:.2f} times as long as those without in the same turn, by the median; "
        f"p99 {alone[-1] * 1000:.0f} ms alone, {crowded[-1] * 1000:.0f} ms beside them; the one "
        f"that comes together with all of them takes {median(amid) * 1000:.0f} ms"
    )
    verdict.must(ratio <= MEDIAN_MOST, f"{ratio:.2f} times as long, {MEDIAN_MOST} owed")
    verdict.must(
        crowded[-1] <= P99_MOST * alone[-1], f"p99 {crowded[-1] / alone[-1]:.2f} times as long"
    )
    verdict.must(median(amid) <= AMID_MOST * median(alone), f"amid: {median(amid) * 1000:.0f} ms")
    verdict.must(min(held) > 0, "the control within: no connection was held")


def _adds_s(world: World, tag: str) -> list[float]:
    """How long each of some ADDs takes."""
    plugin = world.lab.runtime_of("node1")
    found = []
    for number in range(ADDS_A_TURN):
        with world.extra_pod("node1", f"{tag}-{number}") as (sandbox, _):
            begun_s = time.monotonic()
            plugin.add(sandbox)
            found.append(time.monotonic() - begun_s)
            plugin.delete(sandbox)
    return found


def _slow_client(connections: ExitStack, path: str, number: int) -> socket.socket:
    """Every second one has the beginning of a request; the others promise four gigabytes."""
    client = connections.enter_context(socket.socket(socket.AF_UNIX))
    client.settimeout(5.0)
    with suppress(OSError):
        client.connect(path)
        client.send(b"\x00" if number % 2 else b"\xff\xff\xff\xff{")
    return client


def _is_open(client: socket.socket) -> bool:
    """Whether the other side has not closed it."""
    try:
        return bool(client.recv(1, socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except OSError:
        return False


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
            try:
                world.apply(_peer(name, spec))
                taken.append(f"{name!r} {spec}")
            except LabFailure:
                continue
    slowest_s = 0.0
    for what, text in LARGE.items():
        begun_s = time.monotonic()
        with suppress(LabFailure):
            world.apply(text)
            taken.append(what)
        slowest_s = max(slowest_s, time.monotonic() - begun_s)
    after = conf.read_text()
    # The control: the same document without a text that injects is taken, and is in the file.
    sane = {"peerIP": "192.0.2.77", "asNumber": 64999}
    with suppress(LabFailure):
        world.apply(_peer("chaos", sane))
        world.wait(lambda: "192.0.2.77" in conf.read_text(), "the sane one in exabgp.conf", 15.0)
    is_seen = conf.read_text() != before
    with suppress(LabFailure):
        world.delete("BGPPeer", "chaos")
    world.wait(lambda: "192.0.2.77" not in conf.read_text(), "the sane one's end")
    verdict.note(
        f"{len(INJECTIONS) * 4} texts and {len(LARGE)} large documents tried, {len(taken)} taken; "
        f"the slowest large one refused in {slowest_s:.1f} s; control: a sane one is taken and is "
        f"in exabgp.conf: {is_seen}"
    )
    verdict.must(is_seen, "the control within: a sane one does not come to exabgp.conf")
    verdict.must(slowest_s <= LARGE_MOST_S, f"a large document cost {slowest_s:.1f} s")
    verdict.must(not taken, f"taken: {taken[:2]}")
    verdict.must(before == after, "exabgp.conf has changed")


def _peer(name: str, spec: Mapping[str, object]) -> str:
    document = {
        "apiVersion": "slash32.io/v1", "kind": "BGPPeer",
        "metadata": {"name": name}, "spec": dict(spec),
    }  # fmt: skip
    return yaml.safe_dump(document)


def stolen_socket(world: World, verdict: Verdict) -> None:
    """A process without privileges at the agent's sockets. The control within: root's is accepted
    at each of them, and nobody's at a socket that lets everybody in."""
    run_dir = world.lab.paths.run_dir("node1")
    paths = [run_dir / name for name in ("cni.sock", "agent.sock", "bgp.sock")]
    paths = [path for path in paths if path.exists()]
    refused = [path.name for path in paths if not _connects(path, uid=NOBODY)]
    accepted = [path.name for path in paths if _connects(path, uid=0)]
    with tempfile.TemporaryDirectory() as home, socket.socket(socket.AF_UNIX) as listener:
        Path(home).chmod(0o755)
        open_to_all = Path(home) / "open.sock"
        listener.bind(str(open_to_all))
        listener.listen()
        open_to_all.chmod(0o666)
        is_let_in = _connects(open_to_all, uid=NOBODY)
        open_to_all.chmod(0o600)
        is_let_in_still = _connects(open_to_all, uid=NOBODY)
    verdict.note(
        f"refused at {', '.join(refused)}; control: root accepted at {', '.join(accepted)}, nobody "
        f"let in by a socket of 0666: {is_let_in}, of 0600: {is_let_in_still}"
    )
    names = [path.name for path in paths]
    verdict.must(refused == names, f"nobody is let in at {sorted(set(names) - set(refused))}")
    verdict.must(accepted == names, f"the control within: root only at {accepted}")
    verdict.must(is_let_in and not is_let_in_still, "the control within: the mode says nothing")
    verdict.must(len(refused) >= 2, "too few sockets were there to try")


def _connects(path: Path, *, uid: int) -> bool:
    """Whether a process of that user and group, with no other, can connect to a socket."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            socket.socket(socket.AF_UNIX).connect(str(path))
        except OSError:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


_ONE = Stage.ONE_TOR

ROWS = [
    Row("S8", "files and sockets on the node", "no set-id, none writable for all, sockets "
        "0600 (control within: planted ones are found)",
        _ONE, file_modes, is_quick=True),
    Row("S10", f"{SLOW_CLIENTS} connections to the agent's socket that say half a request or "
        "announce too long a one; ADDs in turns without and beside them",
        f"an ADD takes {MEDIAN_MOST} times as long at most by the median of turns, {P99_MOST:g} "
        f"times by p99; the one that comes with them {AMID_MOST:g} times", _ONE, slow_clients),
    Row("S13", "texts that inject, in every field that takes a text; a YAML bomb, a megabyte, a "
        "thousand levels",
        "refused, exabgp.conf unchanged (control within: a sane one is taken and changes it)", _ONE,
        injected_names, is_quick=True),
    Row("S14", "nobody's process at the agent's sockets",
        "refused (control within: root's is not, nor nobody's at a socket of 0666)", _ONE,
        stolen_socket, is_quick=True),
]  # fmt: skip
