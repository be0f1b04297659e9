"""Looking up owners, for other kernels.  The arithmetic is docs/ring.md's, for ever."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from *:
    """
    #include <stdint.h>
    #define TORUS_GOLDEN 0x9E3779B97F4A7C15ull
    /* log2(1 + i/256) in units of 2^-32, by repeated squaring: integers only */
    static uint64_t torus_ring_log[257];
    static void torus_ring_begin(void) {
        for (int i = 0; i <= 256; i++) {
            uint64_t x = (uint64_t)(256 + i) << 54, log = 0;
            if (i == 256) { torus_ring_log[i] = (uint64_t)1 << 32; break; }
            for (int bit = 0; bit < 32; bit++) {
                x = (uint64_t)(((unsigned __int128)x * x) >> 62);
                log <<= 1;
                if (x >> 63) { log |= 1; x >>= 1; }
            }
            torus_ring_log[i] = log;
        }
    }
    static inline uint64_t torus_ring_mix(uint64_t x) {
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
        return x ^ (x >> 31);
    }
    static inline uint64_t torus_ring_slot_mix(uint64_t slot) {
        return torus_ring_mix((slot + 1) * TORUS_GOLDEN);
    }
    /* -log2(u) / weight, u uniform: the member with the least cost owns the slot */
    static inline uint64_t torus_ring_cost(uint64_t slot_mix, uint64_t key, uint64_t share) {
        uint64_t u = torus_ring_mix(slot_mix ^ key) | 1;
        int zeroes = __builtin_clzll(u);
        uint64_t mantissa = u << zeroes;
        uint64_t at = (mantissa >> 55) & 0xFF, rest = (mantissa >> 23) & 0xFFFFFFFFull;
        uint64_t step = torus_ring_log[at + 1] - torus_ring_log[at];
        uint64_t log = ((uint64_t)(63 - zeroes) << 32) + torus_ring_log[at] + (step * rest >> 32);
        return (uint64_t)(((unsigned __int128)(((uint64_t)64 << 32) - log) * share) >> 23);
    }
    static inline uint64_t torus_ring_slot(uint64_t volume, uint32_t epoch, uint32_t tag,
                                           uint32_t sequence) {
        uint64_t x = torus_ring_mix(volume + TORUS_GOLDEN * (tag + 1));
        return torus_ring_mix(x ^ ((uint64_t)epoch << 32 | sequence)) >> 48;
    }
    """
    void begin "torus_ring_begin"() noexcept nogil
    uint64_t mix "torus_ring_mix"(uint64_t x) noexcept nogil
    uint64_t mix_slot "torus_ring_slot_mix"(uint64_t slot) noexcept nogil
    uint64_t cost "torus_ring_cost"(uint64_t slot_mix, uint64_t key, uint64_t share) noexcept nogil
    uint64_t slot_number "torus_ring_slot"(
        uint64_t volume, uint32_t epoch, uint32_t tag, uint32_t sequence) noexcept nogil

cdef enum:
    NOBODY = 0xFFFF
    COLUMNS_MAX = 8

cdef class Layout:
    cdef int count
    cdef int node_count
    cdef int zone_count
    cdef uint64_t* keys
    cdef uint64_t* shares       # 2^48 // weight; 0: a member without weight owns nothing
    cdef uint16_t* nodes
    cdef uint16_t* zones
    cdef uint16_t* zone_nodes   # how many nodes with weight each zone has
    cdef uint64_t* costs        # from here on: scratch of `pick`
    cdef uint8_t* node_used
    cdef uint16_t* zone_used
    cdef uint16_t* zone_room

    cdef int level(self) noexcept
    cdef void make_room(self, const uint16_t* base, int base_count,
                        const uint8_t* excluded) noexcept
    cdef int pick(self, const uint16_t* base, int base_count, int kept, uint64_t slot,
                  const uint8_t* excluded, int wanted, uint16_t* picked) noexcept

cdef class Placement:
    cdef readonly Layout layout
    cdef tuple members
    cdef uint16_t* table
    cdef readonly int columns
    cdef uint64_t slots
    cdef uint8_t* excluded

    cdef list listed(self, const uint16_t* picked, int found)

    cdef inline const uint16_t* row(self, uint64_t slot) noexcept:
        return &self.table[slot * <uint64_t>self.columns]
