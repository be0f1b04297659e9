"""What a collection moves: the blocks of victims that still live, in address order.

`Candidates` gathers every block that the victims' records hold, sorts them by address, and
hands out those that the map still finds there.  `Survivors` are some of them with their bytes,
checked against the map's checksums; `fill` puts those that are still current into a record, in
the same step in which that record gets its place.  Nothing here reads, appends or deletes.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc

from torus._fast.blockmap cimport BlockMap, Entry
from torus._fast.crc cimport crc32c
from torus._fast.record cimport Extent, Header, RecordBuilder, RecordReader

cdef enum:
    BLOCK = 4096
    UNIT = 512
    BLOCK_UNITS = 8
    LEAF_SHIFT = 10
    DATA_RECORD = 1
    DATA_EXTENT = 0

cdef struct Candidate:
    uint64_t block
    uint32_t sequence
    uint16_t offset                 # in the chunk, in units

cdef extern from *:
    """
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>
    /* Ascending by address; LSD radix sort, two bytes a pass, only over bytes that differ. */
    static int torus_sort(void *array, void *scratch, size_t count, size_t size)
    {
        /* `block` is the first field of the structure. */
        size_t *counts = malloc(65536 * sizeof(size_t));
        unsigned char *from = array, *to = scratch, *swap;
        uint64_t all = 0, key, first;
        size_t i, sum, n;
        int shift;
        if (counts == NULL)
            return -1;
        memcpy(&first, from, 8);
        for (i = 0; i < count; i++) {
            memcpy(&key, from + i * size, 8);
            all |= key ^ first;
        }
        for (shift = 0; shift < 64; shift += 16) {
            if (((all >> shift) & 0xFFFF) == 0)
                continue;
            memset(counts, 0, 65536 * sizeof(size_t));
            for (i = 0; i < count; i++) {
                memcpy(&key, from + i * size, 8);
                counts[(key >> shift) & 0xFFFF]++;
            }
            for (i = 0, sum = 0; i < 65536; i++) {
                n = counts[i];
                counts[i] = sum;
                sum += n;
            }
            for (i = 0; i < count; i++) {
                memcpy(&key, from + i * size, 8);
                memcpy(to + counts[(key >> shift) & 0xFFFF]++ * size, from + i * size, size);
            }
            swap = from;
            from = to;
            to = swap;
        }
        if (from != (unsigned char *)array)
            memcpy(array, from, count * size);
        free(counts);
        return 0;
    }
    """
    int torus_sort(void* array, void* scratch, size_t count, size_t size) nogil


cdef class Candidates:
    """Blocks that victims may hold the newest copy of.  `add_chunk` all, `sort`, then `window`
    until `left` is 0."""

    cdef Candidate* items
    cdef Py_ssize_t count
    cdef Py_ssize_t room
    cdef Py_ssize_t cursor

    def __dealloc__(self):
        free(self.items)

    def __len__(self):
        return self.count

    @property
    def left(self):
        """Candidates that `window` has not judged yet."""
        return self.count - self.cursor

    def add_chunk(self, data, chunk, uint32_t offset):
        """Add the blocks of every record in ``data``, the bytes of ``chunk`` from ``offset``.

        Returns: (offset behind the last record, why there is none behind it).
        """
        cdef RecordReader reader = RecordReader(data, chunk, offset, 0)
        cdef const Extent* extents
        cdef uint32_t sequence = chunk[3], at
        cdef Py_ssize_t i
        cdef uint32_t k
        while reader.advance(False):
            if reader.head.kind != DATA_RECORD:
                continue
            extents = <const Extent*>(<const uint8_t*>reader.head + sizeof(Header))
            at = (reader.head.offset + reader.head.header_bytes) // UNIT
            for i in range(reader.head.extent_count):
                if extents[i].kind != DATA_EXTENT:
                    continue
                self.reserve(extents[i].count)
                for k in range(extents[i].count):
                    self.items[self.count].block = extents[i].block + k
                    self.items[self.count].sequence = sequence
                    self.items[self.count].offset = <uint16_t>at
                    self.count += 1
                    at += BLOCK_UNITS
        return reader.end, reader.problem

    cdef int reserve(self, Py_ssize_t more) except -1:
        cdef Py_ssize_t room
        cdef void* grown
        if self.count + more > self.room:
            room = max(2 * self.room, self.count + more)
            grown = realloc(self.items, room * sizeof(Candidate))
            if grown == NULL:
                raise MemoryError
            self.items, self.room = <Candidate*>grown, room
        return 0

    def sort(self):
        """Order all by address; other threads run meanwhile."""
        cdef void* scratch
        cdef int result
        if self.count < 2:
            return
        scratch = malloc(self.count * sizeof(Candidate))
        if scratch == NULL:
            raise MemoryError
        with nogil:
            result = torus_sort(self.items, scratch, <size_t>self.count, sizeof(Candidate))
        free(scratch)
        if result:
            raise MemoryError

    def cold(self, BlockMap blocks, Py_ssize_t count):
        """Return a block of each leaf that the next ``count`` candidates need and that is not
        in memory."""
        cdef Py_ssize_t i, stop = min(self.count, self.cursor + count)
        cdef uint64_t leaf = <uint64_t>-1
        found = []
        for i in range(self.cursor, stop):
            if self.items[i].block >> LEAF_SHIFT == leaf:
                continue
            leaf = self.items[i].block >> LEAF_SHIFT
            if self.items[i].block < blocks.size_blocks and not blocks.resident(
                    self.items[i].block, 1):
                found.append(self.items[i].block)
        return found

    def window(self, BlockMap blocks, Py_ssize_t count, Py_ssize_t blocks_max):
        """Judge up to ``count`` more candidates; return up to ``blocks_max`` that live.

        They come as runs (block, blocks, sequence, offset in units, CRCs: native u32 each),
        whole in address and in chunk.  It stops early at a leaf that is not in memory.
        Raises: LookupError when that is the very first.
        """
        cdef Py_ssize_t stop = min(self.count, self.cursor + count), taken = 0, done = 0
        cdef Candidate* it
        cdef Entry entry
        cdef uint32_t* crcs
        runs = []
        crcs = <uint32_t*>malloc(blocks_max * sizeof(uint32_t))
        if crcs == NULL:
            raise MemoryError
        try:
            while self.cursor < stop and taken < blocks_max:
                it = &self.items[self.cursor]
                if it.block >= blocks.size_blocks:
                    self.cursor += 1
                    done += 1
                    continue
                if blocks.lookup(it.block, 1, &entry) != 1:
                    if done:
                        break
                    raise LookupError(f"the map leaf of block {it.block} is not in memory")
                self.cursor += 1
                done += 1
                if not same(&entry, it):
                    continue
                crcs[taken] = entry.crc
                taken += 1
                if runs and follows(runs, it):
                    runs[len(runs) - 1] = longer(runs[len(runs) - 1])
                else:
                    runs.append((it.block, 1, it.sequence, it.offset))
            return with_crcs(runs, crcs)
        finally:
            free(crcs)


cdef inline bint same(const Entry* entry, const Candidate* it) noexcept:
    return (entry.sequence == it.sequence and entry.offset == it.offset and entry.base == 0
            and entry.sequence != 0)


cdef bint follows(list runs, const Candidate* it):
    block, count, sequence, offset = runs[len(runs) - 1]
    return (it.sequence == sequence and it.block == block + count
            and it.offset == offset + count * BLOCK_UNITS)


cdef tuple longer(tuple run):
    return run[0], run[1] + 1, run[2], run[3]


cdef list with_crcs(list runs, const uint32_t* crcs):
    cdef Py_ssize_t at = 0
    found = []
    for run in runs:
        count = run[1]
        found.append((*run, (<const char*>(crcs + at))[: count * sizeof(uint32_t)]))
        at += count
    return found


cdef class Survivors:
    """Runs of `Candidates.window` with the bytes that were read for them.

    A block whose bytes do not have the map's checksum is left out: rot stays where it is.
    """

    cdef list runs
    cdef list pieces
    cdef Py_ssize_t index           # of the run that `fill` goes on with
    cdef Py_ssize_t part            # blocks of it that are done
    cdef readonly list rotten       # block numbers

    def __init__(self, list runs, list pieces):
        """``pieces[i]`` are the bytes of ``runs[i]``."""
        cdef Py_ssize_t i
        self.runs = []
        self.pieces = []
        self.rotten = []
        for i in range(len(runs)):
            self.add(runs[i], pieces[i])

    cdef add(self, tuple run, bytes piece):
        cdef const uint8_t* data = piece
        cdef bytes wanted = run[4]
        cdef const uint32_t* crcs = <const uint32_t*><const char*>wanted
        cdef Py_ssize_t i, count = run[1], start = 0
        if len(piece) != count * BLOCK:
            raise ValueError(f"{len(piece)} bytes for {count} blocks")
        for i in range(count):
            if crc32c(0, data + i * BLOCK, BLOCK) != crcs[i]:
                self.rotten.append(run[0] + i)
                self.keep(run, piece, start, i)
                start = i + 1
        self.keep(run, piece, start, count)

    cdef keep(self, tuple run, bytes piece, Py_ssize_t start, Py_ssize_t stop):
        if start < stop:
            self.runs.append((run[0] + start, stop - start, run[2], run[3] + start * BLOCK_UNITS))
            self.pieces.append((piece, start))

    @property
    def done(self):
        """True when `fill` has nothing more to add."""
        return self.index >= len(self.runs)

    @property
    def blocks(self):
        """Blocks that are to be moved, if they are still current."""
        return sum([run[1] for run in self.runs])

    def cold(self, BlockMap blocks):
        """Return the ranges (block, count) of what is left that need leaves from the log."""
        return [
            (run[0], run[1]) for run in self.runs[self.index:]
            if run[0] + run[1] <= blocks.size_blocks and not blocks.resident(run[0], run[1])
        ]

    def fill(self, BlockMap blocks, RecordBuilder record, size_t chunk_room, Py_ssize_t most):
        """Add the next blocks that are where they were read to ``record``.

        At most ``most`` bytes in all, and what fits into ``chunk_room`` bytes of the chunk.
        Every leaf must be in memory.  Returns: blocks added.
        Raises: LookupError, nothing is added then for that run.
        """
        cdef Py_ssize_t start, stop, count, taken = 0, allowed
        while self.index < len(self.runs):
            block, count, sequence, offset = self.runs[self.index]
            allowed = min(<Py_ssize_t>record.room(chunk_room), most - taken * BLOCK) // BLOCK
            if allowed <= 0:
                break
            start = self.part
            stop = current(blocks, block, sequence, offset, &start, min(count, start + allowed))
            if stop > start:
                piece, skip = self.pieces[self.index]
                record.add_data(block + start, piece, (skip + start) * BLOCK, (skip + stop) * BLOCK)
                taken += stop - start
            self.part = stop
            if self.part >= count:
                self.index += 1
                self.part = 0
        return taken


cdef Py_ssize_t current(BlockMap blocks, uint64_t block, uint32_t sequence, uint32_t offset,
                        Py_ssize_t* start, Py_ssize_t stop) except -1:
    """Move ``start`` to the first block before ``stop`` that lies where it was read, and return
    where such blocks end."""
    cdef Entry entry
    cdef Py_ssize_t at = start[0]
    cdef bint found = False
    while at < stop:
        if block + at >= blocks.size_blocks:
            entry.sequence = 0
        elif blocks.lookup(block + at, 1, &entry) != 1:
            raise LookupError(f"the map leaf of block {block + at} is not in memory")
        if (entry.sequence != 0 and entry.base == 0 and entry.sequence == sequence
                and entry.offset == offset + at * BLOCK_UNITS):
            if not found:
                start[0] = at
                found = True
        elif found:
            return at
        at += 1
    if not found:
        start[0] = stop
    return stop
