"""The dashboard and the alerts: they ask for metrics that exist, and each alert has a runbook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.core import Metric

from routing.metrics.families import families
from tests.fakes.observation import observation

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "manifests" / "monitoring"
NAME = re.compile(r"\bslash32_[a-z0-9_]+")


def exported() -> list[Metric]:
    return list(families(observation(cache_saved_at_s=900.0)))


def sample_names() -> set[str]:
    """Every name a scrape can hold, whatever its values."""
    found = set()
    for family in exported():
        suffixes = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_sum", "_count"),
            "info": ("_info",),
        }.get(family.type, ("",))
        found |= {family.name + suffix for suffix in suffixes}
    return found


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def expressions() -> Iterator[str]:
    for rule in rules():
        yield rule["expr"]
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        yield variable.get("definition", "")


def test_everything_asked_for_exists():
    """A metric that was renamed must not leave an alert that can never fire."""
    asked = {name for text in expressions() for name in NAME.findall(text)}
    assert len(asked) > 25
    assert asked <= sample_names()


@pytest.mark.parametrize("labels", [r"by \(([^)]*)\)", r"on \(([^)]*)\)"])
def test_labels_asked_for_exist(labels: str):
    """``instance`` is the scraper's, ``le`` a histogram's."""
    known = {"instance", "le"} | {
        label for family in exported() for sample in family.samples for label in sample.labels
    }
    asked = {
        each.strip()
        for text in expressions()
        for group in re.findall(labels, text)
        for each in group.split(",")
    }
    assert asked
    assert asked <= known


def test_every_alert_has_a_runbook_entry():
    """Under its own name, and no entry is left of an alert that is gone."""
    text = (ROOT / "docs" / "runbook.md").read_text()
    entries = set(re.findall(r"^## (Slash32\w+)$", text, re.MULTILINE))
    assert entries == {rule["alert"] for rule in rules()}
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_every_metric_is_in_the_documentation():
    """And nothing is documented that is not there."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"^\| `(slash32_[a-z0-9_]+)`", text, re.MULTILINE)) == {
        family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        for family in exported()
    }


def test_prometheus_itself_accepts_the_rules():
    """promtool, from Debian's package prometheus."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here (Debian package prometheus)")
    done = subprocess.run(
        [promtool, "check", "rules", str(MONITORING / "alerts.yaml")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
