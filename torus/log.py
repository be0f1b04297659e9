"""Structured logs over the standard library: an event's name and its fields.

Decides the shape of a line (people's when standard error is a terminal, JSON otherwise) and
nothing about what is logged.  ``configure`` is called once, by the cli or the daemon; before it,
warnings go where the standard library sends them.
"""

import datetime
import json
import logging
import sys
from typing import IO, Literal

Style = Literal["auto", "human", "json"]

_ROOT = "torus"
_COLOURS = {"debug": "\x1b[2m", "info": "", "warning": "\x1b[33m", "error": "\x1b[31m"}


class StructuredLogger:
    """Logs events: a dotted constant name, and values as fields."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, /, **fields: object) -> None:
        """Log a detail, off by default."""
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Log a change of state."""
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Log what went wrong and was dealt with."""
        self._emit(logging.WARNING, event, fields)

    def error(
        self, event: str, /, *, exception: BaseException | None = None, **fields: object
    ) -> None:
        """Log what somebody must act on; ``exception`` adds its traceback."""
        self._emit(logging.ERROR, event, fields, exception)

    def _emit(
        self,
        level: int,
        event: str,
        fields: dict[str, object],
        exception: BaseException | None = None,
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, exc_info=exception, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, logger, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one record."""
        line: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        for name, value in getattr(record, "fields", {}).items():
            line[f"{name}_" if name in line else name] = value
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class HumanFormatter(logging.Formatter):
    """Time, level, event, then ``name=value`` for each field."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one record, with the traceback below it if there is one."""
        level = record.levelname.lower()
        fields = "".join(
            f" {name}={_plain(value)}" for name, value in getattr(record, "fields", {}).items()
        )
        line = f"{_timestamp(record)[11:23]} {level:<7} {record.getMessage()}{fields}"
        if self._colour and _COLOURS.get(level):
            line = f"{_COLOURS[level]}{line}\x1b[0m"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def get_logger(name: str) -> StructuredLogger:
    """Return the logger of a module; ``name`` is the module's dotted name."""
    full = name if name == _ROOT or name.startswith(f"{_ROOT}.") else f"{_ROOT}.{name}"
    return StructuredLogger(logging.getLogger(full))


def configure(
    level: str = "info",
    style: Style = "auto",
    *,
    stream: IO[str] | None = None,
    colour: bool | None = None,
) -> None:
    """Send logs at ``level`` and above to ``stream`` (standard error); the last call counts.

    ``colour`` None means: on a terminal.
    """
    out = stream if stream is not None else sys.stderr
    terminal = out.isatty()
    handler = logging.StreamHandler(out)
    if style == "human" or (style == "auto" and terminal):
        handler.setFormatter(HumanFormatter(colour=terminal if colour is None else colour))
    else:
        handler.setFormatter(JsonFormatter())
    root = logging.getLogger(_ROOT)
    for previous in list(root.handlers):
        root.removeHandler(previous)
    root.addHandler(handler)
    root.setLevel(level.upper())
    root.propagate = False


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, tz=datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' "=\n') else text
