"""What other disks say of their parts of a chunk.  Pure.

Decides which of them are good for anything, and which shards go together: those of the same K+M
and the same content.
"""

from dataclasses import dataclass, field

from torus import limits
from torus.redundancy.scheme import Scheme, erasure
from torus.store.content import FIRST, Examined, Presence
from torus.upkeep.shard_content import Version
from torus.upkeep.shard_plan import Part


@dataclass(frozen=True, slots=True)
class ShardSource:
    """A shard that a disk says is whole."""

    disk: str
    number: int
    scheme: Scheme
    version: Version


@dataclass(slots=True)
class Sources:
    """What others have of a chunk."""

    ends: dict[str, int] = field(default_factory=dict)  # of whole copies
    crcs: dict[str, int] = field(default_factory=dict)
    shards: list[ShardSource] = field(default_factory=list)


def note_source(found: Sources, disk: str, part: Part, one: Examined) -> None:
    """Take over what a disk says of a part, if it is good for anything."""
    if one.state is not Presence.PRESENT:
        return
    if part is None:
        if one.end > FIRST:
            found.ends[disk], found.crcs[disk] = one.end, one.crc
        return
    data, parity = divmod(one.records, 256)
    scheme = erasure(data, parity)
    if data >= limits.ERASURE_DATA_MIN and part < scheme.shards:
        found.shards.append(ShardSource(disk, part, scheme, Version(one.end, one.crc)))


def groups_of(
    shards: list[ShardSource], exact: int | None
) -> dict[tuple[Scheme, Version], dict[int, ShardSource]]:
    """Return the shards of each content of which there are enough."""
    found: dict[tuple[Scheme, Version], dict[int, ShardSource]] = {}
    for one in shards:
        if exact is None or one.version.end == exact:
            found.setdefault((one.scheme, one.version), {}).setdefault(one.number, one)
    return {key: parts for key, parts in found.items() if len(parts) >= key[0].data}
