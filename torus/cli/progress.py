"""How far a long operation is: bytes, rate and time left, on a terminal's standard error only.

Decides what the line says and how often.  Without a terminal it says nothing: a log file full
of half lines helps nobody.

Implements docs/cli.md, "Progress".
"""

import sys
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TextIO

from torus.cli.sizes import format_seconds, format_size
from torus.clock import Clock, SystemClock

_REDRAW_NS = 100_000_000
_LINE_NS = 5_000_000_000  # on a dumb terminal: one whole line now and then
_WINDOW_NS = 5_000_000_000  # the rate is that of the last five seconds
_BAR_CELLS = 24


class ProgressLine:
    """One operation's progress; an instance is called with (bytes done, bytes in all)."""

    def __init__(
        self,
        label: str,
        environment: Mapping[str, str],
        *,
        stream: TextIO | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._clock = SystemClock() if clock is None else clock
        self._active = self._stream.isatty()
        self._dumb = environment.get("TERM") == "dumb"
        now_ns = self._clock.monotonic_ns()
        self._samples = deque([(now_ns, 0)])
        self._drawn_ns = now_ns
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __call__(self, done_bytes: int, total_bytes: int | None) -> None:
        """Show that ``done_bytes`` of ``total_bytes`` (None: unknown) are done."""
        if not self._active:
            return
        now_ns = self._clock.monotonic_ns()
        wait_ns = _LINE_NS if self._dumb else _REDRAW_NS
        if now_ns - self._drawn_ns < wait_ns and done_bytes != total_bytes:
            return
        self._samples.append((now_ns, done_bytes))
        while len(self._samples) > 2 and now_ns - self._samples[0][0] > _WINDOW_NS:
            self._samples.popleft()
        self._drawn_ns = now_ns
        self._drawn = True
        text = self._text(done_bytes, total_bytes)
        self._stream.write(text + "\n" if self._dumb else f"\r{text}\x1b[K")
        self._stream.flush()

    def close(self) -> None:
        """End the line, so that what follows begins on its own; idempotent."""
        if self._drawn and not self._dumb:
            self._stream.write("\n")
            self._stream.flush()
        self._drawn = False
        self._active = False

    def _text(self, done_bytes: int, total_bytes: int | None) -> str:
        (first_ns, first_bytes), (final_ns, _) = self._samples[0], self._samples[-1]
        elapsed_s = max((final_ns - first_ns) / 1e9, 1e-9)
        rate = (done_bytes - first_bytes) / elapsed_s if final_ns > first_ns else 0.0
        parts = [self._label]
        if total_bytes:
            share = min(done_bytes / total_bytes, 1.0)
            cells = int(share * _BAR_CELLS)
            parts.append(f"[{'#' * cells}{'.' * (_BAR_CELLS - cells)}] {share:4.0%}")
            parts.append(f"{format_size(done_bytes)} of {format_size(total_bytes)}")
        else:
            parts.append(format_size(done_bytes))
        parts.append(f"{format_size(int(rate))}/s")
        if total_bytes and rate > 0 and done_bytes < total_bytes:
            parts.append(f"{format_seconds((total_bytes - done_bytes) / rate)} left")
        return "  ".join(parts)
