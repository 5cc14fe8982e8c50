"""C: the executable itself, in both of its forms, in a lab: what it does when the agent is silent
or the API away, and what it answers to input that no runtime should send."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lab import namespaces, runtime
from lab.build import PROJECT_DIR
from lab.chaos.plugin import TRY_AGAIN_LATER, code_of
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.world import World
from lab.waiting import in_parallel

OWN_DEADLINE_S = 30.0
SLACK_S = 1.5
"""Of a busy machine: an interpreter takes 0.3 s to start."""
SILENT_S = 60.0
HUGE_BYTES = 10_000_000
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_VERSION, _ENVIRONMENT, _DECODING, _INVALID = 1, 4, 6, 7


@contextmanager
def _forms(world: World) -> Iterator[dict[str, runtime.Runtime]]:
    """The runtime of node1 over each form of the plugin: the script, and the static launcher."""
    paths = world.lab.paths
    with TemporaryDirectory(prefix="s32-", dir=paths.programs) as directory:
        program = Path(directory) / "slash32"
        command = [sys.executable, "-m", "cni.launcher.build", "--out", str(program)]
        subprocess.run(command, cwd=PROJECT_DIR, check=True, capture_output=True, timeout=120)
        network = runtime.load_network(paths.cni_conf("node1"))
        launcher = runtime.Runtime(
            network,
            bin_dirs=[Path(directory)],
            results_dir=paths.cni_results("node1"),
            namespace=world.machine("node1").namespace,
        )
        yield {"script": world.lab.runtime_of("node1"), "launcher": launcher}


def _is_held(world: World, sandbox: runtime.Sandbox) -> bool:
    """Whether node1's books still have something of that sandbox."""
    return sandbox.container_id in json.dumps(world.ask("node1", "pods"))


# -- C1 ----------------------------------------------------------------------------------------


def every_delete(world: World, verdict: Verdict) -> None:
    """Each kind of DEL that a runtime may send, by both forms: with and without the result of ADD,
    without a namespace (said so, or gone under it), again and again, and for what never was."""
    done: list[str] = []
    with _forms(world) as forms, ExitStack() as pods:
        for form, plugin in forms.items():
            for what, delete in _deletions(plugin).items():
                tag = f"c1{form[0]}{len(done)}"
                sandbox, namespace = pods.enter_context(world.extra_pod("node1", tag))
                if what != "never added":
                    plugin.add(sandbox)
                    verdict.must(_is_held(world, sandbox), f"{form}, {what}: nothing was added")
                if "gone" in what:
                    namespaces.delete(namespace)
                delete(sandbox)
                verdict.must(not _is_held(world, sandbox), f"{form}, {what}: still held")
                done.append(what)
    verdict.note(f"{len(done)} kinds of DEL, each exit 0 and nothing held: {', '.join(done[:6])}")


def _deletions(plugin: runtime.Runtime) -> dict[str, Callable[[runtime.Sandbox], None]]:
    def without_result(sandbox: runtime.Sandbox) -> None:
        plugin.forget(sandbox)
        plugin.delete(sandbox)

    def thrice(sandbox: runtime.Sandbox) -> None:
        for _ in range(3):
            plugin.delete(sandbox)

    return {
        "with prevResult": plugin.delete,
        "without prevResult": without_result,
        "without netns": lambda sandbox: plugin.delete(sandbox, netns_is_gone=True),
        "netns gone": plugin.delete,
        "three times": thrice,
        "never added": thrice,
    }


def delete_without_api(world: World, verdict: Verdict) -> None:
    """The API server away; then the agent as well, so that the DEL is written down and done when
    the agent is back, still without an API."""
    plugin = world.lab.runtime_of("node1")
    with ExitStack() as pods:
        made = [pods.enter_context(world.extra_pod("node1", f"c1n{n}"))[0] for n in range(3)]
        for sandbox in made:
            plugin.add(sandbox)
        records = world.lab.paths.run_dir("node1") / "deleted"
        world.lab.stop_api()
        try:
            world.wait(lambda: len(world.store_errors()) == len(world.nodes), "agents without API")
            plugin.delete(made[0])
            plugin.delete(made[0])
            at_once = _is_held(world, made[0])
            world.kill("agent-node1")
            plugin.forget(made[1])
            plugin.delete(made[1])
            plugin.delete(made[2], netns_is_gone=True)
            recorded = len(list(records.iterdir()))
            world.start_agent("node1")
            world.wait(lambda: world.ask("node1", "status") is not None, "the agent")
            done_s = world.wait(
                lambda: not any(_is_held(world, each) for each in made), "the recorded DELs"
            )
        finally:
            world.lab.stop_api(is_back=True)
        world.settled()
        left = len(list(records.iterdir()))
    verdict.note(
        f"4 DELs without API, each exit 0; {recorded} recorded while the agent was away too, done "
        f"{done_s:.1f} s after it answered, {left} records left"
    )
    verdict.must(not at_once, "a DEL without API left the address held")
    verdict.must(recorded == 2, f"control: {recorded} DELs were recorded, not 2")
    verdict.must(left == 0, f"{left} records were left")


# -- C5 ----------------------------------------------------------------------------------------


class _Mute:
    """An agent's socket that takes connections and says nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._taken: list[socket.socket] = []

    def __enter__(self) -> _Mute:
        self._path.unlink(missing_ok=True)
        self._socket.bind(str(self._path))
        self._socket.listen(16)
        threading.Thread(target=self._take, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # A shutdown ends accept(), which a close alone does not.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for each in self._taken:
            each.close()
        self._path.unlink(missing_ok=True)

    @property
    def taken(self) -> int:
        """Connections so far."""
        return len(self._taken)

    def _take(self) -> None:
        with suppress(OSError):
            while True:
                self._taken.append(self._socket.accept()[0])


def silent_agent(world: World, verdict: Verdict) -> None:
    """The agent's socket takes connections and is silent for 60 s; then there is no socket."""
    with _forms(world) as forms, ExitStack() as pods:
        cases = [(form, verb) for form in forms for verb in ("ADD", "DEL")]
        boxes = {
            case: pods.enter_context(world.extra_pod("node1", f"c5{n}"))[0]
            for n, case in enumerate(cases)
        }
        for (form, verb), sandbox in boxes.items():
            if verb == "DEL":
                forms[form].add(sandbox)
        run_dir = world.lab.paths.run_dir("node1")
        world.kill("agent-node1")

        def call(case: tuple[str, str]) -> tuple[int | None, float]:
            form, verb = case
            act = forms[form].add if verb == "ADD" else forms[form].delete
            begun_s = time.monotonic()
            code = code_of(lambda: act(boxes[case]))
            return code, time.monotonic() - begun_s

        begun_s = time.monotonic()
        with _Mute(run_dir / "cni.sock") as mute:
            slow = dict(zip(cases, in_parallel(call, cases, at_once=4), strict=True))
            again = call(("script", "DEL"))
            world.for_seconds(max(0.0, SILENT_S - (time.monotonic() - begun_s)))
            taken = mute.taken
        missing = {form: call((form, "ADD")) for form in forms}
        recorded = len(list((run_dir / "deleted").iterdir()))
        world.start_agent("node1")
        world.wait(lambda: world.is_healthy("node1"), "the agent")
        world.wait(
            lambda: not any(_is_held(world, each) for each in boxes.values()), "the recorded DELs"
        )
    verdict.note(
        "silent: "
        + ", ".join(f"{f} {v} {_said(code)} after {s:.1f} s" for (f, v), (code, s) in slow.items())
        + "; no socket: "
        + ", ".join(f"{f} ADD {_said(c)} after {s:.2f} s" for f, (c, s) in missing.items())
        + f"; {recorded} DELs recorded, and done when the agent was back"
    )
    verdict.must(taken >= len(cases), f"control: the silent socket took {taken} connections")
    for (form, verb), (code, took_s) in [*slow.items(), (("script", "DEL"), again)]:
        owed = TRY_AGAIN_LATER if verb == "ADD" else None
        verdict.must(code == owed, f"{form} {verb} answered {_said(code)}")
        in_time = OWN_DEADLINE_S - SLACK_S <= took_s <= OWN_DEADLINE_S + SLACK_S
        verdict.must(in_time, f"{form} {verb} took {took_s:.1f} s")
    for form, (code, took_s) in missing.items():
        verdict.must(code == TRY_AGAIN_LATER, f"{form} without a socket answered {_said(code)}")
        verdict.must(took_s <= 1.0, f"{form} without a socket took {took_s:.2f} s")
    # The script's second DEL has no prevResult, which went with its first: another request.
    verdict.must(recorded == 3, f"{recorded} DELs recorded, 3 are owed")


def _said(code: int | None) -> str:
    return "exit 0" if code is None else f"code {code}"


# -- C6 ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Spoilt:
    """What somebody does inside a pod, and a word that CHECK must then say."""

    what: str
    commands: tuple[str, ...]
    word: str


def checked(world: World, verdict: Verdict) -> None:
    """CHECK of a pod as it is, and after each thing that somebody can do in it."""
    plugin = world.lab.runtime_of("node1")
    told: dict[str, str] = {}
    with ExitStack() as pods:
        for number, each in enumerate(_spoilers()):
            sandbox, namespace = pods.enter_context(world.extra_pod("node1", f"c6{number}"))
            address = next(a for a in runtime.addresses_in(plugin.add(sandbox)) if "." in a)
            plugin.check(sandbox)
            for command in each.commands:
                argv = command.format(address=address).split()
                namespaces.run(["ip", *argv], namespace=namespace)
            said = _refusal(lambda sandbox=sandbox: plugin.check(sandbox))  # type: ignore[misc]
            plugin.delete(sandbox)
            told[each.what] = said.replace(address, "ADDRESS").replace(sandbox.container_id, "ID")
            verdict.must(each.word in said, f"{each.what}: CHECK says {said!r}")
    verdict.note("; ".join(f"{what}: {_first(said)}" for what, said in told.items()))
    verdict.must(len(set(told.values())) == len(told), f"not told apart: {told}")


def _first(said: str) -> str:
    """The first thing that CHECK names, without the rest in brackets and who is meant."""
    return said.partition(" (")[0].partition("eth0: ")[2]


def _spoilers() -> list[_Spoilt]:
    return [
        _Spoilt("route deleted", ("route del default",), "route"),
        _Spoilt("IP removed", ("addr del {address}/32 dev eth0",), "address of eth0"),
        _Spoilt("veth down", ("link set eth0 down",), "state of eth0 in the pod: expected UP"),
        _Spoilt(
            "IP reassigned",
            ("addr del {address}/32 dev eth0", "addr add 10.244.255.250/32 dev eth0"),
            "10.244.255.250",
        ),
    ]


def _refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except runtime.PluginFailed as error:
        return str(error)
    return ""


# -- C10 ---------------------------------------------------------------------------------------


def strange_input(world: World, verdict: Verdict) -> None:
    """What no runtime should send, to both forms; the error code is the specification's, stdout is
    one JSON object, and nothing is held afterwards."""
    network = runtime.load_network(world.lab.paths.cni_conf("node1"))
    conf = {**network.plugins[0], "name": network.name, "cniVersion": "1.1.0"}
    huge = json.dumps({**conf, "x": "y" * HUGE_BYTES})
    right = {"CNI_COMMAND": "ADD", "CNI_IFNAME": "eth0"}
    cases: list[tuple[str, dict[str, str], str, set[int]]] = [
        ("version 9.9.9", right, json.dumps({**conf, "cniVersion": "9.9.9"}), {_VERSION}),
        ("10 MB of stdin", right, huge, {_DECODING, _INVALID}),
        ("no JSON", right, "not json at all", {_DECODING}),
        ("a list", right, "[]", {_DECODING, _INVALID}),
        ("nothing on stdin", right, "", {_DECODING}),
        ("CNI_IFNAME ../x", {**right, "CNI_IFNAME": "../x"}, json.dumps(conf), {_ENVIRONMENT}),
        ("CNI_IFNAME of 20", {**right, "CNI_IFNAME": "x" * 20}, json.dumps(conf), {_ENVIRONMENT}),
        ("CNI_IFNAME empty", {**right, "CNI_IFNAME": ""}, json.dumps(conf), {_ENVIRONMENT}),
        ("CNI_CONTAINERID empty", {**right, "CNI_CONTAINERID": ""}, json.dumps(conf),
         {_ENVIRONMENT}),
        ("CNI_COMMAND unknown", {**right, "CNI_COMMAND": "MAKE"}, json.dumps(conf),
         {_ENVIRONMENT}),
    ]  # fmt: skip
    tried = 0
    with _forms(world) as forms, ExitStack() as pods:
        sandbox, _ = pods.enter_context(world.extra_pod("node1", "c10"))
        common = {"CNI_CONTAINERID": sandbox.container_id, "CNI_NETNS": sandbox.netns}
        for form, plugin in forms.items():
            for what, variables, stdin, owed in cases:
                done = plugin.run_raw("slash32", {**common, **variables}, stdin)
                tried += 1
                code = _code(done.stdout)
                verdict.must(code in owed, f"{form}, {what}: code {code}, {done.stdout[:120]!r}")
                verdict.must(done.returncode == 1, f"{form}, {what}: exit {done.returncode}")
                verdict.must("Traceback" not in done.stdout + done.stderr, f"{form}, {what}: trace")
            for version in VERSIONS:
                # libcni 1.1 leaves the list's cniVersions out; a runtime that does not is served.
                text = json.dumps({**conf, "cniVersion": version, "cniVersions": list(VERSIONS)})
                done = plugin.run_raw("slash32", {**common, **right}, text)
                tried += 1
                given = json.loads(done.stdout) if done.returncode == 0 else {}
                verdict.must(given.get("cniVersion") == version, f"{form}, {version}: {given}")
                plugin.run_raw("slash32", {**common, **right, "CNI_COMMAND": "DEL"}, text)
            verdict.must(not _is_held(world, sandbox), f"{form}: an address is held")
            verdict.must(plugin.versions("slash32")[-1] == VERSIONS[-1], "VERSION")
    verdict.note(
        f"{tried} calls of two forms: codes 1, 4, 6 or 7 as owed, one JSON object each; ADD in "
        f"{len(VERSIONS)} versions, 0 addresses held"
    )


def _code(stdout: str) -> int | None:
    with suppress(ValueError, KeyError, TypeError):
        return int(json.loads(stdout)["code"])
    return None


_ONE = Stage.ONE_TOR

ROWS = [
    Row("C1", "DEL with and without prevResult or namespace, namespace gone, three times, never "
        "added; by script and static launcher", "exit 0 each, nothing left", _ONE, every_delete,
        control="C0", is_quick=True),
    Row("C1b", "DEL while the API server is away, then the agent too",
        "exit 0 each; recorded DELs done when the agent is back, 0 left", Stage.KUBERNETES,
        delete_without_api, control="C0"),
    Row("C5b", f"the agent's socket takes connections and is silent for {SILENT_S:.0f} s; then no "
        "socket", f"ADD 11 at its own deadline ({OWN_DEADLINE_S:.0f} s), DEL recorded and exit 0; "
        "without a socket 11 within 1 s; nothing left", _ONE, silent_agent, control="C0"),
    Row("C6b", "CHECK after: route deleted, IP removed, veth down, IP reassigned",
        "each detected, in words of its own (control: well before)", _ONE, checked, is_quick=True),
    Row("C10b", "the executables: versions, 10 MB of stdin, no JSON, `../x`, 20 characters, empty "
        "ids", "codes 1, 4, 6, 7; no traceback; nothing held", _ONE, strange_input, control="C0",
        is_quick=True),
]  # fmt: skip
