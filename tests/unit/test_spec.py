"""cni.spec and cni.result: requests of every version in, results and errors out."""

import json
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

import pytest

from cni.attachment import Attachment, PodRef
from cni.errors import CniError, Code, shown
from cni.podlink import ALIAS_MAX_BYTES, encode_alias
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
from cni.spec import (
    CONTAINER_ID_MAX_BYTES,
    IFNAME_MAX_BYTES,
    NETWORK_NAME_MAX_BYTES,
    Command,
    Request,
    asked_version,
    parse_request,
    render_error,
)

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/var/run/netns/cni-1",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}
CONF = {"cniVersion": "1.0.0", "name": "slash32", "type": "slash32"}
PREVIOUS = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "sandbox": "/var/run/netns/cni-1", "mtu": 1400}],
    "ips": [{"address": "10.1.0.5/32", "gateway": "169.254.1.1", "interface": 0}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1", "scope": 0, "table": 254, "mtu": 1300}],
    "dns": {"nameservers": ["10.96.0.10"], "domain": "cluster.local"},
}
FULL_RESULT = Result(
    interfaces=(
        Interface("s32abc", mac="ee:ee:ee:ee:ee:ee"),
        Interface(
            "eth0",
            mac="0a:58:0a:01:00:05",
            mtu_bytes=1450,
            sandbox="/var/run/netns/cni-1",
            socket_path="/run/x",
            pci_id="0000:00:1f.6",
        ),
    ),
    ips=(
        IpConfig(IPv4Interface("10.1.0.5/32"), IPv4Address("169.254.1.1"), 1),
        IpConfig(IPv6Interface("fd00::5/128"), IPv6Address("fe80::1"), 1),
    ),
    routes=(
        RouteConfig(IPv4Interface("0.0.0.0/0"), IPv4Address("169.254.1.1")),
        RouteConfig(
            IPv6Interface("::/0"),
            IPv6Address("fe80::1"),
            mtu_bytes=1400,
            advmss=1340,
            priority=5,
            table=0,
            scope=253,
        ),
    ),
)


def parse(conf: object = None, **environment: str) -> Request:
    """A request from the usual environment and configuration, with the given differences."""
    merged = {**ENVIRONMENT, **environment}
    present = {key: value for key, value in merged.items() if value != "-"}
    return parse_request(present, json.dumps(CONF if conf is None else conf).encode())


def refusal(conf: object = None, **environment: str) -> CniError:
    """The error such a request is refused with."""
    with pytest.raises(CniError) as caught:
        parse(conf, **environment)
    return caught.value


def test_an_add_becomes_a_request() -> None:
    """Environment and configuration arrive as values, the pod's name from CNI_ARGS."""
    args = "K8S_POD_UID=u-1;IgnoreUnknown=1;K8S_POD_NAME=web-0;FOO=BAR;K8S_POD_NAMESPACE=shop"

    request = parse(CONF | {"mtu": 1450, "socket": "/run/x.sock"}, CNI_ARGS=args)

    assert request.command is Command.ADD
    assert request.attachment == Attachment("slash32", "c0ffee", "eth0")
    assert request.netns == "/var/run/netns/cni-1"
    assert request.pod == PodRef("shop", "web-0", "u-1")
    assert request.netconf.mtu_bytes == 1450
    assert request.netconf.socket_path == "/run/x.sock"
    assert request.netconf.prev_result is None


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_add_and_del_exist_in_every_version(version: str, command: str) -> None:
    """0.3.0 to 1.1.0 all have them."""
    request = parse(CONF | {"cniVersion": version}, CNI_COMMAND=command)

    assert request.netconf.cni_version == version


@pytest.mark.parametrize(
    ("command", "version", "is_allowed"),
    [
        ("CHECK", "0.3.0", False),
        ("CHECK", "0.3.1", False),
        ("CHECK", "0.4.0", True),
        ("CHECK", "1.1.0", True),
        ("STATUS", "1.0.0", False),
        ("STATUS", "1.1.0", True),
        ("GC", "0.4.0", False),
        ("GC", "1.1.0", True),
    ],
)
def test_a_command_is_refused_in_versions_before_it_existed(
    command: str, version: str, is_allowed: bool
) -> None:
    """CHECK came with 0.4.0, STATUS and GC with 1.1.0; before that it is code 1."""
    conf = CONF | {"cniVersion": version, "prevResult": {}, "cni.dev/valid-attachments": []}

    if is_allowed:
        assert parse(conf, CNI_COMMAND=command).command.value == command
    else:
        error = refusal(conf, CNI_COMMAND=command)
        assert error.code is Code.INCOMPATIBLE_VERSION
        assert command in error.msg
        assert version in error.msg


@pytest.mark.parametrize(
    ("version", "said"),
    [("", "0.1.0"), (None, "0.1.0"), ("0.2.0", "0.2.0"), ("2.0.0", "2.0.0"), ("x", '"x"')],
)
def test_a_version_we_do_not_speak_is_code_1(version: str | None, said: str) -> None:
    """An absent version means 0.1.0, as in libcni."""
    error = refusal(CONF | {"cniVersion": version})

    assert error.code is Code.INCOMPATIBLE_VERSION
    assert said in error.msg


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"CNI_COMMAND": "-"}, "CNI_COMMAND is missing"),
        ({"CNI_COMMAND": "add"}, 'CNI_COMMAND is "add"'),
        ({"CNI_CONTAINERID": "-"}, "CNI_CONTAINERID is missing"),
        ({"CNI_CONTAINERID": "../x"}, 'CNI_CONTAINERID is "../x"'),
        ({"CNI_CONTAINERID": "-x"}, 'CNI_CONTAINERID is "-x"'),
        ({"CNI_CONTAINERID": "a|b"}, 'CNI_CONTAINERID is "a|b"'),
        ({"CNI_CONTAINERID": "a\n"}, 'CNI_CONTAINERID is "a\\n"'),
        ({"CNI_CONTAINERID": "ä"}, "CNI_CONTAINERID is"),
        ({"CNI_CONTAINERID": "a" * 300}, "has 300 characters"),
        ({"CNI_NETNS": "-"}, "CNI_NETNS is missing"),
        ({"CNI_NETNS": "-", "CNI_COMMAND": "CHECK"}, "CNI_NETNS is missing; CHECK"),
        ({"CNI_IFNAME": "-"}, "CNI_IFNAME is missing"),
        ({"CNI_IFNAME": "a" * 16}, "has 16 characters"),
        ({"CNI_IFNAME": "../x"}, 'CNI_IFNAME is "../x"'),
        ({"CNI_IFNAME": "."}, 'CNI_IFNAME is "."'),
        ({"CNI_IFNAME": ".."}, 'CNI_IFNAME is ".."'),
        ({"CNI_IFNAME": "a:b"}, 'CNI_IFNAME is "a:b"'),
        ({"CNI_IFNAME": "a b"}, 'CNI_IFNAME is "a b"'),
        ({"CNI_IFNAME": "a\tb"}, "CNI_IFNAME is"),
        ({"CNI_IFNAME": "a\x7f"}, "CNI_IFNAME is"),
        ({"CNI_IFNAME": "a|b"}, 'CNI_IFNAME is "a|b"'),
        ({"CNI_IFNAME": "eth%d"}, 'CNI_IFNAME is "eth%d"'),
        ({"CNI_IFNAME": "all"}, 'CNI_IFNAME is "all"'),
        ({"CNI_IFNAME": "eth0\n"}, "CNI_IFNAME is"),
        ({"CNI_ARGS": "nonsense"}, 'CNI_ARGS has "nonsense"'),
        ({"CNI_ARGS": "FOO=1"}, 'CNI_ARGS has the unknown key "FOO"'),
        ({"CNI_ARGS": "IgnoreUnknown=0;FOO=1"}, 'CNI_ARGS has the unknown key "FOO"'),
    ],
)
def test_a_bad_environment_is_code_4_and_names_the_variable(
    environment: dict[str, str], said: str
) -> None:
    """What libcni refuses, and what our alias, /proc/sys or the kernel could not bear."""
    error = refusal(None, **environment)

    assert error.code is Code.INVALID_ENVIRONMENT
    assert said in error.msg


@pytest.mark.parametrize(
    ("conf", "code", "said"),
    [
        ({"name": ""}, Code.INVALID_CONFIG, "name is missing"),
        ({"name": None}, Code.INVALID_CONFIG, "name is missing"),
        ({"name": "a/b"}, Code.INVALID_CONFIG, 'name is "a/b"'),
        ({"name": "a|b"}, Code.INVALID_CONFIG, 'name is "a|b"'),
        ({"name": "a" * 64}, Code.INVALID_CONFIG, "has 64 characters"),
        ({"name": 7}, Code.DECODE_FAILURE, "name is "),
        ({"cniVersion": 1}, Code.DECODE_FAILURE, "cniVersion is "),
        ({"mtu": "1500"}, Code.DECODE_FAILURE, "mtu is "),
        ({"mtu": True}, Code.DECODE_FAILURE, "mtu is "),
        ({"mtu": 1279}, Code.INVALID_CONFIG, "mtu is "),
        ({"mtu": 65536}, Code.INVALID_CONFIG, "mtu is "),
        ({"mtu": -1}, Code.INVALID_CONFIG, "mtu is "),
        ({"socket": "run/x"}, Code.INVALID_CONFIG, 'socket is "run/x"'),
        ({"socket": "/" + "x" * 107}, Code.INVALID_CONFIG, "socket is "),
        ({"socket": "/a\0b"}, Code.INVALID_CONFIG, "socket is "),
        ({"dns": []}, Code.DECODE_FAILURE, "dns is "),
        ({"dns": {"nameservers": "x"}}, Code.DECODE_FAILURE, "dns.nameservers is "),
        ({"dns": {"search": [1]}}, Code.DECODE_FAILURE, "dns.search[0] is "),
        ({"ipMasq": True}, Code.UNSUPPORTED_FIELD, 'ipMasq="True"'),
        ({"ipam": {"type": "host-local"}}, Code.UNSUPPORTED_FIELD, "host-local"),
        ({"prevResult": []}, Code.DECODE_FAILURE, "prevResult is "),
        ({"prevResult": {"ips": {}}}, Code.DECODE_FAILURE, "prevResult.ips is "),
        ({"prevResult": {"ips": [1]}}, Code.DECODE_FAILURE, "prevResult.ips[0] is "),
        (
            {"prevResult": {"ips": [{"address": "10.0.0.1"}]}},
            Code.DECODE_FAILURE,
            'prevResult.ips[0].address is "10.0.0.1"',
        ),
        (
            {"prevResult": {"ips": [{"address": "10.0.0.1/255.0.0.0"}]}},
            Code.DECODE_FAILURE,
            "prevResult.ips[0].address is ",
        ),
        (
            {"prevResult": {"ips": [{"address": "10.0.0.1/33"}]}},
            Code.DECODE_FAILURE,
            "prevResult.ips[0].address is ",
        ),
        (
            {"prevResult": {"ips": [{"address": "10.0.0.1/8", "gateway": "fe80::1%eth0"}]}},
            Code.DECODE_FAILURE,
            "prevResult.ips[0].gateway is ",
        ),
        (
            {"prevResult": {"ips": [{"address": "10.0.0.1/8", "interface": 0}]}},
            Code.DECODE_FAILURE,
            "prevResult.ips[0].interface is ",
        ),
        (
            {"prevResult": {"routes": [{"dst": "default"}]}},
            Code.DECODE_FAILURE,
            'prevResult.routes[0].dst is "default"',
        ),
    ],
)
def test_a_bad_configuration_names_field_and_value(
    conf: dict[str, object], code: Code, said: str
) -> None:
    """6 where the form is wrong, 7 where the value is, 2 where we do not do that."""
    error = refusal(CONF | conf)

    assert error.code is code
    assert said in error.msg


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff{}", "not UTF-8 at byte 0"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"[" * 200_000, "nests too deeply"),
        (b'{"a":' * 200_000, "nests too deeply"),
        (b'{"name": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_stdin_that_is_no_json_object_is_code_6(stdin: bytes, said: str) -> None:
    """Neither another encoding nor a deep nest nor an endless number gets further."""
    with pytest.raises(CniError) as caught:
        parse_request(ENVIRONMENT, stdin)

    assert caught.value.code is Code.DECODE_FAILURE
    assert said in caught.value.msg


def test_a_value_in_a_sentence_is_cut_and_escaped() -> None:
    """A megabyte in a field does not come back as a megabyte of error."""
    error = refusal(CONF | {"name": "\n" * 1_000_000})

    assert len(error.msg) < 400
    assert "\n" not in error.msg
    assert shown([[]]) == '"[[]]"'


def test_identities_at_the_limits_fit_into_a_link_alias() -> None:
    """What parse_request lets through, the alias can carry, with the longest addresses."""
    attachment = Attachment(
        "n" * NETWORK_NAME_MAX_BYTES, "c" * CONTAINER_ID_MAX_BYTES, "i" * IFNAME_MAX_BYTES
    )
    addresses = (
        IPv4Address("255.255.255.255"),
        IPv6Address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    )

    assert len(encode_alias(attachment, addresses, None)) == ALIAS_MAX_BYTES
    assert CONTAINER_ID_MAX_BYTES >= 64


@pytest.mark.parametrize(
    ("conf", "environment"),
    [
        ({}, {"CNI_NETNS": "-"}),
        ({}, {"CNI_NETNS": ""}),
        ({"prevResult": "broken"}, {}),
        ({"mtu": "broken", "dns": "broken", "ipMasq": True}, {}),
        ({"name": "n" * 200}, {"CNI_CONTAINERID": "c" * 200}),
        ({}, {"CNI_ARGS": "nonsense;;FOO"}),
    ],
)
def test_a_del_is_read_leniently(conf: dict[str, object], environment: dict[str, str]) -> None:
    """A sandbox must be removable whatever its configuration has become."""
    request = parse(CONF | conf, CNI_COMMAND="DEL", **environment)

    assert request.command is Command.DEL
    assert request.attachment is not None
    assert request.netconf.prev_result is None


def test_k8s_args_are_known_without_ignore_unknown() -> None:
    """A runtime that leaves IgnoreUnknown out still names its pod, with keys we never saw."""
    request = parse(CNI_ARGS="K8S_POD_NAME=a;K8S_POD_NAMESPACE=b;K8S_SOMETHING_NEW=c")

    assert request.pod == PodRef("b", "a")


@pytest.mark.parametrize("name", ["", "a\nb", "a|b", "UPPER", "x" * 300])
def test_a_pod_name_that_is_none_is_not_used(name: str) -> None:
    """It is decoration: no refusal, and nothing odd in an alias or a log."""
    assert parse(CNI_ARGS=f"K8S_POD_NAME={name};K8S_POD_NAMESPACE=b").pod is None


def test_check_needs_the_previous_result() -> None:
    """The specification says so; without it there is nothing to compare."""
    error = refusal(CONF, CNI_COMMAND="CHECK")

    assert error.code is Code.INVALID_CONFIG
    assert "prevResult" in error.msg


def test_a_chained_add_reads_the_previous_result() -> None:
    """Everything of it that the specification knows, so that it can be handed on."""
    request = parse(CONF | {"cniVersion": "1.1.0", "prevResult": PREVIOUS})
    result = request.netconf.prev_result

    assert result == Result(
        interfaces=(Interface("eth0", mtu_bytes=1400, sandbox="/var/run/netns/cni-1"),),
        ips=(IpConfig(IPv4Interface("10.1.0.5/32"), IPv4Address("169.254.1.1"), 0),),
        routes=(
            RouteConfig(
                IPv4Interface("0.0.0.0/0"),
                IPv4Address("169.254.1.1"),
                mtu_bytes=1300,
                table=254,
                scope=0,
            ),
        ),
        dns=Dns(nameservers=("10.96.0.10",), domain="cluster.local"),
    )
    assert json.loads(render_result(result, version="1.1.0")) == PREVIOUS


def test_status_and_gc_name_no_attachment() -> None:
    """They concern the network; environment for a container is neither needed nor read."""
    conf = CONF | {"cniVersion": "1.1.0"}
    bare = {"CNI_CONTAINERID": "-", "CNI_IFNAME": "-", "CNI_NETNS": "-"}

    status = parse(conf, CNI_COMMAND="STATUS", **bare)
    entries = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth1"}]
    collect = parse(conf | {"cni.dev/valid-attachments": entries}, CNI_COMMAND="GC", **bare)

    assert status.attachment is None
    assert collect.netconf.valid_attachments == frozenset(
        {Attachment("slash32", "a", "eth0"), Attachment("slash32", "b", "eth1")}
    )


def test_gc_with_a_null_list_names_nobody() -> None:
    """libcni writes an empty list as null."""
    conf = CONF | {"cniVersion": "1.1.0", "cni.dev/valid-attachments": None}

    assert parse(conf, CNI_COMMAND="GC").netconf.valid_attachments == frozenset()


@pytest.mark.parametrize(
    "entries",
    ["-", "all", {}, [1], [{}], [{"containerID": "a"}], [{"containerID": "", "ifname": "x"}]],
)
def test_gc_without_a_clear_list_is_refused(entries: object) -> None:
    """Read as empty, a list we cannot read would remove every pod."""
    conf: dict[str, object] = {**CONF, "cniVersion": "1.1.0"}
    if entries != "-":
        conf["cni.dev/valid-attachments"] = entries

    error = refusal(conf, CNI_COMMAND="GC")

    assert error.code in (Code.INVALID_CONFIG, Code.DECODE_FAILURE)
    assert "cni.dev/valid-attachments" in error.msg


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0"])
def test_results_up_to_0_4_0_say_the_ip_version(version: str) -> None:
    """Every ip has "version"; MTU, PCI id and route attributes are not known yet."""
    assert json.loads(render_result(FULL_RESULT, version=version)) == {
        "cniVersion": version,
        "interfaces": [
            {"name": "s32abc", "mac": "ee:ee:ee:ee:ee:ee"},
            {"name": "eth0", "mac": "0a:58:0a:01:00:05", "sandbox": "/var/run/netns/cni-1"},
        ],
        "ips": [
            {"version": "4", "address": "10.1.0.5/32", "gateway": "169.254.1.1", "interface": 1},
            {"version": "6", "address": "fd00::5/128", "gateway": "fe80::1", "interface": 1},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
            {"dst": "::/0", "gw": "fe80::1"},
        ],
        "dns": {},
    }


def test_results_of_1_0_0_drop_the_ip_version() -> None:
    """1.0.0 removed it and added nothing."""
    old = json.loads(render_result(FULL_RESULT, version="0.4.0"))
    new = json.loads(render_result(FULL_RESULT, version="1.0.0"))

    for each in old["ips"]:
        del each["version"]
    assert new == old | {"cniVersion": "1.0.0"}


def test_results_of_1_1_0_say_everything() -> None:
    """MTU, socket path and PCI id of interfaces, and the attributes of routes; table 0 counts."""
    rendered = json.loads(render_result(FULL_RESULT, version="1.1.0"))

    assert rendered["interfaces"][1] == {
        "name": "eth0",
        "mac": "0a:58:0a:01:00:05",
        "mtu": 1450,
        "sandbox": "/var/run/netns/cni-1",
        "socketPath": "/run/x",
        "pciID": "0000:00:1f.6",
    }
    assert rendered["routes"][1] == {
        "dst": "::/0",
        "gw": "fe80::1",
        "mtu": 1400,
        "advmss": 1340,
        "priority": 5,
        "table": 0,
        "scope": 253,
    }


def test_a_rendered_result_reads_back_as_the_same_value() -> None:
    """1.1.0 carries everything we have."""
    assert parse_result(json.loads(render_result(FULL_RESULT, version="1.1.0"))) == FULL_RESULT


def test_an_error_has_the_four_fields_of_the_specification() -> None:
    """cniVersion, code, msg and details, whatever text is in them."""
    error = CniError(Code.NO_ADDRESS, "none left \ud800", "pool a")

    assert json.loads(render_error(error, version="0.4.0")) == {
        "cniVersion": "0.4.0",
        "code": 101,
        "msg": "none left \ud800",
        "details": "pool a",
    }


def test_an_error_is_written_in_the_asked_version_if_we_speak_it() -> None:
    """Otherwise in our newest."""
    assert asked_version(b'{"cniVersion": "0.3.1"}') == "0.3.1"
    assert asked_version(b'{"cniVersion": "9.9.9"}') == "1.1.0"
    assert asked_version(b'{"cniVersion": {}}') == "1.1.0"
    assert asked_version(b"garbage") == "1.1.0"
