"""Reads that wait for the disk: how the data path plans one."""

from libc.stdint cimport uint32_t
from posix.types cimport off_t

from torus._fast.blockio cimport Wanted

cdef class LaterRead:
    cdef bytes data
    cdef char* start
    cdef Wanted* pieces             # adjacent, from the start on
    cdef Py_ssize_t piece_count
    cdef Py_ssize_t piece_room
    cdef size_t planned             # bytes of them
    cdef uint32_t* expected         # for each block that comes from a file

    # Let the next blocks come from a file, with these checksums, or be ZEROES.
    cdef int add(self, int fd, off_t offset, Py_ssize_t blocks) except -1
    cdef void expect(self, Py_ssize_t block, uint32_t crc) noexcept
    # private to laterread.pyx
    cdef bint right(self) noexcept nogil
