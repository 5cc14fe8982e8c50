"""The plugin ``loopback``, for hosts where nobody else has put one.

containerd's CRI executes it for every sandbox, from the directory where our plugin is, beside the
network's own plugins; without it no sandbox is made at all. ``cni install`` puts our executable
there under that name too, unless somebody's is there already, and the configuration's ``type``
tells the agent which of the two was meant. The configuration is the runtime's own and names no
socket: it works with the agent at the default place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_interface
from socket import AF_UNSPEC

from cni import hostend, podend
from cni import netlink as nl
from cni.errors import CniError, Code, shown
from cni.netlink_socket import NetlinkSocket
from cni.netns import inside, is_network_namespace, is_same_namespace, own_netns
from cni.result import Interface, IpConfig, Result
from cni.spec import Command, Request

LOOPBACK_IFINDEX = 1
"""The first link of every namespace, whatever its name is."""


def handle(request: Request, netns_fd: int | None) -> Result | None:
    """Brings a sandbox's loopback up (ADD), says whether it is (CHECK), and nothing else.

    DEL, GC and STATUS succeed: the link goes with its namespace, and an ADD needs nothing.

    Returns:
        For an ADD the previous result, or without one the link and the addresses it has.

    Raises:
        CniError: 3 the namespace could not be opened, 4 it is none or the agent's own, 102 the
            kernel refused, 105 loopback is down; VERSION is the plugin's to answer (4).
    """
    match request.command:
        case Command.ADD:
            return _raised(request, netns_fd)
        case Command.CHECK:
            with _in_sandbox(request, netns_fd) as socket:
                found = _read(socket)
            if not found.is_up:
                sentence = f"{found.ifname} in the pod is down"
                raise CniError(Code.CHECK_FOUND_DIFFERENCES, sentence)
        case Command.VERSION:
            raise CniError(
                Code.INVALID_ENVIRONMENT, "CNI_COMMAND VERSION is the plugin's to answer"
            )
        case Command.DEL | Command.GC | Command.STATUS:
            pass
    return None


def _raised(request: Request, netns_fd: int | None) -> Result:
    with _in_sandbox(request, netns_fd) as socket:
        socket.must(podend.LOOPBACK_UP)
        found = _read(socket)
        wanted = hostend.dump_addresses(AF_UNSPEC, LOOPBACK_IFINDEX)
        addresses = podend.parse_addresses(socket.dump(nl.RTM_GETADDR, wanted))
    if request.netconf.prev_result is not None:
        return request.netconf.prev_result
    return Result(
        interfaces=(Interface(found.ifname, mac=found.mac, sandbox=request.netns),),
        ips=tuple(IpConfig(ip_interface(each), interface=0) for each in addresses),
    )


def _read(socket: NetlinkSocket) -> hostend.HostEnd:
    body = nl.IFINFOMSG.pack(AF_UNSPEC, 0, LOOPBACK_IFINDEX, 0, 0)
    return hostend.parse_link(socket.get(nl.RTM_GETLINK, body))


@contextmanager
def _in_sandbox(request: Request, netns_fd: int | None) -> Iterator[NetlinkSocket]:
    """A socket in the sandbox's namespace; what goes wrong there, as CNI has it."""
    netns = f"CNI_NETNS {shown(request.netns)}"
    if netns_fd is None:
        raise CniError(Code.UNKNOWN_CONTAINER, f"{netns} cannot be opened")
    if not is_network_namespace(netns_fd):
        raise CniError(Code.INVALID_ENVIRONMENT, f"{netns} is not a network namespace")
    own = own_netns()
    try:
        if is_same_namespace(netns_fd, own):
            raise CniError(Code.INVALID_ENVIRONMENT, f"{netns} is the host's own")
        with inside(netns_fd, back_fd=own):
            socket = NetlinkSocket(receive_buffer_bytes=None)
        with socket:
            yield socket
    except OSError as error:
        sentence = f"loopback in the pod: {error.strerror or error}"
        raise CniError(Code.WIRING_FAILED, sentence) from error
    finally:
        os.close(own)
