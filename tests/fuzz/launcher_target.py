"""The C launcher: its own source, with a kernel made of bytes under it and the sanitizers around.

It is run as root by a runtime, with an environment, a configuration and an agent's answers that
others have written. Here ``launcher.c`` is compiled for this machine by gcc with AddressSanitizer
and UndefinedBehaviorSanitizer, its variables in sections that are put back after every case, and
its system calls answered by ``launcher_kernel.c``: some octets at a time, with errors, after the
deadline, or in the middle of any block. A process of its own runs case after case.
"""

from __future__ import annotations

import atexit
import json
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cni import plugin
from cni.frame import MAGIC, REQUEST_MAX_BYTES
from cni.result import SUPPORTED_VERSIONS
from tests.fuzz.cni_targets import COMMANDS, CONF, ENVIRONMENT
from tests.fuzz.draw import HOSTILE, Draw
from tests.fuzz.target import Broken, Target

HERE = Path(__file__).parent
SOURCE = HERE.parent.parent / "cni" / "launcher" / "launcher.c"
BUILD_DEADLINE_S = 120.0
_WATCHED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_COMMON = ("-std=gnu11", "-O1", "-g", "-Wall", "-fno-pie", "-fno-strict-aliasing", *_WATCHED)
_ASKED = struct.Struct("=8I")
_TOLD = struct.Struct("=i5I128s")
BLOCKS_MAX = 1024
(RANG, OUTPUT_FAILED, CONNECTED, AWAY, ANSWERED, RENAMED, DURABLE, LEFT_TEMPORARY, OUTPUT_CLOSED,
 SENDING_FAILED) = (1 << bit for bit in range(10))  # fmt: skip
CODES = {4, 5, 6, 7, 11, 50}


@dataclass(frozen=True, slots=True)
class Case:
    """One call of the launcher.

    Attributes:
        environment: entries, as a process gets them.
        stdin: and how often it is repeated.
        answer: what the agent says, and how often.
        script: a byte for each system call, see launcher_kernel.c; ``b""``: all goes well.
        arguments: ``argc``.
        alarm_at: after how many blocks of code the time is over; 0 never.
    """

    environment: tuple[bytes, ...]
    stdin: bytes
    answer: bytes = b"\0"
    script: bytes = b""
    stdin_times: int = 1
    answer_times: int = 1
    arguments: int = 1
    alarm_at: int = 0

    @property
    def frame(self) -> bytes:
        """What must travel, or be recorded."""
        ours = b"".join(each + b"\0" for each in self.environment if each.startswith(b"CNI_"))
        return MAGIC + ours + b"\0" + self.stdin * self.stdin_times

    @property
    def command(self) -> bytes:
        """``CNI_COMMAND``, the first of that name."""
        found = (each for each in self.environment if each.startswith(b"CNI_COMMAND="))
        return next(found, b"=").partition(b"=")[2]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it: how it ended, what it wrote, and what it asked of its kernel."""

    status: int
    happened: int
    stdout: bytes
    sent: bytes
    path: bytes
    record: bytes
    blocks: bytes


def missing() -> str | None:
    """What this machine lacks for this target, as a sentence; None when it has all of it."""
    if shutil.which("gcc") is None or shutil.which("objcopy") is None:
        return "there is no gcc with objcopy (Debian: gcc, libc6-dev)"
    try:
        _Driver.the()
    except subprocess.CalledProcessError as error:
        return f"gcc cannot compile it with its sanitizers: {error.stderr.strip()[:400]}"
    return None


class Driver:
    """The process with the launcher in it. ``source`` may be another one, with a mistake."""

    def __init__(self, source: Path = SOURCE) -> None:
        """
        Raises:
            CalledProcessError: it cannot be compiled.
        """
        self._directory = Path(tempfile.mkdtemp(prefix="slash32-fuzz-"))
        self._program = self._directory / "driver"
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        unit = str(self._directory / "unit.o")
        sections = [f"--rename-section=.{a}=launcher_{b}" for a, b in _SECTIONS]
        for command in (
            ["gcc", "-c", *_COMMON, "-fsanitize-coverage=trace-pc", f'-DLAUNCHER="{source}"',
             "-o", unit, str(HERE / "launcher_hosted.c")],
            ["objcopy", *sections, unit],
            ["gcc", *_COMMON, "-no-pie", "-o", str(self._program),
             str(HERE / "launcher_kernel.c"), unit],
        ):  # fmt: skip
            subprocess.run(
                command, capture_output=True, text=True, timeout=BUILD_DEADLINE_S, check=True
            )

    def run(self, case: Case) -> Outcome:
        """One case.

        Raises:
            Broken: a sanitizer or the kernel has something to say.
        """
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        words = b"".join(each + b"\0" for each in case.environment)
        sizes = (len(each) for each in (words, case.stdin, case.answer, case.script))
        head = _ASKED.pack(
            *sizes, case.stdin_times, case.answer_times, case.arguments, case.alarm_at
        )
        with suppress(BrokenPipeError):
            process.stdin.write(head + words + case.stdin + case.answer + case.script)
            process.stdin.flush()
        head = process.stdout.read(_TOLD.size)
        if len(head) < _TOLD.size:
            raise Broken(self._last_words())
        status, *lengths, happened, blocks = _TOLD.unpack(head)
        stdout, sent, path, record = (process.stdout.read(length) for length in lengths)
        return Outcome(status, happened, stdout, sent, path, record, blocks)

    def close(self) -> None:
        """Ends the process; no file stays."""
        self._end()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._errors = (self._directory / "errors").open("w+b")
            self._process = subprocess.Popen(
                [str(self._program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0"},
            )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            with suppress(BrokenPipeError):
                self._process.communicate()
        if self._errors is not None:
            self._errors.close()
        self._process = self._errors = None

    def _last_words(self) -> str:
        assert self._process is not None
        assert self._errors is not None
        self._process.wait(10)
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").splitlines()
        self._end()
        marks = ("launcher: ", "ERROR: AddressSanitizer", "runtime error")
        told = [line for line in lines if any(mark in line for mark in marks)]
        where = [line.strip() for line in lines if "launcher.c:" in line][:1]
        return "; ".join([*told[:2], *where]) or f"it died: {lines[:3]}"


_SECTIONS = (("data", "data"), ("bss", "zero"))


class _Driver:
    """One for a process, made at the first case."""

    one: Driver | None = None

    @classmethod
    def the(cls) -> Driver:
        """The one."""
        if cls.one is None:
            cls.one = Driver()
            atexit.register(forget)
        return cls.one


def forget() -> None:
    """Ends the process with the launcher."""
    if _Driver.one is not None:
        _Driver.one.close()
    _Driver.one = None


# -- what must hold ------------------------------------------------------------------------------


def check(case: Case, outcome: Outcome) -> bool:
    """Whether the call was answered with yes.

    Raises:
        Broken: exit status, stdout, what travelled and what is on disk do not fit together.
    """
    happened, stdout = outcome.happened, outcome.stdout
    if outcome.status not in (0, 1):
        raise Broken(f"exit status {outcome.status}")
    _check_path(case, outcome)
    if not case.frame.startswith(outcome.sent) or not case.frame.startswith(outcome.record):
        raise Broken("what travels is not the request")
    if outcome.record and case.command != b"DEL":
        raise Broken(f"a {case.command!r} is recorded")
    if happened & LEFT_TEMPORARY and not happened & RANG and not outcome.status:
        raise Broken("a temporary file stays")
    if happened & OUTPUT_CLOSED:
        if outcome.status != 1 or stdout:
            raise Broken("goes on although nobody can read the answer")
        return False
    if happened & OUTPUT_FAILED:
        if outcome.status != 1:
            raise Broken("nobody was told, and all is well")
        return False
    answer = case.answer * case.answer_times
    is_passed_on = (bytes([outcome.status]), stdout) == (answer[:1], answer[1:])
    if happened & ANSWERED and not happened & RANG and _is_answer(answer, case.command):
        if not is_passed_on:
            raise Broken(f"the agent's answer became {outcome.status} {stdout[:200]!r}")
        if outcome.sent != case.frame and not happened & SENDING_FAILED:
            raise Broken("half a request")
        return not outcome.status
    is_yes = answer[:1] == b"\0" and case.command != b"ADD" and not outcome.status
    if happened & CONNECTED and not stdout and is_yes:
        return True  # cut off behind its first octet, which says all
    if is_passed_on and happened & CONNECTED and stdout.strip()[-1:] == b"}":
        # Cut off behind its end; or brackets that fit, and no JSON: that is the agent's to say.
        return not outcome.status
    if not stdout:
        if outcome.status or not happened & DURABLE or outcome.record != case.frame:
            raise Broken(f"nothing is said, and status {outcome.status}")
        return True
    return _check_own_answer(case, outcome)


def _is_answer(answer: bytes, command: bytes) -> bool:
    if not 0 < len(answer) <= REQUEST_MAX_BYTES or answer[0] > 1:
        return False
    try:
        is_yes = answer == b"\0" and command != b"ADD"
        return is_yes or isinstance(json.loads(answer[1:]), dict)
    except (ValueError, RecursionError):
        return False


def _check_own_answer(case: Case, outcome: Outcome) -> bool:
    try:
        said = json.loads(outcome.stdout.decode("ascii"))
    except ValueError:
        raise Broken(f"not JSON: {outcome.stdout[:200]!r}") from None
    if outcome.status:
        if set(said) != {"cniVersion", "code", "msg", "details"} or not said["msg"]:
            raise Broken(f"not an error of CNI: {said}")
        if said["code"] not in CODES or said["cniVersion"] not in SUPPORTED_VERSIONS:
            raise Broken(f"an error that CNI has not: {said}")
        if said["code"] == 50 and case.command != b"STATUS":
            raise Broken(f"code 50 is STATUS's: {said}")
        return False
    if case.command != b"VERSION" or said.get("supportedVersions") != list(SUPPORTED_VERSIONS):
        raise Broken(f"an answer that nobody gave: {said}")
    return True


def _check_path(case: Case, outcome: Outcome) -> None:
    """The socket is the one that the reference (cni/plugin.py) finds in the same configuration.

    Where a key or the path is written with a backslash the launcher may find none; it then asks
    at the default place or refuses, and so it is where the reference takes null for nothing said.
    """
    stdin = case.stdin * case.stdin_times
    if not outcome.path or b"\\" in stdin or len(stdin) > 1 << 16:
        return
    try:
        _version, path = plugin.parse_conf(stdin)
    except plugin.Refusal:
        return
    if path.encode("utf-8", "surrogatepass") != outcome.path:
        raise Broken(f"dials {outcome.path!r}, not {path!r}")


# -- cases ---------------------------------------------------------------------------------------

PIECES = (
    b'"', b"\\", b"{", b"}", b":", b",", b"\0", b"\xff", b'"socket"', b'"/', b"[", b"]", b" ",
    b'"socket": "/a/b"', b'"cniVersion": "0.4.0"', b'\\"', b'{"socket": "/x"}', b'"socket": 7,',
    b'"socket": null', b'"cniVersion": "1.2.3"', b'"cniVersion": "....."', b"\n", b"\t",
)  # fmt: skip
ENTRIES = (
    b"", b"C", b"CN", b"CNI", b"CNI_", b"CNI_COMMAND", b"CNI_COMMAND=", b"CNI_COMMAND=ADD, DEL",
    b"CNI_COMMAND=DEL", b"CNI_NETNS", b"CNI_NETNS=", b"CNI_NETNS=/dev/null", b"CNI_X=y", b"X=y",
    b"PATH=/bin", b"CNI_COMMANDX=ADD", b"=", b"CNI_=", b"LD_PRELOAD=/x",
)  # fmt: skip
ANSWERS = (
    b'\0{"cniVersion": "1.1.0"}\n', b"\0", b"",
    b'\1{"cniVersion": "1.1.0", "code": 7, "msg": "m", "details": ""}', b"\2{}", b"{}", b"\xff\0",
    b"\1",
)  # fmt: skip
SOCKETS = (
    "/run/slash32/cni.sock", "/a", "/" + "x" * 106, "/b/", "/" + "x" * 107, "/" + "x" * 300,
    "/a\1b", "relative", "/\xe9", "", None, 7, "/a\"b",
)  # fmt: skip
FILLERS = (0, 1, 255, 4096, 70_000, REQUEST_MAX_BYTES)


def case_of(data: bytes) -> Case:
    """A call: mostly one that a runtime makes, with damage here and there."""
    draw = Draw(data)
    environment = _environment(draw)
    stdin = _stdin(draw)
    times = 1
    if draw.below(16) == 15:
        # Around the largest: one octet less, exactly, one more.
        room = REQUEST_MAX_BYTES - len(Case(tuple(environment), stdin).frame)
        stdin += b" " * max(0, room - 1 + draw.below(3))
    elif draw.below(32) == 31:
        times = draw.choice((2, 5000, 1 << 20)) if len(stdin) < 64 else 2
    answer, answer_times = draw.choice(ANSWERS), 1
    kind = draw.below(16)
    if kind == 15:
        answer += b"x" * (draw.choice(FILLERS) + draw.below(3) - 1)
    elif kind == 14:
        answer, answer_times = draw.raw(), draw.choice((1, 3, 1 << 20))
    elif kind == 13:
        answer += draw.choice(HOSTILE).encode("utf-8", "surrogatepass")
    alarm_at = draw.below(65536) % 4000 if draw.below(8) == 7 else 0
    arguments = draw.choice((1, 1, 0, 2, 40))
    return Case(
        tuple(environment), stdin, answer, draw.rest(), times, answer_times, arguments, alarm_at
    )


def _environment(draw: Draw) -> list[bytes]:
    named = ENVIRONMENT | {"CNI_COMMAND": draw.choice(COMMANDS)}
    entries = [f"{key}={value}".encode() for key, value in named.items()]
    for _ in range(draw.below(5)):
        place = draw.below(len(entries) + 1)
        what = draw.below(6)
        if what == 0:
            entries.insert(place, draw.choice(ENTRIES))
        elif what == 1:
            entries.insert(place, draw.raw().replace(b"\0", b""))
        elif what == 2 and entries:
            del entries[place % len(entries)]
        elif what == 3 and entries:
            each = entries[place % len(entries)]
            entries[place % len(entries)] = each[: draw.below(len(each) + 1)]
        elif what == 4:
            size = max(0, draw.choice(FILLERS) - 6 + draw.below(3))
            entries.insert(place, b"CNI_L=" + b"x" * size)
        else:
            hostile = draw.choice(HOSTILE).encode("utf-8", "surrogatepass").replace(b"\0", b"")
            entries.insert(place, b"CNI_ARGS=" + hostile)
    return entries


def _stdin(draw: Draw) -> bytes:
    kind = draw.below(8)
    if kind == 7:
        return draw.raw()
    small = {key: CONF[key] for key in ("cniVersion", "name", "type", "socket")}
    small["socket"] = draw.choice(SOCKETS)
    small["cniVersion"] = draw.choice((*SUPPORTED_VERSIONS, "1.2.3", "x", "12345678901234567.0"))
    document: Any = draw.damaged(small) if kind > 2 else small
    if kind == 6:
        document = draw.damaged(CONF)
    text = bytearray(json.dumps(document, ensure_ascii=kind != 4).encode("utf-8", "replace"))
    text = text.replace(b"\\u0001", b"\1")  # unescaped it is no JSON, but few look
    for _ in range(draw.below(4)):
        place = draw.below(min(len(text), 65535) + 1)
        text[place : place + draw.choice((0, 0, 1, 5))] = draw.choice(PIECES)
    return bytes(text)


def launcher(data: bytes) -> bool:
    """One call."""
    case = case_of(data)
    outcome = _Driver.the().run(case)
    _tell[0](outcome.blocks)
    return check(case, outcome)


_tell: list[Callable[[bytes], None]] = [lambda _blocks: None]


def guide(instrument: Callable[[Callable[..., None]], Callable[..., None]]) -> None:
    """Lets a fuzzer of Python see what the C has reached: a branch for each block there."""
    lines = ["def tell(hit):", "    seen = 0"]
    for block in range(BLOCKS_KNOWN_MAX):
        lines += [f"    if hit[{block >> 3}] & {1 << (block & 7)}:", f"        seen = {block}"]
    scope: dict[str, Any] = {}
    exec("\n".join(lines), scope)  # noqa: S102 - the text is ours
    _tell[0] = instrument(scope["tell"])


BLOCKS_KNOWN_MAX = 256
"""Of those the launcher has: some 190."""


def blocks_of(data: bytes) -> frozenset[int]:
    """Which blocks of the C one input reaches, to choose what is kept."""
    blocks = int.from_bytes(_Driver.the().run(case_of(data)).blocks, "little")
    return frozenset(bit for bit in range(BLOCKS_MAX) if blocks >> bit & 1)


def _seed(command: int = 0, socket: int = 0, answer: int = 0, script: bytes = b"") -> bytes:
    """In the order in which ``case_of`` draws."""
    return bytes([command, 0, 0, socket, 0, 0, 0, 0, answer, 0, 0, 0]) + script


def seeds() -> Iterator[bytes]:
    """Each verb with an agent that answers, is away, or slow; large ones; damaged ones."""
    scripts = (
        # Called in this order: F_GETFD, two reads of stdin, socket, connect, stat and open of the
        # namespace, sendmsg, reads of the agent. Without an agent a directory is opened instead.
        *(bytes(at) + bytes([how]) for at in range(12) for how in (150, 200, 245, 255)),
        *(bytes(4) + bytes([100]) + bytes(at) + bytes([245]) for at in range(12)),
        *(bytes(5) + bytes([how]) for how in (100, 160, 180, 195)),
        *(bytes(4) + bytes([100, how]) for how in (150, 210, 230)),
        bytes(4) + bytes([100] * 20),
        bytes(4) + bytes([180] + [0] * 9 + [180]),
        bytes(8) + bytes([200, 252]),
        b"\0" + bytes([150] * 2 + [0, 0] + [150] * 20),
    )
    for command in range(len(COMMANDS)):
        for script in scripts:
            yield _seed(command, script=script)
    for socket in range(len(SOCKETS)):
        yield _seed(0, socket, script=bytes(4) + bytes([200]))
        yield _seed(1, socket, script=bytes(4) + bytes([100]))
    for answer in range(len(ANSWERS)):
        yield _seed(answer=answer)
    for filler in range(len(FILLERS)):
        yield bytes([0, 2, 0, 4, filler, 0, 0, 4, filler, 1])
        yield bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 15, filler, 1])
    for edge in range(3):
        yield bytes([0, 0, 0, 0, 0, 0, 15, edge])
        yield bytes([0, 0, 7, 0, 0, 0, 31, edge])
    for entry in range(len(ENTRIES)):
        yield bytes([entry % len(COMMANDS), 1, 0, 0, entry])
    for piece in range(len(PIECES)):
        yield bytes([0, 0, 0, 0, 0, 2, piece + 3, 0, piece, 30, 1, piece])
    for block in range(0, 256, 5):
        yield bytes([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, block >> 5, block << 3 & 255])


TARGETS = (
    Target(
        "launcher",
        "environment, stdin and agent of the C launcher, with gcc's sanitizers",
        launcher,
        seeds,
        weight=10,
        missing=missing,
        reached=blocks_of,
        guide=guide,
    ),
)
