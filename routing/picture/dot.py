"""The picture for Graphviz, for those who want to lay it out themselves. Pure."""

from __future__ import annotations

from routing.picture.model import Picture, State

STYLES = {
    State.UP: 'style=solid color="#0072b2"',
    State.STARTING: 'style=dashed color="#8a6200"',
    State.DOWN: 'style=dashed color="#c0370a" penwidth=2',
    State.UNKNOWN: 'style=dotted color="#5c6470"',
}
SIGNS = {State.UP: "●", State.STARTING: "△", State.DOWN: "✕", State.UNKNOWN: "□"}


def to_dot(picture: Picture) -> str:
    """An undirected graph; a session between nodes that both have told of is drawn once."""
    lines = [
        "graph slash32 {",
        "  rankdir=LR;",
        '  node [shape=box fontname="monospace"];',
        '  edge [fontname="monospace" fontsize=10];',
        f"  label={quoted(picture.title)};",
    ]
    for router in picture.routers:
        text = f"{router.title}\nAS {router.asn}\n{router.addresses[0]}"
        lines.append(f"  {quoted('router ' + router.key)} [label={quoted(text)}];")
    for node in picture.nodes:
        text = "\n".join([node.name, f"AS {node.asn}", *(b.cidr for b in node.blocks)])
        wrong = ' color="#c0370a" penwidth=2' if any(node.all_problems()) else ""
        lines.append(f"  {quoted('node ' + node.name)} [label={quoted(text)}{wrong}];")
    drawn: set[frozenset[str]] = set()
    for node in picture.nodes:
        for session in node.sessions:
            pair = frozenset({node.name, session.remote})
            if session.is_to_node:
                if pair in drawn:
                    continue
                drawn.add(pair)
            other = ("node " if session.is_to_node else "router ") + session.remote
            label = SIGNS[session.state]
            if session.seen is not None and session.state is State.UP:
                seen = session.seen
                label += f" {seen.received}/{seen.accepted}/{seen.announced}"
            label = "\n".join([label, *session.problems])
            lines.append(
                f"  {quoted(other)} -- {quoted('node ' + node.name)} "
                f"[label={quoted(label)} {STYLES[session.state]}];"
            )
    return "\n".join([*lines, "}", ""])


def quoted(text: str) -> str:
    """A DOT string: quotes and backslashes escaped, line ends as \\n."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
