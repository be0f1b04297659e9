# cython: language_level=3, boundscheck=False, wraparound=False
"""Loops over the block map's compiled calls, for bench/cases/blockmap.py.  Never shipped."""

from libc.stdint cimport uint32_t, uint64_t

from torus._fast.blockmap cimport BlockMap, Entry


def set_blocks(BlockMap target, list blocks, uint32_t sequence, uint32_t count):
    """Set a run of `count` blocks (at most 1024) at each of `blocks`."""
    cdef uint32_t crcs[1024]
    cdef uint64_t block
    cdef uint32_t i
    for i in range(count):
        crcs[i] = i
    for block in blocks:
        target.set_run(block, count, sequence, 0, crcs)


def lookup_blocks(BlockMap target, list blocks, Py_ssize_t count):
    """Look `count` blocks (at most 1024) up at each of `blocks`; return a sum of them."""
    cdef Entry entries[1024]
    cdef uint64_t block, total = 0
    for block in blocks:
        total += <uint64_t>target.lookup(block, count, entries) + entries[0].crc
    return total


def empty(list blocks):
    """The loop alone."""
    cdef uint64_t block, total = 0
    for block in blocks:
        total += block
    return total
