"""How many cases a property has that stands inside a test function.

There a hunt (tests/fuzz/hunt.py) cannot reach it: tests/conftest.py gives the profile's cases to
properties that pytest collects itself.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings


def cases(every_day: int, **rest: Any) -> settings:
    """``every_day`` cases, and in a hunt as many as that has for each property."""
    most = settings().max_examples if settings.get_current_profile_name() == "hunt" else 0
    return settings(max_examples=max(every_day, most), deadline=None, **rest)
