/* CRC-32C (Castagnoli, reflected 0x82F63B78), as iSCSI and ext4 use it.
 *
 * Three interleaved lanes of the SSE4.2 instruction hide its latency of three cycles; the
 * lanes are joined with one carry-less multiplication each.  Elsewhere: eight tables.
 * Measured by bench/cases/crc.py.  Arithmetic: a*b in the reflected representation is
 * clmul(a, b) * x^-1, and the instruction multiplies by x^32, hence the exponent 8n - 33.
 */
#ifndef TORUS_CRC32C_H
#define TORUS_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TORUS_CRC_POLY 0x82F63B78u
#define TORUS_CRC_LANE 1360 /* three lanes and 16 bytes make one 4 KiB block */

static uint32_t torus_crc_table[8][256];
static uint32_t torus_crc_shift_one; /* x^(8 * LANE - 33) mod P */
static uint32_t torus_crc_shift_two; /* x^(16 * LANE - 33) mod P */
static int torus_crc_hardware;

/* Multiply two reflected polynomials modulo P; bit 31 is x^0. */
static uint32_t torus_crc_multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
        if (a & bit) product ^= b;
        b = (b >> 1) ^ ((b & 1) ? TORUS_CRC_POLY : 0);
    }
    return product;
}

/* x^n mod P */
static uint32_t torus_crc_power(uint64_t n) {
    uint32_t result = 0x80000000u, base = 0x40000000u;
    for (; n; n >>= 1) {
        if (n & 1) result = torus_crc_multiply(result, base);
        base = torus_crc_multiply(base, base);
    }
    return result;
}

static inline uint32_t torus_crc_portable(uint32_t crc, const unsigned char *p, size_t n) {
    crc = ~crc;
    while (n >= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        word = __builtin_bswap64(word);
#endif
        word ^= crc;
        crc = torus_crc_table[7][word & 255] ^ torus_crc_table[6][(word >> 8) & 255]
            ^ torus_crc_table[5][(word >> 16) & 255] ^ torus_crc_table[4][(word >> 24) & 255]
            ^ torus_crc_table[3][(word >> 32) & 255] ^ torus_crc_table[2][(word >> 40) & 255]
            ^ torus_crc_table[1][(word >> 48) & 255] ^ torus_crc_table[0][word >> 56];
        p += 8;
        n -= 8;
    }
    while (n--) crc = torus_crc_table[0][(crc ^ *p++) & 255] ^ (crc >> 8);
    return ~crc;
}

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("sse4.2,pclmul"))) static inline uint32_t
torus_crc_shift(uint32_t crc, uint32_t factor) {
    __m128i product = _mm_clmulepi64_si128(
        _mm_cvtsi32_si128((int)crc), _mm_cvtsi32_si128((int)factor), 0);
    return (uint32_t)_mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

__attribute__((target("sse4.2,pclmul"))) static uint32_t
torus_crc_sse42(uint32_t crc, const unsigned char *p, size_t n) {
    uint64_t first = (uint32_t)~crc;
    while (n >= 3 * TORUS_CRC_LANE) {
        uint64_t second = 0, third = 0, a, b, c;
        for (size_t i = 0; i < TORUS_CRC_LANE; i += 8) {
            memcpy(&a, p + i, 8);
            memcpy(&b, p + TORUS_CRC_LANE + i, 8);
            memcpy(&c, p + 2 * TORUS_CRC_LANE + i, 8);
            first = _mm_crc32_u64(first, a);
            second = _mm_crc32_u64(second, b);
            third = _mm_crc32_u64(third, c);
        }
        first = torus_crc_shift((uint32_t)first, torus_crc_shift_two)
              ^ torus_crc_shift((uint32_t)second, torus_crc_shift_one) ^ third;
        p += 3 * TORUS_CRC_LANE;
        n -= 3 * TORUS_CRC_LANE;
    }
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        first = _mm_crc32_u64(first, word);
    }
    while (n--) first = _mm_crc32_u8((uint32_t)first, *p++);
    return ~(uint32_t)first;
}
#endif

static inline uint32_t torus_crc32c(uint32_t crc, const void *data, size_t n) {
#if defined(__x86_64__)
    if (torus_crc_hardware) return torus_crc_sse42(crc, (const unsigned char *)data, n);
#endif
    return torus_crc_portable(crc, (const unsigned char *)data, n);
}

static void torus_crc_init(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) ? TORUS_CRC_POLY : 0);
        torus_crc_table[0][i] = crc;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++)
            torus_crc_table[t][i] = (torus_crc_table[t - 1][i] >> 8)
                                  ^ torus_crc_table[0][torus_crc_table[t - 1][i] & 255];
    torus_crc_shift_one = torus_crc_power(8ull * TORUS_CRC_LANE - 33);
    torus_crc_shift_two = torus_crc_power(16ull * TORUS_CRC_LANE - 33);
#if defined(__x86_64__)
    __builtin_cpu_init();
    torus_crc_hardware = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
#endif
}

#endif
