"""The payload of root and head records: a checkpoint's root with copies of spec and head.

The copies are what `torus recover` rebuilds lost metadata from.  Implements docs/format.md,
"Root and head records".
"""

import struct
from dataclasses import dataclass

from torus import limits
from torus.errors import Corruption

_LENGTHS = struct.Struct("<4sIII")
_MAGIC = b"TROO"


@dataclass(frozen=True, slots=True)
class RootPayload:
    """``root`` is the map's root page, empty in a head record; the others are JSON values."""

    root: bytes
    spec: bytes
    head: bytes

    def pack(self) -> bytes:
        """Return the payload, a multiple of 512 bytes."""
        lengths = _LENGTHS.pack(_MAGIC, len(self.root), len(self.spec), len(self.head))
        body = lengths + self.root + self.spec + self.head
        return body + bytes(-len(body) % limits.RECORD_ALIGN_BYTES)

    @classmethod
    def unpack(cls, data: bytes, where: str) -> "RootPayload":
        """Read a payload; its bytes were checked by the record's checksums.

        Raises: Corruption.
        """
        if len(data) < _LENGTHS.size:
            raise Corruption(f"{where}: root record of {len(data)} bytes is too short")
        magic, root, spec, head = _LENGTHS.unpack_from(data)
        end = _LENGTHS.size + root + spec + head
        if magic != _MAGIC or end > len(data):
            raise Corruption(f"{where}: not a root record (magic {magic!r}, {end} bytes named)")
        start = _LENGTHS.size
        return cls(
            data[start : start + root],
            data[start + root : start + root + spec],
            data[start + root + spec : end],
        )
