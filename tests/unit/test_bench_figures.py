"""lab/bench/figures.py: percentiles, ratios, rows."""

import json

import pytest

from lab.bench.figures import (
    Row,
    Series,
    growth_rows,
    parallel_rows,
    percentile,
    serial_rows,
    table,
)


@pytest.mark.parametrize(
    ("samples", "percent", "expected"),
    [
        ([3.0], 95, 3.0),
        ([4.0, 1.0, 3.0, 2.0], 0, 1.0),
        ([4.0, 1.0, 3.0, 2.0], 50, 2.5),
        ([4.0, 1.0, 3.0, 2.0], 100, 4.0),
        ([float(n) for n in range(101)], 95, 95.0),
    ],
)
def test_percentiles_interpolate(samples: list[float], percent: float, expected: float) -> None:
    """Between the two nearest samples, in any order of them."""
    assert percentile(samples, percent) == pytest.approx(expected)


def test_no_samples_are_no_figure() -> None:
    """A cell that measured nothing must not become a zero."""
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


def test_the_agents_cpu_is_ours() -> None:
    """CPU of a call is the executed file's plus the agent's."""
    ours = Series(wall=[1.0, 3.0], cpu=[0.1, 0.3], agent_cpu=[1.0, 2.0])
    peer = Series(wall=[10.0, 10.0], cpu=[8.0, 8.0])
    floor = Series(wall=[0.5, 0.5], cpu=[0.4, 0.4])

    rows = {row.bench: row for row in serial_rows("add", 0, ours=ours, peer=peer, floor=floor)}

    assert rows["add_wall_p50"].ratio == pytest.approx(0.2)
    assert rows["add_cpu_mean"].ours == pytest.approx(1.7)
    assert rows["add_cpu_mean"].ratio == pytest.approx(1.7 / 8)
    assert rows["add_agent_cpu_mean"].peer is None
    assert rows["add_wall_p50_floor"].ratio == pytest.approx(4.0)


def test_a_row_has_the_fields_of_the_file() -> None:
    """One JSON object with exactly these keys; null where nothing is compared."""
    row = Row("agent_rss", 1000, 1, 40.25, None, "MiB")

    assert json.loads(row.as_json()) == {
        "bench": "agent_rss",
        "pods": 1000,
        "parallel": 1,
        "ours": 40.25,
        "peer": None,
        "unit": "MiB",
        "ratio": None,
    }


@pytest.mark.parametrize(("ours", "verdict"), [(0.17, "reached"), (0.19, "MISSED")])
def test_the_table_says_whether_a_target_is_reached(ours: float, verdict: str) -> None:
    """Only where there is one."""
    text = table([Row("add_wall_p50", 0, 1, ours, 1.0, "ms"), Row("x", 0, 1, 1.0, 1.0, "ms")])

    assert text.splitlines()[1].endswith(verdict)
    assert "<= 0.18" in text.splitlines()[1]
    assert "reached" not in text.splitlines()[2]
    assert "MISSED" not in text.splitlines()[2]


def test_parallel_rows_are_named_apart_from_serial_ones() -> None:
    """Their wall is that of all calls together."""
    ours, peer = Series([29.0], [0.2], [0.4]), Series([252.0], [9.0])

    rows = parallel_rows("add", 0, 50, ours=ours, peer=peer)

    assert [(row.bench, row.parallel) for row in rows] == [
        ("add_all_wall_p50", 50),
        ("add_all_cpu_mean", 50),
    ]
    assert rows[0].is_reached


def test_growth_is_compared_with_the_kernels() -> None:
    """From the fewest pods to the most."""
    rows = [
        Row("add_wall_p50_floor", pods, 1, ours, floor, "ms")
        for pods, ours, floor in ((0, 1.0, 0.5), (100, 1.1, 0.5), (1000, 1.3, 0.7))
    ]

    (growth,) = growth_rows(rows)

    assert growth.pods == 1000
    assert growth.ours == pytest.approx(0.3)
    assert growth.peer == pytest.approx(0.2)
    assert growth_rows(rows[:1]) == []
