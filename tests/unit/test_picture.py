"""The picture: what it says, that it says it without colour, and that nothing gets in or out."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from routing.datastore.snapshot import Meta
from routing.picture.compose import compose
from routing.picture.dot import to_dot
from routing.picture.layout import SESSIONS_SHOWN_MAX, to_svg
from routing.picture.model import Picture, State
from routing.picture.page import PAGE_STYLE, hash_source, to_html
from routing.picture.reports import from_views
from tests.fakes.cluster_picture import (
    mesh_reports,
    observed,
    report,
    reports,
    snapshot,
)

SVG = "{http://www.w3.org/2000/svg}"


def drawn(picture: Picture) -> ElementTree.Element:
    return ElementTree.fromstring(to_svg(picture))  # noqa: S314 - our own text


def words(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def states(picture: Picture) -> dict[tuple[str, str], State]:
    return {(n.name, s.name): s.state for n in picture.nodes for s in n.sessions}


# -- what is composed ----------------------------------------------------------------------------


def test_a_healthy_cluster_has_no_mismatch():
    """Every session up on both sides, every block announced."""
    picture = compose(snapshot(), reports())
    assert picture.is_healthy()
    assert picture.all_problems() == []
    assert [router.key for router in picture.routers] == ["tor1", "tor2"]
    assert len(picture.routers[0].addresses) == 3


def test_without_the_label_each_address_is_a_router():
    """Nobody can know that two addresses are one machine."""
    plain = snapshot()
    plain = replace(plain, peers=tuple(replace(p, meta=Meta(p.meta.name)) for p in plain.peers))
    assert len(compose(plain, reports()).routers) == 6


def test_a_node_that_was_not_heard_is_drawn_as_configured():
    """Unknown is not down, and not well."""
    picture = compose(snapshot(), {"node1": report(1)})
    assert states(picture)["node2", "node2-tor1"] is State.UNKNOWN
    assert picture.all_problems() == []
    assert not picture.is_healthy()


@pytest.mark.parametrize(
    ("state", "expected"),
    [("Idle", State.DOWN), ("Connect", State.STARTING), ("Active", State.STARTING)],
)
def test_a_session_that_is_not_up_says_why(state: str, expected: State):
    """In the node's own words."""
    down = observed(1, 1, state=state, reason="peer reset")
    picture = compose(snapshot(), reports() | {"node1": report(1, down, observed(1, 2))})
    assert states(picture)["node1", "node1-tor1"] is expected
    assert any("peer reset" in problem for problem in picture.all_problems())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"received": 5, "accepted": 3}, "2 of 5 prefixes received are rejected"),
        ({"asn": 64999}, "the session is with AS 64999, the store says AS 64512"),
        ({"announced": 0}, "none of its 1 blocks is announced to node1-tor1"),
    ],
)
def test_what_does_not_fit_is_a_mismatch(changes: dict[str, object], sentence: str):
    """Between configuration, session and blocks."""
    odd = observed(1, 1, **changes)
    picture = compose(snapshot(), reports() | {"node1": report(1, odd, observed(1, 2))})
    assert any(sentence in problem for problem in picture.all_problems())


def test_sessions_and_configuration_are_compared_both_ways():
    """Configured and not there; there and not configured."""
    stray = observed(1, 2, address="198.51.100.9", name="old")
    picture = compose(snapshot(), reports() | {"node1": report(1, observed(1, 1), stray)})
    told = picture.all_problems()
    assert any("configured, and the node has no such session" in problem for problem in told)
    assert any("configuration has no such session" in problem for problem in told)


def test_the_two_ends_of_a_session_are_compared():
    """One says it announced two prefixes, the other has one."""
    heard = mesh_reports(3)
    first, *others = heard["node1"].sessions
    heard["node1"] = replace(heard["node1"], sessions=(replace(first, announced=2), *others))
    picture = compose(snapshot(mesh=True), heard)
    assert any("2 prefixes announced, node2 has 1" in each for each in picture.all_problems())


def test_blocks_of_nobody_are_a_mismatch():
    """A node that is gone, with addresses."""
    picture = compose(snapshot(owner="ghost"), reports(2))
    assert any("belong to 'ghost', which is no node" in each for each in picture.all_problems())


def test_an_agents_views_become_a_report():
    """The rows that ``slash32 peers``, ``blocks`` and ``status`` print."""
    peer = {
        "peer": "172.30.0.0", "state": "Established", "name": "tor", "asn": 64512, "received": 3,
        "accepted": 2, "advertised": 1, "since_s": 5.0, "reason": "",
    }  # fmt: skip
    block = {"block": "10.244.1.0/26", "used": 3, "cooling": 1, "free": 60}
    other = {"block": "10.244.2.0/26", "used": None, "cooling": None, "free": None}
    status = {"node": "n1", "pods": 3, "findings": ["peer 172.30.0.0 is Idle", "store: away"]}
    made = from_views([peer], [block, other], status)
    assert (made.source, made.pods, made.findings) == ("its agent", 3, ("store: away",))
    stored = from_views([peer], [], status | {"reported_at": "2026-01-31T12:00:00Z"})
    assert stored.source == "its NodeStatus of 2026-01-31T12:00:00Z"
    assert made.sessions[0].announced == 1
    assert made.use == {"10.244.1.0/26": (3, 64)}


# -- what is drawn -------------------------------------------------------------------------------


def test_the_svg_shows_everybody_and_every_count():
    """Routers, nodes, blocks with their use, prefixes of each session."""
    text = "\n".join(words(drawn(compose(snapshot(), reports(), title="my cluster"))))
    for part in ("my cluster", "tor1", "node3", "10.244.2.0/26  2/64", "3/3/1", "AS 64512"):
        assert part in text


def test_each_state_has_a_shape_and_a_line_of_its_own():
    """So that it is read without colour."""
    marks: dict[State, set[str]] = {}
    for name, state in (
        ("Established", State.UP),
        ("Connect", State.STARTING),
        ("Idle", State.DOWN),
    ):
        odd = observed(1, 1, state=name)
        root = drawn(compose(snapshot(1), {"node1": report(1, odd, observed(1, 2))}))
        marks[state] = {e.tag for e in root.iter() if e.get("class") == f"mark {state.value}"}
    shapes = re.findall(r"\.line\.(\w+) \{[^}]*?(stroke-dasharray: [^;]+)?;? ?[^}]*\}", PAGE_STYLE)
    assert marks[State.UP] == {f"{SVG}circle"}
    assert marks[State.STARTING] == marks[State.DOWN] == {f"{SVG}path"}
    assert len({state for state, _ in shapes}) == 4


def test_a_mismatch_is_marked_in_words_too():
    """An exclamation mark and a count, beside the colour."""
    root = drawn(
        compose(snapshot(1), {"node1": report(1, observed(1, 1), observed(1, 2, announced=0))})
    )
    text = words(root)
    assert any(each.startswith("! none of its 1 blocks") for each in text)
    assert "✕ 1 mismatch" in text


def test_a_big_mesh_counts_what_is_well_and_draws_what_is_not():
    """Fifty nodes would be a black patch."""
    count = SESSIONS_SHOWN_MAX + 8
    heard = mesh_reports(count)
    first, *others = heard["node1"].sessions
    broken = replace(first, state="Idle", reason="hold timer expired")
    heard["node1"] = replace(heard["node1"], sessions=(broken, *others))
    root = drawn(compose(snapshot(count, mesh=True), heard))
    lines = [e for e in root.iter(f"{SVG}path") if (e.get("class") or "").startswith("line")]
    assert len(lines) < 10
    assert any("sessions with other nodes, all Established" in each for each in words(root))
    assert any("hold timer expired" in each for each in words(root))


def test_an_empty_cluster_is_an_empty_picture():
    """Not a failure."""
    root = drawn(compose(replace(snapshot(), nodes=(), peers=(), blocks=()), {}))
    assert root.tag == f"{SVG}svg"


def test_the_same_cluster_is_the_same_file():
    """So that two of them can be compared."""
    assert to_svg(compose(snapshot(), reports())) == to_svg(compose(snapshot(), reports()))


# -- what gets in and out ------------------------------------------------------------------------

EVIL = "</title><script>alert(1)</script>\"'&\\"


def evil() -> Picture:
    odd = observed(1, 1, state="Idle", reason=EVIL, name=EVIL)
    return compose(
        snapshot(1), {"node1": report(1, odd, observed(1, 2), findings=(EVIL,))}, title=EVIL
    )


def test_names_cannot_become_markup():
    """Whoever may name a peer must not run code in an operator's browser."""
    for text in (to_svg(evil()), to_html(evil())):
        assert "<script" not in text
    assert any(EVIL in (e.text or "") for e in drawn(evil()).iter(f"{SVG}title"))


def test_what_xml_cannot_say_does_not_break_the_picture():
    """Control characters and half a surrogate pair, from a message or a title."""
    told = compose(snapshot(), {"node1": report(1, findings=("a\x1bb",))}, title="x\0\ud800y")
    assert "".join(drawn(told).itertext()).count("\ufffd") >= 3
    assert "\x1b" not in to_html(told)


def test_dot_quotes_what_it_is_given():
    """Every line is a statement of ours."""
    text = to_dot(evil())
    assert text.startswith("graph slash32 {")
    for line in text.splitlines()[1:-1]:
        assert re.fullmatch(
            r'  (?:[\w ]+(=|\[).*|"(?:[^"\\]|\\.)*"( -- "(?:[^"\\]|\\.)*")? \[.*\]);', line
        ), line


@pytest.mark.parametrize("make", [to_svg, to_html])
def test_nothing_is_loaded_from_anywhere(make):
    """One file that can be attached to a ticket."""
    text = make(compose(snapshot(), reports()))
    urls = set(re.findall(r"(?:https?:)?//[^\s\"'<)]+", text))
    assert urls <= {"http://www.w3.org/2000/svg", "//www.w3.org/2000/svg"}
    assert not re.search(r"<(img|link|iframe|object|image|use|script)\b|@import|url\(", text)


def test_the_page_allows_its_own_style_and_nothing_else():
    """By hash; no inline style attribute, which would need more."""
    text = to_html(compose(snapshot(), reports()))
    head = text.partition("</head>")[0]
    assert "default-src &#x27;none&#x27;" in head
    assert hash_source(PAGE_STYLE).replace("'", "&#x27;") in head
    assert "unsafe-inline" not in head
    assert " style=" not in text


def test_the_page_says_in_tables_what_the_picture_says():
    """For a narrow screen and for grep."""
    text = to_html(compose(snapshot(), reports()))
    assert text.count('<td class="">node1-tor1</td>') == 1
    assert "10.244.3.0/26" in text.partition("<h2>Blocks</h2>")[2]
