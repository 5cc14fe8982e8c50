"""A container runtime's side of CNI: executes the installed plugins as libcni does.

Followed here: the plugin's object from the network list goes to stdin with ``name`` and
``cniVersion`` of the list put in and, where it is due, ``prevResult``; the CNI_* variables say the
rest. ADD chains results forward, DEL goes backwards, a result is kept on disk between the two. A
plugin is given an environment of its own and nothing of ours, as under containerd.

Raised on any refusal: ``PluginFailed``, which carries the plugin's error code.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import namespaces
from lab.plan import LabFailure, Pod

PLUGIN_DEADLINE_S = 60.0
"""What kubelet's patience with a sandbox leaves to one plugin call, roughly."""
IFNAME = "eth0"
NEWEST_VERSION = (1, 1, 0)
"""The newest specification this runtime speaks, as libcni 1.3."""
HOST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

JsonObject = dict[str, Any]


class PluginFailed(LabFailure):
    """A plugin ended with a failure. ``code`` is its CNI error code, None when it gave none."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class NetworkList:
    """A network configuration list (CNI specification 1.1, section 1).

    ``disable_check`` and ``disable_gc`` are the runtime's own business: it asks no plugin then.
    """

    name: str
    cni_version: str
    plugins: tuple[JsonObject, ...]
    disable_check: bool = False
    disable_gc: bool = False


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What a runtime knows of a container when it calls CNI.

    ``capability_args`` maps a capability to what its user asked for (``mac``, ``ips``, ...). A
    plugin is told of those it declares.
    """

    container_id: str
    netns: str
    ifname: str = IFNAME
    arguments: tuple[tuple[str, str], ...] = ()
    capability_args: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def cni_args(self) -> str:
        return ";".join(f"{key}={value}" for key, value in self.arguments)


def sandbox_of(pod: Pod) -> Sandbox:
    """A pod's sandbox as containerd describes it, CNI_ARGS in containerd's order."""
    return Sandbox(
        container_id=pod.container_id,
        netns=str(namespaces.NETNS_DIR / pod.namespace),
        arguments=(
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", "lab"),
            ("K8S_POD_NAME", pod.name),
            ("K8S_POD_INFRA_CONTAINER_ID", pod.container_id),
            ("K8S_POD_UID", pod.uid),
        ),
    )


def load_network(conf_dir: Path) -> NetworkList:
    """The first configuration in name order, as containerd picks it.

    Raises:
        LabFailure: there is none, or it is not a network list.
    """
    candidates = sorted(p for p in conf_dir.glob("*") if p.suffix in {".conflist", ".conf"})
    if not candidates:
        raise LabFailure(f"no CNI configuration in {conf_dir}")
    path = candidates[0]
    try:
        document = json.loads(path.read_text())
        if path.suffix == ".conf":
            document = {**document, "plugins": [document]}
        return NetworkList(
            name=document["name"],
            cni_version=_choose_version(document),
            plugins=tuple(dict(plugin) for plugin in document["plugins"]),
            disable_check=bool(document.get("disableCheck", False)),
            disable_gc=bool(document.get("disableGC", False)),
        )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise LabFailure(f"{path}: not a CNI network configuration: {error}") from None


def _choose_version(document: JsonObject) -> str:
    """The newest of ``cniVersions`` that we speak; older runtimes know only ``cniVersion``."""
    offered = [*document.get("cniVersions", []), document.get("cniVersion", "0.1.0")]
    spoken = [text for text in offered if version_tuple(text) <= NEWEST_VERSION]
    return str(max(spoken, key=version_tuple))


def plugin_config(
    network: NetworkList,
    plugin: JsonObject,
    extra: Mapping[str, Any],
    capability_args: Mapping[str, Any] | None = None,
) -> JsonObject:
    """What one plugin of the list reads on stdin (specification, section 3, "Deriving...").

    ``extra`` holds prevResult, or the list of valid attachments. ``capabilities`` is left out;
    what was asked for by those that are true comes as ``runtimeConfig``.
    """
    config = {k: v for k, v in plugin.items() if k != "capabilities"}
    declared = plugin.get("capabilities", {})
    told = {k: v for k, v in (capability_args or {}).items() if declared.get(k) is True}
    if told:
        config["runtimeConfig"] = told
    return {**config, "name": network.name, "cniVersion": network.cni_version, **extra}


def version_tuple(text: str) -> tuple[int, ...]:
    """``1.0.0`` -> (1, 0, 0), for comparing."""
    return tuple(int(part) for part in text.split("."))


class Runtime:
    """Runs one node's plugins over one network list."""

    def __init__(
        self,
        network: NetworkList,
        *,
        bin_dirs: Sequence[Path],
        results_dir: Path,
        namespace: str | None = None,
        deadline_s: float = PLUGIN_DEADLINE_S,
    ) -> None:
        """``namespace`` is the node's, where its runtime lives; None for the current one."""
        self._network = network
        self._bin_dirs = tuple(bin_dirs)
        self._results_dir = results_dir
        self._namespace = namespace
        self._deadline_s = deadline_s

    def add(self, sandbox: Sandbox) -> JsonObject:
        """ADD through the list; the last plugin's result, which is also kept for later.

        Raises:
            PluginFailed: a plugin refused; as with libcni, undoing is the caller's DEL.
        """
        result: JsonObject | None = None
        for plugin in self._network.plugins:
            extra = {} if result is None else {"prevResult": result}
            result = self._result(self._execute("ADD", plugin, sandbox, extra), plugin)
        if result is None:
            raise PluginFailed(f"network {self._network.name!r} has no plugins")
        self._results_dir.mkdir(parents=True, exist_ok=True)
        self._result_file(sandbox).write_text(json.dumps(result))
        return result

    def check(self, sandbox: Sandbox) -> None:
        """CHECK through the list with the kept result.

        Raises:
            PluginFailed: something differs, nothing was added, or the version has no CHECK.
        """
        if version_tuple(self._network.cni_version) < (0, 4, 0):
            raise PluginFailed(f"cniVersion {self._network.cni_version} has no CHECK")
        if self._network.disable_check:
            return
        result = self.kept_result(sandbox)
        if result is None:
            raise PluginFailed(f"nothing was added for container {sandbox.container_id[:12]}")
        for plugin in self._network.plugins:
            self._execute("CHECK", plugin, sandbox, {"prevResult": result})

    def delete(self, sandbox: Sandbox, *, netns_is_gone: bool = False) -> None:
        """DEL backwards through the list; forgets the kept result once all have agreed."""
        result = self.kept_result(sandbox)
        with_result = result is not None and version_tuple(self._network.cni_version) >= (0, 4, 0)
        extra = {"prevResult": result} if with_result else {}
        for plugin in reversed(self._network.plugins):
            self._execute("DEL", plugin, sandbox, extra, netns="" if netns_is_gone else None)
        self._result_file(sandbox).unlink(missing_ok=True)

    def status(self) -> None:
        """STATUS of every plugin; raises PluginFailed with code 50 or 51 when one is not ready."""
        for plugin in self._network.plugins:
            self._execute("STATUS", plugin, None, {})

    def collect_garbage(self, valid: Sequence[Sandbox]) -> None:
        """GC: the plugins may free everything that is not an attachment in ``valid``.

        A plugin that fails stops no other, as the specification wants it of runtimes too.

        Raises:
            PluginFailed: the first failure, once every plugin was asked.
        """
        if self._network.disable_gc:
            return
        attachments = [{"containerID": s.container_id, "ifname": s.ifname} for s in valid]
        extra = {
            "cni.dev/valid-attachments": attachments,
            # libcni sends the name the option had before 1.1 was final as well.
            "cni.dev/attachments": attachments,
        }
        failures: list[PluginFailed] = []
        for plugin in self._network.plugins:
            try:
                self._execute("GC", plugin, None, extra)
            except PluginFailed as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def versions(self, plugin_type: str) -> list[str]:
        """The specification versions a plugin says it supports."""
        out = self._run(
            plugin_type,
            {"CNI_COMMAND": "VERSION", "CNI_IFNAME": "dummy", "CNI_NETNS": "dummy"},
            {"cniVersion": self._network.cni_version},
        )
        answer = self._result(out, {"type": plugin_type})
        return [str(version) for version in answer.get("supportedVersions", [])]

    def kept_result(self, sandbox: Sandbox) -> JsonObject | None:
        """What ADD answered for a sandbox that has not been deleted since."""
        try:
            return dict(json.loads(self._result_file(sandbox).read_text()))
        except FileNotFoundError:
            return None

    def forget(self, sandbox: Sandbox) -> None:
        """The kept result is lost: the next DEL comes without prevResult."""
        self._result_file(sandbox).unlink(missing_ok=True)

    def _result_file(self, sandbox: Sandbox) -> Path:
        name = f"{self._network.name}-{sandbox.container_id}-{sandbox.ifname}"
        return self._results_dir / name

    def _execute(
        self,
        command: str,
        plugin: JsonObject,
        sandbox: Sandbox | None,
        extra: Mapping[str, Any],
        *,
        netns: str | None = None,
    ) -> str:
        variables = {"CNI_COMMAND": command}
        if sandbox is not None:
            variables |= {
                "CNI_CONTAINERID": sandbox.container_id,
                "CNI_NETNS": sandbox.netns if netns is None else netns,
                "CNI_IFNAME": sandbox.ifname,
                "CNI_ARGS": sandbox.cni_args,
            }
        asked = sandbox.capability_args if sandbox is not None else {}
        config = plugin_config(self._network, plugin, extra, asked)
        return self._run(str(plugin["type"]), variables, config)

    def _run(self, plugin_type: str, variables: Mapping[str, str], config: JsonObject) -> str:
        what = f"{plugin_type} {variables['CNI_COMMAND']}"
        done = self.run_raw(plugin_type, variables, json.dumps(config))
        if done.returncode != 0:
            raise _failure(what, done)
        return done.stdout

    def run_raw(
        self, plugin_type: str, variables: Mapping[str, str], stdin: str
    ) -> subprocess.CompletedProcess[str]:
        """Executes a plugin with whatever text on stdin, and returns what came of it.

        Raises:
            PluginFailed: it could not be executed, or did not end within the deadline.
        """
        program = self._find(plugin_type)
        bin_path = ":".join(str(directory) for directory in self._bin_dirs)
        environment = {"PATH": HOST_PATH, **variables, "CNI_PATH": bin_path}
        argv = [str(program)]
        what = f"{plugin_type} {variables['CNI_COMMAND']}"
        try:
            return subprocess.run(
                namespaces.enter(self._namespace, argv) if self._namespace else argv,
                input=stdin,
                env=environment,
                cwd="/",
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self._deadline_s,
                start_new_session=True,
                check=False,
            )
        except OSError as error:
            raise PluginFailed(f"{what}: cannot execute {program}: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise PluginFailed(f"{what}: no answer within {self._deadline_s:g} s") from None

    def _find(self, plugin_type: str) -> Path:
        for directory in self._bin_dirs:
            program = directory / plugin_type
            if program.is_file() and os.access(program, os.X_OK):
                return program
        places = ", ".join(str(directory) for directory in self._bin_dirs)
        raise PluginFailed(f"failed to find plugin {plugin_type!r} in path [{places}]")

    def _result(self, text: str, plugin: JsonObject) -> JsonObject:
        try:
            result = json.loads(text)
        except ValueError:
            result = None
        if not isinstance(result, dict):
            raise PluginFailed(f"{plugin['type']}: not a JSON object on stdout: {text[:200]!r}")
        # libcni fills the version in when a plugin leaves it out.
        result.setdefault("cniVersion", self._network.cni_version)
        return result


def _failure(what: str, done: subprocess.CompletedProcess[str]) -> PluginFailed:
    """The specification wants the error on stdout; libcni falls back to stderr's text."""
    try:
        error = json.loads(done.stdout)
        details = f" ({error['details']})" if error.get("details") else ""
        return PluginFailed(f"{what}: code {error['code']}: {error['msg']}{details}", error["code"])
    except (ValueError, KeyError, TypeError, AttributeError):
        words = done.stderr.strip() or done.stdout.strip() or "no message"
        return PluginFailed(f"{what}: exit status {done.returncode}: {words[-400:]}")


def addresses_in(result: JsonObject) -> list[str]:
    """The pod's addresses in an ADD result, without prefix lengths, in the plugin's order."""
    return [str(entry["address"]).partition("/")[0] for entry in result.get("ips", [])]
