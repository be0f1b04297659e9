"""Leaves and directories of the block map, for other kernels (see leaftree.pyx)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from torus._fast.mappages cimport DIRECTORY_LEAVES, LEAF_ENTRIES, Entry, PageRef
from torus._fast.usage cimport Usage

cdef enum:
    NOT_ENCODED = 0
    ENCODED_EMPTY = 1            # no entry was present: the stored page goes
    ENCODED_PAGE = 2

cdef struct Leaf:
    Leaf* previous
    Leaf* next
    Entry* copy                  # what a checkpoint writes, when `entries` has moved on
    uint32_t index
    uint16_t present             # entries that are not absent
    bint dirty                   # differs from the stored page
    bint frozen                  # in a checkpoint and not encoded yet
    int encoded                  # NOT_ENCODED, or encoded and its place not yet known
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

cdef inline void append(LeafList* leaves, Leaf* leaf) noexcept:
    leaf.previous = leaves.last
    leaf.next = NULL
    if leaves.last is NULL:
        leaves.first = leaf
    else:
        leaves.last.next = leaf
    leaves.last = leaf
    leaves.length += 1

cdef inline void remove(LeafList* leaves, Leaf* leaf) noexcept:
    if leaf.previous is NULL:
        leaves.first = leaf.next
    else:
        leaf.previous.next = leaf.next
    if leaf.next is NULL:
        leaves.last = leaf.previous
    else:
        leaf.next.previous = leaf.previous
    leaves.length -= 1


cdef class LeafTree:
    cdef readonly uint64_t size_blocks
    cdef readonly uint64_t mapped_blocks
    cdef readonly uint64_t cache_bytes
    cdef readonly Usage usage
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
    cdef Slot* slot_of(self, uint64_t index) noexcept
    cdef int grow(self, uint64_t size_blocks) except -1
    cdef Directory* create_directory(self, uint32_t index) except NULL
    cdef Leaf* create_leaf(self, uint32_t index) except NULL
    cdef void free_leaf(self, Leaf* leaf) noexcept
    cdef Leaf* next_leaf(self, uint64_t* index, uint64_t end) noexcept
    cdef bint next_cold(self, uint64_t* index, uint64_t end) noexcept
    cdef int prepare(self, Leaf* leaf) except -1
    cdef void mark_changed(self, Leaf* leaf) noexcept
    cdef void mark_clean(self, Leaf* leaf) noexcept
    cdef void drop_copy(self, Leaf* leaf) noexcept
    cdef int prepare_run(self, uint64_t block, uint64_t count) except -1
    cdef void put_entries(self, Leaf* leaf, uint32_t first, uint32_t count, uint32_t sequence,
                          uint32_t offset, const uint32_t* crcs) noexcept
    cdef void release_entries(self, Leaf* leaf, uint32_t first, uint32_t end) noexcept
    cdef uint64_t piece(self, uint64_t block, uint64_t end, bint* mapped) noexcept
