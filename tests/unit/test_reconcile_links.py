"""Which pod links a pass of the loop looks at."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from cni.attachment import Attachment
from cni.observed import ObservedLink
from cni.podlink import PodLink
from tests.unit.test_reconcile import Node


async def test_only_a_link_that_is_described_otherwise_is_looked_at_before_the_next_resync(
    monkeypatch: pytest.MonkeyPatch,
):
    """A thousand links take 55 ms; what the kernel describes as before was found sound."""
    node = await Node().started()
    attachments = [Attachment("net", f"c{number}", "eth0") for number in range(3)]
    for number, attachment in enumerate(attachments):
        node.wiring.create(
            PodLink(attachment, (ip_address(f"10.244.1.{number}"),), 1500), 7 + number
        )
    kept: dict[str, ObservedLink] = {}
    read, repair = node.wiring.read, node.wiring.repair
    looked_at: list[str] = []

    def reading() -> list[ObservedLink]:
        """As cni.wiring does: the same object while nothing has changed."""
        return [kept.setdefault(each.ifname, each) for each in read()]

    def repairing(link: PodLink) -> list[str]:
        looked_at.append(link.host_ifname)
        return repair(link)

    monkeypatch.setattr(node.wiring, "read", reading)
    monkeypatch.setattr(node.wiring, "repair", repairing)
    every = sorted(each.host_ifname for each in attachments)

    async def looked_at_after_news() -> list[str]:
        looked_at.clear()
        node.loop._repair_due = True  # as watch_kernel does
        await node.loop.run_pass()
        return sorted(looked_at)

    assert await looked_at_after_news() == every
    assert await looked_at_after_news() == []
    del kept[every[1]]
    node.wiring.pairs[every[1]].drift.append("sysctl: expected 1, found 0")
    assert await looked_at_after_news() == [every[1]]
    # What was wrong is looked at once more before it counts as sound.
    assert await looked_at_after_news() == [every[1]]
    assert await looked_at_after_news() == []
    node.now_s += 31
    assert await looked_at_after_news() == every
