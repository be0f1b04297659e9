"""The ring's arithmetic in plain Python, from docs/ring.md: what the kernels must compute."""

import hashlib
from collections.abc import Collection, Sequence

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
NOBODY = 0xFFFF


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def slot_of(volume: int, epoch: int, tag: int, sequence: int) -> int:
    x = mix((volume + GOLDEN * (tag + 1)) & MASK)
    return mix(x ^ (epoch << 32 | sequence)) >> 48


def log2_table() -> list[int]:
    """log2(1 + i/256) in units of 2**-32, bit by bit."""
    table = []
    for i in range(256):
        x, log = (256 + i) << 54, 0
        for _ in range(32):
            x = x * x >> 62
            log <<= 1
            if x >> 63:
                log, x = log | 1, x >> 1
        table.append(log)
    return [*table, 1 << 32]


LOG2 = log2_table()


def cost(slot: int, disk_id: str, weight: int) -> int:
    key = int.from_bytes(hashlib.blake2b(disk_id.encode(), digest_size=8).digest(), "little")
    u = mix(mix((slot + 1) * GOLDEN & MASK) ^ key) | 1
    exponent = u.bit_length() - 1
    mantissa = u << (63 - exponent)
    at, rest = (mantissa >> 55) & 0xFF, (mantissa >> 23) & 0xFFFFFFFF
    log = (exponent << 32) + LOG2[at] + ((LOG2[at + 1] - LOG2[at]) * rest >> 32)
    return (((64 << 32) - log) * ((1 << 48) // weight)) >> 23


def order(
    members: Sequence[tuple[str, str, str, int]],
    row: Sequence[int],
    slot: int,
    count: int,
    excluded: Collection[int] = (),
) -> list[int]:
    """Return the numbers of a slot's owners; members are (disk, node, zone, weight)."""
    stored = [number for number in row if number != NOBODY]
    kept: list[int] = []
    for number in stored:
        if number in excluded:
            break
        kept.append(number)
    may_own = [
        number
        for number, member in enumerate(members)
        if number not in excluded and (member[3] or number in stored)
    ]
    rest = sorted(
        (number for number in may_own if members[number][3]),
        key=lambda number: (cost(slot, members[number][0], members[number][3]), number),
    )
    room = {zone: len({members[n][1] for n in may_own if members[n][2] == zone})
            for zone in {members[n][2] for n in may_own}}  # fmt: skip
    used = dict.fromkeys(room, 0)
    owners: list[int] = []
    while len(owners) < count:
        if len(owners) < len(kept):
            chosen = kept[len(owners)]
        else:
            levels = [used[zone] for zone in room if used[zone] < room[zone]]
            taken = {members[owner][1] for owner in owners}
            candidates = [
                number
                for number in [*(n for n in stored if n in may_own), *rest]
                if members[number][1] not in taken
                and levels
                and used[members[number][2]] == min(levels)
            ]
            if not candidates:
                break
            chosen = candidates[0]
        owners.append(chosen)
        used[members[chosen][2]] += 1
    return owners
