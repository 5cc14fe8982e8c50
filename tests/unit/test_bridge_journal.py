"""What the bridge tells a new agent: each present session's routes, whole, or nothing of it."""

from __future__ import annotations

from bgp.bridge import Journal


def opened(peer: str) -> bytes:
    return (
        b'{ "exabgp": "5.0.0", "type": "open", "neighbor": { "address": { "peer": "%s" } } }\n'
        % (peer.encode())
    )


def said(peer: str, raw: str = "AAEC") -> bytes:
    return b'{"slash32":"updates","peer":"%s","raw":"%s"}\n' % (peer.encode(), raw.encode())


def parsed(peer: str, kind: str = "update", more: str = "") -> bytes:
    text = f'{{ "exabgp": "5.0.0", "type": "{kind}", "peer": "{peer}", {more} }}\n'
    return text.encode()


def answer(journal: Journal) -> list[bytes]:
    return b"".join(journal.answer()).splitlines(keepends=True)


def test_what_was_said_since_the_open_is_told_again_in_order():
    """Raw and parsed lines alike, and who is whole at the end."""
    journal = Journal()
    lines = [opened("192.0.2.1"), parsed("192.0.2.1"), said("192.0.2.1")]
    journal.take(b"".join(lines))
    assert answer(journal) == [*lines, b"whole 192.0.2.1\n", b"done\n"]
    assert answer(journal)[:3] == lines, "it can be asked twice"


def test_lines_may_come_in_any_pieces():
    """A pipe cuts where it likes; half a line is not told."""
    journal = Journal()
    stream = opened("192.0.2.1") + said("192.0.2.1") + said("192.0.2.1", "BBBB")
    for at in range(len(stream) - 3):
        journal.take(stream[at : at + 1])
    assert answer(journal) == [
        opened("192.0.2.1"),
        said("192.0.2.1"),
        b"whole 192.0.2.1\n",
        b"done\n",
    ]


def test_a_session_that_ends_or_begins_anew_takes_its_lines():
    """Routes of a session that is gone are nobody's."""
    journal = Journal()
    for peer in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
        journal.take(opened(peer) + said(peer))
    journal.take(parsed("192.0.2.1", "state", '"state": "down"'))
    journal.take(opened("192.0.2.2"))
    journal.take(parsed("192.0.2.3", "state", '"state": "up"'))
    assert answer(journal) == [
        opened("192.0.2.3"),
        said("192.0.2.3"),
        opened("192.0.2.2"),
        b"whole 192.0.2.3 192.0.2.2\n",
        b"done\n",
    ]


def test_a_bridge_that_came_in_mid_session_is_not_whole():
    """It has not heard the beginning; half a table must not pass for all of it."""
    journal = Journal()
    journal.take(said("192.0.2.1") + parsed("192.0.2.1"))
    assert answer(journal) == [b"whole\n", b"done\n"]


def test_beyond_the_limit_the_peer_that_said_most_is_forgotten_until_it_comes_anew():
    """The others stay whole; and it is not taken up again in the middle."""
    journal = Journal(limit_bytes=2000)
    journal.take(opened("192.0.2.1") + said("192.0.2.1"))
    journal.take(opened("192.0.2.2") + said("192.0.2.2", "A" * 1800) + said("192.0.2.2"))
    assert answer(journal)[-2] == b"whole 192.0.2.1\n"
    journal.take(opened("192.0.2.2") + said("192.0.2.2"))
    assert answer(journal)[-2] == b"whole 192.0.2.1 192.0.2.2\n"


def test_other_lines_are_not_kept():
    """Answers, refreshes and the rest."""
    journal = Journal()
    journal.take(b"done\n" + b'{"peer": "x"}\n' + parsed("192.0.2.1", "refresh"))
    assert answer(journal) == [b"whole\n", b"done\n"]
