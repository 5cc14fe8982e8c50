"""Another network namespace, from inside this process: sockets and sysctls that live in it.

setns is a property of the calling thread, so everything here enters and leaves in one block of
code that never awaits. A thread that could not come home would do the host's work inside a pod;
the process ends rather than run like that.

/proc/sys/net shows each task its own namespace's values. A descriptor of /proc/sys/net itself does
not change that (lookups go through the calling task again), but a descriptor of a directory below,
such as /proc/sys/net/ipv4/conf, stays bound to the namespace it was opened in. Checked on 6.18,
tests/netns/test_wiring.py holds it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from types import TracebackType

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703
"""ioctl of linux/nsfs.h: the CLONE_NEW* flag of a namespace's descriptor."""

PROC_SYS_NET = "/proc/sys/net"
_BOUND_DIRECTORIES = ("ipv4/conf", "ipv4/neigh", "ipv6/conf")

_libc = ctypes.CDLL(None, use_errno=True)


def own_netns() -> int:
    """A descriptor of the calling thread's network namespace; the caller closes it."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def is_network_namespace(fd: int) -> bool:
    """Whether ``fd`` is an open network namespace, not some other file or kind of namespace."""
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except (OSError, ValueError):
        # ValueError: Python refuses a negative descriptor before the kernel sees it.
        return False


def identity(fd: int) -> tuple[int, int]:
    """What tells a namespace from every other that lives at the same time."""
    status = os.fstat(fd)
    return (status.st_dev, status.st_ino)


def is_same_namespace(first_fd: int, second_fd: int) -> bool:
    """Whether two namespace descriptors are the same namespace."""
    return identity(first_fd) == identity(second_fd)


class inside:  # noqa: N801 - reads as what it does
    """Runs the block, without awaiting, with the calling thread in a namespace.

    Args:
        netns_fd: the namespace; None stays where the thread is.
        back_fd: where the thread is now, if the caller knows; else it is found out.

    Raises:
        OSError: ``netns_fd`` is no network namespace, or CAP_SYS_ADMIN is missing.
    """

    __slots__ = ("_back_fd", "_netns_fd", "_own_fd")

    def __init__(self, netns_fd: int | None, *, back_fd: int | None = None) -> None:
        self._netns_fd = netns_fd
        self._back_fd = back_fd
        self._own_fd = -1

    def __enter__(self) -> None:
        if self._netns_fd is None:
            return
        if self._back_fd is None:
            self._back_fd = self._own_fd = own_netns()
        try:
            _setns(self._netns_fd)
        except BaseException:
            self._close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._netns_fd is None or self._back_fd is None:
            return
        try:
            _setns(self._back_fd)
        except OSError:
            # A caller that caught this would go on inside the pod's namespace.
            os.abort()
        self._close()

    def _close(self) -> None:
        if self._own_fd >= 0:
            os.close(self._own_fd)


def _setns(fd: int) -> None:
    # os.setns is Python 3.12's.
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Sysctls:
    """The sysctls below net.ipv4.conf, net.ipv4.neigh and net.ipv6.conf of one namespace.

    Paths are relative to /proc/sys/net: ``ipv4/conf/eth0/rp_filter``. Usable from any thread, in
    whatever namespace that thread is.

    Args:
        netns_fd: the namespace; None is the calling thread's.
        root: where /proc/sys/net is; in a container that may not write there, a mount of the
            host's.
    """

    def __init__(self, netns_fd: int | None = None, *, root: str = PROC_SYS_NET) -> None:
        self._directories: dict[str, int] = {}
        with inside(netns_fd):
            for name in _BOUND_DIRECTORIES:
                try:
                    self._directories[name] = os.open(
                        f"{root}/{name}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
                    )
                except FileNotFoundError:
                    continue

    @property
    def has_ipv6(self) -> bool:
        """Whether this kernel speaks IPv6 at all."""
        return "ipv6/conf" in self._directories

    def read(self, path: str) -> str | None:
        """The value as text, or None when there is no such sysctl."""
        try:
            fd = self._open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return os.read(fd, 256).decode("ascii", "replace").strip()
        finally:
            os.close(fd)

    def write(self, path: str, value: str) -> None:
        """Sets one value.

        Raises:
            OSError: there is no such sysctl, or the kernel refused the value; names the path.
        """
        try:
            fd = self._open(path, os.O_WRONLY)
            try:
                os.write(fd, value.encode("ascii"))
            finally:
                os.close(fd)
        except OSError as error:
            sentence = f"sysctl {dotted(path)}={value}: {error.strerror}"
            # OSError(2, ...) is a FileNotFoundError.
            raise OSError(error.errno, sentence) from error

    def close(self) -> None:
        """Closes the descriptors."""
        while self._directories:
            os.close(self._directories.popitem()[1])

    def __enter__(self) -> Sysctls:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, path: str, flags: int) -> int:
        family, directory, rest = path.split("/", 2)
        bound = self._directories.get(f"{family}/{directory}")
        if bound is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return os.open(rest, flags | os.O_CLOEXEC, dir_fd=bound)


def dotted(path: str) -> str:
    """``ipv4/conf/eth0/rp_filter`` as people write it: ``net.ipv4.conf.eth0.rp_filter``."""
    return "net." + path.replace("/", ".")
