"""The journal: what a pass changed and why, bounded on disk."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path as FilePath
from typing import Any

import pytest

from bgp.paths import Advertisement, Path, PeerStatus, SessionState
from routing.changes import SessionMark, changes
from routing.delta import Failure
from routing.desired import Desired
from routing.import_policy import RejectedPath
from routing.journal import MANY, Journal, as_found, read_journal
from routing.remote import Outcome, Remote
from routing.report import Held, PassReport
from routing.route_table import RouteTable
from routing.routes import NextHop, Route, RouteKey, RouteKind

TOR = ip_address("172.30.0.0")
OTHER = ip_address("172.30.1.0")
PREFIX = ip_network("10.244.2.0/26")
KEY = RouteKey(PREFIX)
ROUTE = Route(KEY, (NextHop("uplink0", TOR),))
UP = {TOR: SessionMark("Established", 0, "")}
DOWN = {TOR: SessionMark("Idle", 1, "hold timer expired")}


def learned(*peers: Any, route: Route = ROUTE) -> Desired:
    return Desired(
        routes={KEY: route},
        kinds={KEY: RouteKind.REMOTE},
        best={PREFIX: tuple(Path(p, PREFIX, p, (64512,), 1) for p in peers or (TOR,))},
    )


def report(desired: Desired, **more: Any) -> PassReport:
    values: dict[str, Any] = {"actual": dict(desired.routes), "passes": 1}
    return PassReport(desired=desired, **(values | more))


def told(before: PassReport, after: PassReport, was=UP, now=UP) -> list[dict[str, Any]]:
    return list(changes(before, after, was, now))


def test_nothing_changed_is_nothing_said():
    """The control of everything below."""
    assert told(report(learned()), report(learned())) == []


def test_a_route_that_comes_says_by_whom():
    """Path, next hop, AS path."""
    (entry,) = told(report(Desired()), report(learned(), actual={}))
    assert entry == {
        "kind": "route", "action": "created", "prefix": "10.244.2.0/26", "of": "remote",
        "detail": "via 172.30.0.0 dev uplink0",
        "reason": "path from 172.30.0.0 next hop 172.30.0.0, AS path 64512",
    }  # fmt: skip


def test_a_route_that_goes_with_its_session_names_the_cause():
    """First the session, with BGP's own words, then the route."""
    session, route = told(report(learned()), report(Desired()), now=DOWN)
    assert (session["action"], session["reason"]) == ("down", "hold timer expired")
    assert route["action"] == "deleted"
    assert route["reason"] == "session with 172.30.0.0 is down (hold timer expired)"


def test_a_route_that_goes_under_a_live_session_was_withdrawn_or_refused():
    """And a refusal has its own entry before it, with the token."""
    path = Path(TOR, PREFIX, TOR, (64512,), 1)
    after = Desired(rejected=(RejectedPath(path, "as-loop", "our ASN is in it"),))
    rejected, route = told(report(learned()), report(after))
    assert (rejected["action"], rejected["reason"]) == ("rejected", "as-loop")
    assert route["reason"] == "withdrawn or refused, from 172.30.0.0"


def test_a_gate_that_keeps_a_route_is_told():
    """Held is not deleted."""
    after = report(Desired(), held=(Held("route 10.244.2.0/26", "store-out-of-sync"),))
    (entry,) = told(report(learned()), after)
    assert (entry["action"], entry["reason"]) == ("held", "store-out-of-sync")


@pytest.mark.parametrize(
    ("actual", "reason"),
    [
        ({}, "it was gone from the kernel: another hand deleted it, or its link went down"),
        ({KEY: Route(KEY, ())}, "another hand changed it"),
    ],
)
def test_drift_is_told_as_a_repair(actual: Any, reason: str):
    """The wish is as it was, the kernel was not."""
    (entry,) = told(report(learned()), report(learned(), actual=actual))
    assert (entry["action"], entry["reason"]) == ("repaired", reason)


def test_one_of_two_paths_that_goes_is_a_replacement():
    """The sentence says which."""
    both = Route(KEY, (NextHop("uplink0", TOR), NextHop("uplink1", OTHER)))
    (entry,) = told(report(learned(TOR, OTHER, route=both)), report(learned()))
    assert entry["action"] == "replaced"
    assert entry["reason"] == "no more by 172.30.1.0"
    assert entry["detail"].endswith("(was via 172.30.0.0 dev uplink0 via 172.30.1.0 dev uplink1)")


def test_sessions_come_go_and_flap_between_two_passes():
    """A flap that no pass saw down is still told, by its count."""
    nothing = report(Desired())
    assert told(nothing, nothing, {}, UP)[0]["action"] == "up"
    assert told(nothing, nothing, {}, {TOR: SessionMark("Idle", 0, "")}) == []
    flapped = told(nothing, nothing, UP, {TOR: SessionMark("Established", 1, "reset")})
    assert (flapped[0]["action"], flapped[0]["reason"]) == ("flapped", "reset")
    assert told(nothing, nothing, UP, {})[0]["action"] == "removed"


def test_announcements_and_failures():
    """What we tell others, and what did not work and then did."""
    out = Desired(advertisements={(TOR, PREFIX): Advertisement(PREFIX)})
    (entry,) = told(report(Desired()), report(out))
    assert (entry["kind"], entry["action"], entry["peer"]) == (
        "announcement", "announced", "172.30.0.0",
    )  # fmt: skip
    assert told(report(out), report(Desired()))[0]["action"] == "withdrawn"
    failed = report(Desired(), failures=(Failure("store", "read", "locked"),))
    assert told(report(Desired()), failed)[0]["reason"] == "locked"
    assert told(failed, failed) == []
    assert told(failed, report(Desired()))[0]["action"] == "ended"


def test_the_journal_is_bounded_and_read_back_in_order(tmp_path: FilePath):
    """Two files of a limited size; a cut line is left out; --since cuts."""
    now = [1000.0]
    journal = Journal(tmp_path / "journal", clock=lambda: now[0], max_bytes=2000)
    status = PeerStatus(TOR, SessionState.ESTABLISHED)
    empty, full = report(Desired()), report(learned(), actual={})
    for number in range(60):
        now[0] = 1000.0 + number
        before, after = (empty, full) if number % 2 == 0 else (full, empty)
        journal.note(before, after, {TOR: status})
    journal.close()
    size = sum(each.stat().st_size for each in tmp_path.iterdir())
    assert size <= 2 * (2000 + 300)
    entries = list(read_journal(tmp_path / "journal"))
    assert [e["at"] for e in entries] == sorted(e["at"] for e in entries)
    assert entries[-1]["at"] == 1059.0
    assert [e["at"] for e in read_journal(tmp_path / "journal", since=1058.0)] == [1058.0, 1059.0]
    with (tmp_path / "journal").open("a") as file:
        file.write('{"at": 2000, "kind": "ro')
    assert list(read_journal(tmp_path / "journal")) == entries
    assert list(read_journal(tmp_path / "nothing")) == []


def test_a_full_table_at_once_is_summed_up(tmp_path: FilePath):
    """One pass writes so much and no more, and says what it left out."""
    routes = {
        RouteKey(p): Route(RouteKey(p), ()) for p in ip_network("10.0.0.0/8").subnets(new_prefix=20)
    }
    journal = Journal(tmp_path / "journal", clock=lambda: 5.0)
    journal.note(report(Desired()), report(Desired(routes=routes), actual={}), {})
    journal.close()
    entries = list(read_journal(tmp_path / "journal"))
    assert len(entries) == 2001
    assert entries[-1] == {"at": 5.0, "kind": "journal", "action": "left-out", "detail": "2096"}


def test_a_journal_that_cannot_be_written_hurts_nobody(tmp_path: FilePath):
    """A directory in its place: no exception, and the next agent writes again."""
    (tmp_path / "journal").mkdir()
    journal = Journal(tmp_path / "journal", clock=lambda: 5.0)
    journal.note(report(Desired()), report(learned(), actual={}), {})
    journal.close()
    (tmp_path / "journal").rmdir()
    journal = Journal(tmp_path / "journal", clock=lambda: 5.0)
    journal.note(report(learned()), report(replace(learned(), routes={})), {})
    journal.close()
    assert len(list(read_journal(tmp_path / "journal"))) == 1


def test_entries_are_as_published():
    """docs/schemas/history.json."""
    import jsonschema

    schema = json.loads(
        (FilePath(__file__).parents[2] / "docs" / "schemas" / "history.json").read_text()
    )
    entries = [
        *told(report(Desired()), report(learned(), actual={})),
        *told(report(learned()), report(Desired()), now=DOWN),
    ]
    jsonschema.validate([{"at": 1.5, "node": "node1", **each} for each in entries], schema)


def test_what_a_new_agent_finds_is_no_change(tmp_path: FilePath):
    """A session that is up, a route that the kernel holds: found, not up and created. The control
    is the same with a kernel that holds nothing, and a session that was seen before."""

    def actions(kernel: dict[Any, Any], *, passes: int, was: Any) -> list[str]:
        before = report(Desired(), passes=passes, actual={})
        after = report(learned(), actual=kernel)
        return [
            as_found(entry, before, after, was)["action"]
            for entry in changes(before, after, was, UP)
        ]

    assert actions({KEY: ROUTE}, passes=1, was={}) == ["found", "found"]
    assert actions({}, passes=1, was=DOWN) == ["up", "created"]


def test_an_announcement_of_the_first_pass_is_found():
    """Of a later one it is news."""
    desired = Desired(advertisements={(TOR, PREFIX): Advertisement(PREFIX)}, peers={})
    for passes, action in ((0, "found"), (1, "announced")):
        before, after = report(Desired(), passes=passes), report(desired)
        assert [
            as_found(entry, before, after, UP)["action"] for entry in changes(before, after, UP, UP)
        ] == [action]


def many(number: int) -> PassReport:
    """So many prefixes, each with a route."""
    nlris = [bytes((32, 10, 0, number >> 8, number & 255)) for number in range(number)]
    hops = (NextHop("uplink0", TOR),)
    outcome = Outcome(hops, (), (), (), (), nlris[0])
    wanted = Desired(
        routes=RouteTable(grouped=dict.fromkeys(nlris, hops)),
        remote=Remote(dict.fromkeys(nlris, outcome)),
    )
    return report(wanted)


def test_what_is_about_many_waits_until_they_are_there(tmp_path, monkeypatch):
    """Written while a table arrives, it would take longer than the table; what ends the agent ends
    the waiting too, and nothing is lost. A few are written at once."""
    monkeypatch.setattr("routing.journal.CALM_S", 3600.0)
    monkeypatch.setattr("routing.journal.CALM_WITHIN_S", 3600.0)
    for number, waits in ((MANY + 1, True), (MANY, False)):
        path = tmp_path / f"{number}"
        journal = Journal(path, clock=lambda: 5.0)
        started = threading.Event()
        monkeypatch.setattr(journal, "_is_closing", _Asked(started))
        journal.note(report(Desired()), many(number), {})
        if waits:
            assert started.wait(10)
            assert not path.exists()
        journal.close()
        assert started.is_set() == waits
        assert len(list(read_journal(path))) == number


class _Asked(threading.Event):
    """Tells when somebody waits for it."""

    def __init__(self, is_asked: threading.Event) -> None:
        super().__init__()
        self._is_asked = is_asked

    def wait(self, timeout: float | None = None) -> bool:
        self._is_asked.set()
        return super().wait(timeout)
