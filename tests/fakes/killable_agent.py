"""The real agent, except that it can end itself with SIGKILL at any step of a verb.

Run as a program inside a node's network namespace. It imports the agent once and then forks one
for each order on standard input, so that a hundred agents do not cost a hundred imports. Nothing
in the product knows of this: its methods are wrapped in the forked child.

A *step* is a call that leaves a trace outside Python's own memory, or brackets such calls. Only
those made for the verb in question count, told apart by a context variable: passes of the loop run
beside it and must not move the count. Steps of the loop's thread and of the threads that remove
links are counted apart, since the two run beside each other.

What can happen at a step (``MOMENTS``): SIGKILL before or after it; SIGSTOP before it, so that a
test can change the world there; and for what talks to the kernel: it refuses this once, it refuses
from here on until the verb has ended, it does the first of several things and refuses the rest, or
it does as told and its answer is lost.

Orders, one JSON object a line:
    {"start": {"node":, "run_dir":, "state_dir":, "store":, ...},   fields of Settings
     "log": path, "steps": path, "scope": "ADD"|"DEL"|"replay"|"", "at": [step, moment] or null}
    {"end": pid, "signal": number}
Answers, one a line: {"pid": n}, {"ready": n}, {"ended": n, "signal": number or 0}.
Every step crossed is written to ``steps`` before it is entered. ``at`` names one as it stands
there, or as ``<name> #<n>``, the n-th of that name whatever comes between.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import json
import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import cni.netlink as nl
import cni.netns
import cni.server
from cni.attach import Attacher
from cni.conntrack import KernelConntrack
from cni.ipam.allocator import Allocator
from cni.ipam.cooldown import CooldownFile
from cni.netlink_socket import NetlinkSocket
from cni.server import CniServer
from cni.wiring import KernelWiring
from routing.agent import run_agent
from routing.datastore.local import LocalStore
from routing.reconcile import Reconciler
from routing.settings import Settings
from routing.telemetry import configure_logging

MOMENTS = ("before", "after", "stop", "refuse", "refuse on", "halve", "lose")
HOST_IFNAME = re.compile(r"s32[0-9a-f]{12}")
PATHS = ("run_dir", "state_dir", "store")
KINDS = {
    value: name.removeprefix("RTM_")
    for name, value in sorted(vars(nl).items())
    if name.startswith("RTM_") and isinstance(value, int)
}


class Steps:
    """Counts the steps of one verb, and ends the process at one of them."""

    def __init__(self, scope: str, at: tuple[str, str] | None, path: str) -> None:
        self.scope = scope
        self._at = at
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._counts: dict[str, int] = {}
        self._is_inside: ContextVar[bool] = ContextVar("is_inside", default=False)
        self._active = 0
        self._refuses = False

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The verb runs here, and in everything this task awaits."""
        token = self._is_inside.set(True)
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            if threading.current_thread() is threading.main_thread():
                # The verb has answered, though a remover may still be asleep in the kernel.
                self._refuses = False
            self._is_inside.reset(token)

    @contextlib.contextmanager
    def inside_if_active(self) -> Iterator[None]:
        """The same for a thread that works for whatever verb is under way."""
        if not self._active:
            yield
            return
        with self.inside():
            yield

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[str]:
        """One step; outside the verb it does not count. Gives "refuse", "lose" or ""."""
        if not self._is_inside.get():
            yield ""
            return
        is_loop = threading.current_thread() is threading.main_thread()
        lane = "loop" if is_loop else "remover"
        number = self._counts[lane] = self._counts.get(lane, 0) + 1
        name = HOST_IFNAME.sub("HOST", name)
        key = f"{lane} {number:02} {name}"
        of_that_name = self._counts[name] = self._counts.get(name, 0) + 1
        os.write(self._fd, f"{key}\n".encode())
        is_here = self._at is not None and self._at[0] in (key, f"{name} #{of_that_name}")
        moment = self._at[1] if self._at is not None and is_here else ""
        if moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if moment == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        # What comes after the answer is refused alone: no end of the verb would end the refusing.
        self._refuses = self._refuses or (moment == "refuse on" and self._active > 0)
        try:
            yield "refuse" if self._refuses or moment.startswith("refuse") else moment
        finally:
            if moment == "after":
                os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, owner: Any, method: str, name: str | Callable[..., str] = "") -> None:
        """Makes a method of a class, sync or async, a step. ``name`` may be made of arguments."""
        original = getattr(owner, method)

        def title(*args: Any) -> str:
            if callable(name):
                return name(*args)
            return name or f"{owner.__name__}.{method}"

        if asyncio.iscoroutinefunction(original):

            @functools.wraps(original)
            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                with self.step(title(*args)):
                    return await original(*args, **kwargs)

        else:

            @functools.wraps(original)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                with self.step(title(*args)):
                    return original(*args, **kwargs)

        setattr(owner, method, wrapped)

    def wrap_thread(self, owner: Any, method: str) -> None:
        """The same for what runs in a thread, which does not inherit the task's context."""
        self.wrap(owner, method)
        as_step = getattr(owner, method)

        @functools.wraps(as_step)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.inside_if_active():
                return as_step(*args, **kwargs)

        setattr(owner, method, wrapped)


def arm(steps: Steps) -> None:
    """Wraps everything a verb does to the outside world."""
    _mark_the_verb(steps)
    for owner, methods in (
        (KernelWiring, ("create", "configure_pod", "repair", "check")),
        (Reconciler, ("ensure", "forget")),
        (Allocator, ("assign", "release")),
        (CooldownFile, ("_append", "_replace")),
        (LocalStore, ("list_blocks", "create_block", "update_block", "delete_block")),
    ):
        for method in methods:
            steps.wrap(owner, method)
    _wrap_the_kernel(steps)
    steps.wrap(Path, "unlink", lambda path, **_kwargs: f"unlink in {path.parent.name}/")
    steps.wrap(CniServer, "_write", "write the reply")
    steps.wrap_thread(KernelWiring, "remove")
    steps.wrap_thread(KernelConntrack, "flush")


def _wrap_the_kernel(steps: Steps) -> None:
    """What is sent to it, and what it can refuse."""
    execute, post = NetlinkSocket.execute, NetlinkSocket.post
    write = cni.netns.Sysctls.write

    def executing(
        self: NetlinkSocket, requests: Sequence[nl.Request]
    ) -> list[nl.NetlinkError | None]:
        if not requests:
            return []
        with steps.step("send " + ",".join(_kind(each.kind) for each in requests)) as moment:
            if moment == "refuse":
                return [nl.NetlinkError(errno.EPERM)] * len(requests)
            if moment == "halve":
                rest = [nl.NetlinkError(errno.EPERM)] * (len(requests) - 1)
                return [*execute(self, requests[:1]), *rest]
            outcomes = execute(self, requests)
            lost = nl.NetlinkError(errno.ENOBUFS)
            return [lost] * len(requests) if moment == "lose" else outcomes

    def posting(
        self: NetlinkSocket, request: nl.Request, is_settled: Callable[[], bool]
    ) -> nl.NetlinkError | None:
        with steps.step(f"send {_kind(request.kind)}") as moment:
            if moment == "refuse":
                return nl.NetlinkError(errno.EPERM)
            outcome = post(self, request, is_settled)
            return nl.NetlinkError(errno.ENOBUFS) if moment == "lose" else outcome

    def asking(method: str) -> Callable[[NetlinkSocket, int, bytes], Any]:
        original = getattr(NetlinkSocket, method)

        def ask(self: NetlinkSocket, kind: int, body: bytes, **options: Any) -> Any:
            with steps.step(f"{method} {_kind(kind)}") as moment:
                if moment in ("refuse", "lose"):
                    raise nl.NetlinkError(errno.EPERM if moment == "refuse" else errno.ENOBUFS)
                return original(self, kind, body, **options)

        return ask

    def writing(self: cni.netns.Sysctls, path: str, value: str) -> None:
        with steps.step(f"sysctl {path}") as moment:
            if moment == "refuse":
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            write(self, path, value)

    NetlinkSocket.execute = executing  # type: ignore[method-assign]
    NetlinkSocket.post = posting  # type: ignore[method-assign]
    NetlinkSocket.get = asking("get")  # type: ignore[method-assign, assignment]
    NetlinkSocket.dump = asking("dump")  # type: ignore[method-assign, assignment]
    cni.netns.Sysctls.write = writing  # type: ignore[method-assign]


def _kind(number: int) -> str:
    return KINDS.get(number, str(number))


def _mark_the_verb(steps: Steps) -> None:
    """From the moment the verb is known until its answer is on the way, or for the whole replay."""
    if steps.scope == "replay":
        replay = vars(cni.server)["replay"]

        async def replaying(*args: Any) -> int:
            with steps.inside():
                return int(await replay(*args))

        setattr(cni.server, "replay", replaying)  # noqa: B010 - of another signature
        return
    handle, serve = Attacher.handle, CniServer._serve
    opened: ContextVar[contextlib.ExitStack] = ContextVar("opened")

    async def handling(self: Attacher, request: Any, netns_fd: int | None) -> Any:
        if request.command.value == steps.scope:
            # Until the task ends, so that writing the answer belongs to it.
            opened.get().enter_context(steps.inside())
        with steps.step("handle the request"):
            return await handle(self, request, netns_fd)

    async def serving(self: CniServer, connection: Any, refusal: Any = None) -> None:
        with contextlib.ExitStack() as stack:
            opened.set(stack)
            await serve(self, connection, refusal)

    Attacher.handle = handling  # type: ignore[method-assign]
    CniServer._serve = serving  # type: ignore[method-assign]


def run(order: dict[str, Any], tell: Callable[[dict[str, int]], None]) -> None:
    """In the forked child: becomes the agent."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    fields: dict[str, Any] = {
        key: Path(value) if key in PATHS else value for key, value in order["start"].items()
    }
    configure_logging(level="info", style="console")
    if order.get("scope"):
        at = order["at"]
        arm(Steps(order["scope"], (at[0], at[1]) if at else None, order["steps"]))
    start = CniServer.start

    async def starting(self: CniServer) -> None:
        await start(self)
        tell({"ready": os.getpid()})

    CniServer.start = starting  # type: ignore[method-assign]
    asyncio.run(run_agent(Settings(**fields), version="killable"))


def main() -> None:
    """Forks agents until standard input ends; none outlives it."""
    out = os.dup(1)
    children: dict[int, int] = {}
    """pid to pidfd."""

    def tell(answer: dict[str, int]) -> None:
        os.write(out, json.dumps(answer).encode() + b"\n")

    # An agent collects garbage when it starts: that need not walk the libraries every time.
    gc.collect()
    gc.freeze()
    poll = select.poll()
    poll.register(0, select.POLLIN)
    buffer = b""
    while True:
        for descriptor, _ in poll.poll():
            if descriptor != 0:
                pid = next(pid for pid, fd in children.items() if fd == descriptor)
                _, status = os.waitpid(pid, 0)
                poll.unregister(descriptor)
                os.close(children.pop(pid))
                number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
                tell({"ended": pid, "signal": number})
                continue
            data = os.read(0, 65536)
            if not data:
                for pid in children:
                    os.kill(pid, signal.SIGKILL)
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                order = json.loads(line)
                if "end" in order:
                    if order["end"] in children:
                        os.kill(order["end"], order["signal"])
                    continue
                pid = fork(order, tell)
                children[pid] = os.pidfd_open(pid)
                poll.register(children[pid], select.POLLIN)
                tell({"pid": pid})


def fork(order: dict[str, Any], tell: Callable[[dict[str, int]], None]) -> int:
    """Starts an agent; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.close(0)
        run(order, tell)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
