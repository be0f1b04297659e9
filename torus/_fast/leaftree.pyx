"""Keeps the leaves of a block map in memory: look up, set, clear, evict.

Decides which entry a block has, which leaves are dirty and which may leave memory, and keeps
the live units of every chunk in step with the entries.  Does not read or write pages, and
does not decide when: a leaf that is stored but not in memory ("cold") stops a request, and
its caller loads it.  blockmap.pyx adds loading, checkpoints and the root.

    directories[block >> 20] -> slots[1024] -> Leaf (1024 entries) and the stored page's place

A leaf is on one of two lists.  Clean leaves wait for eviction (second chance), dirty ones to
be written (oldest change first).  Used by one thread; nothing here lets go of the GIL.
"""

from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from libc.string cimport memcpy, memset

from torus._fast.mappages cimport BLOCK_UNITS, CHUNK_UNITS
from torus._fast.usage cimport add, is_open, subtract

cdef enum:
    LEAF_SHIFT = 10
    DIRECTORY_SHIFT = 20
    COPY_BYTES = LEAF_ENTRIES * sizeof(Entry)
    SIZE_BLOCKS_BITS = 34        # 64 TiB


cdef inline Leaf* leaf_in_memory(LeafTree tree, uint64_t block) noexcept:
    """The leaf of a block inside the volume; NULL when it is absent or cold."""
    cdef Directory* directory = tree.directories[block >> DIRECTORY_SHIFT]
    if directory is NULL:
        return NULL
    return directory.slots[(block >> LEAF_SHIFT) % DIRECTORY_LEAVES].leaf


cdef inline bint is_ready(LeafTree tree, uint64_t block, uint64_t count) noexcept:
    """The common case of a write: one leaf, in memory, that no checkpoint waits for."""
    cdef Leaf* leaf = NULL
    if (tree.usable and block < tree.size_blocks and count <= tree.size_blocks - block
            and block % LEAF_ENTRIES + count <= LEAF_ENTRIES):
        leaf = leaf_in_memory(tree, block)
    return leaf is not NULL and not leaf.frozen


cdef class LeafTree:

    def __cinit__(self, size_blocks, cache_bytes):
        self.usage = Usage()
        self.usable = True
        self.cache_bytes = cache_bytes
        if not 0 < size_blocks <= <uint64_t>1 << SIZE_BLOCKS_BITS:
            raise ValueError(f"a volume of {size_blocks} blocks is not possible")
        self.grow(size_blocks)
        self.size_blocks = size_blocks

    def __dealloc__(self):
        cdef uint32_t i
        cdef int j
        for i in range(self.directory_count):
            if self.directories[i] is not NULL:
                for j in range(DIRECTORY_LEAVES):
                    if self.directories[i].slots[j].leaf is not NULL:
                        PyMem_Free(self.directories[i].slots[j].leaf.copy)
                        PyMem_Free(self.directories[i].slots[j].leaf)
                PyMem_Free(self.directories[i])
        PyMem_Free(self.directories)
        self.directories = NULL

    # --- the hot four -------------------------------------------------------------------

    cdef Py_ssize_t lookup(self, uint64_t block, Py_ssize_t count, Entry* out) noexcept:
        cdef Py_ssize_t done = 0, part
        cdef Directory* directory
        cdef Slot* slot
        if (not self.usable or count <= 0 or block >= self.size_blocks
                or <uint64_t>count > self.size_blocks - block):
            return 0
        while done < count:
            part = min(LEAF_ENTRIES - <Py_ssize_t>(block % LEAF_ENTRIES), count - done)
            directory = self.directories[block >> DIRECTORY_SHIFT]
            slot = NULL
            if directory is not NULL:
                slot = &directory.slots[(block >> LEAF_SHIFT) % DIRECTORY_LEAVES]
            if slot is not NULL and slot.leaf is not NULL:
                slot.leaf.referenced = True
                memcpy(out + done, slot.leaf.entries + block % LEAF_ENTRIES,
                       <size_t>part * sizeof(Entry))
            elif slot is not NULL and slot.ref.sequence:
                break
            else:
                memset(out + done, 0, <size_t>part * sizeof(Entry))
            done += part
            block += <uint64_t>part
        return done

    cdef int set_run(self, uint64_t block, uint32_t count, uint32_t sequence,
                     uint32_t offset, const uint32_t* crcs) except -1:
        cdef uint32_t first, part
        if offset + <uint64_t>count * BLOCK_UNITS > CHUNK_UNITS:
            raise ValueError(f"{count} blocks do not fit into a chunk at unit {offset}")
        if not is_open(self.usage, sequence):
            raise LookupError(f"chunk {sequence} is not open")
        if not is_ready(self, block, count):
            self.prepare_run(block, count)
        while count > 0:
            first = <uint32_t>(block % LEAF_ENTRIES)
            part = min(LEAF_ENTRIES - first, count)
            self.put_entries(leaf_in_memory(self, block), first, part, sequence, offset, crcs)
            block += part
            count -= part
            offset += part * BLOCK_UNITS
            crcs += part
        return 0

    cdef int clear_run(self, uint64_t block, uint64_t count) except -1:
        cdef uint64_t index, end = block + count, start, leaf_end
        cdef uint32_t first, last, change
        cdef bint mapped
        cdef Leaf* leaf
        self.require_resident(block, count)
        for change in range(2):  # first make the copies that may fail, then clear
            index = block >> LEAF_SHIFT
            leaf_end = (end + LEAF_ENTRIES - 1) >> LEAF_SHIFT
            leaf = self.next_leaf(&index, leaf_end)
            while leaf is not NULL:
                start = index << LEAF_SHIFT
                first = <uint32_t>(block - start) if block > start else 0
                last = <uint32_t>min(<uint64_t>LEAF_ENTRIES, end - start)
                if self.piece(start + first, start + last, &mapped) < last - first or mapped:
                    if change:
                        self.mark_changed(leaf)
                        self.release_entries(leaf, first, last)
                        memset(leaf.entries + first, 0, (last - first) * sizeof(Entry))
                    else:
                        self.prepare(leaf)
                index += 1
                leaf = self.next_leaf(&index, leaf_end)
        return 0

    cdef bint resident(self, uint64_t block, uint64_t count) noexcept:
        cdef uint64_t index = block >> LEAF_SHIFT
        cdef uint64_t end = min(self.size_blocks, block + min(count, self.size_blocks))
        return self.usable and not self.next_cold(&index, (end + LEAF_ENTRIES - 1) >> LEAF_SHIFT)

    # --- entries ------------------------------------------------------------------------

    cdef int prepare_run(self, uint64_t block, uint64_t count) except -1:
        """Make the leaves of a range, and the copies that a checkpoint needs of them.

        Raises: ValueError, LookupError, MemoryError; no entry has changed then.
        """
        cdef uint64_t index
        self.require_resident(block, count)
        if count:
            for index in range(block >> LEAF_SHIFT, ((block + count - 1) >> LEAF_SHIFT) + 1):
                self.prepare(self.create_leaf(<uint32_t>index))
        return 0

    cdef void put_entries(self, Leaf* leaf, uint32_t first, uint32_t count, uint32_t sequence,
                          uint32_t offset, const uint32_t* crcs) noexcept:
        """Write entries of one leaf, which is prepared."""
        cdef uint32_t i
        cdef Entry* entry = leaf.entries + first
        self.mark_changed(leaf)
        self.release_entries(leaf, first, first + count)
        for i in range(count):
            entry[i].sequence = sequence
            entry[i].offset = <uint16_t>(offset + i * BLOCK_UNITS)
            entry[i].base = 0
            entry[i].crc = crcs[i]
        leaf.present += <uint16_t>count
        self.mapped_blocks += count
        add(self.usage, sequence, count * BLOCK_UNITS)

    cdef void release_entries(self, Leaf* leaf, uint32_t first, uint32_t end) noexcept:
        """Take entries out of every count, before they are overwritten."""
        cdef uint32_t i, sequence = 0, units = 0, gone = 0
        if leaf.present == 0:
            return
        for i in range(first, end):
            if leaf.entries[i].sequence == 0:
                continue
            gone += 1
            if leaf.entries[i].base != 0:
                continue  # the chunk belongs to another volume, which counts for itself
            if leaf.entries[i].sequence != sequence:  # one call per run of a chunk
                if units:
                    subtract(self.usage, sequence, units)
                sequence, units = leaf.entries[i].sequence, 0
            units += BLOCK_UNITS
        if units:
            subtract(self.usage, sequence, units)
        leaf.present -= <uint16_t>gone
        self.mapped_blocks -= gone

    cdef uint64_t piece(self, uint64_t block, uint64_t end, bint* mapped) noexcept:
        """How many blocks from `block` on, below `end`, are all mapped or all unmapped."""
        cdef uint64_t index = block >> LEAF_SHIFT, start
        cdef Leaf* leaf = self.next_leaf(&index, (end + LEAF_ENTRIES - 1) >> LEAF_SHIFT)
        cdef uint32_t first, last, i
        mapped[0] = False
        start = index << LEAF_SHIFT
        if leaf is NULL or start > block:
            return (end if leaf is NULL else min(end, start)) - block
        first, last = <uint32_t>(block - start), <uint32_t>min(<uint64_t>LEAF_ENTRIES, end - start)
        mapped[0] = leaf.entries[first].sequence != 0
        if leaf.present == LEAF_ENTRIES or leaf.present == 0:
            return last - first
        i = first + 1
        while i < last and (leaf.entries[i].sequence != 0) == mapped[0]:
            i += 1
        return i - first

    # --- leaves -------------------------------------------------------------------------

    cdef int check_range(self, uint64_t block, uint64_t count) except -1:
        if block > self.size_blocks or count > self.size_blocks - block:
            raise ValueError(f"blocks {block}+{count} are outside the {self.size_blocks} blocks "
                             "of the volume")
        return 0

    cdef int require_resident(self, uint64_t block, uint64_t count) except -1:
        cdef uint64_t index = block >> LEAF_SHIFT
        self.check_range(block, count)
        if not self.usable:
            raise LookupError("directories or usage pages of the map are not loaded yet")
        if self.next_cold(&index, (block + count + LEAF_ENTRIES - 1) >> LEAF_SHIFT):
            raise LookupError(f"map leaf {index} is stored but not in memory")
        return 0

    cdef Slot* slot_of(self, uint64_t index) noexcept:
        """The slot of a leaf; NULL when its directory does not exist."""
        if index >> 10 >= self.directory_count or self.directories[index >> 10] is NULL:
            return NULL
        return &self.directories[index >> 10].slots[index % DIRECTORY_LEAVES]

    cdef int grow(self, uint64_t size_blocks) except -1:
        """Make room for the directories of a volume of that size; never shrinks."""
        cdef uint32_t count = <uint32_t>((size_blocks + (1 << DIRECTORY_SHIFT) - 1)
                                         >> DIRECTORY_SHIFT)
        cdef Directory** directories
        if count > self.directory_count:
            directories = <Directory**>PyMem_Calloc(count, sizeof(Directory*))
            if directories is NULL:
                raise MemoryError
            if self.directory_count:
                memcpy(directories, self.directories, self.directory_count * sizeof(Directory*))
            PyMem_Free(self.directories)
            self.directories, self.directory_count = directories, count
        return 0

    cdef Directory* create_directory(self, uint32_t index) except NULL:
        """The directory of that index, made when there is none."""
        if self.directories[index] is NULL:
            self.directories[index] = <Directory*>PyMem_Calloc(1, sizeof(Directory))
            if self.directories[index] is NULL:
                raise MemoryError
        return self.directories[index]

    cdef Leaf* create_leaf(self, uint32_t index) except NULL:
        """The leaf of that index, made empty and clean when there is none."""
        cdef Directory* directory = self.create_directory(index >> 10)
        cdef Slot* slot = &directory.slots[index % DIRECTORY_LEAVES]
        if slot.leaf is NULL:
            slot.leaf = <Leaf*>PyMem_Calloc(1, sizeof(Leaf))
            if slot.leaf is NULL:
                raise MemoryError
            slot.leaf.index = index
            append(&self.clean, slot.leaf)
            directory.resident += 1
            directory.cold -= slot.ref.sequence != 0
        return slot.leaf

    cdef void free_leaf(self, Leaf* leaf) noexcept:
        """Let a clean leaf go; it is cold afterwards when it has a stored page."""
        cdef Directory* directory = self.directories[leaf.index >> 10]
        cdef Slot* slot = &directory.slots[leaf.index % DIRECTORY_LEAVES]
        remove(&self.clean, leaf)
        slot.leaf = NULL
        directory.resident -= 1
        directory.cold += slot.ref.sequence != 0
        PyMem_Free(leaf)

    cdef Leaf* next_leaf(self, uint64_t* index, uint64_t end) noexcept:
        """The first leaf in memory at or after index[0], below end; index[0] moves to it."""
        cdef Directory* directory
        cdef Leaf* leaf
        while index[0] < end:
            directory = self.directories[index[0] >> 10]
            if directory is NULL or directory.resident == 0:
                index[0] = ((index[0] >> 10) + 1) << 10
                continue
            leaf = directory.slots[index[0] % DIRECTORY_LEAVES].leaf
            if leaf is not NULL:
                return leaf
            index[0] += 1
        return NULL

    cdef bint next_cold(self, uint64_t* index, uint64_t end) noexcept:
        """Whether a leaf at or after index[0], below end, is cold; index[0] moves to it."""
        cdef Directory* directory
        cdef Slot* slot
        while index[0] < end:
            directory = self.directories[index[0] >> 10]
            if directory is NULL or directory.cold == 0:
                index[0] = ((index[0] >> 10) + 1) << 10
                continue
            slot = &directory.slots[index[0] % DIRECTORY_LEAVES]
            if slot.leaf is NULL and slot.ref.sequence:
                return True
            index[0] += 1
        return False

    cdef int prepare(self, Leaf* leaf) except -1:
        """Save what a checkpoint still has to encode, before the leaf changes."""
        if leaf.frozen and leaf.copy is NULL:
            leaf.copy = <Entry*>PyMem_Malloc(COPY_BYTES)
            if leaf.copy is NULL:
                raise MemoryError
            memcpy(leaf.copy, leaf.entries, COPY_BYTES)
            self.copies += 1
        return 0

    cdef void drop_copy(self, Leaf* leaf) noexcept:
        if leaf.copy is not NULL:
            PyMem_Free(leaf.copy)
            leaf.copy = NULL
            self.copies -= 1

    cdef void mark_changed(self, Leaf* leaf) noexcept:
        leaf.changed = True
        leaf.referenced = True
        if not leaf.dirty:
            leaf.dirty = True
            remove(&self.clean, leaf)
            append(&self.dirty, leaf)

    cdef void mark_clean(self, Leaf* leaf) noexcept:
        leaf.dirty = False
        remove(&self.dirty, leaf)
        append(&self.clean, leaf)
