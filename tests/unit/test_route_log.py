"""What the log says of routes: each, until there are too many of them too often."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from structlog.testing import capture_logs

from routing.delta import Delta
from routing.route_log import LOGGED_ONE_BY_ONE, SUM_EACH_S, RouteLog
from routing.routes import Route, RouteKey
from tests.unit.test_view import make_route


def delta(number: int) -> Delta[RouteKey, Route]:
    """So many routes created."""
    routes = [make_route(ip_network(f"10.0.{n >> 8}.{n & 255}/32")) for n in range(number)]
    return Delta({route.key: route for route in routes}, {}, {})


class Told:
    """A log with a clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.log = RouteLog(lambda: self.now_s)

    def lines(self, number: int, failed: int = 0) -> list[str]:
        change = delta(number)
        with capture_logs() as found:
            self.log.tell(change, set(list(change.create)[:failed]))
        return [f"{line['event']} {line.get('created', '')}".strip() for line in found]


def test_a_daemon_that_deletes_our_routes_every_second_does_not_fill_the_log():
    """Eleven routes a second for a minute: a hundred lines, then sums now and then."""
    told = Told()
    lines = []
    for _ in range(60):
        lines += told.lines(11)
        told.now_s += 1.0
    each = lines.count("route_created")
    sums = [int(line.split()[1]) for line in lines if line.startswith("routes_changed")]
    assert LOGGED_ONE_BY_ONE / 2 <= each <= LOGGED_ONE_BY_ONE + 60
    assert len(sums) <= 60 / SUM_EACH_S + 1
    with capture_logs() as rest:
        told.now_s += SUM_EACH_S
        told.log.flush()
        told.log.flush()
    assert each + sum(sums) + sum(line["created"] for line in rest) == 60 * 11


@pytest.mark.parametrize("number", [LOGGED_ONE_BY_ONE + 1, 5000])
def test_a_big_change_is_told_in_numbers_at_once(number: int):
    """A table that arrives."""
    told = Told()
    assert told.lines(number) == [f"routes_changed {number}"]
    assert told.lines(number) == [f"routes_changed {number}"]


def test_what_the_kernel_refused_is_not_told_as_done():
    """It is a failure, which is told elsewhere."""
    assert Told().lines(3, failed=1) == ["route_created"] * 2


def test_quiet_makes_room_for_lines_again():
    """The next fault is told route by route."""
    told = Told()
    told.lines(LOGGED_ONE_BY_ONE)
    assert told.lines(1) == ["routes_changed 1"]
    told.now_s += LOGGED_ONE_BY_ONE
    assert told.lines(LOGGED_ONE_BY_ONE) == ["route_created"] * LOGGED_ONE_BY_ONE
