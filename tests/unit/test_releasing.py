"""ipam release of addresses: who is refused, what is given back, and what the journal says."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from cni.attach import HostRouteError
from cni.attachment import Address, Attachment, PodRef
from cni.ipam.allocator import Allocator
from cni.ipam.block import Block, BlockState
from cni.observed import ObservedLink
from cni.podlink import AliasRecord
from cni.wiring_errors import WiringError
from routing.cli.main import main
from routing.control import ControlServer
from routing.ipam_audit import audit
from routing.releasing import Releases

SCHEMAS = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "commands.json").read_text())
BLOCK = Block(ip_network("10.244.1.0/26"), "pods", "n1", BlockState.CONFIRMED)
LIVE = Attachment("slash32", "live0123456789", "eth0")
LEAKED = Attachment("slash32", "leaked123456789", "eth0")
A_LIVE, A_LEAKED, A6_LEAKED = map(ip_address, ("10.244.1.5", "10.244.1.6", "fd00::6"))


class NoStore:
    """Nothing here may ask it."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the store was asked: {name}")


class World:
    """A real address book; links and verbs of the test's."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.book = Allocator("n1", NoStore(), list, lambda: self.now_s)
        self.book.restore([BLOCK])
        self.linked: dict[Attachment, tuple[Address, ...]] = {LIVE: (A_LIVE,)}
        self.book.adopt(LIVE, (A_LIVE,))
        self.book.adopt(LEAKED, (A_LEAKED, A6_LEAKED))
        self.journal: list[dict[str, Any]] = []
        self.is_blind = False
        self.link_comes_up = False
        self.kept: str | None = None
        self.releases = Releases(
            node="n1", links=self, book=self.book, verbs=self, audit=self.journal.append
        )

    def read(self) -> list[ObservedLink]:
        """Every link."""
        if self.is_blind:
            raise WiringError("no consistent dump")
        return [
            ObservedLink(
                AliasRecord(who, addresses, PodRef("shop", "cart-0")),
                2,
                who.host_ifname,
                True,
                1500,
            )
            for who, addresses in self.linked.items()
        ]

    async def release_linkless(self, attachment: Attachment) -> tuple[Address, ...]:
        """As the attacher's: it waits its turn, and a link may be there by then."""
        if self.link_comes_up:
            self.linked[attachment] = self.book.addresses(attachment)
        if self.kept:
            raise HostRouteError(self.kept)
        return () if attachment in self.linked else self.book.release(attachment)

    async def detach(self, attachment: Attachment) -> tuple[Address, ...]:
        """As the attacher's."""
        if self.kept:
            raise WiringError(self.kept)
        self.linked.pop(attachment, None)
        return self.book.release(attachment)

    def ask(self, address: Address, **more: Any) -> dict[str, Any]:
        """One request."""
        arguments = {"address": str(address), "is_meant": True, "by": "ann", **more}
        row = asyncio.run(self.releases.answer(arguments))
        jsonschema.validate([row], {**SCHEMAS, "$ref": "#/$defs/ipam-release"})
        return row

    def facts(self) -> dict[str, Any]:
        """As Agent._ipam."""
        return {
            "node": "n1",
            "blocks": [{"block": str(BLOCK.cidr), "node": "n1", "state": "confirmed"}],
            "holders": [
                {"container_id": a.container_id, "addresses": [*map(str, self.book.addresses(a))]}
                for a in self.book.attachments()
            ],
            "pods": [
                {"host_ifname": who.host_ifname, "addresses": [*map(str, addresses)]}
                for who, addresses in self.linked.items()
            ],
            "problems": [],
        }


def test_a_live_pods_address_is_refused_and_its_holder_named():
    """Nothing is changed and nothing is written."""
    world = World()
    row = world.ask(A_LIVE)
    assert row["outcome"] == "refused"
    assert row["detail"].startswith("pod shop/cart-0 (live01234567, link s32")
    assert world.book.holder(A_LIVE) == LIVE
    assert LIVE in world.linked
    assert world.journal == []


def test_force_takes_the_link_first():
    """An address is never free while a link has it; what is released rests."""
    world = World()
    assert world.ask(A_LIVE, force=True, is_meant=False)["outcome"] == "would-be-released"
    assert LIVE in world.linked
    assert world.ask(A_LIVE, force=True)["outcome"] == "released"
    assert LIVE not in world.linked
    assert A_LIVE in world.book.resting()
    assert world.journal[0]["reason"] == "ipam release --force by ann"
    assert "pod shop/cart-0" in world.journal[0]["detail"]


def test_a_link_that_nobody_booked_rests_too():
    """Given out the moment its link is gone, it would meet the old pod's connections."""
    world = World()
    stray = Attachment("slash32", "stray", "eth0")
    address = ip_address("10.244.1.9")
    world.linked[stray] = (address,)
    assert world.ask(address)["outcome"] == "refused"
    assert world.ask(address, force=True)["outcome"] == "released"
    assert address in world.book.resting()


def test_a_leaked_address_is_given_back_with_its_other_family():
    """Once said, once done; the second time it is free already."""
    world = World()
    assert world.ask(A_LEAKED, is_meant=False)["outcome"] == "would-be-released"
    assert world.book.holder(A_LEAKED) == LEAKED
    row = world.ask(A_LEAKED)
    assert row["outcome"] == "released"
    assert "10.244.1.6, fd00::6" in row["detail"]
    assert [entry["prefix"] for entry in world.journal] == ["10.244.1.6/32", "fd00::6/128"]
    assert {entry["reason"] for entry in world.journal} == {"ipam release by ann"}
    again = world.ask(A_LEAKED)
    assert (again["outcome"], "resting" in again["detail"]) == ("free", True)
    assert world.ask(ip_address("10.244.1.60"))["outcome"] == "free"
    assert world.ask(ip_address("10.244.9.9"))["outcome"] == "unknown"


def test_a_report_that_is_out_of_date_releases_nothing():
    """Another holder by now, or a link that came up while the release waited its turn."""
    world = World()
    assert world.ask(A_LEAKED, holder="somebody-else")["outcome"] == "refused"
    world.link_comes_up = True
    row = world.ask(A_LEAKED, holder=LEAKED.container_id)
    assert (row["outcome"], "came up" in row["detail"]) == ("refused", True)
    assert world.book.holder(A_LEAKED) == LEAKED
    assert world.journal == []


@pytest.mark.parametrize("force", [False, True])
def test_what_the_kernel_keeps_is_told(force: bool):
    """A failure is a row, not a connection that breaks off."""
    world = World()
    world.kept = "EPERM"
    assert world.ask(A_LEAKED, force=force)["outcome"] == "failed"
    world.is_blind = True
    assert world.ask(A_LEAKED)["outcome"] == "failed"
    assert world.journal == []


def test_nonsense_is_the_askers_fault():
    """Told over the socket as such (routing/control.py)."""
    with pytest.raises(ValueError, match="nonsense"):
        asyncio.run(World().releases.answer({"address": "nonsense"}))


# -- the command -------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Behind a control socket."""
    made = World()

    async def facts() -> dict[str, Any]:
        return made.facts()

    loop = asyncio.new_event_loop()
    server = ControlServer(
        tmp_path / "agent.sock", {"ipam": facts}, {"release": made.releases.answer}
    )
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    try:
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def release(run_dir: Path, *arguments: str) -> Result:
    # The double's log would be in the command's output: it is in the same process.
    with capture_logs():
        return CliRunner().invoke(
            main,
            ["ipam", "release", *arguments, "--local", "--run-dir", str(run_dir)],
            env={"SLASH32_NODE": None, "SLASH32_VIA": None, "SUDO_USER": "ann"},
        )


def test_of_named_addresses_all_or_nothing(world: World, tmp_path: Path):
    """The live pod's keeps the leaked one too; alone it goes, and only with --yes."""
    both = release(tmp_path, str(A_LEAKED), str(A_LIVE), "--yes")
    assert both.exit_code == 1
    assert "cart-0" in both.stdout
    assert "nothing was released" in both.stderr
    assert world.book.holder(A_LEAKED) == LEAKED
    said = release(tmp_path, str(A_LEAKED))
    assert said.exit_code == 0
    assert "--yes does it" in said.stderr
    assert world.book.holder(A_LEAKED) == LEAKED
    done = release(tmp_path, str(A_LEAKED), "--yes")
    assert done.exit_code == 0, done.output
    assert world.book.holder(A_LEAKED) is None
    assert world.journal[0]["reason"] == "ipam release by ann"


def test_a_report_gives_back_what_is_leaked_still(world: World, tmp_path: Path):
    """The report of ipam check, applied; what came to life since then is refused, alone."""
    other = Attachment("slash32", "other", "eth0")
    world.book.adopt(other, (ip_address("10.244.1.7"),))
    found = audit({"n1": world.facts()}, nodes=[], pools=[])
    report = tmp_path / "report.json"
    report.write_text(
        json.dumps(
            [
                {"id": p.id, "node": p.node, "what": p.what, "detail": p.detail, "holder": p.holder}
                for p in found
            ]
        )
    )
    world.linked[other] = (ip_address("10.244.1.7"),)
    done = release(tmp_path, "--from-report", str(report), "--yes", "-o", "json")
    assert done.exit_code == 1
    rows = {row["what"]: row["outcome"] for row in json.loads(done.stdout)}
    assert rows == {"10.244.1.6": "released", "10.244.1.7": "refused", "fd00::6": "free"}
    assert world.book.holder(A_LIVE) == LIVE
    assert world.book.holder(ip_address("10.244.1.7")) == other


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give BLOCKs and ADDRESSes"),
        (("10.244.1.6", "--from-report", "{report}"), "give BLOCKs and ADDRESSes"),
        (("--from-report", "{report}", "--force"), "--force is for addresses that are named"),
        (("--from-report", "{bad}"), "not a list"),
        (("--from-report", "{old}"), "no 'holder'"),
        (("--from-report", "{shell}"), "holder 'x; reboot'"),
        (("10.244.1.300",), "10.244.1.300"),
    ],
)
def test_wrong_usage_changes_nothing(
    world: World, tmp_path: Path, arguments: tuple[str, ...], words: str
):
    """Exit 2, and why."""
    old = {"id": "booked-without-link", "node": "n1", "what": "10.244.1.6"}
    files = {"report": [], "bad": {}, "old": [old], "shell": [{**old, "holder": "x; reboot"}]}
    for name, document in files.items():
        (tmp_path / name).write_text(json.dumps(document))
    paths = {name: str(tmp_path / name) for name in files}
    done = release(tmp_path, *(each.format(**paths) for each in arguments), "--yes")
    assert done.exit_code == 2
    assert words in done.stderr
    assert world.book.holder(A_LEAKED) == LEAKED


def test_a_node_that_was_not_asked_is_no_answer(world: World, tmp_path: Path):
    """An entry of another node is left, and named: exit 4."""
    report = tmp_path / "report.json"
    entry = {"id": "booked-without-link", "what": "10.244.1.6", "detail": "", "holder": "x"}
    report.write_text(json.dumps([{**entry, "node": "n9"}]))
    done = release(tmp_path, "--from-report", str(report), "--yes")
    assert done.exit_code in (3, 4)
    assert "n9 did not answer" in done.stderr
    assert world.book.holder(A_LEAKED) == LEAKED
