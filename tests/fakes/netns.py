"""Network namespaces for tests: uniquely named, joined by veth, removed whatever happens.

Nothing here touches the namespace the tests run in: a veth pair is made from inside one of its two
namespaces, with its peer born in the other.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from cni.netns import inside

T = TypeVar("T")

POLL_S = 0.01
COMMAND_DEADLINE_S = 20.0

_numbers = itertools.count()


class CommandFailed(Exception):
    """A program ended badly; the sentence holds its command line and its last words."""


def run(*argv: str, check: bool = True, stdin: str = "") -> str:
    """Runs a program; what it printed."""
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S, input=stdin
    )
    if check and done.returncode != 0:
        raise CommandFailed(f"{' '.join(argv)}: {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


class Namespace:
    """One network namespace with its loopback up; ``fd`` stays open until ``close``."""

    def __init__(self, label: str) -> None:
        self.name = f"s32t-{os.getpid()}-{next(_numbers)}-{label}"
        run("ip", "netns", "add", self.name)
        self.fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        self.ip("link set lo up")

    def close(self) -> None:
        """Removes the namespace and, with it, every link in it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            run("ip", "netns", "del", self.name)

    def ip(self, command: str, *, check: bool = True) -> str:
        """``ip COMMAND`` inside; arguments are split at spaces."""
        return run("ip", "-n", self.name, *command.split(), check=check)

    def ip_batch(self, commands: list[str]) -> None:
        """Many ``ip`` commands by one process."""
        run("ip", "-n", self.name, "-batch", "-", stdin="\n".join(commands))

    def ip_json(self, command: str) -> list[dict[str, Any]]:
        """``ip -json COMMAND`` inside, decoded."""
        decoded: list[dict[str, Any]] = json.loads(
            run("ip", "-n", self.name, "-j", *command.split()) or "[]"
        )
        return decoded

    def run(self, *argv: str, check: bool = True) -> str:
        """A program inside."""
        return run("nsenter", f"--net=/run/netns/{self.name}", "--", *argv, check=check)

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """A program inside that goes on; the caller ends and waits for it."""
        return subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.name}", "--", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sysctl(self, path: str, value: str | None = None) -> str:
        """Reads, or with ``value`` writes, /proc/sys/net/``path`` inside."""
        with inside(self.fd), open(f"/proc/sys/net/{path}", "r+" if value else "r") as file:
            if value:
                file.write(value)
                return value
            return file.read().strip()

    def routes(self) -> str:
        """Every route of the main table, both families, one a line, as a person sees it."""
        return self.ip("-o -4 route show table main") + self.ip("-o -6 route show table main")


class Fabric:
    """Namespaces and the links between them. Use as a context manager."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Fabric:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def namespace(self, label: str) -> Namespace:
        """A new namespace."""
        made = Namespace(label)
        self._stack.callback(made.close)
        return made

    def join(self, left: tuple[Namespace, str], right: tuple[Namespace, str]) -> None:
        """A veth between two namespaces, both ends up."""
        (one, one_ifname), (other, other_ifname) = left, right
        one.ip(
            f"link add {one_ifname} type veth peer name {other_ifname} netns {other.name}",
        )
        one.ip(f"link set {one_ifname} up")
        other.ip(f"link set {other_ifname} up")


@contextmanager
def fabric() -> Iterator[Fabric]:
    """Namespaces for the length of a block."""
    with Fabric() as made:
        yield made


def in_netns(namespace: Namespace, work: Callable[[], T]) -> T:
    """Runs ``work`` in a thread of its own inside the namespace; its result or its exception."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            with inside(namespace.fd):
                outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name=f"in-{namespace.name}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def wait_until(condition: Callable[[], T], *, deadline_s: float = 5.0, what: str = "") -> T:
    """Polls until ``condition`` is true and returns what it returned.

    Raises:
        TimeoutError: it was not within ``deadline_s``; says what was waited for.
    """
    ends_at_s = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > ends_at_s:
            raise TimeoutError(f"not within {deadline_s} s: {what or condition}; last: {value!r}")
        time.sleep(POLL_S)


async def wait_until_async(
    condition: Callable[[], Awaitable[T]], *, deadline_s: float = 5.0, what: str = ""
) -> T:
    """``wait_until`` for a coroutine; the loop goes on in between."""
    ends_at_s = time.monotonic() + deadline_s
    while True:
        value = await condition()
        if value:
            return value
        if time.monotonic() > ends_at_s:
            raise TimeoutError(f"not within {deadline_s} s: {what or condition}; last: {value!r}")
        await asyncio.sleep(POLL_S)
