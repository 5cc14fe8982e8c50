"""A run in words and figures, as Markdown. Pure."""

from __future__ import annotations

from lab.soak.figures import (
    DESCRIPTORS_MAX,
    FILES_MAX,
    RESTART_SLOPE_MAX_KIB,
    SAME,
    SLOPE_MAX_KIB,
    STATE_MAX_KIB,
    Outcome,
    memory_slope,
    problems,
    restart_slope,
)

HEAD = """# Soak

Made by `make soak` (`lab/soak/`): one node with its agent, its ExaBGP and a session with a real
BIRD 2. Six workers execute the static launcher as a runtime does, an ADD and a DEL for each pod, in
namespaces that are renewed now and then, half of them before the DEL. One launcher in twenty is
killed within 20 ms; after a killed or refused ADD comes the DEL that a runtime sends, until it
succeeds. In the first half one agent lives; in the second it is killed (SIGKILL) or told to end
(SIGTERM) under load, again and again. After every hundred pairs and every restart the node is let
come to rest, with one pod on it, and everything is counted.

"""


def document(outcome: Outcome, picture: str) -> str:
    """The page."""
    samples = outcome.samples
    first, last = samples[0], samples[-1]
    found = problems(outcome)
    verdict = "Everything is flat." if not found else "Not flat: " + "; ".join(found) + "."
    lines = [
        f"{last.pairs:,} ADD/DEL pairs and {last.restarts} ends of the agent in "
        f"{outcome.seconds / 60:.0f} minutes. {verdict}",
        "",
        f"![Memory, descriptors, links, routes, namespaces over the run]({picture})",
        "",
        "| figure | in the beginning | at the end | owed |",
        "|---|--:|--:|---|",
        f"| agent's memory, KiB a thousand pairs (one agent) | | {memory_slope(samples):.1f} | "
        f"{SLOPE_MAX_KIB:g} at most |",
        f"| speaker's, bridge's and ExaBGP's memory, KiB a restart of the agent | | "
        f"{restart_slope(samples):.2f} | {RESTART_SLOPE_MAX_KIB:g} at most |",
    ]
    owed = f"{DESCRIPTORS_MAX} more at most"
    for name, label in (
        ("agent_fds", "agent's descriptors, without one a thread"),
        ("speaker_fds", "speaker's, bridge's and ExaBGP's descriptors"),
    ):
        lines.append(f"| {label} | {getattr(first, name)} | {getattr(last, name)} | {owed} |")
    labels = {
        "namespaces": "network namespaces of the lab",
        "tmp_entries": "entries of ours in /tmp",
        "links": "links on the node",
        "pod_routes": "routes to pods on the node",
        "rules": "lines of nftables on the node",
    }
    for name in SAME:
        owed = "the same at every rest"
        lines.append(
            f"| {labels[name]} | {getattr(first, name)} | {getattr(last, name)} | {owed} |"
        )
    lines += [
        f"| blocks of the node | {first.blocks} | {last.blocks} | no more than before |",
        f"| files in the run directory | {first.run_files} | {last.run_files} | "
        f"{FILES_MAX} more at most |",
        f"| state and journal, KiB | {first.state_kib} | {last.state_kib} | {STATE_MAX_KIB:,} at "
        "most: the journal's own limit and a little |",
        "",
        "The oracle (runtime, kernel and address book compared) "
        + ("found nothing at the end." if not outcome.findings else "or a worker found something."),
        "",
        "| what the launchers were told | times |",
        "|---|--:|",
        *(f"| {what} | {times:,} |" for what, times in outcome.answers.items()),
        "",
    ]
    return HEAD + "\n".join(lines)
