"""Pod links in the kernel: makes, configures, checks, mends and removes veth pairs.

The kernel is the journal: what a link is for stands in its alias (cni/podlink.py), so nothing is
remembered here. Two marks decide what may be touched. An alias of ours: the link is ours. Our link
group and no alias: ours, half made, by an agent that was killed between two messages, since the
kernel takes the group at birth and the alias only afterwards. Anything else is foreign and is
never changed.

Invariants:
  * The host end is born DOWN and gets every sysctl before it goes UP, so that no pod ever talks
    to an unprotected link (accept_ra: CVE-2020-10749).
  * The pod end is born inside its namespace; moving it there later costs 20 ms of RCU waits.
  * A create that fails leaves nothing.

All work happens in the network namespace the KernelWiring was made in or for, whatever thread
calls. What the two ends must be is in hostend.py and podend.py, which do no I/O; what they are, in
link_ends.py.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from cni import hostend, podend
from cni import netlink as nl
from cni.hostend import HostEnd
from cni.link_ends import GONE, LinkEnds, is_ours, read_link, taken
from cni.link_removal import LinkRemoval
from cni.netlink_socket import NetlinkSocket
from cni.netns import (
    PROC_SYS_NET,
    Sysctls,
    identity,
    inside,
    is_network_namespace,
    own_netns,
)
from cni.observed import LinkReader, ObservedLink
from cni.podlink import HOST_MAC, PodLink, decode_alias
from cni.wiring_errors import (
    NamespaceGone,
    OwnNamespace,
    PodInterfaceExists,
    WiringError,
    as_wiring_error,
)

log = logging.getLogger(__name__)

FIRST_IFINDEX = 1 << 20
POD_IFINDEX = 1 << 19
"""Interface indexes of host ends from here on, and of every pod end: a kernel that counts by itself
does not get there, and the two ends never share one, or tools would take them for one interface."""
BORN_MAX = 256
"""Links between their two halves that are remembered; one that fell out is looked up."""


def _never() -> bool:
    return False


class KernelWiring:
    """The kernel's pod links. Thread-safe.

    Args:
        netns_fd: the host's namespace; None is the calling thread's. Not kept, the caller may
            close it.
        later: runs what no runtime need wait for (the pod's loopback), soon and in the same
            thread; None does it at once.
        proc_sys_net: where sysctls are written; /proc/sys is read-only in a container.

    Raises:
        OSError: no netlink socket can be had.
    """

    def __init__(
        self,
        *,
        netns_fd: int | None = None,
        later: Callable[[Callable[[], None]], object] | None = None,
        proc_sys_net: str = PROC_SYS_NET,
    ) -> None:
        self._proc_sys_net = proc_sys_net
        self._later = later
        self._next_ifindex = 0
        """Of the next host end; 0 when it must be found out."""
        self._born: dict[str, tuple[int, str]] = {}
        """Pod ends that await their configuration: host end's name -> index and MAC address."""
        self._made: dict[str, int] = {}
        """Links that this one has made, by name: a removal need not ask whose they are."""
        self._lock = threading.RLock()
        self._home_of = threading.current_thread() if netns_fd is None else None
        """The thread whose own namespace is ours."""
        with ExitStack() as stack:
            self._home_fd = own_netns() if netns_fd is None else os.dup(netns_fd)
            stack.callback(os.close, self._home_fd)
            self._home = identity(self._home_fd)
            self._removal = LinkRemoval(self._home_fd)
            self._socket = stack.enter_context(NetlinkSocket(netns_fd=netns_fd))
            self._reader = LinkReader(stack.enter_context(NetlinkSocket(netns_fd=netns_fd)))
            self._sysctls = stack.enter_context(Sysctls(netns_fd, root=proc_sys_net))
            self._ends = LinkEnds(self._socket, self._sysctls)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Closes every descriptor. Closing twice is harmless."""
        self._stack.close()
        self._removal.close()

    # -- the verbs ---------------------------------------------------------------------------

    def examine(self, netns_fd: int) -> str | None:
        """What is wrong with ``netns_fd`` as a pod's namespace, or None."""
        if not is_network_namespace(netns_fd):
            return "is not a network namespace"
        if identity(netns_fd) == self._home:
            return "is the namespace of the host itself"
        return None

    def prepare_host(self) -> list[str]:
        """Makes this namespace a router; what it changed, one sentence each.

        With IPv6 forwarding on, the kernel ignores router advertisements on links whose accept_ra
        is 1: a host that learns its default route so needs accept_ra=2 on that link.

        Raises:
            WiringError: a sysctl cannot be written.
        """
        changed: list[str] = []
        with as_wiring_error("host"):
            for family in ("ipv4", "ipv6"):
                path = f"{family}/conf/all/forwarding"
                was = self._sysctls.read(path)
                if was is not None and was != "1":
                    self._sysctls.write(path, "1")
                    changed.append(f"net.{family}.conf.all.forwarding: {was} -> 1")
        return changed

    def create(self, link: PodLink, netns_fd: int) -> int:
        """The pair, its host end ready and UP, its pod end DOWN. Returns the host end's ifindex.

        Raises:
            LinkExists: the host end's name is taken.
            PodInterfaceExists: the pod's namespace has such an interface.
            NamespaceGone, OwnNamespace: ``netns_fd`` is not a namespace a pod can live in.
            WiringError: anything else; nothing is left behind.
        """
        self._refuse_bad_namespace(netns_fd)
        self._refuse_bad_link(link)
        alias = link.alias
        with as_wiring_error(link.host_ifname), self._lock:
            ifindex = self._make_pair(link, netns_fd)
            try:
                self._set_up_host_end(link, ifindex, alias=alias)
                self._made[link.host_ifname] = ifindex
            except BaseException as error:
                self._born.pop(link.host_ifname, None)
                try:
                    self._socket.must(hostend.delete_link(ifindex))
                except OSError as failed:
                    error.add_note(f"{link.host_ifname} could not be removed again: {failed}")
                raise
        return ifindex

    def configure_pod(self, link: PodLink, netns_fd: int) -> str:
        """Addresses, routes and UP inside the pod; returns the pod end's MAC. Idempotent.

        Raises:
            NamespaceGone: ``netns_fd`` is not a network namespace.
            WiringError: the pod end is missing, or something in the pod is in the way.
        """
        born = self._born.pop(link.host_ifname, None)
        later = self._later if born is not None else None
        with self._inside_pod(
            link, netns_fd, is_known=born is not None, stays_open=later is not None
        ) as socket:
            ifindex, mac = born or self._find_pod_end(socket, link.attachment.ifname)
            requests = podend.pod_requests(link, ifindex, has_ipv6=self._sysctls.has_ipv6)
            if later is None:
                requests.insert(0, podend.LOOPBACK_UP)
            refusals = [refusal for refusal in socket.execute(requests) if refusal is not None]
            for refusal in refusals:
                if refusal.errno != errno.EEXIST:
                    raise refusal
            if refusals:
                # Something was there already. Fine if it is what we wanted, as in a repeated ADD.
                differences = self._ends.pod_differences(socket, link, None, netns_fd)
                if differences:
                    raise WiringError("; ".join(differences))
            self._wait_for_carrier(link)
            if later is not None:
                later(partial(_raise_loopback, socket, link.host_ifname))
            return mac

    def _wait_for_carrier(self, link: PodLink) -> None:
        """Returns when the host end can send.

        It was UP before the pod end was, and got its carrier just now. The kernel gives it a queue
        only when a worker of its own comes round to it, and until then throws away what it sends:
        the gateway's answer to the pod's first ARP request, which is repeated after a second. It
        catches up on that before it describes the link to anybody (rtnl_getlink, Linux 6.8).
        """
        self._socket.get(nl.RTM_GETLINK, hostend.get_link(link.host_ifname))

    def remove(self, host_ifname: str, is_announced: Callable[[], bool] = _never) -> bool:
        """Removes a link of ours; True once it is gone, False when there was none.

        Sleeps about 20 ms in the kernel. Several run at once, each on a socket of its own. The
        kernel returns only after it has announced the link gone, taken it off every table and
        waited for its last user: the name is free then.

        A foreign link of that name counts as none: DEL must succeed where we have nothing.

        Args:
            is_announced: whether the caller has heard the announcement already; True spares the
                question how the removal ended.

        Raises:
            WiringError: the kernel refused.
        """
        self._born.pop(host_ifname, None)
        ifindex = self._made.pop(host_ifname, 0)
        with as_wiring_error(host_ifname):
            return self._removal.remove(host_ifname, ifindex, is_announced)

    def remove_half_made(self) -> list[str]:
        """Removes what a killed agent left between a link's birth and its alias; their names.

        Only for an agent that makes no links yet: one that is being made looks the same. The ADD
        it was for has failed with its agent.

        Raises:
            WiringError: the kernel could not be read, or refused.
        """
        with as_wiring_error("half-made links"), self._lock:
            bodies = self._socket.dump(nl.RTM_GETLINK, hostend.dump_veths())
            found = [each for each in map(hostend.parse_link, bodies) if each.is_half_made]
            outcomes = self._socket.execute([hostend.delete_link(each.ifindex) for each in found])
            for refusal in outcomes:
                if refusal is not None and refusal.errno not in GONE:
                    raise refusal
        return [each.ifname for each in found]

    def read(self) -> list[ObservedLink]:
        """Every link of ours (cni/observed.py).

        Raises:
            WiringError: the kernel gave no consistent dump.
        """
        return self._reader.read()

    def check(self, link: PodLink, netns_fd: int) -> list[str]:
        """What differs from ``link`` on either side, one sentence each; [] when all is right.

        Host routes are not looked at: they are the FIB's.

        Raises:
            NamespaceGone: ``netns_fd`` is not a network namespace.
            WiringError: the kernel could not be read.
        """
        with as_wiring_error(link.host_ifname):
            found = self._ends.host_end(link.host_ifname)
        if found is None:
            differences = [f"link {link.host_ifname} is missing"]
        else:
            differences = self._ends.host_differences(link, found)
        with self._inside_pod(link, netns_fd, write=False) as socket:
            return differences + self._ends.pod_differences(socket, link, found, netns_fd)

    def repair(self, link: PodLink) -> list[str]:
        """Mends the host end; says what was wrong. The alias is evidence and is never rewritten.

        Raises:
            LinkExists: the link of that name is not ours.
            WiringError: there is no such link, or what is wrong could not be mended.
        """
        with as_wiring_error(link.host_ifname), self._lock:
            found, renamed = self._ends.host_end(link.host_ifname), []
            if found is None:
                renamed = self._name_back(link)
                found = self._ends.host_end(link.host_ifname)
            if found is None:
                raise WiringError(f"link {link.host_ifname} is missing")
            if not is_ours(found):
                raise taken(found)
            link_as_named = _with_alias_of(link, found)
            wrong = renamed + self._ends.host_differences(link_as_named, found)
            if not wrong:
                return []
            if (found.mtu_bytes, found.mac) != (link.mtu_bytes, HOST_MAC):
                self._socket.must(hostend.set_mtu_and_mac(link, found.ifindex))
            self._set_up_host_end(link, found.ifindex)
            now = self._ends.host_end(link.host_ifname)
            still = (
                self._ends.host_differences(link_as_named, now)
                if now is not None
                else ["it is gone"]
            )
            if still:
                raise WiringError(f"{link.host_ifname} could not be mended: {'; '.join(still)}")
            return wrong

    # -- steps -------------------------------------------------------------------------------

    def _refuse_bad_namespace(self, netns_fd: int) -> None:
        if not is_network_namespace(netns_fd):
            raise NamespaceGone(f"descriptor {netns_fd} is not a network namespace")
        if identity(netns_fd) == self._home:
            raise OwnNamespace("the pod's network namespace is the host's own")

    def _refuse_bad_link(self, link: PodLink) -> None:
        if "%" in link.attachment.ifname:
            # The kernel takes it for a template and would name the pod end eth0, eth1, ...
            raise WiringError(f"interface name {link.attachment.ifname!r} holds a %")
        least, most = hostend.MIN_MTU_BYTES, hostend.MAX_MTU_BYTES
        if not least <= link.mtu_bytes <= most:
            raise WiringError(f"MTU {link.mtu_bytes} is outside {least} to {most}")
        if link.ipv6 is None:
            return
        if not self._sysctls.has_ipv6:
            raise WiringError(f"pod address {link.ipv6}: this kernel has no IPv6")
        if link.mtu_bytes < hostend.IPV6_MIN_MTU_BYTES:
            raise WiringError(
                f"MTU {link.mtu_bytes} is below {hostend.IPV6_MIN_MTU_BYTES}, IPv6's least, "
                f"and the pod has address {link.ipv6}"
            )

    @staticmethod
    def _find_pod_end(socket: NetlinkSocket, ifname: str) -> tuple[int, str]:
        found = read_link(socket, ifname)
        if found is None:
            raise WiringError(f"{ifname} is not in the pod's namespace")
        return found.ifindex, found.mac

    def _make_pair(self, link: PodLink, netns_fd: int) -> int:
        """The pair, both ends DOWN and the host end without its alias; the host end's ifindex.

        Both ends get indexes of our choice, so that nothing after this need ask for one. Where
        one of them is taken (a second network's link in the pod, say) the kernel chooses.
        """
        if not self._next_ifindex:
            bodies = self._socket.dump(nl.RTM_GETLINK, hostend.dump_veths())
            taken = [nl.IFINFOMSG.unpack_from(body)[2] for body in bodies]
            self._next_ifindex = max([FIRST_IFINDEX - 1, *taken]) + 1
        ifindex = self._next_ifindex
        request = hostend.new_pair(link, netns_fd, ifindex=ifindex, pod_ifindex=POD_IFINDEX)
        refusal = self._socket.execute([request])[0]
        if refusal is None:
            self._next_ifindex += 1
            self._note_born(link)
            return ifindex
        self._next_ifindex = 0
        self._born.pop(link.host_ifname, None)
        if refusal.errno not in (errno.EEXIST, errno.EBUSY):
            raise refusal
        self._make_pair_anywhere(link, netns_fd)
        found = self._socket.ifindex(link.host_ifname)
        if found is None:
            raise WiringError(f"link {link.host_ifname} vanished while it was being made")
        return found

    def _note_born(self, link: PodLink) -> None:
        self._born[link.host_ifname] = (POD_IFINDEX, link.pod_mac)
        while len(self._born) > BORN_MAX:
            del self._born[next(iter(self._born))]

    def _make_pair_anywhere(self, link: PodLink, netns_fd: int) -> None:
        """The pair with indexes of the kernel's choice, once it has refused ours.

        Raises:
            LinkExists, PodInterfaceExists: what is in the way.
            NetlinkError: the kernel's refusal.
        """
        request = hostend.new_pair(link, netns_fd)
        refusal = self._socket.execute([request])[0]
        if refusal is not None and refusal.errno == errno.EEXIST:
            # The kernel does not say at which end. Only a half-made link of ours gets out of the
            # way; then we try once more.
            there = read_link(self._socket, link.host_ifname)
            if there is None:
                raise PodInterfaceExists(
                    f"interface {link.attachment.ifname} exists in the pod's namespace"
                )
            if not there.is_half_made:
                raise taken(there)
            log.warning("half_made_link_removed ifname=%s", there.ifname)
            self._socket.must(hostend.delete_link(there.ifindex))
            refusal = self._socket.execute([request])[0]
        if refusal is not None:
            raise refusal

    def _set_up_host_end(self, link: PodLink, ifindex: int, *, alias: str | None = None) -> None:
        """Every setting, then UP, then the IPv6 gateway address (going DOWN had flushed it).

        One send: a refused setting does not keep the kernel from what comes after it. The caller
        takes the link away then, and until the pod end is UP nothing can come in over it.

        Args:
            alias: of a link that has just been born.
        """
        for path, value in hostend.slow_sysctls(link).items():
            try:
                self._sysctls.write(path, str(value))
            except FileNotFoundError:
                # No IPv6 in this kernel, or on a link of so small an MTU: nothing to close.
                if link.ipv6 is not None:
                    raise
        settings = hostend.set_fast_sysctls(link, ifindex, alias=alias)
        self._socket.must(*settings, hostend.set_up(ifindex))
        if link.ipv6 is not None:
            self._socket.must(hostend.add_gateway_v6(ifindex))

    def _name_back(self, link: PodLink) -> list[str]:
        """Another hand gave the host end another name: then the rules at the pod's edge, which go
        by name, do not hold for it. What was wrong, or [] when no link has that alias."""
        for there in self.read():
            if there.record.attachment == link.attachment:
                name = hostend.set_name(there.ifindex, link.host_ifname)
                refusal = self._socket.execute([name])[0]
                if refusal is not None:
                    self._socket.must(hostend.set_down(there.ifindex), name)
                return [f"name of {link.host_ifname}: found {there.ifname}"]
        return []

    @contextmanager
    def _inside_pod(
        self,
        link: PodLink,
        netns_fd: int,
        *,
        write: bool = True,
        is_known: bool = False,
        stays_open: bool = False,
    ) -> Iterator[NetlinkSocket]:
        """A socket in the pod's namespace; its sysctls are written on the way, with ``write``.

        Args:
            is_known: ``create`` has just found the descriptor good.
            stays_open: where the block ends well, the socket is somebody else's to close.
        """
        if not is_known:
            self._refuse_bad_namespace(netns_fd)
        # Mostly the thread that made us, in our own namespace: then the way back is known.
        is_home = self._home_of is threading.current_thread()
        back_fd = self._home_fd if is_home else None
        with as_wiring_error(f"{link.attachment.ifname} in the pod"):
            with inside(netns_fd, back_fd=back_fd):
                socket = NetlinkSocket(receive_buffer_bytes=None)
                if write and link.ipv6 is not None:
                    self._allow_ipv6(link, socket)
            try:
                yield socket
            except BaseException:
                socket.close()
                raise
            if not stays_open:
                socket.close()

    def _allow_ipv6(self, link: PodLink, socket: NetlinkSocket) -> None:
        try:
            with Sysctls(root=self._proc_sys_net) as sysctls:
                for path, value in podend.wanted_sysctls(link).items():
                    sysctls.write(path, value)
        except BaseException:
            socket.close()
            raise


def _raise_loopback(socket: NetlinkSocket, host_ifname: str) -> None:
    """The runtime's job; whoever forgot it has a pod that cannot reach itself."""
    with socket:
        refusal = socket.execute([podend.LOOPBACK_UP])[0]
    if refusal is not None:
        log.warning("loopback_not_raised link=%s error=%s", host_ifname, refusal)


def _with_alias_of(link: PodLink, found: HostEnd) -> PodLink:
    """``link``, decorated with the pod name that the alias holds, so that only identity counts."""
    record = decode_alias(found.alias)
    return link if record is None else replace(link, pod=record.pod)
