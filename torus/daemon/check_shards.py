"""Every byte of every shard on a stopped disk, against its own descriptor.

Decides what is said of a shard that is damaged, and of shards of a volume that is not known.
Whether a chunk has enough shards only all disks together could say: that is not judged here.
"""

from torus.daemon.known import Known
from torus.daemon.reports import Progress
from torus.daemon.stopped import StoppedDisk
from torus.daemon.stopped_shelves import Place
from torus.errors import TorusError
from torus.format.shard import DESCRIPTOR_BYTES, PAYLOAD_OFFSET, PLACE_BYTES, Descriptor, open_shard
from torus.ids import ChunkId, volume_of


def check_shards(disk: StoppedDisk, known: Known, progress: Progress, total: int) -> None:
    """Verify all shards; what is wrong becomes a finding.  ``total``: bytes, for the progress."""
    shards = disk.shelves.shards
    for shard, place in sorted(shards.items(), key=lambda item: item[1].address):
        try:
            read_shard(disk, shard, place)
        except TorusError as exc:
            disk.findings.warning(
                "bad-shard",
                disk.where(place.address),
                f"{exc.message}; a node makes it anew of the chunk's other shards",
            )
        progress(min(disk.bytes_read, total), total)
    if known.usable:
        _report_unknown(disk, known)


def read_shard(disk: StoppedDisk, shard: ChunkId, place: Place) -> tuple[Descriptor, bytes]:
    """Return what describes a shard and its payload, every byte of which was verified.

    Raises: Corruption, UnknownVersion, LocalProtocolError.
    """
    head = disk.read(place.address + PLACE_BYTES, DESCRIPTOR_BYTES)
    size = Descriptor.unpack(head, f"shard {shard}").payload_bytes
    room = place.room - PAYLOAD_OFFSET
    payload = disk.read(place.address + PAYLOAD_OFFSET, min(size, room))
    return open_shard(head + payload, shard, disk.geometry.slot_bytes), payload


def _report_unknown(disk: StoppedDisk, known: Known) -> None:
    counts: dict[int, int] = {}
    for shard in disk.shelves.shards:
        counts[volume_of(shard)] = counts.get(volume_of(shard), 0) + 1
    for volume in sorted(counts.keys() - known.specs.keys()):
        gone = known.was_deleted(volume)
        more = "was deleted; a node frees them in time" if gone else "the metadata does not know"
        disk.findings.warning(
            "unknown-volume",
            f"shards of volume {volume}",
            f"{counts[volume]} shards are of a volume that {more}",
        )
