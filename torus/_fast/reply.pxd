"""The replies of an NBD connection: what other kernels may use of them.

A kernel that serves reads asks for room with ``reserve``; the pointer stays valid for the whole
``Export.read_now`` call, because the gateway sizes the builder for the run before it calls.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint16_t, uint32_t, uint64_t


cdef class ReplyBuilder:
    # Room for the payload of one successful READ; its header is written before it.
    cdef unsigned char* reserve(
        self, uint64_t cookie, uint64_t offset, size_t length
    ) except NULL
    # Take back the last reserve(), with its header.
    cdef int cancel(self) except -1
    # A READ of nothing but zeroes: one HOLE chunk when structured, zero bytes when simple.
    cdef int hole(self, uint64_t cookie, uint64_t offset, uint64_t length) except -1
    # private to reply.pyx
    cdef PyObject* owner            # the bytes object being filled, NULL when empty
    cdef unsigned char* start
    cdef size_t room
    cdef size_t used
    cdef size_t last                # where the last reserve() began
    cdef size_t hint                # bytes that the last take() handed out
    cdef bint structured
    cdef bint extended

    cdef unsigned char* grow(self, size_t length) except NULL
    cdef int begin(self, size_t room) except -1
    cdef unsigned char* chunk(
        self, uint16_t flags, uint16_t type, uint64_t cookie, uint64_t offset, size_t length
    ) except NULL
    cdef int simple(self, uint64_t cookie, uint32_t error) except -1
