"""Checkpoints of a block map, consistent at one moment although writes go on.

Decides what a checkpoint holds (copy on write, leaf by leaf) and in which order its pages
come: leaves, then directories, then usage pages, then the root, each level naming the places
of the one before.  Does not write anything: the caller takes the bytes, appends them to the
log and tells where they lie.  Page-outs between checkpoints use the same two calls for leaves.
Out-of-turn calls raise LookupError and change nothing.
"""

from torus._fast.leaftree cimport (
    ENCODED_EMPTY, ENCODED_PAGE, NOT_ENCODED, Slot, append, remove
)
from torus._fast.mappages cimport (
    DIRECTORY_LEAVES, encode_leaf, encode_refs, encode_root, set_ref
)


cdef int gather(const Directory* directory, PageRef* refs) noexcept:
    """Copy the references out of a directory; return how many are present."""
    cdef int count = 0, i
    for i in range(DIRECTORY_LEAVES):
        refs[i] = directory.slots[i].ref
        count += refs[i].sequence != 0
    return count


cdef class CheckpointTree(LeafTree):

    cdef int require_checkpoint(self, bint leaves_written) except -1:
        if not self.in_checkpoint:
            raise LookupError("no checkpoint has begun")
        if leaves_written and self.writing:
            raise LookupError(f"{self.writing} leaves of the checkpoint are not written yet")
        return 0

    cdef Leaf* leaf_at(self, index) except NULL:
        cdef Slot* slot = self.slot_of(index)
        if slot is NULL or slot.leaf is NULL:
            raise LookupError(f"map leaf {index} is not in memory")
        return slot.leaf

    cdef Directory* directory_at(self, index) except NULL:
        if not 0 <= index < self.directory_count or self.directories[<uint32_t>index] is NULL:
            raise LookupError(f"map directory {index} does not exist")
        return self.directories[<uint32_t>index]

    # --- leaves -------------------------------------------------------------------------

    def begin_checkpoint(self):
        cdef Leaf* leaf = self.dirty.first
        if self.in_checkpoint or self.writing or not self.usable:
            raise LookupError("a checkpoint or a page-out is under way, or loading is not done")
        self.usage.freeze()
        self.in_checkpoint, self.root_encoded = True, False
        self.frozen_size_blocks = self.size_blocks
        self.frozen_mapped_blocks = self.mapped_blocks
        self.writing = self.dirty.length
        indexes = []
        while leaf is not NULL:
            leaf.frozen, leaf.changed = True, False
            indexes.append(leaf.index)
            leaf = leaf.next
        indexes.sort()
        return indexes

    def encode_leaf(self, index):
        cdef Leaf* leaf = self.leaf_at(index)
        cdef bytes page
        if leaf.encoded or not (leaf.frozen if self.in_checkpoint else leaf.dirty):
            raise LookupError(f"map leaf {index} is not waiting to be encoded")
        page = encode_leaf(leaf.index, &leaf.entries[0] if leaf.copy is NULL else leaf.copy)
        if self.in_checkpoint:
            leaf.frozen = False
            self.drop_copy(leaf)
        else:
            leaf.changed = False
            self.writing += 1
        leaf.encoded = ENCODED_PAGE if page else ENCODED_EMPTY
        return page

    def leaf_written(self, index, sequence, offset, size_bytes, crc):
        cdef Leaf* leaf = self.leaf_at(index)
        cdef Slot* slot = self.slot_of(index)
        cdef PageRef ref
        if leaf.encoded != (ENCODED_PAGE if size_bytes else ENCODED_EMPTY):
            raise LookupError(f"map leaf {index} was not encoded to such a page")
        set_ref(&ref, sequence, offset, size_bytes, crc)
        self.usage.move_page(&slot.ref, &ref)
        if slot.ref.sequence or ref.sequence:
            self.directories[leaf.index >> 10].dirty = True
        slot.ref = ref
        leaf.encoded = NOT_ENCODED
        self.writing -= 1
        if leaf.changed:  # to the end of the queue: others wait longer
            remove(&self.dirty, leaf)
            append(&self.dirty, leaf)
            return
        self.mark_clean(leaf)
        if leaf.present == 0:
            self.free_leaf(leaf)

    def abandon_page_outs(self):
        cdef Leaf* leaf = self.dirty.first
        if self.in_checkpoint:
            raise LookupError("a checkpoint is under way")
        while leaf is not NULL:
            leaf.encoded = NOT_ENCODED
            leaf = leaf.next
        self.writing = 0

    # --- directories, usage, root ---------------------------------------------------------

    def dirty_directories(self):
        return [i for i in range(self.directory_count)
                if self.directories[i] is not NULL and self.directories[i].dirty]

    def encode_directory(self, index):
        cdef PageRef refs[DIRECTORY_LEAVES]
        cdef Directory* directory = self.directory_at(index)
        self.require_checkpoint(True)
        gather(directory, refs)
        return encode_refs(index, refs)

    def directory_written(self, index, sequence, offset, size_bytes, crc):
        cdef PageRef refs[DIRECTORY_LEAVES]
        cdef PageRef ref
        cdef Directory* directory = self.directory_at(index)
        self.require_checkpoint(True)
        set_ref(&ref, sequence, offset, size_bytes, crc)
        if (gather(directory, refs) == 0) != (ref.sequence == 0):
            raise LookupError(f"map directory {index} does not encode to {size_bytes} bytes")
        self.usage.move_page(&directory.ref, &ref)
        directory.ref = ref
        directory.dirty = False

    def dirty_usage_pages(self):
        return self.usage.dirty_pages()

    def encode_usage(self, index):
        self.require_checkpoint(True)
        if self.dirty_directories():
            raise LookupError("directories of the checkpoint are not written yet")
        return self.usage.encode(index)

    def usage_written(self, index, sequence, offset, size_bytes, crc):
        self.require_checkpoint(True)
        if self.dirty_directories():
            raise LookupError("directories of the checkpoint are not written yet")
        self.usage.written(index, sequence, offset, size_bytes, crc)

    cdef list directory_references(self):
        cdef PageRef ref
        cdef uint32_t i
        found = []
        for i in range(self.directory_count):
            if self.directories[i] is not NULL and self.directories[i].ref.sequence:
                ref = self.directories[i].ref
                found.append((i, ref.sequence, ref.offset, ref.size_bytes, ref.crc, ref.base))
        return found

    def encode_root(self):
        self.require_checkpoint(True)
        if self.dirty_directories() or self.dirty_usage_pages():
            raise LookupError("directories or usage pages of the checkpoint are not written yet")
        self.root_encoded = True
        return encode_root(self.frozen_size_blocks, self.frozen_mapped_blocks,
                           self.directory_references(), self.usage.references())

    def end_checkpoint(self):
        self.require_checkpoint(True)
        if not self.root_encoded:
            raise LookupError("the root of the checkpoint is not encoded yet")
        self.in_checkpoint = False
        self.usage.thaw()
        self.usage.forget_replaced()

    def abort_checkpoint(self):
        cdef Leaf* leaf = self.dirty.first
        self.require_checkpoint(False)
        while leaf is not NULL:
            leaf.frozen, leaf.encoded = False, NOT_ENCODED
            self.drop_copy(leaf)
            leaf = leaf.next
        self.writing = 0
        self.in_checkpoint = False
        self.usage.thaw()
