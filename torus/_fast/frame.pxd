"""The requests of an NBD connection: what other kernels may use of them.

A kernel that takes writes walks ``batch.items[first:stop]`` and copies ``items[i].length`` bytes
from ``items[i].payload`` before it returns.
"""

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


# Raise unless [first, stop) are accepted requests of that command within `size_bytes`.
cdef int check_span(
    RequestBatch batch, Py_ssize_t first, Py_ssize_t stop, uint16_t command, uint64_t size_bytes
) except -1
