"""cni/plugin.py, executed as a runtime does, against no agent, bad agents and the real server.

The interpreter runs with -IS, as installed; the agent's end is the real server over fakes.
"""

import contextlib
import json
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni import plugin
from cni.errors import Code
from cni.frame import MAGIC, REQUEST_MAX_BYTES
from cni.result import SUPPORTED_VERSIONS
from cni.spec import SOCKET_PATH_MAX_BYTES, Command
from tests.fakes.cni import Node
from tests.fakes.runtime import Outcome, agent_beside, execute, network_namespace

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/nonexistent/netns",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="making a namespace needs root")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the agent's socket would be."""
    return str(tmp_path / "cni.sock")


@pytest.fixture
def node(path: str) -> Iterator[Node]:
    """A node of fakes with the real server before it."""
    made = Node()
    with agent_beside(path, made):
        yield made


def conf(path: str, **fields: object) -> bytes:
    """A network configuration that leads to ``path``."""
    fixed = {"cniVersion": "1.1.0", "name": "slash32", "type": "slash32", "socket": path}
    return json.dumps(fixed | fields).encode()


def call(command: str, path: str, *, netns: str = "", **fields: object) -> Outcome:
    """One call of a runtime."""
    environment = ENVIRONMENT | {"CNI_COMMAND": command}
    return execute(environment | ({"CNI_NETNS": netns} if netns else {}), conf(path, **fields))


@contextlib.contextmanager
def agent_that(path: str, serve: Callable[[socket.socket], object]) -> Iterator[None]:
    """An agent that does ``serve`` with its one client."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def run() -> None:
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):
                serve(client)

        thread = threading.Thread(target=run)
        thread.start()
        yield
        thread.join(10)


def read_all(client: socket.socket) -> bytes:
    """Everything up to the end of file."""
    data = b""
    while chunk := client.recv(65536):
        data += chunk
    return data


def test_constants_agree_with_the_agents() -> None:
    """The plugin cannot import them; here they are held together."""
    assert plugin.VERSIONS == SUPPORTED_VERSIONS
    assert {each.value for each in Command} == set(plugin.COMMANDS)
    assert plugin.MAGIC == MAGIC
    assert plugin.REQUEST_MAX_BYTES == REQUEST_MAX_BYTES
    assert plugin.SOCKET_PATH_MAX_BYTES == SOCKET_PATH_MAX_BYTES
    for name in ("INVALID_ENVIRONMENT", "IO_FAILURE", "DECODE_FAILURE", "INVALID_CONFIG"):
        assert getattr(plugin, name) == Code[name]
    for name in ("TRY_AGAIN_LATER", "NOT_AVAILABLE", "INTERNAL"):
        assert getattr(plugin, name) == Code[name]


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b"", "1.1.0"),
        (b'{"cniVersion": "0.4.0"}', "0.4.0"),
        (b'{"cniVersion": "1.2.3"}', "1.2.3"),
        (b'{"cniVersion": "x"}', "1.1.0"),
        (b"garbage", "1.1.0"),
        (b"[" * 100_000, "1.1.0"),
    ],
)
def test_version_needs_no_agent(stdin: bytes, version: str) -> None:
    """It echoes the asked version and lists ours."""
    outcome = execute({"CNI_COMMAND": "VERSION"}, stdin)

    assert outcome.status == 0
    assert outcome.json == {"cniVersion": version, "supportedVersions": list(SUPPORTED_VERSIONS)}


@NEEDS_ROOT
@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_a_pods_life_in_every_version(node: Node, path: str, version: str) -> None:
    """ADD, CHECK where it exists, DEL twice; results as the version has them, silence otherwise."""
    with network_namespace() as netns:
        added = call("ADD", path, netns=netns, cniVersion=version)
        assert added.status == 0, added.stdout
        assert added.json["cniVersion"] == version
        assert ("version" in added.json["ips"][0]) == (version < "1.0.0")
        assert ("mtu" in added.json["interfaces"][1]) == (version == "1.1.0")
        assert added.json["interfaces"][1]["sandbox"] == netns
        assert added.json["dns"] == {}

        checked = call("CHECK", path, netns=netns, cniVersion=version, prevResult=added.json)
        if version < "0.4.0":
            assert checked.code == Code.INCOMPATIBLE_VERSION
        else:
            assert (checked.status, checked.stdout) == (0, b"")

        for _ in range(2):
            deleted = call("DEL", path, netns=netns, cniVersion=version, prevResult=added.json)
            assert (deleted.status, deleted.stdout) == (0, b"")
    assert node.leftovers == []


def test_del_without_a_namespace_succeeds(node: Node, path: str) -> None:
    """Gone, empty or never given."""
    without = {key: value for key, value in ENVIRONMENT.items() if key != "CNI_NETNS"}
    for netns in ({"CNI_NETNS": "/nonexistent"}, {"CNI_NETNS": ""}, {}):
        outcome = execute({**without, **netns, "CNI_COMMAND": "DEL"}, conf(path))
        assert (outcome.status, outcome.stdout) == (0, b"")


def test_status_and_gc_reach_the_agent(node: Node, path: str) -> None:
    """Silence, exit status 0."""
    for command in ("STATUS", "GC"):
        environment = ENVIRONMENT | {"CNI_COMMAND": command}
        outcome = execute(environment, conf(path, **{"cni.dev/valid-attachments": []}))
        assert (outcome.status, outcome.stdout) == (0, b"")


@pytest.mark.parametrize("kind", ["missing", "file", "fifo", "device", "directory", "own"])
def test_a_namespace_that_is_none_is_refused_and_never_blocks(
    node: Node, path: str, tmp_path: Path, kind: str
) -> None:
    """A pipe would block open() for ever, and the host's own namespace must not become a pod's."""
    places = {
        "missing": "/nonexistent",
        "file": __file__,
        "device": "/dev/tty",
        "directory": "/",
        "own": "/proc/self/ns/net",
    }
    netns = places.get(kind) or str(tmp_path / "fifo")
    if kind == "fifo":
        os.mkfifo(netns)

    outcome = call("ADD", path, netns=netns)

    assert outcome.code in (Code.UNKNOWN_CONTAINER, Code.INVALID_ENVIRONMENT)
    assert "CNI_NETNS" in outcome.json["msg"]
    assert node.journal == []


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("ADD", Code.TRY_AGAIN_LATER),
        ("CHECK", Code.TRY_AGAIN_LATER),
        ("DEL", Code.TRY_AGAIN_LATER),
        ("GC", Code.TRY_AGAIN_LATER),
        ("STATUS", Code.NOT_AVAILABLE),
    ],
)
@pytest.mark.parametrize("is_stale", [False, True])
def test_without_an_agent_the_runtime_is_told_within_a_second(
    path: str, command: str, code: Code, is_stale: bool
) -> None:
    """No socket, or one nobody listens on; the sentence names the path."""
    if is_stale:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
    began_s = time.monotonic()

    outcome = call(command, path)

    assert time.monotonic() - began_s < 1.0
    assert outcome.code == code
    assert outcome.json["msg"] == f"the slash32 agent does not answer on {path}; is it running?"
    assert outcome.json["cniVersion"] == "1.1.0"
    assert outcome.stderr == ""


@pytest.mark.parametrize(
    ("command", "code"), [("ADD", Code.TRY_AGAIN_LATER), ("STATUS", Code.NOT_AVAILABLE)]
)
def test_an_agent_that_never_answers_costs_the_deadline(
    path: str, command: str, code: Code
) -> None:
    """And no more."""
    hold = threading.Event()
    with agent_that(path, lambda _client: hold.wait(10)):
        environment = ENVIRONMENT | {"CNI_COMMAND": command}
        outcome = execute(environment, conf(path), deadline_s=0.3)
        hold.set()

    assert outcome.code == code
    assert "within 0.3 s" in outcome.json["msg"]


def test_an_agent_that_reads_nothing_costs_the_deadline(path: str) -> None:
    """The request does not fit into the socket's buffer, so sending blocks."""
    hold = threading.Event()
    with agent_that(path, lambda _client: hold.wait(10)):
        outcome = execute(ENVIRONMENT, conf(path, pad="x" * 900_000), deadline_s=0.3)
        hold.set()

    assert outcome.code == Code.TRY_AGAIN_LATER


def test_a_stdin_that_never_ends_costs_the_deadline(path: str) -> None:
    """A runtime that forgets to close it gets an answer all the same."""
    command = ["-c", "import sys; sys.path.insert(0, sys.argv[1]); import plugin; "
               "sys.exit(plugin.main(deadline_s=0.3))"]  # fmt: skip
    with subprocess.Popen(
        [os.path.realpath("/proc/self/exe"), "-ISB", *command, str(Path(plugin.__file__).parent)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["code"] == Code.TRY_AGAIN_LATER


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"", Code.TRY_AGAIN_LATER),
        (b"\2{}", Code.IO_FAILURE),
        (b'{"code": 0}', Code.IO_FAILURE),
        (b"\0" + b"x" * (1 << 21), Code.IO_FAILURE),
    ],
)
def test_an_answer_that_is_none_is_told_as_an_error(path: str, reply: bytes, code: Code) -> None:
    """An agent that died in the middle, or something else behind the socket."""

    def serve(client: socket.socket) -> None:
        read_all(client)
        client.sendall(reply)

    with agent_that(path, serve):
        outcome = call("ADD", path)

    assert outcome.code == code


def test_an_agent_that_refuses_early_is_heard(path: str) -> None:
    """It answers and closes while the request is still being sent."""

    def serve(client: socket.socket) -> None:
        client.recv(1)
        client.sendall(b'\1{"cniVersion": "1.1.0", "code": 7, "msg": "no", "details": ""}')

    with agent_that(path, serve):
        outcome = execute(ENVIRONMENT, conf(path, pad="x" * 900_000))

    assert outcome.code == Code.INVALID_CONFIG


@pytest.mark.parametrize("half", [b"\0", b"\1", b'\0{"cniVersion": "1.1.0", "ips": [{', b"\0[]"])
def test_half_an_answer_is_none(path: str, half: bytes) -> None:
    """Of an agent that was killed while it wrote."""

    def serve(client: socket.socket) -> None:
        read_all(client)
        client.sendall(half)

    with agent_that(path, serve):
        assert execute(ENVIRONMENT, conf(path)).code == Code.IO_FAILURE


def test_status_and_stdout_are_the_agents(path: str) -> None:
    """Byte for byte; what was sent is the protocol, with CNI_* variables only."""
    seen: list[bytes] = []

    def serve(client: socket.socket) -> None:
        seen.append(read_all(client))
        client.sendall(b'\0{"\xc3\xbc": [ "}" ]}\n \n')

    with agent_that(path, serve):
        outcome = execute(ENVIRONMENT | {"SECRET": "s", "CNI_ARGS": "A=B"}, conf(path))

    assert (outcome.status, outcome.stdout) == (0, b'{"\xc3\xbc": [ "}" ]}\n \n')
    magic, rest = seen[0][: len(MAGIC)], seen[0][len(MAGIC) :]
    entries, stdin = rest.split(b"\0\0", 1)
    assert magic == MAGIC
    assert stdin == conf(path)
    assert sorted(entries.split(b"\0")) == sorted(
        f"{key}={value}".encode() for key, value in {**ENVIRONMENT, "CNI_ARGS": "A=B"}.items()
    )


@pytest.mark.parametrize(
    ("environment", "stdin", "code", "said"),
    [
        ({}, b"{}", Code.INVALID_ENVIRONMENT, "CNI_COMMAND is missing"),
        ({"CNI_COMMAND": "UPDATE"}, b"{}", Code.INVALID_ENVIRONMENT, 'CNI_COMMAND is "UPDATE"'),
        (ENVIRONMENT, b"", Code.DECODE_FAILURE, "not JSON"),
        (ENVIRONMENT, b"\xff", Code.DECODE_FAILURE, "not JSON"),
        (ENVIRONMENT, b"[" * 300_000, Code.DECODE_FAILURE, "nests too deeply"),
        (ENVIRONMENT, b"[]", Code.DECODE_FAILURE, "not a JSON object"),
        (ENVIRONMENT, conf("relative"), Code.INVALID_CONFIG, 'socket is "relative"'),
        (ENVIRONMENT, conf("/" + "x" * 107), Code.INVALID_CONFIG, "socket is "),
        (ENVIRONMENT, b'{"socket": 7}', Code.INVALID_CONFIG, "socket is "),
        (ENVIRONMENT, b'{"socket": "/\\ud800"}', Code.TRY_AGAIN_LATER, "does not answer"),
        (ENVIRONMENT, b"{" + b" " * 10_000_000, Code.INVALID_CONFIG, "larger than 1048576"),
        (
            ENVIRONMENT | {"CNI_ARGS": "x" * 100_000},
            conf("/x", pad="x" * 1_000_000),
            Code.INVALID_CONFIG,
            "larger than 1048576",
        ),
    ],
)
def test_what_needs_no_agent_to_be_wrong_is_refused_without_one(
    environment: dict[str, str], stdin: bytes, code: Code, said: str
) -> None:
    """One sentence with the field and the value; nothing on stderr but the usage line."""
    outcome = execute(environment, stdin)

    assert outcome.code == code
    assert said in outcome.json["msg"]
    assert "Traceback" not in outcome.stderr


def test_errors_are_written_in_the_asked_version(path: str) -> None:
    """The agent is away, and the runtime speaks 0.3.1."""
    outcome = call("ADD", path, cniVersion="0.3.1")

    assert outcome.json["cniVersion"] == "0.3.1"


def test_a_stdout_that_is_closed_is_exit_status_1() -> None:
    """Nobody can be told, but nothing is pretended."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [os.path.realpath("/proc/self/exe"), "-IS", plugin.__file__],
            env={"CNI_COMMAND": "VERSION"},
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )

    assert done.returncode == 1
    assert b"stdout cannot be written" in done.stderr


def test_fifty_calls_at_once_are_all_served(node: Node, path: str) -> None:
    """A node that boots; each DEL is answered."""
    running = [
        subprocess.Popen(
            [os.path.realpath("/proc/self/exe"), "-IS", plugin.__file__],
            env=ENVIRONMENT | {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": f"c{number}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(50)
    ]

    outcomes = [process.communicate(conf(path)) for process in running]

    assert {each[0] for each in outcomes} == {b""}
    assert {process.returncode for process in running} == {0}


def test_the_file_is_executable_by_itself() -> None:
    """It has a first line to rewrite and imports nothing of ours."""
    source = Path(plugin.__file__)

    assert source.read_bytes().startswith(b"#!")
    assert not [line for line in source.read_text().splitlines() if line.startswith("from ")]
    assert stat.S_ISREG(source.stat().st_mode)
