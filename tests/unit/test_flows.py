"""What a flow lost, from what ping printed."""

from __future__ import annotations

import pytest

from lab.flows import parse
from lab.plan import LabFailure


def reply(at_s: float, seq: int) -> str:
    return f"[{at_s:.6f}] 64 bytes from 10.244.1.1: icmp_seq={seq} ttl=62 time=0.080 ms\n"


def summary(sent: int, received: int) -> str:
    return f"{sent} packets transmitted, {received} received, 0% packet loss, time 40ms\n"


def test_nothing_is_lost_when_every_reply_came():
    """The last one may be under way when ping is ended."""
    lines = [reply(100 + seq / 100, seq) for seq in range(1, 5)]
    for sent in (4, 5):
        loss = parse("a", [*lines, summary(sent, 4)])
        assert (loss.sent, loss.lost) == (sent, 0)
        assert loss.gap_s == pytest.approx(0.01)


def test_a_hole_has_a_size_and_a_length():
    """Three packets, and the time between the replies around them."""
    lines = [reply(100.0, 1), reply(100.01, 2), reply(100.05, 6), summary(6, 3)]
    loss = parse("a", lines)
    assert loss.lost == 3
    assert loss.gap_s == pytest.approx(0.04)


def test_a_flow_that_never_came_back_is_lost_until_its_end():
    """The end of the flow ends the gap."""
    loss = parse("a", [reply(100.0, 1), summary(51, 1)], ended_at_s=100.5)
    assert loss.lost == 50
    assert loss.gap_s == pytest.approx(0.5)


def test_no_reply_at_all_is_all_lost():
    """Not an error: that is what a broken path looks like."""
    assert parse("a", [summary(7, 0)]).lost == 7


def test_a_ping_that_said_nothing_is_an_error():
    """No such address, no ping installed: never taken for no loss."""
    with pytest.raises(LabFailure, match="ping said nothing"):
        parse("a", ["ping: connect: Network is unreachable\n"])
