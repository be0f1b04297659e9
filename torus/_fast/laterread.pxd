"""Reads that wait for the disk: how the data path plans one."""

from libc.stdint cimport uint32_t
from posix.types cimport off_t

cdef struct Piece:
    int fd                          # -1: nothing was ever written there, it reads as zeroes
    off_t offset
    size_t at                       # where its bytes go
    size_t n


cdef class LaterRead:
    cdef bytes data
    cdef char* start
    cdef Piece* pieces
    cdef Py_ssize_t piece_count
    cdef Py_ssize_t piece_room
    cdef uint32_t* expected         # for each block
    cdef unsigned char* checked     # for each block: 0 where nothing was ever written
    cdef Py_ssize_t blocks

    cdef int add(self, int fd, off_t offset, size_t at, size_t n) except -1
    cdef void expect(self, Py_ssize_t block, uint32_t crc) noexcept
    # private to laterread.pyx
    cdef int fetch(self) noexcept nogil
    cdef Py_ssize_t first_wrong(self) noexcept nogil
