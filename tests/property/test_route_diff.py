"""Comparing tables of bytes is comparing tables of routes."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from routing.delta import Delta, diff
from routing.route_diff import diff_routes
from routing.route_table import RouteTable, differing, hops_of, key_of
from routing.route_work import Work
from routing.routes import NextHop, Route, RouteKey

NEAR = NextHop("up0", ip_address("192.0.2.1"))
OTHER = NextHop("up1", ip_address("192.0.2.9"))
GATEWAYS = (hops_of([NEAR]), hops_of([NEAR, OTHER]))
hops = st.sampled_from([*GATEWAYS, (), (NextHop("pod0"),)])
keys = st.builds(
    lambda prefix, metric: RouteKey(ip_network(prefix), metric),
    st.sampled_from(
        ["0.0.0.0/0", "10.0.0.0/26", "10.0.0.64/26", "10.0.0.1/32", "fd00::/122", "fd00::1/128"]
    ),
    st.sampled_from([1032, 1032, 1032, 77]),
)
tables = st.dictionaries(keys, hops, max_size=6).map(
    lambda each: {key: Route(key, where) for key, where in each.items()}
)


def plain(delta: Delta[RouteKey, Route]) -> Delta[RouteKey, Route]:
    return Delta(dict(delta.create), dict(delta.replace), dict(delta.delete))


def odd(routes: dict[RouteKey, Route]) -> RouteTable:
    """A kernel without nexthop objects: all are single ones."""
    return RouteTable(dict(routes))


@given(tables, tables, st.booleans(), st.booleans())
def test_the_same_difference_as_route_by_route(wanted, there, is_open: bool, is_old_kernel: bool):
    """What to create, replace, delete; what is held; and the table that comes of it."""

    def is_learned(route: Route) -> bool:
        return any(hop.gateway is not None for hop in route.next_hops)

    truth = diff(wanted, there, lambda _, route: is_open or not is_learned(route))
    actual = odd(there) if is_old_kernel else RouteTable.of(there)
    delta, held = diff_routes(
        RouteTable.of(wanted),
        actual,
        lambda route: None if is_open or not is_learned(route) else "closed",
    )
    assert plain(delta) == truth
    kept = {key for key, _ in held.single} | {key_of(nlri) for nlri in held.grouped}
    assert kept == there.keys() - wanted.keys() - truth.delete.keys()
    assert bool(held) == bool(kept)
    table = actual.copy()
    Work.of(delta).put_into(table, set())
    assert dict(table) == {**{k: there[k] for k in kept}, **wanted}
    assert not {key_of(nlri) for nlri in table.grouped} & table.single.keys()
    again, _ = diff_routes(RouteTable.of(wanted), table, lambda _: "closed")
    assert not again


@given(tables, tables)
def test_tables_are_mappings_of_routes(one, other):
    """Whatever is inside: for looking up, counting, comparing."""
    table, second = RouteTable.of(one), RouteTable.of(other)
    assert dict(table) == one
    assert len(table) == len(one)
    assert (table == second) == (one == other)
    assert table == one
    assert set(differing(table, second)) == {
        k for k in {**one, **other} if one.get(k) != other.get(k)
    }


@given(tables, tables, st.data())
def test_what_failed_is_not_in_the_table(wanted, there, data):
    """A refused route is as it was."""
    table = RouteTable.of(there).copy()
    delta, _ = diff_routes(RouteTable.of(wanted), table, lambda _: None)
    touched = [*delta.create, *delta.replace, *delta.delete]
    failed = set(data.draw(st.lists(st.sampled_from(touched), max_size=2)) if touched else [])
    Work.of(delta).put_into(table, failed)
    after = {
        key: route
        for key in {**wanted, **there}
        if (route := (there if key in failed else wanted).get(key)) is not None
    }
    assert dict(table) == after
