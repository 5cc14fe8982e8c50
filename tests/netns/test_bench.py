"""The benchmark itself, for a moment: it measures, writes its rows and leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.bench.stage import PEER_BIN
from lab.namespaces import NETNS_DIR

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making namespaces needs root"),
    pytest.mark.skipif(
        not (PEER_BIN / "ptp").exists(), reason="install containernetworking-plugins"
    ),
]
ROW = {"bench", "pods", "parallel", "ours", "peer", "unit", "ratio"}


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A short path, since a socket's may have 107 bytes only."""
    with tempfile.TemporaryDirectory(prefix="s32t-") as directory:
        yield Path(directory)


def test_a_short_run_measures_both_and_leaves_nothing(tmp_path: Path, scratch: Path) -> None:
    """Two pods there, two rounds, three at once: every figure positive, in the file's form."""
    out = tmp_path / "rows.jsonl"

    done = subprocess.run(
        [sys.executable, "-m", "lab.bench.cni", "--pods", "2", "--rounds", "2",
         "--parallel", "3", "--parallel-rounds", "1", "--endurance", "20", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(set(row) == ROW for row in rows)
    assert all(row["ours"] > 0 for row in rows)
    measured = {(row["bench"], row["parallel"]) for row in rows}
    assert {("add_wall_p50", 1), ("del_cpu_mean", 1), ("add_all_wall_p50", 3)} <= measured
    assert list(scratch.iterdir()) == []
    assert not list(NETNS_DIR.glob("s32bench-*"))
    assert str(scratch) not in Path("/proc/mounts").read_text()


def test_a_run_that_is_ended_leaves_nothing(tmp_path: Path, scratch: Path) -> None:
    """SIGTERM in the middle: everything inside goes with its process namespace."""
    with subprocess.Popen(
        [sys.executable, "-m", "lab.bench.cni", "--pods", "0", "--out", str(tmp_path / "rows")],
        env={**os.environ, "TMPDIR": str(scratch)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "agent started" in process.stderr.readline()
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM

    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "rows").exists()


def test_a_missing_plugin_is_one_sentence(tmp_path: Path) -> None:
    """And no file of figures that were not measured."""
    out = tmp_path / "rows.jsonl"
    script = f'mount -t tmpfs tmpfs {PEER_BIN} && exec "$@"'

    done = subprocess.run(
        ["unshare", "--mount", "/bin/sh", "-c", script, "sh",
         sys.executable, "-m", "lab.bench.cni", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.strip().endswith("apt-get install containernetworking-plugins")
    assert not out.exists()
