"""A pool as a grid of its blocks: what is taken, by whom, and how full ours are. Pure.

Reading order is address order. A block whose use is known (this node's own) has a frame and is
filled from below by it; one of another node is a plain square, for its use is that node's to know;
one that is not confirmed has a dashed frame; the faint ones are free. A pool of very many blocks is
drawn coarser: a square then stands for several, filled by how many of them are taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from cni.ipam.block import Block, BlockState
from routing.datastore.snapshot import IPPoolResource
from routing.printable import markup
from routing.routes import Prefix

COLUMNS = 32
CELLS_MAX = 1024
SIZE, STEP = 14, 17
LABEL_WIDTHS = {4: 96, 6: 190}
FILL_MIN = 4
"""Of a square that is in use at all: below the frame and still to be seen."""

STYLE = """
svg.heat { font: 10px ui-monospace, 'DejaVu Sans Mono', monospace; --ink: #5c6470;
 --free: #e3e8ee; --other: #8793a1; --own: #0072b2; --use: #7db8de; --pend: #8a6200; }
@media (prefers-color-scheme: dark) { svg.heat { --ink: #a4adb8; --free: #2b323a;
 --other: #76818d; --own: #56b4e9; --use: #1f6591; --pend: #e6b422; } }
.heat text { fill: var(--ink); } .heat .free { fill: var(--free); }
.heat .other { fill: var(--other); } .heat .use { fill: var(--use); }
.heat .own { fill: none; stroke: var(--own); stroke-width: 2; }
.heat .pend { fill: none; stroke: var(--pend); stroke-width: 2; stroke-dasharray: 3 2; }
""".strip()


@dataclass(frozen=True, slots=True)
class _Cell:
    """One square: the blocks in it, and of how many."""

    blocks: tuple[Block, ...]
    holds: int


def to_heatmap(
    pool: IPPoolResource,
    blocks: Iterable[Block],
    use: Mapping[Prefix, tuple[int, int]],
    *,
    with_style: bool = False,
) -> str:
    """An SVG; without style it is for a page that has STYLE in its head.

    Args:
        blocks: of the cluster; those outside the pool are left out.
        use: of the blocks whose use is known: (addresses in use, size).
    """
    count = 1 << (pool.block_size - pool.cidr.prefixlen)
    per_cell = max(1, count // CELLS_MAX)
    cells = _cells(pool, blocks, per_cell)
    total = count // per_cell
    rows = (total + COLUMNS - 1) // COLUMNS
    left = LABEL_WIDTHS[pool.cidr.version]
    width, height = left + COLUMNS * STEP, max(1, rows) * STEP + 4
    parts = [
        f'<path class="free" d="{_free(total, cells, left)}"/>',
        *(_label(pool, row, per_cell, left) for row in range(0, rows, 1 if rows <= 4 else 4)),
        *(_square(_place(index, left), cell, use) for index, cell in sorted(cells.items())),
    ]
    taken = sum(len(cell.blocks) for cell in cells.values())
    told = f"pool {pool.meta.name} {pool.cidr}: {taken} of {count} blocks taken"
    if per_cell > 1:
        told += f"; each square is {per_cell} blocks"
    style = f"<style>{STYLE}</style>" if with_style else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="heat" role="img" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<title>{markup(told)}</title>{style}\n" + "\n".join(parts) + "\n</svg>"
    )


def _cells(pool: IPPoolResource, blocks: Iterable[Block], per_cell: int) -> dict[int, _Cell]:
    width = pool.cidr.max_prefixlen - pool.block_size
    base = int(pool.cidr.network_address)
    found: dict[int, list[Block]] = {}
    for block in blocks:
        if block.cidr.version != pool.cidr.version or not block.cidr.subnet_of(pool.cidr):  # type: ignore[arg-type]
            continue
        index = ((int(block.cidr.network_address) - base) >> width) // per_cell
        found.setdefault(index, []).append(block)
    return {index: _Cell(tuple(inside), per_cell) for index, inside in found.items()}


def _free(total: int, cells: Mapping[int, _Cell], left: int) -> str:
    return "".join(
        f"M{x} {y}h{SIZE}v{SIZE}h-{SIZE}z"
        for index in range(total)
        if index not in cells or cells[index].holds > 1
        for x, y in [_place(index, left)]
    )


def _place(index: int, left: int) -> tuple[int, int]:
    return left + (index % COLUMNS) * STEP + 1, (index // COLUMNS) * STEP + 2


def _label(pool: IPPoolResource, row: int, per_cell: int, left: int) -> str:
    width = pool.cidr.max_prefixlen - pool.block_size
    first = int(pool.cidr.network_address) + ((row * COLUMNS * per_cell) << width)
    address = IPv4Address(first) if pool.cidr.version == 4 else IPv6Address(first)
    y = row * STEP + SIZE
    return f'<text x="{left - 8}" y="{y}" text-anchor="end">{address}</text>'


def _square(place: tuple[int, int], cell: _Cell, use: Mapping[Prefix, tuple[int, int]]) -> str:
    x, y = place
    mine = [block for block in cell.blocks if block.cidr in use]
    if cell.holds > 1:
        words = f"{len(cell.blocks)} of {cell.holds} blocks taken, {len(mine)} of them heard of"
        strokes = _fill(x, y, len(cell.blocks) / cell.holds, "other" if not mine else "use")
        strokes += _frame(x, y, "own") if mine else ""
        return f"<g><title>{markup(words)}</title>{strokes}</g>"
    block = cell.blocks[0]
    words = f"{block.cidr} {block.node} {block.state.value}"
    if block.state is not BlockState.CONFIRMED:
        strokes = _frame(x, y, "pend")
    elif not mine:
        strokes = _fill(x, y, 1.0, "other")
    else:
        used, size = use[block.cidr]
        words += f", {used} of {size} addresses in use"
        strokes = _fill(x, y, used / size if size else 0.0, "use") + _frame(x, y, "own")
    return f"<g><title>{markup(words)}</title>{strokes}</g>"


def _fill(x: int, y: int, share: float, kind: str) -> str:
    height = max(FILL_MIN, round(SIZE * min(1.0, share))) if share else 0
    return (
        f'<rect class="{kind}" x="{x}" y="{y + SIZE - height}" width="{SIZE}" height="{height}"/>'
    )


def _frame(x: int, y: int, kind: str) -> str:
    return f'<rect class="{kind}" x="{x + 1}" y="{y + 1}" width="{SIZE - 2}" height="{SIZE - 2}"/>'
