"""NBD transmission frames: the requests in a receive buffer.

Decides where a request begins and ends and, in ``judge``, whether it may be served at all; the
rules are the table of torus/nbd/transmission.py.  Does not decide how a request is served.
No Python object is made per request.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

from torus._fast.bytes cimport load_be16, load_be32, load_be64

from torus.errors import LocalProtocolError, RemoteProtocolError

cdef enum:
    REQUEST_MAGIC = 0x25609513
    EXTENDED_REQUEST_MAGIC = 0x21e41c71

    CMD_READ = 0
    CMD_WRITE = 1
    CMD_DISC = 2
    CMD_FLUSH = 3
    CMD_TRIM = 4
    CMD_CACHE = 5
    CMD_WRITE_ZEROES = 6
    CMD_BLOCK_STATUS = 7

    FLAG_FUA = 1
    FLAG_NO_HOLE = 2
    FLAG_DF = 4
    FLAG_REQ_ONE = 8
    FLAG_FAST_ZERO = 16
    FLAG_PAYLOAD_LEN = 32

    NBD_EPERM = 1
    NBD_EINVAL = 22
    NBD_ENOSPC = 28
    NBD_ENOTSUP = 95

    SECTOR = 512
    BLOCK = 4096
    ROOM_MIN = 64 * 1024            # an idle connection's receive buffer
    ROOM_BUSY = 256 * 1024          # grows to this while reads fill it
    ROOM_DOUBLING = 1024 * 1024     # requests up to this get room rounded up to a power of two
    ITEMS_MAX = 1024                # requests handed out at once

RUN_READ = 0
RUN_WRITE = 1
RUN_OTHER = 2


cdef class RequestBatch:
    """The receive buffer of one connection and the requests found in it.

    As a buffer, the object is the free room behind what was received: hand it to
    ``recv_into``.  Requests and their payloads are borrowed until the next ``get_buffer`` or
    ``received``.
    """

    def __cinit__(self, uint64_t request_bytes_max, *, uint64_t size_bytes=0,
                  bint read_only=False, bint structured=False, bint extended=False,
                  bint contexts=False):
        self.request_bytes_max = request_bytes_max
        self.size_bytes = size_bytes
        self.read_only = read_only
        self.structured = structured or extended
        self.extended = extended
        self.contexts = contexts
        self.room = ROOM_MIN
        self.start = <unsigned char*>malloc(self.room)
        self.items_room = 32
        self.items = <Request*>malloc(self.items_room * sizeof(Request))
        if self.start == NULL or self.items == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.start)
        free(self.items)
        self.start = NULL
        self.items = NULL

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.start + self.filled, self.room - self.filled, 0, flags)
        self.exported += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.exported -= 1

    def __len__(self):
        return self.room - self.filled

    @property
    def size_bytes(self):
        """Bytes of the export, what ranges are judged by."""
        return self.size_bytes

    @size_bytes.setter
    def size_bytes(self, uint64_t size_bytes):
        self.size_bytes = size_bytes

    @property
    def count(self):
        """Requests that the last ``received`` handed out."""
        return self.count

    @property
    def ended(self):
        """Whether DISC was among the requests; nothing after it counts."""
        return self.ended

    @property
    def room_bytes(self):
        """Bytes of memory that the receive buffer takes."""
        return self.room

    @property
    def pending_bytes(self):
        """Bytes of an unfinished request that wait for the rest of it."""
        return self.filled - self.parsed

    @property
    def dropping_bytes(self):
        """Payload bytes of a refused request that are still to come."""
        return self.dropping

    def get_buffer(self, Py_ssize_t sizehint=-1):
        """Return this object with room for at least one byte.  Ends all borrowing."""
        self.count = 0
        self.make_room()
        return self

    def received(self, size_t nbytes):
        """Take ``nbytes`` that were written into the buffer; return how many requests follow.

        There may be more, or garbage: call ``received(0)`` until it returns 0.

        Raises: RemoteProtocolError when the stream cannot be followed any more.
        """
        if nbytes > self.room - self.filled:
            raise LocalProtocolError(
                f"{nbytes} bytes were said to be received, the room was {self.room - self.filled}"
            )
        self.filled += nbytes
        self.brimful = self.filled == self.room
        self.count = 0
        while self.count < ITEMS_MAX and not self.ended and self.take_one():
            pass
        return self.count

    def feed(self, data not None):
        """Copy ``data`` in as if it had been received, as far as it fits; return that length."""
        cdef Py_buffer view
        cdef size_t taken
        self.count = 0
        self.make_room()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        taken = min(<size_t>view.len, self.room - self.filled)
        memcpy(self.start + self.filled, view.buf, taken)
        PyBuffer_Release(&view)
        return taken

    def relax(self):
        """Give memory back when no request is half received and nothing is borrowed."""
        if self.room > ROOM_MIN and self.parsed == self.filled and not self.exported:
            self.count = 0
            self.parsed = self.filled = 0
            self.move_to(ROOM_MIN)
        return self.room

    def next_run(self, Py_ssize_t first, uint64_t budget):
        """Return (kind, stop, bytes) of the run of like requests that begins at ``first``.

        A run of reads or writes ends before its bytes exceed ``budget``, but holds at least one
        request.  ``RUN_READ`` and ``RUN_WRITE`` are plain: no error, no FUA, whole 4 KiB blocks.
        """
        cdef Py_ssize_t stop = first + 1
        cdef uint64_t total
        if first < 0 or first >= self.count:
            raise IndexError(first)
        cdef int kind = kind_of(&self.items[first])
        total = self.items[first].length
        while stop < self.count and kind_of(&self.items[stop]) == kind:
            if kind != 2 and self.items[stop].length > budget - min(total, budget):
                break
            total += self.items[stop].length
            stop += 1
        return kind, stop, total

    def span_bytes(self, Py_ssize_t first, Py_ssize_t stop):
        """Return the bytes that requests [first, stop) read or write together."""
        cdef Py_ssize_t index
        cdef uint64_t total = 0
        if first < 0 or stop > self.count:
            raise IndexError(f"requests {first} to {stop} of {self.count}")
        for index in range(first, stop):
            total += self.items[index].length
        return total

    def request(self, Py_ssize_t index):
        """Return (type, flags, cookie, offset, length, error) of one request."""
        if index < 0 or index >= self.count:
            raise IndexError(index)
        cdef Request* item = &self.items[index]
        return item.type, item.flags, item.cookie, item.offset, item.length, item.error

    def payload(self, Py_ssize_t index):
        """Return a copy of the payload of one WRITE."""
        if index < 0 or index >= self.count or self.items[index].payload == NULL:
            raise IndexError(index)
        cdef Request* item = &self.items[index]
        return PyBytes_FromStringAndSize(<const char*>item.payload, <Py_ssize_t>item.length)

    def copy_writes(self, Py_ssize_t first, Py_ssize_t stop, target not None):
        """Copy the payloads of WRITEs [first, stop) to their offsets in ``target``."""
        cdef Py_buffer view
        cdef Py_ssize_t index
        PyObject_GetBuffer(target, &view, PyBUF_WRITABLE)
        try:
            check_span(self, first, stop, CMD_WRITE, <uint64_t>view.len)
            for index in range(first, stop):
                memcpy(<char*>view.buf + self.items[index].offset, self.items[index].payload,
                       self.items[index].length)
        finally:
            PyBuffer_Release(&view)

    cdef bint take_one(self) except -1:
        """Hand out the request at ``parsed``; return whether it was complete."""
        cdef size_t available = self.filled - self.parsed
        cdef size_t header = 32 if self.extended else 28
        cdef unsigned char* at = self.start + self.parsed
        cdef uint64_t payload = 0
        cdef size_t skipped
        cdef Request request
        if self.dropping:
            skipped = <size_t>min(self.dropping, <uint64_t>available)
            self.parsed += skipped
            self.dropping -= skipped
            if self.dropping:
                return False
            self.hand_out(&self.refused)
            return True
        self.wanted = 0
        if available < header:
            return False
        if load_be32(at) != <uint32_t>(EXTENDED_REQUEST_MAGIC if self.extended else REQUEST_MAGIC):
            if self.count:
                return False  # the requests before the garbage come first
            raise RemoteProtocolError(
                f"request magic {load_be32(at):#010x} is wrong, expected "
                f"{EXTENDED_REQUEST_MAGIC if self.extended else REQUEST_MAGIC:#010x}"
            )
        request.flags = load_be16(at + 4)
        request.type = load_be16(at + 6)
        request.cookie = load_be64(at + 8)
        request.offset = load_be64(at + 16)
        request.length = load_be64(at + 24) if self.extended else load_be32(at + 24)
        request.payload = NULL
        if request.flags & FLAG_PAYLOAD_LEN if self.extended else request.type == CMD_WRITE:
            payload = request.length
        if payload > self.request_bytes_max * (1 if self.extended else 2):
            if self.count:
                return False
            raise RemoteProtocolError(
                f"payload of {payload} bytes for command {request.type} is too large to skip, "
                f"the largest request is {self.request_bytes_max} bytes"
            )
        request.error = self.judge(&request)
        if payload and request.error:
            self.refused = request
            self.dropping = payload
            self.parsed += header
            return self.take_one()
        if available < header + payload:
            self.wanted = header + <size_t>payload
            return False
        if payload:
            request.payload = at + header
        self.parsed += header + <size_t>payload
        self.ended = request.type == CMD_DISC
        self.hand_out(&request)
        return True

    cdef int hand_out(self, Request* request) except -1:
        cdef Request* items
        if self.count == self.items_room:
            items = <Request*>realloc(self.items, 2 * self.items_room * sizeof(Request))
            if items == NULL:
                raise MemoryError()
            self.items = items
            self.items_room *= 2
        self.items[self.count] = request[0]
        self.count += 1
        return 0

    cdef uint32_t judge(self, const Request* request) noexcept nogil:
        """Return 0 or the NBD error with which the request is refused: every refusal is here."""
        cdef uint16_t command = request.type
        cdef uint16_t allowed = FLAG_FUA
        if command == CMD_DISC:
            return 0
        if command > CMD_BLOCK_STATUS:
            return NBD_EINVAL
        if command == CMD_READ and self.structured:
            allowed |= FLAG_DF
        elif command == CMD_WRITE and self.extended:
            allowed |= FLAG_PAYLOAD_LEN
        elif command == CMD_WRITE_ZEROES:
            allowed |= FLAG_NO_HOLE | FLAG_FAST_ZERO
        elif command == CMD_BLOCK_STATUS:
            allowed |= FLAG_REQ_ONE
        if request.flags & ~allowed:
            return NBD_EINVAL
        if command == CMD_WRITE and self.extended and not request.flags & FLAG_PAYLOAD_LEN:
            return NBD_EINVAL
        if command == CMD_FLUSH:
            return NBD_EINVAL if request.offset | request.length else 0
        if command == CMD_BLOCK_STATUS and not self.contexts:
            return NBD_EINVAL
        if self.read_only and (
            command == CMD_WRITE or command == CMD_TRIM or command == CMD_WRITE_ZEROES
        ):
            return NBD_EPERM
        if request.length == 0 or (request.offset | request.length) % SECTOR:
            return NBD_EINVAL
        if command <= CMD_WRITE and request.length > self.request_bytes_max:
            return NBD_EINVAL
        if request.offset > self.size_bytes or request.length > self.size_bytes - request.offset:
            return NBD_ENOSPC if command == CMD_WRITE or command == CMD_WRITE_ZEROES else NBD_EINVAL
        if request.flags & FLAG_FAST_ZERO and request.flags & FLAG_NO_HOLE:
            return NBD_ENOTSUP
        return 0

    cdef int make_room(self) except -1:
        """See to room for the rest of the request at ``parsed``, else for a good deal of bytes."""
        cdef size_t pending = self.filled - self.parsed
        cdef size_t room = self.room
        if pending == 0:
            self.parsed = self.filled = 0
        if self.wanted > room:
            if self.wanted > ROOM_DOUBLING:
                room = (self.wanted + ROOM_MIN) & ~<size_t>(BLOCK - 1)
            else:
                while room < self.wanted:
                    room *= 2
        elif self.brimful and room < ROOM_BUSY:
            room *= 2
        self.brimful = False
        if room != self.room or self.parsed + self.wanted > room or self.room - self.filled < BLOCK:
            self.move_to(room)
        return 0

    cdef int move_to(self, size_t room) except -1:
        """Bring what is not parsed to the front of a buffer of ``room`` bytes."""
        cdef size_t pending = self.filled - self.parsed
        cdef unsigned char* start = self.start
        if self.exported:
            raise BufferError("the receive buffer cannot move while it is being written to")
        if room != self.room:
            start = <unsigned char*>malloc(room)
            if start == NULL:
                raise MemoryError()
        memmove(start, self.start + self.parsed, pending)
        if start != self.start:
            free(self.start)
            self.start = start
            self.room = room
        self.parsed = 0
        self.filled = pending
        return 0


cdef inline int kind_of(const Request* item) noexcept nogil:
    if item.error or item.type > CMD_WRITE or (item.offset | item.length) % BLOCK:
        return 2
    if item.type == CMD_READ:
        return 0
    return 2 if item.flags & FLAG_FUA else 1


cdef int check_span(RequestBatch batch, Py_ssize_t first, Py_ssize_t stop, uint16_t command,
                    uint64_t size_bytes) except -1:
    """Raise unless [first, stop) are accepted requests of that command within ``size_bytes``."""
    cdef Py_ssize_t index
    cdef Request* item
    if first < 0 or stop > batch.count:
        raise IndexError(f"requests {first} to {stop} of {batch.count}")
    for index in range(first, stop):
        item = &batch.items[index]
        if (item.error or item.type != command or item.offset > size_bytes
                or item.length > size_bytes - item.offset):
            raise LocalProtocolError(f"request {index} cannot be served from these bytes")
    return 0
