"""What every chunk of a simulated cluster should be, and whether the disks can still give it.

Knows the right content of each settled chunk from the first look on, which chunks their owners
deleted, and where somebody turned bits.  It decides

- that a chunk which upkeep takes a part of has as many good parts left, durably, as the least
  redundancy of its volume asks for, less those that rotted and were not found yet;
- that every chunk can be had at any time;
- how the chunks of a volume have to lie when nothing happens any more.
"""

import random
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

from torus import limits
from torus.ids import ChunkId, shard_id, split_part, whole_id
from torus.metadata.keys import VOLUMES
from torus.redundancy.scheme import Scheme
from torus.store.content import FIRST, walk
from torus.testing.simnode import SimDrive
from torus.testing.simparts import DriveParts, flip
from torus.testing.simstore import SimMetadataServer
from torus.testing.simview import Authority
from torus.upkeep.heads import read_logs
from torus.upkeep.plan import Log, closed_spans, settled_spans
from torus.upkeep.shard_content import fits, make_shard

Part = tuple[str, ChunkId]  # disk, part


@dataclass(eq=False, slots=True)
class Known:
    """The right content of a settled chunk, and its shards as they are asked for."""

    chunk: ChunkId
    content: bytes
    slot_bytes: int
    _shards: dict[Scheme, list[bytes]] = field(default_factory=dict)

    def fits(self, scheme: Scheme) -> bool:
        """Say whether it can be cut."""
        return fits(FIRST + len(self.content), scheme, self.slot_bytes)

    def shards(self, scheme: Scheme) -> list[bytes]:
        """Return its shards as they travel; none where it does not fit."""
        found = self._shards.get(scheme)
        if found is None:
            numbers = range(scheme.shards if self.fits(scheme) else 0)
            found = self._shards[scheme] = [
                make_shard(self.chunk, self.content, scheme, number, self.slot_bytes)
                for number in numbers
            ]
        return found


@dataclass(frozen=True, slots=True)
class Rot:
    """Bits that somebody turned."""

    disk: str
    part: ChunkId
    offset: int  # in the part
    right: bytes  # what should lie behind the part's header


class Truth:
    """All of it, for one life."""

    def __init__(
        self, metadata: SimMetadataServer, authority: Authority, wrong: Callable[[str], None]
    ) -> None:
        self._metadata = metadata
        self._authority = authority
        self._wrong = wrong
        self.drives: dict[str, DriveParts] = {}
        self.known: dict[ChunkId, Known] = {}
        self.deleted: set[ChunkId] = set()
        self.rots: list[Rot] = []
        self.drops = 0
        self._logs: dict[int, Log] = {}
        self._settled: dict[ChunkId, int | None] = {}  # settled chunks, and their exact ends
        self._revision = -1

    def add(self, drive: SimDrive) -> None:
        """Know one more disk."""
        self.drives[drive.disk_id] = DriveParts(drive)

    # --- what the metadata says -----------------------------------------------------------

    def look(self) -> None:
        """Learn what has come to rest since the last look."""
        listing = self._metadata.content.list(VOLUMES)
        if listing.revision != self._revision:
            self._revision = listing.revision
            self._logs = {log.volume: log for log in read_logs(listing.entries)}
            self._settled = {
                chunk: exact for log in self._logs.values() for chunk, exact in _settled(log)
            }
        for chunk, exact in self._settled.items():
            if chunk not in self.known and chunk not in self.deleted:
                self._learn(chunk, exact)

    def _learn(self, chunk: ChunkId, exact: int | None) -> None:
        """Take the longest copy for right: nobody has turned bits of a chunk that is not known."""
        best, slot_bytes = b"", 0
        for parts in self.drives.values():
            content = parts.content(chunk)
            if content is not None:
                slot_bytes = parts.drive.geometry.slot_bytes
                data = content if exact is None else content[: exact - FIRST]
                whole = data[: walk(data, chunk).end - FIRST]
                best = max(best, whole, key=len)
        if best:
            self.known[chunk] = Known(chunk, best, slot_bytes)
            if exact is not None and FIRST + len(best) != exact:
                self._wrong(f"chunk {chunk} should end at {exact}, the longest copy at {len(best)}")

    def deleting(self, chunks: Iterable[ChunkId]) -> None:
        """Note that an owner deletes chunks: nobody needs them any more."""
        self.deleted.update(map(whole_id, chunks))

    def needed(self) -> Iterator[Known]:
        """Yield the chunks that have to be there."""
        self.look()
        for chunk in self._settled:
            if chunk in self.known and chunk not in self.deleted:
                yield self.known[chunk]

    def _schemes(self, chunk: ChunkId) -> tuple[Scheme, ...]:
        log = self._logs.get(chunk.volume)
        return () if log is None else log.schemes

    # --- what can be had ------------------------------------------------------------------

    def good_parts(self, known: Known, without: Collection[Part] = ()) -> dict[str, set[ChunkId]]:
        """Return the parts that are right, durably, on each disk."""
        wanted = [(known.chunk, known.content)]
        for scheme in self._schemes(known.chunk):
            shards = known.shards(scheme) if scheme.erasure else []
            wanted += [(shard_id(known.chunk, n), one) for n, one in enumerate(shards)]
        found: dict[str, set[ChunkId]] = {}
        for disk, parts in self.drives.items():
            for part, content in wanted:
                if (disk, part) not in without and parts.holds(part, content):
                    found.setdefault(disk, set()).add(part)
        return found

    def bearable(self, known: Known, without: Collection[Part] = ()) -> int:
        """Return how many disks have to be lost until a chunk is, or 0."""
        parts = self.good_parts(known, without)
        holders = {disk for disk, having in parts.items() if known.chunk in having}
        best = len(holders)
        for scheme in self._schemes(known.chunk):
            if not scheme.erasure:
                continue
            right = known.shards(scheme)
            numbers = {
                number
                for disk in parts.keys() - holders
                for number, one in enumerate(right)
                if self.drives[disk].holds(shard_id(known.chunk, number), one)
                and (disk, shard_id(known.chunk, number)) not in without
            }
            best = max(best, len(holders) + len(numbers) - scheme.data + 1)
        return best

    def dropping(self, disk: str, parts: Iterable[ChunkId]) -> None:
        """Judge what upkeep is about to take from a disk."""
        self.look()
        gone = [(disk, part) for part in parts]
        for _, part in gone:
            self.drops += 1
            chunk = whole_id(part)
            if self._is_open(chunk):
                self._wrong(f"upkeep takes part {part} of disk {disk[-2:]} before it is settled")
            known = self.known.get(chunk)
            if known is None or chunk in self.deleted or chunk not in self._settled:
                continue
            members = len({one.node_id for one in self._authority.ring.members})
            least = min(*(one.copies for one in self._schemes(chunk)), members)
            left = self.bearable(known, gone)
            if left < least - self.hurt(chunk):
                self._wrong(
                    f"upkeep takes part {part} of disk {disk[-2:]}: then {left} disks may be lost "
                    f"until chunk {chunk} is, {least} should be"
                )

    def _is_open(self, chunk: ChunkId) -> bool:
        log = self._logs.get(chunk.volume)
        spans = () if log is None else log.spans
        return chunk not in self._settled and any(
            span.last is None
            and (span.epoch, span.tag) == chunk[1:3]
            and chunk.sequence >= span.first
            for span in spans
        )

    def check(self) -> None:
        """See that every chunk that is needed can be had, whatever loses its power now."""
        for known in self.needed():
            if self.bearable(known) < 1:
                self._wrong(f"chunk {known.chunk} cannot be had any more: {self.show(known.chunk)}")

    # --- rot ------------------------------------------------------------------------------

    def hurt(self, chunk: ChunkId) -> int:
        """Return how many parts of a chunk rotted and are as they were then."""
        rotten = {(rot.disk, rot.part) for rot in self.rots
                  if whole_id(rot.part) == chunk and self.is_rotten(rot)}  # fmt: skip
        return len(rotten)

    def is_rotten(self, rot: Rot) -> bool:
        """Say whether a part that rotted is there and not right."""
        parts, chunk = self.drives[rot.disk], whole_id(rot.part)
        if parts.place(rot.part) is None or parts.holds(rot.part, rot.right):
            return False
        # A shard of another K+M has the same number, and may have taken its place.
        return rot.part not in self.good_parts(self.known[chunk]).get(rot.disk, ())

    def rot(self, rng: random.Random, *, whole: bool = False) -> Rot | None:
        """Turn bits of some part of a chunk that bears it; None: there is no such part.

        ``whole``: of a whole copy, of the newest chunk that has one.
        """
        chunks = sorted(self.needed(), key=lambda one: one.chunk)
        if whole:
            chunks.reverse()
        else:
            rng.shuffle(chunks)
        for known in chunks[:8]:
            good = self.good_parts(known)
            parts = sorted(
                (disk, part)
                for disk, some in good.items()
                for part in some
                if not whole or part == known.chunk
            )
            if not parts:
                continue
            disk, part = rng.choice(parts)
            if self.bearable(known, [(disk, part)]) >= 1:
                return self._turn(rng, known, disk, part)
        return None

    def _turn(self, rng: random.Random, known: Known, disk: str, part: ChunkId) -> Rot:
        drive, place = self.drives[disk].drive, self.drives[disk].place(part)
        assert place is not None
        right = known.content
        if split_part(part)[1] is not None:
            right = next(
                shards[number] for scheme in self._schemes(known.chunk) if scheme.erasure
                for number in [split_part(part)[1]]
                if number is not None and len(shards := known.shards(scheme)) > number
                and self.drives[disk].holds(part, shards[number])
            )  # fmt: skip
        if rng.random() < 0.15:
            offset = rng.randrange(limits.SLOT_HEADER_BYTES)
        else:
            offset = FIRST + rng.randrange(len(right))
        mask = rng.choice((0xFF, 1 << rng.randrange(8)))
        for image in (drive.durable(), drive.image):
            flip(image, drive.geometry, place.address + offset, mask)
        rot = Rot(disk, part, offset, right)
        self.rots.append(rot)
        return rot

    # --- how all lies in the end ------------------------------------------------------------

    def misplaced(self) -> list[str]:
        """Return what is not where and what it should be, in sentences; all nodes have to be
        up."""
        found = [
            f"part {rot.part} of disk {rot.disk[-2:]} rotted at {rot.offset} and was not repaired"
            for rot in self.rots
            if whole_id(rot.part) not in self.deleted and self.is_rotten(rot)
        ]
        for known in self.needed():
            problem = self._misplaced(known)
            if problem:
                found.append(f"chunk {known.chunk} {problem}: {self.show(known.chunk)}")
        return found

    def _misplaced(self, known: Known) -> str:
        log = self._logs[known.chunk.volume]
        scheme, chunk = log.scheme, known.chunk
        ring = self._authority.ring
        there = self._parts_of(chunk)
        shards = scheme.erasure and known.fits(scheme)
        owners = [one.disk_id for one in ring.owners(chunk, scheme.shards if shards else
                                                      scheme.copies)]  # fmt: skip
        if shards and len(owners) < scheme.shards:
            return ""
        if sorted(there) != sorted(owners):
            return f"should lie on {[one[-2:] for one in owners]}"
        if not shards:
            good = all(
                some == {None} and self.drives[disk].holds(chunk, known.content)
                for disk, some in there.items()
            )
            return "" if good else "should lie there in whole copies"
        numbers = sorted(-1 if one is None else one for some in there.values() for one in some)
        if numbers != list(range(scheme.shards)) or any(len(one) > 1 for one in there.values()):
            return f"should have {scheme.shards} shards, one on each disk"
        right = known.shards(scheme)
        for disk, some in there.items():
            for number in some:
                assert number is not None
                if not self.drives[disk].holds(shard_id(chunk, number), right[number]):
                    return f"has a wrong shard {number} on disk {disk[-2:]}"
        return ""

    def _parts_of(self, chunk: ChunkId) -> dict[str, set[int | None]]:
        found: dict[str, set[int | None]] = {}
        for disk, parts in self.drives.items():
            for part in (chunk, *(shard_id(chunk, number) for number in range(8))):
                if parts.place(part) is not None:
                    found.setdefault(disk, set()).add(split_part(part)[1])
        return found

    def show(self, chunk: ChunkId) -> str:
        """Return what lies where of a chunk, for people."""
        known = self.known[chunk]
        good = self.good_parts(known)
        texts = []
        for disk, some in sorted(self._parts_of(chunk).items()):
            names = []
            for part in sorted(some, key=lambda one: -1 if one is None else one):
                one = chunk if part is None else shard_id(chunk, part)
                bad = "" if one in good.get(disk, ()) else "!"
                names.append(f"{'whole' if part is None else part}{bad}")
            texts.append(f"{disk[-2:]}: {' '.join(names)}")
        return f"{len(known.content)} bytes; " + ", ".join(texts)


def _settled(log: Log) -> Iterator[tuple[ChunkId, int | None]]:
    """Yield the chunks of a log that upkeep may move."""
    for closed in settled_spans(log) if log.sharded else closed_spans(log):
        for sequence in range(closed.span.first, closed.last + 1):
            yield closed.chunk(log.volume, sequence), closed.exact(sequence)
