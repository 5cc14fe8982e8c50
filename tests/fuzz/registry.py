"""Every target, by name."""

from __future__ import annotations

from tests.fuzz import (
    bgp_targets,
    cluster_targets,
    cni_targets,
    injection_target,
    launcher_target,
    resource_targets,
    speaker_targets,
)
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    each.name: each
    for module in (
        launcher_target,
        cni_targets,
        bgp_targets,
        speaker_targets,
        resource_targets,
        cluster_targets,
        injection_target,
    )
    for each in module.TARGETS
}
