"""Where everything goes: routers on the left, nodes in rows on the right, sessions between. Pure.

Rows and not a ring: a picture of a hundred nodes is then long, and still read from top to bottom;
each session has its line of text beside its end. Sessions between nodes go round on the right. A
mesh of many nodes would be a black patch: there, sessions that are up are counted and not drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from routing.picture.drawing import CHAR_WIDTH, Canvas, cut
from routing.picture.model import BlockChip, Node, Picture, Router, Session, State

MARGIN = 20
HEAD_HEIGHT = 58
ROUTER_X, ROUTER_WIDTH, ROUTER_GAP = MARGIN, 190, 24
ROUTERS_TO_NODES, NODE_WIDTH = 190, 640
ROW = 18
NODE_GAP = 14
CHIP_X, CHIP_WIDTH, CHIP_HEIGHT = 400, 224, 15
ROUND_MAX = 110
SESSIONS_SHOWN_MAX = 12
"""A node with more shows those that are not well, and counts the others."""
BLOCKS_SHOWN_MAX = 8
PROBLEMS_SHOWN_MAX = 4

WORDS = {
    State.UP: "Established",
    State.STARTING: "coming up",
    State.DOWN: "down",
    State.UNKNOWN: "not known here",
}


def to_svg(picture: Picture, *, with_style: bool = True) -> str:
    """The picture as one self-contained SVG document; without style also without its heading, for
    a page that has both."""
    return _Layout(picture, is_alone=with_style).draw()


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of a node: a session, or (None) the count of those that are folded."""

    session: Session | None
    words: str


@dataclass(frozen=True, slots=True)
class _Placed:
    """A node, what is shown of it, and where it begins."""

    node: Node
    rows: tuple[_Row, ...]
    problems: tuple[str, ...]
    y: float
    height: float

    def row_y(self, index: int) -> float:
        return self.y + 34 + ROW * index


class _Layout:
    def __init__(self, picture: Picture, *, is_alone: bool) -> None:
        self._picture = picture
        self._is_alone = is_alone
        self._top = HEAD_HEIGHT if is_alone else MARGIN
        self._canvas = Canvas()
        self._node_x = ROUTER_X + (ROUTER_WIDTH + ROUTERS_TO_NODES if picture.routers else 0)
        self._placed = list(self._place())
        bottom = self._placed[-1].y + self._placed[-1].height if self._placed else self._top
        self._between_nodes = any(s.is_to_node for node in picture.nodes for s in node.sessions)
        self._width = self._node_x + NODE_WIDTH + MARGIN + (ROUND_MAX if self._between_nodes else 0)
        self._routers = dict(self._place_routers(self._top, bottom))
        lowest = max([bottom, *(y + _router_height(r) for r, y in self._routers.values())])
        self._legend_y = lowest + 30
        self._height = self._legend_y + 40

    # -- placing -------------------------------------------------------------------------------

    def _place(self) -> Iterator[_Placed]:
        y: float = self._top
        for node in self._picture.nodes:
            rows = tuple(_rows(node))
            problems = tuple(_first(list(node.all_problems()), PROBLEMS_SHOWN_MAX))
            lines = max(len(rows) + len(problems), min(len(node.blocks), BLOCKS_SHOWN_MAX + 1), 1)
            height = 26 + ROW * lines + 6
            yield _Placed(node, rows, problems, y, height)
            y += height + NODE_GAP

    def _place_routers(
        self, top: float, bottom: float
    ) -> Iterator[tuple[str, tuple[Router, float]]]:
        routers = self._picture.routers
        needed = sum(_router_height(r) + ROUTER_GAP for r in routers)
        gap = max(0.0, (bottom - top - needed) / (len(routers) + 1)) if routers else 0.0
        y = top
        for router in routers:
            y += gap
            yield router.key, (router, y)
            y += _router_height(router) + ROUTER_GAP

    # -- drawing -------------------------------------------------------------------------------

    def draw(self) -> str:
        picture, canvas = self._picture, self._canvas
        problems = picture.all_problems()
        if self._is_alone:
            self._head(len(problems))
        for placed in self._placed:
            self._lines(placed)
        for router, y in self._routers.values():
            self._router(router, y)
        for placed in self._placed:
            self._node(placed)
        self._legend()
        return canvas.svg(
            self._width,
            self._height,
            title=picture.title,
            description=_description(picture, problems),
            with_style=self._is_alone,
        )

    def _head(self, problems: int) -> None:
        self._canvas.text(MARGIN, 30, cut(self._picture.title, self._width * 0.7), "big")
        caption = cut(self._picture.caption, self._width - 2 * MARGIN)
        self._canvas.text(MARGIN, 47, caption, "faint")
        if problems:
            told = f"✕ {problems} mismatch{'es' if problems > 1 else ''}"
            self._canvas.text(self._width - MARGIN, 30, told, "bad", "end")

    def _lines(self, placed: _Placed) -> None:
        ends = {each.node.name: each for each in self._placed}
        for index, row in enumerate(placed.rows):
            session = row.session
            if session is None:
                continue
            y = placed.row_y(index) - 4
            self._canvas.begin(_told(session))
            if session.is_to_node:
                other = ends.get(session.remote)
                if other is not None and placed.node.name < session.remote:
                    y2 = _end_y(other, placed.node.name)
                    reach = min(ROUND_MAX * 1.3, 30 + abs(y2 - y) * 0.25)
                    state = _worse(session.state, _state_of(other, placed.node.name))
                    self._canvas.round(self._node_x + NODE_WIDTH, y, y2, reach, state)
            elif session.remote in self._routers:
                router, router_y = self._routers[session.remote]
                middle = router_y + _router_height(router) / 2
                self._canvas.across(ROUTER_X + ROUTER_WIDTH, middle, self._node_x, y, session.state)
            self._canvas.end()

    def _router(self, router: Router, y: float) -> None:
        width = ROUTER_WIDTH - 20
        self._canvas.begin(f"{router.title}, AS {router.asn}: {', '.join(router.addresses)}")
        self._canvas.box(ROUTER_X, y, ROUTER_WIDTH, _router_height(router))
        self._canvas.text(ROUTER_X + 10, y + 18, cut(router.title, width), "bold")
        self._canvas.text(ROUTER_X + 10, y + 34, f"router, AS {router.asn}", "faint")
        self._canvas.text(ROUTER_X + 10, y + 50, cut(_addresses(router.addresses), width), "faint")
        self._canvas.end()

    def _node(self, placed: _Placed) -> None:
        node, canvas, node_x = placed.node, self._canvas, self._node_x
        kind = "box wrong" if placed.problems else "box"
        canvas.box(node_x, placed.y, NODE_WIDTH, placed.height, kind)
        head = f"AS {node.asn}  {', '.join(node.addresses)}"
        if node.pods is not None:
            head += f"  {node.pods} pods"
        if not node.source:
            head += "  (not heard)"
        canvas.text(node_x + 14, placed.y + 17, cut(node.name, 150), "bold")
        canvas.text(node_x + 14 + 160, placed.y + 17, cut(head, NODE_WIDTH - 190), "faint")
        for index, row in enumerate(placed.rows):
            self._row(row, placed.row_y(index))
        for index, problem in enumerate(placed.problems):
            y = placed.row_y(len(placed.rows) + index)
            room = NODE_WIDTH - 28 if not _has_chip(node, len(placed.rows) + index) else 372
            canvas.begin(problem)
            canvas.text(node_x + 14, y, cut(f"! {problem}", room), "bad")
            canvas.end()
        shown = node.blocks[:BLOCKS_SHOWN_MAX]
        for index, block in enumerate(shown):
            self._chip(block, node_x + CHIP_X, placed.row_y(index) - 12)
        if len(node.blocks) > len(shown):
            rest = f"and {len(node.blocks) - len(shown)} blocks more"
            canvas.text(node_x + CHIP_X + 4, placed.row_y(len(shown)), rest, "faint")

    def _row(self, row: _Row, y: float) -> None:
        session = row.session
        x = self._node_x + 14
        if session is None:
            self._canvas.mark(x + 5, y - 4, State.UP)
            self._canvas.text(x + 18, y, cut(row.words, 360), "faint")
            return
        self._canvas.begin(_told(session))
        self._canvas.mark(x + 5 if session.is_to_node else self._node_x, y - 4, session.state)
        kind = "bad" if session.state is State.DOWN or session.problems else ""
        self._canvas.text(x + 18, y, cut(row.words, 370), kind)
        self._canvas.end()

    def _chip(self, block: BlockChip, x: float, y: float) -> None:
        words = block.cidr
        told = f"block {block.cidr} of pool {block.pool}, {block.state}"
        if block.used is not None and block.size:
            words += f"  {block.used}/{block.size}"
            told += f", {block.used} of {block.size} addresses in use"
        self._canvas.begin(told)
        is_confirmed = block.state == "confirmed"
        self._canvas.box(
            x, y, CHIP_WIDTH, CHIP_HEIGHT, "chip" if is_confirmed else "pending", radius=3
        )
        if block.used and block.size:
            self._canvas.box(
                x, y, CHIP_WIDTH * min(1.0, block.used / block.size), CHIP_HEIGHT, "used", radius=3
            )
        if not is_confirmed:
            words += f"  {block.state}"
        self._canvas.text(x + 5, y + 11.5, cut(words, CHIP_WIDTH - 8))
        self._canvas.end()

    def _legend(self) -> None:
        x: float = MARGIN
        for state, words in WORDS.items():
            self._canvas.across(x, self._legend_y, x + 34, self._legend_y, state)
            self._canvas.mark(x + 34, self._legend_y, state)
            self._canvas.text(x + 46, self._legend_y + 4, words)
            x += 46 + len(words) * CHAR_WIDTH + 24
        words = "r/a/n: prefixes received, accepted, announced.  ! and red: a mismatch."
        self._canvas.text(MARGIN, self._legend_y + 24, words, "faint")


def _rows(node: Node) -> Iterator[_Row]:
    folded = 0
    for session in node.sessions:
        is_well = session.state is State.UP and not session.problems
        if is_well and session.is_to_node and len(node.sessions) > SESSIONS_SHOWN_MAX:
            folded += 1
            continue
        yield _Row(session, _row_words(session))
    if folded:
        yield _Row(None, f"{folded} sessions with other nodes, all Established")


def _row_words(session: Session) -> str:
    seen = session.seen
    name = cut(session.name, 22 * CHAR_WIDTH)
    if seen is None:
        return f"{name:<22}  {WORDS[session.state]}"
    if session.state is State.UP:
        return f"{name:<22}  {seen.received}/{seen.accepted}/{seen.announced}"
    return f"{name:<22}  {seen.state}"


def _told(session: Session) -> str:
    seen = session.seen
    parts = [f"{session.node} with {session.name} {session.address}, AS {session.asn}"]
    parts.append(seen.state if seen else WORDS[session.state])
    if seen is not None and session.state is State.UP:
        parts.append(
            f"{seen.received} received, {seen.accepted} accepted, {seen.announced} announced"
        )
    return "; ".join([*parts, *session.problems])


def _end_y(placed: _Placed, remote: str) -> float:
    """Where the line of the session with ``remote`` ends at this node."""
    for index, row in enumerate(placed.rows):
        if row.session is not None and row.session.is_to_node and row.session.remote == remote:
            return placed.row_y(index) - 4
    return placed.y + placed.height / 2


def _state_of(placed: _Placed, remote: str) -> State:
    """What the other end says of the session with ``remote``."""
    found = (s.state for s in placed.node.sessions if s.is_to_node and s.remote == remote)
    return next(found, State.UNKNOWN)


def _worse(one: State, other: State) -> State:
    """Of what two ends say, the less pleasant; silence of one end says nothing."""
    order = [State.UNKNOWN, State.UP, State.STARTING, State.DOWN]
    return max(one, other, key=order.index)


def _router_height(router: Router) -> float:
    del router
    return 60


def _has_chip(node: Node, line: int) -> bool:
    return line < min(len(node.blocks), BLOCKS_SHOWN_MAX + 1)


def _addresses(addresses: Sequence[str]) -> str:
    return addresses[0] + (f" and {len(addresses) - 1} more" if len(addresses) > 1 else "")


def _first(texts: list[str], limit: int) -> list[str]:
    if len(texts) <= limit:
        return texts
    return [*texts[: limit - 1], f"and {len(texts) - limit + 1} more"]


def _description(picture: Picture, problems: Sequence[str]) -> str:
    sessions = [s for node in picture.nodes for s in node.sessions]
    up = sum(s.state is State.UP for s in sessions)
    head = (
        f"{len(picture.routers)} routers, {len(picture.nodes)} nodes, "
        f"{up} of {len(sessions)} sessions Established."
    )
    return " ".join([head, *(f"{problem}." for problem in problems)])
