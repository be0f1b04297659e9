"""Received bytes to frames, each byte copied at most once.

Small frames gather in one buffer; the body of a large one is received into a buffer of its own,
which is handed on with it.  Implements docs/protocol.md, "Frames".
"""

from typing import Any

from torus import limits
from torus._fast.peerframe import next_frame
from torus.wire.frames import BODY_BYTES_MAX, HEADER_BYTES, Header, parse_header
from torus.wire.messages import Buffer

_BUFFER_BYTES = 16 * limits.KIB
_BUFFER_BYTES_MAX = 256 * limits.KIB
_SMALL_BYTES = 16 * limits.KIB  # bodies up to this are copied out of the shared buffer


class Receiver:
    """The receiving half of a connection: `buffer`, then `received`, then `next_frame`."""

    def __init__(self) -> None:
        self._shared = bytearray(_BUFFER_BYTES)
        self._start = 0
        self._end = 0
        self._header: Header | None = None
        self._body: bytearray | None = None  # of a large frame
        self._filled = 0
        self.body_bytes_max = BODY_BYTES_MAX

    def buffer(self) -> memoryview:
        """Return where the next bytes go; never empty once `next_frame` has returned None."""
        if self._body is not None:
            return memoryview(self._body)[self._filled :]
        if self._start:
            left = self._end - self._start
            self._shared[:left] = self._shared[self._start : self._end]
            self._start, self._end = 0, left
        if self._end == len(self._shared) and self._end < _BUFFER_BYTES_MAX:
            self._shared = self._shared + bytes(3 * self._end)
        return memoryview(self._shared)[self._end :]

    def next_frequent(self) -> tuple[int, int, int, int, int, int, Any] | None:
        """Return the next frame as `torus._fast.peerframe.next_frame` does, if it is one for it.

        What it says of places is about `shared`, until the next `buffer`.
        """
        if self._header is not None:
            return None
        found = next_frame(self._shared, self._start, self._end, self.body_bytes_max)
        if found is not None:
            self._start = found[1]
        return found

    @property
    def shared(self) -> bytearray:
        """Where small frames are received."""
        return self._shared

    def received(self, count: int) -> None:
        """Take note that ``count`` bytes were written to `buffer`."""
        if self._body is not None:
            self._filled += count
        else:
            self._end += count

    @property
    def partial(self) -> bool:
        """True when bytes of a frame that is not complete are here."""
        return self._header is not None or self._end > self._start

    def next_frame(self) -> tuple[Header, Buffer] | None:
        """Return the next complete frame, its body owned by the caller; None when there is none.

        Raises: RemoteProtocolError, UnknownVersion.
        """
        header = self._header
        if header is None:
            if self._end - self._start < HEADER_BYTES:
                return None
            header = self._header = parse_header(self._shared, self._start, self.body_bytes_max)
            self._start += HEADER_BYTES
        if self._body is None:
            if not self._take_from_shared(header):
                return None
        elif self._filled < header.body_bytes:
            return None
        body, self._body = self._body, None
        self._header = None
        assert body is not None
        return header, body

    def _take_from_shared(self, header: Header) -> bool:
        """Move the frame's body out of the shared buffer; True when it is complete."""
        size = header.body_bytes
        there = min(size, self._end - self._start)
        if there < size <= _SMALL_BYTES:
            return False
        stop = self._start + there
        if there == size:
            self._body = self._shared[self._start : stop]
        else:
            self._body = bytearray(size)
            self._body[:there] = memoryview(self._shared)[self._start : stop]
        self._filled = there
        self._start = stop
        return there == size
