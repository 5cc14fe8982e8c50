"""cni.install: what a host has afterwards, also when something is in the way or breaks off."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cni.install import (
    DEFAULT_RUN_DIR,
    InstallError,
    Paths,
    install,
    installed_paths,
    render_conflist,
    render_plugin,
    uninstall,
)
from cni.launcher.build import build, compiler_for, host_architecture
from routing.cli.cni import cni

FOREIGN_CONFLIST = '{"name": "other", "plugins": [{"type": "bridge"}]}'


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """A plugin directory that does not exist yet."""
    return tmp_path / "cni" / "bin"


@pytest.fixture
def conf_dir(tmp_path: Path) -> Path:
    """A configuration directory that does not exist yet."""
    return tmp_path / "cni" / "net.d"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The agent's run directory; no agent is there."""
    return tmp_path / "run"


@pytest.fixture
def installed(bin_dir: Path, conf_dir: Path, run_dir: Path) -> Paths:
    """A host with the plugin."""
    return install(bin_dir=bin_dir, conf_dir=conf_dir, run_dir=run_dir)


def files(*directories: Path) -> list[str]:
    """Every file's name, hidden ones included."""
    return sorted(name for each in directories if each.exists() for name in os.listdir(each))


def test_both_files_are_roots_to_write_and_everybodys_to_read(installed: Paths) -> None:
    """0755 and 0644, no set-id bits, nothing temporary left."""
    assert stat.S_IMODE(installed.plugin.stat().st_mode) == 0o755
    assert stat.S_IMODE(installed.conflist.stat().st_mode) == 0o644
    assert files(installed.plugin.parent, installed.conflist.parent) == [
        "10-slash32.conflist",
        "slash32",
    ]


def test_the_installed_plugin_runs_by_itself(installed: Paths, tmp_path: Path) -> None:
    """From any directory, with an environment that would lead another Python astray."""
    trap = tmp_path / "json.py"
    trap.write_text("raise SystemExit('imported from the working directory')")
    done = subprocess.run(
        [installed.plugin],
        env={"CNI_COMMAND": "VERSION", "PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nonexistent"},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]
    assert installed.plugin.read_bytes().startswith(
        b"#!" + os.fsencode(os.path.realpath(sys.executable)) + b" -IS\n"
    )


def test_the_configuration_leads_to_the_agents_socket(installed: Paths, run_dir: Path) -> None:
    """Old runtimes read cniVersion, new ones choose from cniVersions."""
    assert json.loads(installed.conflist.read_text()) == {
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": "slash32",
        "plugins": [
            {
                "type": "slash32",
                "socket": f"{run_dir}/cni.sock",
                "capabilities": {"mac": True, "ips": True},
            }
        ],
    }


def test_installing_again_replaces_both(installed: Paths, tmp_path: Path) -> None:
    """An upgrade, or another run directory; an old temporary file does not matter."""
    installed.plugin.with_name(".slash32.new").write_text("left by an installer that ended" * 1000)
    old = installed.plugin.stat().st_ino

    install(
        bin_dir=installed.plugin.parent,
        conf_dir=installed.conflist.parent,
        run_dir=tmp_path / "elsewhere",
    )

    assert installed.plugin.stat().st_ino != old
    assert "elsewhere" in installed.conflist.read_text()
    assert "left by an installer" not in installed.plugin.read_text()
    assert len(files(installed.plugin.parent)) == 1


def test_the_configuration_is_written_after_the_plugin(
    bin_dir: Path, conf_dir: Path, run_dir: Path
) -> None:
    """When the plugin cannot be written, no runtime is told about it."""
    bin_dir.mkdir(parents=True)
    (bin_dir / ".slash32.new").mkdir()

    with pytest.raises(OSError):
        install(bin_dir=bin_dir, conf_dir=conf_dir, run_dir=run_dir)

    assert files(conf_dir) == []


def test_a_symbolic_link_in_the_way_is_not_followed(
    bin_dir: Path, conf_dir: Path, run_dir: Path, tmp_path: Path
) -> None:
    """The temporary name may be planted; its target stays as it is."""
    bin_dir.mkdir(parents=True)
    target = tmp_path / "target"
    target.write_text("precious")
    (bin_dir / ".slash32.new").symlink_to(target)

    with pytest.raises(OSError):
        install(bin_dir=bin_dir, conf_dir=conf_dir, run_dir=run_dir)

    assert target.read_text() == "precious"


@pytest.mark.parametrize("name", ["10-slash32.conflist", "slash32"])
def test_somebody_elses_file_is_neither_overwritten_nor_removed(
    bin_dir: Path, conf_dir: Path, run_dir: Path, name: str
) -> None:
    """Nothing at all is installed then."""
    for directory in (bin_dir, conf_dir):
        directory.mkdir(parents=True)
    foreign = (conf_dir if name.endswith("conflist") else bin_dir) / name
    foreign.write_text(FOREIGN_CONFLIST)

    with pytest.raises(InstallError, match=name):
        install(bin_dir=bin_dir, conf_dir=conf_dir, run_dir=run_dir)
    with pytest.raises(InstallError, match=name):
        uninstall(bin_dir=bin_dir, conf_dir=conf_dir)

    assert foreign.read_text() == FOREIGN_CONFLIST
    assert files(bin_dir, conf_dir) == [name]


@pytest.mark.parametrize("network", ["", "../x", "a/b", "a b", ".x", "a\n", "n" * 64, "ä"])
def test_a_network_name_that_is_no_file_name_is_refused(tmp_path: Path, network: str) -> None:
    """It becomes part of a path that root writes."""
    with pytest.raises(InstallError, match="network is "):
        installed_paths(bin_dir=tmp_path, conf_dir=tmp_path, network=network)


@pytest.mark.parametrize("plugin_type", ["", "../reboot", "a/b", "A", "a b", "a\n", "-x"])
def test_a_type_that_is_no_file_name_is_refused(tmp_path: Path, plugin_type: str) -> None:
    """Runtimes have executed ../../reboot for it."""
    with pytest.raises(InstallError, match="type is "):
        installed_paths(bin_dir=tmp_path, conf_dir=tmp_path, plugin_type=plugin_type)


@pytest.mark.parametrize("python", ["python3", "/a b/python", "/x\ny", "/" + "x" * 260])
def test_an_interpreter_a_first_line_cannot_name_is_refused(python: str) -> None:
    """The kernel splits the line at the first blank and reads 256 bytes of it."""
    with pytest.raises(InstallError, match="python is "):
        render_plugin(python)


@pytest.mark.parametrize("socket", ["run/cni.sock", "/" + "x" * 107])
def test_a_socket_path_the_plugin_would_refuse_is_not_installed(socket: str) -> None:
    """Better now than at the first pod."""
    with pytest.raises(InstallError, match="run_dir is "):
        render_conflist(network="a", plugin_type="b", socket_path=Path(socket))


def test_uninstalling_removes_what_was_installed_and_can_be_repeated(
    installed: Paths, bin_dir: Path, conf_dir: Path
) -> None:
    """The configuration goes first; other files stay."""
    (conf_dir / "20-other.conflist").write_text(FOREIGN_CONFLIST)
    (bin_dir / "loopback").write_text("x")

    assert uninstall(bin_dir=bin_dir, conf_dir=conf_dir) == (installed.conflist, installed.plugin)
    assert uninstall(bin_dir=bin_dir, conf_dir=conf_dir) == ()
    assert files(bin_dir, conf_dir) == ["20-other.conflist", "loopback"]


def test_the_plugin_stays_while_another_network_uses_it(
    installed: Paths, bin_dir: Path, conf_dir: Path, run_dir: Path
) -> None:
    """Its pods still need their DEL."""
    install(bin_dir=bin_dir, conf_dir=conf_dir, run_dir=run_dir, network="second")

    assert uninstall(bin_dir=bin_dir, conf_dir=conf_dir) == (installed.conflist,)
    assert installed.plugin.exists()
    assert installed.plugin in uninstall(bin_dir=bin_dir, conf_dir=conf_dir, network="second")


def test_a_missing_loopback_is_ours_to_supply(bin_dir: Path, conf_dir: Path) -> None:
    """Kubernetes' runtimes execute it for every sandbox; it goes with the plugin."""
    paths = install(bin_dir=bin_dir, conf_dir=conf_dir, run_dir=DEFAULT_RUN_DIR)
    again = install(bin_dir=bin_dir, conf_dir=conf_dir, run_dir=DEFAULT_RUN_DIR)

    assert again == paths
    assert paths.loopback.read_bytes() == paths.plugin.read_bytes()
    assert stat.S_IMODE(paths.loopback.stat().st_mode) == 0o755
    assert uninstall(bin_dir=bin_dir, conf_dir=conf_dir) == (
        paths.conflist,
        paths.plugin,
        paths.loopback,
    )
    assert files(bin_dir, conf_dir) == []


def test_somebody_elses_loopback_stays(bin_dir: Path, conf_dir: Path) -> None:
    """The host's own is as good, and not ours to replace or remove."""
    bin_dir.mkdir(parents=True)
    (bin_dir / "loopback").write_text("x")

    paths = install(bin_dir=bin_dir, conf_dir=conf_dir, run_dir=DEFAULT_RUN_DIR)

    assert paths.loopback.read_text() == "x"
    assert paths.loopback not in uninstall(bin_dir=bin_dir, conf_dir=conf_dir)


def test_a_loopback_that_would_not_find_the_agent_is_not_installed(
    bin_dir: Path, conf_dir: Path, run_dir: Path
) -> None:
    """The runtime's configuration of it names no socket; the command says what is missing."""
    arguments = ["--bin-dir", str(bin_dir), "--conf-dir", str(conf_dir), "--run-dir", str(run_dir)]

    done = CliRunner().invoke(cni, ["install", *arguments])

    assert f"{bin_dir / 'loopback'} is missing" in done.output
    assert files(bin_dir) == ["slash32"]


def test_the_command_installs_and_uninstalls(bin_dir: Path, conf_dir: Path, run_dir: Path) -> None:
    """And names each file."""
    directories = ["--bin-dir", str(bin_dir), "--conf-dir", str(conf_dir)]
    runner = CliRunner()

    done = runner.invoke(cni, ["install", *directories, "--run-dir", str(run_dir)])
    assert (done.exit_code, done.output.count("installed ")) == (0, 2)

    done = runner.invoke(cni, ["uninstall", *directories])
    assert (done.exit_code, done.output.count("removed ")) == (0, 2)

    done = runner.invoke(cni, ["uninstall", *directories])
    assert (done.exit_code, done.output) == (0, "nothing to remove\n")


def test_the_command_refuses_bad_names_with_exit_code_2(bin_dir: Path, conf_dir: Path) -> None:
    """One sentence, nothing installed."""
    done = CliRunner().invoke(
        cni,
        ["install", "--bin-dir", str(bin_dir), "--conf-dir", str(conf_dir), "--network", "../x"],
    )

    assert done.exit_code == 2
    assert 'network is "../x"' in done.output
    assert files(bin_dir, conf_dir) == []


def test_the_command_tells_what_the_system_refused(tmp_path: Path, conf_dir: Path) -> None:
    """Exit code 1 and the path, no traceback."""
    blocker = tmp_path / "file"
    blocker.write_text("")

    done = CliRunner().invoke(
        cni, ["install", "--bin-dir", str(blocker / "bin"), "--conf-dir", str(conf_dir)]
    )

    assert done.exit_code == 1
    assert str(blocker) in done.output


def test_a_static_launcher_is_installed_instead_when_asked_for(tmp_path: Path) -> None:
    """It answers VERSION by itself, and either form replaces the other."""
    arch = host_architecture()
    if compiler_for(arch) is None:
        pytest.skip(f"no C compiler for {arch}")
    launcher = tmp_path / "launcher"
    build(launcher, arch=arch)

    def install_as(chosen: Path | None) -> Paths:
        return install(
            bin_dir=tmp_path / "bin",
            conf_dir=tmp_path / "conf",
            run_dir=tmp_path,
            launcher=chosen,
        )

    for chosen in (None, launcher, None):
        install_as(chosen)
    paths = install_as(launcher)
    assert paths.plugin.read_bytes() == launcher.read_bytes()
    done = subprocess.run(
        [paths.plugin], env={"CNI_COMMAND": "VERSION"}, input=b"{}", capture_output=True, check=True
    )
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\nslash32-cni 1", b"\x7fELF" + b"\0" * 100])
def test_what_is_no_static_launcher_is_refused_and_changes_nothing(
    tmp_path: Path, content: bytes
) -> None:
    """One sentence with the file's name."""
    wrong = tmp_path / "wrong"
    wrong.write_bytes(content)
    with pytest.raises(InstallError, match=r"launcher is \".*ELF"):
        install(
            bin_dir=tmp_path / "bin", conf_dir=tmp_path / "conf", run_dir=tmp_path, launcher=wrong
        )
    assert not (tmp_path / "bin").exists()
