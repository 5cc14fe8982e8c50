"""The launcher changes exactly the ExaBGP it was written for, and no other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bgp.supervise import TUNED
from tests.fakes.exabgp_sessions import load


def starts(**environment: str) -> str:
    """What the launcher says when it starts ExaBGP to print its version."""
    done = subprocess.run(
        [sys.executable, "-I", TUNED, "version"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "5.0.15" in done.stdout
    return done.stderr


def test_it_runs_tuned_on_the_pinned_exabgp():
    """Not a word: every fingerprint is right."""
    assert starts() == ""


def test_the_setting_makes_it_stock():
    """For an operator who suspects us."""
    assert "ExaBGP runs stock: by setting" in starts(SLASH32_EXABGP="stock")


@pytest.mark.parametrize(
    "part",
    ["exabgp_habits", "exabgp_attributes", "exabgp_hotpath", "exabgp_certain", "exabgp_turns"],
)
def test_one_function_that_differs_makes_it_stock(part, monkeypatch, tmp_path):
    """Half of the changes on another ExaBGP is what nobody has tested."""
    tuned = load("exabgp_tuned")
    real = tuned._load

    def changed(name: str):
        module = real(name)
        if name == f"{part}.py":
            first = next(iter(module.FINGERPRINTS))
            module.FINGERPRINTS = module.FINGERPRINTS | {first: "0" * 16}
            module.install = lambda: pytest.fail("installed all the same")
        return module

    monkeypatch.setattr(tuned, "_load", changed)
    assert tuned.tune().startswith("stock: exabgp.")


def test_another_version_is_a_mismatch(monkeypatch):
    """Even when the functions look the same."""
    tuned = load("exabgp_tuned")
    monkeypatch.setattr(tuned, "VERSION", "5.0.14")
    with pytest.raises(tuned.Mismatch, match=r"ExaBGP is 5\.0\.15"):
        tuned.check({})


def test_a_function_that_is_gone_is_a_mismatch():
    """And says which."""
    tuned = load("exabgp_tuned")
    with pytest.raises(tuned.Mismatch, match=r"Peer\.nosuch"):
        tuned.fingerprint("exabgp.reactor.peer:Peer.nosuch")


@pytest.mark.parametrize(("mode", "is_loaded"), [("tuned", False), ("stock", True)])
def test_openssl_and_the_debugger_are_left_out_of_the_tuned_one(mode, is_loaded):
    """Five MiB for nothing on every node; stock is ExaBGP as it comes."""
    done = subprocess.run(
        [sys.executable, "-I", "-X", "importtime", TUNED, "version"],
        env=os.environ | {"SLASH32_EXABGP": mode},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert ("_ssl" in loaded) is is_loaded
    assert ("bdb" in loaded) is is_loaded
