/* Every kernel of the erasure code against the tables of single bytes: same bytes, and not one
 * beside them.  With -DMODEL the two kernels that need GFNI run on any processor with AVX2, on
 * a model of the instructions after the description in Intel's manual.  Prints the kernels that
 * agreed; ends with 1 at the first that does not.
 */
#include <stdio.h>
#include <stdlib.h>

#ifdef MODEL
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

/* affine_byte(tsrc2qw, src1byte): bit i is the parity of tsrc2qw.byte[7 - i] AND src1byte. */
static void affine(uint8_t *result, const uint8_t *vector, const uint8_t *matrices, int size) {
    for (int at = 0; at < size; at++) {
        uint8_t byte = 0;
        for (int i = 0; i < 8; i++) {
            uint8_t row = matrices[at / 8 * 8 + 7 - i];
            byte |= (uint8_t)(__builtin_parity(row & vector[at]) << i);
        }
        result[at] = byte;
    }
}

__attribute__((target("avx2"))) static __m256i affine256(__m256i vector, __m256i matrices) {
    __m256i result;
    affine((uint8_t *)&result, (uint8_t *)&vector, (uint8_t *)&matrices, 32);
    return result;
}

typedef struct {
    uint8_t byte[64];
} vector512;

static vector512 affine512(vector512 vector, vector512 matrices) {
    vector512 result;
    affine(result.byte, vector.byte, matrices.byte, 64);
    return result;
}
static vector512 load512(const void *from) {
    vector512 result;
    memcpy(&result, from, 64);
    return result;
}
static void store512(void *to, vector512 vector) { memcpy(to, &vector, 64); }
static vector512 xor512(vector512 a, vector512 b) {
    for (int i = 0; i < 64; i++) a.byte[i] ^= b.byte[i];
    return a;
}
static vector512 fill512(long long word) {
    vector512 result;
    for (int i = 0; i < 8; i++) memcpy(result.byte + 8 * i, &word, 8);
    return result;
}

#define TORUS_ERASURE_TARGET(features) __attribute__((target("avx2")))
#define __m512i vector512
#define _mm256_gf2p8affine_epi64_epi8(vector, matrices, constant) affine256(vector, matrices)
#define _mm512_gf2p8affine_epi64_epi8(vector, matrices, constant) affine512(vector, matrices)
#define _mm512_loadu_si512 load512
#define _mm512_storeu_si512 store512
#define _mm512_setzero_si512() fill512(0)
#define _mm512_xor_si512 xor512
#define _mm512_set1_epi64 fill512
#endif

#include "erasure_simd.h"

#define SIZE_MAX_BYTES 700
#define GUARD 0xA5

static uint8_t source[16][SIZE_MAX_BYTES + 8], wanted[6][SIZE_MAX_BYTES + 80];
static uint8_t found[6][SIZE_MAX_BYTES + 80];

static int compare(const torus_erasure_kernel *kernel, torus_erasure_plan *plan, size_t size) {
    const uint8_t *sources[16];
    uint8_t *targets[6], *others[6];
    torus_erasure_job job = {plan, 0, plan->inputs, rand() & 1, sources, targets, size};
    if (rand() % 4 == 0) { /* some sources from the middle of the plan */
        job.input = (unsigned)rand() % plan->inputs;
        job.inputs = 1 + (unsigned)rand() % (plan->inputs - job.input);
    }
    for (unsigned j = 0; j < job.inputs; j++) sources[j] = source[j] + rand() % 8;
    for (unsigned r = 0; r < plan->rows; r++) {
        size_t shift = (size_t)(rand() % 8);
        memset(wanted[r], GUARD, sizeof wanted[r]);
        memset(found[r], GUARD, sizeof found[r]);
        targets[r] = wanted[r] + shift;
        others[r] = found[r] + shift;
    }
    torus_erasure_from(&job, 0);
    job.targets = others;
    torus_erasure_run(kernel, &job);
    return memcmp(wanted, found, sizeof wanted);
}

int main(void) {
    torus_erasure_init();
    srand(1);
    for (int i = 0; i < TORUS_ERASURE_KERNELS; i++) {
        const torus_erasure_kernel *kernel = &torus_erasure_kernels[i];
#ifndef MODEL
        if (!kernel->usable) continue;
#endif
        for (int round = 0; round < 1500; round++) {
            torus_field_row matrix[6];
            torus_erasure_plan plan;
            unsigned inputs = 1 + (unsigned)rand() % 16, rows = 1 + (unsigned)rand() % 6;
            size_t size = (size_t)(rand() % SIZE_MAX_BYTES);
            for (unsigned r = 0; r < rows; r++)
                for (unsigned j = 0; j < inputs; j++) matrix[r][j] = (uint8_t)(round + rand());
            for (unsigned j = 0; j < 16 && round % 50 == 0; j++)
                for (size_t at = 0; at < sizeof source[j]; at++) source[j][at] = (uint8_t)rand();
            torus_erasure_prepare(&plan, (const torus_field_row *)matrix, inputs, rows);
            if (compare(kernel, &plan, size)) {
                printf("%s differs: round %d, %u inputs, %u rows, %zu bytes\n", kernel->name,
                       round, inputs, rows, size);
                return 1;
            }
        }
        printf("%s\n", kernel->name);
    }
    /* The last K of 16+6 give the first six, and those rows times the matrix are units again. */
    torus_field_row all[TORUS_ERASURE_SHARDS_MAX], sums[6];
    uint8_t have[16], wanted[6] = {0, 1, 2, 3, 4, 5};
    for (int i = 0; i < 16; i++) have[i] = (uint8_t)(i + 6);
    if (torus_erasure_matrix(all, 16, 6)) return 1;
    if (torus_erasure_solve(sums, (const torus_field_row *)all, 16, have, wanted, 6)) return 1;
    for (int i = 0; i < 6; i++) {
        torus_field_row_times(sums[i], sums[i], (const torus_field_row *)all + 6, 16);
        if (memcmp(sums[i], all[i], sizeof sums[i])) return 1;
    }
    return 0;
}
