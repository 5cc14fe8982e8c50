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
    max_examples=int(os.environ.get("HUNT_CASES", "3000")),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(PROFILE)

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


def hunt_with(item: pytest.Item) -> None:
    """Gives a property with a number of cases of its own as many as the profile has.

    What stands in ``@settings`` is for every day; it would win over the profile.
    """
    function = getattr(item, "obj", None)
    function = getattr(function, "__func__", function)
    own = getattr(function, "_hypothesis_internal_use_settings", None)
    most = settings.get_profile(PROFILE).max_examples
    if function is not None and own is not None and own.max_examples < most:
        function._hypothesis_internal_use_settings = settings(own, max_examples=most)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs namespaces where none can be made, and says why."""
    if PROFILE == "hunt":
        for item in items:
            hunt_with(item)
    concerned = [
        item for item in items if any(item.get_closest_marker(name) for name in NEEDS_NAMESPACES)
    ]
    reason = why_no_namespaces() if concerned else None
    if reason is not None:
        for item in concerned:
            item.add_marker(pytest.mark.skip(reason=f"cannot make network namespaces: {reason}"))
