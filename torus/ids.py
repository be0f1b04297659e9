"""Identities: what names a chunk, a volume, a snapshot.  Never reused, never rewritten."""

import re
import struct
from typing import NamedTuple

from torus.errors import LocalProtocolError, UsageError

PARTS_MAX = 22  # shards of a chunk: K + M at most
VOLUME_ID_BITS = 56  # a volume's id is below 2**56; the byte above it says which part of a chunk
_VOLUME_MASK = (1 << VOLUME_ID_BITS) - 1
_CHUNK_ID = struct.Struct("<QIHI")
CHUNK_ID_SIZE = _CHUNK_ID.size
NAME_CHARACTERS_MAX = 128  # of a volume's name and of a snapshot's
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ChunkId(NamedTuple):
    """One chunk of one volume's log: 4 MiB of it, never reused, never rewritten once sealed.

    It names a whole copy of the chunk, or one shard of it: the top byte of ``volume`` is 0 or
    one more than the shard's number.  A tuple, because it is a dictionary key on the way of
    every write.
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
        part = self.volume >> VOLUME_ID_BITS
        shard = f"#{part - 1}" if part else ""
        return f"{self.volume & _VOLUME_MASK}:{self.epoch}.{self.tag}:{self.sequence}{shard}"


def shard_id(chunk: ChunkId, number: int) -> ChunkId:
    """Return the id of the shard ``number`` of ``chunk``, which is a whole one's."""
    assert 0 <= number < PARTS_MAX
    assert chunk.volume <= _VOLUME_MASK
    return ChunkId(number + 1 << VOLUME_ID_BITS | chunk.volume, *chunk[1:])


def split_part(part: ChunkId) -> tuple[ChunkId, int | None]:
    """Return the chunk, and the shard's number; None for a whole copy.

    Raises: LocalProtocolError when it names neither.
    """
    kind = part.volume >> VOLUME_ID_BITS
    if not kind:
        return part, None
    if kind > PARTS_MAX:
        raise LocalProtocolError(
            f"chunk {part} names no part of a chunk: shards have numbers below {PARTS_MAX}"
        )
    return whole_id(part), kind - 1


def is_shard(part: ChunkId) -> bool:
    """Tell whether ``part`` names a shard of a chunk, not a whole copy."""
    return part.volume > _VOLUME_MASK


def whole_id(part: ChunkId) -> ChunkId:
    """Return the chunk that ``part`` is a shard of, or itself."""
    return part if part.volume <= _VOLUME_MASK else ChunkId(volume_of(part), *part[1:])


def volume_of(part: ChunkId) -> int:
    """Return the id of the volume that a chunk or a shard belongs to."""
    return part.volume & _VOLUME_MASK


def check_volume_name(name: str) -> str:
    """Return ``name`` if it may name a volume.

    Raises: UsageError naming the first character that is not allowed.
    """
    return _check_name("volume", name)


def check_snapshot_name(name: str) -> str:
    """Return ``name``, without its volume's, if it may name a snapshot.

    Raises: UsageError naming the first character that is not allowed.
    """
    return _check_name("snapshot", name)


def split_snapshot(text: str) -> tuple[str, str]:
    """Return the volume's and the snapshot's name in ``VOLUME@SNAPSHOT``.

    Raises: UsageError when there is not exactly one '@' or a name is not legal.
    """
    volume, found, snapshot = text.partition("@")
    if not found:
        raise UsageError(
            f"{text!r} names no snapshot: there is no '@' in it",
            hint="write VOLUME@SNAPSHOT, like vm1@monday",
        )
    return check_volume_name(volume), check_snapshot_name(snapshot)


def join_snapshot(volume: str, snapshot: str) -> str:
    """Return how people write a snapshot: ``VOLUME@SNAPSHOT``."""
    return f"{volume}@{snapshot}"


def _check_name(what: str, name: str) -> str:
    if _NAME.fullmatch(name):
        return name
    if not name:
        reason = "it is empty"
    elif len(name) > NAME_CHARACTERS_MAX:
        reason = f"it has {len(name)} characters, more than {NAME_CHARACTERS_MAX}"
    else:
        first = re.fullmatch(r"[A-Za-z0-9]", name[0]) is not None
        bad = next(c for c in name if not re.fullmatch(r"[A-Za-z0-9._-]", c)) if first else name[0]
        reason = f"{bad!r} is not allowed" + ("" if first else " at its start")
    raise UsageError(
        f"{what} name {name!r} cannot be used: {reason}",
        hint="use letters, digits, '.', '_' and '-', beginning with a letter or a digit",
    )
