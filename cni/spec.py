"""CNI 1.1: what a runtime asks, as values, and the answers other than a result. Pure.

One set of values serves every version from 0.3.0 to 1.1.0; the version matters at the two edges
alone. What an ADD answers is in result.py, what goes wrong in errors.py.

Invariants:
  * Whatever bytes come in, the only exception that leaves this module is ``CniError``.
  * Every refusal is one sentence that names the field and the value, the value shortened.
  * A DEL is parsed as leniently as the specification allows: what cannot be ours is not there.

Not done here: reading stdin, opening namespaces (plugin.py), deciding anything (attach.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from cni.attachment import Attachment, PodRef
from cni.errors import CniError, Code, shown, undecodable
from cni.podlink import ALIAS_MAX_BYTES
from cni.requested import NOTHING, Requested, parse_requested
from cni.result import (
    NEWEST_VERSION,
    NO_DNS,
    SUPPORTED_VERSIONS,
    Dns,
    Result,
    array_of,
    encode,
    integer,
    parse_dns,
    parse_result,
    text_of,
)

IFNAME_MAX_BYTES = 15
"""IFNAMSIZ is 16 with the terminating NUL."""

_ALIAS_WITHOUT_NAMES_BYTES = len("slash32|1|") + IFNAME_MAX_BYTES + 15 + 39 + 5
"""The alias around network and container id: tag, ifname, both addresses at their longest, bars."""

NETWORK_NAME_MAX_BYTES = 63
CONTAINER_ID_MAX_BYTES = ALIAS_MAX_BYTES - _ALIAS_WITHOUT_NAMES_BYTES - NETWORK_NAME_MAX_BYTES
"""What is left of a link alias; runtimes use 64 hexadecimal digits."""

MTU_MIN_BYTES = 1280
"""RFC 8200 section 5: below it a link cannot carry IPv6."""
MTU_MAX_BYTES = 65535

SOCKET_PATH_MAX_BYTES = 107
"""sun_path is 108 with the terminating NUL."""

VALID_ATTACHMENTS_MAX = 65536
"""How many attachments one GC may name; a node runs hundreds of pods."""

LOOPBACK_TYPE = "loopback"
"""``NetConf.type`` of the other plugin that a CRI runtime wants (cni/loopback.py)."""

REMEMBERED_MAX_BYTES = 8192
"""A configuration of at most that size is parsed once; a prevResult seldom comes twice."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*", re.ASCII)
_IFNAME = re.compile(r"[!-~]+", re.ASCII)
_KUBERNETES_NAME = re.compile(r"[a-z0-9][-a-z0-9.]{0,252}", re.ASCII)
_KUBERNETES_UID = re.compile(r"[-a-zA-Z0-9]{0,64}", re.ASCII)


class Command(Enum):
    """The operations of section 2; VERSION is answered by the plugin itself."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    STATUS = "STATUS"
    GC = "GC"
    VERSION = "VERSION"


_FIRST_VERSION_OF = {Command.CHECK: "0.4.0", Command.STATUS: "1.1.0", Command.GC: "1.1.0"}
_OF_ONE_ATTACHMENT = frozenset({Command.ADD, Command.DEL, Command.CHECK})
_WITH_WISHES = frozenset({Command.ADD, Command.CHECK})


@dataclass(frozen=True, slots=True)
class NetConf:
    """The plugin's configuration as libcni derives it from the conflist (section 3).

    ``valid_attachments`` is None when the key is absent: a GC without it would remove every pod.
    ``unsupported`` names what asks for something we do not do, ``key=value``.
    """

    cni_version: str
    name: str
    type: str = ""
    mtu_bytes: int | None = None
    socket_path: str | None = None
    dns: Dns = NO_DNS
    prev_result: Result | None = None
    valid_attachments: frozenset[Attachment] | None = None
    unsupported: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a runtime. ``attachment`` is None for STATUS and GC.

    ``requested`` is what ADD must grant and CHECK must find; no other command reads it.
    """

    command: Command
    netconf: NetConf
    attachment: Attachment | None = None
    netns: str = ""
    pod: PodRef | None = None
    requested: Requested = NOTHING


# -- sentences ---------------------------------------------------------------------------------


def _environment(name: str, what: str) -> CniError:
    return CniError(Code.INVALID_ENVIRONMENT, f"{name} {what}")


def _config(field: str, what: str) -> CniError:
    return CniError(Code.INVALID_CONFIG, f"network configuration: {field} {what}")


# -- request -----------------------------------------------------------------------------------


def parse_request(environment: Mapping[str, str], stdin: bytes) -> Request:
    """The request in a runtime's environment and standard input (section 2).

    Args:
        environment: the CNI_* variables; others are not looked at.
        stdin: the network configuration.

    Raises:
        CniError: 4 environment, 6 not JSON or a field of the wrong type, 7 a value we refuse,
            1 a version we do not speak or one that does not have this command.
    """
    command = _parse_command(environment.get("CNI_COMMAND", ""))
    container_id, ifname = "", ""
    if command in _OF_ONE_ATTACHMENT:
        container_id = _parse_container_id(environment.get("CNI_CONTAINERID", ""), command=command)
        ifname = _parse_ifname(environment.get("CNI_IFNAME", ""))
    netns = environment.get("CNI_NETNS", "")
    if command in (Command.ADD, Command.CHECK) and not netns:
        raise _environment("CNI_NETNS", f"is missing; {command.value} needs it")
    if command not in _OF_ONE_ATTACHMENT:
        return Request(command, parse_netconf(_decode_object(stdin), command=command))
    args = parse_args(environment.get("CNI_ARGS", ""), command=command)
    netconf, requested = _parse_stdin(command, stdin, args.get("MAC", ""), args.get("IP", ""))
    return Request(
        command=command,
        netconf=netconf,
        attachment=Attachment(netconf.name, container_id, ifname),
        netns=netns,
        pod=_parse_pod(args),
        requested=requested,
    )


def _parse_stdin(command: Command, stdin: bytes, mac: str, ip: str) -> tuple[NetConf, Requested]:
    """What is asked for, remembered: a node's runtime sends the same bytes for most pods."""
    if len(stdin) > REMEMBERED_MAX_BYTES:
        return _parse_conf(command, stdin, mac, ip)
    return _parse_again(command, stdin, mac, ip)


def _parse_conf(command: Command, stdin: bytes, mac: str, ip: str) -> tuple[NetConf, Requested]:
    conf = _decode_object(stdin)
    netconf = parse_netconf(conf, command=command)
    if command not in _WITH_WISHES:
        return netconf, NOTHING
    return netconf, parse_requested(conf, {"MAC": mac, "IP": ip})


# An error is not remembered.
_parse_again = lru_cache(maxsize=64)(_parse_conf)


def _parse_command(text: str) -> Command:
    if not text:
        raise _environment("CNI_COMMAND", "is missing")
    try:
        return Command(text)
    except ValueError:
        raise _environment(
            "CNI_COMMAND",
            f"is {shown(text)}, not one of {', '.join(each.value for each in Command)}",
        ) from None


def _parse_container_id(text: str, *, command: Command) -> str:
    if not text:
        raise _environment("CNI_CONTAINERID", f"is missing; {command.value} needs it")
    if not _NAME.fullmatch(text):
        raise _environment(
            "CNI_CONTAINERID",
            f"is {shown(text)}; it must be letters, digits, '_', '.' and '-', "
            "beginning with a letter or digit",
        )
    # A DEL of a name too long for us finds nothing of ours, which is success.
    if len(text) > CONTAINER_ID_MAX_BYTES and command is not Command.DEL:
        raise _environment(
            "CNI_CONTAINERID",
            f"{shown(text)} has {len(text)} characters; at most {CONTAINER_ID_MAX_BYTES} fit "
            "into a link alias",
        )
    return text


def _parse_ifname(text: str) -> str:
    """An interface name the kernel takes, our alias can carry and /proc/sys can address."""
    if not text:
        raise _environment("CNI_IFNAME", "is missing")
    if len(text) > IFNAME_MAX_BYTES:
        raise _environment(
            "CNI_IFNAME",
            f"{shown(text)} has {len(text)} characters; an interface name has at most "
            f"{IFNAME_MAX_BYTES}",
        )
    # '%' would be a template to the kernel; '|' separates the fields of our alias.
    if not _IFNAME.fullmatch(text) or any(each in text for each in "/:%|"):
        raise _environment(
            "CNI_IFNAME",
            f"is {shown(text)}; it must be printable ASCII without '/', ':', '%', '|' and blanks",
        )
    if text in (".", "..", "all", "default"):
        raise _environment("CNI_IFNAME", f"is {shown(text)}, which names no interface")
    return text


def parse_args(text: str, *, command: Command) -> dict[str, str]:
    """CNI_ARGS: ``KEY=VALUE`` pairs, separated by ';', in any order.

    Every K8S_* key is known, whatever comes after the prefix: runtimes add to them, and none of
    them changes what we do. IP and MAC are those of the conventions.

    Raises:
        CniError: 4, a pair that is none, or a key we do not know while IgnoreUnknown is not set.
    """
    pairs: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if (not equals or not key) and command is not Command.DEL:
            raise _environment("CNI_ARGS", f"has {shown(pair)}, which is not KEY=VALUE")
        pairs[key] = value
    lenient = pairs.pop("IgnoreUnknown", "").lower() in ("1", "true") or command is Command.DEL
    unknown = [key for key in pairs if not key.startswith("K8S_") and key not in ("IP", "MAC")]
    if unknown and not lenient:
        raise _environment(
            "CNI_ARGS", f"has the unknown key {shown(unknown[0])}, and IgnoreUnknown is not set"
        )
    return pairs


def _parse_pod(pairs: Mapping[str, str]) -> PodRef | None:
    """Who asks; a name that is no Kubernetes name is not used: it is decoration."""
    namespace = pairs.get("K8S_POD_NAMESPACE", "")
    name = pairs.get("K8S_POD_NAME", "")
    uid = pairs.get("K8S_POD_UID", "")
    if not _KUBERNETES_NAME.fullmatch(namespace) or not _KUBERNETES_NAME.fullmatch(name):
        return None
    return PodRef(namespace, name, uid if _KUBERNETES_UID.fullmatch(uid) else "")


# -- network configuration ---------------------------------------------------------------------


def parse_netconf(conf: Mapping[str, Any], *, command: Command) -> NetConf:
    """The network configuration from standard input, decoded.

    Raises:
        CniError: 6 a field of the wrong type, 7 a value we refuse, 1 the version.
    """
    name = _parse_network_name(text_of(conf, "name"), command=command)
    version = _parse_version(text_of(conf, "cniVersion"), command=command)
    strict = command not in (Command.DEL, Command.GC)
    netconf = NetConf(
        cni_version=version,
        name=name,
        type=text_of(conf, "type"),
        mtu_bytes=_parse_mtu(conf.get("mtu")) if strict else None,
        socket_path=_parse_socket_path(text_of(conf, "socket")),
        dns=parse_dns(conf.get("dns"), "dns") if strict else NO_DNS,
        prev_result=_parse_prev_result(conf, command=command),
        valid_attachments=_parse_valid_attachments(conf, name) if command is Command.GC else None,
        unsupported=_find_unsupported(conf) if strict else (),
    )
    if netconf.unsupported:
        raise CniError(
            Code.UNSUPPORTED_FIELD,
            f"network configuration: {netconf.unsupported[0]} is not supported",
            _WHY_UNSUPPORTED,
        )
    return netconf


def _decode_object(stdin: bytes) -> dict[str, Any]:
    try:
        # Not json.loads(bytes): that one guesses UTF-16 and UTF-32 too.
        conf = json.loads(stdin.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CniError(
            Code.DECODE_FAILURE,
            f"network configuration on stdin is not UTF-8 at byte {error.start}",
        ) from None
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise CniError(
            Code.DECODE_FAILURE, f"network configuration on stdin is not JSON: {reason[:120]}"
        ) from None
    if not isinstance(conf, dict):
        raise CniError(
            Code.DECODE_FAILURE,
            f"network configuration on stdin is {shown(conf)}, not a JSON object",
        )
    return conf


def _parse_network_name(text: str, *, command: Command) -> str:
    if not text:
        raise _config("name", "is missing")
    if not _NAME.fullmatch(text):
        raise _config(
            "name",
            f"is {shown(text)}; it must be letters, digits, '_', '.' and '-', "
            "beginning with a letter or digit",
        )
    if len(text) > NETWORK_NAME_MAX_BYTES and command is not Command.DEL:
        raise _config(
            "name",
            f"{shown(text)} has {len(text)} characters; at most {NETWORK_NAME_MAX_BYTES} fit "
            "into a link alias",
        )
    return text


def _parse_version(text: str, *, command: Command) -> str:
    if text not in SUPPORTED_VERSIONS:
        found = shown(text) if text else "missing, which means 0.1.0"
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"cniVersion is {found}; this plugin speaks {', '.join(SUPPORTED_VERSIONS)}",
        )
    first = _FIRST_VERSION_OF.get(command, SUPPORTED_VERSIONS[0])
    if SUPPORTED_VERSIONS.index(text) < SUPPORTED_VERSIONS.index(first):
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"cniVersion {text} has no {command.value}; it exists since {first}",
        )
    return text


def _parse_mtu(value: object) -> int | None:
    """``mtu``; absent, null and 0 mean: that of the uplink."""
    if value is None:
        return None
    mtu_bytes = integer(value, "mtu")
    if mtu_bytes == 0:
        return None
    if not MTU_MIN_BYTES <= mtu_bytes <= MTU_MAX_BYTES:
        raise _config(
            "mtu", f"is {shown(mtu_bytes)}; it must be {MTU_MIN_BYTES} to {MTU_MAX_BYTES} bytes"
        )
    return mtu_bytes


def _parse_socket_path(text: str) -> str | None:
    """``socket``: where the plugin found us. Checked as the plugin checks it, never opened here."""
    if not text:
        return None
    size = len(text.encode("utf-8", "surrogatepass"))
    if not text.startswith("/") or "\0" in text or size > SOCKET_PATH_MAX_BYTES:
        raise _config(
            "socket",
            f"is {shown(text)}; it must be an absolute path of at most "
            f"{SOCKET_PATH_MAX_BYTES} bytes",
        )
    return text


_WHY_UNSUPPORTED = (
    "slash32 assigns addresses itself from its IPPools and routes pods without translation"
)


def _find_unsupported(conf: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields that ask for what we do not do; ignoring them would surprise somebody at night."""
    found = []
    if conf.get("ipMasq"):
        found.append(f"ipMasq={shown(conf['ipMasq'])}")
    if conf.get("ipam"):
        found.append(f"ipam={shown(conf['ipam'])}")
    return tuple(found)


def _parse_valid_attachments(conf: Mapping[str, Any], network: str) -> frozenset[Attachment] | None:
    key = "cni.dev/valid-attachments"
    if key not in conf:
        raise _config(key, "is missing; without it GC would remove every pod's link")
    entries = array_of(conf, key)
    if len(entries) > VALID_ATTACHMENTS_MAX:
        raise _config(key, f"has {len(entries)} entries; at most {VALID_ATTACHMENTS_MAX} are read")
    valid = set()
    for index, entry in enumerate(entries):
        path = f"{key}[{index}]."
        if not isinstance(entry, dict):
            raise undecodable(path[:-1], f"is {shown(entry)}, not an object")
        container_id, ifname = text_of(entry, "containerID", path), text_of(entry, "ifname", path)
        if not container_id or not ifname:
            raise _config(path[:-1], "lacks containerID or ifname")
        valid.add(Attachment(network, container_id, ifname))
    return frozenset(valid)


# -- results -----------------------------------------------------------------------------------


def _parse_prev_result(conf: Mapping[str, Any], *, command: Command) -> Result | None:
    value = conf.get("prevResult")
    if command is Command.CHECK and value is None:
        raise _config("prevResult", "is missing; CHECK needs it")
    # DEL and GC do not look at it: a result we cannot read must not keep a sandbox alive.
    if value is None or command not in (Command.ADD, Command.CHECK):
        return None
    return parse_result(value, path="prevResult")


def render_error(error: CniError, *, version: str) -> bytes:
    """``error`` as JSON (section 5, Error)."""
    return encode(
        {
            "cniVersion": version,
            "code": int(error.code),
            "msg": error.msg,
            "details": error.details,
        }
    )


def asked_version(stdin: bytes) -> str:
    """The version an error answer is written in: the asked one if we speak it, else our newest."""
    return _version_in(stdin) if len(stdin) > REMEMBERED_MAX_BYTES else _version_again(stdin)


def _version_in(stdin: bytes) -> str:
    try:
        version = text_of(_decode_object(stdin), "cniVersion")
    except CniError:
        return NEWEST_VERSION
    return version if version in SUPPORTED_VERSIONS else NEWEST_VERSION


_version_again = lru_cache(maxsize=64)(_version_in)
