/* What erasure_rows.h needs of SSSE3, AVX2, and GFNI with vectors of 32 and of 64 bytes. */

#define INLINE(features) \
    TORUS_ERASURE_TARGET(features) __attribute__((always_inline)) static inline

/* --- SSSE3: 16 bytes --- */
#define KERNEL(name) torus_erasure_ssse3_##name
#define TARGET TORUS_ERASURE_TARGET("ssse3")
#define VECTOR __m128i
#define ROWS_AT_ONCE 3

typedef struct {
    __m128i low, high;
} KERNEL(parts), KERNEL(factor);

INLINE("ssse3") __m128i KERNEL(load)(const uint8_t *from) {
    return _mm_loadu_si128((const __m128i *)from);
}
INLINE("ssse3") void KERNEL(store)(uint8_t *to, __m128i vector) {
    _mm_storeu_si128((__m128i *)to, vector);
}
INLINE("ssse3") __m128i KERNEL(zero)(void) { return _mm_setzero_si128(); }
INLINE("ssse3") __m128i KERNEL(sum)(__m128i a, __m128i b) { return _mm_xor_si128(a, b); }
INLINE("ssse3") KERNEL(parts) KERNEL(split)(__m128i vector) {
    const __m128i mask = _mm_set1_epi8(0x0F);
    KERNEL(parts) parts;
    parts.low = _mm_and_si128(vector, mask);
    parts.high = _mm_and_si128(_mm_srli_epi64(vector, 4), mask);
    return parts;
}
INLINE("ssse3") KERNEL(factor) KERNEL(factor_of)(const torus_erasure_plan *plan, unsigned at) {
    KERNEL(factor) factor;
    factor.low = KERNEL(load)(plan->halves[at]);
    factor.high = KERNEL(load)(plan->halves[at] + 16);
    return factor;
}
INLINE("ssse3") __m128i KERNEL(times)(KERNEL(parts) parts, KERNEL(factor) by) {
    return _mm_xor_si128(
        _mm_shuffle_epi8(by.low, parts.low), _mm_shuffle_epi8(by.high, parts.high));
}
#include "erasure_rows.h"

/* --- AVX2: 32 bytes --- */
#define KERNEL(name) torus_erasure_avx2_##name
#define TARGET TORUS_ERASURE_TARGET("avx2")
#define VECTOR __m256i
#define ROWS_AT_ONCE 4

typedef struct {
    __m256i low, high;
} KERNEL(parts), KERNEL(factor);

INLINE("avx2") __m256i KERNEL(load)(const uint8_t *from) {
    return _mm256_loadu_si256((const __m256i *)from);
}
INLINE("avx2") void KERNEL(store)(uint8_t *to, __m256i vector) {
    _mm256_storeu_si256((__m256i *)to, vector);
}
INLINE("avx2") __m256i KERNEL(zero)(void) { return _mm256_setzero_si256(); }
INLINE("avx2") __m256i KERNEL(sum)(__m256i a, __m256i b) { return _mm256_xor_si256(a, b); }
INLINE("avx2") KERNEL(parts) KERNEL(split)(__m256i vector) {
    const __m256i mask = _mm256_set1_epi8(0x0F);
    KERNEL(parts) parts;
    parts.low = _mm256_and_si256(vector, mask);
    parts.high = _mm256_and_si256(_mm256_srli_epi64(vector, 4), mask);
    return parts;
}
INLINE("avx2") KERNEL(factor) KERNEL(factor_of)(const torus_erasure_plan *plan, unsigned at) {
    const __m128i *halves = (const __m128i *)plan->halves[at];
    KERNEL(factor) factor;
    factor.low = _mm256_broadcastsi128_si256(_mm_loadu_si128(halves));
    factor.high = _mm256_broadcastsi128_si256(_mm_loadu_si128(halves + 1));
    return factor;
}
INLINE("avx2") __m256i KERNEL(times)(KERNEL(parts) parts, KERNEL(factor) by) {
    return _mm256_xor_si256(
        _mm256_shuffle_epi8(by.low, parts.low), _mm256_shuffle_epi8(by.high, parts.high));
}
#include "erasure_rows.h"

/* --- GFNI on vectors of 32 bytes --- */
#define KERNEL(name) torus_erasure_gfni_##name
#define TARGET TORUS_ERASURE_TARGET("avx2,gfni")
#define VECTOR __m256i
#define ROWS_AT_ONCE 6

typedef __m256i KERNEL(parts), KERNEL(factor);

INLINE("avx2,gfni") __m256i KERNEL(load)(const uint8_t *from) {
    return _mm256_loadu_si256((const __m256i *)from);
}
INLINE("avx2,gfni") void KERNEL(store)(uint8_t *to, __m256i vector) {
    _mm256_storeu_si256((__m256i *)to, vector);
}
INLINE("avx2,gfni") __m256i KERNEL(zero)(void) { return _mm256_setzero_si256(); }
INLINE("avx2,gfni") __m256i KERNEL(sum)(__m256i a, __m256i b) { return _mm256_xor_si256(a, b); }
INLINE("avx2,gfni") __m256i KERNEL(split)(__m256i vector) { return vector; }
INLINE("avx2,gfni") __m256i KERNEL(factor_of)(const torus_erasure_plan *plan, unsigned at) {
    return _mm256_set1_epi64x((long long)plan->bits[at]);
}
INLINE("avx2,gfni") __m256i KERNEL(times)(__m256i vector, __m256i by) {
    return _mm256_gf2p8affine_epi64_epi8(vector, by, 0);
}
#include "erasure_rows.h"

/* --- GFNI on vectors of 64 bytes --- */
#define KERNEL(name) torus_erasure_gfni512_##name
#define TARGET TORUS_ERASURE_TARGET("avx512f,avx512bw,gfni")
#define VECTOR __m512i
#define ROWS_AT_ONCE 6

typedef __m512i KERNEL(parts), KERNEL(factor);

INLINE("avx512f,avx512bw,gfni") __m512i KERNEL(load)(const uint8_t *from) {
    return _mm512_loadu_si512(from);
}
INLINE("avx512f,avx512bw,gfni") void KERNEL(store)(uint8_t *to, __m512i vector) {
    _mm512_storeu_si512(to, vector);
}
INLINE("avx512f,avx512bw,gfni") __m512i KERNEL(zero)(void) { return _mm512_setzero_si512(); }
INLINE("avx512f,avx512bw,gfni") __m512i KERNEL(sum)(__m512i a, __m512i b) {
    return _mm512_xor_si512(a, b);
}
INLINE("avx512f,avx512bw,gfni") __m512i KERNEL(split)(__m512i vector) { return vector; }
INLINE("avx512f,avx512bw,gfni") __m512i
KERNEL(factor_of)(const torus_erasure_plan *plan, unsigned at) {
    return _mm512_set1_epi64((long long)plan->bits[at]);
}
INLINE("avx512f,avx512bw,gfni") __m512i KERNEL(times)(__m512i vector, __m512i by) {
    return _mm512_gf2p8affine_epi64_epi8(vector, by, 0);
}
#include "erasure_rows.h"

#undef INLINE
