"""The hot path: batches of NBD requests against the map, without a Python object each.

`read_now` answers reads whose blocks are in the page cache, `take_writes` gathers writes into a
record.  Both leave what they cannot do at once to the slow path in torus.volume.  Every block
handed out is checked against the checksum in the map: made where the data entered, checked
where it leaves.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.types cimport off_t

from torus._fast.blockio cimport ZEROES, BlockIo
from torus._fast.blockmap cimport BlockMap, Entry
from torus._fast.crc cimport crc32c
from torus._fast.frame cimport Request, RequestBatch
from torus._fast.laterread cimport LaterRead
from torus._fast.reply cimport ReplyBuilder
from torus._fast.record cimport RecordBuilder

cdef enum:
    BLOCK = 4096
    UNIT = 512
    FIRST = 512                     # limits.SLOT_HEADER_BYTES: where a chunk's content begins
    PIECE_BLOCKS = 32               # checked while the processor's cache still has them
    INLINE_BLOCKS = 512             # larger reads would hold up the other connections


cdef class Datapath:
    """One volume's fast lane.

    ``places`` maps a chunk to its disk address; the volume fills it as chunks are first used
    and empties it when they are deleted.  The key is the chunk's sequence number in the log of
    family member ``base``, plus base << 32.  Of a chunk that is cut into shards the place is a
    tuple: bytes of content in a shard, then for each data shard the address of its payload, or
    None where that is not to be had.
    """

    cdef BlockMap blocks
    cdef BlockIo io
    cdef dict places
    cdef Entry* entries
    cdef uint8_t* scratch
    cdef readonly uint64_t reads_served
    cdef readonly uint64_t reads_deferred
    cdef readonly uint64_t mismatches

    def __cinit__(self, BlockMap blocks, BlockIo io, dict places):
        self.blocks = blocks
        self.io = io
        self.places = places
        self.entries = <Entry*>malloc((INLINE_BLOCKS + 2) * sizeof(Entry))
        self.scratch = <uint8_t*>malloc(BLOCK)
        if self.entries == NULL or self.scratch == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.entries)
        free(self.scratch)

    def read_now(self, RequestBatch requests, Py_ssize_t first, Py_ssize_t stop,
                 ReplyBuilder replies):
        """Answer the READs [first, stop) into ``replies``; return the indexes left over."""
        cdef Py_ssize_t i
        cdef object left = ()
        if first < 0 or stop > requests.count:
            raise ValueError(f"requests {first} to {stop} of {requests.count}")
        for i in range(first, stop):
            if self.serve(&requests.items[i], replies) == 1:
                self.reads_served += 1
            else:
                self.reads_deferred += 1
                if not left:
                    left = []
                (<list>left).append(i)
        return left

    cdef int serve(self, const Request* request, ReplyBuilder replies) except -1:
        cdef uint64_t block = request.offset // BLOCK
        cdef uint64_t last = (request.offset + request.length - 1) // BLOCK
        cdef Py_ssize_t count = <Py_ssize_t>(last - block + 1)
        cdef Py_ssize_t i
        cdef uint8_t* dest
        cdef bint mapped = False
        cdef int outcome
        if count > INLINE_BLOCKS or self.blocks.lookup(block, count, self.entries) < count:
            return 0
        for i in range(count):
            if self.entries[i].sequence:
                mapped = True
                break
        if not mapped:
            replies.hole(request.cookie, request.offset, request.length)
            return 1
        dest = replies.reserve(request.cookie, request.offset, <size_t>request.length)
        try:
            outcome = self.fill(request.offset, <size_t>request.length, dest, count)
        except OSError:
            outcome = 0     # the slow path reads again and knows what an error means
        if outcome != 1:
            replies.cancel()
        return outcome

    cdef int fill(self, uint64_t offset, size_t length, uint8_t* dest,
                  Py_ssize_t count) except -1:
        """Fill ``dest`` from ``entries``: 1 done, 0 would wait, 2 a checksum is wrong."""
        cdef size_t head = <size_t>(offset % BLOCK)
        cdef size_t done = 0, n
        cdef Py_ssize_t i = 0, run
        cdef int outcome
        while done < length:
            if head or length - done < BLOCK:
                n = min(<size_t>BLOCK - head, length - done)
                outcome = self.fetch(i, 1, self.scratch)
                if outcome != 1:
                    return outcome
                memcpy(dest + done, self.scratch + head, n)
                head = 0
                i += 1
            else:
                run = self.run_length(
                    &self.entries[i],
                    min(<Py_ssize_t>((length - done) // BLOCK), <Py_ssize_t>PIECE_BLOCKS),
                )
                n = <size_t>run * BLOCK
                outcome = self.fetch(i, run, dest + done)
                if outcome != 1:
                    return outcome
                i += run
            done += n
        return 1

    cdef Py_ssize_t run_length(self, const Entry* entry, Py_ssize_t most) noexcept:
        cdef Py_ssize_t n = 1
        if entry.sequence == 0:
            while n < most and entry[n].sequence == 0:
                n += 1
            return n
        while (n < most and entry[n].sequence == entry.sequence
               and entry[n].base == entry.base
               and entry[n].offset == entry.offset + n * (BLOCK // UNIT)):
            n += 1
        return n

    cdef int fetch(self, Py_ssize_t i, Py_ssize_t count, uint8_t* dest) except -1:
        cdef const Entry* entry = &self.entries[i]
        cdef Py_ssize_t k
        cdef uint64_t address
        if entry.sequence == 0:
            memset(dest, 0, count * BLOCK)
            return 1
        place = self.place_of(entry)
        if place is None:
            return 0
        if type(place) is tuple:
            if not self.fetch_cut(<tuple>place, <uint64_t>entry.offset * UNIT - FIRST,
                                  <size_t>count * BLOCK, dest):
                return 0
        else:
            address = <uint64_t>place + <uint64_t>entry.offset * UNIT
            if not self.io.read_now(address, dest, count * BLOCK):
                return 0
        for k in range(count):
            if crc32c(0, dest + k * BLOCK, BLOCK) != entry[k].crc:
                self.mismatches += 1
                return 2
        return 1

    cdef object place_of(self, const Entry* entry):
        if entry.base == 0:
            return self.places.get(entry.sequence)
        return self.places.get(<uint64_t>entry.base << 32 | entry.sequence)

    cdef int fetch_cut(self, tuple place, uint64_t at, size_t left, uint8_t* dest) except -1:
        """Read content from shards: 1 done, 0 would wait, or a shard is elsewhere."""
        cdef uint64_t shard_bytes = <uint64_t>place[0], within
        cdef Py_ssize_t number
        cdef size_t n
        while left:
            number = 1 + <Py_ssize_t>(at // shard_bytes)
            if number >= len(place) or place[number] is None:
                return 0
            within = at % shard_bytes
            n = min(left, <size_t>(shard_bytes - within))
            if not self.io.read_now(<uint64_t>place[number] + within, dest, n):
                return 0
            at += n
            dest += n
            left -= n
        return 1

    def later(self, uint64_t block, Py_ssize_t count):
        """Return a `LaterRead` of ``count`` blocks; None when a leaf is not in memory, or a chunk's
        place not known, in shards or in no file."""
        cdef LaterRead read = LaterRead(count)
        cdef Entry* entries = <Entry*>malloc(count * sizeof(Entry))
        if entries == NULL:
            raise MemoryError
        try:
            if self.blocks.lookup(block, count, entries) < count:
                return None
            return read if self.plan(entries, count, read) else None
        finally:
            free(entries)

    cdef int plan(self, const Entry* entries, Py_ssize_t count, LaterRead read) except -1:
        cdef Py_ssize_t i = 0, k, run
        cdef const Entry* entry
        cdef off_t offset = 0
        cdef int fd
        while i < count:
            entry = &entries[i]
            run = self.run_length(entry, count - i)
            if entry.sequence == 0:
                read.add(ZEROES, 0, run)
                i += run
                continue
            for k in range(run):
                read.expect(i + k, entry[k].crc)
            place = self.place_of(entry)
            if place is None or type(place) is tuple:
                return 0
            fd = self.io.file_of(<uint64_t>place + <uint64_t>entry.offset * UNIT, &offset)
            if fd < 0:
                return 0
            read.add(fd, offset, run)
            i += run
        return 1

    def take_writes(self, RequestBatch requests, Py_ssize_t first, Py_ssize_t stop,
                    size_t skip, RecordBuilder record, size_t chunk_room):
        """Add WRITEs from ``first`` on, less ``skip`` bytes of the first one, to ``record``.

        Returns: (index, bytes of that request already taken) of where it stopped: at ``stop``,
        at a full record or chunk, or at a request whose leaf is not resident (then the record
        may be empty).  Bytes are borrowed from the receive buffer.
        """
        cdef Py_ssize_t i = first
        cdef const Request* request
        cdef size_t room, size
        if first < 0 or stop > requests.count:
            raise ValueError(f"requests {first} to {stop} of {requests.count}")
        while i < stop:
            request = &requests.items[i]
            if not self.blocks.resident(request.offset // BLOCK, request.length // BLOCK):
                break
            room = record.room(chunk_room)
            if room == 0:
                break
            size = min(room, <size_t>request.length - skip)
            record.add_piece((request.offset + skip) // BLOCK, request.payload + skip, size)
            skip += size
            if skip < request.length:
                break
            skip = 0
            i += 1
        return i, skip


def first_wrong(data, Py_ssize_t first, bytes crcs, Py_ssize_t count):
    """Return the first of the blocks [first, first + count) of ``data`` whose checksum is not
    its number in ``crcs`` (native u32 for each block of ``data``), or -1.

    Raises: ValueError when either holds fewer blocks.
    """
    cdef const uint8_t[::1] view = data
    cdef const uint32_t* expected = <const uint32_t*><const char*>crcs
    cdef Py_ssize_t i
    cdef Py_ssize_t most = min(view.shape[0] // BLOCK, <Py_ssize_t>len(crcs) // 4)
    if first < 0 or count < 0 or count > most or first > most - count:
        raise ValueError(f"blocks {first}+{count} of {view.shape[0]} bytes, {len(crcs) // 4} CRCs")
    for i in range(first, first + count):
        if crc32c(0, &view[i * BLOCK], BLOCK) != expected[i]:
            return i
    return -1
