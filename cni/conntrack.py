"""Connection entries of an address, forgotten before somebody else gets it.

A UDP entry outlives its pod for minutes and names its address: packets of the old pod's peers, and
translations made for it, would reach whoever has the address next. Nothing of ours switches
conntrack on; where nobody else did, asking costs one message.

The kernel takes a filter with a deletion only in newer versions (6.18 does; before, it answers
EINVAL). And for IPv6 its filter is the wrong way round: measured on 6.18, a deletion of the
entries of one address takes all the others and leaves those. So IPv4 is filtered by the kernel
where it can, and everything else is dumped, looked at here, and deleted one by one.
"""

from __future__ import annotations

import errno
import socket
import threading
from dataclasses import dataclass
from typing import Protocol

from cni.attachment import Address
from cni.netlink import (
    MalformedMessage,
    NetlinkError,
    Request,
    attribute,
    attribute_u32,
    attributes,
    nested,
)
from cni.netlink_socket import NetlinkSocket
from cni.nfnetlink import (
    NETLINK_NETFILTER,
    NFGENMSG_BYTES,
    NFNL_SUBSYS_CTNETLINK,
    NLA_F_NESTED,
    big_u32,
    message_type,
    nfgenmsg,
)

_GET = message_type(NFNL_SUBSYS_CTNETLINK, 1)
_DELETE = message_type(NFNL_SUBSYS_CTNETLINK, 2)
_GET_STATS = message_type(NFNL_SUBSYS_CTNETLINK, 5)

_CTA_STATS_GLOBAL_ENTRIES = 1
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_ID, _CTA_ZONE, _CTA_FILTER = 1, 2, 12, 18, 25
_CTA_TUPLE_IP = 1
_CTA_FILTER_ORIG_FLAGS, _CTA_FILTER_REPLY_FLAGS = 1, 2
_CTA_IP = {4: (1, 2), 6: (3, 4)}
"""Version to the attributes of source and destination."""

_ABSENT = frozenset({errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT})
"""What socket() says of a kernel without nfnetlink."""


class ConntrackError(Exception):
    """The entries of an address could not be removed; the sentence names it."""


class Conntrack(Protocol):
    """Forgets connections. Blocking: 1 to 10 ms where there are entries, with 100,000 0.3 s."""

    def flush(self, address: Address) -> int:
        """Returns once no entry names ``address``; about how many did.

        Raises:
            ConntrackError: they could not be removed. The address must not be used again yet.
        """

    def is_empty(self) -> bool:
        """Whether nothing is tracked at all; never waits, and False where that is not sure."""

    def close(self) -> None:
        """Frees what it holds."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an entry can name an address: which tuple of it, and source (0) or destination (1)."""

    tuple_kind: int
    end: int


# Without translation the two sources alone would do. The other two find entries where somebody's
# rules translate to or from the address.
_PLACES = tuple(_Place(kind, end) for kind in (_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY) for end in (0, 1))


class KernelConntrack:
    """The connection table of one network namespace. Thread-safe.

    Args:
        netns_fd: the namespace; None is the calling thread's. Not kept.
        filters_deletion: False takes the older kernels' way for IPv4 too, from the start.

    Raises:
        OSError: no netlink socket can be had, for another reason than a kernel without any.
    """

    def __init__(self, *, netns_fd: int | None = None, filters_deletion: bool = True) -> None:
        self._filters_deletion = filters_deletion
        self._lock = threading.Lock()
        self._socket: NetlinkSocket | None = None
        try:
            self._socket = NetlinkSocket(netns_fd=netns_fd, protocol=NETLINK_NETFILTER)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise

    def close(self) -> None:
        """Closes the socket. Closing twice is harmless."""
        if self._socket is not None:
            self._socket.close()

    def is_empty(self) -> bool:
        """Whether nothing is tracked at all: one message, so that no thread is needed for it."""
        if self._socket is None:
            return True
        if not self._lock.acquire(blocking=False):
            return False
        try:
            return not _entries(self._socket)
        except (OSError, MalformedMessage):
            return False
        finally:
            self._lock.release()

    def flush(self, address: Address) -> int:
        """Removes every entry that names ``address``, in whichever direction and at either end.

        Returns:
            How many; where the kernel filters about so many, the table's size before less its
            size after, with what others added or lost meanwhile in it; never below 0.

        Raises:
            ConntrackError: the kernel refused.
        """
        if self._socket is None:
            return 0
        try:
            with self._lock:
                before = _entries(self._socket)
                if not before:
                    return 0
                if self._filters_deletion and address.version == 4:
                    if self._delete_filtered(self._socket, address):
                        return max(0, before - _entries(self._socket))
                    self._filters_deletion = False
                return _delete_one_by_one(self._socket, address)
        except (OSError, MalformedMessage) as error:
            raise ConntrackError(f"connection entries of {address}: {error}") from error

    def _delete_filtered(self, netlink: NetlinkSocket, address: Address) -> bool:
        """Whether this kernel filters deletions; then they are done."""
        requests = [Request(_DELETE, 0, _matching(address, place)) for place in _PLACES]
        refusals = [each for each in netlink.execute(requests) if each is not None]
        if any(refusal.errno == errno.EINVAL for refusal in refusals):
            return False
        if refusals:
            raise refusals[0]
        return True


def _entries(netlink: NetlinkSocket) -> int:
    """How many entries the namespace has; 0 on a kernel that tracks no connections."""
    try:
        body = netlink.get(_GET_STATS, nfgenmsg(socket.AF_UNSPEC))
    except NetlinkError as error:
        if error.errno == errno.EINVAL:  # nfnetlink's answer for a subsystem that is not there
            return 0
        raise
    return big_u32(attributes(body, NFGENMSG_BYTES).get(_CTA_STATS_GLOBAL_ENTRIES, b""))


def _delete_one_by_one(netlink: NetlinkSocket, address: Address) -> int:
    """Looks at every entry of the family: 0.25 s of a thread for 100,000 of them."""
    packed = address.packed
    everything = nfgenmsg(_family(address))
    bodies = netlink.dump(_GET, everything, keep=lambda body: packed in body)
    entries = [_entry(body) for body in bodies if _names(body, address)]
    deleted = 0
    for refusal in netlink.execute([Request(_DELETE, 0, each) for each in entries]):
        if refusal is None:
            deleted += 1
        elif refusal.errno != errno.ENOENT:  # it ended by itself
            raise refusal
    return deleted


def _matching(address: Address, place: _Place) -> bytes:
    """A message about the entries that name ``address`` at ``place``: an example and its filter."""
    ip = attribute(_CTA_IP[address.version][place.end], address.packed)
    example = nested(place.tuple_kind | NLA_F_NESTED, nested(_CTA_TUPLE_IP | NLA_F_NESTED, ip))
    flag = 1 << place.end
    is_orig = place.tuple_kind == _CTA_TUPLE_ORIG
    wanted = nested(
        _CTA_FILTER | NLA_F_NESTED,
        attribute_u32(_CTA_FILTER_ORIG_FLAGS, flag if is_orig else 0),
        attribute_u32(_CTA_FILTER_REPLY_FLAGS, 0 if is_orig else flag),
    )
    return nfgenmsg(_family(address)) + example + wanted


def _names(body: bytes, address: Address) -> bool:
    """Whether an entry names ``address`` at any place; its bytes alone could be a port's."""
    parts = attributes(body, NFGENMSG_BYTES)
    return any(
        attributes(attributes(parts.get(place.tuple_kind, b"")).get(_CTA_TUPLE_IP, b"")).get(
            _CTA_IP[address.version][place.end]
        )
        == address.packed
        for place in _PLACES
    )


def _entry(body: bytes) -> bytes:
    """A message about this entry alone.

    The identifier keeps a newer connection with the same ends alive.
    """
    parts = attributes(body, NFGENMSG_BYTES)
    ends = attribute(_CTA_TUPLE_ORIG | NLA_F_NESTED, parts[_CTA_TUPLE_ORIG])
    rest = (attribute(kind, parts[kind]) for kind in (_CTA_ID, _CTA_ZONE) if kind in parts)
    return body[:NFGENMSG_BYTES] + ends + b"".join(rest)


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
