"""One frozen Settings for the agent; leaves get plain parameters from it, never this object."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

KUBERNETES = "kubernetes"
"""What ``--store`` says for the Kubernetes API."""
NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
SOCKET_PATH_MAX_BYTES = 107
"""sun_path is 108 bytes with the terminating NUL (unix(7))."""

MTU_RANGE_BYTES = (1280, 65535)
"""IPv6 needs 1280 (RFC 8200 section 5)."""


class InvalidSettings(ValueError):
    """A setting breaks a rule; the sentence names the setting, the value and the rule."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What one agent runs with.

    Attributes:
        node: this node's name, as the Node resource has it.
        run_dir: sockets and exabgp.conf; on a tmpfs, gone with a reboot like the pods themselves.
        state_dir: what may outlive a reboot.
        store: path of the embedded store; None for the Kubernetes API.
        kubeconfig: how to reach it; None for the service account of the pod we run in.
        mtu_bytes: MTU of pod links, or None for that of the uplink.
        cooldown_s: how long a released address rests before it is given out again.
        resync_s: how often everything is read back and compared although nothing was announced.
        collect_grace_s: how long an address must have been without a link to be given back.
        http_port: where metrics, probes and the live page are on loopback; None for nowhere.
        metrics_address: an address of this node where the metrics alone are served besides.
        proc_sys_net: where sysctls are written; elsewhere in a container without privileges, where
            /proc/sys is read-only.
    """

    node: str
    run_dir: Path
    state_dir: Path
    store: Path | None
    mtu_bytes: int | None = None
    cooldown_s: float = 30.0
    resync_s: float = 30.0
    collect_grace_s: float = 60.0
    http_port: int | None = None
    metrics_address: IPv4Address | IPv6Address | None = None
    kubeconfig: Path | None = None
    proc_sys_net: Path = Path("/proc/sys/net")

    def __post_init__(self) -> None:
        if not NODE_NAME.fullmatch(self.node):
            raise InvalidSettings(f"node = {self.node!r}: must be a DNS-1123 subdomain")
        for name in ("run_dir", "state_dir", "store", "kubeconfig", "proc_sys_net"):
            path: Path | None = getattr(self, name)
            if path is not None and not path.is_absolute():
                raise InvalidSettings(f"{name} = {str(path)!r}: must be an absolute path")
        longest = max(len(bytes(p)) for p in (self.cni_socket, self.bgp_socket, self.agent_socket))
        if longest > SOCKET_PATH_MAX_BYTES:
            raise InvalidSettings(
                f"run_dir = {str(self.run_dir)!r}: too long for a Unix socket "
                f"({SOCKET_PATH_MAX_BYTES} bytes with the socket's name)"
            )
        low, high = MTU_RANGE_BYTES
        if self.mtu_bytes is not None and not low <= self.mtu_bytes <= high:
            raise InvalidSettings(f"mtu = {self.mtu_bytes}: must be from {low} to {high} bytes")
        if self.http_port is not None and not 0 < self.http_port < 65536:
            raise InvalidSettings(f"http_port = {self.http_port}: must be from 1 to 65535")
        if self.metrics_address is not None and self.http_port is None:
            raise InvalidSettings(
                f"metrics_address = {self.metrics_address}: needs http_port, which is off"
            )
        if self.metrics_address is not None and self.metrics_address.is_loopback:
            raise InvalidSettings(
                f"metrics_address = {self.metrics_address}: loopback is served already; "
                "must be an address that a scraper reaches"
            )

    @property
    def cni_socket(self) -> Path:
        return self.run_dir / "cni.sock"

    @property
    def bgp_socket(self) -> Path:
        return self.run_dir / "bgp.sock"

    @property
    def agent_socket(self) -> Path:
        return self.run_dir / "agent.sock"

    @property
    def exabgp_conf(self) -> Path:
        return self.run_dir / "exabgp.conf"

    @property
    def store_name(self) -> str:
        """As people call it: the path, or ``kubernetes``."""
        return KUBERNETES if self.store is None else str(self.store)

    @property
    def snapshot_cache(self) -> Path:
        """Beside what outlives a reboot."""
        return self.state_dir / "snapshot"

    @property
    def password_cache(self) -> Path:
        """Never on a disk."""
        return self.run_dir / "passwords"

    @property
    def cooldown_file(self) -> Path:
        return self.state_dir / "cooldown"

    @property
    def journal_file(self) -> Path:
        return self.state_dir / "journal"


HTTP_PORT = 9178
"""Where the agent's HTTP server is unless told otherwise; manifests/agent.yaml probes it."""


def default_node_name() -> str:
    """The host's name in lower case, as kubelet takes it."""
    return socket.gethostname().lower()
