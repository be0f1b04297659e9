"""Frames of the peer protocol's frequent messages: APPEND, SYNC, READ and their answers.

Decides nothing: what is not one of these messages, whole and right in every byte, is left to
torus.wire, which says what is wrong with it.  The layouts are those of docs/protocol.md.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from torus._fast.blockio cimport BlockIo
from torus._fast.bytes cimport (
    load_le16, load_le32, load_le64, store_le16, store_le32, store_le64,
)
from torus._fast.crc cimport crc32c
from torus._fast.record cimport RecordBuilder

cdef enum:
    MAGIC = 0x52465054              # TPFR
    PROTOCOL = 2
    HEADER = 48
    CHUNK = 18
    PLACE = 32                      # of an APPEND, before the record
    PIECE = 26                      # of a READ
    _APPEND = 17
    _SYNC = 18
    _READ = 19
    _APPENDED = 145
    _SYNCED = 146
    _READ_DONE = 147

APPEND = _APPEND
SYNC = _SYNC
READ = _READ
APPENDED = _APPENDED
SYNCED = _SYNCED
READ_DONE = _READ_DONE


cdef bytes frame_of(size_t body):
    """Return a frame whose bytes are yet to be written."""
    return PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(HEADER + body))


cdef void seal(char* frame, uint16_t kind, size_t body, uint64_t request, uint64_t volume,
               uint32_t epoch, uint64_t capability) noexcept:
    """Write the header of a frame whose body is written."""
    store_le32(frame, MAGIC)
    store_le16(frame + 4, PROTOCOL)
    store_le16(frame + 6, kind)
    store_le32(frame + 8, <uint32_t>body)
    store_le32(frame + 12, crc32c(0, frame + HEADER, body))
    store_le64(frame + 16, request)
    store_le64(frame + 24, volume)
    store_le32(frame + 32, epoch)
    store_le64(frame + 36, capability)
    store_le32(frame + 44, crc32c(0, frame, HEADER - 4))


cdef int put_chunk(char* at, chunk) except -1:
    cdef uint64_t volume
    cdef uint32_t epoch, sequence
    cdef uint16_t tag
    volume, epoch, tag, sequence = chunk
    store_le64(at, volume)
    store_le32(at + 8, epoch)
    store_le16(at + 12, tag)
    store_le32(at + 14, sequence)
    return 0


cdef tuple get_chunk(const char* at):
    return (load_le64(at), load_le32(at + 8), load_le16(at + 12), load_le32(at + 14))


# --- making -------------------------------------------------------------------------------


def append_frame(uint64_t request, uint64_t capability, chunk, uint32_t index, uint32_t offset,
                 record):
    """Return an APPEND's frame; ``record`` is a finished builder or a record's bytes.

    Raises: OverflowError when a field is out of its range.
    """
    cdef RecordBuilder builder
    cdef Py_buffer view
    cdef bytes frame
    cdef char* at
    cdef Py_ssize_t i
    cdef size_t size
    if isinstance(record, RecordBuilder):
        builder = <RecordBuilder>record
        if builder.size == 0:
            raise ValueError("record is not finished")
        size = <size_t>builder.size
        frame = frame_of(PLACE + size)
        at = PyBytes_AS_STRING(frame) + HEADER + PLACE
        for i in range(builder.piece_count):
            memcpy(at, builder.pieces[i].iov_base, builder.pieces[i].iov_len)
            at += builder.pieces[i].iov_len
    else:
        PyObject_GetBuffer(record, &view, PyBUF_SIMPLE)
        try:
            size = <size_t>view.len
            frame = frame_of(PLACE + size)
            memcpy(PyBytes_AS_STRING(frame) + HEADER + PLACE, view.buf, size)
        finally:
            PyBuffer_Release(&view)
    at = PyBytes_AS_STRING(frame) + HEADER
    put_chunk(at, chunk)
    store_le16(at + 18, 0)
    store_le32(at + 20, index)
    store_le32(at + 24, offset)
    store_le32(at + 28, 0)
    seal(at - HEADER, _APPEND, PLACE + size, request, load_le64(at), load_le32(at + 8), capability)
    return frame


def sync_frame(uint64_t request, uint64_t capability, chunks):
    """Return a SYNC's frame; the caller keeps to the most chunks."""
    cdef size_t body = 4 + <size_t>len(chunks) * CHUNK
    cdef bytes frame = frame_of(body)
    cdef char* at = PyBytes_AS_STRING(frame) + HEADER
    store_le32(at, <uint32_t>len(chunks))
    at += 4
    for chunk in chunks:
        put_chunk(at, chunk)
        at += CHUNK
    seal(PyBytes_AS_STRING(frame), _SYNC, body, request, 0, 0, capability)
    return frame


def read_frame(uint64_t request, uint64_t capability, reads):
    """Return a READ's frame for (chunk, offset, size) each; the caller keeps to the bounds."""
    cdef size_t body = 4 + <size_t>len(reads) * PIECE
    cdef bytes frame = frame_of(body)
    cdef char* at = PyBytes_AS_STRING(frame) + HEADER
    cdef uint32_t offset, size
    store_le32(at, <uint32_t>len(reads))
    at += 4
    for chunk, offset, size in reads:
        put_chunk(at, chunk)
        store_le32(at + 18, offset)
        store_le32(at + 22, size)
        at += PIECE
    seal(PyBytes_AS_STRING(frame), _READ, body, request, 0, 0, capability)
    return frame


def boot_frame(uint16_t kind, uint64_t request, uint64_t boot_id):
    """Return the frame of an answer that is a boot id."""
    cdef bytes frame = frame_of(8)
    cdef char* at = PyBytes_AS_STRING(frame)
    store_le64(at + HEADER, boot_id)
    seal(at, kind, 8, request, 0, 0, 0)
    return frame


def read_done_now(uint64_t request, BlockIo io, list places):
    """Return a READ_DONE's frame with the bytes of each (address, size), read into place.

    None when that has to wait for the disk.  Raises: OSError.
    """
    cdef size_t count = <size_t>len(places), body = 4 + 4 * count, size
    cdef uint64_t address
    cdef bytes frame
    cdef char* sizes
    cdef char* at
    for _, size in places:
        body += size
    frame = frame_of(body)
    sizes = PyBytes_AS_STRING(frame) + HEADER
    store_le32(sizes, <uint32_t>count)
    at = sizes + 4 + 4 * count
    for address, size in places:
        sizes += 4
        store_le32(sizes, <uint32_t>size)
        if size and not io.read_now(address, at, size):
            return None
        at += size
    seal(PyBytes_AS_STRING(frame), _READ_DONE, body, request, 0, 0, 0)
    return frame


# --- taking apart -------------------------------------------------------------------------


def next_frame(data, size_t start, size_t stop, size_t most):
    """Return the frame at ``data[start:stop]`` when it is whole, right, and a frequent message.

    As (type, offset behind it, request, volume, epoch, capability, and what it says): for an
    APPEND (chunk, index, offset in the chunk, offset of the record in ``data``), for a SYNC the
    chunks, for a READ (chunk, offset, size) each, for APPENDED and SYNCED the boot id, for
    READ_DONE the pieces.  None for everything else; ``most`` bounds the body.
    """
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if stop > <size_t>view.len or stop < start or stop - start < HEADER:
            return None
        return parse(<const char*>view.buf, start, stop, most)
    finally:
        PyBuffer_Release(&view)


cdef object parse(const char* data, size_t start, size_t stop, size_t most):
    cdef const char* head = data + start
    cdef const char* body = head + HEADER
    cdef uint16_t kind = load_le16(head + 6)
    cdef size_t size = load_le32(head + 8)
    cdef uint64_t volume
    cdef uint32_t epoch
    cdef object said
    if load_le32(head) != MAGIC or load_le16(head + 4) != PROTOCOL:
        return None
    if not (_APPEND <= kind <= _READ or _APPENDED <= kind <= _READ_DONE):
        return None
    if size > most or size > stop - start - HEADER:
        return None
    if crc32c(0, head, HEADER - 4) != load_le32(head + 44):
        return None
    if crc32c(0, body, size) != load_le32(head + 12):
        return None
    volume = load_le64(head + 24)
    epoch = load_le32(head + 32)
    if kind == _APPEND:
        if size <= PLACE or load_le16(body + 18) or load_le32(body + 28):
            return None
        if load_le64(body) != volume or load_le32(body + 8) != epoch:
            return None
        said = (get_chunk(body), load_le32(body + 20), load_le32(body + 24),
                start + HEADER + PLACE)
    elif volume or epoch:
        return None
    elif kind == _SYNC:
        said = parse_sync(body, size)
    elif kind == _READ:
        said = parse_read(body, size)
    elif kind == _READ_DONE:
        said = parse_read_done(body, size)
    else:
        said = load_le64(body) if size == 8 else None
    if said is None:
        return None
    return (kind, start + HEADER + size, load_le64(head + 16), volume, epoch,
            load_le64(head + 36), said)


cdef list parse_sync(const char* body, size_t size):
    cdef size_t count, i
    if size < 4:
        return None
    count = load_le32(body)
    if (size - 4) != count * CHUNK:
        return None
    return [get_chunk(body + 4 + i * CHUNK) for i in range(count)]


cdef list parse_read(const char* body, size_t size):
    cdef size_t left
    cdef const char* at = body + 4
    cdef list found = []
    if size < 4:
        return None
    left = load_le32(body)
    if (size - 4) != left * PIECE:
        return None
    while left:
        found.append((get_chunk(at), load_le32(at + 18), load_le32(at + 22)))
        at += PIECE
        left -= 1
    return found


cdef list parse_read_done(const char* body, size_t size):
    cdef size_t count, i, piece, left
    cdef const char* at
    cdef list found = []
    if size < 4:
        return None
    count = load_le32(body)
    if count > (size - 4) // 4:
        return None
    at = body + 4 + 4 * count
    left = size - 4 - 4 * count
    for i in range(count):
        piece = load_le32(body + 4 + 4 * i)
        if piece > left:
            return None
        found.append(PyBytes_FromStringAndSize(at, <Py_ssize_t>piece))
        at += piece
        left -= piece
    return found if left == 0 else None
