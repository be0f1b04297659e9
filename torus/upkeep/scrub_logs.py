"""Which chunks of a volume have come to rest, so that what is missing in them is damage.

Decides that a chunk of a closed span has, and one of the open span that lies before the place
from which the published root is replayed: both are durable on all their disks.  Pure, but for
the listing of the metadata.

Implements docs/scrub.md, "What is looked at".
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torus.errors import TorusError
from torus.ids import ChunkId, whole_id
from torus.log import get_logger
from torus.metadata.base import Entry
from torus.metadata.keys import VOLUMES
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import Span
from torus.redundancy.scheme import parse
from torus.volume.catalog_ask import READY, Volume, read_volume

log = get_logger("torus.scrub")


@dataclass(frozen=True, slots=True)
class Settled:
    """Where a chunk that has come to rest ends, if the metadata says so."""

    exact: int | None


class VolumeLog:
    """One volume's spans, by the ids of their chunks."""

    def __init__(self, volume: Volume) -> None:
        head = volume.head
        self.volume = volume.spec.volume
        self.name = volume.spec.name
        self.epoch = head.epoch
        self.copies = parse(volume.spec.redundancy).copies
        schemes = map(parse, (volume.spec.redundancy, *volume.spec.former))
        self.erasure = any(one.erasure for one in schemes)  # its chunks may lie in shards
        self._replay = 0 if head.root is None else head.root.replay_sequence
        self._spans: Mapping[tuple[int, int], Span] = {
            (span.epoch, span.tag): span for span in head.spans
        }

    def settled(self, part: ChunkId) -> Settled | None:
        """Return what is known of a chunk or shard; None where it may be written yet, or is not
        part of the log."""
        chunk = whole_id(part)
        span = self._spans.get((chunk.epoch, chunk.tag))
        if span is None or chunk.sequence < span.first:
            return None
        if span.last is None:
            return Settled(None) if chunk.sequence < self._replay else None
        if chunk.sequence > span.last:
            return None
        return Settled(span.end if chunk.sequence == span.last else None)


def logs_of(entries: tuple[Entry, ...]) -> dict[int, VolumeLog]:
    """Return the logs of all volumes that are not being deleted, by volume id."""
    by_volume: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        by_volume.setdefault(entry.key.rpartition("/")[0], {})[entry.key] = entry
    logs: dict[int, VolumeLog] = {}
    for prefix, found in by_volume.items():
        try:
            volume = read_volume(found)
            if volume.spec.state == READY:
                logs[volume.spec.volume] = VolumeLog(volume)
        except TorusError as exc:
            log.warning("scrub.volume.unreadable", volume=prefix, reason=str(exc))
    return logs


async def read_logs(metadata: AsyncMetadata) -> dict[int, VolumeLog]:
    """Return the logs of all volumes, by volume id.  Raises: Unavailable."""
    return logs_of((await metadata.list(VOLUMES)).entries)
