"""The payload of root and head records: a checkpoint's root with copies of spec and head.

The copies are what `torus recover` rebuilds lost metadata from; with the place where replay
begins, a root record says all that the reference to it says.  Implements docs/format.md, "Root
and head records".
"""

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from torus import limits
from torus.errors import Corruption, UnknownVersion

FIXED = struct.Struct("<4sHHIIIQIIII")
MAGIC = b"TROO"
VERSION = 1
_LIST_BYTES_MAX = limits.SNAPSHOTS_MAX * 4 * limits.KIB


@dataclass(frozen=True, slots=True)
class RootPayload:
    """``root`` is the map's root page, empty in a head record; spec and head are JSON values.

    The numbers are those of `torus.metadata.schema.RootRef`: the last lsn that the map holds,
    and the place of the record after it.  They are 0 in a head record.  ``snapshots`` is a packed
    list of the volume's snapshots; one that this very record makes has a root of zeroes there.
    """

    root: bytes
    spec: bytes
    head: bytes
    lsn: int = 0
    replay_sequence: int = 0
    replay_offset: int = 0
    replay_index: int = 0
    snapshots: bytes = b""

    def pack(self) -> bytes:
        """Return the payload, a multiple of 512 bytes."""
        fixed = FIXED.pack(
            MAGIC, VERSION, 0, len(self.root), len(self.spec), len(self.head),
            self.lsn, self.replay_sequence, self.replay_offset, self.replay_index,
            len(self.snapshots),
        )  # fmt: skip
        body = fixed + self.root + self.spec + self.head + self.snapshots
        return body + bytes(-len(body) % limits.RECORD_ALIGN_BYTES)

    @classmethod
    def unpack(cls, data: bytes, where: str) -> "RootPayload":
        """Read a payload; its bytes were checked by the record's checksums.

        Raises: Corruption, UnknownVersion.
        """
        if len(data) < FIXED.size:
            raise Corruption(f"{where}: root record of {len(data)} bytes is too short")
        fields = FIXED.unpack_from(data)
        magic, version, _, root, spec, head, lsn, sequence, offset, index, snapshots = fields
        end = FIXED.size + root + spec + head + snapshots
        if magic != MAGIC or end > len(data):
            raise Corruption(f"{where}: not a root record (magic {magic!r}, {end} bytes named)")
        if version != VERSION:
            raise UnknownVersion(
                f"{where}: root record format {version}, this torus knows {VERSION}",
                hint="use the torus release that wrote it, or a newer one",
            )
        start = FIXED.size
        return cls(
            data[start : start + root],
            data[start + root : start + root + spec],
            data[start + root + spec : end - snapshots],
            lsn,
            sequence,
            offset,
            index,
            data[end - snapshots : end],
        )


def pack_list(values: Sequence[bytes]) -> bytes:
    """Return JSON values as one compressed list; nothing for none."""
    return zlib.compress(b"[" + b",".join(values) + b"]", 1) if values else b""


def unpack_list(data: bytes, where: str) -> list[object]:
    """Return the values of a packed list.

    Raises: Corruption.
    """
    if not data:
        return []
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(data, _LIST_BYTES_MAX)
        values = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as exc:
        raise Corruption(f"{where}: its list of snapshots cannot be read: {exc}") from exc
    if not unpacker.eof or not isinstance(values, list):
        raise Corruption(f"{where}: its list of snapshots is not a list that ends")
    return values
