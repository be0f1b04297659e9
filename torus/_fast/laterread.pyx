"""One read that has to wait for the disk, planned on the event loop and carried out in a thread.

Decides nothing about where blocks lie (`torus._fast.datapath` does); reads them without the
interpreter, all pieces asked of the disk at once, and checks each block there, too, so that the
event loop has nothing left to do but to send.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset
from posix.types cimport off_t

from torus._fast.crc cimport crc32c

cdef extern from *:
    """
    #include <fcntl.h>
    #include <unistd.h>
    """
    ssize_t pread(int fd, void* dest, size_t n, off_t offset) nogil
    int posix_fadvise(int fd, off_t offset, off_t size, int advice) nogil
    int POSIX_FADV_WILLNEED

cdef enum:
    BLOCK = 4096


cdef class LaterRead:
    """The pieces of whole blocks of one request, and what each block's checksum has to be."""

    def __cinit__(self, Py_ssize_t blocks):
        if blocks < 1:
            raise ValueError(f"a read of {blocks} blocks")
        self.blocks = blocks
        self.expected = <uint32_t*>calloc(blocks, sizeof(uint32_t))
        self.checked = <unsigned char*>calloc(blocks, 1)
        if self.expected == NULL or self.checked == NULL:
            raise MemoryError
        self.data = PyBytes_FromStringAndSize(NULL, blocks * BLOCK)
        self.start = PyBytes_AS_STRING(self.data)

    def __dealloc__(self):
        free(self.pieces)
        free(self.expected)
        free(self.checked)

    cdef int add(self, int fd, off_t offset, size_t at, size_t n) except -1:
        """Let ``n`` bytes of the result, from ``at`` on, come from a file; -1: be zeroes."""
        cdef Piece* grown
        cdef Piece* last
        if self.piece_count:
            last = &self.pieces[self.piece_count - 1]
            if last.fd == fd and last.at + last.n == at and (
                    fd < 0 or last.offset + <off_t>last.n == offset):
                last.n += n
                return 0
        if self.piece_count == self.piece_room:
            grown = <Piece*>realloc(self.pieces, (2 * self.piece_room + 4) * sizeof(Piece))
            if grown == NULL:
                raise MemoryError
            self.pieces = grown
            self.piece_room = 2 * self.piece_room + 4
        last = &self.pieces[self.piece_count]
        last.fd, last.offset, last.at, last.n = fd, offset, at, n
        self.piece_count += 1
        return 0

    cdef void expect(self, Py_ssize_t block, uint32_t crc) noexcept:
        self.expected[block] = crc
        self.checked[block] = 1

    def run(self):
        """Read.  Blocks; call it once, in a thread.

        Returns: the bytes; None when the disk had an error, a file ended early or a block has
        another checksum: the long way then finds out what is wrong.
        """
        cdef int error
        cdef Py_ssize_t wrong = -1
        with nogil:
            error = self.fetch()
            if not error:
                wrong = self.first_wrong()
        return None if error or wrong >= 0 else self.data

    cdef int fetch(self) noexcept nogil:
        """Fill ``data``; 0, or the errno of the first piece that failed."""
        cdef Py_ssize_t i
        cdef size_t done
        cdef ssize_t got
        cdef Piece* piece
        if self.piece_count > 1:  # into the disk's queue together, not one after another
            for i in range(self.piece_count):
                piece = &self.pieces[i]
                if piece.fd >= 0:
                    posix_fadvise(piece.fd, piece.offset, <off_t>piece.n, POSIX_FADV_WILLNEED)
        for i in range(self.piece_count):
            piece = &self.pieces[i]
            if piece.fd < 0:
                memset(self.start + piece.at, 0, piece.n)
                continue
            done = 0
            while done < piece.n:
                got = pread(piece.fd, self.start + piece.at + done, piece.n - done,
                            piece.offset + <off_t>done)
                if got > 0:
                    done += <size_t>got
                elif got == 0:
                    return EIO
                elif errno != EINTR:
                    return errno
        return 0

    cdef Py_ssize_t first_wrong(self) noexcept nogil:
        cdef Py_ssize_t i
        for i in range(self.blocks):
            if self.checked[i] and (
                    crc32c(0, <const uint8_t*>self.start + i * BLOCK, BLOCK) != self.expected[i]):
                return i
        return -1
