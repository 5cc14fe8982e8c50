"""Signals and parallel work in the lab's commands: where they are noticed, what they leave."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from lab import interrupts
from lab.plan import LabFailure
from lab.waiting import in_parallel, wait_until


def _signal_ourselves(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_raised_at_the_next_check_and_only_once(number):
    """Between two checks nothing is interrupted, and cleaning up is not either."""
    with interrupts.interruptible():
        interrupts.check()
        _signal_ourselves(number)
        with pytest.raises(interrupts.Interrupted) as raised:
            interrupts.check()
        interrupts.check()
    assert raised.value.exit_code == 128 + number
    assert number.name in str(raised.value)


def test_a_second_signal_asks_for_patience(capsys):
    """Somebody who presses Ctrl-C again learns that it was heard."""
    with interrupts.interruptible():
        _signal_ourselves()
        _signal_ourselves()
        with pytest.raises(interrupts.Interrupted):
            interrupts.check()
    assert capsys.readouterr().err == "slash32: cleaning up, please wait\n"


def test_cleaning_up_that_has_begun_is_not_interrupted(capsys):
    """A first signal then is answered like a second."""
    with interrupts.interruptible():
        interrupts.shield()
        _signal_ourselves()
        interrupts.check()
    assert capsys.readouterr().err == "slash32: cleaning up, please wait\n"
    with interrupts.interruptible():
        _signal_ourselves()
        with pytest.raises(interrupts.Interrupted):
            interrupts.check()


def test_handlers_are_as_before_once_the_command_is_over():
    """Also when it failed; and what came and was not raised is forgotten."""
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def fail() -> None:
        with interrupts.interruptible():
            _signal_ourselves()
            raise LabFailure("x")

    with pytest.raises(LabFailure):
        fail()
    after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert after == before
    interrupts.check()


def test_waiting_ends_at_a_signal():
    """A condition that never comes does not hold up Ctrl-C."""
    with interrupts.interruptible():
        _signal_ourselves()
        with pytest.raises(interrupts.Interrupted):
            wait_until(lambda: ["never"], what="it", deadline_s=60)


def test_a_condition_that_does_not_come_is_named_with_what_is_missing():
    """The first three, and how many more."""
    with pytest.raises(LabFailure, match=r"routes: not within 0\.02 s: a; b; c and 1 more"):
        wait_until(lambda: ["a", "b", "c", "d"], what="routes", deadline_s=0.02, poll_s=0.001)


def test_parallel_work_answers_in_the_order_of_its_items():
    """However long each takes, and with more items than workers."""
    gates = [threading.Event() for _ in range(2)]

    def work(item: int) -> int:
        if item < 2:
            # 0 ends only after 1 has.
            gates[item].set()
            assert gates[1].wait(10)
        return item * 10

    assert in_parallel(work, range(7), at_once=2) == [0, 10, 20, 30, 40, 50, 60]


def test_the_first_failure_stops_what_has_not_begun_and_hurries_what_has():
    """A worker that waits for ever is woken by on_failure; the rest is never called."""
    begun: list[int] = []
    wake = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            assert wake.wait(10)
        else:
            raise LabFailure(f"item {item}")

    with pytest.raises(LabFailure, match="item 1"):
        in_parallel(work, range(100), at_once=2, on_failure=wake.set)
    assert wake.is_set()
    assert len(begun) < 100


def test_a_signal_ends_parallel_work_from_the_main_thread_alone():
    """A worker's own check does nothing; the main thread's wakes it."""
    wake = threading.Event()

    def work(item: int) -> None:
        _signal_ourselves()
        interrupts.check()
        assert wake.wait(10)

    with interrupts.interruptible(), pytest.raises(interrupts.Interrupted):
        in_parallel(work, [0], at_once=1, on_failure=wake.set)
    assert wake.is_set()
