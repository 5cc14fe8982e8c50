"""Threads that remove links: made on demand, kept, bounded, and ended after their work."""

from __future__ import annotations

import logging
import threading

import pytest

from cni.removers import Removers

DEADLINE_S = 10.0


def test_work_that_sleeps_overlaps_up_to_the_limit_and_the_rest_waits_its_turn():
    """Two threads for three: the third begins when one of the others has ended."""
    removers = Removers(2)
    both, go_on = threading.Barrier(3), threading.Event()
    done: list[str] = []
    names: set[str] = set()

    def sleeps() -> None:
        names.add(threading.current_thread().name)
        both.wait(DEADLINE_S)
        go_on.wait(DEADLINE_S)
        done.append("slept")

    removers.submit(sleeps)
    removers.submit(sleeps)
    removers.submit(lambda: done.append("third"))
    both.wait(DEADLINE_S)
    assert done == []
    go_on.set()
    removers.close()
    assert sorted(done) == ["slept", "slept", "third"]
    assert len(names) == 2


def test_a_thread_that_has_nothing_to_do_is_used_again():
    """A DEL every minute needs one thread, not one more each time."""
    removers = Removers(64)
    names: set[str] = set()
    for _ in range(20):
        ended = threading.Event()

        def work(ended: threading.Event = ended) -> None:
            names.add(threading.current_thread().name)
            ended.set()

        removers.submit(work)
        assert ended.wait(DEADLINE_S)
    # It says that it is idle a moment after its work has ended, so that a second may be made.
    assert len(names) < 10
    removers.close()
    removers.close()


def test_work_that_raises_is_logged_and_its_thread_goes_on(caplog: pytest.LogCaptureFixture):
    """Or one bug would take a thread with every DEL."""
    removers = Removers(1)
    ended = threading.Event()

    def fails() -> None:
        raise RuntimeError("broken")

    with caplog.at_level(logging.ERROR):
        removers.submit(fails)
        removers.submit(ended.set)
        assert ended.wait(DEADLINE_S)
    assert "removal_raised" in caplog.text
    removers.close()
