"""ADD in every version of the specification, first in a list and behind another plugin."""

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cni.result import SUPPORTED_VERSIONS, render_result
from cni.spec import asked_version, parse_request
from tests.fakes.cni import Node
from tests.unit.test_attach import NETNS, make_attacher

GOLDEN = Path(__file__).parents[1] / "golden" / "cni"
ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/var/run/netns/cni-1",
    "CNI_IFNAME": "eth0",
}
POOLS = {
    "v4": (ip_address("10.244.0.1"),),
    "v6": (ip_address("fd00::1"),),
    "dual": (ip_address("10.244.0.1"), ip_address("fd00::1")),
}


def golden(version: str) -> dict[str, Any]:
    """The documents of one version."""
    documents: dict[str, Any] = json.loads((GOLDEN / f"{version}.json").read_text())
    return documents


async def answer(conf: dict[str, Any], pools: str) -> Any:
    """What an ADD with this configuration prints on a node with these pools."""
    node = Node()
    node.allocator.make = lambda _n: POOLS[pools]
    attacher = make_attacher(node)
    stdin = json.dumps(conf).encode()
    try:
        result = await attacher.handle(parse_request(ENVIRONMENT, stdin), NETNS)
    finally:
        await attacher.close()
    assert result is not None
    version = asked_version(stdin)
    written = result.render(version)
    # Most answers are written by a template; the long way must write the same bytes.
    assert written == render_result(result.result(), version=version)
    return json.loads(written)


def test_there_is_a_golden_file_for_every_version() -> None:
    """And for no other."""
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(SUPPORTED_VERSIONS)


@pytest.mark.parametrize("pools", POOLS)
@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
async def test_the_first_plugin_of_a_list_answers_with_ours_alone(version: str, pools: str) -> None:
    """Every field the version has, and none it has not."""
    conf = {"cniVersion": version, "name": "slash32", "type": "slash32"}

    assert await answer(conf, pools) == golden(version)["first"][pools]


@pytest.mark.parametrize("pools", POOLS)
@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
async def test_a_plugin_behind_another_answers_with_both(version: str, pools: str) -> None:
    """prevResult comes back whole, and the runtime's own keys beside it disturb nothing."""
    conf = {
        "cniVersion": version,
        "name": "slash32",
        "type": "slash32",
        "prevResult": golden(version)["prevResult"],
        "cniVersions": list(SUPPORTED_VERSIONS),
        "disableCheck": True,
        "disableGC": True,
        "capabilities": {"mac": True},
        "args": {"cni": {"labels": [{"key": "app", "value": "x"}]}},
    }

    assert await answer(conf, pools) == golden(version)["behind"][pools]


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
async def test_what_we_answer_can_be_a_prevresult_again(version: str) -> None:
    """The next plugin of a list reads it as we read others; nothing of it is lost on the way."""
    first = golden(version)["behind"]["dual"]
    conf = {"cniVersion": version, "name": "slash32", "prevResult": first}

    second = await answer(conf, "dual")

    for key in ("interfaces", "ips", "routes"):
        assert second[key][: len(first[key])] == first[key]
    assert second["dns"] == first["dns"]
