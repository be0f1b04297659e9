"""Finding out what a disk has to do about a volume whose chunks may lie in shards.

Carries out `torus.upkeep.shard_plan`, a piece of a span at a time: others' lists are fetched when
something here is not as it should be by itself.  Decides what has to wait for disks that are
silent, and that it is not looked at again before one is back.
"""

import asyncio
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from torus import limits
from torus.cluster.local import LocalChunks
from torus.errors import TorusError
from torus.format.shard import DESCRIPTOR_BYTES, Descriptor
from torus.ids import ChunkId, shard_id, split_part, volume_of, whole_id
from torus.store.appender import Slot
from torus.store.content import FIRST
from torus.store.store import Store
from torus.upkeep.found import Found, Picture
from torus.upkeep.plan import (
    Closed,
    Log,
    Verdict,
    is_degraded,
    judge,
    may_witness,
    settled_spans,
)
from torus.upkeep.shard_content import fits
from torus.upkeep.shard_plan import (
    NOTHING,
    Goal,
    Part,
    PartSurplus,
    PartWant,
    by_chunk,
    chances,
    decide,
    goal,
    part_id,
    questions,
)
from torus.upkeep.survey import Survey

Piece = tuple[int, tuple[int, int, int, int | None]]
_LONG_MAX = 1 << 20


@dataclass(slots=True)
class _Asked:
    """What a round knows of one volume."""

    picture: Picture
    log: Log
    here: dict[ChunkId, frozenset[Part]]
    foreign: dict[ChunkId, set[Part]] = field(default_factory=dict)  # here, of another K+M
    lists: dict[str, AbstractSet[ChunkId]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Known:
    """What lists say of one chunk."""

    parts: dict[str, frozenset[Part]]  # of every disk that answered and has some, and of this one
    silent: list[str]  # who may have some, and did not answer


class ShardSurvey:
    """Looks at volumes whose chunks may lie in shards, for one disk."""

    def __init__(self, store: Store, chunks: LocalChunks, survey: Survey) -> None:
        """``survey``: that of the same disk, whose conclusions this one shares."""
        self._store = store
        self._chunks = chunks
        self._survey = survey
        self._disk = store.identity.disk_id
        self._asleep: dict[Piece, Found] = {}  # nothing to be done until somebody is back
        self._schemes: dict[ChunkId, tuple[Slot, int, int]] = {}  # K and M of what lies there
        self.long: set[ChunkId] = set()  # chunks that do not fit into shards

    def forget(self) -> None:
        """Look at everything again."""
        self._asleep.clear()
        self._schemes = {
            one: scheme for one, scheme in self._schemes.items() if one in self._store.slots
        }

    def look_again(self, volume: int) -> None:
        """Look at a volume again."""
        self._asleep = {piece: one for piece, one in self._asleep.items() if piece[0] != volume}

    def note_long(self, chunk: ChunkId) -> None:
        """Keep a chunk in whole copies: it does not fit into shards."""
        if len(self.long) < _LONG_MAX:
            self.long.add(chunk)

    async def volume(self, picture: Picture, wanted: Log) -> Found:
        """Compare one volume's settled chunks with what is here.

        Raises: DiskFailed of the own disk.
        """
        self._store.check_disk()
        asked = _Asked(picture, wanted, by_chunk(self._store.chunks_of(wanted.volume)))
        if len({(one.data, one.parity) for one in wanted.schemes if one.erasure}) > 1:
            asked.foreign = await self._foreign(wanted, asked.here)
        total = Found()
        for closed in settled_spans(wanted):
            first = closed.span.first
            while first <= closed.last:
                behind = (first // limits.UPKEEP_LOOK_CHUNKS + 1) * limits.UPKEEP_LOOK_CHUNKS
                sequences = range(first, min(behind, closed.last + 1))
                await self._piece(asked, closed, sequences, total)
                first = sequences.stop
                await asyncio.sleep(0)
        self._survey.suspicions.note(total.suspects, wanted.epoch)
        return total

    async def degraded(self, picture: Picture, wanted: Log) -> dict[int, int]:
        """Return how many chunks of which parts are here have owners that are not up, by how many
        more disks may be lost, and one: each chunk is counted by one disk."""
        found: dict[int, int] = {}
        if all(one.disk_id in picture.up for one in picture.placement.members):
            return found
        settled = {(one.span.epoch, one.span.tag): one.last for one in settled_spans(wanted)}
        for number, chunk in enumerate(by_chunk(self._store.chunks_of(wanted.volume))):
            if chunk.sequence <= settled.get(chunk[1:3], -1):
                copies = goal(wanted, chunk, picture.placement, self.long) is Goal.COPIES
                count = wanted.copies if copies else wanted.scheme.shards
                owners = picture.placement.owners(chunk, count)
                left = is_degraded(self._disk, owners, picture.up)
                if left is not None:
                    good = left if copies else max(0, left - wanted.scheme.data + 1)
                    found[good] = found.get(good, 0) + 1
            if number % limits.UPKEEP_LOOK_CHUNKS == 0:
                await asyncio.sleep(0)
        return found

    async def _piece(self, asked: _Asked, closed: Closed, sequences: range, total: Found) -> None:
        span, survey = closed.span, self._survey
        # The beginning of a span is trimmed now and then: a piece goes by its own.
        begin = sequences.start // limits.UPKEEP_LOOK_CHUNKS
        key = (asked.log.volume, (span.epoch, span.tag, begin, sequences.stop))
        if key in survey.settled:
            return
        found = self._asleep.get(key)
        if found is None:
            found = await self._look(asked, closed, sequences)
            if found.idle:
                survey.settled.add(key)
            elif found.asleep:
                self._asleep[key] = found
        total.add(found)

    async def _look(self, asked: _Asked, closed: Closed, sequences: range) -> Found:
        log, placement, survey = asked.log, asked.picture.placement, self._survey
        found = Found()
        open_questions = questions(
            log, closed, sequences, asked.here, placement, self._disk,
            sound=not self._store.damaged,
            doubted={whole_id(one) for one in survey.doubted if volume_of(one) == log.volume},
            verified=survey.verified,
            long=self.long,
        )  # fmt: skip
        if asked.foreign:
            more = [closed.chunk(log.volume, sequence) for sequence in sequences]
            known = set(open_questions)
            open_questions += [one for one in more if one in asked.foreign and one not in known]
        if not open_questions:
            return found
        await self._ask(asked, closed, open_questions)
        known_of = {chunk: self._known(asked, closed, chunk) for chunk in open_questions}
        await self._note_long_copies(asked, closed, known_of)
        witnesses = await self._witnesses(asked, closed, known_of)
        for chunk in open_questions:
            self._decide(asked, closed, chunk, known_of[chunk], witnesses.get(chunk, ()), found)
        return found

    def _decide(
        self,
        asked: _Asked,
        closed: Closed,
        chunk: ChunkId,
        known: _Known,
        witnesses: Sequence[str],
        found: Found,
    ) -> None:
        """Add what is to be done about one chunk."""
        log, placement, survey = asked.log, asked.picture.placement, self._survey
        aim = goal(log, chunk, placement, self.long)
        mine = known.parts.get(self._disk, NOTHING)
        bad = {part for part in (*mine, None) if part_id(chunk, part) in survey.doubted}
        short = closed.doubtful(chunk.sequence, self._disk, placement)
        if aim is not Goal.SHARDS and None in mine and short and chunk not in survey.verified:
            bad.add(None)
        todo = decide(
            log, chunk, aim, placement, self._disk, known.parts, bad=bad,
            foreign=asked.foreign.get(chunk, ()),
        )  # fmt: skip
        if not todo.wants and not todo.surplus:
            return
        silent = any(disk in known.silent for disk, _ in todo.confirm)
        if chunk in asked.foreign and todo.copies and not silent:
            todo = replace(todo, ready=True)  # who lacks a whole copy is told when it is asked
        others = {disk: parts for disk, parts in known.parts.items() if disk != self._disk}
        sound = {**others, self._disk: mine - bad}
        good = chances(log, sound)
        verdict = judge(
            [disk for disk in sound if sound[disk]] if good else (),
            known.silent,
            witnesses,
            cleared=survey.suspicions.cleared(chunk, log.epoch),
        )
        if verdict is Verdict.SUSPECT:
            found.suspects.append(chunk)
        elif verdict is Verdict.UNKNOWN and todo.wants:
            found.unknown += 1
        elif verdict is Verdict.PULL:
            for part in todo.wants:
                found.wants.append(
                    PartWant(
                        chunk, part, log.epoch, closed.exact(chunk.sequence), log.scheme,
                        tuple(sorted(others.items())), mine, part in mine, good,
                        log.copies, closed.some_short(chunk.sequence),
                    )
                )  # fmt: skip
        exact = closed.exact(chunk.sequence)
        found.parts_surplus += [
            PartSurplus(chunk, part, exact, log.scheme, todo) for part in todo.surplus
        ]
        if todo.surplus and not todo.ready and not silent and (verdict is Verdict.PULL or bad):
            found.waiting += len(todo.surplus)

    # --- what others have ---------------------------------------------------------------

    async def _ask(self, asked: _Asked, closed: Closed, chunks: Sequence[ChunkId]) -> None:
        """Have the lists of everybody who may have parts of ``chunks``."""
        who: set[str] = set()
        for chunk in chunks:
            who |= self._survey.reasons(asked.picture, closed, chunk, asked.log.reach)
        who -= asked.lists.keys() | asked.silent
        lists = await self._survey.lists_of(who & asked.picture.up, asked.log.volume)
        asked.lists |= lists
        asked.silent |= who - lists.keys()

    def _known(self, asked: _Asked, closed: Closed, chunk: ChunkId) -> _Known:
        ids = {shard_id(chunk, number): number
               for number in range(max(one.shards for one in asked.log.schemes))}  # fmt: skip
        parts: dict[str, frozenset[Part]] = {}
        for disk, there in asked.lists.items():
            having: list[Part] = [number for one, number in ids.items() if one in there]
            if chunk in there:
                having.append(None)
            if having:
                parts[disk] = frozenset(having)
        if chunk in asked.here:
            parts[self._disk] = asked.here[chunk]
        may = self._survey.reasons(asked.picture, closed, chunk, asked.log.reach)
        return _Known(parts, sorted(may & asked.silent))

    async def _note_long_copies(
        self, asked: _Asked, closed: Closed, known_of: Mapping[ChunkId, _Known]
    ) -> None:
        """Note which whole copies here are too long for shards: a disk that is to have no shard
        never tries to make one, and would wait for those of the others."""
        scheme, placement = asked.log.scheme, asked.picture.placement
        for chunk, known in known_of.items() if scheme.erasure else ():
            mine = known.parts.get(self._disk, NOTHING)
            if None not in mine or any(parts - {None} for parts in known.parts.values()):
                continue
            if chunk in self.long or self._disk in placement.owners(chunk, scheme.shards):
                continue
            [found] = await self._chunks.examine([chunk])
            end = min(found.end, closed.exact(chunk.sequence) or found.end)
            if not fits(end, scheme, self._chunks.slot_bytes):
                self.note_long(chunk)

    async def _witnesses(
        self, asked: _Asked, closed: Closed, known_of: Mapping[ChunkId, _Known]
    ) -> Mapping[ChunkId, Sequence[str]]:
        """Return who had a part of a chunk, never a reason to give all up, and has none."""
        placement, floor = asked.picture.placement, asked.log.floor
        to_ask: dict[str, list[ChunkId]] = {}
        for chunk, known in known_of.items():
            if not known.parts:
                continue
            for disk in placement.owners(chunk, floor):
                if disk == self._disk or disk not in asked.lists or disk in known.parts:
                    continue
                if may_witness(closed, chunk, placement, disk, floor):
                    to_ask.setdefault(disk, []).append(chunk)
        return await self._survey.absent(to_ask)

    async def _foreign(
        self, wanted: Log, here: Mapping[ChunkId, frozenset[Part]]
    ) -> dict[ChunkId, set[Part]]:
        """Return the shards here that are of another K+M than the volume's.

        A shard that cannot be read is none: it is found when it is looked at.
        """
        slots = self._store.slots
        shards = [part_id(chunk, part) for chunk, parts in here.items()
                  for part in parts if part is not None]  # fmt: skip
        found: dict[ChunkId, set[Part]] = {}
        for number, one in enumerate(shards):
            cell, known = slots.get(one), self._schemes.get(one)
            if cell is not None and (known is None or known[0] is not cell):
                try:
                    [head] = await self._chunks.read([(one, FIRST, DESCRIPTOR_BYTES)])
                    described = Descriptor.unpack(head, f"shard {one}")
                except TorusError:
                    continue
                known = self._schemes[one] = (cell, described.data, described.parity)
            if known is not None and known[1:] != (wanted.scheme.data, wanted.scheme.parity):
                chunk, part = split_part(one)
                found.setdefault(chunk, set()).add(part)
            if number % limits.UPKEEP_LOOK_CHUNKS == 0:
                await asyncio.sleep(0)
        return found
