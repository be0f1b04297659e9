"""Live units per chunk, for the block map (see usage.pyx)."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from torus._fast.mappages cimport CHUNK_UNITS, GONE, PAGE_SEQUENCES, PageRef, UsageTable

cdef struct UsagePage:
    PageRef ref
    bint dirty                   # differs from its stored page
    bint frozen_dirty            # the frozen copy differs from the stored page
    uint32_t present             # how many sequences are not GONE
    UsageTable* frozen           # the copy that a checkpoint writes; NULL outside of one
    UsageTable now

cdef class Usage:
    cdef UsagePage** pages
    cdef uint32_t first_page     # index of pages[0]
    cdef uint32_t page_count
    cdef readonly bint frozen    # a checkpoint is under way
    cdef set replaced            # chunks of usage pages that the last durable root may name
    cdef readonly uint64_t total_units
    cdef readonly uint64_t faults   # counts that went below 0 or above a whole chunk

    cdef UsagePage* create_page(self, uint32_t index) except NULL
    cdef void adjust_frozen(self, uint32_t sequence, int units) noexcept
    cdef int move_page(self, PageRef* old, PageRef* new) except -1
    cdef int freeze_page(self, UsagePage* page) noexcept
    cdef UsagePage* frozen_page(self, index) except NULL
    cdef uint32_t sequence_at(self, uint32_t place) noexcept
    cdef int adopt(self, Usage current, uint32_t era) except -1
    cdef int freeze(self) except -1
    cdef void thaw(self) noexcept


# Once a write, so that they are worth inlining into the tree.

cdef inline UsagePage* page_of(Usage usage, uint32_t sequence) noexcept:
    cdef uint32_t place = sequence // PAGE_SEQUENCES - usage.first_page
    return usage.pages[place] if place < usage.page_count else NULL


cdef inline bint is_open(Usage usage, uint32_t sequence) noexcept:
    cdef UsagePage* page = page_of(usage, sequence)
    return page is not NULL and page.now.units[sequence % PAGE_SEQUENCES] != GONE


cdef inline void add(Usage usage, uint32_t sequence, uint32_t units) noexcept:
    cdef UsagePage* page = page_of(usage, sequence)
    cdef uint32_t place = sequence % PAGE_SEQUENCES
    if page is NULL or page.now.units[place] + units > CHUNK_UNITS:  # GONE is above it too
        usage.faults += 1
        return
    page.now.units[place] += <uint16_t>units
    page.now.eras[place] = 0
    page.dirty = True
    usage.total_units += units


cdef inline void subtract(Usage usage, uint32_t sequence, uint32_t units) noexcept:
    cdef UsagePage* page = page_of(usage, sequence)
    cdef uint32_t place = sequence % PAGE_SEQUENCES
    if page is NULL or page.now.units[place] == GONE or page.now.units[place] < units:
        usage.faults += 1
        return
    page.now.units[place] -= <uint16_t>units
    page.dirty = True
    usage.total_units -= units
