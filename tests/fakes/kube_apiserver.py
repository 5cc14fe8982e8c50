"""A real kube-apiserver with its etcd, from the directory that KUBEBUILDER_ASSETS names.

The ecosystem's own convention (controller-runtime's envtest). Both listen on loopback alone, keep
their state in a temporary directory, and end with the test session.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

CRDS = Path(__file__).parents[2] / "manifests" / "crds"
NAMESPACE = "slash32-system"
TOKEN = "contract"
START_TIMEOUT_S = 90.0
SKIPPED = (
    "KUBEBUILDER_ASSETS is not set: no real kube-apiserver and etcd to hold the contract against"
)


def assets() -> Path | None:
    """The directory with ``kube-apiserver`` and ``etcd``, or None."""
    given = os.environ.get("KUBEBUILDER_ASSETS")
    if not given:
        return None
    directory = Path(given)
    for program in ("kube-apiserver", "etcd"):
        if not os.access(directory / program, os.X_OK):
            raise RuntimeError(f"KUBEBUILDER_ASSETS={given}: has no executable {program}")
    return directory


class KubeApiServer:
    """One that runs. ``kubeconfig`` leads to it with every right."""

    def __init__(self, url: str, kubeconfig: Path) -> None:
        self.url = url
        self.kubeconfig = kubeconfig

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str = TOKEN,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Any:
        """One request, past the client that is under test. Raises urllib.error.HTTPError."""
        request = urllib.request.Request(  # noqa: S310
            f"{self.url}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {token}",
                "Content-Type": content_type,
                "Accept": accept,
            },
        )
        context = ssl._create_unverified_context()  # noqa: S323 - a certificate of its own making
        with urllib.request.urlopen(request, context=context, timeout=30) as answer:  # noqa: S310
            return json.load(answer)

    def install(self, directory: Path = CRDS) -> list[str]:
        """Our CustomResourceDefinitions; returns once they are served. The collections' paths."""
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        paths = []
        for file in sorted(directory.glob("*.yaml")):
            for document in yaml.safe_load_all(file.read_text()):
                if document and document["kind"] == "CustomResourceDefinition":
                    self.request("POST", path, document)
                    names, spec = document["spec"]["names"], document["spec"]
                    version = spec["versions"][0]["name"]
                    paths.append(f"/apis/{spec['group']}/{version}/{names['plural']}")
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        self.request("POST", "/api/v1/namespaces", namespace)
        for each in paths:
            _until(lambda each=each: self.request("GET", each) is not None)
        return paths

    def wipe(self, paths: list[str]) -> None:
        """Deletes every object of these collections, Nodes and our Secrets."""
        secrets = f"/api/v1/namespaces/{NAMESPACE}/secrets"
        for path in (*paths, "/api/v1/nodes", secrets):
            self.request("DELETE", path)
        for path in (*paths, "/api/v1/nodes", secrets):
            _until(lambda path=path: not self.request("GET", path)["items"])


@contextmanager
def running(directory: Path, work: Path) -> Iterator[KubeApiServer]:
    """etcd and kube-apiserver, until the block ends."""
    etcd_port, peer_port, api_port = _free_ports(3)
    key = work / "service-account.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    tokens = work / "tokens.csv"
    tokens.write_text(f"{TOKEN},admin,admin,system:masters\n")
    etcd_url = f"http://127.0.0.1:{etcd_port}"
    peer_url = f"http://127.0.0.1:{peer_port}"
    commands = {
        "etcd": [
            f"--data-dir={work / 'etcd'}",
            f"--listen-client-urls={etcd_url}",
            f"--advertise-client-urls={etcd_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--unsafe-no-fsync",
        ],
        "kube-apiserver": [
            f"--etcd-servers={etcd_url}",
            f"--cert-dir={work / 'certificates'}",
            f"--secure-port={api_port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--disable-admission-plugins=ServiceAccount",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",  # as on every cluster with a network of pods
            f"--token-auth-file={tokens}",
        ],
    }
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for program, arguments in commands.items():
            with open(work / f"{program}.log", "wb") as log:
                processes.append(
                    subprocess.Popen(
                        [str(directory / program), *arguments], stdout=log, stderr=log, cwd=work
                    )
                )
        url = f"https://127.0.0.1:{api_port}"
        server = KubeApiServer(url, _write_kubeconfig(work / "kubeconfig", url))
        _until(lambda: server.request("GET", "/api/v1/namespaces/default") is not None)
        yield server
    finally:
        # Not asked: an API server says a long goodbye to who watches, and nothing is to be kept.
        for process in reversed(processes):
            process.kill()
        for process in processes:
            process.wait(30)


def _write_kubeconfig(path: Path, url: str) -> Path:
    cluster = {"server": url, "insecure-skip-tls-verify": True}
    context = {"cluster": "real", "user": "admin"}
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "real",
                "clusters": [{"name": "real", "cluster": cluster}],
                "users": [{"name": "admin", "user": {"token": TOKEN}}],
                "contexts": [{"name": "real", "context": context}],
            }
        )
    )
    return path


def _until(ask: Any) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if ask():
                return
        except (urllib.error.URLError, OSError):
            pass
        if time.monotonic() >= deadline_s:
            raise TimeoutError(f"kube-apiserver: not so after {START_TIMEOUT_S:g} s")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
