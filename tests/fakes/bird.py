"""A real BIRD 2 in a namespace: configuration text in, birdc answers out, ended by its pid."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

BIRD = "/usr/sbin/bird"
BIRDC = "/usr/sbin/birdc"
DEADLINE_S = 15.0
POLL_S = 0.02


def wait_until(
    condition: Callable[[], object], *, what: str, deadline_s: float = DEADLINE_S
) -> None:
    """Returns when ``condition`` is true; fails with ``what`` at the deadline. Blocks."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(POLL_S)


class Bird:
    """One BIRD process. Files live in ``directory``; the process belongs to whoever made it."""

    def __init__(self, *, netns: str, directory: Path, config: str) -> None:
        self._netns = netns
        self._config = directory / "bird.conf"
        self._control = directory / "bird.ctl"
        self._log = directory / "bird.log"
        self._pid_file = directory / "bird.pid"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._config.write_text(config)

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the running process, which ``ip netns exec`` has become."""
        assert self._process is not None
        return self._process.pid

    def start(self, *, recovers: bool = False) -> None:
        """Starts BIRD and returns when it answers.

        Args:
            recovers: it says that its kernel has kept the routes of before (RFC 4724).
        """
        # Left by a killed BIRD, the old socket would refuse the first questions.
        self._control.unlink(missing_ok=True)
        arguments = [
            *(["-R"] if recovers else []),
            "-f",
            "-c",
            self._config,
            "-s",
            self._control,
            "-P",
            self._pid_file,
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", self._netns, BIRD, *map(str, arguments)],
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: self._control.exists() or not self.is_running, what="bird's socket")
        if not self.is_running:
            raise AssertionError(f"bird did not start: {self._log.read_text()}")

    def stop(self) -> None:
        """Ends BIRD in good order (it sends Cease); nothing happens when it is not running."""
        self._end(kill=False)

    def kill(self) -> None:
        """Ends BIRD as a power cut would."""
        self._end(kill=True)

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if kill:
            process.kill()
        else:
            process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def ask(self, command: str) -> str:
        """What birdc prints for ``command``."""
        finished = subprocess.run(
            [BIRDC, "-s", str(self._control), *command.split()],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        return finished.stdout

    def configure(self, config: str) -> None:
        """Changes the configuration of the running BIRD; sessions that do not change stay."""
        self._config.write_text(config)
        answer = self.ask("configure")
        if "Reconfigured" not in answer and "Reconfiguration in progress" not in answer:
            raise AssertionError(f"bird refused its configuration: {answer}")

    def routes(self, protocol: str) -> dict[str, str]:
        """Prefix to next hop of what BIRD imported from ``protocol``."""
        routes: dict[str, str] = {}
        prefix = None
        for table in ("master4", "master6"):
            for line in self.ask(f"show route protocol {protocol} table {table}").splitlines():
                words = line.split()
                if len(words) > 1 and "/" in words[0]:
                    prefix = words[0]
                elif len(words) > 1 and words[0] == "via" and prefix is not None:
                    routes[prefix] = words[1]
        return routes

    def attributes(self, protocol: str, prefix: str) -> dict[str, str]:
        """What BIRD shows of a route it imported: BGP.med, BGP.community... to its text."""
        answer = self.ask(f"show route {prefix} protocol {protocol} all")
        found = re.findall(r"^\s+BGP\.(\w+): *(.*)$", answer, re.MULTILINE)
        return {name: text.strip() for name, text in found}

    def sessions_so_far(self, protocol: str) -> int:
        """How often the session has come up, which is one more for each flap.

        From the log, so it needs ``debug protocols { states }``. BIRD's own "since" will not do:
        it is rounded anew at each question and differs by a millisecond now and then.
        """
        return self.log().count(f"{protocol}: State changed to up")

    def route_changes(self, protocol: str) -> dict[str, tuple[int, int]]:
        """Per channel (import updates, import withdraws) that BIRD has received so far."""
        changes: dict[str, tuple[int, int]] = {}
        channel, updates = "", 0
        for line in self.ask(f"show protocols all {protocol}").splitlines():
            if match := re.match(r"\s+Channel (\S+)", line):
                channel = match[1]
            elif match := re.match(r"\s+Import updates:\s+(\d+)", line):
                updates = int(match[1])
            elif match := re.match(r"\s+Import withdraws:\s+(\d+)", line):
                changes[channel] = updates, int(match[1])
        return changes

    def log(self) -> str:
        """Everything BIRD has logged."""
        return self._log.read_text()
