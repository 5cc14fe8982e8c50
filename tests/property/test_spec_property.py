"""Whatever bytes arrive, at the parser, the socket or the plugin, the answer is one CNI has.

Each test counts the cases it ran, reports the number, and fails when there were too few.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from cni.errors import CniError, Code, shown
from cni.frame import MAGIC, FrameError, split_request
from cni.podlink import decode_alias, encode_alias
from cni.result import (
    SUPPORTED_VERSIONS,
    Dns,
    Interface,
    IpConfig,
    Result,
    RouteConfig,
    parse_result,
    render_result,
)
from cni.spec import Command, parse_request, render_error
from tests.fakes.cni import Node
from tests.fakes.runtime import agent_beside, execute
from tests.property import hunted

CODES = {int(code) for code in Code}
COMMANDS = [each.value for each in Command]

texts = st.text(max_size=40)
names = st.sampled_from(["slash32", "eth0", "c0ffee", "a|b", "../x", "", "all", "x" * 300]) | texts
addresses = st.ip_addresses().map(str)
prefixes = addresses.flatmap(
    lambda text: st.integers(0, ip_address(text).max_prefixlen).map(lambda n: f"{text}/{n}")
)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | addresses | prefixes,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def shaped(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object with some of these fields, or junk where it should be."""
    return st.fixed_dictionaries({}, optional=fields) | junk


json_results = shaped(
    interfaces=st.lists(shaped(name=names, mac=texts | junk, mtu=junk, sandbox=names), max_size=3),
    ips=st.lists(
        shaped(address=prefixes | junk, gateway=addresses | junk, interface=st.integers(-1, 3)),
        max_size=3,
    ),
    routes=st.lists(shaped(dst=prefixes | junk, gw=addresses | junk, scope=junk), max_size=3),
    dns=shaped(nameservers=st.lists(texts | junk, max_size=2), domain=junk),
)
confs = shaped(
    cniVersion=st.sampled_from(SUPPORTED_VERSIONS) | junk,
    name=names | junk,
    type=names | junk,
    mtu=st.integers(1000, 70000) | junk,
    socket=st.just("/run/x.sock") | junk,
    dns=junk,
    ipam=junk,
    runtimeConfig=junk,
    prevResult=json_results,
).flatmap(
    lambda conf: (
        st.just(conf)
        | (
            st.lists(shaped(containerID=names, ifname=names), max_size=3).map(
                lambda valid: conf | {"cni.dev/valid-attachments": valid}
            )
            if isinstance(conf, dict)
            else st.just(conf)
        )
    )
)
results = st.builds(
    Result,
    interfaces=st.lists(
        st.builds(
            Interface,
            name=texts,
            mac=texts,
            mtu_bytes=st.integers(0, 65535),
            sandbox=texts,
            socket_path=texts,
            pci_id=texts,
        ),
        min_size=2,
        max_size=3,
    ).map(tuple),
    ips=st.lists(
        st.builds(
            IpConfig,
            address=prefixes.map(ip_interface),
            gateway=st.none() | addresses.map(ip_address),
            interface=st.none() | st.integers(0, 1),
        ),
        max_size=3,
    ).map(tuple),
    routes=st.lists(
        st.builds(
            RouteConfig,
            dst=prefixes.map(ip_interface),
            gw=st.none() | addresses.map(ip_address),
            mtu_bytes=st.integers(0, 9000),
            advmss=st.integers(0, 9000),
            priority=st.integers(0, 9000),
            table=st.none() | st.integers(0, 255),
            scope=st.none() | st.integers(0, 255),
        ),
        max_size=3,
    ).map(tuple),
    dns=st.builds(
        Dns,
        nameservers=st.lists(texts, max_size=2).map(tuple),
        domain=texts,
        search=st.lists(texts, max_size=2).map(tuple),
        options=st.lists(texts, max_size=2).map(tuple),
    ),
)
results_json = results.map(lambda each: json.loads(render_result(each, version="1.1.0")))
nearly_good_confs = st.builds(
    lambda good, spoilt: good | spoilt,
    st.fixed_dictionaries(
        {"cniVersion": st.sampled_from(SUPPORTED_VERSIONS), "name": st.just("slash32")},
        optional={
            "mtu": st.integers(1280, 65535),
            "prevResult": results_json,
            "cni.dev/valid-attachments": st.lists(
                st.fixed_dictionaries({"containerID": texts, "ifname": texts}), max_size=3
            ),
        },
    ),
    st.just({}) | st.dictionaries(st.sampled_from(["mtu", "name", "dns", "ipam", "x"]), junk),
)
stdins = (confs | nearly_good_confs).map(lambda conf: json.dumps(conf).encode()) | st.binary(
    max_size=200
)
environments = st.fixed_dictionaries(
    {},
    optional={
        "CNI_COMMAND": st.sampled_from(COMMANDS) | texts,
        "CNI_CONTAINERID": names,
        "CNI_NETNS": names,
        "CNI_IFNAME": names,
        "CNI_ARGS": st.lists(texts | st.just("IgnoreUnknown=1"), max_size=4).map(";".join),
    },
)
good_environment = st.fixed_dictionaries(
    {
        "CNI_COMMAND": st.sampled_from(["ADD", "DEL", "CHECK", "STATUS", "GC"]),
        "CNI_CONTAINERID": st.just("c0ffee"),
        "CNI_NETNS": st.just("/run/netns/x"),
        "CNI_IFNAME": st.just("eth0"),
    }
)


class Cases:
    """Counts; ``floor`` is how many a test must have seen at least."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def count(self, kind: str = "cases") -> None:
        """One more of ``kind``."""
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def expect(self, **floors: int) -> None:
        """Fails when fewer cases than ``floors`` were seen."""
        for kind, floor in floors.items():
            assert self.counts.get(kind, 0) >= floor, self.counts


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> Iterator[Cases]:
    """A counter whose numbers go into the test report (pytest -rA)."""
    made = Cases()
    yield made
    numbers = ", ".join(f"{count} {kind}" for kind, count in made.counts.items())
    request.node.add_report_section("teardown", "cases", numbers)


def assert_is_cni_error(stdout: bytes) -> int:
    """Exactly the four fields, with a code we know and one sentence; the code."""
    error = json.loads(stdout)
    assert set(error) == {"cniVersion", "code", "msg", "details"}
    assert error["cniVersion"] in SUPPORTED_VERSIONS
    assert error["code"] in CODES
    assert error["msg"]
    assert "\n" not in error["msg"]
    return int(error["code"])


def test_parsing_raises_cni_errors_only(cases: Cases) -> None:
    """And what it accepts, a link alias can carry there and back."""

    def law(environment: dict[str, str], stdin: bytes) -> None:
        cases.count()
        try:
            request = parse_request(environment, stdin)
        except CniError as error:
            cases.count("refused")
            assert_is_cni_error(render_error(error, version="1.1.0"))
            return
        cases.count("accepted")
        if request.attachment is not None and request.command is not Command.DEL:
            alias = encode_alias(request.attachment, (), request.pod)
            record = decode_alias(alias)
            assert record is not None
            assert record.attachment == request.attachment
            assert len(request.attachment.host_ifname) == 15

    @hunted.cases(250, suppress_health_check=[HealthCheck.too_slow])
    @given(environment=environments | good_environment, stdin=stdins)
    @example(environment={"CNI_COMMAND": "STATUS"}, stdin=b"[" * 100_000)
    def anything(environment: dict[str, str], stdin: bytes) -> None:
        law(environment, stdin)

    @hunted.cases(200, suppress_health_check=[HealthCheck.too_slow])
    @given(environment=good_environment, conf=nearly_good_confs)
    def nearly_good(environment: dict[str, str], conf: object) -> None:
        law(environment, json.dumps(conf).encode())

    anything()
    nearly_good()
    cases.expect(cases=300, refused=100, accepted=25)


def test_every_result_reads_back_from_every_version(cases: Cases) -> None:
    """1.1.0 gives the same value; an older version what that version can say, and is stable."""

    @hunted.cases(100, suppress_health_check=[HealthCheck.too_slow])
    @given(result=results, version=st.sampled_from(SUPPORTED_VERSIONS))
    def law(result: Result, version: str) -> None:
        cases.count()
        rendered = render_result(result, version=version)
        read = parse_result(json.loads(rendered))
        assert render_result(read, version=version) == rendered
        if version == "1.1.0":
            assert read == result
        assert [each.address for each in read.ips] == [each.address for each in result.ips]

    law()
    cases.expect(cases=100)


def test_splitting_a_frame_raises_frame_errors_only(cases: Cases) -> None:
    """And a frame that was put together comes apart into the same parts."""
    keys = st.sampled_from(["CNI_ARGS", "CNI_IFNAME", "CNI_X"])
    values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)

    @hunted.cases(300)
    @given(data=st.binary(max_size=100), with_magic=st.booleans())
    def arbitrary(data: bytes, with_magic: bool) -> None:
        cases.count()
        with contextlib.suppress(FrameError):
            split_request((MAGIC if with_magic else b"") + data)

    @hunted.cases(200)
    @given(environment=st.dictionaries(keys, values), stdin=st.binary(max_size=50))
    def well_formed(environment: dict[str, str], stdin: bytes) -> None:
        cases.count()
        entries = b"".join(f"{key}={value}\0".encode() for key, value in environment.items())
        assert split_request(MAGIC + entries + b"\0" + stdin) == (environment, stdin)

    arbitrary()
    well_formed()
    cases.expect(cases=400)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[tuple[str, Node]]:
    """The real server over fakes, and its socket's path."""
    node = Node()
    path = str(tmp_path / "cni.sock")
    with agent_beside(path, node):
        yield path, node


def talk(path: str, data: bytes, descriptors: list[int]) -> bytes:
    """Sends ``data`` with ``descriptors``; the whole reply."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if data:
                socket.send_fds(client, [data], descriptors)
            client.shutdown(socket.SHUT_WR)
        reply = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := client.recv(65536):
                reply += chunk
        return reply


def test_no_bytes_on_the_socket_harm_the_server(cases: Cases, agent: tuple[str, Node]) -> None:
    """Every connection is answered, the next one is served, and no descriptor is left open."""
    path, _node = agent
    null = os.open("/dev/null", os.O_RDONLY)
    entries = environments.map(
        lambda pairs: "".join(f"{k}={v}\0" for k, v in pairs.items()).encode("utf-8", "replace")
    )
    frames = st.builds(lambda e, s: MAGIC + e + b"\0" + s, entries, stdins)

    @hunted.cases(100, suppress_health_check=[HealthCheck.too_slow])
    @given(data=frames | st.binary(max_size=300), count=st.integers(0, 3))
    def law(data: bytes, count: int) -> None:
        cases.count()
        reply = talk(path, data, [null] * count)
        if reply[:1] == b"\1":
            assert_is_cni_error(reply[1:])
        else:
            assert reply == b"\0"

    talk(path, b"", [])
    before = len(os.listdir("/proc/self/fd"))
    law()
    status = MAGIC + b'CNI_COMMAND=STATUS\0\0{"cniVersion": "1.1.0", "name": "n"}'
    assert talk(path, status, []) == b"\0"
    os.close(null)
    assert len(os.listdir("/proc/self/fd")) <= before
    cases.expect(cases=100)


def test_no_input_makes_the_plugin_say_anything_but_cni(
    cases: Cases, agent: tuple[str, Node]
) -> None:
    """Arbitrary environment, arbitrary stdin: a CNI error and 1, or silence or VERSION and 0."""
    path, _node = agent
    raw = st.dictionaries(
        st.sampled_from([b"CNI_COMMAND", b"CNI_IFNAME", b"CNI_NETNS", b"CNI_ARGS", b"CNI_\xff"]),
        st.binary(max_size=20).filter(lambda value: b"\0" not in value)
        | st.sampled_from([each.encode() for each in COMMANDS]),
    )
    encoded = good_environment.map(
        lambda pairs: {key.encode(): value.encode() for key, value in pairs.items()}
    )
    led_here = (confs | nearly_good_confs).map(
        lambda conf: json.dumps(conf | {"socket": path} if isinstance(conf, dict) else conf)
    )

    @hunted.cases(40, suppress_health_check=[HealthCheck.too_slow])
    @given(
        environment=raw | encoded,
        stdin=led_here.map(str.encode) | st.binary(max_size=100),
    )
    def law(environment: dict[bytes, bytes], stdin: bytes) -> None:
        cases.count()
        outcome = execute(environment, stdin)
        assert "Traceback" not in outcome.stderr
        if outcome.status == 1:
            assert_is_cni_error(outcome.stdout)
        else:
            assert outcome.status == 0
            if outcome.stdout:
                assert environment[b"CNI_COMMAND"] == b"VERSION"
                assert set(outcome.json) == {"cniVersion", "supportedVersions"}

    law()
    cases.expect(cases=40)


def test_a_shown_value_is_short_and_on_one_line(cases: Cases) -> None:
    """Whatever JSON can hold."""

    @hunted.cases(100)
    @given(value=junk)
    def law(value: object) -> None:
        cases.count()
        text = shown(value)
        assert text.isascii()
        assert "\n" not in text
        assert len(text) <= 6 * 2 * 60 + 5

    law()
    cases.expect(cases=100)
