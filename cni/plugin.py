#!/usr/bin/env python3
"""The slash32 CNI executable: hands a runtime's call to the agent and prints its answer.

Self-contained, standard library only, no import of ours: install.py copies this file to the host
and writes its interpreter into the first line. Everything is decided by the agent; what is
answered here is VERSION, what needs no agent to be wrong, and the agent's absence.

The protocol (cni/server.py is the other end), one request per connection of a Unix socket:
    request: b"slash32-cni 1\\0", each CNI_* variable as b"KEY=VALUE\\0", b"\\0", stdin, end of
             file; the open network namespace travels with the first byte (SCM_RIGHTS).
    reply:   one byte, the exit status (0 or 1), then what goes to stdout, end of file: a JSON
             object, or nothing where the exit status says all (0, and no ADD).

A DEL without an agent is recorded: the request is written to deleted/ beside the socket, if the
agent has made that directory, and the runtime is told yes. The agent listens, replays the
records, and only then accepts. launcher/launcher.c is the same program for hosts without Python.
"""

import json
import os
import signal
import socket
import stat
import sys
import time

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION")
MAGIC = b"slash32-cni 1\0"
DEFAULT_SOCKET = "/run/slash32/cni.sock"
SOCKET_PATH_MAX_BYTES = 107
REQUEST_MAX_BYTES = 1 << 20
REPLY_MAX_BYTES = 1 << 20
RECORDS_DIRECTORY = "deleted"
RECORDS_MAX = 4096
DEADLINE_S = 30.0
"""Longer than the agent's own limit of 25 s, shorter than any runtime's (kubelet: two minutes)."""
STATUS_DEADLINE_S = 10.0
"""containerd asks every 5 s; an agent that needs longer than twice that is not ready."""
RECORD_DEADLINE_S = 10.0
"""To record a DEL that the agent has not answered in time, besides."""
SHOWN_CHARS = 60

INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODE_FAILURE = 6
INVALID_CONFIG = 7
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
INTERNAL = 100


class Refusal(Exception):
    """An answer that the plugin gives itself: a CNI error code and one sentence."""

    def __init__(self, code: int, msg: str) -> None:
        super().__init__(msg)
        self.code = code


class DeadlinePassed(BaseException):
    """The time for the whole call is over; no ``except Exception`` on the way may swallow it."""


class Call:
    """What is known of the call so far; an answer needs it at any moment."""

    def __init__(self) -> None:
        self.command = os.environ.get("CNI_COMMAND", "")
        self.version = VERSIONS[-1]
        self.late: tuple[str, bytes] | None = None
        """Socket and request of a DEL that is recorded when the agent does not answer in time."""


def main(deadline_s: float = DEADLINE_S) -> int:
    """One call: environment and stdin in, stdout and exit status out."""
    call = Call()
    if call.command == "STATUS":
        deadline_s = min(deadline_s, STATUS_DEADLINE_S)
    try:
        start_deadline(deadline_s)
        status, reply = answer(call)
        stop_deadline()
    except DeadlinePassed:
        stop_deadline()
        status, reply = too_late(call, deadline_s)
    return status if write_stdout(reply) else 1


def too_late(call: Call, deadline_s: float) -> "tuple[int, bytes]":
    """The agent is there and has not answered. A DEL is recorded: the agent replays it once it is
    well, and one that is done twice is harmless."""
    if call.late is not None:
        try:
            # A disk may hang as well.
            start_deadline(RECORD_DEADLINE_S)
            is_recorded = record(*call.late)
            stop_deadline()
            if is_recorded:
                return 0, b""
        except Refusal as refusal:
            stop_deadline()
            return error_answer(call.version, refusal.code, str(refusal))
        except DeadlinePassed:
            stop_deadline()
    return error_answer(
        call.version,
        unavailable(call.command),
        f"the slash32 agent did not answer within {deadline_s:g} s; try again later",
    )


def answer(call: Call) -> "tuple[int, bytes]":
    """Exit status and stdout, whatever happens."""
    try:
        return decide(call)
    except Refusal as refusal:
        code = unavailable(call.command) if refusal.code == TRY_AGAIN_LATER else refusal.code
        return error_answer(call.version, code, str(refusal))
    except Exception as error:
        # Whatever it is, a runtime reads JSON on stdout and nothing else.
        what = f"the slash32 plugin failed: {type(error).__name__}: {error}"
        return error_answer(call.version, INTERNAL, what)


def decide(call: Call) -> "tuple[int, bytes]":
    """Exit status and stdout, from the agent but for VERSION.

    Raises:
        Refusal: no agent is needed to say no, or none is there.
    """
    if call.command not in COMMANDS:
        tell_usage()
        found = f"is {shown(call.command)}, not" if call.command else "is missing; it is"
        raise Refusal(INVALID_ENVIRONMENT, f"CNI_COMMAND {found} one of {', '.join(COMMANDS)}")
    stdin = read_stdin()
    if call.command == "VERSION":
        return 0, version_answer(stdin)
    version, path = parse_conf(stdin)
    if version in VERSIONS:
        call.version = version
    return ask_agent(call, path, stdin)


def unavailable(command: str) -> int:
    """STATUS has a code of its own for an agent that cannot be reached."""
    return NOT_AVAILABLE if command == "STATUS" else TRY_AGAIN_LATER


def tell_usage() -> None:
    """For a person who runs this by hand."""
    sys.stderr.write(
        f"slash32 CNI plugin, run by a container runtime; speaks CNI {', '.join(VERSIONS)}\n"
    )


def shown(value: object) -> str:
    """``value`` for a sentence: quoted, escaped, cut."""
    text = value if isinstance(value, str) else repr(value)
    return json.dumps(text[:SHOWN_CHARS]) + ("..." if len(text) > SHOWN_CHARS else "")


# -- deadline ----------------------------------------------------------------------------------


def start_deadline(seconds: float) -> None:
    """One alarm for everything that can block: stdin, connect, send, receive."""

    def ring(_number: int, _frame: object) -> None:
        raise DeadlinePassed

    signal.signal(signal.SIGALRM, ring)
    # A runtime may start us with the signal blocked.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, seconds)


def stop_deadline() -> None:
    """From here on the answer is written, which no alarm may cut in two."""
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)


# -- stdin and stdout --------------------------------------------------------------------------


def read_stdin() -> bytes:
    """Standard input up to its end, never more than a request may hold.

    Raises:
        Refusal: 5 it cannot be read, 7 it is too large.
    """
    data = bytearray()
    while True:
        try:
            chunk = os.read(0, REQUEST_MAX_BYTES + 1 - len(data))
        except OSError as error:
            raise Refusal(IO_FAILURE, f"stdin cannot be read: {error.strerror}") from None
        if not chunk:
            return bytes(data)
        data += chunk
        if len(data) > REQUEST_MAX_BYTES:
            raise too_large()


def too_large() -> Refusal:
    """The one size limit, of the configuration alone and with its environment."""
    return Refusal(
        INVALID_CONFIG,
        "the network configuration on stdin, with the CNI_* environment, is larger than "
        f"{REQUEST_MAX_BYTES} bytes",
    )


def write_stdout(data: bytes) -> bool:
    """Whether all of ``data`` went out."""
    try:
        while data:
            data = data[os.write(1, data) :]
    except OSError as error:
        sys.stderr.write(f"slash32: stdout cannot be written: {error.strerror}\n")
        return False
    return True


def version_answer(stdin: bytes) -> bytes:
    """VERSION: the version the runtime named, if it is one at all, and those we speak."""
    return encoded({"cniVersion": named_version(stdin), "supportedVersions": VERSIONS})


def named_version(stdin: bytes) -> str:
    """``cniVersion`` of a VERSION call; old runtimes send nothing, which is no error."""
    try:
        named = str(json.loads(stdin.decode("utf-8"))["cniVersion"])
    except (ValueError, RecursionError, LookupError, TypeError):
        return VERSIONS[-1]
    numbers = named.split(".")
    sane = len(numbers) == 3 and all(n.isascii() and n.isdigit() and len(n) < 6 for n in numbers)
    return named if sane else VERSIONS[-1]


def error_answer(version: str, code: int, msg: str) -> "tuple[int, bytes]":
    """A CNI error (specification, section 5)."""
    return 1, encoded({"cniVersion": version, "code": code, "msg": msg, "details": ""})


def encoded(fields: "dict[str, object]") -> bytes:
    """ASCII only, so that text from a broken environment cannot break the answer."""
    return json.dumps(fields).encode("ascii") + b"\n"


def parse_conf(stdin: bytes) -> "tuple[str, str]":
    """The two keys the plugin needs: ``cniVersion`` for its own errors, and ``socket``.

    Raises:
        Refusal: 6 not JSON or not an object, 7 a socket path that is none.
    """
    try:
        conf = json.loads(stdin.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise Refusal(
            DECODE_FAILURE, f"network configuration on stdin is not JSON: {reason}"
        ) from None
    if not isinstance(conf, dict):
        raise Refusal(DECODE_FAILURE, "network configuration on stdin is not a JSON object")
    version = conf.get("cniVersion")
    path = conf.get("socket") or DEFAULT_SOCKET
    if (
        not isinstance(path, str)
        or not path.startswith("/")
        or "\0" in path
        or len(path.encode("utf-8", "surrogatepass")) > SOCKET_PATH_MAX_BYTES
    ):
        raise Refusal(
            INVALID_CONFIG,
            f"network configuration: socket is {shown(path)}; it must be an absolute path of at "
            f"most {SOCKET_PATH_MAX_BYTES} bytes",
        )
    return version if isinstance(version, str) else "", path


# -- the agent ---------------------------------------------------------------------------------


def ask_agent(call: Call, path: str, stdin: bytes) -> "tuple[int, bytes]":
    """Exit status and stdout, from the agent at ``path``.

    Raises:
        Refusal: 5 a DEL cannot be recorded, 7 the request is too large, 11 the agent is not
            there or went away.
    """
    environment = b"".join(
        key + b"=" + value + b"\0" for key, value in os.environb.items() if key.startswith(b"CNI_")
    )
    request = MAGIC + environment + b"\0" + stdin
    if len(request) > REQUEST_MAX_BYTES:
        raise too_large()
    deletion = request if call.command == "DEL" else b""
    agent = connect(call, path, deletion)
    if agent is None:
        return 0, b""
    call.late = (path, deletion) if deletion else None
    with agent:
        netns = open_netns(os.environb.get(b"CNI_NETNS", b""))
        return read_reply(agent, send_request(agent, request, netns), call.command)


def connect(call: Call, path: str, deletion: bytes) -> "socket.socket | None":
    """A connection to the agent, or None when ``deletion`` was recorded because there is none.

    Raises:
        Refusal: 5 the deletion cannot be recorded, 11 there is no agent and nothing to record.
    """
    call.late = (path, deletion) if deletion else None
    try:
        return dial(path)
    except (OSError, UnicodeError) as error:
        is_away = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
    # A disk that hangs is not asked a second time at the deadline.
    call.late = None
    recorded = record(path, deletion) if is_away and deletion else ""
    if not recorded:
        raise Refusal(
            TRY_AGAIN_LATER, "the slash32 agent does not answer on " + path + "; is it running?"
        )
    try:
        agent = dial(path)
    except OSError:
        # Still away, so it has yet to listen, and it looks at the records after that.
        return None
    os.unlink(recorded)
    return agent


def dial(path: str) -> socket.socket:
    """A connection to ``path``, or the error of connecting."""
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        agent.connect(os.fsencode(path))
    except BaseException:
        agent.close()
        raise
    return agent


def record(path: str, request: bytes) -> str:
    """Writes ``request`` to disk, whole and durable; the file, or "" without a directory for it.

    Its name comes from the request: a repeated one is one record.

    Raises:
        Refusal: 5 it cannot be written, 11 too many wait already.
    """
    directory = os.path.join(os.path.dirname(path), RECORDS_DIRECTORY)
    try:
        waiting = len(os.listdir(directory))
    except OSError:
        return ""
    if waiting >= RECORDS_MAX:
        raise Refusal(
            TRY_AGAIN_LATER, "too many deletions wait for the slash32 agent in " + directory
        )
    name = os.path.join(directory, format(fnv_1a(request), "016x"))
    temporary = os.path.join(directory, "." + format(time.monotonic_ns(), "x"))
    try:
        try:
            write_durably(temporary, request)
            os.rename(temporary, name)
            sync(directory)
        except BaseException:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise Refusal(
            IO_FAILURE,
            "the deletion cannot be recorded in " + directory + ": " + str(error.strerror),
        ) from None
    return name


def fnv_1a(data: bytes) -> int:
    """The 64-bit hash that the launcher in C can compute too."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def write_durably(path: str, data: bytes) -> None:
    """A new file with ``data``, on disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync(directory: str) -> None:
    """The names in ``directory`` are on disk when this returns."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_netns(path: bytes) -> "list[int]":
    """The namespace's descriptor, or none: what that means depends on the command."""
    try:
        # A namespace is a regular file to stat; opening a pipe or a device could block or worse.
        if path and stat.S_ISREG(os.stat(path).st_mode):
            return [os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)]
    except (OSError, ValueError):
        return []
    return []


def send_request(agent: socket.socket, request: bytes, netns: "list[int]") -> str:
    """Sends; an agent that refuses may close early, and its answer is there all the same."""
    try:
        sent = socket.send_fds(agent, [request], netns)
        agent.sendall(request[sent:])
        agent.shutdown(socket.SHUT_WR)
    except OSError as error:
        return str(error.strerror)
    return ""


def read_reply(agent: socket.socket, trouble: str, command: str) -> "tuple[int, bytes]":
    """The exit status and the rest of the reply.

    Raises:
        Refusal: 11, the agent went away before it answered.
    """
    reply = bytearray()
    try:
        while len(reply) <= REPLY_MAX_BYTES:
            chunk = agent.recv(65536)
            if not chunk:
                break
            reply += chunk
    except OSError as error:
        trouble = trouble or str(error.strerror)
    if not reply:
        why = f" ({trouble})" if trouble else ""
        raise Refusal(
            TRY_AGAIN_LATER, f"the slash32 agent closed the connection without an answer{why}"
        )
    says_something = len(reply) > 1 or reply[0] != 0 or command == "ADD"
    is_one = reply[0] in (0, 1) and len(reply) <= REPLY_MAX_BYTES
    if not is_one or (says_something and not is_object(bytes(reply[1:]))):
        raise Refusal(IO_FAILURE, "the slash32 agent sent an answer that is none")
    return reply[0], bytes(reply[1:])


def is_object(answer: bytes) -> bool:
    """Whether an answer is whole: an agent that was killed leaves one that is cut in two."""
    try:
        return isinstance(json.loads(answer), dict)
    except (ValueError, RecursionError):
        return False


if __name__ == "__main__":
    sys.exit(main())
