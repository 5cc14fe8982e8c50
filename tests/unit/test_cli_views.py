"""The everyday commands: who is asked, what is printed in which form, and the exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result

from bgp.paths import Path as LearnedPath
from bgp.paths import Peer, PeerStatus, SessionState
from cni.ipam.block import Block, BlockState
from routing.cli.history import net_changes
from routing.cli.main import main
from routing.control import ControlServer
from routing.desired import Desired
from routing.import_policy import RejectedPath
from routing.journal import Journal
from routing.report import PassReport
from routing.routes import NextHop, Route, RouteKey, RouteKind
from routing.view import (
    Belief,
    block_rows,
    narrowed,
    peer_rows,
    pod_rows,
    route_rows,
    status_row,
)
from routing.view_rib import advertised_rows, kernel_rows, path_rows

ROOT = Path(__file__).parents[2]
SCHEMAS = json.loads((ROOT / "docs" / "schemas" / "commands.json").read_text())
TOR = ip_address("172.30.0.0")
FAR = ip_network("10.244.2.0/26")
OWN = ip_network("10.244.1.0/26")
KEY = RouteKey(FAR)
ROUTE = Route(KEY, (NextHop("uplink0", TOR),))


def belief(*, up: bool = True, node: str = "node1") -> Belief:
    """A node with one router, one block and one learned route; and one route refused."""
    peer = Peer(
        "tor",
        TOR,
        64512,
        64601,
        ip_address("172.30.0.1"),
        ip_address("172.30.0.1"),  # type: ignore[arg-type]
    )
    path = LearnedPath(TOR, FAR, TOR, (64512,), 1)
    junk = LearnedPath(TOR, ip_network("192.0.2.0/24"), TOR, (64512,), 1)
    state = SessionState.ESTABLISHED if up else SessionState.IDLE
    return Belief(
        now_s=100.0,
        node=node,
        version="1.2.3",
        desired=Desired(
            routes={KEY: ROUTE},
            kinds={KEY: RouteKind.REMOTE},
            peers={TOR: peer},
            best={FAR: (path,)},
            rejected=(RejectedPath(junk, "not-in-pool", "in no IPPool"),),
        ),
        actual={KEY: ROUTE},
        sessions={TOR: PeerStatus(TOR, state, 40.0, "" if up else "notification received (2,2)")},
        paths={(TOR, FAR): path, (TOR, junk.prefix): junk},
        advertised=frozenset({(TOR, OWN)}),
        blocks=[
            Block(OWN, "pods", node, BlockState.CONFIRMED),
            Block(FAR, "pods", "node2", BlockState.CONFIRMED),
        ],
        usage={},
        pods=[],
        held=[],
        failures=[],
        store_error=None,
        speaker_connected=True,
        last_pass_age_s=0.1,
        stale={(TOR, FAR)},
    )


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A control socket in a thread of its own; ``belief`` may be exchanged at any time."""
    box: dict[str, Any] = {"belief": belief(), "run_dir": tmp_path}

    def view(rows: Any) -> Any:
        async def answer() -> Any:
            return rows(box["belief"])

        return answer

    def table(rows: Any) -> Any:
        async def answer(arguments: Any) -> Any:
            box["asked"] = arguments
            box["told"] = rows(narrowed(box["belief"], arguments.get("prefix")))
            return box["told"]

        return answer

    views = {
        "status": status_row, "peers": peer_rows, "blocks": block_rows, "pods": pod_rows,
    }  # fmt: skip
    tables = {
        "routes": route_rows, "paths": path_rows, "advertised": advertised_rows,
        "kernel": kernel_rows,
    }  # fmt: skip

    async def nodes() -> Any:
        return box.get("nodes", {})

    loop = asyncio.new_event_loop()
    server = ControlServer(
        tmp_path / "agent.sock",
        {"nodes": nodes} | {k: view(v) for k, v in views.items()},
        {k: table(v) for k, v in tables.items()},
    )
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    try:
        yield box
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    """A command, with nothing of the environment that would choose a node."""
    clean = {"SLASH32_NODE": None, "SLASH32_RUN_DIR": None, "SLASH32_STORE": None,
             "SLASH32_VIA": None, "SLASH32_STATE_DIR": None}  # fmt: skip
    return CliRunner().invoke(main, list(arguments), env={**clean, **(env or {})})


def local(agent: dict[str, Any], *arguments: str) -> Result:
    return run(*arguments, "--run-dir", str(agent["run_dir"]))


def valid(result: Result, kind: str) -> Any:
    """The JSON of a result, checked against the published schema."""
    document = json.loads(result.stdout)
    jsonschema.validate(document, {**SCHEMAS, "$ref": f"#/$defs/{kind}"})
    return document


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("status",), "status"),
        (("peers",), "peers"),
        (("routes",), "routes"),
        (("routes", "--learned"), "learned"),
        (("routes", "--rejected"), "learned"),
        (("routes", "--stale"), "learned"),
        (("routes", "--advertised"), "advertised"),
        (("routes", "--kernel"), "kernel"),
        (("blocks",), "blocks"),
        (("pods",), "pods"),
        (("ipam", "show"), "ipam-show"),
    ],
)
def test_every_view_is_json_as_published_and_yaml_alike(agent, arguments, kind):
    """Two forms of one document."""
    printed = local(agent, *arguments, "-o", "json")
    assert printed.exit_code == 0, printed.output
    document = valid(printed, kind)
    again = yaml.safe_load(local(agent, *arguments, "-o", "yaml").stdout)
    for each in (document, again):
        for row in each if isinstance(each, list) else []:
            row.pop("since_s", None)
    assert again == document


def test_tables_grep_and_awk_and_their_headers_can_go(agent):
    """One line a row, the same number of fields in each, nothing but text."""
    lines = local(agent, "routes", "--learned").stdout.splitlines()
    assert lines[0].split() == ["NODE", "PREFIX", "FROM", "NEXT-HOP", "STATE", "REASON", "DETAIL"]
    assert lines[1].split()[:5] == [
        "node1",
        "10.244.2.0/26",
        "172.30.0.0",
        "172.30.0.0",
        "best,stale",
    ]
    assert lines[2].split()[4:6] == ["rejected", "not-in-pool"]
    bare = local(agent, "routes", "--learned", "--no-headers").stdout.splitlines()
    assert bare == lines[1:]
    names = local(agent, "routes", "--learned", "-o", "name").stdout.split()
    assert names == ["node1/10.244.2.0/26", "node1/192.0.2.0/24"]
    assert "LOCAL-PREF" in local(agent, "routes", "--learned", "-o", "wide").stdout
    assert "\x1b[" not in local(agent, "peers").stdout


def test_the_flags_of_routes_choose_what_they_say(agent):
    """Rejected, stale, and a prefix that concerns a route; one that concerns none is a finding."""
    assert len(json.loads(local(agent, "routes", "--rejected", "-o", "json").stdout)) == 1
    assert len(json.loads(local(agent, "routes", "--stale", "-o", "json").stdout)) == 1
    inside = local(agent, "routes", "10.244.2.9", "-o", "json")
    assert [row["prefix"] for row in json.loads(inside.stdout)] == ["10.244.2.0/26"]
    # Of a table of 100,000 the agent makes and sends no more than that.
    assert agent["asked"] == {"prefix": "10.244.2.9"}
    assert [row["prefix"] for row in agent["told"]] == [str(FAR)]
    assert local(agent, "routes", "203.0.113.1").exit_code == 1
    assert local(agent, "routes", "nonsense").exit_code == 2


def test_a_session_that_is_down_says_why_in_one_line(agent):
    """The cause by token and sentence in the table, the remedy in JSON; exit 1."""
    agent["belief"] = belief(up=False)
    shown = local(agent, "peers")
    assert shown.exit_code == 1
    assert "peer-wrong-asn: the two ends do not agree on an AS number" in shown.stdout
    row = valid(local(agent, "peers", "-o", "json"), "peers")[0]
    assert "compare asNumber of BGPPeer tor (64512)" in row["remedy"]


def test_the_exit_codes_are_the_same_everywhere(agent, tmp_path):
    """0 healthy, 1 findings, 2 usage, 3 unreachable, 5 timeout (4: below)."""
    nowhere = ("--run-dir", str(tmp_path / "nowhere"))
    for command in (("status",), ("peers",), ("routes",), ("blocks",), ("pods",)):
        assert local(agent, *command).exit_code == 0, command
        assert run(*command, *nowhere).exit_code == 3, command
        assert local(agent, *command, "-o", "csv").exit_code == 2, command
    assert run("peers", "--local", "-A").exit_code == 2
    agent["belief"] = belief(up=False)
    assert local(agent, "status").exit_code == 1
    waited = local(agent, "status", "--wait=0.1s")
    assert waited.exit_code == 5
    assert "not healthy after 0.1 s: peer 172.30.0.0 is Idle" in waited.stderr
    assert run("status", "--wait=0.1s", *nowhere).exit_code == 5
    assert local(agent, "status", "--wait=soon").exit_code == 2
    agent["belief"] = belief()
    assert local(agent, "status", "--wait").exit_code == 0


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """A store with three Nodes, and a way that reaches node2 and not node3."""
    store = tmp_path / "store.db"
    document = "\n---\n".join(
        f"apiVersion: slash32.io/v1\nkind: Node\nmetadata: {{name: node{n}}}\n"
        f"spec: {{addresses: [192.0.2.{n}]}}"
        for n in (1, 2, 3)
    )
    file = tmp_path / "nodes.yaml"
    file.write_text(document)
    assert run("apply", "-f", str(file), "--store", str(store)).exit_code == 0
    rows = tmp_path / "node2.json"
    rows.write_text(json.dumps(peer_rows(belief(node="node2"))))
    way = tmp_path / "way"
    way.write_text(
        f'#!/bin/sh\n[ "$1" = node2 ] || {{ echo "ssh: no route" >&2; exit 255; }}\n'
        f'echo "$@" >> {tmp_path}/asked\ncat {rows}\n'
    )
    way.chmod(way.stat().st_mode | stat.S_IXUSR)
    return {"SLASH32_STORE": str(store), "SLASH32_VIA": f"{way} {{node}}"}


def test_the_agent_here_names_the_nodes_when_it_has_the_same_store(agent):
    """No store need be read, or be there. One with another store is not believed: exit 3."""
    store = "/nonexistent/store.db"
    given = ("peers", "-A", "--store", store, "--via", "false", "-o", "json")
    agent["nodes"] = {"store": store, "nodes": ["node1", "node2"]}
    done = local(agent, *given)
    assert done.exit_code == 4, done.output
    assert {row["node"] for row in json.loads(done.stdout)} == {"node1"}
    assert "node2 did not answer" in done.stderr
    for other in ({"store": "kubernetes", "nodes": ["node1"]}, {"store": store, "nodes": []}, {}):
        agent["nodes"] = other
        assert local(agent, *given).exit_code == 3


def test_all_nodes_are_asked_and_those_that_are_silent_are_named(agent, cluster, tmp_path):
    """This node by its socket, node2 by the way, node3 not at all: exit 4, the table is there."""
    shown = local(agent, "peers", "-A", "-o", "json")
    assert shown.exit_code == 3  # No store is there by default.
    shown = CliRunner().invoke(
        main,
        ["peers", "-A", "-o", "json", "--run-dir", str(agent["run_dir"])],
        env={**cluster, "SLASH32_NODE": "node1"},
    )
    assert shown.exit_code == 4, shown.output
    assert [row["node"] for row in json.loads(shown.stdout)] == ["node1", "node2"]
    assert "node3 did not answer" in shown.stderr
    assert "ssh: no route" in shown.stderr
    assert (tmp_path / "asked").read_text() == "node2 peers --local -o json\n"
    one = run("peers", "--node", "node2", "-o", "name", "--run-dir", "/nonexistent", env=cluster)
    assert (one.exit_code, one.stdout) == (0, "node2/172.30.0.0\n")
    assert run("peers", "--node", "node9", env=cluster).exit_code == 2
    assert run("peers", "--node", "node3", env=cluster).exit_code == 3
    table = run("status", "--run-dir", str(agent["run_dir"]), "-A", env=cluster)
    assert table.exit_code in (1, 4)


def test_a_node_that_cannot_be_asked_is_answered_for_by_its_report(agent, cluster, tmp_path):
    """Its NodeStatus in the store, dated; exit 1 for what it reports, not 4."""
    report = tmp_path / "report.yaml"
    report.write_text(
        "apiVersion: slash32.io/v1\nkind: NodeStatus\nmetadata: {name: node3}\n"
        "status:\n  version: 1.2.2\n  observedAt: 2026-11-26T20:00:00Z\n"
        "  routes: {pod: 2, remote: 3}\n  addresses: {used: 2, resting: 0, free: 62}\n"
        "  peers: [{name: tor, address: 172.30.0.4, asNumber: 64512, state: Idle,\n"
        "           reason: 'notification received (2,2)', since: 2026-11-26T19:00:00Z}]\n"
        "  conditions: [{type: BGPReady, status: 'False', reason: NoSession, message: none up}]\n"
    )
    applied = run("apply", "-f", str(report), env=cluster)
    assert applied.exit_code == 0, applied.output
    options = ("-A", "--run-dir", str(agent["run_dir"]), "-o", "json")
    shown = run("peers", *options, env=cluster)
    assert shown.exit_code == 1, shown.output
    row = valid(shown, "peers")[-1]
    assert (row["node"], row["reported_at"]) == ("node3", "2026-11-26T20:00:00Z")
    assert row["cause"].startswith("peer-wrong-asn")
    only = run("status", "--node", "node3", "-o", "json", env=cluster)
    assert only.exit_code == 1
    assert valid(only, "status")["findings"] == ["BGPReady: none up"]
    assert (
        "by the node itself to the store, 2026"
        in run("status", "--node", "node3", env=cluster).stdout
    )


def test_who_is_meant_without_options(agent, cluster, monkeypatch):
    """On a node without a way to others its own agent; with a way, all nodes of the store."""
    monkeypatch.setattr("routing.cli.fleet.DEFAULT_RUN_DIR", str(agent["run_dir"]))
    options = {p.name: p for p in main.get_command(None, "peers").params}  # type: ignore[arg-type, union-attr]
    monkeypatch.setattr(options["run_dir"], "default", str(agent["run_dir"]))
    alone = run("peers", "-o", "name", env={"SLASH32_STORE": "/nonexistent"})
    assert (alone.exit_code, alone.stdout) == (0, "node1/172.30.0.0\n")
    everybody = run("peers", "-o", "name", env=cluster)
    assert everybody.stdout.split() == ["node1/172.30.0.0", "node2/172.30.0.0"]
    assert everybody.exit_code == 4


def test_colour_and_cutting_are_for_terminals_only(monkeypatch):
    """A pipe gets everything and no escape codes; NO_COLOR wins on a terminal too."""
    from routing.cli import output
    from routing.cli.options import colour_of

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colour_of(Terminal())  # type: ignore[arg-type]
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour_of(Terminal())  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    assert output._cut("x" * 200) == "x" * 79 + "…"
    monkeypatch.undo()
    assert output._cut("x" * 200) == "x" * 200


def test_watch_prints_again_until_it_is_interrupted(agent):
    """Two documents, then Ctrl-C: the exit code is that of the last one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "routing.cli.main", "peers", "--run-dir", str(agent["run_dir"]),
         "-w", "-o", "name"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
        # A shell's job in the background is born ignoring it, and so are the tests in it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert lines == ["node1/172.30.0.0\n", "\n", "node1/172.30.0.0\n"]
    assert process.returncode == 0


def test_history_and_diff_read_the_journal_also_of_a_dead_agent(tmp_path):
    """From disk; a prefix narrows it; what is as it was is not in the diff."""
    import time

    journal = Journal(tmp_path / "journal", clock=time.time)
    empty = PassReport(passes=1)
    full = PassReport(desired=belief().desired, passes=2)
    journal.note(empty, full, {})
    journal.close()
    options = ("--local", "--node", "node1", "--state-dir", str(tmp_path))
    shown = run("history", "10.244.2.7", *options, "-o", "json")
    assert shown.exit_code == 0, shown.output
    schema = json.loads((ROOT / "docs" / "schemas" / "history.json").read_text())
    entries = json.loads(shown.stdout)
    jsonschema.validate(entries, schema)
    assert [(e["node"], e["action"], e["prefix"]) for e in entries] == [
        ("node1", "created", "10.244.2.0/26")
    ]
    assert "path from 172.30.0.0 next hop 172.30.0.0" in run("history", *options).stdout
    changed = run("diff", "--since", "5m", *options)
    assert changed.exit_code == 1
    assert "+  node1  route" in changed.stdout
    journal = Journal(tmp_path / "journal", clock=time.time)
    journal.note(full, empty, {})
    journal.close()
    gone = valid(run("diff", "--since", "5m", *options, "-o", "json"), "diff")
    assert [row["kind"] for row in gone] == ["path"]
    assert run("history", "--since", "soon", *options).exit_code == 2


@pytest.mark.parametrize(
    ("actions", "sign"),
    [
        (["created"], "+"), (["deleted"], "-"), (["created", "deleted"], None),
        (["deleted", "created"], None), (["replaced"], "~"), (["repaired"], None),
        (["deleted", "created", "replaced"], "~"), (["found"], None), (["found", "deleted"], "-"),
    ],
)  # fmt: skip
def test_net_changes_forget_what_came_and_went(actions, sign):
    """Only the difference between then and now is told."""
    entries = [
        {"at": i, "node": "n", "kind": "route", "prefix": "p", "action": action}
        for i, action in enumerate(actions)
    ]
    assert [row["sign"] for row in net_changes(entries)] == ([sign] if sign else [])


def test_completion_and_version_and_the_kubectl_plugin():
    """A script for each shell; versions; kubectl finds its plugin by name."""
    for shell in ("bash", "zsh", "fish"):
        printed = run("completion", shell)
        assert printed.exit_code == 0
        assert "_SLASH32_COMPLETE" in printed.stdout
    assert run("completion", "tcsh").exit_code == 2
    versions = valid(run("version", "-o", "json"), "version")
    assert yaml.safe_load(run("version", "-o", "yaml").stdout) == versions
    assert run("--version").stdout.startswith("slash32 ")
    scripts = (ROOT / "pyproject.toml").read_text()
    assert 'kubectl-slash32 = "routing.cli.main:kubectl_main"' in scripts
    done = subprocess.run(
        [sys.executable, "-c", "from routing.cli.main import kubectl_main; kubectl_main()", "-h"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "Usage: kubectl slash32" in done.stdout


def test_the_plugin_means_kubectls_cluster(monkeypatch):
    """Its API is the store and its exec the way, unless somebody has said otherwise."""
    from routing.cli import main as module

    seen: dict[str, str] = {}
    monkeypatch.setattr(module, "main", lambda **_: seen.update(os.environ))
    monkeypatch.delenv("SLASH32_VIA", raising=False)
    monkeypatch.setenv("SLASH32_STORE", "/a/file")
    monkeypatch.setenv("SLASH32_VIA", "kubectl")
    module.kubectl_main()
    assert seen["SLASH32_STORE"] == "/a/file"
    monkeypatch.delenv("SLASH32_STORE")
    module.kubectl_main()
    assert (seen["SLASH32_STORE"], seen["SLASH32_VIA"]) == ("kubernetes", "kubectl")
    monkeypatch.delenv("SLASH32_STORE")


def test_a_local_status_loads_no_heavy_module(agent):
    """Cold start is imports; this names those that must not come back."""
    script = (
        "import sys; from routing.cli.main import main\n"
        "try: main(['status', '--run-dir', sys.argv[1]])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'asyncio', 'sqlite3', 'concurrent.futures', "
        " 'structlog', 'yaml', 'kubernetes', 'pyroute2', "
        "'routing.datastore.local', 'bgp.speaker', 'importlib.metadata', 'prometheus_client'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(agent["run_dir"])],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stdout + done.stderr
