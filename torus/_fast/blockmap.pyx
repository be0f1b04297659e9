"""The map of one volume: block number -> where the newest copy of the block lies in its log.

Decides nothing of its own: it puts Python's calls on the tree (leaftree.pyx), its
checkpoints (checkpoint.pyx) and ancestors (familytree.pyx), loads pages into it and opens a
map from its root.  No I/O.  Pages are described in docs/format-map.md.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from torus._fast.crc cimport crc32c
from torus._fast.leaftree cimport Directory, Leaf, Slot, append, remove
from torus._fast.mappages cimport (
    BLOCK_UNITS, DIRECTORY_LEAVES, LEAF_ENTRIES, decode_leaf, decode_refs, decode_root, set_ref,
    shift_entries, shift_refs, shift_root_refs, units_of
)

from torus.errors import Corruption

cdef enum:
    COPY_BYTES = LEAF_ENTRIES * sizeof(Entry)


cdef int check_page(str name, bytes page, uint32_t size_bytes, uint32_t crc) except -1:
    cdef uint32_t found = crc32c(0, PyBytes_AS_STRING(page), <size_t>PyBytes_GET_SIZE(page))
    if PyBytes_GET_SIZE(page) != size_bytes or found != crc:
        raise Corruption(f"{name}: {len(page)} bytes with CRC {found:#010x}, expected "
                         f"{size_bytes} with {crc:#010x}")
    return 0


cdef class BlockMap(FamilyTree):

    def __cinit__(self, size_blocks, cache_bytes):
        self.directories_unloaded = {}
        self.usage_unloaded = {}

    # --- blocks -------------------------------------------------------------------------

    def set(self, block, bytes crcs, sequence, offset):
        if len(crcs) % 4:
            raise ValueError("the CRCs are not whole 32-bit numbers")
        self.set_run(block, <uint32_t>(len(crcs) // 4), sequence, offset,
                     <const uint32_t*>PyBytes_AS_STRING(crcs))

    def clear(self, block, count):
        self.clear_run(block, count)

    def get(self, block):
        cdef Entry entry
        self.require_resident(block, 1)
        self.lookup(block, 1, &entry)
        if entry.sequence == 0:
            return None
        return entry.sequence, entry.offset, entry.base, entry.crc

    def entries_crc(self, uint64_t block, Py_ssize_t count):
        cdef Entry entries[LEAF_ENTRIES]
        cdef Py_ssize_t done = 0, part, i
        self.require_resident(block, count)
        cdef bytes crcs = PyBytes_FromStringAndSize(NULL, count * 4)
        cdef uint32_t* out = <uint32_t*>PyBytes_AS_STRING(crcs)
        while done < count:
            part = self.lookup(block + done, min(count - done, LEAF_ENTRIES), entries)
            for i in range(part):
                out[done + i] = entries[i].crc
            done += part
        return crcs

    def runs(self, uint64_t block, uint64_t count):
        cdef Entry entries[LEAF_ENTRIES]
        cdef Entry first
        cdef uint64_t end = block + count, start = 0, length = 0
        cdef Py_ssize_t part, i
        self.require_resident(block, count)
        found = []
        while block < end:
            part = self.lookup(block, min(end - block, <uint64_t>LEAF_ENTRIES), entries)
            for i in range(part):
                if (length and entries[i].sequence == first.sequence
                        and entries[i].base == first.base
                        and entries[i].offset == first.offset + length * BLOCK_UNITS):
                    length += 1
                    continue
                if length:
                    found.append((start, length, first.sequence, first.offset, first.base))
                first, start, length = entries[i], block + i, entries[i].sequence != 0
            block += part
        if length:
            found.append((start, length, first.sequence, first.offset, first.base))
        return found

    def extents(self, uint64_t block, uint64_t count, Py_ssize_t limit):
        return self.walk(block, count, limit, False)

    def resize(self, uint64_t size_blocks):
        if not 0 < size_blocks <= <uint64_t>1 << 34:
            raise ValueError(f"a volume of {size_blocks} blocks is not possible")
        if size_blocks < self.size_blocks:
            self.clear_run(size_blocks, self.size_blocks - size_blocks)
        self.grow(size_blocks)
        self.size_blocks = size_blocks

    # --- leaves in and out of memory ------------------------------------------------------

    def missing(self, uint64_t block, uint64_t count, limit=None):
        cdef uint64_t index = block >> 10, end = (block + count + LEAF_ENTRIES - 1) >> 10
        cdef PageRef ref
        self.check_range(block, count)
        found = []
        while (limit is None or len(found) < limit) and self.next_cold(&index, end):
            ref = self.slot_of(index).ref
            found.append((index, ref.sequence, ref.offset, ref.size_bytes, ref.crc, ref.base))
            index += 1
        return found

    def load_leaf(self, index, bytes page, sequence=None, offset=None, base=0):
        cdef Entry entries[LEAF_ENTRIES]
        cdef Slot* slot = self.slot_of(index)
        cdef uint64_t block = <uint64_t>index << 10
        cdef int i, present
        cdef Leaf* leaf
        if slot is NULL or slot.leaf is not NULL or slot.ref.sequence == 0:
            return False
        if sequence is not None and (sequence, offset, base) != (
                slot.ref.sequence, slot.ref.offset, slot.ref.base):
            return False
        check_page(f"map leaf {index} in chunk {slot.ref.sequence} at unit {slot.ref.offset}",
                   page, slot.ref.size_bytes, slot.ref.crc)
        present = decode_leaf(page, index, entries)
        shift_entries(index, entries, slot.ref.base)
        for i in range(LEAF_ENTRIES):
            if entries[i].sequence and block + <uint64_t>i >= self.size_blocks:
                raise Corruption(f"map leaf {index} maps block {block + i} of a volume of "
                                 f"{self.size_blocks} blocks")
        leaf = self.create_leaf(index)
        memcpy(leaf.entries, entries, COPY_BYTES)
        leaf.present = <uint16_t>present
        return True

    @property
    def leaf_count(self):
        return self.clean.length + self.dirty.length

    @property
    def resident_bytes(self):
        return self.leaf_count * sizeof(Leaf) + self.copies * COPY_BYTES

    @property
    def dirty_bytes(self):
        return self.dirty.length * sizeof(Leaf) + self.copies * COPY_BYTES

    def evict(self, target_bytes=None):
        cdef Py_ssize_t target = self.cache_bytes if target_bytes is None else target_bytes
        cdef Py_ssize_t freed = 0, tries = 2 * self.clean.length
        cdef Py_ssize_t excess = self.resident_bytes - target
        cdef Leaf* leaf
        while freed < excess and tries > 0 and self.clean.first is not NULL:
            leaf = self.clean.first
            tries -= 1
            if leaf.referenced:
                leaf.referenced = False
                remove(&self.clean, leaf)
                append(&self.clean, leaf)
            else:
                self.free_leaf(leaf)
                freed += sizeof(Leaf)
        return freed

    def oldest_dirty(self, count):
        cdef Leaf* leaf = self.dirty.first
        found = []
        while leaf is not NULL and len(found) < count:
            found.append(leaf.index)
            leaf = leaf.next
        return found

    # --- opening from a root --------------------------------------------------------------

    @classmethod
    def from_root(cls, bytes root, cache_bytes, uint64_t base=0):
        size_blocks, mapped_blocks, directories, usage = decode_root(root)
        if base:  # the chunks are counted by the volume that owns them
            directories, usage = shift_root_refs(directories, base), []
        cdef BlockMap opened = cls(size_blocks, cache_bytes)
        opened.mapped_blocks = mapped_blocks
        opened.directories_unloaded = {ref[0]: ref for ref in directories}
        opened.usage_unloaded = {ref[0]: ref for ref in usage}
        opened.usable = not directories and not usage
        return opened

    def unloaded(self):
        return ([("directory", *ref) for ref in self.directories_unloaded.values()]
                + [("usage", *ref) for ref in self.usage_unloaded.values()])

    cdef tuple expect(self, dict waiting, str level, index, bytes page):
        """The reference that the page must fit.  Raises: LookupError, Corruption."""
        if index not in waiting:
            raise LookupError(f"no map {level} page {index} is waiting to be loaded")
        ref = waiting[index]
        check_page(f"map {level} page {index} in chunk {ref[1]} at unit {ref[2]}", page,
                   ref[3], ref[4])
        return ref

    def load_directory(self, index, bytes page):
        cdef PageRef refs[DIRECTORY_LEAVES]
        cdef uint64_t leaf_end = (self.size_blocks + LEAF_ENTRIES - 1) >> 10
        cdef Directory* directory
        cdef int count, i
        ref = self.expect(self.directories_unloaded, "directory", index, page)
        count = decode_refs(page, index, refs)
        shift_refs(index, refs, ref[5])
        for i in range(DIRECTORY_LEAVES):
            if refs[i].sequence and (<uint64_t>index << 10) + i >= leaf_end:
                raise Corruption(f"map directory {index} has a leaf beyond the volume's end")
        directory = self.create_directory(index)
        for i in range(DIRECTORY_LEAVES):
            directory.slots[i].ref = refs[i]
        directory.cold = count
        set_ref(&directory.ref, ref[1], ref[2], ref[3], ref[4], ref[5])
        del self.directories_unloaded[index]
        self.usable = not self.directories_unloaded and not self.usage_unloaded

    def load_usage(self, index, bytes page):
        ref = self.expect(self.usage_unloaded, "usage", index, page)
        self.usage.load(page, *ref[:5])
        del self.usage_unloaded[index]
        self.usable = not self.directories_unloaded and not self.usage_unloaded

    # --- live units per chunk -------------------------------------------------------------

    def open_sequence(self, sequence):
        self.usage.open_sequence(sequence)

    def drop_sequence(self, sequence):
        self.usage.drop_sequence(sequence)

    def live(self, sequence):
        return self.usage.live(sequence)

    def dead(self, first, last):
        return self.usage.dead(first, last)

    def dead_unassigned(self, first, last):
        return self.usage.dead(first, last, True)

    def era(self, sequence):
        return self.usage.era(sequence)

    def set_era(self, sequence, era):
        self.usage.set_era(sequence, era)

    def adopt_usage(self, BlockMap current, era):
        if not 0 <= era < <uint64_t>1 << 32:
            raise ValueError(f"{era} is not the number of a snapshot")
        self.require_quiet()
        current.require_quiet()
        if self.dirty.length:
            raise LookupError(f"{self.dirty.length} leaves of the map have changed")
        self.usage.adopt(current.usage, era)

    def pinned_sequences(self):
        return self.usage.pinned_sequences()

    def live_units(self):
        return self.usage.total_units

    # --- self-check -----------------------------------------------------------------------

    def verify(self):
        cdef uint32_t i
        units = {}
        counts = self.usage.counts()
        recounted = [self.recount_directory(i, units) for i in range(self.directory_count)
                     if self.directories[i] is not NULL]
        mapped, leaves, cold = (sum(column) for column in zip((0, 0, 0), *recounted))
        assert self.usage.faults == 0, f"{self.usage.faults} faults in the live units"
        assert leaves == self.leaf_count, (leaves, self.leaf_count)
        assert sum(counts.values()) == self.usage.total_units, self.usage.total_units
        if cold == 0:
            assert mapped == self.mapped_blocks, (mapped, self.mapped_blocks)
            assert units == {key: value for key, value in counts.items() if value}, "live units"
        assert mapped <= self.mapped_blocks, (mapped, self.mapped_blocks)
        assert all(value <= counts.get(key, -1) for key, value in units.items()), "live units"

    cdef object recount_directory(self, uint32_t index, dict units):
        """Count from scratch: (mapped blocks, leaves in memory, cold leaves)."""
        cdef Directory* directory = self.directories[index]
        cdef int i, j
        cdef uint32_t present, mapped = 0, resident = 0, cold = 0
        cdef Leaf* leaf
        refs = [directory.ref]
        for i in range(DIRECTORY_LEAVES):
            leaf, present = directory.slots[i].leaf, 0
            refs.append(directory.slots[i].ref)
            if leaf is NULL:
                cold += directory.slots[i].ref.sequence != 0
                continue
            for j in range(LEAF_ENTRIES):
                present += leaf.entries[j].sequence != 0
                if leaf.entries[j].sequence and leaf.entries[j].base == 0:
                    sequence = leaf.entries[j].sequence
                    units[sequence] = units.get(sequence, 0) + BLOCK_UNITS
            assert present == leaf.present, f"leaf {leaf.index}: {present} != {leaf.present}"
            mapped, resident = mapped + present, resident + 1
        for ref in refs:
            if ref["sequence"] and ref["base"] == 0:
                units[ref["sequence"]] = (units.get(ref["sequence"], 0)
                                          + units_of(ref["size_bytes"]))
        assert (resident, cold) == (directory.resident, directory.cold), f"directory {index}"
        return mapped, resident, cold
