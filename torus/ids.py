"""Identities: what names a chunk, a disk, a volume.  Never reused, never rewritten."""

import re
import struct
from typing import NamedTuple

from torus.errors import UsageError

_CHUNK_ID = struct.Struct("<QIHI")
CHUNK_ID_SIZE = _CHUNK_ID.size
_VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ChunkId(NamedTuple):
    """One chunk of one volume's log: 4 MiB of it, never reused, never rewritten once sealed.

    A tuple, because it is a dictionary key on the way of every write.
    """

    volume: int
    epoch: int
    tag: int
    sequence: int

    def pack(self) -> bytes:
        """Return the 18 bytes of docs/format.md, little endian."""
        return _CHUNK_ID.pack(*self)

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> "ChunkId":
        """Read the 18 bytes at ``offset``."""
        return cls(*_CHUNK_ID.unpack_from(data, offset))

    def __str__(self) -> str:
        return f"{self.volume}:{self.epoch}.{self.tag}:{self.sequence}"


def check_volume_name(name: str) -> str:
    """Return ``name`` if it may name a volume.

    Raises: UsageError naming the first character that is not allowed.
    """
    if _VOLUME_NAME.fullmatch(name):
        return name
    if not name:
        reason = "it is empty"
    elif len(name) > 128:
        reason = f"it has {len(name)} characters, more than 128"
    else:
        allowed = re.compile(r"[A-Za-z0-9]" if not name[0].isalnum() else r"[A-Za-z0-9._-]")
        bad = next((c for c in name if not allowed.fullmatch(c)), name[0])
        reason = f"{bad!r} is not allowed" + (" at its start" if bad == name[0] else "")
    raise UsageError(
        f"volume name {name!r} cannot be used: {reason}",
        hint="use letters, digits, '.', '_' and '-', beginning with a letter or a digit",
    )
