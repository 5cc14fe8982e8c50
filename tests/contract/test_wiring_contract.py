"""What every Wiring promises, asked of the fake and of the real kernel alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Protocol

import pytest

from cni.attach import Wiring
from cni.attachment import Attachment
from cni.podlink import PodLink, decode_alias
from cni.wiring import KernelWiring
from cni.wiring_errors import (
    LinkExists,
    NamespaceGone,
    OwnNamespace,
    PodInterfaceExists,
    WiringError,
)
from tests.fakes.kernel import FakeWiring
from tests.fakes.netns import Fabric, Namespace


class World(Protocol):
    """A host, its pods' namespaces, and hands other than ours."""

    @property
    def wiring(self) -> Wiring: ...
    @property
    def home_fd(self) -> int: ...
    @property
    def bad_fd(self) -> int: ...

    def pod(self) -> int: ...
    def add_foreign(self, ifname: str) -> None: ...
    def add_in_pod(self, netns_fd: int, ifname: str) -> None: ...
    def set_down(self, ifname: str) -> None: ...


class FakeWorld:
    """The fake's own back door."""

    def __init__(self) -> None:
        self.wiring = FakeWiring()
        self.home_fd, self.bad_fd = FakeWiring.HOME_FD, FakeWiring.BAD_FD
        self._pods = 100

    def pod(self) -> int:
        self._pods += 1
        return self._pods

    def add_foreign(self, ifname: str) -> None:
        self.wiring.foreign.add(ifname)

    def add_in_pod(self, netns_fd: int, ifname: str) -> None:
        self.wiring.pod_interfaces.add((netns_fd, ifname))

    def set_down(self, ifname: str) -> None:
        self.wiring.pairs[ifname].drift.append(f"state of {ifname}: expected UP, found DOWN")


class KernelWorld:
    """Namespaces, and ``ip`` for the other hands."""

    bad_fd = -1

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._host = fabric.namespace("host")
        self._pods: dict[int, Namespace] = {}
        self.home_fd = self._host.fd
        self.wiring = KernelWiring(netns_fd=self._host.fd)

    def pod(self) -> int:
        made = self._fabric.namespace("pod")
        self._pods[made.fd] = made
        return made.fd

    def add_foreign(self, ifname: str) -> None:
        self._host.ip(f"link add {ifname} type veth peer name x0")

    def add_in_pod(self, netns_fd: int, ifname: str) -> None:
        self._pods[netns_fd].ip(f"link add {ifname} type veth peer name x0")

    def set_down(self, ifname: str) -> None:
        self._host.ip(f"link set {ifname} down")


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.netns)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A clean world of each kind."""
    if request.param == "fake":
        yield FakeWorld()
        return
    with Fabric() as fabric:
        made = KernelWorld(fabric)
        yield made
        made.wiring.close()


def pod_link(container: str = "c1", last: int = 1, mtu_bytes: int = 1500) -> PodLink:
    """A dual-stack link."""
    addresses = (ip_address(f"10.244.0.{last}"), ip_address(f"fd00::{last}"))
    return PodLink(Attachment("net", container, "eth0"), addresses, mtu_bytes)


def test_a_link_lives_from_create_to_remove(world: World):
    """Made, configured, read, checked, removed; and removed again, which is nothing."""
    wiring, pod, link = world.wiring, world.pod(), pod_link()
    ifindex = wiring.create(link, pod)
    assert wiring.check(link, pod)
    mac = wiring.configure_pod(link, pod)
    assert len(bytes.fromhex(mac.replace(":", ""))) == 6
    assert wiring.configure_pod(link, pod) == mac
    assert wiring.check(link, pod) == []
    (observed,) = wiring.read()
    assert (observed.ifindex, observed.ifname) == (ifindex, link.host_ifname)
    assert observed.record == decode_alias(link.alias)
    assert (observed.is_up, observed.mtu_bytes) == (True, link.mtu_bytes)
    assert wiring.remove(link.host_ifname) is True
    assert wiring.read() == []
    assert wiring.remove(link.host_ifname) is False
    assert wiring.check(link, pod)


def test_links_of_several_pods_are_independent(world: World):
    """Removing one leaves the others."""
    wiring = world.wiring
    links = [pod_link(f"c{n}", n) for n in (1, 2, 3)]
    for link in links:
        wiring.create(link, world.pod())
    wiring.remove(links[1].host_ifname)
    kept = {each.record.attachment for each in wiring.read()}
    assert kept == {links[0].attachment, links[2].attachment}


def test_names_that_are_taken_are_told_apart(world: World):
    """Ours, somebody else's, and the pod's."""
    wiring, link = world.wiring, pod_link()
    wiring.create(link, world.pod())
    with pytest.raises(LinkExists) as ours:
        wiring.create(link, world.pod())
    assert ours.value.is_ours
    foreign = pod_link("c2", 2)
    world.add_foreign(foreign.host_ifname)
    with pytest.raises(LinkExists) as theirs:
        wiring.create(foreign, world.pod())
    assert not theirs.value.is_ours
    assert wiring.remove(foreign.host_ifname) is False
    with pytest.raises(LinkExists):
        wiring.repair(foreign)
    crowded = world.pod()
    world.add_in_pod(crowded, "eth0")
    with pytest.raises(PodInterfaceExists):
        wiring.create(pod_link("c3", 3), crowded)
    assert [each.ifname for each in wiring.read()] == [link.host_ifname]


def test_bad_namespaces_and_mtus_are_refused_and_leave_nothing(world: World):
    """Typed, so that the runtime gets the right code."""
    wiring, pod = world.wiring, world.pod()
    with pytest.raises(NamespaceGone):
        wiring.create(pod_link(), world.bad_fd)
    with pytest.raises(OwnNamespace):
        wiring.create(pod_link(), world.home_fd)
    with pytest.raises(WiringError, match="1279"):
        wiring.create(pod_link(mtu_bytes=1279), pod)
    with pytest.raises(WiringError):
        wiring.configure_pod(pod_link(), pod)
    assert wiring.read() == []


def test_repair_mends_and_tells_once(world: World):
    """A second repair has nothing to say; a missing link cannot be mended."""
    wiring, pod, link = world.wiring, world.pod(), pod_link()
    wiring.create(link, pod)
    wiring.configure_pod(link, pod)
    world.set_down(link.host_ifname)
    assert any("expected UP" in each for each in wiring.check(link, pod))
    assert any("expected UP" in each for each in wiring.repair(link))
    assert wiring.repair(link) == []
    assert wiring.check(link, pod) == []
    with pytest.raises(WiringError, match="missing"):
        wiring.repair(pod_link("c9", 9))


def test_check_compares_addresses_and_mtu(world: World):
    """With what the caller believes."""
    wiring, pod, link = world.wiring, world.pod(), pod_link()
    wiring.create(link, pod)
    wiring.configure_pod(link, pod)
    assert wiring.check(pod_link(last=7), pod)
    assert any("MTU" in each for each in wiring.check(replace(link, mtu_bytes=1400), pod))


def test_a_pod_end_gets_the_mac_that_is_asked_for(world: World):
    """Reported, found again by check, and not what another link would want."""
    wiring, pod = world.wiring, world.pod()
    link = replace(pod_link(), mac="c2:11:22:33:44:55")
    wiring.create(link, pod)
    assert wiring.configure_pod(link, pod) == "c2:11:22:33:44:55"
    assert wiring.check(link, pod) == []
    assert wiring.check(replace(link, mac=None), pod) == []
    (difference,) = wiring.check(replace(link, mac="c2:11:22:33:44:56"), pod)
    assert "c2:11:22:33:44:56" in difference
    assert "c2:11:22:33:44:55" in difference


def test_the_fake_fails_when_told_to():
    """A switch works once, and leaves no state behind."""
    fake = FakeWiring()
    fake.fail_next("create", WiringError("no memory"))
    with pytest.raises(WiringError, match="no memory"):
        fake.create(pod_link(), 100)
    assert fake.read() == []
    assert fake.create(pod_link(), 100)
