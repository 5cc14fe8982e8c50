"""S7: a BGP password and an API token, and every place where they must not be.

The password is set, changed, wrong for a while; agents and ExaBGP are killed with it, the API goes
away; then logs, command lines, environments, files, answers, metrics, resources and the tarball for
a ticket are searched. What was planted in each of these places must be found there, or the search
is worth nothing. After every row of any kind the logs are searched for the token.
"""

from __future__ import annotations

import base64
import os
import secrets
import stat
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from lab import build, namespaces, runtime
from lab.apiserver.server import TOKEN
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.world import World

PLACES = (
    "log", "command line", "environment", "file", "answer", "page", "resource", "tarball",
)  # fmt: skip
PRIVATE = frozenset({"bird.conf", "kubeconfig"})
"""Of the lab itself: its router's side, and who may speak to its API."""
COMMANDS = (
    *(("status",), ("peers",), ("routes",), ("routes", "--rejected"), ("blocks",), ("pods",)),
    *(("ipam",), ("history",), ("doctor",), ("diff",), ("tor-config",), ("topology",)),
)
PAGES = ("/", "/live", "/metrics", "/healthz", "/readyz")
KINDS = ("ippools", "bgppeers", "bgpfilters", "bgpconfigurations", "blocks", "nodestatuses")
OTHERS = (
    "/api/v1/nodes", "/api/v1/pods", "/apis/events.k8s.io/v1/namespaces/default/events",
)  # fmt: skip
SESSION = "neighbor 172.30.0.1 as 64601;"
_FETCH = """
import sys, urllib.error, urllib.request
for path in sys.argv[1:]:
    try:
        answer = urllib.request.urlopen("http://127.0.0.1:9178" + path, timeout=10)
    except urllib.error.HTTPError as error:
        answer = error  # "not ready" is an answer too
    print(answer.read().decode())
"""


def secrets_stay(world: World, verdict: Verdict) -> None:
    """The password's life on node1, then the search for it and for the token."""
    password = f"Xq7-{os.getpid()}-{secrets.token_hex(6)}"
    marker = f"planted-{os.getpid()}"
    with _life_of(world, password):
        up = world.is_up_at("tor1", "node1")
        places = _everywhere(world)
        found = _found(places, _spellings(password) | _spellings(TOKEN))
        with _planted(world, marker):
            missed = set(PLACES) - {place for place, _ in _found(_everywhere(world), {marker})}
    world.settled()
    searched = sum(len(texts) for texts in places.values())
    verdict.note(
        f"session with MD5 up: {up}; {searched} texts in {len(places)} kinds of place searched, "
        f"password and token found in {len(found)}; control: what was planted is found in "
        f"{len(PLACES) - len(missed)} of {len(PLACES)} kinds"
    )
    verdict.must(up, "the session with the password did not come up")
    verdict.must(not found, f"found in {found[:5]}")
    verdict.must(not missed, f"what was planted is not found in: {', '.join(sorted(missed))}")


@contextmanager
def _life_of(world: World, password: str) -> Iterator[None]:
    """Set, wrong, right again; every process ended with it; no API for a while."""
    fields = {"password": {"secretKeyRef": {"name": "chaos", "key": "password"}}}
    plugin = world.lab.runtime_of("node1")
    world.apply(_secret(password + "-wrong"))
    with (
        world.bird_edited("tor1", (SESSION, f'{SESSION}\n  password "{password}";')),
        world.peer_edited("node1", "tor1", fields),
    ):
        world.wait(lambda: not world.is_up_at("tor1", "node1"), "the session to end")
        world.apply(_secret(password))
        world.settled()
        world.kill_speaker("node1")
        world.kill("agent-node1")
        world.start_speaker("node1")
        world.start_agent("node1")
        world.settled()
        with world.extra_pod("node1", "s7") as (sandbox, _):
            runtime.addresses_in(plugin.add(sandbox))
            plugin.delete(sandbox)
        world.lab.stop_api()
        world.wait(lambda: len(world.store_errors()) == len(world.nodes), "no API")
        world.lab.stop_api(is_back=True)
        world.settled()
        yield
    world.delete("Secret", "chaos")


def _secret(password: str) -> str:
    return (
        "apiVersion: v1\nkind: Secret\nmetadata: {name: chaos, namespace: slash32-system}\n"
        f"stringData: {{password: {password}}}\n"
    )


def _spellings(secret: str) -> set[str]:
    """As it is, and as somebody may have encoded it. Base64's end depends on what follows."""
    return {
        secret,
        base64.b64encode(secret.encode()).decode().rstrip("=")[:-1],
        urllib.parse.quote(secret, safe=""),
        secret.encode().hex(),
    }


def token_in_logs(world: World) -> list[str]:
    """A sentence for each log of a lab that the API token is in."""
    logs, _ = _written(world)
    return [f"{name} has the API token" for name, text in logs.items() if TOKEN in text]


Places = Mapping[str, Mapping[str, str]]
"""Kind of place -> name -> what is there to be read."""


def _found(places: Places, wanted: Collection[str]) -> list[tuple[str, str]]:
    return [
        (place, name)
        for place, texts in places.items()
        for name, text in texts.items()
        if any(each in text for each in wanted)
    ]


def _everywhere(world: World) -> Places:
    logs, files = _written(world)
    return {
        "log": logs,
        "file": files,
        "command line": _of_processes("cmdline"),
        "environment": _of_processes("environ"),
        "answer": {" ".join(words): _said(world, *words) for words in COMMANDS},
        "page": {path: world.run("node1", sys.executable, "-c", _FETCH, path) for path in PAGES},
        "resource": {
            path: str(world.api(path))
            for path in (*(f"/apis/slash32.io/v1/{kind}" for kind in KINDS), *OTHERS)
        },
        "tarball": _tarball(world),
    }


def _written(world: World) -> tuple[dict[str, str], dict[str, str]]:
    """Logs and the journals of all nodes, whoever may read them; other files that others may."""
    logs, files = {}, {}
    root = world.lab.paths.root
    for path in root.rglob("*"):
        with suppress(OSError):
            if not path.is_file() or path.name in PRIVATE:
                continue
            name = str(path.relative_to(root))
            if path.suffix == ".log" or path.name.startswith("journal"):
                logs[name] = path.read_text(errors="replace")
            elif path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
                files[name] = path.read_text(errors="replace")
    return logs, files


def _of_processes(name: str) -> dict[str, str]:
    """A file of every process's in /proc but our own."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                found[str(entry / name)] = (entry / name).read_bytes().decode(errors="replace")
    return found


def _said(world: World, *words: str) -> str:
    """Everything that a command prints on node1, well or not."""
    paths = world.lab.paths
    done = subprocess.run(
        namespaces.enter(world.lab.plan.namespace_of("node1"), build.slash32_command(*words)),
        env={
            **build.environment(paths),
            "SLASH32_RUN_DIR": str(paths.run_dir("node1")),
            "SLASH32_STATE_DIR": str(paths.state_dir("node1")),
            "SLASH32_NODE": "node1",
        },
        cwd=build.PROJECT_DIR,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def _tarball(world: World) -> dict[str, str]:
    """``slash32 diag``, member by member."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "diag.tgz"
        _said(world, "diag", "-o", str(path))
        with tarfile.open(path) as tar:
            files = {entry.name: tar.extractfile(entry) for entry in tar if entry.isfile()}
            return {name: file.read().decode() for name, file in files.items() if file}


@contextmanager
def _planted(world: World, marker: str) -> Iterator[None]:
    """A peer of that name, which answers, pages, resources and the tarball show; and the marker in
    a log, a file, a command line and an environment."""
    peer = {
        "apiVersion": "slash32.io/v1", "kind": "BGPPeer", "metadata": {"name": marker},
        "spec": {"peerIP": "192.0.2.77", "asNumber": 64999},
    }  # fmt: skip
    file = world.lab.paths.root / marker
    program = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "input()", marker],
        env={"PLANTED": marker},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        file.write_text(marker)
        file.chmod(0o644)
        with world.lab.paths.log("agent-node1").open("a") as log:
            log.write(f"{marker}\n")
        world.apply(yaml.safe_dump(peer))
        world.wait(lambda: marker in str(world.ask("node1", "peers")), "the planted peer")
        yield
    finally:
        program.kill()
        program.communicate()
        file.unlink(missing_ok=True)
        world.delete("BGPPeer", marker, ok=(0, 1))


ROWS = [
    Row("S7", "a password for BGP: wrong, right, through killed agents and a lost API; then logs, "
        "command lines, environments, files, answers, pages and metrics, resources and the tarball "
        "of `diag` searched for it and for the API token",
        "found nowhere; what is planted is found in every kind of place", Stage.KUBERNETES,
        secrets_stay),
]  # fmt: skip
