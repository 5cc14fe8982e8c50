"""The host ends of pods' links, kept as they must be. See cni.wiring for what is mended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from cni.observed import ObservedLink
from cni.podlink import PodLink
from routing.delta import Failure

log = structlog.get_logger("routing.link_repair")

REPAIRS_AT_ONCE = 20


class PodLinks(Protocol):
    """What the loop needs of cni.wiring."""

    def read(self) -> list[ObservedLink]:
        """Every pod link of ours, from the kernel."""

    def repair(self, link: PodLink) -> list[str]:
        """Mends the host end; says what it mended."""


class LinkRepair:
    """Remembers which links were found sound, so that a pass looks only at those that changed.

    ``on_mended`` is told of each (link, what was mended).
    """

    def __init__(self, pod_links: PodLinks, on_mended: Callable[[str, str], None]) -> None:
        self._pod_links = pod_links
        self._on_mended = on_mended
        self._sound: dict[str, ObservedLink] = {}

    async def repair(
        self, pods: tuple[ObservedLink, ...], failures: list[Failure[str]], *, all_of_them: bool
    ) -> bool:
        """At a resync every link; else those that the kernel describes otherwise than when they
        were found sound, which it does not do for the IPv6 gateway's address and proxy_delay.

        Returns whether anything was mended; what could not be goes into ``failures``.
        """
        sound, self._sound = self._sound, {}
        number, has_mended = 0, False
        for pod in pods:
            if not all_of_them and sound.get(pod.ifname) is pod:
                self._sound[pod.ifname] = pod
                continue
            number += 1
            if number % REPAIRS_AT_ONCE == 0:
                # A thousand links take 55 ms; no ADD shall wait for all of them.
                await asyncio.sleep(0)
            link = PodLink(
                attachment=pod.record.attachment,
                addresses=pod.record.addresses,
                mtu_bytes=pod.mtu_bytes,
                pod=pod.record.pod,
            )
            try:
                mended = self._pod_links.repair(link)
                for what in mended:
                    log.warning("pod_link_repaired", link=pod.ifname, what=what)
                    self._on_mended(link.host_ifname, what)
                if not mended:
                    self._sound[pod.ifname] = pod
                has_mended |= bool(mended)
            except Exception as error:
                failures.append(Failure(f"link {pod.ifname}", "repair", str(error)))
        return has_mended
