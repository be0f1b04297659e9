"""Bytes of a lost shard, made of the columns of others that lie in files of this host.

Decides nothing about whose bytes are right: what was made counts when it passes the caller's
check, against the map's checksums; what does not is read the long way, with the shards' own
tables (`torus.cluster.sharded_reads`).  So no table is read here, nobody is asked, and nothing is
waited for.  Implements docs/replication.md, "Reading shards".
"""

from collections.abc import Callable
from typing import Protocol

from torus.cluster.shard_places import Content, Placed, Read, ShardPlaces
from torus.format.shard import COLUMN_BYTES, PAYLOAD_OFFSET
from torus.ids import ChunkId, shard_id, whole_id
from torus.redundancy.codec import codec
from torus.redundancy.scheme import erasure
from torus.redundancy.stripe import Piece, Stripe
from torus.store.content import FIRST

_KNOWN_MAX = 1 << 18  # shards whose place is remembered

Address = Callable[[ChunkId, str], int | None]
"""Returns where a part lies on a disk; None: not to be had, or not known yet."""


class Files(Protocol):
    """What `torus.cluster.nearby.NearbyFiles` does."""

    def read(self, address: int, size: int) -> bytes | None:
        """Return bytes that are there without waiting."""


class NearColumns:
    """The shards of one volume's chunks in files of this host."""

    def __init__(self, files: Files, address: Address, places: ShardPlaces) -> None:
        self._files = files
        self._address = address
        self._places = places
        self._known: dict[ChunkId, int] = {}

    def read(self, read: Read, placed: Placed, check: Callable[[bytes], bool]) -> bytes | None:
        """Return a piece that passes the check; None: it takes the long way.

        ``placed``: who has which shard, of those that can be asked.
        """
        chunk, offset, size = read
        stripe, disks = placed
        shards = self._places.get(chunk)
        content = None if shards is None else shards.content  # not known: all of it is stored
        if offset < FIRST or offset - FIRST + size > stripe.content_bytes_max:
            return None
        found = []
        for piece in stripe.locate(offset - FIRST, size):
            data = self._stored(chunk, stripe, piece, disks.get(piece.shard), content)
            if data is None:
                data = self._made(chunk, placed, piece, content)
            if data is None:
                return None
            found.append(data)
        whole = b"".join(found)
        if check(whole):
            return whole
        self._known = {one: at for one, at in self._known.items() if whole_id(one) != chunk}
        return None

    def _made(
        self, chunk: ChunkId, placed: Placed, wanted: Piece, content: Content | None
    ) -> bytes | None:
        """Return columns of a shard, rebuilt from those of K others."""
        stripe, disks = placed
        numbers: list[int] = []
        columns: list[bytes] = []
        for number in range(stripe.shards):
            if number == wanted.shard:
                continue
            piece = Piece(number, wanted.offset, wanted.size_bytes)
            data = self._stored(chunk, stripe, piece, disks.get(number), content)
            if data is None:
                continue
            numbers.append(number)
            columns.append(data)
            if len(numbers) == stripe.data:
                made = bytearray(wanted.size_bytes)
                code = codec(erasure(stripe.data, stripe.parity))
                code.rebuild(numbers, columns, [wanted.shard], [made])
                return bytes(made)
        return None

    def _stored(
        self, chunk: ChunkId, stripe: Stripe, piece: Piece, disk: str | None,
        content: Content | None,
    ) -> bytes | None:  # fmt: skip
        """Return columns of a shard as they are stored, with the zeroes that are not."""
        size = piece.size_bytes
        if content is not None:
            stored = stripe.stored_bytes(piece.shard, content.end - FIRST)
            size = min(size, max(0, -(-stored // COLUMN_BYTES) * COLUMN_BYTES - piece.offset))
        if not size:
            return bytes(piece.size_bytes)
        if disk is None:
            return None
        part = shard_id(chunk, piece.shard)
        address = self._known.get(part)
        if address is None:
            address = self._address(part, disk)
            if address is None:
                return None
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[part] = address
        data = self._files.read(address + PAYLOAD_OFFSET + piece.offset, size)
        return None if data is None else data.ljust(piece.size_bytes, b"\0")
