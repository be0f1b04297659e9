"""Counts the live 512-byte units of every chunk of one volume's log.

Decides when a chunk is dead: no block and no stored map page of the volume lies in it.  Does
not decide when it may be deleted (snapshots, and the last durable root, may still need it).
A dead chunk may carry an era, the number of the newest snapshot ever made when it was first
found dead; what that means is decided elsewhere, here it goes when the chunk is live again.
Kept in pages of 4096 sequences so that a checkpoint writes only what changed.  While frozen,
every page has a second table: the counts as the checkpoint's root will describe them.

A count that would leave 0..8192 is a fault: from then on nothing is called dead, because an
unknown chunk is never a dead one.
"""

from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from libc.string cimport memcmp, memcpy, memmove, memset

from torus._fast.mappages cimport (
    CHUNK_UNITS, GONE, decode_usage, encode_usage, set_ref, units_of
)

from torus.errors import Corruption

cdef enum:
    PAGES_MAX = 1 << 20

cdef uint64_t SEQUENCES_MAX = <uint64_t>1 << 32


cdef int require_chunks(const UsagePage* page, const UsagePage* current,
                        uint64_t first) except -1:
    """Raises: Corruption when a chunk with live units is not in `current`, which may be NULL."""
    cdef int i
    for i in range(PAGE_SEQUENCES):
        if (page.now.units[i] not in (0, GONE)
                and (current is NULL or current.now.units[i] == GONE)):
            raise Corruption(f"the map needs chunk number {first + <uint64_t>i}, which the volume "
                             "does not have any more")
    return 0


cdef void adopt_page(UsagePage* page, const UsagePage* current, uint32_t era) noexcept:
    """Keep the live units of `page` for the chunks of `current`, which may be NULL."""
    cdef int i
    page.dirty, page.present = True, 0
    for i in range(PAGE_SEQUENCES):
        if current is NULL or current.now.units[i] == GONE:
            page.now.units[i], page.now.eras[i] = GONE, 0
            continue
        page.present += 1
        if page.now.units[i] in (0, GONE):
            page.now.units[i] = 0
            page.now.eras[i] = era if current.now.units[i] else current.now.eras[i]


cdef class Usage:

    def __cinit__(self):
        self.pages = NULL
        self.replaced = set()

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.page_count):
            if self.pages[i] is not NULL:
                PyMem_Free(self.pages[i].frozen)
                PyMem_Free(self.pages[i])
        PyMem_Free(self.pages)
        self.pages = NULL

    # --- counting -----------------------------------------------------------------------

    cdef void adjust_frozen(self, uint32_t sequence, int units) noexcept:
        cdef UsagePage* page = page_of(self, sequence)
        cdef uint32_t place = sequence % PAGE_SEQUENCES
        cdef int count = 0
        if page is not NULL:  # a chunk opened since the freeze holds only checkpoint pages
            count = page.frozen.units[place] if page.frozen.units[place] != GONE or units < 0 else 0
        if page is NULL or not 0 <= count + units <= CHUNK_UNITS:
            self.faults += 1
            return
        page.frozen.units[place] = <uint16_t>(count + units)
        page.frozen.eras[place] = 0
        page.frozen_dirty = True

    cdef int move_page(self, PageRef* old, PageRef* new) except -1:
        """Count a stored leaf or directory page at its new place instead of its old one.

        Raises: LookupError when the new chunk is not open; nothing is changed then.
        """
        cdef uint32_t old_units = units_of(old.size_bytes), new_units = units_of(new.size_bytes)
        if new.sequence and not is_open(self, new.sequence):
            raise LookupError(f"chunk {new.sequence} is not open for a map page")
        if new.sequence:
            add(self, new.sequence, new_units)
            if self.frozen:
                self.adjust_frozen(new.sequence, <int>new_units)
        if old.sequence and old.base == 0:  # its own volume counts any other page
            subtract(self, old.sequence, old_units)
            if self.frozen:
                self.adjust_frozen(old.sequence, -<int>old_units)
        return 0

    # --- pages --------------------------------------------------------------------------

    cdef UsagePage* create_page(self, uint32_t index) except NULL:
        """The page of that index, made when there is none."""
        cdef uint32_t first = self.first_page if self.page_count else index
        cdef uint32_t end = max(first + self.page_count, index + 1)
        cdef UsagePage** pages
        cdef UsagePage* page
        first = min(first, index)
        if end - first > self.page_count:
            pages = <UsagePage**>PyMem_Calloc(end - first, sizeof(UsagePage*))
            if pages is NULL:
                raise MemoryError
            if self.page_count:
                memcpy(pages + (self.first_page - first), self.pages,
                       self.page_count * sizeof(UsagePage*))
            PyMem_Free(self.pages)
            self.pages, self.first_page, self.page_count = pages, first, end - first
        if self.pages[index - first] is NULL:
            page = <UsagePage*>PyMem_Calloc(1, sizeof(UsagePage))
            if page is NULL:
                raise MemoryError
            memset(page.now.units, 0xFF, sizeof(page.now.units))
            if self.frozen and self.freeze_page(page) < 0:
                PyMem_Free(page)
                raise MemoryError
            self.pages[index - first] = page
        return self.pages[index - first]

    cdef int freeze_page(self, UsagePage* page) noexcept:
        page.frozen = <UsageTable*>PyMem_Malloc(sizeof(UsageTable))
        if page.frozen is NULL:
            return -1
        memcpy(page.frozen, &page.now, sizeof(UsageTable))
        page.frozen_dirty = page.dirty
        return 0

    cdef int freeze(self) except -1:
        cdef uint32_t i
        for i in range(self.page_count):
            if self.pages[i] is not NULL and self.freeze_page(self.pages[i]) < 0:
                self.thaw()
                raise MemoryError
        self.frozen = True
        return 0

    cdef void thaw(self) noexcept:
        """Forget the frozen tables, and the pages that hold nothing any more."""
        cdef uint32_t i, skip = 0
        cdef UsagePage* page
        self.frozen = False
        for i in range(self.page_count):
            page = self.pages[i]
            if page is NULL:
                continue
            PyMem_Free(page.frozen)
            page.frozen = NULL
            page.frozen_dirty = False
            if page.present == 0 and page.ref.sequence == 0:
                PyMem_Free(page)
                self.pages[i] = NULL
        while self.page_count and self.pages[self.page_count - 1] is NULL:
            self.page_count -= 1
        while skip < self.page_count and self.pages[skip] is NULL:
            skip += 1
        if skip:
            self.page_count -= skip
            self.first_page += skip
            memmove(self.pages, self.pages + skip, self.page_count * sizeof(UsagePage*))

    cdef UsagePage* frozen_page(self, index) except NULL:
        """Raises: LookupError outside a checkpoint or when there is no such page."""
        cdef UsagePage* page = NULL
        if 0 <= index < PAGES_MAX:
            page = page_of(self, <uint32_t>index * PAGE_SEQUENCES)
        if page is NULL or not self.frozen:
            raise LookupError(f"no usage page {index} is being written")
        return page

    def dirty_pages(self):
        return [self.first_page + i for i in range(self.page_count) if self.pages[i] is not NULL
                and (self.pages[i].frozen_dirty if self.frozen else self.pages[i].dirty)]

    def encode(self, index):
        return encode_usage(index, self.frozen_page(index).frozen)

    def written(self, index, sequence, offset, size_bytes, crc):
        cdef UsagePage* page = self.frozen_page(index)
        cdef PageRef ref
        set_ref(&ref, sequence, offset, size_bytes, crc)
        if ref.sequence and not is_open(self, ref.sequence):
            raise LookupError(f"chunk {sequence} is not open for a usage page")
        if page.ref.sequence:
            self.replaced.add(page.ref.sequence)
        page.ref = ref
        page.frozen_dirty = False
        page.dirty = memcmp(&page.now, page.frozen, sizeof(UsageTable)) != 0

    def load(self, bytes content, index, sequence, offset, size_bytes, crc):
        """Take a stored page in.  Raises: Corruption, UnknownVersion."""
        cdef UsageTable table
        cdef PageRef ref
        cdef int present = decode_usage(content, index, &table), i
        set_ref(&ref, sequence, offset, size_bytes, crc)
        cdef UsagePage* page = self.create_page(index)
        page.now = table
        page.ref = ref
        page.present = <uint32_t>present
        for i in range(PAGE_SEQUENCES):
            self.total_units += table.units[i] if table.units[i] != GONE else 0

    def mark_dirty(self, sequences):
        """Have the pages that lie in these chunks written anew."""
        cdef uint32_t i
        for i in range(self.page_count):
            if self.pages[i] is not NULL and self.pages[i].ref.sequence in sequences:
                self.pages[i].dirty = True

    # --- the usage of another map of the volume -------------------------------------------

    cdef int adopt(self, Usage current, uint32_t era) except -1:
        """See BlockMap.adopt_usage.  Raises: Corruption, and nothing is changed."""
        cdef uint32_t i
        if self.faults or current.faults:
            raise Corruption("the live units of a map do not add up")
        for i in range(self.page_count):
            if self.pages[i] is not NULL:
                require_chunks(self.pages[i], page_of(current, self.sequence_at(i)),
                               self.sequence_at(i))
        for i in range(current.page_count):
            if current.pages[i] is not NULL:
                self.create_page(current.first_page + i)
        self.replaced |= current.pinned_sequences()
        for i in range(self.page_count):
            if self.pages[i] is not NULL:
                adopt_page(self.pages[i], page_of(current, self.sequence_at(i)), era)
        return 0

    cdef uint32_t sequence_at(self, uint32_t place) noexcept:
        """The first sequence of pages[place]."""
        return (self.first_page + place) * PAGE_SEQUENCES

    def references(self):
        return [(self.first_page + i, ref.sequence, ref.offset, ref.size_bytes, ref.crc, ref.base)
                for i in range(self.page_count) if self.pages[i] is not NULL
                for ref in [self.pages[i].ref] if ref.sequence]

    # --- chunks -------------------------------------------------------------------------

    def open_sequence(self, sequence):
        if not 0 < sequence < SEQUENCES_MAX:
            raise ValueError(f"{sequence} is not a chunk's sequence number")
        cdef UsagePage* page = self.create_page(sequence // PAGE_SEQUENCES)
        cdef uint32_t place = sequence % PAGE_SEQUENCES
        if page.now.units[place] != GONE:
            return
        page.now.units[place] = 0
        page.present += 1
        page.dirty = True

    def drop_sequence(self, sequence):
        if self.live(sequence) is None:
            return
        cdef UsagePage* page = page_of(self, sequence)
        cdef uint32_t place = sequence % PAGE_SEQUENCES
        if (self.faults or page.now.units[place] != 0 or sequence in self.pinned_sequences()
                or self.frozen and page.frozen.units[place] not in (0, GONE)):
            raise ValueError(f"chunk {sequence} still holds something that the map needs")
        page.now.units[place], page.now.eras[place] = GONE, 0
        page.present -= 1
        page.dirty = True

    def live(self, sequence):
        cdef UsagePage* page
        if not 0 <= sequence < SEQUENCES_MAX or not is_open(self, sequence):
            return None
        page = page_of(self, sequence)
        return page.now.units[<uint32_t>sequence % PAGE_SEQUENCES]

    def dead(self, first, last, unassigned=False):
        cdef uint64_t sequence = max(first, <uint64_t>self.first_page * PAGE_SEQUENCES)
        cdef uint64_t end = min(
            last + 1, (<uint64_t>self.first_page + self.page_count) * PAGE_SEQUENCES)
        cdef bint any_era = not unassigned
        cdef UsagePage* page
        found = []
        while not self.faults and sequence < end:
            page = page_of(self, <uint32_t>sequence)
            if page is NULL:
                sequence = (sequence // PAGE_SEQUENCES + 1) * PAGE_SEQUENCES
                continue
            if (page.now.units[sequence % PAGE_SEQUENCES] == 0
                    and (any_era or page.now.eras[sequence % PAGE_SEQUENCES] == 0)):
                found.append(sequence)
            sequence += 1
        return found

    def era(self, sequence):
        if self.live(sequence) is None:
            return 0
        return page_of(self, sequence).now.eras[<uint32_t>sequence % PAGE_SEQUENCES]

    def set_era(self, sequence, era):
        if not 0 <= era < SEQUENCES_MAX:
            raise ValueError(f"{era} is not the number of a snapshot")
        live = self.live(sequence)
        if live != 0:
            raise LookupError(f"chunk {sequence} is not dead: its live units are {live}")
        cdef UsagePage* page = page_of(self, sequence)
        cdef uint32_t place = sequence % PAGE_SEQUENCES
        if page.now.eras[place] != <uint32_t>era:
            page.now.eras[place] = <uint32_t>era
            page.dirty = True

    def pinned_sequences(self):
        return self.replaced | {reference[1] for reference in self.references()}

    def forget_replaced(self):
        self.replaced.clear()

    def counts(self):
        """The counts of every chunk, for verification."""
        return {(self.first_page + i) * PAGE_SEQUENCES + place: self.pages[i].now.units[place]
                for i in range(self.page_count) if self.pages[i] is not NULL
                for place in range(PAGE_SEQUENCES) if self.pages[i].now.units[place] != GONE}
