"""The image: the Containerfile's steps in a minimal Debian root, and every part run from it.

By the very commands of the manifests, with the very capabilities: what a container would lack is
lacking here. What differs is said in ``_here``: the embedded store, for there is no API server.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.containerfile import Stage, built
from tests.fakes.netns import Namespace, fabric, in_netns, wait_until

ROOT = Path(__file__).parents[2]
DEADLINE_S = 90.0
pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Iterator[Stage]:
    """The last stage of manifests/Containerfile."""
    if os.geteuid() != 0:
        pytest.skip("making a Debian root needs root")
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed: no Debian root can be made")
    work = tmp_path_factory.mktemp("image")
    with built(ROOT / "manifests/Containerfile", ROOT, work) as stage:
        (stage.root / "host").mkdir()
        yield stage


@pytest.fixture
def node(image) -> Iterator[Namespace]:
    """A machine's network, with the address that the example network gives node-1."""
    del image
    with fabric() as made:
        machine = made.namespace("node")
        made.join((machine, "up0"), (made.namespace("router"), "down0"))
        machine.ip("addr add 192.0.2.11/24 dev up0")
        yield machine


def container(manifest: str, name: str) -> dict[str, Any]:
    """A container of a manifest."""
    (workload,) = yaml.safe_load_all((ROOT / "manifests" / manifest).read_text())
    spec = workload["spec"]["template"]["spec"]
    (one,) = [
        each for each in [*spec.get("initContainers", []), *spec["containers"]]
        if each["name"] == name
    ]  # fmt: skip
    return dict(one)


def _here(one: dict[str, Any]) -> list[str]:
    store = "/var/lib/slash32/store.db"
    command = [store if word == "kubernetes" else word for word in one["command"]]
    if one["securityContext"].get("privileged"):
        return command
    added = one["securityContext"]["capabilities"].get("add", [])
    bounds = ",".join(["-all", *(f"+{each.lower()}" for each in added)])
    return ["setpriv", f"--bounding-set={bounds}", "--inh-caps=-all", "--no-new-privs", *command]


def argv(stage: Stage, namespace: Namespace | None, command: list[str]) -> list[str]:
    """What runs a command in the root: of its own mounts, /proc and /sys among them."""
    enter = 'mount -t proc proc "$0/proc"; mount --rbind /sys "$0/sys"; exec chroot "$0" "$@"'
    env = ["env", "-i", *(f"{name}={value}" for name, value in stage.env.items())]
    shell = ["unshare", "--mount", "sh", "-c", enter, str(stage.root), *env, *command]
    return shell if namespace is None else ["ip", "netns", "exec", namespace.name, *shell]


def run(
    stage: Stage, namespace: Namespace | None, *command: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """A command in the root, to its end."""
    return subprocess.run(
        argv(stage, namespace, list(command)),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_the_compiler_stays_behind(image):
    """And the source: what runs in a cluster has no tools for others."""
    for program in ("gcc", "cc", "as"):
        assert run(image, None, "sh", "-c", f"command -v {program}").returncode != 0
    assert not (image.root / "src").exists()


def test_the_plugin_is_installed_and_removed_by_the_manifests_commands(image):
    """Without any capability; nothing of credentials is on the host afterwards."""
    done = run(image, None, *_here(container("agent.yaml", "install")))
    assert done.returncode == 0, done.stderr
    host = image.root / "host"
    files = sorted(str(each.relative_to(host)) for each in host.rglob("*") if each.is_file())
    assert files == [
        "etc/cni/net.d/10-slash32.conflist",
        "opt/cni/bin/loopback",
        "opt/cni/bin/slash32",
    ]
    plugin = host / "opt/cni/bin/slash32"
    # On the host itself, which has neither this Python nor this libc.
    answer = subprocess.run(
        [plugin], env={"CNI_COMMAND": "VERSION"}, input=b"{}", capture_output=True, check=True
    )
    assert "1.1.0" in json.loads(answer.stdout)["supportedVersions"]
    done = run(image, None, *_here(container("uninstall.yaml", "uninstall")))
    assert done.returncode == 0, done.stderr
    assert not [each for each in host.rglob("*") if each.is_file()]


def test_agent_and_speaker_run_from_it(image, node, tmp_path):
    """ExaBGP with two capabilities; probes answer; the launcher reaches the agent."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, command: list[str]) -> None:
        with open(tmp_path / f"{name}.log", "wb") as log:
            program = argv(image, node, command)
            started.append(subprocess.Popen(program, stdout=log, stderr=log))

    def page(path: str) -> tuple[int, str]:
        def ask() -> tuple[int, str]:
            request = urllib.request.Request(f"http://127.0.0.1:9178{path}")
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()
            except OSError:
                return 0, ""

        return in_netns(node, ask)

    def status() -> dict[str, Any]:
        done = run(image, node, "slash32", "status", "-o", "json")
        found = json.loads(done.stdout or "{}")
        return dict(found[0] if isinstance(found, list) else found)

    try:
        start("agent", [*_here(container("agent.yaml", "agent")), "--node", "node-1"])
        wait_until(lambda: page("/healthz")[0] == 200, deadline_s=DEADLINE_S)
        network = (ROOT / "manifests/network.yaml").read_text()
        done = run(image, node, "slash32", "apply", "-f", "-", stdin=network)
        assert done.returncode == 0, done.stderr
        start("speaker", _here(container("agent.yaml", "speaker")))
        wait_until(lambda: status().get("speaker_connected"), deadline_s=DEADLINE_S)
        # No router is there, so nobody could reach a pod: not ready, and alive all the same.
        code, text = page("/readyz")
        assert (code, "192.0.2.1" in text) == (503, True)
        assert page("/healthz")[0] == 200
        installing = ["slash32", "cni", "install", "--launcher", "/opt/slash32/launcher"]
        done = run(image, node, *installing)
        assert done.returncode == 0, done.stderr
        asked = {"cniVersion": "1.1.0", "name": "slash32", "type": "slash32",
                 "socket": "/run/slash32/cni.sock"}  # fmt: skip
        plugin = ["env", "CNI_COMMAND=STATUS", "/opt/cni/bin/slash32"]
        done = run(image, node, *plugin, stdin=json.dumps(asked))
        assert json.loads(done.stdout)["code"] == 51, done.stdout
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait(30)
