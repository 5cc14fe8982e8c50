"""The C launcher under gcc's sanitizers: the cases that are kept; controls with planted bugs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fuzz import corpus, launcher_target
from tests.fuzz.launcher_target import Case, Driver, case_of, check
from tests.fuzz.target import Broken

BLOCKS_MIN = 165
"""Of the 185 that gcc makes of it; the rest are those of the instrumentation's own."""
(TARGET,) = launcher_target.TARGETS
PLANTED = {
    "an environment without a limit": (
        "text(*each).len + 2 > end - o ? end + 1 : put(o, text(*each)) + 1",
        "put(o, text(*each)) + 1",
        "AddressSanitizer|not its own",
    ),
    "one octet too many is read": (
        "end + 1 - o)) < 0",
        "end + 2 - o)) < 0",
        "not its own|AddressSanitizer",
    ),
    "an answer that fills the buffer": (
        "reply + len, sizeof reply - len)",
        "reply + len, sizeof reply)",
        "not its own",
    ),
    "a long socket path": (
        "socket_path.len <= PATH_MAX &&",
        "socket_path.len &&",
        "without an end|too long",
    ),
    "a quote in the socket's path": (
        "good &= socket_path.at[i] >= ' ' &&",
        "good &= socket_path.at[i] >= 1 &&",
        "not JSON",
    ),
    "no deadline": ("SYS(SETITIMER, 0, timer);", "(void)timer;", "without a deadline"),
    "an alarm that cuts the answer": (
        "for (SYS(SETITIMER, 0, no_alarm); len",
        "for (no_alarm[0] = 0; len",
        "cut the answer",
    ),
    "half an answer": ("&& !object(reply + 1, reply + len)", "&& 0", "not JSON|nothing is said"),
    "a record that is not on disk": (
        "n = !SYS(FSYNC, file) && !SYS(RENAMEAT",
        "n = !SYS(RENAMEAT",
        "not on disk",
    ),
    "an ADD on disk": ("&& is_kept) is_kept = 0, agent", ") is_kept = 0, agent", "recorded"),
    "a device is opened": ("(info[ST_MODE] >> 12) == 010)", "1)", "no namespace"),
    "an unfinished string": (
        "for (word.at = ++at; at < end && *at",
        "for (word.at = ++at; *at",
        "AddressSanitizer|does not end|no JSON|answer",
    ),
}


@pytest.fixture(autouse=True, scope="module")
def _ended() -> Iterator[None]:
    yield
    launcher_target.forget()


def inputs() -> Iterator[bytes]:
    """Seeds and corpus."""
    yield from TARGET.seeds()
    yield from corpus.read(TARGET.name)


def replay(driver: Driver) -> None:
    """Every input, looked at as the campaign does."""
    for data in inputs():
        case = case_of(data)
        check(case, driver.run(case))


def test_it_can_be_compiled_here():
    """gcc and its sanitizers come with lab/setup.sh; without them the rest would prove nothing."""
    assert launcher_target.missing() is None


def test_the_cases_reach_nearly_all_of_it():
    """Every input, and of the program all but what no system call can bring about."""
    blocks: set[int] = set()
    for data in inputs():
        blocks |= TARGET.reached(data)
    assert len(blocks) >= BLOCKS_MIN


def test_an_answer_that_an_agent_could_not_finish_is_none():
    """Found by this: what was read before a read failed went out as a whole answer."""
    # F_GETFD, two reads, socket, connect, sendmsg; a read of some octets, and one that fails.
    answer, script = b'\0{"cniVersion": "1.1.0"}', bytes(6) + b"\xa0\xfc"
    cut = Case((b"CNI_COMMAND=ADD",), b"{}", answer, script)
    driver = Driver()
    try:
        outcome = driver.run(cut)
        assert not check(cut, outcome)
        assert b'"code": 5' in outcome.stdout
    finally:
        driver.close()


def test_its_time_may_be_over_before_it_dials():
    """A DEL that is late between finding the path and dialling is recorded beside that path."""
    late = case_of(b"\x01\x00$\x00\xc3\x00\x00\x00\x00\x00\x00\x07\x07\r")
    assert late.alarm_at
    driver = Driver()
    try:
        outcomes = [
            driver.run(replace(late, alarm_at=at))
            for at in range(late.alarm_at - 20, late.alarm_at + 20)
        ]
        recorded = [each for each in outcomes if check(late, each)]
        assert any(each.record and not each.path for each in recorded)
    finally:
        driver.close()


def test_a_del_may_be_recorded_twice():
    """The agent starts while it is recorded, is asked after all, and does not answer in time."""
    twice = case_of(b"\1" + bytes(9) + b"\xbe" * 11 + bytes(4) + b")" + bytes(8) + b"\xf5\xff)")
    driver = Driver()
    try:
        outcome = driver.run(twice)
        assert check(twice, outcome)
        assert (outcome.sent, outcome.record) == (twice.frame, twice.frame)
    finally:
        driver.close()


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, tmp_path: Path):
    """The same cases, on a launcher with a mistake in it."""
    right, wrong, found = PLANTED[name]
    source = launcher_target.SOURCE.read_text()
    assert source.count(right) == 1
    changed = tmp_path / "launcher.c"
    changed.write_text(source.replace(right, wrong))
    driver = Driver(changed)
    try:
        with pytest.raises(Broken, match=found):
            replay(driver)
    finally:
        driver.close()
