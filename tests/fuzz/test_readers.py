"""Every module that reads bytes or text of others is a target's, or says here why it is none's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fuzz import __main__ as whole
from tests.fuzz import hunt
from tests.fuzz.__main__ import cases_of
from tests.fuzz.hunt import counted, owed, table_of, uncounted
from tests.fuzz.registry import TARGETS

ROOT = Path(__file__).parents[2]
READS = re.compile(
    r"json\.loads?\(|unpack(_from)?\(|from_bytes\(|\.read_(text|bytes|string)\(|readline\("
    r"|yaml\.(compose|parse)|b64decode\(|a2b_base64\(|os\.p?read\("
    r"|(file|stdin\.buffer|response|stat)\.read\("
)
COVERED = {
    "bgp/attribute_blocks.py": "update-decoder update-fields exabgp-certain",
    "bgp/bridge.py": "bridge",
    "bgp/conf_file.py": "conf-file",
    "bgp/exabgp_api.py": "exabgp-line exabgp-event conversation",
    "bgp/json_fields.py": "exabgp-line exabgp-event",
    "bgp/nlri.py": "update-decoder update-fields exabgp-certain",
    "bgp/reasons.py": "exabgp-event",
    "bgp/update_decoder.py": "update-decoder update-fields exabgp-certain conversation",
    "cni/edge.py": "nft-listing",
    "cni/ipam/cooldown.py": "cooldown-file",
    "cni/recorded.py": "recorded-del",
    "cni/spec.py": "cni-request cni-socket recorded-del",
    "routing/control.py": "control-socket",
    "routing/controller/file_leases.py": "leases",
    "routing/datastore/cache.py": "cache-bytes cache-body",
    "routing/datastore/cache_format.py": "cache-bytes cache-body",
    "routing/datastore/documents.py": "resource-text",
    "routing/datastore/kinds/secret.py": "resource-document resource-text",
    "routing/datastore/kubernetes_documents.py": "kubernetes-object",
    "routing/datastore/pod_annotations.py": "pod-annotations",
    "routing/journal.py": "journal",
    "routing/cli/migrate.py": "resource-text calico",
    "routing/cli/resources.py": "resource-text resource-document",
    "routing/topology.py": "cache-body last-peers",
}
"""Module: the targets that read with it."""

KERNEL = "the kernel's own answers (netlink, /proc, /sys); real ones in tests/netns"
OURS = "numbers that were read elsewhere"
PROPERTY = "against ExaBGP's own decoder, in tests/property"
OPERATORS = "a program that the operator runs and its own other end, both as root"
EXCUSED = {
    "bgp/exabgp_attributes.py": PROPERTY,
    "bgp/exabgp_habits.py": "numbers in the kernel's own struct tcp_info, of fixed size",
    "bgp/exabgp_turns.py": "a pipe that wakes, what is in it is thrown away",
    "cni/hostend.py": KERNEL,
    "cni/install.py": "files of the runtime's configuration, root's; tests/unit/test_install.py",
    "bgp/paths.py": OURS,
    "cni/ipam/pool.py": OURS,
    "cni/launcher/build.py": "a compiler's output",
    "cni/netlink.py": KERNEL,
    "cni/netlink_socket.py": KERNEL,
    "cni/netns.py": KERNEL,
    "cni/nfnetlink.py": KERNEL,
    "cni/observed.py": KERNEL,
    "cni/plugin.py": "the target launcher is compared with it; and tests/contract",
    "cni/wiring.py": KERNEL,
    "routing/asking.py": OPERATORS,
    "routing/classes.py": OURS,
    "routing/cli/diag.py": "carried as text, not read",
    "routing/cli/release.py": OPERATORS,
    "routing/datastore/file_watch.py": "hints of inotify, thrown away unread",
    "routing/datastore/kubernetes_client.py": (
        "the API server's framing, by aiohttp; its objects are kubernetes-object; every broken "
        "answer in tests/contract/test_kubernetes_store.py"
    ),
    "routing/datastore/local.py": "rows that we have written; what is no resource is refused by it",
    "routing/doctor/gather.py": KERNEL,
    "routing/event_filter.py": OURS,
    "routing/event_meaning.py": KERNEL,
    "routing/explain/kernel.py": KERNEL,
    "routing/explain/routes_now.py": KERNEL,
    "routing/explain/witnesses.py": OPERATORS,
    "routing/fib.py": KERNEL,
    "routing/host_before.py": "a file of ours, 0600; one that is damaged counts as absent",
    "routing/link_reading.py": KERNEL,
    "routing/next_hop_objects.py": KERNEL,
    "routing/remote.py": OURS,
    "routing/rtmessage.py": KERNEL,
    "routing/schemas/__main__.py": "writes manifests in this repository",
    "routing/uninstalling.py": KERNEL,
}
"""Module: why it is no target."""


def readers() -> set[str]:
    """Modules whose text reads."""
    return {
        str(path.relative_to(ROOT))
        for package in ("cni", "bgp", "routing")
        for path in (ROOT / package).rglob("*.py")
        if READS.search(path.read_text())
    }


def test_every_reader_is_a_targets_or_says_why_not():
    """A new one must be put in one of the two lists; one that reads no more goes."""
    found = readers()
    assert len(found) > 40
    assert found - COVERED.keys() - EXCUSED.keys() == set()
    assert (COVERED.keys() | EXCUSED.keys()) - found == set()
    assert not COVERED.keys() & EXCUSED.keys()


@pytest.mark.parametrize("module", COVERED)
def test_its_targets_exist(module: str):
    """Names are the registry's."""
    assert set(COVERED[module].split()) <= TARGETS.keys()


def test_a_campaign_of_a_million_has_many_of_each():
    """What docs/fuzzing.md promises of one run; a share that somebody made small is seen here."""
    shares = cases_of(list(TARGETS.values()), 1_000_000)
    assert shares.keys() == TARGETS.keys()
    assert sum(shares.values()) >= 1_000_000
    costly = {"injection", "last-peers"}  # 7 to 15 ms a case, ten times what others take
    assert min(shares[name] for name in shares.keys() - costly) >= 20_000
    assert min(shares.values()) >= 8_000
    # The cheap ones come first, for whoever ends it.
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_a_record_says_how_far_its_run_came(monkeypatch):
    """And what the machine had nothing for."""
    monkeypatch.setattr(whole, "version", lambda _: "3")
    result = {"cases": 5, "accepted": 1, "seconds": 1.0, "slowest_s": 0.001}
    results = {"journal": result | {"corpus": 2, "findings": {}}}
    table = whole.table_of(results, 60.0, "abc", 2, of=3, lacking={"launcher": "no gcc"})
    assert "5 cases in one run of 1 minutes, ended after 1 of 3 targets, 0 findings (abc" in table
    assert "| launcher | not fuzzed: no gcc |" in table
    assert "ended" not in whole.table_of(results, 60.0, "abc", 2, of=1, lacking={})


@pytest.mark.parametrize("module", [whole, hunt])
def test_a_part_is_no_record(module, monkeypatch, tmp_path, capsys):
    """The page would pass for a whole campaign's, a whole hunt's."""
    page = str(tmp_path / "page.md")
    part = ["--only", "journal"] if module is whole else ["tests/property/test_alias.py"]
    monkeypatch.setattr("sys.argv", ["x", *part, "--document", page])
    with pytest.raises(SystemExit):
        module.main()
    assert "records a whole" in capsys.readouterr().err


def test_the_page_names_what_is_no_target():
    """docs/fuzzing.md lists the reasons."""
    page = (ROOT / "docs" / "fuzzing.md").read_text()
    assert [module for module in EXCUSED if f"`{module}`" not in page] == []


def test_a_hunt_is_counted_as_hypothesis_says():
    """From its own words, a property of several phases too."""
    text = (
        "tests/property/test_a.py::test_one:\n\n"
        "  - during reuse phase (0.50 seconds):\n"
        "    - 1 passing, 0 failing, and 2 invalid test cases\n"
        "  - during generate phase (1.50 seconds):\n"
        "    - Typical runtimes: ~ 1ms, of which < 1ms in data generation\n"
        "    - 2999 passing, 0 failing, and 13 invalid test cases\n\n"
        "tests/property/test_b.py::test_two[x]:\n"
        "    - 10 passing, 1 failing, and 0 invalid test cases\n"
    )
    found = counted(text)
    assert (found["test_a"].passing, found["test_a"].invalid) == (3000, 15)
    assert found["test_a"].seconds == 2.0
    assert found["test_b"].failing == 1
    assert "3,010 cases of 2 properties, 1 failures" in table_of(found)


def test_a_property_that_a_hunt_does_not_count_is_missed():
    """Those inside a test function too; one for each parameter is one property."""
    inside = (
        "@given(st.integers())\ndef test_one(x): ...\n\n"
        "def test_two():\n    @settings()\n    @given(st.text())\n    def law(text): ...\n"
    )
    machine = "class Machine(RuleBasedStateMachine):\n"
    assert (owed(inside), owed(machine), owed("from hypothesis import given\n")) == (2, 1, 0)
    words = "{}:\n    - 10 passing, 0 failing, and 0 invalid test cases\n"
    names = ("test_a.py::test_one[x]", "test_a.py::test_one[y]")
    text = "".join(words.format(f"tests/property/{name}") for name in names)
    sources = {"test_a": inside, "test_c": "no property"}
    assert uncounted(counted(text), sources) == ["test_a"]
    text += words.format("tests/property/test_a.py::test_two#1")
    assert uncounted(counted(text), sources) == []
