"""Structures and codecs of map pages for other kernels (see mappages.pyx)."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef packed struct Entry:        # 12 bytes; sequence 0 = absent, the block reads as zeroes
    uint32_t sequence            # the chunk's sequence number in its volume's log
    uint16_t offset              # place in the chunk, in 512-byte units
    uint16_t base                # family member that owns the chunk; 0 = this volume
    uint32_t crc                 # CRC-32C of the block's 4 KiB

cdef packed struct PageRef:      # 16 bytes; sequence 0 = there is no stored page
    uint32_t sequence
    uint16_t offset              # in 512-byte units
    uint16_t base                # family member whose log holds the page; 0 = this volume
    uint32_t size_bytes
    uint32_t crc                 # CRC-32C of the page's bytes

cdef enum:
    LEAF_ENTRIES = 1024
    DIRECTORY_LEAVES = 1024
    PAGE_SEQUENCES = 4096        # sequences of a usage page
    CHUNK_UNITS = 8192           # a chunk of 4 MiB in units of 512 bytes
    BLOCK_UNITS = 8
    GONE = 0xFFFF                # usage of a chunk that never existed or has been dropped
    PAGE_BYTES_MAX = 32768
    MEMBERS = 1 << 16            # of a family: what an entry's and a reference's base can name

cdef struct UsageTable:          # of PAGE_SEQUENCES chunks
    uint16_t units[PAGE_SEQUENCES]  # live units, or GONE
    uint32_t eras[PAGE_SEQUENCES]   # of chunks with 0 live units; 0 = not assigned

cdef inline uint32_t units_of(uint32_t size_bytes) noexcept nogil:
    return (size_bytes + 511) // 512

# Each decode fills its whole table (absent = zeroes, GONE as the units of a chunk) and returns how
# many are present.  Raises: Corruption, UnknownVersion; `out` is then undefined.
cdef bytes encode_leaf(uint32_t index, const Entry* entries)
cdef int decode_leaf(bytes page, uint32_t index, Entry* out) except -1
cdef bytes encode_refs(uint32_t index, const PageRef* refs)
cdef int decode_refs(bytes page, uint32_t index, PageRef* out) except -1
cdef bytes encode_usage(uint32_t index, const UsageTable* table)
cdef int decode_usage(bytes page, uint32_t index, UsageTable* out) except -1
cdef bytes encode_root(uint64_t size_blocks, uint64_t mapped_blocks, list directories, list usage)
cdef tuple decode_root(bytes page)
cdef int set_ref(PageRef* ref, uint64_t sequence, uint64_t offset, uint64_t size_bytes,
                 uint64_t crc, uint64_t base=*) except -1
# Name places as another member does, `base` generations away.  Raises: Corruption.
cdef int shift_refs(uint32_t index, PageRef* refs, uint16_t base) except -1
cdef int shift_entries(uint32_t index, Entry* entries, uint16_t base) except -1
cdef list shift_root_refs(list refs, uint64_t base)
