"""Texts that others chose, as part of what we write. Pure."""

from __future__ import annotations

from html import escape


def printable(text: str) -> str:
    """``text`` with what is no printable character escaped, as Python writes it.

    Names and sentences come from resources, runtimes and peers. A line break in one of them would
    write a second line of the log in our name, an escape sequence drive the reader's terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def markup(text: str) -> str:
    """``text`` as character data or an attribute's value of HTML and SVG.

    XML has no way at all to write most control characters (XML 1.0 section 2.2), and half a
    surrogate pair is in no encoding: one of them, and no browser shows the picture. They become
    U+FFFD; line breaks stay.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
    return escape(text)
