"""What a runtime executes: one suite for the Python plugin and the static launcher, per machine.

Every test executes the file as a runtime does; behind the socket is a fake agent.
"""

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.errors import Code
from cni.frame import MAGIC, REQUEST_MAX_BYTES, split_request
from cni.result import SUPPORTED_VERSIONS
from tests.fakes.launcher import (
    FORMS,
    QUICK_DEADLINE_S,
    FakeAgent,
    Launcher,
    execute,
    launcher,
)
from tests.fakes.runtime import Outcome

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/nonexistent/netns",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}
DELETION = ENVIRONMENT | {"CNI_COMMAND": "DEL"}
RECORDS_MAX = 4096
HOSTILE_CASES = 40
HOSTILE_CASES_FLOOR = 40


@pytest.fixture(params=FORMS)
def program(request: pytest.FixtureRequest) -> Launcher:
    """Each form of the exec'd file."""
    return launcher(request.param)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the agent's socket would be."""
    return str(tmp_path / "cni.sock")


@pytest.fixture
def agent(path: str) -> Iterator[FakeAgent]:
    """An agent that answers."""
    with FakeAgent().at(path) as running:
        yield running


@pytest.fixture
def deleted(tmp_path: Path) -> Path:
    """The directory for deletions without an agent, as the agent makes it."""
    directory = tmp_path / "deleted"
    directory.mkdir(mode=0o700)
    return directory


def conf(path: str, **fields: object) -> bytes:
    """A network configuration that leads to ``path``."""
    fixed = {"cniVersion": "1.1.0", "name": "slash32", "type": "slash32", "socket": path}
    return json.dumps(fixed | fields).encode()


def frame_of(environment: dict[str, str], stdin: bytes) -> bytes:
    """The request that must travel."""
    entries = b"".join(f"{key}={value}\0".encode() for key, value in environment.items())
    return MAGIC + entries + b"\0" + stdin


def assert_is_one_error(outcome: Outcome) -> None:
    """Nothing but a CNI error on stdout, exit status 1, no trace of a crash."""
    assert 0 < outcome.code < 128
    assert isinstance(outcome.json["msg"], str)
    assert outcome.json["cniVersion"] in SUPPORTED_VERSIONS
    assert outcome.stdout.count(b"\n") == 1
    assert "Traceback" not in outcome.stderr


# -- VERSION -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b"", "1.1.0"),
        (b"{}", "1.1.0"),
        (b'{"cniVersion": "0.4.0"}', "0.4.0"),
        (b'\n{ "a": {"cniVersion": "9.9.9"}, "cniVersion"\t:\r"0.3.1" , "b": []} ', "0.3.1"),
        (b'{"cniVersion": "1.2.3"}', "1.2.3"),
        (b'{"cniVersion": "x"}', "1.1.0"),
        (b'{"cniVersion": "1.1\\u0022"}', "1.1.0"),
        (b'{"cniVersion": 7}', "1.1.0"),
        (b'{"cniVersion": "0.4.0"', "1.1.0"),
        (b"garbage", "1.1.0"),
        (b"[" * 100_000, "1.1.0"),
    ],
)
def test_version_needs_no_agent(program: Launcher, stdin: bytes, version: str) -> None:
    """It repeats the asked version when it is one, and lists ours."""
    outcome = execute(program.command, {"CNI_COMMAND": "VERSION"}, stdin)

    assert outcome.status == 0
    assert outcome.json == {"cniVersion": version, "supportedVersions": list(SUPPORTED_VERSIONS)}


# -- what travels ------------------------------------------------------------------------------


def test_the_request_is_the_cni_environment_and_stdin(
    program: Launcher, agent: FakeAgent, path: str
) -> None:
    """Byte for byte in the protocol's form, and nothing of the rest of the environment."""
    stdin = b' {"x": "\\u0000\xc3\xbc", "socket": "' + path.encode() + b'"}\n\n'
    environment = ENVIRONMENT | {"CNI_ARGS": "A=B;C=ü", "CNI_EMPTY": ""}

    outcome = execute(program.command, {"SECRET": "s", "CN": "x"} | environment, stdin)

    assert (outcome.status, outcome.stdout) == (0, b"{}")
    assert len(agent.frames) == 1
    got, got_stdin = split_request(agent.frames[0])
    assert (got, got_stdin) == (environment, stdin)
    assert sorted(agent.frames[0]) == sorted(frame_of(environment, stdin))


@pytest.mark.parametrize(
    ("command", "reply", "status", "stdout"),
    [
        ("DEL", b"\0", 0, b""),
        ("ADD", b'\0{"cniVersion": "1.1.0"}\n', 0, b'{"cniVersion": "1.1.0"}\n'),
        ("STATUS", b"\1{}", 1, b"{}"),
        ("CHECK", b'\0{"\xc3\xbc": [ "}" ]}\n \n', 0, b'{"\xc3\xbc": [ "}" ]}\n \n'),
        ("GC", b'\0{"x": "' + b"x" * 900_000 + b'"}', 0, b'{"x": "' + b"x" * 900_000 + b'"}'),
    ],
)
def test_status_and_stdout_are_the_agents(
    program: Launcher,
    agent: FakeAgent,
    path: str,
    command: str,
    reply: bytes,
    status: int,
    stdout: bytes,
) -> None:
    """Whatever the verb, byte for byte."""
    agent.reply = reply

    outcome = execute(program.command, ENVIRONMENT | {"CNI_COMMAND": command}, conf(path))

    assert (outcome.status, outcome.stdout, outcome.stderr) == (status, stdout, "")


def test_the_largest_request_travels_and_one_byte_more_does_not(
    program: Launcher, agent: FakeAgent, path: str
) -> None:
    """1 MiB is the limit of the whole request."""
    room = REQUEST_MAX_BYTES - len(frame_of(ENVIRONMENT, conf(path, pad="")))

    fits = execute(program.command, ENVIRONMENT, conf(path, pad="x" * room))
    over = execute(program.command, ENVIRONMENT, conf(path, pad="x" * (room + 1)))

    assert fits.status == 0
    assert over.code == Code.INVALID_CONFIG
    assert [len(frame) for frame in agent.frames] == [REQUEST_MAX_BYTES]


@pytest.mark.parametrize("kind", ["file", "missing", "fifo", "device", "directory", "none"])
def test_only_a_namespace_file_travels_as_a_descriptor(
    program: Launcher, agent: FakeAgent, path: str, tmp_path: Path, kind: str
) -> None:
    """To stat, a namespace is a regular file; opening anything else could block or do harm."""
    netns = tmp_path / "netns"
    environment = ENVIRONMENT | {"CNI_NETNS": str(netns)}
    if kind == "file":
        netns.touch()
    elif kind == "fifo":
        os.mkfifo(netns)
    elif kind == "directory":
        netns.mkdir()
    elif kind == "device":
        environment["CNI_NETNS"] = "/dev/null"
    elif kind == "none":
        del environment["CNI_NETNS"]

    assert execute(program.command, environment, conf(path)).status == 0

    sent = netns.stat() if kind == "file" else None
    assert agent.inodes == ([(sent.st_dev, sent.st_ino)] if sent else [])
    assert [split_request(frame) for frame in agent.frames] == [(environment, conf(path))]


# -- an agent that is away, slow or broken -----------------------------------------------------


@pytest.mark.parametrize("is_stale", [False, True])
@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_without_an_agent_the_runtime_is_told_within_a_second(
    program: Launcher, path: str, command: str, is_stale: bool
) -> None:
    """No socket, or one nobody listens on; DEL too while there is no place to record it."""
    if is_stale:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
    began_s = time.monotonic()

    outcome = execute(
        program.command,
        ENVIRONMENT | {"CNI_COMMAND": command},
        conf(path, cniVersion="0.4.0"),
    )

    assert time.monotonic() - began_s < 1.0
    assert_is_one_error(outcome)
    assert outcome.code == (Code.NOT_AVAILABLE if command == "STATUS" else Code.TRY_AGAIN_LATER)
    assert f"the slash32 agent does not answer on {path}" in outcome.json["msg"]
    assert outcome.json["cniVersion"] == "0.4.0"


def test_without_a_socket_in_the_configuration_the_default_is_asked(program: Launcher) -> None:
    """Missing and empty are the same."""
    if os.path.exists("/run/slash32/cni.sock"):
        pytest.skip("an agent of this machine uses the default socket")
    for stdin in (b"{}", b'{"socket": ""}', b'{"a": {"socket": "/x"}, "b": "socket"}'):
        outcome = execute(program.command, ENVIRONMENT, stdin)

        assert "/run/slash32/cni.sock" in outcome.json["msg"]


@pytest.mark.parametrize(
    ("command", "pad_bytes"), [("ADD", 0), ("ADD", 900_000), ("DEL", 0), ("STATUS", 0)]
)
def test_an_agent_that_never_answers_costs_the_deadline(
    program: Launcher, path: str, deleted: Path, command: str, pad_bytes: int
) -> None:
    """Also while sending blocks. A DEL is recorded: done twice is harmless, and the agent looks."""
    hold = threading.Event()
    began_s = time.monotonic()
    agent = FakeAgent(before_reply=lambda _client: hold.wait(10) and False)
    with agent.at(path):
        environment = ENVIRONMENT | {"CNI_COMMAND": command}
        outcome = execute(program.quick, environment, conf(path, pad="x" * pad_bytes))
        hold.set()

    assert QUICK_DEADLINE_S <= time.monotonic() - began_s < QUICK_DEADLINE_S + 2
    records = [split_request(record.read_bytes()) for record in deleted.iterdir()]
    if command == "DEL":
        assert (outcome.status, outcome.stdout) == (0, b"")
        assert records == [(environment, conf(path, pad="x" * pad_bytes))]
        return
    assert_is_one_error(outcome)
    assert outcome.code == (Code.NOT_AVAILABLE if command == "STATUS" else Code.TRY_AGAIN_LATER)
    assert records == []


def test_a_late_agent_without_a_place_for_records_costs_an_error(
    program: Launcher, path: str
) -> None:
    """Nobody has promised to replay it, so the runtime must repeat it."""
    hold = threading.Event()
    with FakeAgent(before_reply=lambda _client: hold.wait(10) and False).at(path):
        outcome = execute(program.quick, DELETION, conf(path))
        hold.set()

    assert_is_one_error(outcome)
    assert outcome.code == Code.TRY_AGAIN_LATER


def test_a_full_backlog_costs_the_deadline(program: Launcher, path: str) -> None:
    """An agent that does not accept any more."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)

        outcome = execute(program.quick, ENVIRONMENT, conf(path))

    assert_is_one_error(outcome)
    assert outcome.code == Code.TRY_AGAIN_LATER


def test_a_stdin_that_never_ends_costs_the_deadline(program: Launcher) -> None:
    """With the alarm blocked and the pipe signal ignored by the parent, as some runtimes do."""

    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})

    with subprocess.Popen(
        program.quick,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=block,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["code"] == Code.TRY_AGAIN_LATER
        assert process.wait() == 1


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"", Code.TRY_AGAIN_LATER),
        (b"\2{}", Code.IO_FAILURE),
        (b'{"code": 0}', Code.IO_FAILURE),
        (b'\0{"cniVersion": "1.1.0", "ips": [{', Code.IO_FAILURE),
        (b"\0garbage", Code.IO_FAILURE),
        (b"\0", Code.IO_FAILURE),
        (b"\1", Code.IO_FAILURE),
        (b"\0{} {}", Code.IO_FAILURE),
        (b"\0" + b"x" * (1 << 21), Code.IO_FAILURE),
    ],
)
def test_an_answer_that_is_none_is_told_as_an_error(
    program: Launcher, agent: FakeAgent, path: str, reply: bytes, code: Code
) -> None:
    """An agent that died in the middle, or something else behind the socket."""
    agent.reply = reply

    outcome = execute(program.command, ENVIRONMENT, conf(path))

    assert_is_one_error(outcome)
    assert outcome.code == code


def test_an_agent_that_refuses_early_is_heard(program: Launcher, path: str) -> None:
    """It answers and closes while the request is still being sent; no SIGPIPE ends us."""

    def refuse(client: socket.socket) -> bool:
        client.recv(1)
        client.sendall(b'\1{"cniVersion": "1.1.0", "code": 7, "msg": "no", "details": ""}')
        return False

    with FakeAgent(before_reply=refuse).at(path):
        outcome = execute(program.command, ENVIRONMENT, conf(path, pad="x" * 900_000))

    assert outcome.code == Code.INVALID_CONFIG


# -- hopeless calls ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "stdin", "code", "said"),
    [
        ({}, b"{}", Code.INVALID_ENVIRONMENT, "CNI_COMMAND"),
        ({"CNI_COMMAND": ""}, b"{}", Code.INVALID_ENVIRONMENT, "CNI_COMMAND"),
        ({"CNI_COMMAND": "UPDATE"}, b"{}", Code.INVALID_ENVIRONMENT, "CNI_COMMAND"),
        ({"CNI_COMMAND": "AD"}, b"{}", Code.INVALID_ENVIRONMENT, "CNI_COMMAND"),
        ({"CNI_COMMAND": "ADD, DEL"}, b"{}", Code.INVALID_ENVIRONMENT, "CNI_COMMAND"),
        (ENVIRONMENT, b"", Code.DECODE_FAILURE, "JSON"),
        (ENVIRONMENT, b"\0\0\0", Code.DECODE_FAILURE, "JSON"),
        (ENVIRONMENT, b"\xef\xbb\xbf{}", Code.DECODE_FAILURE, "JSON"),
        (ENVIRONMENT, b"\xff", Code.DECODE_FAILURE, "JSON"),
        (ENVIRONMENT, b"[" * 300_000, Code.DECODE_FAILURE, "configuration on stdin"),
        (ENVIRONMENT, b"[]", Code.DECODE_FAILURE, "not a JSON object"),
        (ENVIRONMENT, b'"socket"', Code.DECODE_FAILURE, "not a JSON object"),
        (ENVIRONMENT, b"{} {}", Code.DECODE_FAILURE, "JSON"),
        (ENVIRONMENT, b'{"socket": "/run', Code.DECODE_FAILURE, "JSON"),
        (ENVIRONMENT, b'{"socket": "/run\\', Code.DECODE_FAILURE, "JSON"),
        (ENVIRONMENT, conf("relative"), Code.INVALID_CONFIG, "socket"),
        (ENVIRONMENT, conf("/" + "x" * 107), Code.INVALID_CONFIG, "socket"),
        (ENVIRONMENT, b'{"socket": 7}', Code.INVALID_CONFIG, "socket"),
        (ENVIRONMENT, b'{"socket": "/\\u0000"}', Code.INVALID_CONFIG, "socket"),
        (ENVIRONMENT, b"{" + b" " * 10_000_000, Code.INVALID_CONFIG, "larger than 1048576"),
        (ENVIRONMENT, b"\0" * 10_000_000, Code.INVALID_CONFIG, "larger than 1048576"),
        (
            ENVIRONMENT | {"CNI_ARGS": "x" * 100_000},
            conf("/x", pad="x" * 1_000_000),
            Code.INVALID_CONFIG,
            "larger than 1048576",
        ),
        (
            ENVIRONMENT | {f"CNI_{number}": "x" * 120_000 for number in range(12)},
            conf("/x"),
            Code.INVALID_CONFIG,
            "larger than 1048576",
        ),
    ],
)
def test_what_needs_no_agent_to_be_wrong_is_refused_without_one(
    program: Launcher, environment: dict[str, str], stdin: bytes, code: Code, said: str
) -> None:
    """One sentence that names what is wrong."""
    outcome = execute(program.command, environment, stdin)

    assert_is_one_error(outcome)
    assert outcome.code == code
    assert said in outcome.json["msg"]


def test_whatever_is_on_stdin_the_answer_is_one_error(program: Launcher) -> None:
    """Mutilated configurations: never a crash, never garbage on stdout, never a hang."""
    choice = random.Random(32)
    whole = conf("/nonexistent/cni.sock", prevResult={"ips": ["\\", '"']}, x=[{"socket": "/y"}])
    pieces = [b'"', b"\\", b"{", b"}", b":", b",", b"\0", b"\xff", b'"socket"', b'"/', b"[", b"]"]
    ran = 0
    for _ in range(HOSTILE_CASES):
        stdin = bytearray(whole)
        for _ in range(choice.randint(1, 6)):
            at = choice.randrange(len(stdin))
            stdin[at : at + choice.choice((0, 0, 1, 5))] = choice.choice(pieces)
        outcome = execute(program.command, ENVIRONMENT, bytes(stdin))
        assert_is_one_error(outcome)
        assert outcome.code in (
            Code.DECODE_FAILURE,
            Code.INVALID_CONFIG,
            Code.TRY_AGAIN_LATER,
        ), bytes(stdin)
        ran += 1
    assert ran >= HOSTILE_CASES_FLOOR


def test_a_closed_stdin_is_a_failure_to_read(program: Launcher, path: str) -> None:
    """No descriptor 0 at all."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *program.command],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        check=False,
        timeout=10,
    )

    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == Code.IO_FAILURE


@pytest.mark.parametrize("kind", ["full", "closed", "broken pipe"])
def test_a_stdout_that_takes_nothing_is_exit_status_1(program: Launcher, kind: str) -> None:
    """Nobody can be told, but nothing is pretended, and no signal is the answer."""
    redirection = {"full": ">/dev/full", "closed": ">&-", "broken pipe": ""}[kind]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *program.command],
            env={"CNI_COMMAND": "VERSION"},
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=10,
        )
    finally:
        os.close(writer)

    assert done.returncode == 1


# -- DEL without an agent ----------------------------------------------------------------------


def test_a_deletion_without_an_agent_is_recorded_and_succeeds(
    program: Launcher, path: str, deleted: Path
) -> None:
    """The record is the request, so that the agent's own parser reads it."""
    outcome = execute(program.command, DELETION, conf(path))

    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, b"", "")
    records = list(deleted.iterdir())
    assert len(records) == 1
    assert not records[0].name.startswith(".")
    assert records[0].stat().st_mode & 0o777 == 0o600
    assert split_request(records[0].read_bytes()) == (DELETION, conf(path))


def test_a_repeated_deletion_is_one_record_and_another_is_another(
    program: Launcher, path: str, deleted: Path
) -> None:
    """Two sandboxes, two interfaces of one, two networks: four records, however often."""
    calls = [
        (DELETION, conf(path)),
        (DELETION | {"CNI_CONTAINERID": "c0fefe"}, conf(path)),
        (DELETION | {"CNI_IFNAME": "eth1"}, conf(path)),
        (DELETION, conf(path, name="other")),
    ]
    for _ in range(2):
        for environment, stdin in calls:
            assert execute(program.command, environment, stdin).status == 0

    frames = [split_request(record.read_bytes()) for record in deleted.iterdir()]
    assert len(frames) == len(calls)
    assert all(each in frames for each in calls)


def test_both_forms_name_a_record_alike(path: str, deleted: Path) -> None:
    """A host whose launcher is replaced between two tries still has one record."""
    names = set()
    for form in ("python", "x86-64"):
        assert execute(launcher(form).command, DELETION, conf(path)).status == 0
        names |= {record.name for record in deleted.iterdir()}

    assert len(names) == 1


@pytest.mark.parametrize("command", ["ADD", "CHECK", "GC", "STATUS"])
def test_nothing_else_is_recorded(
    program: Launcher, path: str, deleted: Path, command: str
) -> None:
    """An ADD that waits on disk would come alive when nobody wants it any more."""
    execute(program.command, ENVIRONMENT | {"CNI_COMMAND": command}, conf(path))

    assert list(deleted.iterdir()) == []


def test_a_hopeless_deletion_is_not_recorded(program: Launcher, path: str, deleted: Path) -> None:
    """The agent could make nothing of it."""
    outcome = execute(program.command, DELETION, conf(path)[:-1])

    assert outcome.code == Code.DECODE_FAILURE
    assert list(deleted.iterdir()) == []


def test_records_are_bounded(program: Launcher, path: str, deleted: Path) -> None:
    """At the bound the runtime is told to try again, and nothing is written."""
    for number in range(RECORDS_MAX - 1):
        (deleted / f"{number:016x}").touch()

    last = execute(program.command, DELETION, conf(path))
    over = execute(program.command, DELETION | {"CNI_IFNAME": "eth1"}, conf(path))

    assert last.status == 0
    assert_is_one_error(over)
    assert over.code == Code.TRY_AGAIN_LATER
    assert str(deleted) in over.json["msg"]
    assert len(list(deleted.iterdir())) == RECORDS_MAX


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize("pad_bytes", [0, 100_000])
def test_a_full_disk_is_told_and_leaves_no_record(
    program: Launcher, path: str, deleted: Path, pad_bytes: int
) -> None:
    """Full from the start, or in the middle of the record: never half a record."""
    script = """
        mount -t tmpfs -o size=64k,mode=0700 tmpfs "$0" || exit 99
        [ "$1" -gt 0 ] || dd if=/dev/zero of="$0/.fill" bs=1k 2>/dev/null
        shift
        "$@"; status=$?
        rm -f "$0/.fill"; ls -A "$0" >&2; exit $status
    """
    done = subprocess.run(
        ["unshare", "--mount", "/bin/sh", "-c", script, deleted, str(pad_bytes), *program.command],
        env=DELETION | {"PATH": os.environ["PATH"]},
        input=conf(path, pad="x" * pad_bytes),
        capture_output=True,
        timeout=20,
        check=False,
    )

    outcome = Outcome(done.returncode, done.stdout, "")
    assert_is_one_error(outcome)
    assert outcome.code == Code.IO_FAILURE
    assert str(deleted) in outcome.json["msg"]
    assert done.stderr == b""


def test_a_place_that_is_no_directory_is_told(program: Launcher, path: str, tmp_path: Path) -> None:
    """Somebody put a file there; it stays as it is."""
    (tmp_path / "deleted").write_text("mine")

    outcome = execute(program.command, DELETION, conf(path))

    assert outcome.code in (Code.IO_FAILURE, Code.TRY_AGAIN_LATER)
    assert (tmp_path / "deleted").read_text() == "mine"


def test_no_deletion_is_lost_while_the_agent_starts(
    program: Launcher, tmp_path: Path, deleted: Path
) -> None:
    """The agent listens, looks at the records, then accepts: each DEL is in one of the two."""
    tries = 40 if program.is_static else 15
    for number in range(tries):
        directory = tmp_path / str(number)
        (directory / "deleted").mkdir(parents=True)
        path = str(directory / "cni.sock")
        with subprocess.Popen(
            program.command, env=DELETION, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as process:
            assert process.stdin is not None
            process.stdin.write(conf(path))
            process.stdin.close()
            _pass_time(number / tries * (0.002 if program.is_static else 0.03))
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen()
                # The agent replays what it finds, once.
                found = {each.name for each in (directory / "deleted").iterdir()}
                seen = len({name for name in found if not name.startswith(".")})
                listener.settimeout(5)
                listener.setblocking(False)
                while process.poll() is None:
                    try:
                        client, _ = listener.accept()
                    except BlockingIOError:
                        continue
                    with client:
                        client.setblocking(True)
                        while client.recv(65536):
                            pass
                        client.sendall(b"\0")
                        seen += 1
        assert process.returncode == 0
        assert seen >= 1


def _pass_time(seconds: float) -> None:
    """Lets the other process get that much further; any amount is right."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        os.sched_yield()
