"""Build and read the records of a volume's log (docs/format.md, "Records").

`RecordBuilder` gathers the extents of one batch, borrowing their bytes, and writes the header
with a CRC-32C for each 4 KiB of payload.  `RecordReader` walks the bytes of a chunk and stops
at the first that is not the next record.  Neither decides what a broken record means.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.uio cimport iovec

from torus._fast.blockmap cimport BlockMap
from torus._fast.crc cimport crc32c

cdef enum:
    MAGIC_NUMBER = 0x43455254       # "TREC"
    BLOCK = 4096
    ALIGN = 512
    DATA_EXTENT = 0
    ZERO_EXTENT = 1

VERSION = 1
KIND_DATA = 1                       # extents of blocks: data or zeroes
KIND_PAGES = 2                      # map pages; ignored by replay
KIND_ROOT = 3                       # a checkpoint's root, with a copy of the head
KIND_HEAD = 4                       # a copy of the head alone, first in each span
HEADER_FIXED_BYTES = sizeof(Header)
EXTENT_BYTES = sizeof(Extent)

assert HEADER_FIXED_BYTES == 72 and EXTENT_BYTES == 16


cdef inline size_t aligned(size_t size) noexcept nogil:
    return (size + ALIGN - 1) & ~<size_t>(ALIGN - 1)


cdef class RecordBuilder:
    """One record being made; reused from batch to batch.

    Bytes added are borrowed until the record has been written: the caller keeps them
    unchanged.  ``payload_max`` bounds the payload, ``extents_max`` the extents.
    """

    def __cinit__(self, size_t payload_max, Py_ssize_t extents_max):
        if not 0 < extents_max <= 0xFFFF or payload_max > 0x7FFFFFFF:
            raise ValueError("a record's counts have 16 bits, its sizes 32")
        self.payload_max = payload_max
        self.extents_max = extents_max
        self.header_room = self.header_size(extents_max, payload_max)
        self.extents = <Extent*>malloc(extents_max * sizeof(Extent))
        self.pieces = <iovec*>malloc((extents_max + 2) * sizeof(iovec))
        self.header = <uint8_t*>malloc(self.header_room)
        if self.extents == NULL or self.pieces == NULL or self.header == NULL:
            raise MemoryError
        self.owners = []
        self.clear()

    def __dealloc__(self):
        free(self.extents)
        free(self.pieces)
        free(self.header)

    cpdef clear(self):
        """Forget everything added."""
        self.extent_count = 0
        self.piece_count = 1
        self.payload_bytes = 0
        self.size = 0
        self.header_bytes = 0
        if self.owners:
            self.owners = []

    cdef size_t header_size(self, Py_ssize_t extents, size_t payload) noexcept:
        return aligned(
            sizeof(Header) + extents * sizeof(Extent) + (payload + BLOCK - 1) // BLOCK * 4
        )

    @property
    def empty(self):
        """True when nothing was added."""
        return self.extent_count == 0 and self.payload_bytes == 0

    @property
    def payload_size(self):
        """Bytes of payload added so far."""
        return self.payload_bytes

    def room(self, size_t chunk_room):
        """Return how many payload bytes one more extent may have within ``chunk_room`` bytes
        of the chunk; a multiple of the block size, 0 when nothing fits."""
        cdef size_t most
        if self.extent_count >= self.extents_max or self.payload_bytes >= self.payload_max:
            return 0
        most = self.payload_max - self.payload_bytes
        # What the header would be if the whole payload were used: never too small.
        cdef size_t header = self.header_size(
            self.extent_count + 1, self.payload_bytes + min(most, chunk_room)
        )
        if chunk_room <= header + self.payload_bytes:
            return 0
        most = min(most, chunk_room - header - self.payload_bytes)
        return most & ~<size_t>(BLOCK - 1)

    cdef int add_piece(self, uint64_t block, const void* data, size_t size) except -1:
        if self.extent_count >= self.extents_max or size > self.payload_max - self.payload_bytes:
            raise ValueError("record is full")
        if self.piece_count > self.extent_count + 1:
            raise ValueError("record has a payload without extents")
        cdef Extent* extent = &self.extents[self.extent_count]
        self.size = 0               # what finish() wrote does not hold any more
        extent.block = block
        extent.count = <uint32_t>(size // BLOCK)
        extent.kind = DATA_EXTENT
        self.pieces[self.piece_count].iov_base = <void*>data
        self.pieces[self.piece_count].iov_len = size
        self.extent_count += 1
        self.piece_count += 1
        self.payload_bytes += size
        return 0

    def add_data(self, uint64_t block, data, Py_ssize_t start=0, Py_ssize_t stop=-1):
        """Add ``data[start:stop]``, whole blocks, to be written at ``block``.

        ``data`` must be bytes-like and stay unchanged until the record is written.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if stop < 0:
                stop = view.len
            if start < 0 or stop > view.len or start >= stop or (stop - start) % BLOCK:
                raise ValueError(f"bytes {start}:{stop} of {view.len} are not whole blocks")
            self.add_piece(block, <char*>view.buf + start, stop - start)
            self.owners.append(data)
        finally:
            PyBuffer_Release(&view)

    def add_zero(self, uint64_t block, uint32_t count):
        """Add an extent of ``count`` blocks that read as zeroes from now on."""
        if self.extent_count >= self.extents_max or self.piece_count > self.extent_count + 1:
            raise ValueError("record is full, or has a payload without extents")
        if count == 0:
            raise ValueError("an extent of no blocks")
        self.size = 0
        cdef Extent* extent = &self.extents[self.extent_count]
        extent.block = block
        extent.count = count
        extent.kind = ZERO_EXTENT
        self.extent_count += 1

    def set_payload(self, bytes payload):
        """Make this a record without extents whose payload is ``payload`` (pages, a root)."""
        if self.extent_count or self.payload_bytes or len(payload) % ALIGN:
            raise ValueError("record has content, or the payload is not aligned")
        if <size_t>len(payload) > self.payload_max:
            raise ValueError("record is full")
        self.size = 0
        self.pieces[1].iov_base = <void*>PyBytes_AS_STRING(payload)
        self.pieces[1].iov_len = len(payload)
        self.piece_count = 2
        self.payload_bytes = len(payload)
        self.owners.append(payload)

    def finish(self, uint16_t kind, chunk, uint32_t index, uint64_t lsn, uint64_t committed,
               uint32_t offset, uint32_t salt=0):
        """Write the header for place ``offset`` of ``chunk``; return the record's size.

        ``chunk`` is (volume, epoch, tag, sequence), ``salt`` the chunk's own random number.
        Every block of the payload gets its checksum here, where the data enters.
        """
        cdef Header* head = <Header*>self.header
        cdef size_t size = self.header_size(self.extent_count, self.payload_bytes)
        cdef uint8_t* place
        cdef uint32_t* crc
        cdef const uint8_t* data
        cdef size_t left, n
        cdef Py_ssize_t i
        if size > self.header_room:
            raise ValueError("record header is too large")
        memset(self.header, 0, size)
        head.magic = MAGIC_NUMBER
        head.version = 1
        head.kind = kind
        head.volume, head.epoch, head.tag, head.sequence = chunk
        head.index = index
        head.lsn = lsn
        head.committed = committed
        head.offset = offset
        head.salt = salt
        head.header_bytes = <uint32_t>size
        head.payload_bytes = <uint32_t>self.payload_bytes
        head.extent_count = <uint16_t>self.extent_count
        place = self.header + sizeof(Header)
        memcpy(place, self.extents, self.extent_count * sizeof(Extent))
        crc = <uint32_t*>(place + self.extent_count * sizeof(Extent))
        for i in range(1, self.piece_count):
            data = <const uint8_t*>self.pieces[i].iov_base
            left = self.pieces[i].iov_len
            while left:
                n = min(left, <size_t>BLOCK)
                crc[0] = crc32c(0, data, n)
                crc += 1
                data += n
                left -= n
        head.header_crc = crc32c(0, self.header, size)
        self.pieces[0].iov_base = self.header
        self.pieces[0].iov_len = size
        self.header_bytes = <Py_ssize_t>size
        self.size = <Py_ssize_t>(size + self.payload_bytes)
        self.sequence = head.sequence
        self.payload_offset = offset + <uint32_t>size
        return self.size

    def apply(self, BlockMap blocks):
        """Enter the finished record's extents into ``blocks``, in order."""
        if self.size == 0:
            raise ValueError("record is not finished")
        cdef const uint32_t* crc = <const uint32_t*>(
            self.header + sizeof(Header) + self.extent_count * sizeof(Extent)
        )
        apply_extents(blocks, self.extents, self.extent_count, self.sequence,
                      self.payload_offset // ALIGN, crc)

    def extent_list(self):
        """Return the extents as (block, count, is_zero)."""
        return [
            (self.extents[i].block, self.extents[i].count, self.extents[i].kind == ZERO_EXTENT)
            for i in range(self.extent_count)
        ]

    def tobytes(self):
        """Return the finished record's bytes, header and payload."""
        cdef Py_ssize_t i
        if self.size == 0:
            raise ValueError("record is not finished")
        result = PyBytes_FromStringAndSize(NULL, self.size)
        cdef char* out = PyBytes_AS_STRING(result)
        for i in range(self.piece_count):
            memcpy(out, self.pieces[i].iov_base, self.pieces[i].iov_len)
            out += self.pieces[i].iov_len
        return result


cdef int apply_extents(BlockMap blocks, const Extent* extents, Py_ssize_t count,
                       uint32_t sequence, uint32_t offset, const uint32_t* crc) except -1:
    cdef Py_ssize_t i
    for i in range(count):
        if extents[i].kind == ZERO_EXTENT:
            blocks.clear_run(extents[i].block, extents[i].count)
        else:
            blocks.set_run(extents[i].block, extents[i].count, sequence, offset, crc)
            offset += extents[i].count * (BLOCK // ALIGN)
            crc += extents[i].count
    return 0


cdef inline const Header* found(RecordReader reader) except NULL:
    if reader.head == NULL:
        raise ValueError("there is no record here")
    return reader.head


cdef class RecordReader:
    """A walk over the records in ``data``, the bytes of ``chunk`` from ``offset`` on.

    `advance` moves to the next record and says whether there is one; when there is none,
    ``problem`` says why the bytes at ``end`` are not it.  A record whose header is whole but
    whose payload is not is still a record: ``payload_ok`` tells.  Without ``salt`` the first
    record says which salt the others must have.
    """

    def __cinit__(self, data, chunk, uint32_t offset, uint32_t next_index, salt=None):
        PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
        self.held = True
        self.chunk = chunk
        self.start_offset = offset
        self.end = offset
        self.next_index = next_index
        self.salt = salt
        self.head = NULL

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

    def advance(self, bint check_payload=True):
        """Move to the next record; False when there is none, with ``problem`` set."""
        cdef size_t at = self.end - self.start_offset
        cdef size_t left = <size_t>self.view.len - at if <size_t>self.view.len > at else 0
        cdef const Header* head = <const Header*>(<const uint8_t*>self.view.buf + at)
        self.head = NULL
        self.problem = self.judge(head, left)
        if self.problem is not None:
            return False
        self.head = head
        if self.salt is None:
            self.salt = head.salt
        self.payload_ok = not check_payload or self.check_payload()
        self.end += head.header_bytes + head.payload_bytes
        self.next_index += 1
        return True

    cdef judge(self, const Header* head, size_t left):
        """Return why these bytes are not the next record, or None when they are."""
        cdef size_t need, blocks, payload
        cdef uint32_t crc
        cdef Header copy
        cdef Py_ssize_t i
        cdef const Extent* extent
        if left < sizeof(Header):
            return "end of data"
        if head.magic != MAGIC_NUMBER:
            return "no record" if head.magic == 0 else "bad magic"
        if head.version != 1:
            return f"record version {head.version} is unknown"
        payload = head.payload_bytes
        need = self.header_need(head)
        if head.header_bytes != need or payload % ALIGN or need + payload > left:
            return "record sizes are impossible"
        memcpy(&copy, head, sizeof(Header))
        copy.header_crc = 0
        crc = crc32c(0, &copy, sizeof(Header))
        crc = crc32c(crc, <const uint8_t*>head + sizeof(Header), need - sizeof(Header))
        if crc != head.header_crc:
            return "header checksum is wrong"
        if (head.volume, head.epoch, head.tag, head.sequence) != self.chunk:
            return "record of another chunk"
        if self.salt is not None and head.salt != self.salt:
            return "record of another use of the slot"
        if head.offset != self.end:
            return f"record written for offset {head.offset}"
        if head.index != self.next_index:
            return f"record index {head.index} where {self.next_index} is due"
        extent = <const Extent*>(<const uint8_t*>head + sizeof(Header))
        blocks = 0
        for i in range(head.extent_count):
            if extent[i].kind > ZERO_EXTENT or extent[i].count == 0:
                return f"extent {i} is of an unknown kind or empty"
            if extent[i].kind == DATA_EXTENT:
                blocks += extent[i].count
        # Without this `apply` would take checksums from behind the header.
        if (head.kind == 1) != (head.extent_count != 0):
            return f"record kind {head.kind} with {head.extent_count} extents"
        if head.kind == 1 and blocks * BLOCK != payload:
            return "extents do not cover the payload"
        return None

    cdef size_t header_need(self, const Header* head) noexcept:
        return aligned(
            sizeof(Header) + <size_t>head.extent_count * sizeof(Extent)
            + (<size_t>head.payload_bytes + BLOCK - 1) // BLOCK * 4
        )

    cdef bint check_payload(self) noexcept:
        cdef const uint8_t* data = <const uint8_t*>self.head + self.head.header_bytes
        cdef const uint32_t* crc = self.crcs()
        cdef size_t left = self.head.payload_bytes, n
        while left:
            n = min(left, <size_t>BLOCK)
            if crc32c(0, data, n) != crc[0]:
                return False
            crc += 1
            data += n
            left -= n
        return True

    cdef const uint32_t* crcs(self) noexcept:
        return <const uint32_t*>(
            <const uint8_t*>self.head + sizeof(Header) + self.head.extent_count * sizeof(Extent)
        )

    # What follows is of the record that `advance` found.  Raises: ValueError when it did not.

    @property
    def kind(self):
        return found(self).kind

    @property
    def lsn(self):
        return found(self).lsn

    @property
    def committed(self):
        return found(self).committed

    @property
    def index(self):
        return found(self).index

    @property
    def offset(self):
        return found(self).offset

    @property
    def header_bytes(self):
        return found(self).header_bytes

    @property
    def payload_bytes(self):
        return found(self).payload_bytes

    def payload(self):
        """Return a copy of the record's payload."""
        cdef const Header* head = found(self)
        return PyBytes_FromStringAndSize(
            <const char*>head + head.header_bytes, head.payload_bytes
        )

    def extent_list(self):
        """Return the extents as (block, count, is_zero)."""
        cdef const Extent* extents = <const Extent*>(<const uint8_t*>found(self) + sizeof(Header))
        return [
            (extents[i].block, extents[i].count, extents[i].kind == ZERO_EXTENT)
            for i in range(self.head.extent_count)
        ]

    def ready(self, BlockMap blocks):
        """True when every leaf that `apply` needs is resident."""
        cdef const Extent* extents = <const Extent*>(<const uint8_t*>found(self) + sizeof(Header))
        cdef Py_ssize_t i
        for i in range(self.head.extent_count):
            if not blocks.resident(extents[i].block, extents[i].count):
                return False
        return True

    def apply(self, BlockMap blocks):
        """Enter the record's extents into ``blocks``, in order."""
        cdef const Extent* extents = <const Extent*>(<const uint8_t*>found(self) + sizeof(Header))
        apply_extents(blocks, extents, self.head.extent_count, self.head.sequence,
                      (self.head.offset + self.head.header_bytes) // ALIGN, self.crcs())


def find_header(data, Py_ssize_t start):
    """Return the first position from ``start`` on, in steps of 512 bytes, where a whole record
    header of any chunk lies, with its (volume, epoch, tag, sequence, lsn, committed); None when
    none does.

    For offline inspection of damaged slots: a header that follows a hole proves a loss.
    """
    cdef Py_buffer view
    cdef const Header* head
    cdef Header copy
    cdef Py_ssize_t at = start
    cdef size_t need
    cdef uint32_t crc
    if start < 0:
        raise ValueError(f"position {start} lies before the data")
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        while at + <Py_ssize_t>sizeof(Header) <= view.len:
            head = <const Header*>(<const uint8_t*>view.buf + at)
            if head.magic == MAGIC_NUMBER:
                need = aligned(
                    sizeof(Header) + <size_t>head.extent_count * sizeof(Extent)
                    + (<size_t>head.payload_bytes + BLOCK - 1) // BLOCK * 4
                )
                if need == head.header_bytes and at + <Py_ssize_t>need <= view.len:
                    memcpy(&copy, head, sizeof(Header))
                    copy.header_crc = 0
                    crc = crc32c(0, &copy, sizeof(Header))
                    crc = crc32c(
                        crc, <const uint8_t*>head + sizeof(Header), need - sizeof(Header)
                    )
                    if crc == head.header_crc:
                        return at, (head.volume, head.epoch, head.tag, head.sequence,
                                    head.lsn, head.committed)
            at += ALIGN
        return None
    finally:
        PyBuffer_Release(&view)
