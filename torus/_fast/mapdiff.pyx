"""What differs between two maps: two snapshots, or a clone and its origin.

Decides from places alone: a block that lies at the same place in both is the same, and any
other is called different, also when it was only moved.  Reads no block and loads no page.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from torus._fast.blockmap cimport BlockMap
from torus._fast.leaftree cimport Slot
from torus._fast.mappages cimport LEAF_ENTRIES, Entry

cdef enum:
    NO_MEMBER = 0xFFFF


cdef class Members:
    """How one map calls the members that another one names."""

    cdef bytes table
    cdef Py_ssize_t count        # of members in the table
    cdef bint same

    def __cinit__(self, bytes members):
        self.same = members is None
        self.table = members or b""
        if len(self.table) % 2:
            raise ValueError("the members are not whole 16-bit numbers")
        self.count = len(self.table) // 2

    cdef uint32_t translate(self, uint16_t base) noexcept:
        """NO_MEMBER + 1, which no entry names, when the other map does not know it."""
        cdef const uint16_t* table = <const uint16_t*>PyBytes_AS_STRING(self.table)
        if self.same:
            return base
        if base >= self.count or table[base] == NO_MEMBER:
            return NO_MEMBER + 1
        return table[base]


cdef Slot* clean_slot(BlockMap blocks, uint64_t index, bint* dirty) noexcept:
    cdef Slot* slot = blocks.slot_of(index)
    dirty[0] = slot is not NULL and slot.leaf is not NULL and slot.leaf.dirty
    return slot


cdef bint is_same_page(Members members, const Slot* a, const Slot* b) noexcept:
    cdef bint in_a = a is not NULL and a.ref.sequence != 0
    cdef bint in_b = b is not NULL and b.ref.sequence != 0
    if not in_a or not in_b:
        return in_a == in_b
    return (a.ref.sequence == b.ref.sequence and a.ref.offset == b.ref.offset
            and a.ref.size_bytes == b.ref.size_bytes and a.ref.crc == b.ref.crc
            and members.translate(a.ref.base) == b.ref.base)


cdef int require_usable(BlockMap a, BlockMap b) except -1:
    if not a.usable or not b.usable:
        raise LookupError("directories or usage pages of a map are not loaded yet")
    return 0


def differing_leaves(BlockMap a, BlockMap b, uint64_t first_leaf, Py_ssize_t limit,
                     bytes members=None):
    cdef uint64_t index = first_leaf
    cdef uint64_t end = <uint64_t>max(a.directory_count, b.directory_count) << 10
    cdef Members names = Members(members)
    cdef Slot* in_a
    cdef Slot* in_b
    cdef bint dirty_a = False, dirty_b = False
    require_usable(a, b)
    found = []
    while index < end and len(found) < limit:
        in_a = clean_slot(a, index, &dirty_a)
        in_b = clean_slot(b, index, &dirty_b)
        if in_a is NULL and in_b is NULL:
            index = ((index >> 10) + 1) << 10
            continue
        if dirty_a or dirty_b or not is_same_page(names, in_a, in_b):
            found.append(index)
        index += 1
    return found


cdef Entry* entries_of(BlockMap blocks, uint64_t index) except? NULL:
    """The entries of a leaf in memory; NULL when it is absent.  Raises: LookupError: cold."""
    cdef Slot* slot = blocks.slot_of(index)
    if slot is NULL:
        return NULL
    if slot.leaf is NULL:
        if slot.ref.sequence:
            raise LookupError(f"map leaf {index} is stored but not in memory")
        return NULL
    slot.leaf.referenced = True
    return slot.leaf.entries


cdef bint is_same_entry(Members members, const Entry* a, const Entry* b) noexcept:
    cdef bint in_a = a is not NULL and a.sequence != 0
    cdef bint in_b = b is not NULL and b.sequence != 0
    if not in_a or not in_b:
        return in_a == in_b
    return (a.sequence == b.sequence and a.offset == b.offset and a.crc == b.crc
            and members.translate(a.base) == b.base)


def diff_leaf(BlockMap a, BlockMap b, uint64_t leaf_index, bytes members=None):
    cdef Members names = Members(members)
    cdef uint64_t start = leaf_index << 10
    cdef Entry* in_a
    cdef Entry* in_b
    cdef int i, first = 0, length = 0
    cdef bint differs, data, kind = False
    require_usable(a, b)
    in_a, in_b = entries_of(a, leaf_index), entries_of(b, leaf_index)
    found = []
    for i in range(LEAF_ENTRIES):
        differs = not is_same_entry(names, NULL if in_a is NULL else &in_a[i],
                                    NULL if in_b is NULL else &in_b[i])
        data = in_b is not NULL and in_b[i].sequence != 0
        if length and (not differs or data != kind):
            found.append((start + first, length, <int>kind))
            length = 0
        if differs:
            if length == 0:
                first, kind = i, data
            length += 1
    if length:
        found.append((start + first, length, <int>kind))
    return found
