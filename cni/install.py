"""Puts the plugin and the network configuration on the host, atomically, and takes them away.

Invariants:
  * A runtime never sees half a file: each is written beside its place, synced, and renamed.
  * The configuration comes last and goes first: a runtime that sees it finds the plugin.
  * Nothing of somebody else's is overwritten or removed.
  * What is installed is root's to write and everybody's to read: 0755 and 0644, no set-id bits.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cni.errors import shown
from cni.launcher.build import BuildError, check_static, host_architecture
from cni.result import SUPPORTED_VERSIONS
from cni.spec import LOOPBACK_TYPE, NETWORK_NAME_MAX_BYTES, SOCKET_PATH_MAX_BYTES

PLUGIN_SOURCE = Path(__file__).with_name("plugin.py")
PLUGIN_TYPE = "slash32"
DEFAULT_NETWORK = "slash32"
SOCKET_NAME = "cni.sock"
DEFAULT_RUN_DIR = Path("/run/slash32")
"""Where the plugin looks for the socket when its configuration names none."""
CONFLIST_PRIORITY = "10"
"""Runtimes take the first file in name order."""

CNI_VERSION_OF_OLD_RUNTIMES = "1.0.0"
"""``cniVersion``: what a runtime takes that does not know the list ``cniVersions``."""

SHEBANG_MAX_BYTES = 254
"""The kernel reads 256 bytes of a script (BINPRM_BUF_SIZE), '#!' and the newline included."""

LAUNCHER_MARK = b"slash32-cni 1"
"""Begins every request; the plugin in either form holds it."""

_NETWORK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*", re.ASCII)
_TYPE = re.compile(r"[a-z0-9][a-z0-9.\-]*", re.ASCII)


class InstallError(Exception):
    """Nothing was installed or removed beyond what the sentence says; it names field and value."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the files are. ``loopback`` may be somebody else's, or missing."""

    plugin: Path
    conflist: Path
    loopback: Path


def installed_paths(
    *, bin_dir: Path, conf_dir: Path, network: str = DEFAULT_NETWORK, plugin_type: str = PLUGIN_TYPE
) -> Paths:
    """The places for ``network``, after checking the two names that become file names.

    Raises:
        InstallError: a name with other characters than letters, digits, '_', '.', '-'.
    """
    if not _TYPE.fullmatch(plugin_type):
        raise InstallError(
            f"type is {shown(plugin_type)}; it must be lower-case letters, digits, '.' and '-', "
            "beginning with a letter or digit"
        )
    if not _NETWORK.fullmatch(network) or len(network) > NETWORK_NAME_MAX_BYTES:
        raise InstallError(
            f"network is {shown(network)}; it must be letters, digits, '_', '.' and '-', "
            f"beginning with a letter or digit, at most {NETWORK_NAME_MAX_BYTES}"
        )
    return Paths(
        plugin=bin_dir / plugin_type,
        conflist=conf_dir / f"{CONFLIST_PRIORITY}-{network}.conflist",
        loopback=bin_dir / LOOPBACK_TYPE,
    )


def install(
    *,
    bin_dir: Path,
    conf_dir: Path,
    run_dir: Path,
    network: str = DEFAULT_NETWORK,
    plugin_type: str = PLUGIN_TYPE,
    python: str | None = None,
    launcher: Path | None = None,
) -> Paths:
    """Installs plugin and configuration; installing again replaces both.

    Args:
        bin_dir: the runtime's plugin directory, usually /opt/cni/bin.
        conf_dir: the runtime's configuration directory, usually /etc/cni/net.d.
        run_dir: the agent's run directory; its socket is there.
        network: name of the network.
        plugin_type: the plugin's file name.
        python: interpreter for the first line; by default the one that runs this, resolved.
        launcher: a static launcher (``python -m cni.launcher.build``) to install instead of the
            Python plugin, for hosts without Python and for speed.

    Raises:
        InstallError: a name or path we refuse, or a file in the way that is not ours.
        OSError: the directory cannot be written.

    A host without the plugin ``loopback`` gets ours under that name (cni/loopback.py).
    """
    paths = installed_paths(
        bin_dir=bin_dir, conf_dir=conf_dir, network=network, plugin_type=plugin_type
    )
    if launcher is not None:
        program = read_launcher(launcher)
    else:
        program = render_plugin(python or os.path.realpath(sys.executable))
    conflist = render_conflist(
        network=network, plugin_type=plugin_type, socket_path=run_dir / SOCKET_NAME
    )
    _refuse_foreign(paths, plugin_type)
    for directory in (bin_dir, conf_dir):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with _locked(bin_dir):
        if _wants_loopback(paths.loopback, run_dir):
            _write(paths.loopback, program, mode=0o755)
        _write(paths.plugin, program, mode=0o755)
        _write(paths.conflist, conflist, mode=0o644)
    return paths


def uninstall(
    *,
    bin_dir: Path,
    conf_dir: Path,
    network: str = DEFAULT_NETWORK,
    plugin_type: str = PLUGIN_TYPE,
) -> tuple[Path, ...]:
    """Removes what ``install`` put there; what it removed, () when there was nothing.

    The plugin stays while another network's configuration still names it.

    Raises:
        InstallError: a file in the place of ours that is not ours; it stays.
        OSError: a file cannot be removed.
    """
    paths = installed_paths(
        bin_dir=bin_dir, conf_dir=conf_dir, network=network, plugin_type=plugin_type
    )
    _refuse_foreign(paths, plugin_type)
    removed = []
    if _remove(paths.conflist):
        removed.append(paths.conflist)
    still_named = any(_is_conflist_of(path, plugin_type) for path in _files_in(conf_dir))
    if not still_named and _remove(paths.plugin):
        removed.append(paths.plugin)
    if not still_named and is_our_plugin(paths.loopback) and _remove(paths.loopback):
        removed.append(paths.loopback)
    return tuple(removed)


def render_plugin(python: str) -> bytes:
    """The plugin with its interpreter in the first line.

    ``-I`` keeps the runtime's environment and directory out, ``-S`` saves importing site.

    Raises:
        InstallError: an interpreter a first line cannot name.
    """
    shebang = f"#!{python} -IS"
    if not python.startswith("/") or any(each.isspace() for each in python):
        raise InstallError(f"python is {shown(python)}; it must be an absolute path without blanks")
    if len(shebang.encode("utf-8", "surrogateescape")) > SHEBANG_MAX_BYTES:
        raise InstallError(f"python is {shown(python)}, too long for the first line of a script")
    _, _, body = PLUGIN_SOURCE.read_bytes().partition(b"\n")
    return shebang.encode("utf-8", "surrogateescape") + b"\n" + body


def read_launcher(path: Path) -> bytes:
    """A static launcher for this machine.

    Raises:
        InstallError: it cannot be read, is not one, needs a library, or is for another machine.
    """
    try:
        check_static(path, arch=host_architecture())
        program = path.read_bytes()
    except (BuildError, OSError) as error:
        raise InstallError(f"launcher is {shown(str(path))}: {error}") from None
    if LAUNCHER_MARK not in program:
        raise InstallError(f"launcher is {shown(str(path))}; it is no launcher of slash32")
    return program


def render_conflist(*, network: str, plugin_type: str, socket_path: Path) -> bytes:
    """The network configuration list (specification 1.1, section 1).

    ``cniVersions`` lets a new runtime choose 1.1.0, with STATUS and GC; an old one, which knows
    ``cniVersion`` alone, is not handed a version it would refuse.

    Raises:
        InstallError: a socket path the plugin would refuse.
    """
    if not socket_path.is_absolute() or len(os.fsencode(socket_path)) > SOCKET_PATH_MAX_BYTES:
        raise InstallError(
            f"run_dir is {shown(str(socket_path.parent))}; its socket needs an absolute path of "
            f"at most {SOCKET_PATH_MAX_BYTES} bytes"
        )
    conflist = {
        "cniVersion": CNI_VERSION_OF_OLD_RUNTIMES,
        "cniVersions": list(SUPPORTED_VERSIONS),
        "name": network,
        "plugins": [
            {
                "type": plugin_type,
                "socket": str(socket_path),
                # Without these a runtime keeps its user's wish to itself (cni/requested.py).
                "capabilities": {"mac": True, "ips": True},
            }
        ],
    }
    return json.dumps(conflist, indent=2).encode("ascii") + b"\n"


def _wants_loopback(path: Path, run_dir: Path) -> bool:
    """Whether the runtime's ``loopback`` is ours to supply: nobody has, and we can.

    Its configuration is the runtime's own and names no socket, so it only works with the default.
    """
    if os.path.lexists(path):
        return is_our_plugin(path)
    return run_dir == DEFAULT_RUN_DIR


# -- files -------------------------------------------------------------------------------------


def _refuse_foreign(paths: Paths, plugin_type: str) -> None:
    if os.path.lexists(paths.conflist) and not _is_conflist_of(paths.conflist, plugin_type):
        raise InstallError(f"{paths.conflist} exists and is not a configuration of {plugin_type}")
    if os.path.lexists(paths.plugin) and not is_our_plugin(paths.plugin):
        raise InstallError(f"{paths.plugin} exists and is not the slash32 plugin")


def is_our_plugin(path: Path) -> bool:
    """Whether ``path`` speaks our launcher protocol; any version of it is ours to replace."""
    if path.is_dir():
        return False
    try:
        return LAUNCHER_MARK in path.read_bytes()
    except FileNotFoundError:
        return False


def _is_conflist_of(path: Path, plugin_type: str) -> bool:
    try:
        conflist = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    plugins = conflist.get("plugins") if isinstance(conflist, dict) else None
    return isinstance(plugins, list) and any(
        isinstance(each, dict) and each.get("type") == plugin_type for each in plugins
    )


def _files_in(directory: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        yield from sorted(directory.glob("*.conf*"))


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    _sync_directory(path.parent)
    return True


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One installer at a time: they share the names of their temporary files."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, content: bytes, *, mode: int) -> None:
    """Replaces ``path``, whole or not at all.

    The temporary name is fixed, so that what a killed installer left is overwritten by the next;
    it has no suffix a runtime would read.
    """
    temporary = path.with_name(f".{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
