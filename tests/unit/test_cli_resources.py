"""slash32 apply, get, delete: what they print, what they change, and their exit codes."""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner, Result

from routing.cli.main import main

ALL = """
apiVersion: slash32.io/v1
kind: IPPool
metadata: {name: default}
spec: {cidr: 10.244.0.0/16, nodeSelector: has(rack)}
---
apiVersion: slash32.io/v1
kind: Node
metadata: {name: node-a}
spec: {addresses: [192.0.2.1, "fd00::1"], bgp: {asNumber: 64601}}
---
apiVersion: slash32.io/v1
kind: BGPPeer
metadata: {name: tor}
spec: {peerIP: "192.0.2.254:1179", asNumber: 64512, node: node-a}
---
apiVersion: slash32.io/v1
kind: BGPConfiguration
metadata: {name: default}
spec: {asNumber: 64512, importAllow: [0.0.0.0/0], nodeToNodeMeshEnabled: false}
---
apiVersion: slash32.io/v1
kind: Block
metadata: {name: 10-244-1-0-26}
spec: {cidr: 10.244.1.0/26, pool: default, affinity: "host:node-a", state: confirmed}
"""


class Cli:
    """The command with a store of its own; files are made on the way."""

    def __init__(self, directory) -> None:
        self.directory = directory
        self.store = directory / "store.db"

    def __call__(self, *arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(
            main, list(arguments), input=stdin, env={"SLASH32_STORE": str(self.store)}
        )

    def file(self, text: str | bytes, name: str = "f.yaml") -> str:
        path = self.directory / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def apply(self, text: str) -> Result:
        return self("apply", "-f", "-", stdin=text)


@pytest.fixture
def cli(tmp_path):
    """A Cli whose store does not exist yet."""
    return Cli(tmp_path)


@pytest.fixture
def filled(cli):
    """A Cli with one resource of each kind."""
    assert cli.apply(ALL).exit_code == 0
    return cli


# -- apply ---------------------------------------------------------------------------------


def test_apply_says_what_it_did_with_each(cli):
    """created, then unchanged, then configured; the store is made on the way."""
    path = cli.file(ALL)

    first, second = cli("apply", "-f", path), cli("apply", "-f", path)
    third = cli.apply(ALL.replace("asNumber: 64601", "asNumber: 64602"))

    assert (first.exit_code, first.stderr) == (0, "")
    assert first.stdout == (
        "ippool/default created\nnode/node-a created\nbgppeer/tor created\n"
        "bgpconfiguration/default created\nblock/10-244-1-0-26 created\n"
    )
    assert second.stdout.count(" unchanged") == 5
    assert third.stdout.count(" unchanged") == 4
    assert "node/node-a configured" in third.stdout


def test_several_files_are_one_batch(cli):
    """A rule broken by the second file keeps the first from being written."""
    first = cli.file(ALL, "1.yaml")
    second = cli.file(
        "apiVersion: slash32.io/v1\nkind: IPPool\nmetadata: {name: b}\n"
        "spec: {cidr: 10.244.9.0/24}\n",
        "2.yaml",
    )

    result = cli("apply", "-f", first, "-f", second)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        "slash32: IPPool 'default': spec.cidr = '10.244.0.0/16': overlaps IPPool 'b' "
        "(10.244.9.0/24)\n"
    )
    assert cli("get", "ippools").stderr == "No IPPool found.\n"


def test_a_resource_in_two_files_is_refused(cli):
    """Which of them was meant?"""
    result = cli("apply", "-f", cli.file(ALL, "1.yaml"), "-f", cli.file(ALL, "2.yaml"))

    assert result.exit_code == 2
    assert "is given in two files" in result.stderr


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("kind: Pod", "Pod '': kind = 'Pod': must be one of IPPool"),
        ("a: &x [*x]", "f.yaml: line 1: anchors and aliases are not accepted"),
        (b"\xff\xfe\x00", "f.yaml: is not text in UTF-8 (at byte 0)"),
        (b"x" * (1 << 20) + b"x", "f.yaml: is larger than 1048576 bytes (1 MiB)"),
        ("", "f.yaml: holds no resource"),
        (ALL.replace("10.244.0.0/16", "10.244.0.1/16"), "has host bits set; the network is"),
        (ALL.replace("64512, node", "0, node"), "BGPPeer 'tor': spec.asNumber = 0: must be an AS"),
    ],
)
def test_what_is_invalid_is_one_sentence_and_code_2(cli, content, sentence):
    """On stderr, with nothing stored: not even a store is made."""
    result = cli("apply", "-f", cli.file(content))

    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr
    assert result.stderr.startswith("slash32: ")
    assert result.stderr.count("\n") == 1
    assert not cli.store.exists()


@pytest.mark.parametrize("name", ["ghost.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(cli, name):
    """Missing, or a directory: code 2."""
    result = cli("apply", "-f", str(cli.directory / name))

    assert result.exit_code == 2
    assert result.stderr.startswith("slash32: cannot read /")


def test_an_endless_file_is_refused_at_its_limit(cli):
    """/dev/zero does not fill the memory."""
    result = cli("apply", "-f", "/dev/zero")

    assert (result.exit_code, result.stderr) == (
        2,
        "slash32: /dev/zero: is larger than 1048576 bytes (1 MiB)\n",
    )


def test_an_edit_of_an_older_reading_is_a_conflict(filled):
    """get -o yaml, somebody else's change, apply: code 1 and nothing written."""
    mine = filled("get", "node", "node-a", "-o", "yaml").stdout
    filled.apply(ALL.replace("asNumber: 64601", "asNumber: 64602"))

    result = filled.apply(mine.replace("64601", "64603"))

    assert result.exit_code == 1
    assert "changed meanwhile" in result.stderr
    assert "64602" in filled("get", "nodes").stdout


# -- get -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        ("ippool", "NAME     CIDR           BLOCKSIZE  DISABLED  SELECTOR\n"
                   "default  10.244.0.0/16  /26        false     has(rack)\n"),
        ("Nodes", "NAME    ADDRESSES          ASN\nnode-a  192.0.2.1,fd00::1  64601\n"),
        ("bgppeers", "NAME  PEER              ASN    NODES   HOLDTIME  FILTERS\n"
                     "tor   192.0.2.254:1179  64512  node-a  9s        -\n"),
        ("bgpconfig", "NAME     ASN    LISTENPORT  MESH   IMPORTALLOW\n"
                      "default  64512  179         false  0.0.0.0/0\n"),
        ("blocks", "NAME           CIDR           POOL     NODE    STATE\n"
                   "10-244-1-0-26  10.244.1.0/26  default  node-a  confirmed\n"),
    ],
)  # fmt: skip
def test_get_prints_plain_tables(filled, kind, table):
    """As kubectl does: no boxes, grep and awk can read them."""
    assert filled("get", kind).stdout == table


def test_get_gives_a_list_or_one_in_json_and_yaml(filled):
    """What is printed can be applied again, unchanged."""
    listed = json.loads(filled("get", "ippools", "-o", "json").stdout)
    one = yaml.safe_load(filled("get", "ippool", "default", "-o", "yaml").stdout)

    assert (listed["kind"], listed["apiVersion"]) == ("List", "v1")
    assert listed["items"] == [one]
    assert one["spec"]["cidr"] == "10.244.0.0/16"
    assert one["metadata"]["generation"] == 1
    again = filled.apply(filled("get", "ippools", "-o", "yaml").stdout)
    assert again.stdout == "ippool/default unchanged\n"


def test_get_names(filled):
    """As kubectl's -o name; and a block by its CIDR."""
    assert filled("get", "nodes", "-o", "name").stdout == "node/node-a\n"
    by_cidr = filled("get", "block", "10.244.1.0/26", "-o", "name")
    assert by_cidr.stdout == "block/10-244-1-0-26\n"


def test_an_empty_list_is_empty_in_its_form(cli):
    """A remark for people, an empty List for programs; code 0."""
    cli.apply(ALL.split("---")[1])

    table, listed = cli("get", "blocks"), cli("get", "blocks", "-o", "json")

    assert (table.exit_code, table.stdout, table.stderr) == (0, "", "No Block found.\n")
    assert json.loads(listed.stdout)["items"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("get", "ippool", "ghost"), 1, "slash32: IPPool 'ghost' was not found\n"),
        (("get", "block", "10.9.0.0/26"), 1, "slash32: Block '10-9-0-0-26' was not found\n"),
        (("get", "block", "10.9.0.1/26"), 2, "slash32: Block '10.9.0.1/26': has host bits set"),
        (("get", "pods"), 2, "slash32: no kind 'pods'; known: IPPool, Node, BGPPeer,"),
        (("get", "ippool", "-o", "wide"), 2, "Invalid value for '-o'"),
        (("delete", "node", "ghost"), 1, "slash32: Node 'ghost' was not found\n"),
        (("delete", "node"), 2, "give either KIND and NAME, or -f FILE"),
        (("delete",), 2, "give either KIND and NAME, or -f FILE"),
        (("apply",), 2, "Missing option '-f'"),
    ],
)
def test_exit_codes(filled, arguments, code, sentence):
    """0 found, 1 not found, 2 usage; the sentence on stderr."""
    result = filled(*arguments)

    assert result.exit_code == code
    assert sentence in result.stderr
    assert result.stdout == ""


# -- delete --------------------------------------------------------------------------------


def test_delete_by_name_and_by_file(filled):
    """Each named as kubectl names it; the rest stays."""
    assert filled("delete", "node", "node-a").stdout == "node/node-a deleted\n"
    rest = "---".join(part for part in ALL.split("---") if "kind: Node" not in part)

    result = filled("delete", "-f", filled.file(rest))

    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "ippool/default deleted",
        "bgppeer/tor deleted",
        "bgpconfiguration/default deleted",
        "block/10-244-1-0-26 deleted",
    ]


def test_deleting_the_last_peer_says_that_the_sessions_stay_for_a_while(filled):
    """Or an operator waits in vain for them to end; not where another peer or 0s is left."""
    other = """
apiVersion: slash32.io/v1
kind: BGPPeer
metadata: {name: other}
spec: {peerIP: 192.0.2.253, asNumber: 64512}
"""
    filled("apply", "-f", filled.file(other))
    assert filled("delete", "bgppeer", "other").stderr == ""

    result = filled("delete", "bgppeer", "tor")

    assert (result.exit_code, result.stdout) == (0, "bgppeer/tor deleted\n")
    assert (
        "no peer is left for node-a: the last sessions there are kept for 10 min" in result.stderr
    )
    assert "keepLastPeersFor" in result.stderr
    at_once = """
apiVersion: slash32.io/v1
kind: BGPConfiguration
metadata: {name: default}
spec: {nodeToNodeMeshEnabled: false, keepLastPeersFor: 0s}
"""
    filled("apply", "-f", filled.file(other + "---" + at_once))
    assert filled("delete", "bgppeer", "other").stderr == ""


def test_delete_is_all_or_nothing(filled):
    """One name of two is not there: code 1, and the other stays."""
    result = filled("delete", "nodes", "node-a", "ghost")

    assert (result.exit_code, result.stdout) == (1, "")
    assert filled("get", "node", "node-a").exit_code == 0


def test_a_pool_with_blocks_is_not_deleted(filled):
    """Code 2, and the sentence says what to do."""
    result = filled("delete", "ippool", "default")

    assert result.exit_code == 2
    assert "cannot be deleted while 1 of its blocks are claimed (by node-a)" in result.stderr
    assert filled("get", "ippool", "default").exit_code == 0


# -- the store -----------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("get", "nodes"), ("delete", "node", "x")])
def test_a_missing_store_is_code_3_and_not_made(cli, arguments):
    """A mistyped path is not an empty cluster."""
    result = cli(*arguments)

    assert result.exit_code == 3
    assert result.stderr == f"slash32: store {cli.store}: does not exist\n"
    assert not cli.store.exists()


def test_a_broken_store_is_code_3_and_untouched(cli):
    """For reading and writing alike."""
    cli.store.write_bytes(b"precious")

    for result in (cli("get", "nodes"), cli.apply(ALL), cli("delete", "node", "x")):
        assert result.exit_code == 3
        assert "store.db: is not a slash32 store" in result.stderr
    assert cli.store.read_bytes() == b"precious"


def test_the_store_option_goes_before_the_environment(cli):
    """--store FILE, also for a directory that is not there."""
    result = cli("apply", "-f", cli.file(ALL), "--store", "/no/such/dir/store.db")

    assert result.exit_code == 3
    assert "directory /no/such/dir does not exist" in result.stderr


# -- node drain --------------------------------------------------------------------------------


def drained(cli) -> bool:
    """What the store has of the node."""
    document = json.loads(cli("get", "node", "node-a", "-o", "json").stdout)
    return bool(document["spec"]["bgp"].get("drained", False))


def test_a_node_is_drained_and_put_back(filled):
    """Asking twice is asking once; nothing else of the node changes."""
    before = json.loads(filled("get", "node", "node-a", "-o", "json").stdout)
    for _ in range(2):
        done = filled("node", "drain", "node-a")
        assert (done.exit_code, done.stdout) == (0, "node/node-a is being drained\n")
        assert drained(filled)
    assert filled("node", "undrain", "node-a").exit_code == 0
    after = json.loads(filled("get", "node", "node-a", "-o", "json").stdout)
    assert after["spec"] == before["spec"]


def test_a_node_that_is_not_there_cannot_be_drained(filled):
    """Exit 1, and its name."""
    done = filled("node", "drain", "node-b")
    assert done.exit_code == 1
    assert "'node-b'" in done.stderr


def test_waiting_needs_the_agent_of_that_machine(filled, tmp_path):
    """Exit 3 where none answers: the wish is stored all the same."""
    done = filled("node", "drain", "node-a", "--wait", "5", "--run-dir", str(tmp_path))
    assert done.exit_code == 3
    assert drained(filled)
