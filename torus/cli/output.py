"""How a command speaks: tables for people, JSON for programs, notes and errors on stderr.

Decides form only: what is said is the command's.  Results go to standard output, everything
else to standard error.  rich is imported when a table is drawn on a terminal, never before.

Implements docs/cli.md, "Output".
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from torus.errors import TorusError

JSON_FORMAT = 1


class Output:
    """One command's standard output and standard error."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.as_json = False
        self._environment = environment
        self._stdout = sys.stdout if stdout is None else stdout
        self._stderr = sys.stderr if stderr is None else stderr

    def show(self, document: Mapping[str, Any], render: Callable[[], None]) -> None:
        """Print ``document`` as JSON where that was asked for, else call ``render``."""
        if not self.as_json:
            render()
            return
        text = json.dumps({"format": JSON_FORMAT, **document}, indent=2, default=str)
        self._stdout.write(text + "\n")

    def line(self, text: str) -> None:
        """Print one line of the result."""
        self._stdout.write(text + "\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows under headings; a column named with a leading '>' is right aligned."""
        if self.is_rich():
            _draw(columns, rows, self._stdout, coloured=self.is_coloured())
            return
        headings = [column.removeprefix(">") for column in columns]
        widths = [
            max(len(heading), *(len(row[i]) for row in rows)) if rows else len(heading)
            for i, heading in enumerate(headings)
        ]
        for row in (headings, *rows):
            cells = [
                cell.rjust(width) if column.startswith(">") else cell.ljust(width)
                for column, cell, width in zip(columns, row, widths, strict=True)
            ]
            self.line("  ".join(cells).rstrip())

    def clear(self) -> None:
        """Begin anew at the top of a terminal; nothing elsewhere."""
        if self.is_rich() and not self.as_json:
            self._stdout.write("\x1b[H\x1b[2J")

    def fields(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Print one thing's properties, a line each."""
        width = max(len(name) for name, _ in pairs)
        bold, plain = ("\x1b[1m", "\x1b[0m") if self.is_coloured() else ("", "")
        for name, value in pairs:
            self.line(f"{bold}{name.ljust(width)}{plain}  {value}".rstrip())

    def note(self, text: str) -> None:
        """Tell a person something that is not the result; silent with JSON."""
        if not self.as_json:
            self._stderr.write(text + "\n")

    def warning(self, text: str) -> None:
        """Tell a person that something may not be what they want."""
        self._stderr.write(f"torus: warning: {text}\n")

    def error(self, error: TorusError) -> None:
        """Say why the command failed and what can be done."""
        if self.as_json:
            body = {
                "code": error.code,
                "message": error.message,
                "hint": error.hint,
                "exit_code": error.exit_code,
            }
            self._stderr.write(json.dumps({"format": JSON_FORMAT, "error": body}) + "\n")
            return
        self._stderr.write(f"torus: {error.message}\n")
        if error.hint:
            self._stderr.write(f"hint: {error.hint}\n")

    def is_rich(self) -> bool:
        """Say whether results are read by a person on a terminal that can draw."""
        return _is_terminal(self._stdout) and self._environment.get("TERM") != "dumb"

    def is_coloured(self) -> bool:
        """Say whether results may have colours: a terminal, and NO_COLOR is not set."""
        return self.is_rich() and not self._environment.get("NO_COLOR")

    def flush(self) -> None:
        """Write out what is buffered.  Raises: OSError when the reader or its disk refuses."""
        self._stdout.flush()


def _draw(
    columns: Sequence[str], rows: Sequence[Sequence[str]], stdout: TextIO, *, coloured: bool
) -> None:
    """Draw a table with rich, as wide as the terminal; without colours there is no escape."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left"
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=stdout, color_system="auto" if coloured else None).print(table)


def _is_terminal(stream: TextIO) -> bool:
    return not stream.closed and stream.isatty()
