"""One read that has to wait for the disk, planned on the event loop and carried out in a thread.

Decides nothing about where blocks lie (`torus._fast.datapath` does); reads them without the
interpreter, all pieces asked of the disk at once, and checks each block there, too, so that the
event loop has nothing left to do but to send.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, realloc
from posix.types cimport off_t

from torus._fast.blockio cimport ZEROES, Wanted, read_wanted
from torus._fast.crc cimport crc32c

cdef enum:
    BLOCK = 4096


cdef class LaterRead:
    """The pieces of whole blocks of one request, and what each block's checksum has to be."""

    def __cinit__(self, Py_ssize_t blocks):
        if blocks < 1:
            raise ValueError(f"a read of {blocks} blocks")
        self.expected = <uint32_t*>calloc(blocks, sizeof(uint32_t))
        if self.expected == NULL:
            raise MemoryError
        self.data = PyBytes_FromStringAndSize(NULL, blocks * BLOCK)
        self.start = PyBytes_AS_STRING(self.data)

    def __dealloc__(self):
        free(self.pieces)
        free(self.expected)

    cdef int add(self, int fd, off_t offset, Py_ssize_t blocks) except -1:
        cdef Wanted* grown
        cdef Wanted* last
        cdef size_t size = blocks * BLOCK
        if self.piece_count:
            last = &self.pieces[self.piece_count - 1]
            if last.fd == fd and (fd == ZEROES or last.offset + <off_t>last.size == offset):
                last.size += size
                self.planned += size
                return 0
        if self.piece_count == self.piece_room:
            grown = <Wanted*>realloc(self.pieces, (2 * self.piece_room + 4) * sizeof(Wanted))
            if grown == NULL:
                raise MemoryError
            self.pieces = grown
            self.piece_room = 2 * self.piece_room + 4
        last = &self.pieces[self.piece_count]
        last.fd, last.offset, last.dest, last.size = fd, offset, self.start + self.planned, size
        self.piece_count += 1
        self.planned += size
        return 0

    cdef void expect(self, Py_ssize_t block, uint32_t crc) noexcept:
        self.expected[block] = crc

    def run(self):
        """Read.  Blocks; call it once, in a thread.

        Returns: the bytes; None when the disk had an error, a file ended early or a block has
        another checksum: the long way then finds out what is wrong.
        """
        cdef bint good
        with nogil:
            good = read_wanted(self.pieces, self.piece_count) == 0 and self.right()
        return self.data if good else None

    cdef bint right(self) noexcept nogil:
        cdef Py_ssize_t i, block
        cdef const Wanted* piece
        for i in range(self.piece_count):
            piece = &self.pieces[i]
            if piece.fd == ZEROES:
                continue
            block = (piece.dest - self.start) // BLOCK
            while block < (piece.dest + piece.size - self.start) // BLOCK:
                if crc32c(0, self.start + block * BLOCK, BLOCK) != self.expected[block]:
                    return False
                block += 1
        return True
