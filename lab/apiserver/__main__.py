"""``python -m lab.apiserver``: the double in a process of its own. See server.py."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from pathlib import Path

from lab.apiserver.server import ApiDouble


async def serve(arguments: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT."""
    double = ApiDouble(listen=arguments.listen, namespaces=arguments.netns)
    await double.start(arguments.port)
    # By rename: who finds the file finds a server that listens.
    draft = arguments.kubeconfig.with_suffix(".new")
    os.replace(double.write_kubeconfig(draft), arguments.kubeconfig)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    wanted = asyncio.Queue[bool]()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGUSR1, wanted.put_nowait, False)
    loop.add_signal_handler(signal.SIGUSR2, wanted.put_nowait, True)

    async def obey() -> None:
        while True:
            is_up = await wanted.get()
            if is_up != double.is_up:
                await (double.up() if is_up else double.down())

    obeying = asyncio.create_task(obey())
    await ended.wait()
    obeying.cancel()
    await double.stop()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="a small Kubernetes API server, for a lab")
    parser.add_argument("--kubeconfig", type=Path, required=True, help="written when it listens")
    parser.add_argument("--netns", type=Path, action="append", default=[], help="listens there too")
    parser.add_argument("--listen", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
