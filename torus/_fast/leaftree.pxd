"""Leaves and directories of the block map, for other kernels (see leaftree.pyx)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from torus._fast.mappages cimport Entry, PageRef
from torus._fast.usage cimport Usage

cdef enum:
    LEAF_SHIFT = 10
    LEAF_ENTRIES = 1024
    DIRECTORY_LEAVES = 1024
    DIRECTORY_SHIFT = 20         # blocks of a directory: 2**20, 4 GiB of addresses

cdef struct Leaf:
    Leaf* previous
    Leaf* next
    Entry* copy                  # what a checkpoint writes, when `entries` has moved on
    uint32_t index
    uint16_t present             # entries that are not absent
    bint dirty                   # differs from the stored page
    bint frozen                  # in a checkpoint and not encoded yet
    bint encoded                 # encoded, its stored place not yet known
    bint changed                 # changed since it was frozen or encoded
    bint referenced              # used since the eviction hand last passed
    Entry entries[LEAF_ENTRIES]

cdef struct Slot:
    Leaf* leaf
    PageRef ref

cdef struct Directory:
    PageRef ref
    bint dirty
    uint32_t resident            # leaves in memory
    uint32_t cold                # leaves stored but not in memory
    Slot slots[DIRECTORY_LEAVES]

cdef struct LeafList:
    Leaf* first
    Leaf* last
    Py_ssize_t length

cdef class LeafTree:
    cdef readonly uint64_t size_blocks
    cdef readonly uint64_t mapped_blocks
    cdef readonly uint64_t cache_bytes
    cdef readonly Usage usage
    cdef readonly bint in_checkpoint
    cdef bint usable             # False until every directory and usage page is loaded
    cdef Directory** directories
    cdef uint32_t directory_count
    cdef LeafList clean          # eviction order, second chance
    cdef LeafList dirty          # oldest change first
    cdef Py_ssize_t copies       # leaves that hold a frozen copy beside their entries

    # Fills out[0:count]; returns how many were filled before the first leaf that is stored
    # but not in memory (count normally; 0 when the range is outside the volume).
    cdef Py_ssize_t lookup(self, uint64_t block, Py_ssize_t count, Entry* out) noexcept
    # Block i goes to offset + 8*i of the chunk.  All or nothing.
    cdef int set_run(self, uint64_t block, uint32_t count, uint32_t sequence,
                     uint32_t offset, const uint32_t* crcs) except -1
    cdef int clear_run(self, uint64_t block, uint64_t count) except -1
    cdef bint resident(self, uint64_t block, uint64_t count) noexcept

    cdef int check_range(self, uint64_t block, uint64_t count) except -1
    cdef int require_resident(self, uint64_t block, uint64_t count) except -1
    cdef Slot* slot_of(self, uint64_t leaf_index) noexcept
    cdef Directory* create_directory(self, uint32_t index) except NULL
    cdef Leaf* create_leaf(self, uint32_t index) except NULL
    cdef int prepare(self, uint32_t index) except -1
    cdef void mark_dirty(self, Leaf* leaf) noexcept
    cdef void clear_entries(self, Leaf* leaf, uint32_t first, uint32_t last) noexcept
    cdef void free_leaf(self, Leaf* leaf) noexcept
