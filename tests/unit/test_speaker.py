"""The Speaker without ExaBGP: its socket, its file, what it refuses. The rest: contract tests."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import time
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import pytest

from bgp.exabgp_conf import ConfError
from bgp.paths import Advertisement, Peer
from bgp.speaker import NotSent, Speaker
from routing.delta import Delta

PEER = Peer(
    name="tor1",
    address=ip_address("192.0.2.2"),
    remote_asn=65000,
    local_asn=65001,
    local_address=ip_address("192.0.2.1"),
    router_id=IPv4Address("192.0.2.1"),
)
BLOCK = ip_network("10.244.1.64/26")


@pytest.fixture
async def speaker(tmp_path: Path) -> AsyncIterator[Speaker]:
    made = Speaker(
        socket_path=str(tmp_path / "bgp.sock"),
        conf_path=str(tmp_path / "exabgp.conf"),
        clock=time.monotonic,
        on_change=lambda _reason: None,
    )
    try:
        yield made
    finally:
        await made.close()


async def test_the_socket_is_private_replaces_a_dead_one_and_goes(
    speaker: Speaker, tmp_path: Path
) -> None:
    """0600 whatever the umask; a killed agent's socket is in nobody's way."""
    path = tmp_path / "bgp.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    before = os.umask(0)
    try:
        await speaker.start()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    await speaker.close()
    assert list(tmp_path.iterdir()) == []


async def test_whoever_is_not_the_bridge_is_shown_out(speaker: Speaker, tmp_path: Path) -> None:
    """And is not taken for ExaBGP meanwhile."""
    await speaker.start()
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "bgp.sock"))
    writer.write(b"show neighbor json\n")
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    assert not speaker.is_connected
    writer.close()


async def test_without_exabgp_nothing_is_sent_and_it_is_said(speaker: Speaker) -> None:
    """Each change fails by name; nothing is remembered as if it had been sent."""
    await speaker.start()
    await speaker.set_peers({PEER.address: PEER})
    key = PEER.address, BLOCK
    failures = await speaker.apply(Delta(create={key: Advertisement(BLOCK)}))
    assert failures == [NotSent(key, "announce", "ExaBGP is not connected")]
    assert await speaker.adj_rib_out() == {}
    assert set(speaker.sessions()) == {PEER.address}
    assert not speaker.is_complete(PEER.address)


async def test_a_peer_that_must_not_be_written_changes_nothing(
    speaker: Speaker, tmp_path: Path
) -> None:
    """Neither the file nor what the speaker believes."""
    await speaker.start()
    await speaker.set_peers({PEER.address: PEER})
    before = (tmp_path / "exabgp.conf").read_text()
    hostile = ip_address("fe80::2%;}\nprocess evil {")
    with pytest.raises(ConfError, match="scope"):
        await speaker.set_peers(
            {hostile: Peer("x", hostile, 1, 2, ip_address("fe80::1"), PEER.router_id)}
        )
    assert (tmp_path / "exabgp.conf").read_text() == before
    assert set(speaker.sessions()) == {PEER.address}


async def test_a_file_that_somebody_removed_is_written_again(
    speaker: Speaker, tmp_path: Path
) -> None:
    """`slash32 speaker` waits for it."""
    await speaker.set_peers({PEER.address: PEER})
    (tmp_path / "exabgp.conf").unlink()
    await speaker.set_peers({PEER.address: PEER})
    assert str(PEER.address) in (tmp_path / "exabgp.conf").read_text()
