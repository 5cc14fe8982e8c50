"""Values out of bytes: what a coverage-guided fuzzer flips becomes documents, texts, requests.

Bytes that are over mean zero, so that every prefix of an input is an input too, and one that is cut
gives a simpler value of the same kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

HOSTILE = (
    "\n", "\r", "\0", "\x1b[31m", "; run /bin/sh;", "\n}\nprocess x { run /bin/sh; }\n", '"', "'",
    "\\", "../../etc/passwd", "/", ".", "..", "a/b", "$(id)", "`id`", "${x}", "%s", "%(x)s", "{x}",
    "{0.__class__}", "<script>alert(1)</script>", "</title>", "&lt;", "]]>", "--", "#", "!", "|",
    "a|b", "\u2028", "\u202e", "\x85", "\ud800", "é", "x" * 300, "1e999", "0x10", "-1", "007",
    "null", "NaN", '{"a":1}', "[1]", "10.0.0.0/8", "fe80::1%eth0", "::ffff:10.0.0.1",
    "65535:65281", "4294967296", "١", "0.0.0.0/0", "x=1 y=2", "\n# HELP evil 1\nevil 1\n",
    'a"} 1\nevil{a="', "9s", "all()", "has(a)", "a in {'b'}", "default",
)  # fmt: skip
"""Texts that have meant something else to some reader, once."""


class Draw:
    """Takes values from the front of ``data``."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_over(self) -> bool:
        """Nothing is left; everything from here on is zero."""
        return self._at >= len(self._data)

    def byte(self) -> int:
        """0 to 255."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def below(self, limit: int) -> int:
        """0 to ``limit`` - 1, ``limit`` being 65536 at most."""
        number = self.byte() if limit <= 256 else (self.byte() << 8) | self.byte()
        return number % limit

    def choice(self, among: Sequence[T]) -> T:
        """One of them; the first when nothing is left."""
        return among[self.below(len(among))]

    def raw(self) -> bytes:
        """Up to 63 bytes."""
        size = self.below(64)
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        """All that is left."""
        left, self._at = self._data[self._at :], len(self._data)
        return left

    def text(self) -> str:
        """A hostile one, one of those around an ordinary word, or any."""
        kind = self.below(4)
        if kind == 0:
            return self.choice(HOSTILE)
        if kind == 1:
            return "node" + self.choice(HOSTILE)
        if kind == 2:
            return self.choice(HOSTILE) + self.choice(HOSTILE)
        return self.raw().decode("utf-8", "replace")

    def value(self, depth: int = 0) -> Any:
        """Anything JSON can say, three levels deep."""
        kind = self.below(10 if depth < 3 else 8)
        if kind in (0, 1, 2):
            return self.text()
        if kind == 3:
            return self.below(65536)
        if kind == 4:
            return self.choice(
                (0, -1, 1, 2**31, 2**32, 2**63, 2**64, 10**30, 1.5, -0.0, float("inf"))
            )
        if kind == 5:
            return self.choice((True, False, None))
        if kind == 6:
            return self.choice(((), [], {}, "", [[]], {"": ""}))
        if kind == 7:
            return self.raw().decode("latin-1")
        if kind == 8:
            return [self.value(depth + 1) for _ in range(self.below(4))]
        return {self.text(): self.value(depth + 1) for _ in range(self.below(4))}

    def damaged(self, document: Any) -> Any:
        """A copy of a JSON value with up to four changes anywhere in it."""
        result = _copied(document)
        for _ in range(self.below(5)):
            self._damage(result)
        return result

    def spliced(self, text: bytes, pieces: Sequence[bytes], most: int = 3) -> bytes:
        """``text`` with up to ``most`` places overwritten, cut or added to."""
        result = bytearray(text)
        for _ in range(self.below(most + 1)):
            place = self.below(65536) % (len(result) + 1)
            new = self.raw()[:8] if self.below(3) == 2 else self.choice(pieces)
            result[place : place + self.choice((0, 0, 1, len(new), 9))] = new
        return bytes(result)

    def _damage(self, value: Any) -> None:
        while isinstance(value, dict | list) and value:
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            key = self.choice(keys)
            inner = value[key]
            if isinstance(inner, dict | list) and inner and self.below(4):
                value = inner
                continue
            what = self.below(8)
            if what == 0:
                del value[key]
            elif what == 1 and isinstance(value, dict):
                value[self.text()] = self.value()
            elif what == 2 and isinstance(value, list):
                value.append(_copied(inner))
            elif isinstance(inner, str) and what in (3, 4):
                place = self.below(len(inner) + 1)
                value[key] = inner[:place] + self.choice(HOSTILE) + inner[place:]
            else:
                value[key] = self.value()
            return


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list | tuple) else value
