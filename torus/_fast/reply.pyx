"""NBD transmission frames: the replies, in a bytes object that the transport may keep.

Decides the bytes of every kind of reply, simple, structured and extended.  Does not decide what
is replied.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from torus._fast.bytes cimport store_be16, store_be32, store_be64
from torus._fast.frame cimport Request, RequestBatch, check_span

from torus.errors import LocalProtocolError

cdef extern from *:
    """
    #include <stdlib.h>
    #if defined(__GLIBC__)
    #include <malloc.h>
    #define torus_malloc_trim() malloc_trim(0)
    #else
    #define torus_malloc_trim() 0
    #endif
    """
    int torus_malloc_trim() nogil

cdef extern from *:
    """
    /* Give a bytes object that nobody else refers to another length within its memory. */
    static inline void torus_bytes_set_length(PyObject *bytes, Py_ssize_t length) {
        Py_SET_SIZE((PyVarObject *)bytes, length);
        PyBytes_AS_STRING(bytes)[length] = 0;
        _Pragma("GCC diagnostic push")
        _Pragma("GCC diagnostic ignored \\"-Wdeprecated-declarations\\"")
        ((PyBytesObject *)bytes)->ob_shash = -1;
        _Pragma("GCC diagnostic pop")
    }
    """
    void torus_bytes_set_length(PyObject* bytes, Py_ssize_t length)

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject* thing)
    int _PyBytes_Resize(PyObject** bytes, Py_ssize_t size) except -1
    PyObject* PyBytes_FromStringAndSize_raw "PyBytes_FromStringAndSize"(
        const char* bytes, Py_ssize_t size
    ) except NULL
    char* PyBytes_AS_STRING_raw "PyBytes_AS_STRING"(PyObject* bytes)

cdef enum:
    SIMPLE_REPLY_MAGIC = 0x67446698
    STRUCTURED_REPLY_MAGIC = 0x668e33ef
    EXTENDED_REPLY_MAGIC = 0x6e8a278c

    CMD_READ = 0

    REPLY_DONE = 1
    TYPE_NONE = 0
    TYPE_OFFSET_DATA = 1
    TYPE_OFFSET_HOLE = 2
    TYPE_BLOCK_STATUS = 5
    TYPE_BLOCK_STATUS_EXT = 6
    TYPE_ERROR = 0x8001

    BLOCK = 4096
    MESSAGE_MAX = 4096
    CHUNK_MAX = 32 + 8              # header of the largest kind, and the offset
    HINT_MAX = 256 * 1024           # a new object is begun as large as the last one, up to this
    DOUBLING_MAX = 1024 * 1024      # an object that grows doubles up to this
    SPARE_MIN = 128 * 1024          # from here on malloc maps pages, and each costs a fault
    SPARES_MAX = 32
    SPARE_BYTES_MAX = 32 * 1024 * 1024


cdef struct Spare:
    PyObject* owner                 # a bytes object that was handed out
    size_t room                     # bytes that its memory holds

# Large bytes objects, of all connections, to be filled again when their last reader let go.
# Fresh ones cost more than the copy into them: 1 MiB reads took 0.53 ms of CPU, now 0.27.
cdef Spare spares[SPARES_MAX]
cdef int spares_count = 0
cdef size_t spares_bytes = 0


cdef PyObject* forget_spare(int index) noexcept:
    """Take one spare out of the table and return it."""
    global spares_count, spares_bytes
    cdef PyObject* owner = spares[index].owner
    spares_bytes -= spares[index].room
    spares_count -= 1
    spares[index] = spares[spares_count]
    return owner


cdef bint keep_spare(PyObject* owner, size_t room) noexcept:
    """Remember an object that is handed out; return whether there was space for it."""
    global spares_count, spares_bytes
    if room > SPARE_BYTES_MAX:
        return False
    if spares_count == SPARES_MAX or spares_bytes + room > SPARE_BYTES_MAX:
        trim_spares()
    if spares_count == SPARES_MAX or spares_bytes + room > SPARE_BYTES_MAX:
        return False
    Py_INCREF(<object>owner)
    spares[spares_count].owner = owner
    spares[spares_count].room = room
    spares_count += 1
    spares_bytes += room
    return True


cpdef size_t trim_spares() noexcept:
    """Free the reply buffers that nobody reads any more; return the bytes that are kept."""
    cdef int index = spares_count
    while index > 0:
        index -= 1
        if Py_REFCNT(spares[index].owner) == 1:
            Py_XDECREF(forget_spare(index))
    return spares_bytes


def return_memory():
    """Give what the allocator keeps of freed memory back to the system, glibc only.

    Evicted map leaves and large batches leave holes that an idle process has no use for.
    """
    trim_spares()
    torus_malloc_trim()


cdef class ReplyBuilder:
    """The replies of one batch, in one bytes object that the transport may keep."""

    def __cinit__(self, *, bint structured=False, bint extended=False):
        self.structured = structured or extended
        self.extended = extended

    def __dealloc__(self):
        Py_XDECREF(self.owner)
        self.owner = NULL

    def __len__(self):
        return self.used

    def take(self):
        """Return the replies since the last call as bytes, and begin anew."""
        cdef PyObject* owner = self.owner
        cdef size_t used = self.used
        cdef size_t room = self.room
        self.owner = NULL
        self.used = self.last = self.room = 0
        self.hint = min(used + BLOCK, <size_t>HINT_MAX)
        if owner == NULL:
            return b""
        if room >= SPARE_MIN and keep_spare(owner, room):
            torus_bytes_set_length(owner, <Py_ssize_t>used)
        else:
            _PyBytes_Resize(&owner, <Py_ssize_t>used)
        result = <object>owner
        Py_DECREF(result)
        return result

    def expect(self, RequestBatch batch not None, Py_ssize_t first, Py_ssize_t stop):
        """Make room for the replies of READs [first, stop), so that no pointer moves meanwhile."""
        cdef Py_ssize_t index
        cdef size_t total = 0
        if first < 0 or stop > batch.count:
            raise IndexError(f"requests {first} to {stop} of {batch.count}")
        for index in range(first, stop):
            total += <size_t>batch.items[index].length + CHUNK_MAX
        self.grow(total)

    def done(self, uint64_t cookie):
        """Append success without data."""
        if self.extended:
            self.chunk(REPLY_DONE, TYPE_NONE, cookie, 0, 0)
        else:
            self.simple(cookie, 0)

    def done_run(self, RequestBatch batch not None, Py_ssize_t first, Py_ssize_t stop):
        """Append success without data for requests [first, stop)."""
        cdef Py_ssize_t index
        if first < 0 or stop > batch.count:
            raise IndexError(f"requests {first} to {stop} of {batch.count}")
        for index in range(first, stop):
            if self.extended:
                self.chunk(
                    REPLY_DONE, TYPE_NONE, batch.items[index].cookie, batch.items[index].offset, 0
                )
            else:
                self.simple(batch.items[index].cookie, 0)

    def error(self, uint64_t cookie, uint32_t nbd_error, str message not None=""):
        """Append a failure; the message reaches clients that negotiated structured replies."""
        cdef bytes text
        cdef unsigned char* at
        if not nbd_error:
            raise LocalProtocolError("an error reply needs an NBD error, found 0")
        if not self.structured:
            self.simple(cookie, nbd_error)
            return
        text = message.encode("utf-8", "replace")[:MESSAGE_MAX]
        text = text.decode("utf-8", "ignore").encode()
        at = self.chunk(REPLY_DONE, TYPE_ERROR, cookie, 0, 6 + len(text))
        store_be32(at, nbd_error)
        store_be16(at + 4, <uint16_t>len(text))
        memcpy(at + 6, PyBytes_AS_STRING(text), len(text))

    def data(self, uint64_t cookie, uint64_t offset, payload not None, bint final=True):
        """Append bytes that were read.  Simple replies need the whole of the request at once."""
        cdef Py_buffer view
        cdef unsigned char* at
        if not final and not self.structured:
            raise LocalProtocolError("a simple reply cannot come in parts")
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            if self.structured:
                at = self.chunk(final, TYPE_OFFSET_DATA, cookie, offset, 8 + <size_t>view.len)
                store_be64(at, offset)
                at += 8
            else:
                at = self.reserve(cookie, offset, <size_t>view.len)
            memcpy(at, view.buf, <size_t>view.len)
        finally:
            PyBuffer_Release(&view)

    def zeroes(self, uint64_t cookie, uint64_t offset, uint64_t length, bint final=True):
        """Append a range that reads as zeroes."""
        cdef unsigned char* at
        if final:
            self.hole(cookie, offset, length)
            return
        if not self.structured:
            raise LocalProtocolError("a simple reply cannot come in parts")
        at = self.chunk(0, TYPE_OFFSET_HOLE, cookie, offset, 12)
        store_be64(at, offset)
        store_be32(at + 8, <uint32_t>length)

    def block_status(self, uint64_t cookie, uint64_t offset, uint32_t context, extents,
                     bint final=True):
        """Append the (length, flags) extents of one metadata context, in the header's width."""
        cdef unsigned char* at
        cdef uint64_t length
        cdef uint64_t flags
        cdef size_t width = 16 if self.extended else 8
        cdef size_t head = 8 if self.extended else 4
        cdef size_t count = len(extents)
        if not self.structured or not count:
            raise LocalProtocolError("block status needs structured replies and an extent")
        at = self.chunk(
            final, TYPE_BLOCK_STATUS_EXT if self.extended else TYPE_BLOCK_STATUS, cookie, offset,
            head + count * width,
        )
        store_be32(at, context)
        if self.extended:
            store_be32(at + 4, <uint32_t>count)
        at += head
        for length, flags in extents:
            if self.extended:
                store_be64(at, length)
                store_be64(at + 8, flags)
            else:
                store_be32(at, <uint32_t>length)
                store_be32(at + 4, <uint32_t>flags)
            at += width

    def reads_from(self, RequestBatch batch not None, Py_ssize_t first, Py_ssize_t stop,
                   source not None):
        """Answer READs [first, stop) with the bytes at their offsets in ``source``."""
        cdef Py_buffer view
        cdef Py_ssize_t index
        cdef Request* item
        PyObject_GetBuffer(source, &view, PyBUF_SIMPLE)
        try:
            check_span(batch, first, stop, CMD_READ, <uint64_t>view.len)
            for index in range(first, stop):
                item = &batch.items[index]
                memcpy(self.reserve(item.cookie, item.offset, <size_t>item.length),
                       <char*>view.buf + item.offset, <size_t>item.length)
        finally:
            PyBuffer_Release(&view)

    cdef unsigned char* reserve(
        self, uint64_t cookie, uint64_t offset, size_t length
    ) except NULL:
        cdef unsigned char* at
        cdef size_t before = self.used
        if self.structured:
            at = self.chunk(REPLY_DONE, TYPE_OFFSET_DATA, cookie, offset, 8 + length)
            store_be64(at, offset)
            at += 8
        else:
            self.simple(cookie, 0)
            at = self.grow(length)
            self.used += length
        self.last = before
        return at

    cdef int cancel(self) except -1:
        self.used = self.last
        return 0

    cdef int hole(self, uint64_t cookie, uint64_t offset, uint64_t length) except -1:
        cdef unsigned char* at
        if not self.structured:
            memset(self.reserve(cookie, offset, <size_t>length), 0, <size_t>length)
            return 0
        at = self.chunk(REPLY_DONE, TYPE_OFFSET_HOLE, cookie, offset, 12)
        store_be64(at, offset)
        store_be32(at + 8, <uint32_t>length)
        return 0

    cdef unsigned char* grow(self, size_t length) except NULL:
        """Return where the next ``length`` bytes go; everything before may move."""
        cdef size_t room = self.used + length
        if self.owner == NULL:
            self.begin(max(room, self.hint, <size_t>1))
        elif room > self.room:
            self.room = max(room, 2 * self.room if self.room < DOUBLING_MAX else room)
            _PyBytes_Resize(&self.owner, <Py_ssize_t>self.room)
        self.start = <unsigned char*>PyBytes_AS_STRING_raw(self.owner)
        return self.start + self.used

    cdef int begin(self, size_t room) except -1:
        """Get memory for ``room`` bytes: a spare that is not much larger, else fresh."""
        cdef int index
        if room >= SPARE_MIN:
            for index in range(spares_count):
                if (spares[index].room >= room and spares[index].room / 4 <= room
                        and Py_REFCNT(spares[index].owner) == 1):
                    self.room = spares[index].room
                    self.owner = forget_spare(index)
                    torus_bytes_set_length(self.owner, <Py_ssize_t>self.room)
                    return 0
        self.owner = PyBytes_FromStringAndSize_raw(NULL, <Py_ssize_t>room)
        self.room = room
        return 0

    cdef int simple(self, uint64_t cookie, uint32_t error) except -1:
        cdef unsigned char* at = self.grow(16)
        store_be32(at, SIMPLE_REPLY_MAGIC)
        store_be32(at + 4, error)
        store_be64(at + 8, cookie)
        self.last = self.used
        self.used += 16
        return 0

    cdef unsigned char* chunk(
        self, uint16_t flags, uint16_t type, uint64_t cookie, uint64_t offset, size_t length
    ) except NULL:
        """Append a chunk header for ``length`` payload bytes; return where the payload goes."""
        cdef size_t header = 32 if self.extended else 20
        cdef unsigned char* at = self.grow(header + length)
        store_be32(at, EXTENDED_REPLY_MAGIC if self.extended else STRUCTURED_REPLY_MAGIC)
        store_be16(at + 4, flags)
        store_be16(at + 6, type)
        store_be64(at + 8, cookie)
        if self.extended:
            store_be64(at + 16, offset)
            store_be64(at + 24, length)
        else:
            store_be32(at + 16, <uint32_t>length)
        self.last = self.used
        self.used += header + length
        return at + header
