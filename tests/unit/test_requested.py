"""cni.requested: MAC and addresses a runtime asks for, by each of the three ways."""

import json
from ipaddress import ip_address

import pytest

from cni.errors import CniError, Code
from cni.requested import NOTHING, Requested
from cni.spec import Request, parse_request

MAC = "c2:11:22:33:44:55"
V4, V6 = ip_address("10.1.0.5"), ip_address("fd00::5")


def parse(conf=None, *, args="", command="ADD", **more) -> Request:
    """A request with these fields beside the usual ones."""
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c0ffee",
        "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": args,
    }
    document = {"cniVersion": "1.1.0", "name": "net", "prevResult": {}, **(conf or {}), **more}
    return parse_request(environment, json.dumps(document).encode())


@pytest.mark.parametrize("text", [MAC, MAC.upper(), MAC.replace(":", "-")])
@pytest.mark.parametrize(
    "way",
    [
        lambda mac: {"conf": {"runtimeConfig": {"mac": mac}}},
        lambda mac: {"conf": {"args": {"cni": {"mac": mac, "labels": [{"key": "a"}]}}}},
        lambda mac: {"args": f"MAC={mac}"},
        lambda mac: {"conf": {"runtimeConfig": {"mac": mac}}, "args": f"IgnoreUnknown=1;MAC={MAC}"},
    ],
    ids=["capability", "args.cni", "CNI_ARGS", "two ways at once"],
)
def test_a_mac_is_read_in_every_form_and_by_every_way(text, way):
    """Kept in the one form that the kernel's own is compared with."""
    assert parse(**way(text)).requested == Requested(mac=MAC)


@pytest.mark.parametrize(
    "way",
    [
        {"conf": {"runtimeConfig": {"ips": ["fd00::5/64", "10.1.0.5/24"]}}},
        {"conf": {"runtimeConfig": {"ips": ["10.1.0.5", "fd00::5"]}}},
        {"conf": {"args": {"cni": {"ips": ["10.1.0.5", "fd00::5/128"]}}}},
        {"conf": {"runtimeConfig": {"ips": ["fd00:0::5"]}}, "args": "IP=10.1.0.5"},
        {
            "conf": {"runtimeConfig": {"ips": ["10.1.0.5", "fd00::5", "10.1.0.5"]}},
            "args": "IP=fd00::5",
        },
    ],
)
def test_addresses_are_read_by_every_way_with_or_without_a_length(way):
    """IPv4 first; the same one twice is one. A pod has /32 and /128 whatever the length."""
    assert parse(**way).requested == Requested(addresses=(V4, V6))


@pytest.mark.parametrize(
    "conf",
    [
        {},
        {"runtimeConfig": None, "args": None},
        {"runtimeConfig": {}, "args": {}},
        {"runtimeConfig": {"mac": "", "ips": []}, "args": {"cni": None}},
        {"runtimeConfig": {"mac": None, "ips": None, "dns": {"servers": ["10.0.0.1"]}}},
        {"args": {"cni": {"labels": []}, "other": 7}},
        {"runtimeConfig": {"portMappings": [{"hostPort": 80}]}},
        {"disableCheck": True, "disableGC": True, "capabilities": {"mac": True, "ips": True}},
        {"cniVersions": ["0.4.0", "1.1.0"], "loadOnlyInlinedPlugins": False},
    ],
)
def test_what_asks_for_neither_asks_for_nothing(conf):
    """Empty, null, other capabilities, and keys of the list that some runtimes hand down."""
    assert parse(conf).requested == NOTHING


@pytest.mark.parametrize(
    ("conf", "code", "said"),
    [
        ({"runtimeConfig": []}, Code.DECODE_FAILURE, "runtimeConfig is "),
        ({"args": "x"}, Code.DECODE_FAILURE, "args is "),
        ({"args": {"cni": [1]}}, Code.DECODE_FAILURE, "args.cni is "),
        ({"runtimeConfig": {"mac": 7}}, Code.DECODE_FAILURE, "runtimeConfig.mac is "),
        ({"runtimeConfig": {"ips": "10.1.0.5"}}, Code.DECODE_FAILURE, "runtimeConfig.ips is "),
        ({"args": {"cni": {"ips": [["x"]]}}}, Code.DECODE_FAILURE, "args.cni.ips[0] is "),
        ({"runtimeConfig": {"mac": "xx"}}, Code.INVALID_CONFIG, 'runtimeConfig.mac is "xx", not'),
        ({"runtimeConfig": {"mac": MAC + ":00"}}, Code.INVALID_CONFIG, "of 6 bytes"),
        ({"runtimeConfig": {"mac": MAC + "\n"}}, Code.INVALID_CONFIG, "of 6 bytes"),
        ({"runtimeConfig": {"mac": "c211.2233.4455"}}, Code.INVALID_CONFIG, "of 6 bytes"),
        ({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}, Code.INVALID_CONFIG, "group address"),
        ({"runtimeConfig": {"mac": "ff:ff:ff:ff:ff:ff"}}, Code.INVALID_CONFIG, "group address"),
        ({"runtimeConfig": {"mac": "00:00:00:00:00:00"}}, Code.INVALID_CONFIG, "no interface"),
        ({"runtimeConfig": {"mac": "EE-EE-EE-EE-EE-EE"}}, Code.INVALID_CONFIG, "host's end"),
        ({"runtimeConfig": {"ips": ["10.1.0.5/33"]}}, Code.INVALID_CONFIG, "10.1.0.5/33"),
        ({"runtimeConfig": {"ips": ["10.1.0.5/255.255.0.0"]}}, Code.INVALID_CONFIG, "not an IP"),
        ({"runtimeConfig": {"ips": ["fe80::5%eth0"]}}, Code.INVALID_CONFIG, "not an IP"),
        ({"runtimeConfig": {"ips": [""]}}, Code.INVALID_CONFIG, "not an IP"),
        ({"args": {"cni": {"ips": ["pod"]}}}, Code.INVALID_CONFIG, 'args.cni.ips has "pod"'),
        (
            {"runtimeConfig": {"ips": ["10.1.0.5", "10.1.0.6"]}},
            Code.INVALID_CONFIG,
            "asks for 10.1.0.6, and 10.1.0.5 is asked for as well; a pod gets one IPv4 address",
        ),
        (
            {"runtimeConfig": {"mac": MAC}, "args": {"cni": {"mac": "c2:11:22:33:44:56"}}},
            Code.INVALID_CONFIG,
            f"args.cni.mac is c2:11:22:33:44:56, and {MAC} is asked for as well",
        ),
    ],
)
def test_a_wish_that_cannot_be_read_names_field_and_value(conf, code, said):
    """6 where the form is wrong, 7 where the value is, or where two contradict each other."""
    with pytest.raises(CniError) as caught:
        parse(conf)

    assert caught.value.code is code
    assert said in caught.value.msg


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("MAC=zz", 'CNI_ARGS MAC is "zz"'),
        ("IP=10.0.0.999", 'CNI_ARGS IP has "10.0.0.999"'),
        ("IP=10.1.0.6", "CNI_ARGS IP asks for 10.1.0.6, and 10.1.0.5 is asked for as well"),
    ],
)
def test_a_wish_in_cni_args_that_cannot_be_read_is_code_4(args, said):
    """The environment's code, not the configuration's."""
    with pytest.raises(CniError) as caught:
        parse({"runtimeConfig": {"ips": ["10.1.0.5"]}}, args=args)

    assert caught.value.code is Code.INVALID_ENVIRONMENT
    assert said in caught.value.msg


@pytest.mark.parametrize("command", ["DEL", "GC", "STATUS"])
def test_only_add_and_check_read_wishes(command):
    """A sandbox is removable whatever was asked for it."""
    broken = {"runtimeConfig": {"mac": 7, "ips": "x"}, "cni.dev/valid-attachments": []}

    assert parse(broken, args="MAC=zz;IP=zz", command=command).requested == NOTHING


def test_check_reads_what_was_asked_for():
    """libcni hands runtimeConfig to CHECK as it did to ADD."""
    asked = parse({"runtimeConfig": {"mac": MAC, "ips": ["10.1.0.5"]}}, command="CHECK")

    assert asked.requested == Requested(MAC, (V4,))
