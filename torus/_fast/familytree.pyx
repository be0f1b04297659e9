"""In whose log, and in which chunks, the blocks and pages of a map lie.

Decides which pages a checkpoint has to write anew so that chunks of the volume, or the logs of
its ancestors, are needed no more.  Does not move blocks, and does not write anything: it makes
pages dirty, and the next checkpoint writes them.  Walks directories in memory: 64 TiB of
addresses have 16 million leaves, which takes a tenth of a second.
"""

from array import array

from torus._fast.leaftree cimport Directory, Leaf, Slot
from torus._fast.mappages cimport DIRECTORY_LEAVES, LEAF_ENTRIES, PageRef


cdef bint lies_in(const PageRef* ref, const uint32_t[::1] sequences) noexcept:
    """Whether an own page lies in one of the chunks, whose numbers ascend."""
    cdef Py_ssize_t low = 0, high = sequences.shape[0], middle
    if ref.sequence == 0 or ref.base != 0:
        return False
    if high == 0 or ref.sequence < sequences[0] or ref.sequence > sequences[high - 1]:
        return False
    while low < high:
        middle = (low + high) // 2
        if sequences[middle] < ref.sequence:
            low = middle + 1
        else:
            high = middle
    return sequences[low] == ref.sequence


cdef bint has_inherited(const Leaf* leaf) noexcept:
    cdef int i
    for i in range(LEAF_ENTRIES):
        if leaf.entries[i].sequence and leaf.entries[i].base:
            return True
    return False


cdef class FamilyTree(CheckpointTree):

    cdef int require_quiet(self) except -1:
        if not self.usable:
            raise LookupError("directories or usage pages of the map are not loaded yet")
        if self.in_checkpoint:
            raise LookupError("a checkpoint is under way")
        return 0

    # --- pages to be written anew -------------------------------------------------------

    def mark_pages_dirty(self, sequences):
        cdef const uint32_t[::1] chunks = array("I", sorted(sequences))
        cdef Directory* directory
        cdef Slot* slot
        cdef uint32_t i
        cdef int j
        self.require_quiet()
        self.usage.mark_dirty(sequences)
        leaves = []
        for i in range(self.directory_count):
            directory = self.directories[i]
            if directory is NULL:
                continue
            if lies_in(&directory.ref, chunks):
                directory.dirty = True
            for j in range(DIRECTORY_LEAVES):
                slot = &directory.slots[j]
                if lies_in(&slot.ref, chunks) and (slot.leaf is NULL or not slot.leaf.dirty):
                    leaves.append((<uint64_t>i << 10) + j)
        return leaves

    def touch_leaf(self, index):
        self.mark_changed(self.leaf_at(index))

    # --- ancestors ------------------------------------------------------------------------

    def mark_inherited_dirty(self):
        cdef uint32_t i, marked = 0
        self.require_quiet()
        for i in range(self.directory_count):
            if self.directories[i] is not NULL and self.directories[i].ref.base:
                self.directories[i].dirty = True
                marked += 1
        return marked

    def has_inherited_pages(self):
        cdef Directory* directory
        cdef uint32_t i
        cdef int j
        if not self.usable:
            raise LookupError("directories or usage pages of the map are not loaded yet")
        for i in range(self.directory_count):
            directory = self.directories[i]
            if directory is NULL:
                continue
            if directory.ref.base:
                return True
            for j in range(DIRECTORY_LEAVES):
                if directory.slots[j].ref.base:
                    return True
        return False

    def inherited_leaves(self, uint64_t first_leaf, Py_ssize_t limit):
        cdef uint64_t index = first_leaf, end = <uint64_t>self.directory_count << 10
        cdef Slot* slot
        if not self.usable:
            raise LookupError("directories or usage pages of the map are not loaded yet")
        found = []
        while index < end and len(found) < limit:
            slot = self.slot_of(index)
            if slot is NULL:
                index = ((index >> 10) + 1) << 10
                continue
            if slot.ref.sequence if slot.leaf is NULL else has_inherited(slot.leaf):
                found.append(index)
            index += 1
        return found

    def depths(self, uint64_t block, uint64_t count, Py_ssize_t limit):
        return self.walk(block, count, limit, True)

    cdef object walk(self, uint64_t block, uint64_t count, Py_ssize_t limit, bint by_depth):
        """The runs of blocks that are alike, and where the walk stopped: at the first leaf that
        is not in memory, or at the limit.  A run has its depth, or only whether it is mapped."""
        cdef uint64_t end = block + count, cold = block >> 10, length = 0, part
        cdef uint32_t kind = 0, part_kind = 0
        cdef bint mapped = False
        self.check_range(block, count)
        if not self.usable:
            return [], block
        if self.next_cold(&cold, (end + LEAF_ENTRIES - 1) >> 10):
            end = max(block, cold << 10)
        found = []
        while block < end:
            if by_depth:
                part = self.depth_piece(block, end, &part_kind)
            else:
                part = self.piece(block, end, &mapped)
                part_kind = mapped
            if length and part_kind != kind:
                found.append((length, kind if by_depth else kind != 0))
                length = 0
            if len(found) >= limit:
                break
            kind = part_kind
            length += part
            block += part
        if length:
            found.append((length, kind if by_depth else kind != 0))
        return found, block

    cdef uint64_t depth_piece(self, uint64_t block, uint64_t end, uint32_t* depth) noexcept:
        """How many blocks from `block` on, below `end`, have one depth: base + 1, 0 unmapped."""
        cdef bint mapped = False
        cdef uint64_t part = self.piece(block, end, &mapped), i = 1
        cdef const Leaf* leaf
        cdef uint32_t first = <uint32_t>(block % LEAF_ENTRIES)
        depth[0] = 0
        if mapped:  # then it is a piece of one leaf
            leaf = self.slot_of(block >> 10).leaf
            depth[0] = <uint32_t>leaf.entries[first].base + 1
            while i < part and leaf.entries[first + i].base == leaf.entries[first].base:
                i += 1
            part = i
        return part
