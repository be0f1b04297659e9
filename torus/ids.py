"""Identities: what names a chunk, a volume, a snapshot.  Never reused, never rewritten."""

import re
import struct
from typing import NamedTuple

from torus.errors import UsageError

_CHUNK_ID = struct.Struct("<QIHI")
CHUNK_ID_SIZE = _CHUNK_ID.size
NAME_CHARACTERS_MAX = 128  # of a volume's name and of a snapshot's
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


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
