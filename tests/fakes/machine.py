"""A node for real slash32 commands and daemons, in a network namespace that is there already."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Machine:
    """A node: its namespace, its directories, its processes.

    Args:
        netns: the namespace's name.
        root: an empty directory; run, state, bin and net.d are in it.
        environment: what its commands get besides (SLASH32_STORE and the like).
    """

    def __init__(self, netns: str, root: Path, environment: dict[str, str] | None = None) -> None:
        self.netns = netns
        self.root = root
        self._more = environment or {}
        for name in ("bin", "net.d"):
            (root / name).mkdir()
        self.daemons: list[subprocess.Popen[bytes]] = []

    def run(self, *words: str) -> str:
        """What any program prints there."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.netns, *words],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        return done.stdout

    @property
    def _environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SLASH32_")}
        return clean | {
            "SLASH32_RUN_DIR": str(self.root / "run"),
            "SLASH32_STATE_DIR": str(self.root / "state"),
            "SLASH32_STORE": str(self.root / "state" / "store.db"),
            **self._more,
        }

    def _command(self, *arguments: str) -> list[str]:
        program = [sys.executable, "-m", "routing.cli.main"]
        return ["ip", "netns", "exec", self.netns, *program, *arguments]

    def slash32(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """One command, whatever its exit code."""
        return subprocess.run(
            self._command(*arguments), cwd=ROOT, env=self._environment, input=stdin,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A daemon; ``stop`` ends it."""
        with (self.root.parent / f"{arguments[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                self._command(*arguments), cwd=ROOT, env=self._environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.daemons.append(process)
        return process

    def stop(self) -> None:
        """Every daemon, by SIGTERM."""
        while self.daemons:
            process = self.daemons.pop()
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
