"""Skip rules with their reasons, and hypothesis profiles.

``ci`` (the default) draws the same cases on every run; ``HYPOTHESIS_PROFILE=hunt`` draws new ones,
many more, and prints how to reproduce what it finds.
"""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile(
    "hunt",
    deadline=None,
    max_examples=3000,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

NEEDS_NAMESPACES = ("netns", "e2e")


def why_no_namespaces() -> str | None:
    """Why network namespaces cannot be made here, or None."""
    if os.geteuid() != 0:
        return "not root"
    try:
        done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    except FileNotFoundError:
        return "no unshare program"
    return None if done.returncode == 0 else done.stderr.strip()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs namespaces where none can be made, and says why."""
    concerned = [
        item for item in items if any(item.get_closest_marker(name) for name in NEEDS_NAMESPACES)
    ]
    reason = why_no_namespaces() if concerned else None
    if reason is not None:
        for item in concerned:
            item.add_marker(pytest.mark.skip(reason=f"cannot make network namespaces: {reason}"))
