"""The pages in a real browser: they obey their own policy, refresh, and fit a narrow screen.

Screenshots are left in $SLASH32_SCREENSHOTS when it is set.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from routing.picture.compose import compose
from routing.picture.page import to_html
from routing.web.pages import pages
from routing.web.server import WebServer
from tests.fakes.chromium import Tab, chromium, find_chromium
from tests.fakes.cluster_picture import observed, report, reports, snapshot
from tests.unit.test_live_page import EVENTS, seen, well

pytestmark = [pytest.mark.timeout(180)]

DESKTOP, NARROW = 1280, 390
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


class Recent:
    """One event."""

    def since(self, at_s: float):
        del at_s
        return EVENTS


class Node:
    """An agent's pages, whose observation the test can change."""

    def __init__(self) -> None:
        self.seen = well()
        self.server = WebServer(
            pages(
                observe=lambda: self.seen,
                recent=Recent(),
                readiness=lambda: None,
                last_pass_s=lambda: 0.0,
            ),
            port=0,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.ports[0]}/"


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    made = Node()
    await made.server.start()
    yield made
    await made.server.close()


@pytest.fixture
async def tab() -> AsyncIterator[Tab]:
    program = find_chromium()
    if program is None:
        pytest.skip("chromium is not here (Debian package chromium; `make setup-browser`)")
    async with chromium(program) as opened:
        yield opened


async def keep(tab: Tab, name: str) -> None:
    """A screenshot for people, where they asked for it."""
    directory = os.environ.get("SLASH32_SCREENSHOTS")
    if directory:
        await tab.screenshot(Path(directory) / f"{name}.png")


async def test_the_live_page_fits_refreshes_and_says_when_it_is_old(node: Node, tab: Tab):
    """Desktop and narrow; new facts come by themselves; an agent that is gone is told of."""
    for name, width in (("desktop", DESKTOP), ("narrow", NARROW)):
        await tab.open(node.url, width=width)
        assert await tab.evaluate(FITS), f"it does not fit {width} pixels"
        await keep(tab, f"live-{name}")
    assert await tab.evaluate("document.querySelectorAll('svg.s32 circle.mark.up').length") >= 2
    assert "healthy" in await tab.evaluate("document.querySelector('main').innerText")
    node.seen = seen()
    await tab.until("document.querySelector('main').innerText.includes('peer reset')")
    assert await tab.evaluate(FITS)
    await keep(tab, "live-narrow-findings")
    assert tab.complaints == []
    assert {url.partition("?")[0] for url in tab.requested} <= {node.url, f"{node.url}live"} | {
        url for url in tab.requested if url.endswith("/favicon.ico")
    }
    await node.server.close()
    await tab.until("document.getElementById('fresh').innerText.includes('does not answer')")


async def test_the_live_page_is_whole_without_javascript(node: Node, tab: Tab):
    """The tables are there, and it asks to be fetched again."""
    node.seen = seen()
    await tab.open(node.url, width=DESKTOP, script=False)
    await keep(tab, "live-no-script")
    tree = await tab.call("DOM.getDocument", depth=1)
    html = (await tab.call("DOM.getOuterHTML", nodeId=tree["root"]["nodeId"]))["outerHTML"]
    assert "<td" in html
    assert "peer reset" in html
    assert 'http-equiv="refresh"' in html
    found = await tab.call(
        "DOM.querySelectorAll", nodeId=tree["root"]["nodeId"], selector="noscript meta"
    )
    assert len(found["nodeIds"]) == 1, "the refresh is an element only where scripts are off"
    assert tab.complaints == []


async def test_the_picture_for_a_ticket_opens_from_a_file(tab: Tab, tmp_path: Path):
    """One file, nothing fetched, no complaint about its own policy."""
    odd = observed(2, 1, state="Idle", reason="hold timer expired")
    heard = reports() | {
        "node2": report(2, odd, observed(2, 2, received=5, accepted=3)),
        "node3": report(3, observed(3, 1, state="Connect"), observed(3, 2)),
    }
    del heard["node1"]
    file = tmp_path / "topology.html"
    file.write_text(to_html(compose(snapshot(), heard, title="a ticket")))
    for name, width in (("desktop", DESKTOP), ("narrow", NARROW)):
        await tab.open(file.as_uri(), width=width)
        assert await tab.evaluate(FITS)
        await keep(tab, f"topology-{name}")
    assert (
        await tab.evaluate("getComputedStyle(document.querySelector('.line.down')).strokeDasharray")
        != "none"
    )
    assert tab.requested == [file.as_uri()] * 2
    assert tab.complaints == []


async def test_a_picture_that_breaks_its_policy_would_be_noticed(tab: Tab, tmp_path: Path):
    """The control: a page with a foreign style is complained about."""
    file = tmp_path / "broken.html"
    text = to_html(compose(snapshot(), reports()))
    file.write_text(text.replace("</head>", "<style>p { color: red }</style></head>"))
    await tab.open(file.as_uri(), width=DESKTOP)
    async with asyncio.timeout(10):
        await tab.complained.wait()
    assert "Content Security Policy" in tab.complaints[0]
