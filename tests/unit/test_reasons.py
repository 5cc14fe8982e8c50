"""Why a session is down: words for people, from ExaBGP's."""

from __future__ import annotations

import pytest

from bgp.reasons import is_silence, is_telling, notification_text, reason_now, session_reason


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
        (6, 2, "invalid Shutdown Communication", "6/2 cease: administrative shutdown"),
        (77, 1, "", "77/1 unknown error"),
        (2, 2, "\ufffd\x00Y", "2/2 OPEN refused: the peer's AS number is not the configured one"),
    ],
)
def test_a_notification_in_words(code: int, subcode: int, message: str, text: str) -> None:
    """RFC 4271, 4486, 9003; numbers stay in front, for those who look them up."""
    assert notification_text(code, subcode, message) == text


@pytest.mark.parametrize(
    ("code", "subcode", "octets", "text"),
    [
        (2, 1, "0004", "unsupported version: it speaks version 4"),
        (2, 2, "0000FC59", "the peer's AS number is not the configured one: AS 64601"),
        (2, 2, "FC59", "the peer's AS number is not the configured one: AS 64601"),
        (2, 2, "", "the peer's AS number is not the configured one"),
        (2, 2, "00FC59", "the peer's AS number is not the configured one: data 0x00fc59"),
        (2, 3, "0A000001", "bad BGP identifier (two routers with one router id?): 10.0.0.1"),
        (2, 6, "0001", "unacceptable hold time: 1 s"),
        (6, 1, "00010100000064", "maximum number of prefixes reached: IPv4, at most 100"),
        (6, 1, "00", "maximum number of prefixes reached: data 0x00"),
        (6, 5, "6E6F20757365", "connection rejected: no use"),
        (6, 5, "6E6F00757365", "connection rejected: data 0x6e6f00757365"),
        (3, 1, "00" * 20, f"malformed attribute list: data 0x{'00' * 16} and 4 more"),
    ],
)
def test_what_a_notification_carries_is_a_number_in_words_or_hex(
    code: int, subcode: int, octets: str, text: str
) -> None:
    """Never the characters that its octets happen to be."""
    message = bytes.fromhex(octets).decode("utf-8", "replace")
    assert notification_text(code, subcode, message, bytes.fromhex(octets)).endswith(f": {text}")


def test_the_end_of_a_session_says_whose_word_it_was() -> None:
    """What the peer said in full is better than its numbers, and no answer to what we said."""
    said = "6/2 cease: administrative shutdown: noon"
    assert session_reason("notification received (6,2)", said=said) == f"the peer said {said}"
    assert (
        session_reason("notification received (6,3)")
        == "the peer said 6/3 cease: peer de-configured"
    )
    assert session_reason("notification sent (4,0)", said=said) == "we said 4/0 hold timer expired"
    assert session_reason("closing connection", said=said) == "the connection broke"
    assert is_telling("notification sent (2,2)")
    assert not is_telling("closing connection")


def test_what_holds_now_stands_before_what_was() -> None:
    """Silence in words, an errno as it is; a peer that answers leaves its own words alone."""
    assert reason_now("", "the peer said 2/2") == "the peer said 2/2"
    silent = reason_now("no answer", "the peer said 6/6")
    assert silent.startswith("no answer to our SYN")
    assert silent.endswith("; before that: the peer said 6/6")
    assert is_silence(silent)
    assert is_silence(reason_now("not acknowledged", ""))
    assert is_silence(reason_now("no word", ""))
    refused = reason_now("Connection refused", "")
    assert refused == "our attempts to connect fail: Connection refused"
    assert not is_silence(refused)
