"""doctor, the audit of addresses, and diag: facts in, findings out; readers on files of our own."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from routing.cli.diag import redacted
from routing.cli.ipam import pool_rows
from routing.cli.main import main
from routing.doctor.checks import CHECKS, Severity, diagnose
from routing.doctor.facts import Beside, Facts, ForeignRoute, NetworkFile, Pool, Uplink
from routing.doctor.gather import _network_files, _network_manager, _networkd, gather
from routing.ipam_audit import audit

SCHEMAS = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "commands.json").read_text())

UP = {"peer": "192.0.2.1", "name": "tor", "state": "Established", "received": 3, "since_s": 60}
HEALTHY = Facts(
    is_root=True,
    kernel=(6, 1),
    sysctls={"net.ipv4.conf.all.forwarding": "1", "net.ipv6.conf.all.forwarding": "1"},
    network_files=(NetworkFile("10-slash32.conflist", is_ours=True),),
    uplinks=(Uplink("eth0", 1500, ("192.0.2.0/24",)),),
    pools=(Pool("pods", "10.244.0.0/16"),),
    is_clock_synchronised=True,
    state_free_percent=50.0,
    status={"findings": []},
    peers=[UP],
)
TWO = (Uplink("eth0", 1500, ("192.0.2.0/24",)), Uplink("eth1", 1500, ("198.51.100.0/24",)))
DOWN = {"peer": "192.0.2.1", "name": "tor", "state": "Idle", "received": 0, "since_s": None,
        "reason": "", "cause": "peer-wrong-asn: no", "remedy": "compare"}  # fmt: skip
BIG = {"namespace": "a", "pod": "b", "mtu_bytes": 9000}

BAD: list[tuple[str, Severity, dict[str, Any]]] = [
    ("root", Severity.ERROR, {"is_root": False}),
    ("kernel", Severity.ERROR, {"kernel": (4, 19)}),
    ("programs", Severity.ERROR, {"missing_programs": ("nft",)}),
    ("ip-forward", Severity.ERROR, {"sysctls": {"net.ipv4.conf.all.forwarding": "0"}}),
    (
        "rp-filter", Severity.ERROR,
        {"uplinks": TWO, "sysctls": {"net.ipv4.conf.all.rp_filter": "1"}},
    ),
    (
        "accept-ra", Severity.WARNING,
        {
            "uplinks": (Uplink("eth0", 1500, ("fd00::/64",)),),
            "sysctls": {"net.ipv6.conf.all.forwarding": "1", "net.ipv6.conf.eth0.accept_ra": "1"},
        },
    ),
    ("ipv6", Severity.ERROR, {"pools": (Pool("six", "fd00::/48"),)}),
    ("neighbour-table", Severity.ERROR, {"sysctls": {"net.ipv4.neigh.default.gc_thresh3": "64"}}),
    ("networkd", Severity.ERROR, {"networkd": {}}),
    ("networkd", Severity.WARNING, {"networkd": {"manageforeignroutes": "no"}}),
    ("network-manager", Severity.WARNING, {"network_manager": (True, False)}),
    ("conflists", Severity.ERROR, {"network_files": (NetworkFile("05-cilium.conflist", False),)}),
    (
        "conflists", Severity.WARNING,
        {"network_files": (NetworkFile("10-s.conflist", True), NetworkFile("20-x.conf", False))},
    ),
    ("conflists", Severity.UNKNOWN, {"network_files": None}),
    ("pools", Severity.ERROR, {"pools": (Pool("a", "10.0.0.0/8"), Pool("b", "10.244.0.0/16"))}),
    ("pools", Severity.ERROR, {"pools": (Pool("a", "192.0.0.0/16"),)}),
    ("pools", Severity.UNKNOWN, {"pools": None}),
    ("foreign-routes", Severity.ERROR,
     {"foreign_routes": (ForeignRoute("10.244.7.0/24", "static"),)}),
    ("foreign-routes", Severity.ERROR,
     {"foreign_routes": (ForeignRoute("192.0.2.0/24", "static", Beside.INSTEAD_OF_OURS),)}),
    ("foreign-routes", Severity.WARNING,
     {"foreign_routes": (ForeignRoute("10.244.7.0/26", "openr", Beside.BEHIND_OURS),)}),
    ("mtu", Severity.ERROR, {"pods": [BIG]}),
    ("mtu", Severity.ERROR, {"uplinks": (Uplink("eth0", 1000, ()),)}),
    ("mtu", Severity.WARNING, {"uplinks": (TWO[0], replace(TWO[1], mtu_bytes=9000))}),
    ("port-179", Severity.WARNING, {"listeners": ("every address",)}),
    ("clock", Severity.WARNING, {"is_clock_synchronised": False}),
    ("disk", Severity.ERROR, {"state_free_percent": 0.5}),
    ("disk", Severity.ERROR, {"read_only": ("/var/lib/slash32",)}),
    ("agent", Severity.ERROR, {"status": None, "agent_error": "no agent"}),
    ("agent", Severity.ERROR, {"status": {"findings": ["route x is missing"]}}),
    ("sessions", Severity.ERROR, {"peers": [DOWN]}),
    ("sessions", Severity.WARNING, {"peers": [{**HEALTHY.peers[0], "received": 0}]}),
]  # fmt: skip


def test_a_fit_machine_has_no_finding_and_every_check_speaks():
    """The control: all ok, each id once."""
    found = diagnose(HEALTHY)
    assert {each.severity for each in found} == {Severity.OK}
    assert [each.id for each in found] == [name for name, _, _ in CHECKS]


@pytest.mark.parametrize(("check", "severity", "changes"), BAD)
def test_each_trouble_is_found_with_its_remedy(
    check: str, severity: Severity, changes: dict[str, Any]
):
    """By id; whatever is no mere ignorance has a remedy."""
    found = [f for f in diagnose(replace(HEALTHY, **changes)) if f.id == check]
    assert severity in {each.severity for each in found}, found
    for each in found:
        assert each.evidence
        assert each.remedy or each.severity is Severity.UNKNOWN


def test_before_the_installation_the_agent_is_not_missed():
    """No agent, no sessions, and forwarding may still be off."""
    facts = replace(HEALTHY, status=None, peers=(), sysctls={"net.ipv4.conf.all.forwarding": "0"})
    found = diagnose(facts, pre_install=True)
    assert {each.id for each in found} & {"agent", "sessions"} == set()
    assert Severity.ERROR not in {each.severity for each in found}


def test_the_files_of_a_machine_are_read(tmp_path: Path):
    """systemd-networkd with drop-ins, NetworkManager, CNI files of ours, of others, and junk."""
    assert _networkd(tmp_path) is None
    (tmp_path / "run/systemd/netif/links").mkdir(parents=True)
    assert _networkd(tmp_path) == {}
    drop_ins = tmp_path / "etc/systemd/networkd.conf.d"
    drop_ins.mkdir(parents=True)
    (tmp_path / "etc/systemd/networkd.conf").write_text("[Network]\nManageForeignRoutes=yes\n")
    (drop_ins / "slash32.conf").write_text("[Network]\nManageForeignRoutes=no\n")
    assert _networkd(tmp_path) == {"manageforeignroutes": "no"}
    assert _network_manager(tmp_path) == (False, False)
    (tmp_path / "run/NetworkManager").mkdir()
    manager = tmp_path / "etc/NetworkManager/conf.d"
    manager.mkdir(parents=True)
    (manager / "x.conf").write_text("[keyfile]\nunmanaged-devices=interface-name:s32*\n")
    assert _network_manager(tmp_path) == (True, True)
    conf = tmp_path / "net.d"
    assert _network_files(conf) == ()
    conf.mkdir()
    (conf / "10-a.conflist").write_text('{"plugins": [{"type": "slash32"}]}')
    (conf / "20-b.conf").write_text('{"type": "bridge"}')
    (conf / "30-c.conflist").write_text("{")
    (conf / "readme").write_text("")
    assert [(f.name, f.is_ours) for f in _network_files(conf) or ()] == [
        ("10-a.conflist", True), ("20-b.conf", False), ("30-c.conflist", False),
    ]  # fmt: skip


def test_doctor_runs_here_and_its_json_is_as_published(tmp_path: Path):
    """On whatever machine this is: no crash, the schema holds, without an agent it is a finding."""
    facts = gather(root=tmp_path, run_dir=tmp_path, state_dir=tmp_path, conf_dir=tmp_path)
    assert facts.kernel > (3, 0)
    assert facts.status is None
    options = ["--run-dir", str(tmp_path), "--state-dir", str(tmp_path), "--store", "/nonexistent"]
    done = CliRunner().invoke(main, ["doctor", *options, "-o", "json"])
    assert done.exit_code == 1
    rows = json.loads(done.stdout)
    jsonschema.validate(rows, {**SCHEMAS, "$ref": "#/$defs/doctor"})
    assert "error" in {row["severity"] for row in rows if row["id"] == "agent"}
    assert "agent" in CliRunner().invoke(main, ["doctor", *options, "-o", "name"]).stdout.split()


# -- addresses ---------------------------------------------------------------------------------


def told(
    node: str, *, pods: list[str], booked: list[str], blocks: list[tuple[str, str]]
) -> dict[str, Any]:
    return {
        "node": node,
        "blocks": [{"block": b, "node": n, "state": "confirmed"} for b, n in blocks],
        "holders": [{"container_id": "c" * 20, "addresses": booked}],
        "pods": [{"host_ifname": "s32x", "addresses": pods}],
        "problems": [],
    }


BLOCKS = [("10.244.1.0/26", "n1"), ("10.244.2.0/26", "n2")]


def test_an_audit_finds_what_does_not_agree():
    """Books, links and blocks; across nodes; and the control is silent."""
    n1 = told("n1", pods=["10.244.1.1"], booked=["10.244.1.1"], blocks=BLOCKS)
    n2 = told("n2", pods=["10.244.2.1"], booked=["10.244.2.1"], blocks=BLOCKS)
    pools = [("pods", "10.244.0.0/16")]
    nodes = ["n1", "n2"]
    assert audit({"n1": n1, "n2": n2}, nodes=nodes, pools=pools) == []

    def ids(facts: dict[str, Any], **changes: Any) -> set[str]:
        values: dict[str, Any] = {"nodes": nodes, "pools": pools} | changes
        found = audit(facts, **values)
        for each in found:
            jsonschema.validate(
                [{"id": each.id, "node": each.node, "what": each.what, "detail": each.detail}],
                {**SCHEMAS, "$ref": "#/$defs/ipam-check"},
            )
        return {each.id for each in found}

    stray = told("n2", pods=["10.244.1.1"], booked=["10.244.2.1"], blocks=BLOCKS)
    assert ids({"n1": n1, "n2": stray}) == {
        "address-twice", "booked-without-link", "link-without-book", "address-outside-blocks",
    }  # fmt: skip
    assert ids({"n1": n1}, nodes=["n1"]) == {"block-without-node"}
    assert ids({"n1": n1}, pools=[("x", "10.9.0.0/16")]) == {"block-without-pool"}
    assert ids({"n1": n1}, pools=[*pools, ("y", "10.0.0.0/8")]) == {"pools-overlap"}
    overlapping = told("n1", pods=[], booked=[], blocks=[*BLOCKS, ("10.244.1.0/27", "n2")])
    assert ids({"n1": overlapping}) == {"blocks-overlap"}
    pending = told("n1", pods=[], booked=[], blocks=[])
    pending["blocks"] = [{"block": "10.244.1.0/26", "node": "n1", "state": "pending"}]
    assert ids({"n1": pending}) == {"block-not-confirmed"}


def test_pools_are_counted_by_their_blocks():
    """Claimed and unclaimed; without the store the size is not known."""
    rows: list[dict[str, Any]] = [
        {"block": "10.244.1.0/26", "pool": "p", "used": 3, "cooling": 1, "free": 60},
        {"block": "10.244.2.0/26", "pool": "p", "used": None, "cooling": None, "free": None},
    ]
    assert pool_rows(rows, {"p": "10.244.0.0/16"}) == [
        {"pool": "p", "cidr": "10.244.0.0/16", "addresses": 65536, "blocks": 2, "used": 3,
         "cooling": 1, "free": 60, "unclaimed": 65408}
    ]  # fmt: skip
    assert pool_rows(rows, {})[0]["unclaimed"] is None


def test_only_blocks_of_nodes_that_are_gone_are_released(tmp_path: Path):
    """First said, then done with --yes; a live node's block, and one that is none, are refused."""
    store = str(tmp_path / "store.db")
    file = tmp_path / "all.yaml"
    file.write_text(
        "apiVersion: slash32.io/v1\nkind: Node\nmetadata: {name: n1}\n"
        "spec: {addresses: [192.0.2.1]}\n---\n"
        "apiVersion: slash32.io/v1\nkind: IPPool\nmetadata: {name: pods}\n"
        "spec: {cidr: 10.244.0.0/16, blockSize: 26}\n"
        + "".join(
            f"---\napiVersion: slash32.io/v1\nkind: Block\nmetadata: {{name: 10-244-{n}-0-26}}\n"
            f"spec: {{cidr: 10.244.{n}.0/26, pool: pods, state: confirmed, "
            f"affinity: 'host:n{n}'}}\n"
            for n in (1, 2)
        )
    )
    applied = CliRunner().invoke(main, ["apply", "-f", str(file), "--store", store])
    assert applied.exit_code == 0, applied.output

    def release(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["ipam", "release", *arguments, "--store", store])

    assert release("10.244.1.0/26", "--yes").exit_code == 1
    assert release("10.244.9.0/26", "--yes").exit_code == 1
    assert release("nonsense").exit_code == 2
    assert "would-be-released" in release("10.244.2.0/26").stdout
    # All or none: the live node's block keeps the other one too.
    assert release("10.244.2.0/26", "10.244.1.0/26", "--yes").exit_code == 1
    done = release("10.244.2.0/26", "--yes")
    assert done.stdout.splitlines()[1].split()[:3] == ["n2", "10.244.2.0/26", "released"]
    left = CliRunner().invoke(main, ["get", "blocks", "-o", "name", "--store", store])
    assert left.stdout == "block/10-244-1-0-26\n"


# -- diag --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("    md5-password 's3cret';\n", "s3cret"),
        ("password: s3cret\n", "s3cret"),
        ('{"authToken": "s3cret", "a": 1}', "s3cret"),
        ("Authorization: Bearer s3cret\n", "s3cret"),
    ],
)
def test_secrets_are_taken_out(text: str, secret: str):
    """What is called a password, secret or token loses its value; the line stays."""
    assert secret not in redacted(text)
    assert "<removed>" in redacted(text)
    assert redacted("neighbor 192.0.2.1\n") == "neighbor 192.0.2.1\n"


def test_a_tarball_holds_what_is_there_and_names_what_is_not(tmp_path: Path):
    """0600; the agent is away, the speaker's file is there and has lost its key."""
    (tmp_path / "exabgp.conf").write_text("neighbor x {\n  md5-password 's3cret';\n}\n")
    target = tmp_path / "out.tgz"
    done = CliRunner().invoke(
        main,
        ["diag", "-o", str(target), "--run-dir", str(tmp_path), "--state-dir", str(tmp_path),
         "--store", "/nonexistent"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert target.stat().st_mode & 0o777 == 0o600
    with tarfile.open(target) as tar:
        contents = {
            Path(entry.name).name: (tar.extractfile(entry) or io.BytesIO()).read()
            for entry in tar.getmembers()
        }
    assert b"md5-password <removed>" in contents["exabgp.conf"]
    assert b"no slash32 agent answers" in contents["errors.txt"]
    assert {"version.txt", "ip-route.txt", "uname.txt"} <= contents.keys()
    assert all(b"s3cret" not in raw for raw in contents.values())


def test_doctor_looks_again_until_it_is_interrupted(tmp_path: Path, monkeypatch):
    """--watch, as everywhere; the exit code is that of the last look."""
    naps = iter([None, KeyboardInterrupt])

    def nap(_seconds: float) -> None:
        if (error := next(naps)) is not None:
            raise error

    monkeypatch.setattr("routing.cli.output.time.sleep", nap)
    done = CliRunner().invoke(
        main,
        ["doctor", "--watch", "-o", "table", "--no-headers", "--run-dir", str(tmp_path),
         "--state-dir", str(tmp_path), "--store", "/nonexistent"],
    )  # fmt: skip
    assert done.exit_code == 1, done.output
    assert done.stdout.count("no slash32 agent answers") == 2
