"""Measuring around a port: what is counted, under which name, and that nothing else changes."""

from __future__ import annotations

import pytest

from cni.timings import KEYS_MAX, OTHER, Timings, timed


class Port:
    """One method of each sort."""

    def work(self, number: int, *, twice: bool = False) -> int:
        if number < 0:
            raise ValueError("negative")
        return number * (2 if twice else 1)

    async def wait(self, number: int) -> int:
        if number < 0:
            raise ValueError("negative")
        return number

    def unmeasured(self) -> str:
        return "as it was"


class Clock:
    """Each look is a quarter second later."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.25
        return self.now_s


async def test_methods_are_measured_and_answer_as_before():
    """Plain and coroutine functions alike."""
    timings = Timings()
    port = timed(Port(), {"work": "working", "wait": "waiting"}, timings, Clock())
    assert port.work(3, twice=True) == 6
    assert await port.wait(4) == 4
    assert port.unmeasured() == "as it was"
    read = timings.read()
    assert {key: (h.count, h.sum_s) for key, h in read.items()} == {
        ("working", "ok"): (1, 0.25),
        ("waiting", "ok"): (1, 0.25),
    }


async def test_a_failure_is_measured_and_raised():
    """Under its own result, so that quick failures do not make the verb look quick."""
    timings = Timings()
    port = timed(Port(), {"work": "working", "wait": "waiting"}, timings)
    with pytest.raises(ValueError, match="negative"):
        port.work(-1)
    with pytest.raises(ValueError, match="negative"):
        await port.wait(-1)
    assert set(timings.read()) == {("working", "error"), ("waiting", "error")}


def test_a_phase_that_does_not_exist_is_refused():
    """A method that was renamed must not silently stop being measured."""
    with pytest.raises(AttributeError):
        timed(Port(), {"gone": "phase"}, Timings())


def test_a_value_on_a_bound_belongs_to_its_bucket():
    """Prometheus' ``le`` is less than or equal."""
    timings = Timings((0.1, 0.2))
    for duration_s in (0.1, 0.15, 0.2, 0.3):
        timings.observe((), duration_s)
    assert timings.read()[()].counts == (1, 2, 1)


def test_keys_are_bounded():
    """Whatever becomes a key one day."""
    timings = Timings()
    for number in range(KEYS_MAX + 10):
        timings.observe((str(number),), 0.1)
    read = timings.read()
    assert len(read) == KEYS_MAX + 1
    assert read[OTHER,].count == 10


def test_histograms_of_two_processes_add_up():
    """Bucket by bucket."""
    one, two = Timings((0.1,)), Timings((0.1,))
    one.observe((), 0.05)
    two.observe((), 0.5)
    total = one.read()[()] + two.read()[()]
    assert (total.counts, total.sum_s) == ((1, 1), 0.55)
