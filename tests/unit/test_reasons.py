"""Why a session is down: words for people, from ExaBGP's."""

from __future__ import annotations

import pytest

from bgp.reasons import is_telling, notification_text, session_reason


@pytest.mark.parametrize(
    ("code", "subcode", "message", "text"),
    [
        (4, 0, "", "4/0 hold timer expired"),
        (6, 1, "", "6/1 cease: maximum number of prefixes reached"),
        (
            6,
            2,
            'Shutdown Communication: "rack "seven""',
            '6/2 cease: administrative shutdown: rack "seven"',
        ),
        (6, 99, "", "6/99 cease"),
        (77, 1, "", "77/1 unknown error"),
        (2, 2, "\ufffd\x00Y", "2/2 OPEN refused: the peer's AS number is not the configured one"),
        (3, 1, "0102", "3/1 UPDATE refused: malformed attribute list: 0102"),
    ],
)
def test_a_notification_in_words(code: int, subcode: int, message: str, text: str) -> None:
    """RFC 4271, 4486, 9003; numbers stay in front, for those who look them up."""
    assert notification_text(code, subcode, message) == text


def test_the_end_of_a_session_says_whose_word_it_was() -> None:
    """What the peer said in full is better than its numbers, and no answer to what we said."""
    said = "6/2 cease: administrative shutdown: noon"
    assert session_reason("notification received (6,2)", said=said) == f"the peer said {said}"
    assert (
        session_reason("notification received (6,3)")
        == "the peer said 6/3 cease: peer de-configured"
    )
    assert session_reason("notification sent (4,0)", said=said) == "we said 4/0 hold timer expired"
    assert session_reason("closing connection", said=said) == "closing connection"
    assert is_telling("notification sent (2,2)")
    assert not is_telling("closing connection")
