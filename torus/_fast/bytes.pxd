"""Loads and stores of fixed width, either byte order, at any alignment.  Header only.

``memcpy`` of a constant size compiles to one move; the swap to one instruction.  The byte order
of the host does not matter.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    #define TORUS_BE(bits, value) __builtin_bswap##bits(value)
    #define TORUS_LE(bits, value) (value)
    #else
    #define TORUS_BE(bits, value) (value)
    #define TORUS_LE(bits, value) __builtin_bswap##bits(value)
    #endif
    #define TORUS_WIDTH(bits) \\
    static inline uint##bits##_t torus_load_be##bits(const void *at) { \\
        uint##bits##_t value; memcpy(&value, at, sizeof value); return TORUS_BE(bits, value); } \\
    static inline uint##bits##_t torus_load_le##bits(const void *at) { \\
        uint##bits##_t value; memcpy(&value, at, sizeof value); return TORUS_LE(bits, value); } \\
    static inline void torus_store_be##bits(void *at, uint##bits##_t value) { \\
        value = TORUS_BE(bits, value); memcpy(at, &value, sizeof value); } \\
    static inline void torus_store_le##bits(void *at, uint##bits##_t value) { \\
        value = TORUS_LE(bits, value); memcpy(at, &value, sizeof value); }
    TORUS_WIDTH(16)
    TORUS_WIDTH(32)
    TORUS_WIDTH(64)
    """
    uint16_t load_be16 "torus_load_be16"(const void* at) noexcept nogil
    uint32_t load_be32 "torus_load_be32"(const void* at) noexcept nogil
    uint64_t load_be64 "torus_load_be64"(const void* at) noexcept nogil
    uint16_t load_le16 "torus_load_le16"(const void* at) noexcept nogil
    uint32_t load_le32 "torus_load_le32"(const void* at) noexcept nogil
    uint64_t load_le64 "torus_load_le64"(const void* at) noexcept nogil
    void store_be16 "torus_store_be16"(void* at, uint16_t value) noexcept nogil
    void store_be32 "torus_store_be32"(void* at, uint32_t value) noexcept nogil
    void store_be64 "torus_store_be64"(void* at, uint64_t value) noexcept nogil
    void store_le16 "torus_store_le16"(void* at, uint16_t value) noexcept nogil
    void store_le32 "torus_store_le32"(void* at, uint32_t value) noexcept nogil
    void store_le64 "torus_store_le64"(void* at, uint64_t value) noexcept nogil
