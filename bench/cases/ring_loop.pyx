"""A compiled loop over look-ups in a ring, as another kernel would make them."""

from libc.stdint cimport uint16_t, uint64_t

from torus._fast.ring cimport Placement, slot_number


def empty(long calls):
    """The loop alone."""
    cdef long i
    cdef uint64_t total = 0
    for i in range(calls):
        total += i ^ (total << 1)
    return total


def owners(Placement placement, long calls):
    """Slot of a chunk, then its first three owners."""
    cdef long i
    cdef uint64_t total = 0
    cdef const uint16_t* row
    for i in range(calls):
        row = placement.row(slot_number(1 + (i >> 20), 1, 0, i))
        total += row[0] + row[1] + row[2]
    return total
