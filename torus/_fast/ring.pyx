"""Looks up which disks own a slot.

Decides the order of a slot's owners: the stored ones first, then all others by weighted
rendezvous; an owner that breaks the rule of zones and nodes is passed over.  The rule: never
two owners on one node, and no zone has two more than another that still has a free node.
Does not decide what is stored: that is `torus._fast.ringbuild`'s and `torus.ring`'s.

Implements docs/ring.md, "Owners".  Used by one thread at a time (it keeps the GIL).
"""

from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_INCREF
from libc.string cimport memcpy, memset

begin()


cdef tuple checked(object chunk):
    """Return a chunk's id as the tuple that it is: `ChunkId` is a kind of tuple, which an
    argument of that type would refuse."""
    if not isinstance(chunk, tuple):
        raise TypeError(f"a chunk's id is a tuple, not {type(chunk).__name__}")
    if len(chunk) != 4:
        raise ValueError(f"a chunk's id has 4 fields, not {len(chunk)}")
    return <tuple>chunk


def slot_of(chunk):
    cdef tuple fields = checked(chunk)
    return slot_number(fields[0], fields[1], fields[2], fields[3])


cdef class Layout:

    def __cinit__(self, keys, weights, nodes, zones):
        cdef int i, n = len(keys)
        if not n or n >= NOBODY or not n == len(weights) == len(nodes) == len(zones):
            raise ValueError(f"a ring of {n} members is not possible")
        self.count = n
        self.node_count, self.zone_count = max(nodes) + 1, max(zones) + 1
        if self.node_count > n or self.zone_count > n:
            raise ValueError("nodes and zones are not numbered from 0 on")
        self.keys = <uint64_t*>PyMem_Malloc(n * sizeof(uint64_t))
        self.shares = <uint64_t*>PyMem_Malloc(n * sizeof(uint64_t))
        self.costs = <uint64_t*>PyMem_Malloc(n * sizeof(uint64_t))
        self.nodes = <uint16_t*>PyMem_Malloc(n * sizeof(uint16_t))
        self.zones = <uint16_t*>PyMem_Malloc(n * sizeof(uint16_t))
        self.zone_nodes = <uint16_t*>PyMem_Calloc(n, sizeof(uint16_t))
        self.zone_used = <uint16_t*>PyMem_Malloc(n * sizeof(uint16_t))
        self.zone_room = <uint16_t*>PyMem_Malloc(n * sizeof(uint16_t))
        self.node_used = <uint8_t*>PyMem_Calloc(n, 1)
        if (self.keys is NULL or self.shares is NULL or self.costs is NULL or self.nodes is NULL
                or self.zones is NULL or self.zone_nodes is NULL or self.zone_used is NULL
                or self.zone_room is NULL or self.node_used is NULL):
            raise MemoryError()
        for i in range(n):
            self.keys[i], self.nodes[i], self.zones[i] = keys[i], nodes[i], zones[i]
            self.shares[i] = (1 << 48) // weights[i] if weights[i] else 0
        for i in range(n):
            if self.shares[i] and not self.node_used[self.nodes[i]]:
                self.node_used[self.nodes[i]] = True
                self.zone_nodes[self.zones[i]] += 1

    def __dealloc__(self):
        PyMem_Free(self.keys)
        PyMem_Free(self.shares)
        PyMem_Free(self.costs)
        PyMem_Free(self.nodes)
        PyMem_Free(self.zones)
        PyMem_Free(self.zone_nodes)
        PyMem_Free(self.zone_used)
        PyMem_Free(self.zone_room)
        PyMem_Free(self.node_used)

    cdef int level(self) noexcept:
        """How often the least used zone with a free node is used; -1: no node is free."""
        cdef int zone, least = -1
        for zone in range(self.zone_count):
            if self.zone_used[zone] < self.zone_room[zone] and (
                    least < 0 or self.zone_used[zone] < least):
                least = self.zone_used[zone]
        return least

    cdef void make_room(self, const uint16_t* base, int base_count,
                        const uint8_t* excluded) noexcept:
        """Count the nodes of each zone that may own: with weight, or in `base` already."""
        cdef int i, member
        memset(self.node_used, 0, self.node_count)
        memset(self.zone_used, 0, self.zone_count * sizeof(uint16_t))
        memset(self.zone_room, 0, self.zone_count * sizeof(uint16_t))
        for i in range(-base_count, self.count):
            member = i if i >= 0 else base[i + base_count]
            if (member != NOBODY and (i < 0 or self.shares[member])
                    and not (excluded is not NULL and excluded[member])
                    and not self.node_used[self.nodes[member]]):
                self.node_used[self.nodes[member]] = True
                self.zone_room[self.zones[member]] += 1
        memset(self.node_used, 0, self.node_count)

    cdef int pick(self, const uint16_t* base, int base_count, int kept, uint64_t slot,
                  const uint8_t* excluded, int wanted, uint16_t* picked) noexcept:
        """Put at most `wanted` owners into `picked`; returns how many.

        The first `kept` of `base` are taken as they are, the others where the rule allows.
        """
        cdef int i, best, level, found = 0
        cdef bint scored = False
        cdef uint64_t slot_mix = mix_slot(slot)
        self.make_room(base, base_count, excluded)
        while found < wanted:
            best = -1
            if found < kept:
                best = base[found]
            else:
                level = self.level()
                if level < 0:
                    break
                for i in range(base_count):
                    if (base[i] != NOBODY and not (excluded is not NULL and excluded[base[i]])
                            and not self.node_used[self.nodes[base[i]]]
                            and self.zone_used[self.zones[base[i]]] == level):
                        best = base[i]
                        break
            if best < 0:
                if not scored:
                    for i in range(self.count):
                        self.costs[i] = cost(slot_mix, self.keys[i], self.shares[i])
                    scored = True
                for i in range(self.count):
                    if (self.shares[i] and (best < 0 or self.costs[i] < self.costs[best])
                            and not (excluded is not NULL and excluded[i])
                            and not self.node_used[self.nodes[i]]
                            and self.zone_used[self.zones[i]] == level):
                        best = i
            if best < 0:
                break
            picked[found] = best
            found += 1
            self.node_used[self.nodes[best]] = True
            self.zone_used[self.zones[best]] += 1
        return found


cdef class Placement:

    def __cinit__(self, tuple members not None, Layout layout not None,
                  const uint8_t[::1] table not None, int columns):
        cdef uint64_t i
        if not 0 < columns <= COLUMNS_MAX or len(members) != layout.count:
            raise ValueError(f"{columns} columns of {len(members)} members are not possible")
        if not len(table) or len(table) % (columns * sizeof(uint16_t)):
            raise ValueError(f"a table of {len(table)} bytes has no {columns} columns")
        self.members, self.layout, self.columns = members, layout, columns
        self.slots = len(table) // (columns * sizeof(uint16_t))
        self.table = <uint16_t*>PyMem_Malloc(len(table))
        self.excluded = <uint8_t*>PyMem_Calloc(layout.count, 1)
        if self.table is NULL or self.excluded is NULL:
            raise MemoryError()
        memcpy(self.table, &table[0], len(table))
        for i in range(self.slots * <uint64_t>columns):
            if self.table[i] != NOBODY and self.table[i] >= layout.count:
                raise ValueError(f"the table names member {self.table[i]} of {layout.count}")

    def __dealloc__(self):
        PyMem_Free(self.table)
        PyMem_Free(self.excluded)

    cdef list listed(self, const uint16_t* picked, int found):
        cdef list owners = PyList_New(found)
        cdef object member
        cdef int i
        for i in range(found):
            member = self.members[picked[i]]
            Py_INCREF(member)
            PyList_SET_ITEM(owners, i, member)
        return owners

    def order(self, uint64_t slot, int count, excluded=()):
        cdef const uint16_t* row
        cdef uint16_t* picked
        cdef int i, found, kept
        if slot >= self.slots or count < 0:
            raise ValueError(f"{count} owners of slot {slot} of {self.slots} are not possible")
        row = self.row(slot)
        kept = 0
        if not excluded:
            while kept < self.columns and kept < count and row[kept] != NOBODY:
                kept += 1
            if kept == count:
                return self.listed(row, count)
        count = min(count, self.layout.count)
        for i in excluded:
            if not 0 <= i < self.layout.count:
                raise ValueError(f"there is no member {i} of {self.layout.count}")
        picked = <uint16_t*>PyMem_Malloc((count + 1) * sizeof(uint16_t))
        if picked is NULL:
            raise MemoryError()
        for i in excluded:
            self.excluded[i] = True
        if excluded:
            while (kept < self.columns and row[kept] != NOBODY
                    and not self.excluded[row[kept]]):
                kept += 1
        found = self.layout.pick(row, self.columns, kept, slot, self.excluded, count, picked)
        for i in excluded:
            self.excluded[i] = False
        try:
            return self.listed(picked, found)
        finally:
            PyMem_Free(picked)

    def find(self, chunk, int count):
        cdef tuple fields = checked(chunk)
        cdef object slot = slot_number(fields[0], fields[1], fields[2], fields[3])
        return self.order(slot, count)


def pack_numbers(const uint16_t[::1] numbers not None, int bits):
    """Pack each number's lowest bits, the first number in the lowest bits of the first byte."""
    cdef Py_ssize_t count = numbers.shape[0], i, at = 0
    cdef uint64_t held = 0
    cdef int have = 0
    if not 0 < bits <= 16:
        raise ValueError(f"numbers of {bits} bits are not possible")
    packed = bytearray((count * bits + 7) // 8)
    cdef uint8_t[::1] target = packed
    cdef uint64_t mask = (<uint64_t>1 << bits) - 1
    for i in range(count):
        held |= (numbers[i] & mask) << have
        have += bits
        while have >= 8:
            target[at] = held & 0xFF
            at += 1
            held >>= 8
            have -= 8
    if have:
        target[at] = held & 0xFF
    return bytes(packed)


def unpack_numbers(const uint8_t[::1] packed not None, int bits, Py_ssize_t count):
    """The numbers as native uint16; one whose bits are all set becomes 0xFFFF."""
    cdef Py_ssize_t i, at = 0
    cdef uint64_t held = 0
    cdef int have = 0
    if not 0 < bits <= 16 or count < 0 or packed.shape[0] != (count * bits + 7) // 8:
        raise ValueError(f"{packed.shape[0]} bytes do not hold {count} numbers of {bits} bits")
    numbers = bytearray(count * 2)
    cdef uint16_t[::1] target = memoryview(numbers).cast("H") if count else None
    cdef uint64_t mask = (<uint64_t>1 << bits) - 1, number
    for i in range(count):
        while have < bits:
            held |= <uint64_t>packed[at] << have
            at += 1
            have += 8
        number = held & mask
        target[i] = NOBODY if number == mask else <uint16_t>number
        held >>= bits
        have -= bits
    return bytes(numbers)
