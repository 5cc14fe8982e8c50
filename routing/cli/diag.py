"""slash32 diag: everything a ticket needs, in one tarball, without secrets."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from routing.cli.exits import FINDINGS, Exit
from routing.cli.resources_options import run_dir_option, state_dir_option, store_option

COMMAND_DEADLINE_S = 10
TEXT_MAX_BYTES = 8 << 20

COMMANDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ip-link.txt", ("ip", "-details", "link")),
    ("ip-addr.txt", ("ip", "addr")),
    ("ip-route.txt", ("ip", "route", "show", "table", "all")),
    ("ip-route6.txt", ("ip", "-6", "route", "show", "table", "all")),
    ("ip-rule.txt", ("ip", "rule")),
    ("ip-neigh.txt", ("ip", "neigh")),
    ("nft.txt", ("nft", "list", "ruleset")),
    ("sysctl-net.txt", ("sysctl", "-a", "--pattern", "^net\\.(ipv4|ipv6)\\.(conf|neigh|ip_)")),
    ("uname.txt", ("uname", "-a")),
    ("tcp.txt", ("ss", "-tanp", "( sport = :179 or dport = :179 )")),
)
VIEWS = ("status", "peers", "routes", "paths", "advertised", "kernel", "blocks", "pods", "ipam")

_SECRETS = (
    re.compile(r"(?im)^(\s*(?:md5-password|password|md5|secret|token|authorization)\b[\s:=]*).*$"),
    re.compile(r'(?i)("(?:[^"]*(?:password|secret|token)[^"]*)"\s*:\s*)"[^"]*"'),
)


def redacted(words: str) -> str:
    """The text without the values of what is called a password, secret or token."""
    words = _SECRETS[0].sub(r"\1<removed>", words)
    return _SECRETS[1].sub(r'\1"<removed>"', words)


@click.command()
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The file to write."
)
@run_dir_option
@state_dir_option
@store_option
def diag(output: Path | None, run_dir: Path, state_dir: Path, store: str) -> None:
    """Collect what a ticket needs: views, routes, rules, sysctls, journal, resources. No secrets.

    What cannot be had is named in errors.txt inside. Exit 1 when nothing at all could be.
    """
    name = f"slash32-diag-{time.strftime('%Y%m%d-%H%M%S')}"
    path = output or Path(f"{name}.tgz")
    errors: list[str] = []
    parts = dict(_parts(run_dir, state_dir, store, errors))
    if not parts:
        raise Exit("nothing could be collected: " + "; ".join(errors[:3]), FINDINGS)
    parts["errors.txt"] = "\n".join(errors) + "\n"
    try:
        with tarfile.open(path, "w:gz") as tar:
            for each, words in parts.items():
                raw = redacted(words).encode()[:TEXT_MAX_BYTES]
                entry = tarfile.TarInfo(f"{name}/{each}")
                entry.size, entry.mode, entry.mtime = len(raw), 0o600, int(time.time())
                tar.addfile(entry, io.BytesIO(raw))
    except OSError as error:
        raise Exit(f"{path}: {error.strerror}", FINDINGS) from None
    path.chmod(0o600)
    click.echo(f"{path}: {len(parts)} files, {len(errors)} things could not be had")


def _parts(
    run_dir: Path, state_dir: Path, store: str, errors: list[str]
) -> Iterator[tuple[str, str]]:
    from routing.asking import Unreachable, ask
    from routing.cli.main import version

    yield "version.txt", version() + "\n"
    for view in VIEWS:
        try:
            yield f"{view}.json", json.dumps(ask(run_dir / "agent.sock", view), indent=1)
        except Unreachable as error:
            errors.append(f"{view}: {error}")
            break
    for name, command in COMMANDS:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMMAND_DEADLINE_S,
                check=False,
            )
            yield name, done.stdout + done.stderr
        except (OSError, subprocess.TimeoutExpired) as error:
            errors.append(f"{name}: {error}")
    for each in (run_dir / "exabgp.conf", state_dir / "journal", state_dir / "journal.1"):
        try:
            yield each.name, each.read_text(errors="replace")
        except OSError as error:
            errors.append(f"{each}: {error.strerror}")
    yield from _resources(store, errors)


def _resources(store: str, errors: list[str]) -> Iterator[tuple[str, str]]:
    """Every resource but Secrets."""
    from routing.cli.resources import with_store
    from routing.datastore.documents import dump
    from routing.datastore.opening import Store
    from routing.datastore.resources import KINDS, to_document
    from routing.datastore.snapshot import StoreError

    async def read(opened: Store) -> list[dict[str, object]]:
        return [
            to_document(resource)
            for kind in KINDS
            if kind != "Secret"
            for resource in await opened.list(kind)
        ]

    try:
        yield "resources.yaml", dump(with_store(store, read))
    except StoreError as error:
        errors.append(f"resources: {error}")
