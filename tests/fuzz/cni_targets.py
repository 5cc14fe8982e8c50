"""What a runtime, another program on the node, or a file left behind says to the agent."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cni.attach import Attacher
from cni.attachment import Attachment
from cni.errors import Code
from cni.frame import MAGIC
from cni.ipam.cooldown import CooldownFile
from cni.podlink import ALIAS_MAX_BYTES, AliasError, decode_alias, encode_alias
from cni.recorded import Unreadable, _read
from cni.result import SUPPORTED_VERSIONS
from cni.server import CniServer, _Connection
from cni.spec import Command
from routing.control import ControlServer
from routing.datastore.pod_annotations import READ, Annotated, wish_of
from tests.fakes.cni import Node
from tests.fuzz.draw import Draw
from tests.fuzz.resource_targets import POOLS
from tests.fuzz.target import Broken, Target

COMMANDS = [each.value for each in Command]
CONF: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "slash32",
    "type": "slash32",
    "mtu": 1500,
    "socket": "/run/slash32/cni.sock",
    "dns": {"nameservers": ["10.96.0.10"], "domain": "a.b", "search": ["a.b"], "options": ["x"]},
    "args": {"cni": {"ips": ["10.244.0.9"], "mac": "0a:58:0a:f4:00:01"}},
    "runtimeConfig": {"ips": ["10.244.0.9/32"], "mac": "0a:58:0a:f4:00:01"},
    "prevResult": {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "s32000000000000", "mac": "ee:ee:ee:ee:ee:ee", "mtu": 1500},
            {"name": "eth0", "mac": "0a:58:0a:f4:00:01", "sandbox": "/run/netns/x"},
        ],
        "ips": [{"address": "10.244.0.1/32", "gateway": "169.254.1.1", "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1500, "scope": 0}],
        "dns": {},
    },
    "cni.dev/valid-attachments": [{"containerID": "c0ffee", "ifname": "eth0"}],
}
ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=0-1",
    "CNI_PATH": "/opt/cni/bin",
}


def frame(environment: dict[str, str], stdin: bytes) -> bytes:
    """One request as the launcher sends it."""
    words = "".join(f"{key}={value}\0" for key, value in environment.items())
    return MAGIC + words.encode("utf-8", "surrogatepass") + b"\0" + stdin


def check_answer(reply: bytes) -> bool:
    """Whether it is yes; Broken when it is neither yes nor an error that CNI has."""
    if reply[:1] == b"\0":
        if reply[1:] and not isinstance(json.loads(reply[1:]), dict):
            raise Broken(f"an answer that is no result: {reply[:200]!r}")
        return True
    error = json.loads(reply[1:])
    if reply[:1] != b"\1" or set(error) != {"cniVersion", "code", "msg", "details"}:
        raise Broken(f"neither result nor error: {reply[:200]!r}")
    if error["code"] == Code.INTERNAL:
        raise Broken(f"the agent failed: {error['msg']}")
    if error["cniVersion"] not in SUPPORTED_VERSIONS or error["code"] not in set(map(int, Code)):
        raise Broken(f"an error that CNI has not: {error}")
    if not error["msg"] or "\n" in error["msg"]:
        raise Broken(f"not one sentence: {error['msg']!r}")
    return False


class Agent:
    """The real server and the real verbs over fakes of the kernel and the address book."""

    def __init__(self) -> None:
        # What is refused is logged, and that is tested elsewhere; here it is only slow.
        logging.disable(logging.CRITICAL)
        self._loop = asyncio.new_event_loop()
        self._directory = tempfile.mkdtemp(prefix="slash32-fuzz-")
        os.mkdir(f"{self._directory}/deleted", 0o700)
        self._socket = socket.socket(socket.AF_UNIX)
        self._requests = 0
        self._node, self._server = self._made()

    def _made(self) -> tuple[Node, CniServer]:
        node = Node()
        attacher = Attacher(
            wiring=node.wires,
            host_routes=node.routes,
            allocator=node.allocator,
            mtu_bytes=lambda: 1500,
            readiness=lambda: None,
            examine_netns=lambda _descriptor: None,
        )
        return node, CniServer(f"{self._directory}/cni.sock", attacher)

    def answer(self, data: bytes, *, has_namespace: bool) -> bool:
        """What one connection is told. Now and then everything is new: addresses run out."""
        self._requests += 1
        if self._requests % 200 == 0:
            self._node, self._server = self._made()
        connection = _Connection(self._socket, bytearray(data), [99] if has_namespace else [])
        reply = self._loop.run_until_complete(self._server._reply(connection, None))
        is_yes = check_answer(reply)
        self._agree(is_yes, reply)
        return is_yes

    def close(self) -> None:
        """Nothing stays open, no file stays."""
        self._loop.close()
        self._socket.close()
        shutil.rmtree(self._directory)

    def _agree(self, is_yes: bool, reply: bytes) -> None:
        """The address book and the links know the same attachments, and no route is anybody else's.

        The fake book gives a requested address to whoever asks, so a route may have gone over.
        """
        held = set(self._node.allocator.held)
        wired = {wire.link.attachment for wire in self._node.wires.wires.values()}
        routed = {link.attachment for link in self._node.routes.routes.values()}
        if held != wired or not routed <= held:
            raise Broken(f"held {held}, wired {wired}, routed {routed} after {is_yes} {reply!r}")


class _Lazily:
    """One of each for a process; not made at import, for that would be before the fuzzer forks."""

    agent: Agent | None = None
    control: ControlServer | None = None
    loop: asyncio.AbstractEventLoop | None = None
    directory: str | None = None


def forget() -> None:
    """Closes and removes what the targets have made."""
    if _Lazily.agent is not None:
        _Lazily.agent.close()
    if _Lazily.loop is not None:
        _Lazily.loop.close()
    if _Lazily.directory is not None:
        shutil.rmtree(_Lazily.directory)
    _Lazily.agent = _Lazily.control = _Lazily.loop = _Lazily.directory = None


def the_agent() -> Agent:
    """Made at the first request."""
    if _Lazily.agent is None:
        _Lazily.agent = Agent()
    return _Lazily.agent


def cni_socket(data: bytes) -> bool:
    """The bytes of one connection, as they come."""
    return the_agent().answer(data[1:], has_namespace=bool(data[:1] != b"\0"))


def drawn_frame(draw: Draw, command: str) -> bytes:
    """A request with damage in its environment and its configuration."""
    environment = ENVIRONMENT | {"CNI_COMMAND": command}
    environment["CNI_CONTAINERID"] = draw.choice(("c0ffee", "c1", "c2"))
    if draw.below(2):
        environment = {
            str(key): str(value) for key, value in draw.damaged(environment).items() if key
        }
    fields = draw.below(1 << 10)
    conf = {
        key: value for at, (key, value) in enumerate(CONF.items()) if at < 3 or fields >> at & 1
    }
    if draw.below(4):
        conf = draw.damaged(conf)
    stdin = draw.rest() if draw.below(16) == 15 else json.dumps(conf).encode()
    return frame(environment, stdin)


def cni_request(data: bytes) -> bool:
    """A request with damage in its environment and its configuration."""
    draw = Draw(data)
    command = draw.choice(COMMANDS)
    has_namespace = bool(draw.below(8) != 7)
    return the_agent().answer(drawn_frame(draw, command), has_namespace=has_namespace)


def cni_socket_seeds() -> Iterator[bytes]:
    """Every command well-made, and cut."""
    for command in COMMANDS:
        whole = frame(ENVIRONMENT | {"CNI_COMMAND": command}, json.dumps(CONF).encode())
        yield b"\1" + whole
        small = {key: CONF[key] for key in ("cniVersion", "name", "type")}
        yield b"\1" + frame(ENVIRONMENT | {"CNI_COMMAND": command}, json.dumps(small).encode())
        yield b"\0" + whole[: len(whole) // 2]
    yield b"\1" + frame({"CNI_COMMAND": "STATUS"}, b"[" * 5000)


def cni_request_seeds() -> Iterator[bytes]:
    """Each command, each without damage."""
    for command in range(len(COMMANDS)):
        yield bytes([command])
        yield bytes([command, 0, 1, 0, 0, 255])
        yield bytes([command, 0, 0, 0, 3, 255, 1, 4, 2, 3, 3, 1, 9])


def control_socket(data: bytes) -> bool:
    """A line to the agent's other socket."""
    if _Lazily.control is None:

        async def view() -> dict[str, int]:
            return {"a": 1}

        async def query(arguments: Any) -> object:
            return {"prefix": str(arguments.get("prefix"))}

        _Lazily.loop = asyncio.new_event_loop()
        _Lazily.control = ControlServer(
            Path("/nowhere/agent.sock"), {"status": view}, {"routes": query}
        )
    assert _Lazily.loop is not None
    reply = _Lazily.loop.run_until_complete(_Lazily.control._reply(_control_line(data)))
    json.dumps(reply)
    return "error" not in reply


def _control_line(data: bytes) -> bytes:
    draw = Draw(data)
    if draw.below(4) == 3:
        return draw.rest()[:4096]
    query = {"view": "routes", "arguments": {"prefix": "10.0.0.0/8", "of": ["x", {"y": None}]}}
    line = json.dumps(draw.damaged(query if draw.below(2) else {"view": "status"})).encode()
    return draw.spliced(line, (b'"', b"{", b"}", b"[" * 2000, b"\\", b"\n", b"NaN", b"1e999"), 2)


def control_seeds() -> Iterator[bytes]:
    """A view, a query, and neither."""
    yield b""
    yield b"\0\1"
    for what in range(8):
        yield bytes([0, 1, 1, 1, 1, what, 3, 1])
    yield b'\3{"view": "status"}\n'
    yield b'\3{"view": "routes", "arguments": {"prefix": "10.0.0.0/8"}}\n'
    yield b'\3{"view": ["routes"], "arguments": 3}\n'
    yield b"\3" + b"[" * 4000


def recorded_del(data: bytes) -> bool:
    """A file that a launcher has left in ``deleted/``."""
    path = Path(_directory()) / "record"
    draw = Draw(data)
    if draw.below(4) == 3:
        path.write_bytes(draw.rest())
    else:
        whole = drawn_frame(draw, draw.choice(("DEL", "DEL", "DEL", *COMMANDS)))
        path.write_bytes(draw.spliced(whole, (b"\0", b"CNI_", b"=", b"\xff", b'"', b"{"), 2))
    try:
        request = _read(path)
    except Unreadable:
        return False
    if request.command is not Command.DEL or request.attachment is None:
        raise Broken(f"a record that is no DEL was taken: {request}")
    return True


def recorded_seeds() -> Iterator[bytes]:
    """A DEL, and other verbs."""
    for command in ("DEL", "ADD", "GC"):
        yield b"\3" + frame(ENVIRONMENT | {"CNI_COMMAND": command}, json.dumps(CONF).encode())
    for which in range(9):
        yield bytes([0, which])
        yield bytes([0, which, 0, 1, 1, 3, 4, 2, 1, 1])


def cooldown_file(data: bytes) -> bool:
    """What an earlier agent left of released addresses."""
    import structlog

    path = Path(_directory()) / "cooldown"
    path.write_bytes(data)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    file = CooldownFile(str(path), cooldown_s=30.0, clock=lambda: 1000.0, boot_id="b")
    found = file.read()
    if any(not 0 <= age_s <= 30.0 for age_s in found.values()):
        raise Broken(f"an age that cannot be: {found}")
    return bool(found)


def cooldown_seeds() -> Iterator[bytes]:
    """Written by us, and torn."""
    head = b"slash32-cooldown 1 b\n"
    yield head
    yield head + b"990.000 10.0.0.1\n999.5 fd00::1\n1000.0 10.0.0.2\n"
    yield head + b"nan 10.0.0.1\ninf 10.0.0.1\n1e400 fd00::1%x\n980 10.0.0.1\n99"


def link_alias(data: bytes) -> bool:
    """The alias of a link: anybody with CAP_NET_ADMIN can write one."""
    alias = data.decode("utf-8", "replace")
    if len(alias.encode()) > ALIAS_MAX_BYTES:
        return False  # the kernel has none so long
    try:
        record = decode_alias(alias)
    except AliasError:
        return False
    if record is None:
        return False
    with suppress(AliasError):
        again = decode_alias(encode_alias(record.attachment, record.addresses, record.pod))
        if again != record:
            raise Broken(f"{alias!r} reads back as {again}")
    return True


def alias_seeds() -> Iterator[bytes]:
    """As we write it."""
    from ipaddress import ip_address

    from cni.attachment import PodRef

    attachment = Attachment("slash32", "c0ffee", "eth0")
    addresses = ip_address("10.244.0.1"), ip_address("fd00::1")
    for pod in (None, PodRef("a", "b", "u")):
        yield encode_alias(attachment, addresses, pod).encode()
        yield encode_alias(attachment, addresses[:1], pod).encode()


def pod_annotations(data: bytes) -> bool:
    """What whoever may create pods in a namespace asks for."""
    from cni.wish import WishRefused

    draw = Draw(data)

    def annotations() -> dict[str, str]:
        found = {}
        for _ in range(draw.below(4)):
            key = draw.choice(sorted(READ))
            what = draw.below(4)
            texts = ["pods", "10.244.0.0/16", "10.244.3.4", "fd00::9", "named", "true"]
            if what == 0:
                found[key] = json.dumps([draw.choice(texts) for _ in range(draw.below(4))])
            elif what == 1:
                found[key] = draw.choice(texts)
            elif what == 2:
                found[key] = json.dumps(draw.value())
            else:
                found[key] = draw.text()
        return found

    pod = Annotated("p", "u", {}, annotations())
    namespace = Annotated("n", "v", {"team": draw.choice(("a", "b"))}, annotations())
    try:
        wish = wish_of(pod, namespace, POOLS)
    except WishRefused as error:
        if "\n" in str(error):
            raise Broken(f"a refusal of two lines: {error}") from None
        return False
    if wish.addresses and "true" not in namespace.annotations.values():
        raise Broken(f"an address without leave: {wish}")
    return True


def pod_seeds() -> Iterator[bytes]:
    """A few shapes."""
    yield b""
    for key in range(8):
        yield bytes([1, key, 0, 2, 0, 1, 0, 1, key, 1, 5])
        yield bytes([2, key, 0, 1, 2, key, 1, 4, 1, 1, 0, 1, 5])


def _directory() -> str:
    if _Lazily.directory is None:
        _Lazily.directory = tempfile.mkdtemp(prefix="slash32-fuzz-", dir="/dev/shm")
    return _Lazily.directory


TARGETS = (
    Target(
        "cni-socket",
        "the bytes of one connection to the CNI socket, through server and verbs",
        cni_socket,
        cni_socket_seeds,
        (b"CNI_COMMAND=", b'"prevResult"', b"\0"),
    ),
    Target(
        "cni-request",
        "environment and configuration of a CNI request, damaged",
        cni_request,
        cni_request_seeds,
    ),
    Target(
        "control-socket",
        "a line to the agent's control socket",
        control_socket,
        control_seeds,
        (b'"view"', b'"arguments"'),
        weight=15,
    ),
    Target(
        "recorded-del",
        "a deletion recorded while the agent was away",
        recorded_del,
        recorded_seeds,
        (b"CNI_COMMAND=DEL",),
        weight=5,
    ),
    Target(
        "cooldown-file",
        "the file of released addresses",
        cooldown_file,
        cooldown_seeds,
        (b"slash32-cooldown 1 b\n",),
        weight=5,
    ),
    Target(
        "link-alias",
        "the alias of a link in the kernel",
        link_alias,
        alias_seeds,
        (b"slash32|1|",),
        weight=15,
    ),
    Target(
        "pod-annotations",
        "the annotations of a pod and of its namespace",
        pod_annotations,
        pod_seeds,
        weight=15,
    ),
)
