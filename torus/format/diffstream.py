"""A backup stream: how one snapshot of a volume differs from another, or from nothing.

Decides the bytes and what makes them believable: every frame's checksum goes on from that of
the frame before, so that a frame which is missing, doubled, moved or from another stream is
found, and a trailer tells the end from a cut.  Reads and writes nothing.

Implements docs/diffstream.md.
"""

import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torus import limits
from torus._fast.crc import checksum
from torus.errors import Corruption, UnknownVersion

MAGIC = b"TORUSDIF"
VERSION = 1
DATA, ZERO, END = 1, 2, 3  # kinds of frames
PREAMBLE = struct.Struct("<8sHHI")
FRAME = struct.Struct("<HHIQQI")
TRAILER = struct.Struct("<QQQ")
_CRC = struct.Struct("<I")
_CRC_AT = FRAME.size - _CRC.size
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # of volumes and snapshots
_UID = re.compile(r"[0-9A-Za-z-]{1,64}")


@dataclass(frozen=True, slots=True)
class SnapshotName:
    """A snapshot as a stream names it: the uid says which content, the name is for people."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class StreamHeader:
    """What a stream changes into what; sizes in bytes."""

    volume: str  # for people: the target may be called otherwise
    cluster_id: str
    size_bytes: int  # of ``to``
    created_ns: int  # of ``to``
    base: SnapshotName | None  # None: the stream holds all of ``to``
    to: SnapshotName

    def pack(self) -> bytes:
        """Return the stream's first bytes."""
        body = _canonical(self)
        head = PREAMBLE.pack(MAGIC, VERSION, 0, len(body)) + body
        return head + _CRC.pack(checksum(head))


@dataclass(frozen=True, slots=True)
class Frame:
    """A changed range: its bytes, or None where it became zeroes.  Multiples of 512 bytes."""

    offset: int
    length: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Trailer:
    """What the stream held in all."""

    frames: int
    data_bytes: int
    zero_bytes: int


class Encoder:
    """Makes the bytes of one stream; ranges come in ascending order and do not overlap."""

    def __init__(self, header: StreamHeader) -> None:
        self._header = header
        self._totals = Trailer(0, 0, 0)
        self._chain = 0
        self.reached = 0  # the end of the last range

    @classmethod
    def after(cls, decoder: "Decoder") -> "Encoder":
        """Go on behind the last whole frame that a decoder saw."""
        if decoder.header is None:
            raise ValueError("the decoder has not seen a header")
        encoder = cls(decoder.header)
        encoder._totals, encoder._chain = decoder.totals, decoder.chain
        encoder.reached = decoder.reached
        return encoder

    def begin(self) -> bytes:
        """Return the header's bytes."""
        packed = self._header.pack()
        (self._chain,) = _CRC.unpack(packed[-_CRC.size :])
        return packed

    def frame(self, offset: int, length: int, data: bytes | None) -> bytes:
        """Return what stands before ``data`` in the stream.

        Raises: ValueError for a range that the format does not allow.
        """
        kind = ZERO if data is None else DATA
        problem = _range_problem(kind, offset, length, self.reached, self._header.size_bytes)
        if data is not None and len(data) != length:
            problem = f"{len(data)} bytes for a range of {length}"
        if problem:
            raise ValueError(problem)
        self.reached = offset + length
        self._totals = _counted(self._totals, kind, length)
        return self._seal(kind, offset, length, data or b"")

    def end(self) -> bytes:
        """Return the stream's last bytes."""
        totals = self._totals
        payload = TRAILER.pack(totals.frames, totals.data_bytes, totals.zero_bytes)
        return self._seal(END, self._header.size_bytes, 0, payload) + payload

    @property
    def totals(self) -> Trailer:
        """What was encoded up to now."""
        return self._totals

    def _seal(self, kind: int, offset: int, length: int, payload: bytes) -> bytes:
        head = FRAME.pack(kind, 0, len(payload), offset, length, 0)[:_CRC_AT]
        self._chain = checksum(payload, checksum(head, self._chain))
        return head + _CRC.pack(self._chain)


class Decoder:
    """Reads one stream, piece by piece: give `take` exactly ``wanted`` bytes, until that is 0.

    ``wanted`` is bounded by the format whatever the stream says.  What is returned has been
    checked; ``position`` is the end of the last whole header, frame or trailer.
    """

    def __init__(self, where: str) -> None:
        self.header: StreamHeader | None = None
        self.totals = Trailer(0, 0, 0)
        self.chain = 0
        self.reached = 0
        self.position = 0
        self.wanted = PREAMBLE.size
        self._where = where
        self._preamble = b""
        self._frame = b""  # the head of the frame whose payload is due

    def take(self, data: bytes) -> StreamHeader | Frame | Trailer | None:
        """Return what ``data`` completes, if anything.

        Raises: Corruption, also when ``data`` is shorter than ``wanted`` because the stream
            ended; UnknownVersion.
        """
        if len(data) > self.wanted:
            raise self._wrong("there are bytes behind its end")
        if self._at == 0 and not MAGIC.startswith(data[: len(MAGIC)]):
            raise Corruption(
                f"{self._where} is not a torus backup stream (it begins with {data[:8]!r})",
                hint="'torus volume import' takes raw images",
            )
        if len(data) < self.wanted:
            raise Corruption(
                f"{self._where} is cut off: {self.wanted} more bytes belong behind byte "
                f"{self._at}, {len(data)} are there",
                hint="copy or export it again; 'torus volume export-diff --resume' goes on "
                "with a partial file",
            )
        if self._frame:
            return self._take_payload(data)
        if self.header is not None:
            return self._take_frame(data)
        if self._preamble:
            return self._take_header(data)
        self._take_preamble(data)
        return None

    @property
    def _at(self) -> int:
        return self.position + len(self._preamble) + len(self._frame)

    def _wrong(self, what: str) -> Corruption:
        return Corruption(
            f"{self._where}: {what} (at byte {self._at})",
            hint="the stream is damaged: copy or export it again",
        )

    def _take_preamble(self, data: bytes) -> None:
        _, version, zero, size = PREAMBLE.unpack(data)
        if version != VERSION:
            raise UnknownVersion(
                f"{self._where} has format {version}, this torus knows {VERSION}",
                hint="use the torus release that wrote it, or a newer one",
            )
        if zero or not 0 < size <= limits.BACKUP_HEADER_BYTES_MAX:
            raise self._wrong(f"its header cannot have {size} bytes")
        self._preamble = data
        self.wanted = size + _CRC.size

    def _take_header(self, data: bytes) -> StreamHeader:
        body, (crc,) = data[: -_CRC.size], _CRC.unpack(data[-_CRC.size :])
        found = checksum(self._preamble + body)
        if found != crc:
            raise self._wrong(f"its header is damaged: checksum {crc:08x}, found {found:08x}")
        try:
            self.header = _parse_header(body)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise self._wrong(f"its header says what it cannot: {exc}") from exc
        self.position = len(self._preamble) + len(data)
        self._preamble = b""
        self.chain = crc
        self.wanted = FRAME.size
        return self.header

    def _take_frame(self, data: bytes) -> Frame | Trailer | None:
        assert self.header is not None
        kind, zero, size, offset, length, _ = FRAME.unpack(data)
        expected = {DATA: length, ZERO: 0, END: TRAILER.size}.get(kind, -1)
        problem = _range_problem(kind, offset, length, self.reached, self.header.size_bytes)
        if kind == END:
            fits = (offset, length) == (self.header.size_bytes, 0)
            problem = "" if fits else f"a trailer for {offset} bytes"
        if zero or size != expected:
            problem = f"a frame of kind {kind} with {size} bytes for {length}"
        if problem:
            raise self._wrong(problem)
        self._frame = data
        self.wanted = size
        return self._take_payload(b"") if size == 0 else None

    def _take_payload(self, data: bytes) -> Frame | Trailer:
        kind, _, _, offset, length, stored = FRAME.unpack(self._frame)
        chain = checksum(data, checksum(self._frame[:_CRC_AT], self.chain))
        if chain != stored:
            raise self._wrong(
                f"the frame for byte {offset} of the volume is damaged or does not follow the "
                f"one before it: checksum {stored:08x}, found {chain:08x}"
            )
        if kind == END:
            trailer = Trailer(*TRAILER.unpack(data))
            if trailer != self.totals:
                raise self._wrong(f"its trailer says {trailer}, it held {self.totals}")
        self.position += len(self._frame) + len(data)
        self._frame = b""
        if kind == END:
            self.wanted = 0
            return trailer
        self.chain, self.reached, self.wanted = chain, offset + length, FRAME.size
        self.totals = _counted(self.totals, kind, length)
        return Frame(offset, length, data if kind == DATA else None)


def items(
    decoder: Decoder, read: Callable[[int], bytes]
) -> Iterator[StreamHeader | Frame | Trailer]:
    """Yield what a stream holds; the trailer comes last and only when nothing follows it.

    ``read`` returns as many bytes as it is asked for, fewer only where the stream ends.

    Raises: Corruption, UnknownVersion, what ``read`` raises.
    """
    while decoder.wanted:
        item = decoder.take(read(decoder.wanted))
        if decoder.wanted == 0 and (more := read(1)):
            decoder.take(more)
        if item is not None:
            yield item


def _counted(totals: Trailer, kind: int, length: int) -> Trailer:
    data, zero = (length, 0) if kind == DATA else (0, length)
    return Trailer(totals.frames + 1, totals.data_bytes + data, totals.zero_bytes + zero)


def _range_problem(kind: int, offset: int, length: int, reached: int, size_bytes: int) -> str:
    """Return what is wrong with a range; empty when nothing is."""
    longest = limits.BACKUP_FRAME_BYTES_MAX if kind == DATA else size_bytes
    if not 0 < length <= longest:
        return f"a range cannot have {length} bytes"
    if offset % limits.SECTOR_BYTES or length % limits.SECTOR_BYTES:
        return f"bytes {offset}+{length} are no whole sectors"
    if offset < reached:
        return f"a range at byte {offset} follows one that ends at {reached}"
    if offset + length > size_bytes:
        return f"bytes {offset}+{length} are outside the {size_bytes} bytes of the volume"
    return ""


def _canonical(header: StreamHeader) -> bytes:
    def pair(name: SnapshotName) -> dict[str, str]:
        return {"name": name.name, "uid": name.uid}

    body = {
        "volume": header.volume,
        "cluster": header.cluster_id,
        "size_bytes": header.size_bytes,
        "created_ns": header.created_ns,
        "from": None if header.base is None else pair(header.base),
        "to": pair(header.to),
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _parse_header(body: bytes) -> StreamHeader:
    """Raises: ValueError, KeyError, TypeError, AttributeError."""
    fields = json.loads(body)
    base = fields["from"]
    header = StreamHeader(
        _text(fields["volume"], _NAME),
        _text(fields["cluster"], _UID),
        _number(fields["size_bytes"]),
        _number(fields["created_ns"]),
        None if base is None else _snapshot_name(base),
        _snapshot_name(fields["to"]),
    )
    size = header.size_bytes
    if not limits.VOLUME_BYTES_MIN <= size <= limits.VOLUME_BYTES_MAX or size % 512:
        raise ValueError(f"a volume cannot have {size} bytes")
    if _canonical(header) != body:
        raise ValueError("it is not written as torus writes it")
    return header


def _snapshot_name(fields: dict[str, Any]) -> SnapshotName:
    return SnapshotName(_text(fields["name"], _NAME), _text(fields["uid"], _UID))


def _text(value: object, allowed: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not allowed.fullmatch(value):
        raise ValueError(f"{value!r} is no name")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is no number")
    return value
