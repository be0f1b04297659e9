"""Which disk has which shard of a chunk.  Pure.

Decides that a shard stays where it is as long as its disk is an owner, so that a change of the
ring moves as few shards as possible, and that everybody who knows the owners and what they have
comes to the same result.  Implements docs/upkeep.md, "Shards".
"""

from collections.abc import Collection, Mapping, Sequence


def assign(owners: Sequence[str], holdings: Mapping[str, Collection[int]]) -> dict[str, int]:
    """Return the number of the shard that each owner is to have.

    ``owners``: the first K+M disks of the chunk's slot, or as many as there are, in order;
    ``holdings``: the numbers of the shards that disks have.  Numbers go from 0 to K+M-1; with
    fewer owners than shards the highest that nobody has are left out.

    An owner that has the number of its position keeps it; then, in order, who has a number that
    nobody took keeps its lowest one; whoever is left takes the number of its position if it can,
    else the lowest that is free.
    """
    found = {
        disk: position for position, disk in enumerate(owners) if position in holdings.get(disk, ())
    }
    taken = set(found.values())
    for disk in owners:
        if disk in found:
            continue
        kept = min((one for one in holdings.get(disk, ()) if one not in taken), default=None)
        if kept is not None:
            found[disk] = kept
            taken.add(kept)
    for position, disk in enumerate(owners):
        if disk not in found and position not in taken:
            found[disk] = position
            taken.add(position)
    free = iter(sorted(set(range(len(owners))) - taken))
    for disk in owners:
        if disk not in found:
            found[disk] = next(free)
    return found
