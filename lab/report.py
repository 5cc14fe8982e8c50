"""What a person wants to see of a lab: its picture, its sessions, its routes. Text only. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lab.plan import LabPlan, Machine, Prefix
from routing.routes import Address

BOXES_PER_ROW = 3
BOX_GAP = "  "


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node as it stands: its blocks, and its pods with their addresses."""

    machine: Machine
    blocks: Sequence[Prefix]
    pods: Mapping[str, Sequence[Address]]


def picture(plan: LabPlan, views: Sequence[NodeView]) -> str:
    """The lab from the client down to the pods, about 100 columns wide."""
    boxes = [_box(_node_lines(plan, view)) for view in views]
    width = max(len(box[0]) for box in boxes)
    boxes = [[line.ljust(width) for line in box] for box in boxes]
    per_row = min(BOXES_PER_ROW, len(boxes))
    row_width = per_row * width + (per_row - 1) * len(BOX_GAP)

    client = "  ".join(str(i.ip) for i in plan.client.loopback)
    lines = [f"client  {client}".center(row_width).rstrip(), "|".center(row_width).rstrip()]
    lines += [f"  {t.name}  AS {t.asn}  BIRD 2  ".center(row_width, "=") for t in plan.tors]
    for first in range(0, len(boxes), per_row):
        row = boxes[first : first + per_row]
        lines.append(BOX_GAP.join("|".center(width) for _ in row).rstrip())
        height = max(len(box) for box in row)
        padded = [box + [" " * width] * (height - len(box)) for box in row]
        lines += [BOX_GAP.join(parts).rstrip() for parts in zip(*padded, strict=True)]
    return "\n".join(lines)


def _node_lines(plan: LabPlan, view: NodeView) -> list[str]:
    lines = [f"{view.machine.name}  AS {view.machine.asn}"]
    for near, far in plan.links_of(view.machine):
        lines.append(f"{near.ifname}  {near.ipv4} > {far.machine.name}")
    lines += [f"block  {block}" for block in view.blocks]
    for name, addresses in view.pods.items():
        short = name.removeprefix(f"{view.machine.name}-")
        lines += [
            f"{short if index == 0 else '':<5}  {address}"
            for index, address in enumerate(addresses)
        ]
    return lines


def _box(lines: Sequence[str]) -> list[str]:
    inner = max(len(line) for line in lines)
    edge = f"+{'-' * (inner + 2)}+"
    return [edge, *(f"| {line.ljust(inner)} |" for line in lines), edge]


def section(title: str, text: str) -> str:
    """A titled, indented paragraph."""
    body = "\n".join(f"  {line}".rstrip() for line in text.strip("\n").splitlines())
    return f"\n{title}\n{body}"
