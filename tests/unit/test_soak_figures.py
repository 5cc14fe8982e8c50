"""What counts as flat, shown on runs that are not; and the picture of a run."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from lab.soak.document import document
from lab.soak.figures import (
    SAME,
    Outcome,
    Sample,
    memory_slope,
    outcome_of,
    problems,
    restart_slope,
    slope,
)
from lab.soak.plot import CHARTS, svg

AT_REST = Sample(
    pairs=0, restarts=0, steady=True, agent_kib=55_000, speaker_kib=60_000, agent_fds=22,
    agent_threads=12, speaker_fds=15, namespaces=10, tmp_entries=0, run_files=11, state_kib=40,
    links=3, pod_routes=2, blocks=8, rules=24,
)  # fmt: skip


def run(**changes: object) -> Outcome:
    """Forty batches, then forty restarts; ``changes`` are functions of the sample's number."""
    samples = []
    for number in range(80):
        sample = replace(
            AT_REST,
            pairs=100 * (number + 1),
            restarts=max(0, number - 39),
            steady=number < 40,
        )
        samples.append(
            replace(sample, **{name: change(number) for name, change in changes.items()})  # type: ignore[operator]
        )
    return Outcome(samples, {"ADD ok": 8000}, [], 60.0)


def test_a_flat_run_has_no_problem():
    """Noise of a few KiB included, and another pool thread."""
    assert problems(run()) == []
    noisy = run(agent_kib=lambda n: 55_000 + 40 * (n % 3), agent_threads=lambda n: 10 + n % 5)
    assert problems(noisy) == []


@pytest.mark.parametrize("name", SAME)
def test_one_left_behind_once_is_a_problem(name: str):
    """Even if it goes again."""
    leaky = run(**{name: lambda n: getattr(AT_REST, name) + (n == 50)})
    assert [each.partition(":")[0] for each in problems(leaky)] == [name]


@pytest.mark.parametrize(("name", "value"), [("run_files", 14), ("state_kib", 10_000)])
def test_files_that_pile_up_are_a_problem(name: str, value: int):
    """A record for each pod that was, or a journal without an end."""
    piling = run(**{name: lambda n: value if n > 70 else getattr(AT_REST, name)})
    assert [each.partition(":")[0] for each in problems(piling)] == [name]


def test_memory_that_grows_is_a_problem():
    """15 KiB a hundred pairs; 6 KiB a restart in what outlives the agent."""
    growing = run(agent_kib=lambda n: 55_000 + 15 * n)
    assert memory_slope(growing.samples) == pytest.approx(150)
    assert any("grows by 150" in each for each in problems(growing))
    speaker = run(speaker_kib=lambda n: 60_000 + 6 * max(0, n - 39))
    assert restart_slope(speaker.samples) == pytest.approx(6)
    assert any("speaker grows by 6" in each for each in problems(speaker))


def test_what_a_process_takes_in_the_beginning_is_no_growth():
    """The first fifth is not counted."""
    assert problems(run(agent_kib=lambda n: 50_000 + 1000 * min(n, 5))) == []


def test_descriptors_threads_and_blocks_are_bounded():
    """Each in its own way."""
    assert any("agent_fds" in p for p in problems(run(agent_fds=lambda n: 22 + n // 20)))
    assert any("speaker_fds" in p for p in problems(run(speaker_fds=lambda n: 15 + n // 20)))
    assert any("agent_threads" in p for p in problems(run(agent_threads=lambda n: n)))
    assert any("blocks" in p for p in problems(run(blocks=lambda n: 8 + n // 70)))


def test_what_workers_found_is_a_problem_and_so_is_a_run_of_nothing():
    """A run that looked twice has shown nothing."""
    found = run()
    found.findings.append("ADD answered with code 100")
    assert problems(found) == ["ADD answered with code 100"]
    assert problems(Outcome(run().samples[:2])) == ["only 2 samples"]


def test_a_run_is_kept_and_read_again():
    """So that it can be drawn anew."""
    assert outcome_of(run().as_json()) == run()


def test_the_line_through_points():
    """Least squares; nothing of one point, nor of many in one place."""
    assert slope([(0, 1), (1, 3), (2, 5)]) == 2
    assert slope([(0, 1)]) == 0
    assert slope([(1, 1), (1, 9)]) == 0


def test_the_picture_has_a_chart_for_each_figure():
    """Well-formed, the ground shaded where agents were killed, every line within its frame."""
    root = ElementTree.fromstring(svg(run().samples, "a <title>"))  # noqa: S314 - our own text
    space = "{http://www.w3.org/2000/svg}"
    lines = list(root.iter(f"{space}polyline"))
    assert len(lines) == len(CHARTS)
    assert sum(each.get("class") == "killed" for each in root.iter(f"{space}rect")) == len(CHARTS)
    frames = [each for each in root.iter(f"{space}rect") if each.get("class") == "frame"]
    for line, frame in zip(lines, frames, strict=True):
        top, height = float(frame.get("y", 0)), float(frame.get("height", 0))
        points = [pair.split(",") for pair in line.get("points", "").split()]
        assert len(points) == 80
        assert all(top - 0.1 <= float(y) <= top + height + 0.1 for _, y in points)


def test_the_page_says_what_was_found():
    """And that it is not flat, when it is not."""
    assert "Everything is flat" in document(run(), "soak.svg")
    assert "Not flat: links" in document(run(links=lambda n: 3 + n), "soak.svg")
