"""The specification's rarer words, spoken as libcni does to real agents: wishes, GC, STATUS."""

import json
import logging
import os
import shutil
import statistics
import time
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network
from itertools import islice
from pathlib import Path

import pytest

from cni.errors import Code
from lab import build, namespaces, routers, runtime
from lab.waiting import wait_until
from routing.datastore.resources import API_VERSION
from tests.e2e.observed import addresses, links_of_ours, machine, said, wait_empty
from tests.fakes.launcher import built, runner_of

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.bird,
    pytest.mark.exabgp,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
    pytest.mark.skipif(shutil.which("bird") is None, reason="the lab's routers run BIRD 2"),
]

log = logging.getLogger(__name__)

NODE, OTHER = "node1", "node2"
MAC = "c2:11:22:33:44:55"
VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
STATUS_CALLS = 30
STATUS_LIMIT_S = 0.1
DEADLINE_S = 30


@pytest.fixture(scope="module")
def lab(runtime_lab):
    """Shared; every test leaves it without pods."""
    return runtime_lab


@pytest.fixture
def driver(lab):
    """The first node's runtime, over what ``cni install`` put there."""
    return lab.runtime_of(NODE)


@contextmanager
def sandboxes(count, *, label="spec", **wishes):
    """Namespaces, and what a runtime knows of them; the namespaces are gone afterwards."""
    made = [f"s32t-{os.getpid()}-{label}{n}" for n in range(count)]
    namespaces.create(made)
    try:
        yield [runtime.Sandbox(name, f"/run/netns/{name}", capability_args=wishes) for name in made]
    finally:
        for name in made:
            namespaces.delete(name)


@contextmanager
def block_of(lab, node):
    """A pod on ``node``, and the IPv4 block it is in."""
    driver = lab.runtime_of(node)
    with sandboxes(1, label="neighbour") as (sandbox,):
        first = addresses(driver.add(sandbox))[0]
        try:
            yield next(
                ip_network(row["block"])
                for row in said(lab, node, "blocks")
                if first in ip_network(row["block"])
            )
        finally:
            driver.delete(sandbox)


def in_node(lab, *argv):
    return namespaces.run(argv, namespace=lab.plan.namespace_of(NODE))


def code_of(call):
    """The error code a plugin refuses a call with, and its sentence; (0, "") for success."""
    try:
        call()
    except runtime.PluginFailed as error:
        return error.code, str(error)
    return 0, ""


# -- capabilities ------------------------------------------------------------------------------


def test_a_pod_gets_the_mac_and_the_addresses_that_were_asked_for(lab, driver):
    """One from a block the node has, one from a block it has to claim; both are reachable."""
    taken = {ip_network(row["block"]) for row in said(lab, NODE, "blocks")}
    name, pool, size = next(each for each in lab.plan.shape.pools if each[1].version == 6)
    free = next(b for b in islice(pool.subnets(new_prefix=size), 5, None) if b not in taken)
    with block_of(lab, NODE) as own:
        asked = [own[-2], free[9]]
        with sandboxes(1, mac=MAC, ips=[str(each) for each in asked]) as (sandbox,):
            result = driver.add(sandbox)
            try:
                assert addresses(result) == asked
                assert result["interfaces"][1]["mac"] == MAC
                driver.check(sandbox)
                assert driver.add(sandbox) == result
                assert str(free) in {row["block"] for row in said(lab, NODE, "blocks")}, name
                see_wishes_in_the_pod(lab, sandbox, asked)
                see_a_changed_mac(driver, sandbox)
            finally:
                driver.delete(sandbox)
    wait_empty(lab, NODE)


def see_wishes_in_the_pod(lab, sandbox, asked):
    """The kernel's own word, and the client's behind the router."""
    (link,) = namespaces.ip_json(Path(sandbox.netns).name, "address", "show", "dev", "eth0")
    assert link["address"] == MAC
    assert {str(each) for each in asked} <= {each["local"] for each in link["addr_info"]}
    lab.wait_converged()
    for each in asked:
        argv = ["ping", "-c", "1", "-W", "5", str(each)]
        namespaces.run(argv, namespace=lab.plan.client.namespace)


def see_a_changed_mac(driver, sandbox):
    """CHECK compares with what the result promised."""
    argv = ["ip", "link", "set", "eth0", "address", "c2:11:22:33:44:56"]
    namespaces.run(argv, namespace=Path(sandbox.netns).name)

    code, sentence = code_of(lambda: driver.check(sandbox))

    assert code == Code.CHECK_FOUND_DIFFERENCES
    assert f"expected {MAC}, found c2:11:22:33:44:56" in sentence


@pytest.mark.parametrize(
    ("wishes", "code", "sentence"),
    [
        ({"ips": ["192.0.2.1"]}, Code.NO_ADDRESS, "192.0.2.1 is in no IPPool"),
        ({"mac": "01:00:5e:00:00:01"}, Code.INVALID_CONFIG, "group address"),
        ({"mac": "rubbish"}, Code.INVALID_CONFIG, "not a MAC address"),
        ({"ips": ["10.0.0.1", "10.0.0.2"]}, Code.INVALID_CONFIG, "one IPv4 address"),
    ],
)
def test_a_wish_that_cannot_be_granted_is_refused_and_leaves_nothing(
    lab, driver, wishes, code, sentence
):
    """The code, the value and the rule."""
    with sandboxes(1, **wishes) as (sandbox,):
        found, told = code_of(lambda: driver.add(sandbox))

    assert found == code
    assert sentence in told
    wait_empty(lab, NODE)


def test_an_address_in_another_nodes_block_is_refused(lab, driver):
    """Its block and its node are named."""
    with (
        block_of(lab, OTHER) as theirs,
        sandboxes(1, ips=[f"{theirs[5]}/24"]) as (sandbox,),
    ):
        found, told = code_of(lambda: driver.add(sandbox))

    assert found == Code.NO_ADDRESS
    assert f"{theirs[5]} is in block {theirs} of node {OTHER}" in told
    wait_empty(lab, NODE)
    wait_empty(lab, OTHER)


def test_the_installed_list_offers_every_version_and_both_capabilities(lab, driver):
    """What a runtime reads before it asks anything."""
    (path,) = lab.paths.cni_conf(NODE).glob("*.conflist")
    document = json.loads(path.read_text())

    assert document["cniVersions"] == driver.versions("slash32") == VERSIONS
    assert document["plugins"][0]["capabilities"] == {"mac": True, "ips": True}


# -- GC ----------------------------------------------------------------------------------------


def test_gc_removes_exactly_what_is_not_named(lab, driver):
    """Whole links, one whose namespace is gone, one that was removed by hand; twice is once."""
    with sandboxes(5) as made:
        results = [driver.add(each) for each in made]
        kept, _whole, lost, _cut, renamed = made
        namespaces.delete(Path(lost.netns).name)
        in_node(lab, "ip", "link", "del", results[3]["interfaces"][0]["name"])
        diverted = addresses(results[3])[0]
        in_node(lab, *f"ip route add {diverted}/32 dev lo proto 132 metric 1032".split())
        stranger = runtime.Sandbox(renamed.container_id, renamed.netns, ifname="eth7")

        for _ in range(2):
            driver.collect_garbage([kept, stranger])

            assert len(links_of_ours(lab, NODE)) == 1
            driver.check(kept)
        assert said(lab, NODE, "pods")[0]["container_id"] == kept.container_id
        assert str(diverted) not in in_node(lab, "ip", "route", "show", "proto", "132")
        for each in made:
            driver.delete(each, netns_is_gone=each is lost)
    wait_empty(lab, NODE)


# -- STATUS ------------------------------------------------------------------------------------


def wait_status(driver, code):
    """Returns the sentence once STATUS answers ``code``."""

    def wrong():
        found, told = code_of(driver.status)
        return [] if found == code else [f"STATUS answers {found}: {told}"]

    wait_until(wrong, what=f"STATUS {code}", deadline_s=DEADLINE_S)
    return code_of(driver.status)[1]


def apply(lab, name, **changes):
    """Applies a pool of the lab with fields of its spec changed."""
    cidr, size = next((cidr, size) for n, cidr, size in lab.plan.shape.pools if n == name)
    pool = {
        "apiVersion": API_VERSION,
        "kind": "IPPool",
        "metadata": {"name": name},
        "spec": {"cidr": str(cidr), "blockSize": size, **changes},
    }
    path = lab.paths.root / "pool.json"
    path.write_text(json.dumps(pool))
    command = build.slash32_command("apply", "--store", str(lab.paths.store), "-f", str(path))
    namespaces.run(command, env=build.environment(lab.paths))


def test_status_is_50_while_no_pool_gives_addresses(lab, driver):
    """Both pools disabled; and ready again as soon as one of them gives some."""
    wait_status(driver, 0)
    names = [name for name, _, _ in lab.plan.shape.pools]
    with ExitStack() as stack:
        for name in names:
            stack.callback(apply, lab, name)
            apply(lab, name, disabled=True)

        assert "no IPPool is enabled for node node1" in wait_status(driver, Code.NOT_AVAILABLE)
        apply(lab, names[0])
        wait_status(driver, 0)
    wait_status(driver, 0)


def test_status_is_51_while_no_session_is_left_and_names_peer_and_reason(lab, driver):
    """The router ends the session in good order; the other node stays ready."""
    wait_status(driver, 0)
    (tor,) = lab.plan.tors
    birdc = ["birdc", "-s", str(lab.paths.bird_socket(tor.name))]
    try:
        namespaces.run([*birdc, "disable", NODE])
        sentence = wait_status(driver, Code.LIMITED_CONNECTIVITY)
        peer = next(far.ipv4 for _, far in lab.plan.links_of(machine(lab, NODE)))
        assert f"no BGP session is up: {NODE}-{tor.name} {peer} (" in sentence
        assert "()" not in sentence
        wait_status(lab.runtime_of(OTHER), 0)
    finally:
        namespaces.run([*birdc, "enable", NODE])
    wait_status(driver, 0)
    lab.wait_converged()
    assert all(each.is_established for each in routers.sessions(lab.paths, tor))


@pytest.mark.parametrize("form", ["python", "x86-64"])
def test_status_answers_from_memory_in_well_under_100_ms(lab, driver, form):
    """Whole processes, as containerd executes one every 5 s for each plugin."""
    wait_status(driver, 0)
    plugin = [str(lab.paths.cni_bin(NODE) / "slash32")]
    if form != "python":
        plugin = [*runner_of(form), str(built(form))]
    (path,) = lab.paths.cni_conf(NODE).glob("*.conflist")
    conf = {**json.loads(path.read_text())["plugins"][0], "name": "slash32", "cniVersion": "1.1.0"}
    took_s = []
    for _ in range(STATUS_CALLS):
        began_s = time.monotonic()
        namespaces.run(plugin, env={"CNI_COMMAND": "STATUS"}, stdin=json.dumps(conf))
        took_s.append(time.monotonic() - began_s)

    worst, median = max(took_s), statistics.median(took_s)
    log.info("STATUS %s: p50 %.1f ms, worst %.1f ms", form, median * 1000, worst * 1000)
    assert median < STATUS_LIMIT_S
