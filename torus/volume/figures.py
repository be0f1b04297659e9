"""What a volume's log costs: live, dead, pinned, and how much was written for what was asked.

Decides what these words count.  Pure.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torus import limits

if TYPE_CHECKING:
    from torus.volume.core import Core


@dataclass(frozen=True, slots=True)
class SpaceFigures:
    """Bytes of an attached volume.

    Its chunks take ``live + dead + pinned``.  What clients, log and collector wrote is counted
    since the attach.
    """

    logical_bytes: int  # written and not trimmed, as clients see it, of a clone's origin too
    live_bytes: int  # of its own log: blocks and map pages that are needed
    dead_bytes: int  # of its own chunks: what collection can free, now or once it moved the rest
    pinned_bytes: int  # chunks without anything live that only snapshots need
    snapshots: int
    client_bytes: int  # payload of writes
    log_bytes: int  # appended to the log, headers, map pages and moved blocks included
    collected_bytes: int  # of these, blocks that the collector moved

    @property
    def write_amplification(self) -> float | None:
        """Return log bytes for each byte written by clients; None when they wrote nothing."""
        return self.log_bytes / self.client_bytes if self.client_bytes else None

    @property
    def collector_amplification(self) -> float | None:
        """Return the collector's part of it."""
        return self.collected_bytes / self.client_bytes if self.client_bytes else None


def space_figures(core: "Core") -> SpaceFigures:
    """Return the present figures; takes time in proportion to the chunks, not to the blocks."""
    blocks, slot_bytes = core.blocks, core.chunks.slot_bytes
    chunks = len(blocks.usage.counts())
    live_bytes = blocks.live_units() * limits.SECTOR_BYTES
    pinned_bytes = slot_bytes * _pinned(core)
    return SpaceFigures(
        logical_bytes=blocks.mapped_blocks * limits.BLOCK_BYTES,
        live_bytes=live_bytes,
        dead_bytes=max(0, chunks * slot_bytes - live_bytes - pinned_bytes),
        pinned_bytes=pinned_bytes,
        snapshots=len(core.pins),
        client_bytes=core.client_bytes,
        log_bytes=core.journal.appended_bytes,
        collected_bytes=core.collected_bytes,
    )


def _pinned(core: "Core") -> int:
    """Return how many chunks without a live unit a snapshot may need."""
    blocks, pins, count = core.blocks, core.pins, 0
    if not pins.through:
        return 0
    for span in core.spans:
        last = pins.through if span.last is None else min(span.last, pins.through)
        if span.first <= last:
            dead = blocks.dead(span.first, last)
            count += sum(pins.pinned(sequence, blocks.era(sequence)) for sequence in dead)
    return count
