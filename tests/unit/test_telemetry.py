"""One line per change, in one form whoever logs it; repeats are counted, not printed."""

from __future__ import annotations

import io
import json
import logging

from routing.telemetry import LeafFormatter, LeafHandler, RepeatFilter, renderers


def line(style: str, message: str, *args: object, failing: bool = False) -> str:
    logger, stream = logging.getLogger("cni.attach"), io.StringIO()
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LeafFormatter(style=style))
    logger.addHandler(handler)
    try:
        if failing:
            raise ValueError("broken")
        logger.info(message, *args)
    except ValueError:
        logger.exception(message, *args)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    return stream.getvalue()


def test_a_leafs_line_is_json_in_a_pod():
    """One object a line, whatever is in the message."""
    text = line("json", "pod_attached link=%s", 'a"b\nc')
    assert text.count("\n") == 1
    document = json.loads(text)
    assert document["event"] == 'pod_attached link=a"b\nc'
    assert (document["level"], document["logger"]) == ("info", "cni.attach")
    assert document["timestamp"].endswith("Z")


def test_a_text_of_others_cannot_write_lines_of_its_own_on_a_terminal():
    """Neither through a leaf's logger nor through ours."""
    assert line("console", "pod_attached link=%s", "a\nb\x1b[2J").count("\n") == 1
    event: object = {"event": "happened", "name": "a\nb\x1b[2Jé", "exception": "Trace\nback"}
    for step in renderers("console"):
        event = step(None, "info", event)  # type: ignore[arg-type]
    shown, _, trace = str(event).partition("\n")
    assert r"a\nb\x1b[2Jé" in shown
    assert trace == "Trace\nback"


def test_a_leafs_line_is_one_write_and_one_that_cannot_be_made_disturbs_nobody():
    """Whatever it holds."""
    stream, root = io.StringIO(), logging.getLogger()
    before, level, logging.raiseExceptions = root.handlers[:], root.level, False
    root.handlers[:] = [LeafHandler(stream, LeafFormatter(style="console"))]
    root.setLevel(logging.INFO)
    try:
        logging.getLogger("cni.attach").info("pod_attached share=%s link=%s", "100%s", "a")
        logging.getLogger("cni.attach").debug("detail")
        logging.getLogger("cni.attach").info("wrong %d", "text")
    finally:
        root.handlers[:], logging.raiseExceptions = before, True
        root.setLevel(level)
    assert [line.split("] ")[1] for line in stream.getvalue().splitlines()] == [
        "pod_attached share=100%s link=a"
    ]


def test_a_failure_keeps_its_traceback():
    """In both forms."""
    assert "ValueError: broken" in json.loads(line("json", "x", failing=True))["exception"]
    assert "ValueError: broken" in line("console", "x", failing=True)


def test_repeats_are_held_back_and_counted():
    """The first, the change, and how often it came; what stopped failing is news again."""
    repeats = RepeatFilter(limit=2)
    assert repeats.admit("a", "one") == 0
    assert repeats.admit("a", "one") is None
    assert repeats.admit("a", "one") is None
    assert repeats.admit("a", "two") == 2
    repeats.retain(set())
    assert repeats.admit("a", "two") == 0
    repeats.admit("b", "x")
    repeats.admit("c", "x")
    assert repeats.admit("a", "two") == 0
