"""The announcer of the BGP benchmark: what it sends is what was asked for."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address

import pytest

from bgp.paths import Update
from bgp.update_decoder import UpdateDecoder
from lab.bench.announcer import Load
from lab.bench.bgp import Figures, asked_tables, table
from lab.bench.speaker_alone import SpeakerAlone
from lab.bench.systems import Bird, Slash32
from tests.fakes.said import in_words

PEER = ip_address("192.0.2.2")


def decoded(stream: bytes) -> list[Update]:
    raw, offset = b"", 0
    while offset < len(stream):
        length = int.from_bytes(stream[offset + 16 : offset + 18], "big")
        assert length <= 4096
        raw += stream[offset + 16 : offset + 18] + stream[offset + 19 : offset + length]
        offset += length
    events = list(in_words(UpdateDecoder().decode(PEER, raw, is_ebgp=True)))
    assert all(isinstance(event, Update) for event in events)
    return [event for event in events if isinstance(event, Update)]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("is_packed", [True, False])
def test_every_prefix_is_announced_and_withdrawn_once(version: int, is_packed: bool):
    """Packed in few UPDATEs, or each in its own with its own path."""
    load = Load(3000, version, is_packed)
    hop = ip_address("10.99.1.2" if version == 4 else "2001:db8::2")
    announced = decoded(load.announce(hop, 64512))
    paths = [path for update in announced for path in update.announced]
    assert [path.prefix for path in paths] == [load.prefix(index) for index in range(3000)]
    assert {path.next_hop for path in paths} == {hop}
    assert len({path.as_path for path in paths}) == (1 if is_packed else 250)
    messages = load.announce(hop, 64512).count(b"\xff" * 16)
    assert messages < 60 if is_packed else messages == 3000
    gone = [prefix for update in decoded(load.withdraw()) for prefix in update.withdrawn]
    assert gone == [load.prefix(index) for index in range(3000)]


def test_a_detour_and_one_path_for_all():
    """What makes a router the worse of two, and a table of one attribute block."""
    load = Load(600, is_packed=False, origins=1)
    paths = [
        path
        for update in decoded(load.announce(ip_address("10.99.1.2"), 64512, detour=(64998, 64999)))
        for path in update.announced
    ]
    assert {path.as_path for path in paths} == {(64512, 64998, 64999, 64700)}
    assert [Load(1).how, Load(1, is_packed=False).how, load.how] == ["packed", "single", "one-path"]


@pytest.mark.parametrize("is_packed", [True, False])
def test_as_many_paths_as_asked_for_each_with_its_blocks(is_packed: bool):
    """A cluster's table: every node a path of its own, whichever way it is packed."""
    (count, paths), *others = asked_tables(None, "600,5000")
    assert (count, others) == (2400, [(20_000, 5000)])
    load = Load(count, 4, is_packed, paths)
    updates = decoded(load.announce(ip_address("10.99.1.2"), 64512))
    said = [path for update in updates for path in update.announced]
    assert {path.prefix for path in said} == {load.prefix(index) for index in range(2400)}
    blocks = Counter(path.as_path for path in said)
    assert (len(blocks), set(blocks.values()), load.paths) == (600, {4}, 600)
    assert all(len(path) == 2 for path in blocks)
    stream = load.announce(ip_address("10.99.1.2"), 64512)
    assert stream.count(b"\xff" * 16) == (600 if is_packed else 2400)


def test_which_tables_are_asked_for():
    """Sizes, paths, or each with each where there are enough prefixes."""
    assert [count for count, _ in asked_tables(None, None)] == [1000, 10_000, 50_000, 100_000]
    assert asked_tables("10,100", None) == [(10, None), (100, None)]
    assert asked_tables("10,100", "5,50") == [(10, 5), (100, 5), (100, 50)]


def test_tables_of_other_paths_are_other_rows(tmp_path):
    """Else the median of both would be told."""
    figures, ours = Figures(), Slash32(tmp_path, "x")
    for paths in (None, 250, 500):
        figures.note("load", Load(1000, 4, False, paths), ours, float(paths or 1))
    assert [(row[2], row[5]) for row in figures.rows()] == [(250, 125.5), (500, 500.0)]


def test_what_ours_may_not_exceed_is_said_without_a_peer(tmp_path):
    """Memory has a limit of its own, up to the size that it was promised for."""
    figures, ours = Figures(), Slash32(tmp_path, "x")
    for count, mib in ((10_000, 120.0), (100_000, 151.0), (200_000, 300.0)):
        figures.note("peak_memory", Load(count), ours, mib, "MiB")
    small, large, beyond = table(figures).splitlines()[1:]
    assert "reached" in small
    assert "MISSED" in large
    assert "<=" not in beyond


def test_the_speaker_alone_stands_for_ours_when_the_agent_is_left_out(tmp_path):
    """Beside the same peers."""
    figures = Figures()
    figures.note("load", Load(1000), SpeakerAlone(tmp_path, "x"), 1.0)
    figures.note("load", Load(1000), Bird(tmp_path, "x"), 2.0)
    (row,) = figures.rows()
    assert (row[5], row[6], row[7]) == (1.0, "bird", 2.0)


def test_the_table_compares_medians_and_says_what_was_missed(tmp_path):
    """A ratio over its target is a MISSED that nobody can overlook."""
    figures, load = Figures(), Load(10_000)
    ours, theirs = Slash32(tmp_path, "x"), Bird(tmp_path, "x")
    for value in (1.0, 3.0, 2.0):
        figures.note("load", load, ours, value)
        figures.note("load", load, theirs, 1.0)
        figures.note("member_lost", load, ours, 0.01)
        figures.note("member_lost", load, theirs, 1.0)
    text = table(figures)
    (missed,) = [line for line in text.splitlines() if "load" in line]
    assert "2.00" in missed
    assert "MISSED" in missed
    (reached,) = [line for line in text.splitlines() if "member_lost" in line]
    assert "reached" in reached
