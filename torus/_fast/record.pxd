"""Records of a volume's log: built for appending, read back for replay and checks."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from torus._fast.blockmap cimport BlockMap

cdef packed struct Header:          # docs/format.md, "Record header"; little endian
    uint32_t magic
    uint16_t version
    uint16_t kind
    uint64_t volume
    uint32_t epoch
    uint32_t sequence
    uint16_t tag
    uint16_t flags
    uint32_t index
    uint64_t lsn
    uint64_t committed
    uint32_t offset
    uint32_t header_bytes
    uint32_t payload_bytes
    uint16_t extent_count
    uint16_t reserved
    uint32_t salt
    uint32_t header_crc

cdef packed struct Extent:
    uint64_t block
    uint32_t count
    uint32_t kind                   # 0 data, 1 zero

cdef class RecordBuilder:
    cdef Extent* extents
    cdef iovec* pieces              # [0] is the header
    cdef uint8_t* header
    cdef size_t header_room
    cdef Py_ssize_t extents_max
    cdef Py_ssize_t extent_count
    cdef Py_ssize_t piece_count
    cdef size_t payload_bytes
    cdef size_t payload_max
    cdef list owners                # keeps borrowed Python buffers alive
    cdef readonly Py_ssize_t header_bytes
    cdef readonly Py_ssize_t size   # header and payload, after finish()
    cdef uint32_t sequence
    cdef uint32_t payload_offset    # where in the chunk the payload begins, after finish()

    cpdef clear(self)
    cdef int add_piece(self, uint64_t block, const void* data, size_t size) except -1
    cdef size_t header_size(self, Py_ssize_t extents, size_t payload) noexcept

cdef class RecordReader:
    cdef Py_buffer view
    cdef const Header* head
    cdef bint held
    cdef object chunk
    cdef readonly uint32_t start_offset
    cdef readonly uint32_t end              # offset in the chunk behind the last record
    cdef readonly uint32_t next_index
    cdef readonly bint payload_ok
    cdef readonly object problem
    cdef readonly object salt               # of the chunk; None until the first record

    cdef judge(self, const Header* head, size_t left)
    cdef size_t header_need(self, const Header* head) noexcept
    cdef bint check_payload(self) noexcept
    cdef const uint32_t* crcs(self) noexcept
