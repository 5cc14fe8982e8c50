"""The fault matrix's own judgement: a zero counts only beside a loss that was seen."""

from __future__ import annotations

import pytest

from lab.chaos.__main__ import ROWS, chosen, run_row
from lab.chaos.hammer import Held, History, doubled
from lab.chaos.rows import Result, Row, Skipped, Stage, Verdict, judge_controls, with_controls
from lab.chaos.table import BEGIN, END, document, inserted, line
from lab.chaos.watch import IN_FLIGHT, Loss, loss_of, route_changes, whole


def nothing(_world: object, _verdict: Verdict) -> None:
    """An experiment that does nothing."""


def row(name: str, control: str | None = None) -> Row:
    return Row(name, "something", "0 lost", Stage.NO_LAB, nothing, control=control)


def result(name: str, *problems: str, control: str | None = None) -> Result:
    return Result(row(name, control), ("0 of 9 lost",), problems, 1.0)


def test_a_zero_beside_a_control_that_showed_loss_has_passed() -> None:
    """The plain case."""
    judged = judge_controls([result("R0"), result("R1", control="R0")])
    assert all(each.passed for each in judged)


@pytest.mark.parametrize("before", [[], [result("R0", "lost nothing")]])
def test_a_zero_without_its_control_has_not_passed(before: list[Result]) -> None:
    """Not run, or run without loss: then probes that all arrive prove nothing."""
    judged = judge_controls([*before, result("R1", control="R0")])
    assert not judged[-1].passed
    assert "its control R0" in judged[-1].problems[0]


def test_a_row_brings_its_control_along() -> None:
    """Asked for alone, it would not count."""
    everything = [row("R0"), row("R1", "R0"), row("K1")]
    assert [r.id for r in with_controls([everything[1]], everything)] == ["R0", "R1"]


def test_every_control_is_there_and_every_id_is_its_own() -> None:
    """The matrix as it stands."""
    ids = [r.id for r in ROWS]
    assert len(set(ids)) == len(ids)
    assert {r.control for r in ROWS if r.control} <= set(ids)
    assert {r.id for r in chosen("", quick=True)} < set(ids)


def test_rows_are_chosen_by_name_and_by_letter() -> None:
    """A name that is not there is an error, not an empty run."""
    assert [r.id for r in chosen("K1", quick=False)] == ["K1"]
    # Some controls are rows of another letter: L5's is R0.
    others = {r.id for r in chosen("L", quick=False) if r.id[0] != "L"}
    assert "R0" in others
    assert others <= {r.control for r in ROWS if r.id[0] == "L"}
    assert "O11" not in {r.id for r in chosen("O", quick=False) + chosen("", quick=False)}
    assert [r.id for r in chosen("O11", quick=False)] == ["O11"]
    with pytest.raises(KeyError, match="R99"):
        chosen("R99", quick=False)


def ping(answered: list[int], sent: int) -> bytes:
    lines = [
        f"[{1000 + n * 0.02:.6f}] 64 bytes from 10.0.0.1: icmp_seq={n} ttl=61 time=0.1 ms"
        for n in answered
    ]
    return "\n".join([*lines, f"{sent} packets transmitted, {len(answered)} received"]).encode()


@pytest.mark.parametrize(
    ("answered", "sent", "lost", "gap_s"),
    [
        ([1, 2, 3, 4], 4, 0, 0.0),
        ([1, 2, 6, 7], 7, 3, 0.08),
        ([3, 4], 4, 2, 0.06),
        ([1, 2], 2 + IN_FLIGHT, 0, 0.0),
        ([1, 2], 3 + IN_FLIGHT, 1 + IN_FLIGHT, 9.96),
        ([], 100, 100, 10.0),
        ([2, 1, 3, 3], 3, 0, 0.0),
    ],
)
def test_loss_is_counted_by_number_and_a_gap_by_the_clock(
    answered: list[int], sent: int, lost: int, gap_s: float
) -> None:
    """Gaps, a lost beginning, a lost end; answers late or twice are no loss."""
    found = loss_of("x", ping(answered, sent), begun_s=1000.0, ended_s=1010.0)
    assert (found.sent, found.lost) == (sent, lost)
    assert found.longest_gap_s == pytest.approx(gap_s)


def test_sequence_numbers_begin_anew_after_65535() -> None:
    """Ten minutes of probes are more than that; what is lost across the turn is counted too."""
    answered = [n for n in range(1, 140_000) if not 65_530 <= n < 65_550]
    lines = [
        f"[{1000 + n * 0.01:.6f}] 64 bytes from 10.0.0.1: icmp_seq={n % 65_536} ttl=61 time=0.1 ms"
        for n in answered
    ]
    output = "\n".join([*lines, "139999 packets transmitted, 0 received"]).encode()
    found = loss_of("x", output, begun_s=1000.0, ended_s=2400.0)
    assert (found.sent, found.lost) == (139_999, 20)
    assert found.longest_gap_s == pytest.approx(0.21)


def test_two_pings_of_a_flow_are_one_loss() -> None:
    """Probes of both count; the longest gap is the longer one's."""
    found = whole([Loss("x", 100, 3, 0.05), Loss("x", 110, 4, 0.02)])
    assert found == Loss("x", 210, 7, 0.05)


def test_ping_without_a_summary_is_no_measurement() -> None:
    """Killed, or never begun."""
    with pytest.raises(ValueError, match="no summary"):
        loss_of("x", b"", begun_s=0.0, ended_s=1.0)


def test_the_kernels_own_routes_are_no_change() -> None:
    """They come whenever duplicate address detection ends."""
    text = "10.1.0.0/26 via 1.1.1.1 dev a proto 132\nff00::/8 dev a proto kernel\n\n"
    assert route_changes(text) == ["10.1.0.0/26 via 1.1.1.1 dev a proto 132"]


def test_the_document_says_what_did_not_pass_and_why() -> None:
    """A red row is red in the document, and a bar in a text breaks no table."""
    text = document([result("R0"), result("K1", "a | b")])
    assert "1 of 2 rows passed" in text
    assert "**no**: a \\| b" in text
    assert line(result("K1", "late")).startswith("FAIL")


def test_a_row_that_is_not_run_keeps_its_line() -> None:
    """A run of one row is no reason to run them all; what is no row any more goes."""
    first = document([result("R0"), result("R1", "late"), result("K1")])
    again = document([result("R1")], [row("R0"), row("R1"), row("R2")], first)
    assert "2 of 2 rows passed" in again
    assert [name for name in ("| R0 |", "| R1 |", "| R2 |", "| K1 |") if name in again] == [
        "| R0 |",
        "| R1 |",
    ]
    assert "late" not in again


def test_what_this_machine_cannot_run_is_neither_green_nor_red() -> None:
    """It says what is missing; a line of a machine that could run it stays."""
    skipped = Result(row("O10"), (), (), 0.0, "no memory cgroup can be made here")
    assert not skipped.passed
    assert not skipped.failed
    assert line(skipped).startswith("skip")
    text = document([result("R0"), skipped])
    assert "1 of 2 rows passed" in text
    assert "**skipped**: no memory cgroup can be made here" in text
    measured = document([result("O10")])
    assert "1 of 1 rows passed" in document([skipped], [row("O10")], measured)
    # It has not run, so nobody counts on it either.
    assert not judge_controls([skipped, result("R1", control="O10")])[1].passed


def test_an_experiment_that_says_so_is_skipped() -> None:
    """And the command knows it from one that failed."""

    def impossible(_world: object, _verdict: Verdict) -> None:
        raise Skipped("nothing here to do it with")

    found = run_row(Row("O10", "something", "", Stage.NO_LAB, impossible), None)
    assert (found.skipped, found.failed) == ("nothing here to do it with", False)


def test_a_table_is_put_between_the_markers_of_a_document() -> None:
    """And put there again by the next run; what is around it stays."""
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = inserted(text, [result("T1")])
    assert once.startswith("before\n")
    assert once.endswith(f"{END}\nafter\n")
    assert "| T1 |" in once
    assert "old" not in once
    assert inserted(once, [result("T1")]) == once
    with pytest.raises(ValueError, match="no place"):
        inserted("nothing", [result("T1")])


@pytest.mark.parametrize(
    ("other", "count"),
    [
        (Held("b", "p2", "10.0.0.1", 3.0, 4.0), 1),
        (Held("b", "p2", "10.0.0.1", 5.0, 6.0), 0),
        (Held("b", "p2", "10.0.0.2", 3.0, 4.0), 0),
    ],
)
def test_an_address_that_two_held_at_one_moment_is_found(other: Held, count: int) -> None:
    """And one that the second got when the first had let go is not."""
    first = Held("a", "p1", "10.0.0.1", 1.0, 5.0)
    found = doubled([History("a", [first]), History("b", [other])])
    assert len(found) == count
    assert all("a/p1" in text and "b/p2" in text for text in found)
