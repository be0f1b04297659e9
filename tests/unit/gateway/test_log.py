"""Structured logs: what a line looks like."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from torus import log


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    """Leave the logging tree as it was."""
    root = logging.getLogger("torus")
    before = (list(root.handlers), root.level, root.propagate)
    yield
    root.handlers[:], root.level, root.propagate = before


def test_json_line_has_event_and_fields():
    """One object a line; a field never hides the event."""
    out = io.StringIO()
    log.configure("info", "json", stream=out)
    logger = log.get_logger("torus.gateway.x")
    logger.debug("not.this")
    logger.info("nbd.client.connected", peer="p", event="odd", size=1, path=io)

    (line,) = out.getvalue().splitlines()
    found = json.loads(line)
    assert found["event"] == "nbd.client.connected"
    assert (found["level"], found["logger"]) == ("info", "torus.gateway.x")
    assert (found["peer"], found["event_"], found["size"]) == ("p", "odd", 1)
    assert found["time"].endswith("Z")


def test_human_line_quotes_what_needs_it_and_shows_tracebacks():
    """Values with spaces are quoted; no colour unless on a terminal."""
    out = io.StringIO()
    log.configure("debug", "human", stream=out)
    log.get_logger("x").warning("a.b", plain=1, spaced="a b", empty="")
    log.get_logger("x").error("c.d", exception=ValueError("boom"))

    first, *rest = out.getvalue().splitlines()
    assert first[13:] == 'warning a.b plain=1 spaced="a b" empty=""'
    assert rest[-1] == "ValueError: boom"
    log.configure("debug", "human", stream=out, colour=True)
    log.get_logger("x").error("e.f")
    assert out.getvalue().endswith("\x1b[0m\n")


def test_auto_style_is_json_when_not_on_a_terminal():
    """A pipe gets JSON."""
    out = io.StringIO()
    log.configure("info", stream=out)
    log.get_logger("x").info("a.b")
    assert json.loads(out.getvalue())["event"] == "a.b"
