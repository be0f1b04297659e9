"""The compiled NBD frame: what other kernels may use of it.

A kernel that serves reads walks ``batch.items[first:stop]`` and asks the builder for room with
``reserve``; the pointer stays valid for the whole ``Export.read_now`` call, because the gateway
sizes the builder for the run before it calls.  A kernel that takes writes copies
``items[i].length`` bytes from ``items[i].payload`` before it returns.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint16_t, uint32_t, uint64_t


cdef struct Request:
    uint64_t cookie
    uint64_t offset                 # bytes
    uint64_t length                 # bytes; 64 bits with extended headers
    uint16_t flags                  # NBD command flags
    uint16_t type                   # NBD command
    uint32_t error                  # non-zero: refuse with this NBD error; payload is dropped
    const unsigned char* payload    # WRITE: borrowed until the next get_buffer() or received()


cdef class RequestBatch:
    cdef Request* items
    cdef Py_ssize_t count
    # private to frame.pyx
    cdef Py_ssize_t items_room
    cdef unsigned char* start       # the receive buffer
    cdef size_t room                # bytes of the receive buffer
    cdef size_t parsed              # bytes before this are requests already handed out
    cdef size_t filled              # bytes before this were received
    cdef size_t wanted              # bytes that the request at `parsed` needs in one piece
    cdef uint64_t dropping          # payload bytes of a refused request still to skip
    cdef Request refused            # that request, handed out when its payload is gone
    cdef Py_ssize_t exported        # Py_buffers that are alive
    cdef Py_ssize_t view_bytes      # shape of the buffer that consumers see
    cdef bint ended                 # DISC was parsed: nothing after it counts
    cdef bint extended
    cdef bint structured
    cdef bint contexts
    cdef bint read_only
    cdef uint64_t size_bytes
    cdef uint64_t request_bytes_max
    cdef bint brimful               # the last read left no room: grow before the next

    cdef bint take_one(self) except -1
    cdef int hand_out(self, Request* request) except -1
    cdef uint32_t judge(self, const Request* request) noexcept nogil
    cdef int make_room(self) except -1
    cdef int move_to(self, size_t room) except -1


cdef class ReplyBuilder:
    # Room for the payload of one successful READ; its header is written before it.
    cdef unsigned char* reserve(
        self, uint64_t cookie, uint64_t offset, size_t length
    ) except NULL
    # Take back the last reserve(), with its header.
    cdef int cancel(self) except -1
    # A READ of nothing but zeroes: one HOLE chunk when structured, zero bytes when simple.
    cdef int hole(self, uint64_t cookie, uint64_t offset, uint64_t length) except -1
    # private to frame.pyx
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
