"""The last-known-good cache: what is written when, what is refused, and what is never believed."""

from __future__ import annotations

import os
import stat
from dataclasses import fields, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from cni.ipam.block import Block, BlockState, BlockStoreError
from routing.datastore import cache as cache_module
from routing.datastore.cache import SnapshotCache
from routing.datastore.cache_format import MAGIC
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPPeerResource,
    IPPoolResource,
    Meta,
    NodeResource,
    Password,
    SecretKeyRef,
    Snapshot,
)

OWN = Block(ip_network("10.244.1.0/26"), "pods", "n1", BlockState.CONFIRMED, "7", "u-1")
OTHER = Block(ip_network("10.244.2.0/26"), "pods", "n2", BlockState.CONFIRMED, "8", "u-2")
SECRET = "hunter2-very-secret"
SNAPSHOT = Snapshot(
    pools=(IPPoolResource(Meta("pods"), ip_network("10.244.0.0/16"), 26),),
    nodes=(
        NodeResource(Meta("n1", resource_version="3"), (ip_address("192.0.2.1"),), 64601),
        NodeResource(Meta("n2", resource_version="4"), (ip_address("192.0.2.2"),)),
    ),
    peers=(BGPPeerResource(Meta("tor"), ip_address("192.0.2.254"), 64512),),
    blocks=(OWN, OTHER),
    bgp=BGPConfigurationResource(Meta("default"), asn=64999),
    passwords={SecretKeyRef("bgp", "tor"): Password(SECRET)},
    in_sync=True,
)


class Files:
    """A node's two directories, and the caches of its agents in turn."""

    def __init__(self, tmp_path: Path) -> None:
        self.state, self.run = tmp_path / "state", tmp_path / "run"
        self.state.mkdir()
        self.run.mkdir()
        self.path = self.state / "last-known"
        self.secrets = self.run / "passwords"
        self.now_s = 100.0

    def cache(self, *, node: str = "n1", boot: str = "b1", max_bytes: int = 1 << 20):
        return SnapshotCache(
            self.path,
            node=node,
            passwords_path=self.secrets,
            boot_id=boot,
            clock=lambda: self.now_s,
            max_bytes=max_bytes,
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_new_agent_gets_what_the_last_one_saved(files: Files):
    """Equal in everything but that it is out of sync."""
    assert files.cache().load() is None
    assert files.cache().save(SNAPSHOT)
    assert files.cache().load() == replace(SNAPSHOT, in_sync=False)


def test_every_field_of_a_snapshot_is_thought_of():
    """A field added to Snapshot must be put into the cache too, or be left out on purpose."""
    assert {field.name for field in fields(Snapshot)} == {
        *("pools", "nodes", "peers", "filters", "blocks", "bgp", "passwords", "in_sync"),
        "peers_gone_at_s",
    }


def test_passwords_are_in_the_file_on_the_tmpfs_only(files: Files):
    """Both are the owner's alone; a reboot that empties the tmpfs costs the passwords only."""
    files.cache().save(SNAPSHOT)
    assert SECRET.encode() not in files.path.read_bytes()
    assert SECRET.encode() in files.secrets.read_bytes()
    for path in (files.path, files.secrets):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    files.secrets.unlink()
    assert files.cache().load() == replace(SNAPSHOT, in_sync=False, passwords={})
    cache = files.cache()
    cache.save(replace(SNAPSHOT, passwords={}))
    assert SECRET.encode() not in files.path.read_bytes()


def test_a_password_that_was_taken_away_leaves_the_file(files: Files):
    """Also when another agent had written it."""
    files.cache().save(SNAPSHOT)
    files.cache().save(replace(SNAPSHOT, passwords={}))
    assert SECRET.encode() not in files.secrets.read_bytes()


def test_only_what_changed_is_written(files: Files):
    """Not at every pass, and not for a Node's heartbeat."""
    cache = files.cache()
    assert cache.save(SNAPSHOT)
    assert not cache.save(SNAPSHOT)
    beat = replace(SNAPSHOT.nodes[1], meta=replace(SNAPSHOT.nodes[1].meta, resource_version="9"))
    files.now_s += 100
    assert not cache.save(replace(SNAPSHOT, nodes=(SNAPSHOT.nodes[0], beat)))
    assert cache.save(replace(SNAPSHOT, pools=()))
    after = files.cache()
    assert after.load() is not None
    assert not after.save(replace(SNAPSHOT, pools=()))


def test_other_nodes_business_is_written_now_and_then(files: Files):
    """A thousand nodes that claim blocks are a thousand writes otherwise; none is forgotten."""
    cache = files.cache()
    cache.save(SNAPSHOT)
    fewer = replace(SNAPSHOT, blocks=(OWN,))
    files.now_s += 1
    assert not cache.save(fewer)
    files.now_s += 10
    assert cache.save(fewer)
    own = replace(OWN, state=BlockState.PENDING_DELETION, resource_version="11")
    assert cache.save(replace(fewer, blocks=(own,)))


def test_a_snapshot_out_of_sync_is_not_saved(files: Files):
    """It is what was loaded, or what was known before: nothing new."""
    assert not files.cache().save(replace(SNAPSHOT, in_sync=False))
    assert not files.path.exists()


def test_a_file_of_another_node_is_refused(files: Files):
    """A cloned disk must not announce the blocks of the machine it was cloned from."""
    files.cache(node="n2").save(SNAPSHOT)
    cache = files.cache()
    assert cache.load() is None
    assert cache.faults == 1
    assert "belongs to 'n2'" in cache.problems[0]
    assert cache.save(SNAPSHOT)
    assert cache.problems == []
    assert cache.load() is not None


def test_after_a_reboot_the_nodes_own_blocks_are_not_believed(files: Files):
    """Its pods are gone, and it may have been off for weeks; how to speak BGP is still known."""
    files.cache().save(SNAPSHOT)
    loaded = files.cache(boot="b2").load()
    assert loaded is not None
    assert loaded.blocks == (OTHER,)
    assert loaded.peers == SNAPSHOT.peers
    cache = files.cache(boot="b2")
    cache.load()
    assert cache.save(SNAPSHOT)
    again = files.cache(boot="b2").load()
    assert again is not None
    assert again.blocks == (OWN, OTHER)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "does not begin"),
        (b"something else\n", "does not begin"),
        (b"\x00" * 4096, "does not begin"),
        (f"{MAGIC} 1 node=n1 boot=b1 sha256=00\n{{}}".encode(), "checksum"),
    ],
)
def test_a_foreign_file_is_refused_with_a_reason(files: Files, raw: bytes, why: str):
    """None, never an error; and counted."""
    files.path.write_bytes(raw)
    cache = files.cache()
    assert cache.load() is None
    assert cache.faults == 1
    assert why in cache.problems[0]


def test_what_is_not_a_file_is_refused(files: Files):
    """A directory, a link, a pipe (which must not keep the agent waiting)."""
    files.path.symlink_to("/etc/hostname")
    assert files.cache().load() is None
    files.path.unlink()
    os.mkfifo(files.path)
    assert files.cache().load() is None
    files.path.unlink()
    files.path.mkdir()
    cache = files.cache()
    assert cache.load() is None
    assert not cache.save(replace(SNAPSHOT, passwords={}))
    assert "cannot be written" in cache.problems[0]


def test_another_format_version_is_refused(files: Files, monkeypatch: pytest.MonkeyPatch):
    """After a downgrade, say; the sentence names both versions."""
    with monkeypatch.context() as patch:
        patch.setattr("routing.datastore.cache_format.VERSION", 2)
        files.cache().save(SNAPSHOT)
    cache = files.cache()
    assert cache.load() is None
    assert "has format version 2, and 1 is known" in cache.problems[0]


def test_a_file_that_is_too_large_is_neither_written_nor_read(files: Files):
    """The old one stays; the agent goes on."""
    files.cache().save(SNAPSHOT)
    before = files.path.read_bytes()
    small = files.cache(max_bytes=200)
    assert small.load() is None
    assert any("is larger than 200 bytes" in each for each in small.problems)
    small.save(replace(SNAPSHOT, pools=()))
    assert any("bytes are more than 200" in each for each in small.problems)
    assert files.path.read_bytes() == before


def fail_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)


def test_a_full_disk_costs_the_cache_only(files: Files, monkeypatch: pytest.MonkeyPatch):
    """The old file stays whole, nothing half written lies about, and the next pass tries again."""
    cache = files.cache()
    cache.save(SNAPSHOT)
    before = files.path.read_bytes()
    newer = replace(SNAPSHOT, pools=())
    with monkeypatch.context() as patch:
        fail_fsync(patch)
        assert not cache.save(newer)
        assert not cache.save(newer)
    assert files.path.read_bytes() == before
    assert [path.name for path in files.state.iterdir()] == [files.path.name]
    assert "No space left" in cache.problems[0]
    assert cache.save(newer)
    assert cache.problems == []


# -- giving up a block ---------------------------------------------------------------------


def loaded_blocks(files: Files) -> tuple[Block, ...]:
    snapshot = files.cache().load()
    return () if snapshot is None else snapshot.blocks


def test_a_block_that_is_given_up_is_in_no_file(files: Files):
    """Nor does an older snapshot bring it back; its confirmation anew does."""
    cache = files.cache()
    cache.save(SNAPSHOT)
    cache.give_up(replace(OWN, state=BlockState.PENDING_DELETION, resource_version="9"))
    assert loaded_blocks(files) == (OTHER,)
    files.now_s += 100
    cache.save(SNAPSHOT)
    assert loaded_blocks(files) == (OTHER,)
    again = replace(OWN, resource_version="10")
    cache.save(replace(SNAPSHOT, blocks=(again, OTHER)))
    assert loaded_blocks(files) == (again, OTHER)


def test_a_block_that_the_file_does_not_have_is_given_up_at_once(files: Files):
    """No write for nothing."""
    cache = files.cache()
    cache.save(replace(SNAPSHOT, blocks=(OTHER,)))
    before = files.path.stat().st_ino
    cache.give_up(OWN)
    assert files.path.stat().st_ino == before


def test_a_file_that_cannot_be_written_is_removed_rather_than_believed(
    files: Files, monkeypatch: pytest.MonkeyPatch
):
    """Two nodes with one block is worse than an agent without a cache."""
    cache = files.cache()
    cache.save(SNAPSHOT)
    with monkeypatch.context() as patch:

        def full(_path: Path, _raw: bytes) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(cache_module, "_replace", full)
        cache.give_up(OWN)
    assert not files.path.exists()
    assert cache.save(SNAPSHOT)
    assert loaded_blocks(files) == (OTHER,)


def test_a_file_of_which_nothing_is_known_is_removed(files: Files):
    """One that this version refused, another version might believe."""
    files.path.write_bytes(b"unknown")
    cache = files.cache()
    cache.load()
    cache.give_up(OWN)
    assert not files.path.exists()


def test_a_block_stays_ours_while_the_file_cannot_be_changed(
    files: Files, monkeypatch: pytest.MonkeyPatch
):
    """A read-only disk: the store's block must not be deleted."""
    cache = files.cache()
    cache.save(SNAPSHOT)

    def read_only(*_args: object, **_named: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_replace", read_only)
        patch.setattr(Path, "unlink", read_only)
        with pytest.raises(BlockStoreError, match=r"10\.244\.1\.0/26 is kept.*Read-only"):
            cache.give_up(OWN)
    assert loaded_blocks(files) == (OWN, OTHER)
