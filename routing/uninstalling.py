"""Taking slash32 off a machine: everything of ours in the kernel and on disk, and nothing else.

An agent leaves all in place when it stops, for the next one. This is for when there is no next one:
routes and nexthop groups that carry our protocol, the pods' edge, sysctls as they were, our files.
Whatever lacks our mark stays. Nothing is done while an agent runs (it would put all back) or pods
are on their links (they would lose their network).
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cni.edge_nft import NftEdge
from cni.netlink_socket import NetlinkSocket
from cni.netns import Sysctls, dotted
from cni.observed import ObservedLink
from cni.wiring import KernelWiring
from routing import host_before
from routing.delta import Delta
from routing.fib import KernelFib
from routing.next_hop_objects import NextHopObjects
from routing.routes import Route, RouteKey, next_hops_text

RUN_FILES = (
    *("agent.sock", "cni.sock", "bgp.sock", "bgp.sock.new", "agent.lock"),
    *("exabgp.conf", "exabgp.conf.new", "passwords", "passwords.tmp", "deleted"),
)
STATE_FILES = (
    *("cooldown", "cooldown.tmp", "snapshot", "snapshot.tmp", "journal", "journal.1"),
    *(host_before.FILE, f"{host_before.FILE}.new"),
)
STORE_FILES = ("store.db", "store.db-wal", "store.db-shm")


class StillInUse(Exception):
    """An agent or a speaker runs, or pods are here; says which."""


class Leftovers:
    """What of ours is on this machine.

    Args:
        run_dir, state_dir: the agent's.
        with_store: the embedded store too, which other nodes may use.
        with_sysctls: forwarding as it was before the first agent.

    Raises:
        OSError: the kernel cannot be read.
    """

    def __init__(
        self, *, run_dir: Path, state_dir: Path, with_store: bool, with_sysctls: bool
    ) -> None:
        self._directories = (
            (run_dir, RUN_FILES),
            (state_dir, STATE_FILES + (STORE_FILES if with_store else ())),
        )
        self._run_dir = run_dir
        self._state_dir = state_dir
        self._with_sysctls = with_sysctls
        with ExitStack() as stack:
            self._wiring = KernelWiring()
            stack.callback(self._wiring.close)
            self._edge = NftEdge()
            stack.callback(self._edge.close)
            self._socket = stack.enter_context(NetlinkSocket())
            self._sysctls = stack.enter_context(Sysctls())
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Closes the sockets."""
        self._stack.close()

    @contextmanager
    def held(self) -> Iterator[None]:
        """No agent starts meanwhile.

        Raises:
            StillInUse: one runs, or ExaBGP does.
        """
        pid = _exabgp_on(self._run_dir / "exabgp.conf")
        if pid is not None:
            raise StillInUse(f"ExaBGP runs (process {pid}): stop `slash32 speaker` first")
        try:
            lock = os.open(self._run_dir / "agent.lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise StillInUse(f"an agent runs with {self._run_dir}: stop it first") from None
        finally:
            os.close(lock)

    def links(self) -> list[ObservedLink]:
        """The pods that are here."""
        return self._wiring.read()

    def remove_links(self) -> list[str]:
        """The pods' links; whose network ends with them."""
        return [f"link {each.ifname}" for each in self.links() if self._wiring.remove(each.ifname)]

    async def routes(self, *, remove: bool) -> tuple[list[str], list[str]]:
        """Our routes and nexthop groups; with ``remove`` they go. Then what the kernel kept."""
        fib = KernelFib()
        try:
            found = dict(await fib.read())
            failures = await fib.apply(Delta(delete=found)) if remove and found else []
        finally:
            await fib.close()
        groups = NextHopObjects(self._socket)
        words = [_route_words(key, route) for key, route in sorted(found.items(), key=_order)]
        if groups.groups():
            words.append(f"nexthop groups: {len(groups.groups())}")
        if remove:
            # Members that no group has go as well.
            groups.remove_unused(())
        return words, [f"{each.key}: {each.error}" for each in failures]

    def edge(self, *, remove: bool) -> list[str]:
        """Our nftables tables. Without nft there are none: the agent makes them with it.

        Raises:
            EdgeError: they could not be taken away.
        """
        if shutil.which("nft") is None:
            return []
        is_there = self._edge.remove() if remove else self._edge.is_there()
        return ["nftables: the pods' edge"] if is_there else []

    def sysctls(self, *, remove: bool) -> list[str]:
        """Forwarding, where it was off before the first agent."""
        if not self._with_sysctls:
            return []
        found = host_before.differences(self._state_dir, self._sysctls)
        words = [f"sysctl {dotted(p)}: {self._sysctls.read(p)} -> {v}" for p, v in found.items()]
        if remove:
            for path, value in found.items():
                self._sysctls.write(path, value)
        return words

    def files(self, *, remove: bool) -> list[str]:
        """Ours in the agent's two directories, then the directories when they are empty."""
        words = []
        for directory, names in self._directories:
            for path in (directory / name for name in names):
                if not path.exists() and not path.is_symlink():
                    continue
                words.append(f"file {path}")
                if remove and path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif remove:
                    path.unlink()
            if remove and directory.is_dir() and not any(directory.iterdir()):
                try:
                    directory.rmdir()
                    words.append(f"directory {directory}")
                except OSError:
                    # A mount, in a container: empty is all that it can be.
                    continue
        return words

    def strangers(self) -> list[Path]:
        """What else is in the agent's directories, and stays."""
        return [
            path
            for directory, names in self._directories
            if directory.is_dir()
            for path in sorted(directory.iterdir())
            if path.name not in names
        ]


def _order(item: tuple[RouteKey, Route]) -> tuple[int, int, int]:
    prefix = item[0].prefix
    return prefix.prefixlen, prefix.version, int(prefix.network_address)


def _route_words(key: RouteKey, route: Route) -> str:
    default = ", THE DEFAULT ROUTE: be sure of another way in" if not key.prefix.prefixlen else ""
    return f"route {key.prefix} {next_hops_text(route)}{default}"


def _exabgp_on(conf: Path) -> int | None:
    """The process that runs ExaBGP on this file in this network, where /proc shows it."""
    wanted = os.fsencode(conf.absolute())
    here = os.stat("/proc/self/ns/net").st_ino
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                is_it = wanted in words and b"server" in words
                # The same path in another machine's (a lab's, a container's) is another file.
                if is_it and (entry / "ns/net").stat().st_ino == here:
                    return int(entry.name)
            except OSError:
                continue
    return None
