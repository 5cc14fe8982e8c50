"""How a link goes: by its index where that is known, else by its name and only when it is ours."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cni import hostend
from cni import netlink as nl
from cni.link_ends import GONE, is_ours
from cni.netlink_socket import NetlinkSocket

log = logging.getLogger(__name__)


class LinkRemoval:
    """Removes links of one namespace. Several removals sleep in the kernel at once, each on a
    socket of its own that is kept for the next.

    Args:
        netns_fd: that namespace; the caller keeps it open.
    """

    def __init__(self, netns_fd: int) -> None:
        self._netns_fd = netns_fd
        self._sockets: list[NetlinkSocket] = []

    def close(self) -> None:
        """Closes the sockets that nobody uses."""
        while self._sockets:
            self._sockets.pop().close()

    def remove(self, host_ifname: str, ifindex: int, is_announced: Callable[[], bool]) -> bool:
        """Whether there was such a link of ours; it is gone.

        Args:
            ifindex: of the link, when we have made it; 0 when that is not known.
            is_announced: whether the end of the link was heard already.

        Raises:
            OSError: the kernel refused.
        """
        try:
            socket = self._sockets.pop()
        except IndexError:
            socket = NetlinkSocket(netns_fd=self._netns_fd, receive_buffer_bytes=1 << 16)
        try:
            # An index names one link for as long as that lives; one that is gone may have
            # been made anew by somebody.
            is_removed = bool(ifindex) and _delete(socket, ifindex, is_announced)
            is_removed = is_removed or _remove_by_name(socket, host_ifname, is_announced)
        except BaseException:
            socket.close()
            raise
        self._sockets.append(socket)
        return is_removed


def _remove_by_name(
    socket: NetlinkSocket, host_ifname: str, is_announced: Callable[[], bool]
) -> bool:
    body = socket.get(nl.RTM_GETLINK, hostend.get_link(host_ifname), absent=GONE)
    if not body:
        return False
    found = hostend.parse_owned(body)
    if not is_ours(found):
        log.warning("foreign_link_left ifname=%s alias=%r", host_ifname, found.alias)
        return False
    return _delete(socket, found.ifindex, is_announced)


def _delete(socket: NetlinkSocket, ifindex: int, is_announced: Callable[[], bool]) -> bool:
    """Whether there was such a link."""
    refusal = socket.post(hostend.delete_link(ifindex), is_announced)
    if refusal is not None and refusal.errno not in GONE:
        raise refusal
    return refusal is None
