"""Structures and codecs of map pages for other kernels (see mappages.pyx)."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef packed struct Entry:        # 12 bytes; sequence 0 = absent, the block reads as zeroes
    uint32_t sequence            # the chunk's sequence number in its volume's log
    uint16_t offset              # place in the chunk, in 512-byte units
    uint16_t base                # family member that owns the chunk; 0 = this volume
    uint32_t crc                 # CRC-32C of the block's 4 KiB

cdef packed struct PageRef:      # 14 bytes; sequence 0 = there is no stored page
    uint32_t sequence
    uint16_t offset              # in 512-byte units
    uint32_t size_bytes
    uint32_t crc                 # CRC-32C of the page's bytes
