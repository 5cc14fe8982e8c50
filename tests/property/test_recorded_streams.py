"""What real daemons said in one session (tests/golden/streams, made by lab.interop.record), read by
stock ExaBGP and by ours: the same routes, the same end of the session, and the routes they had."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.paths import Path as BgpPath
from bgp.paths import Update
from lab.interop.record import LATER, TABLE
from tests.fakes.exabgp_sessions import Session, certain, hot_path
from tests.property.test_exabgp_hotpath import said

PEER = 64512
RECORDED = sorted((Path(__file__).parent.parent / "golden" / "streams").glob("*.hex"))
AT_THE_END = {origin.prefix for origin in (*TABLE, LATER[2])} - {TABLE[0].prefix, TABLE[-2].prefix}


def messages(recorded: Path) -> list[bytes]:
    return [bytes.fromhex(line) for line in recorded.read_text().split()]


def read(stream: bytes, cuts: list[int]) -> tuple[Session, str]:
    session = Session(peer_asn=PEER)
    return session, session.feed(stream, cuts)


def table_of(session: Session) -> dict[object, BgpPath | None]:
    """None: it was announced and cannot be used, as OpenBGPD's IPv6 routes over IPv4, via ::1."""
    table: dict[object, BgpPath | None] = {}
    for event in session.events():
        if isinstance(event, Update):
            for prefix in event.withdrawn:
                table.pop(prefix, None)
            table.update({path.prefix: path for path in event.announced})
            table.update({each.prefix: None for each in event.rejected})
    return table


def test_there_is_one_of_each_daemon():
    """Else the others below would pass on nothing."""
    names = [recorded.name.split("-")[0] for recorded in RECORDED]
    assert names == ["bird", "frr", "gobgp", "openbgpd"]


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.stem)
@settings(max_examples=15)
@given(st.lists(st.integers(0, 6000), max_size=8), st.booleans())
def test_a_recorded_session_is_read_as_stock_reads_it(
    recorded: Path, cuts: list[int], is_certain: bool
):
    """However TCP cuts it, to the NOTIFICATION at its end."""
    stream = b"".join(messages(recorded))
    where = sorted(min(cut, len(stream)) for cut in cuts)
    stock, stock_end = read(stream, where)
    with hot_path(), certain() if is_certain else nullcontext():
        tuned, tuned_end = read(stream, where)
    assert tuned_end == stock_end
    assert said(tuned) == said(stock)
    assert tuned.protocol.peer.stats == stock.protocol.peer.stats
    # And neither has misread it in the same way. Of ours several UPDATEs may be one event, in which
    # a route that was refused and then withdrawn is both.
    assert set(table_of(stock)) == AT_THE_END
    assert {p for p, path in table_of(tuned).items() if path is not None} == {
        p for p, path in table_of(stock).items() if path is not None
    }
    assert stock_end.startswith("Notification 6/2")
    assert "rack 7 is moved" in stock_end


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.stem)
def test_what_daemons_send_is_mostly_certain(recorded: Path):
    """Else each node's first route costs what it did: not one of these has to be decoded."""
    updates = [each for each in messages(recorded) if each[18] == 2]
    with hot_path(), certain():
        tuned, _ = read(b"".join(updates), [])
    decoded = [line for line in tuned.lines if '"announce"' in line]
    assert not decoded, decoded


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_table_that_is_said_again_is_known_by_then(recorded: Path):
    """What a peer sends twice needs no decoding the second time: the fast way is really taken."""
    updates = [each for each in messages(recorded) if each[18] == 2]
    with hot_path():
        tuned, end = read(b"".join(updates * 2), [])
    assert end in ("LostConnection", "open")
    assert any('"slash32":"updates"' in line for line in tuned.lines)
    stock, _ = read(b"".join(updates * 2), [])
    assert said(tuned) == said(stock)
    assert len(tuned.lines) < len(stock.lines)
