/* Sums of products in GF(2^8) over long buffers: target[r] = sum of factor[j][r] * source[j].
 *
 * A product by a constant is linear in the bits of a byte.  So it is the sum of what its two
 * halves of four bits give, each looked up among 16 (SSSE3, AVX2, NEON: one instruction looks
 * up a whole vector), or a multiplication by a matrix of 8 x 8 bits (GFNI).  Elsewhere: a
 * table of 256 for each factor.  The best that the processor has is chosen at run time; all
 * give the same bytes.  Measured by bench/cases/erasure.py.
 */
#ifndef TORUS_ERASURE_SIMD_H
#define TORUS_ERASURE_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "erasure_field.h"

/* The factors of one code or one reconstruction, prepared; those of a source lie together. */
typedef struct {
    unsigned inputs, rows;
    uint8_t factors[TORUS_ERASURE_FACTORS_MAX];
    uint64_t bits[TORUS_ERASURE_FACTORS_MAX]; /* GFNI: matrices of 8 x 8 bits */
    uint8_t halves[TORUS_ERASURE_FACTORS_MAX][32]; /* products of 0x00..0x0F, then 0x00..0xF0 */
} torus_erasure_plan;

/* `inputs` sources from number `input` of the plan on, and a target for each of its rows. */
typedef struct {
    const torus_erasure_plan *plan;
    unsigned input, inputs;
    int add; /* to what the targets hold, rather than to nothing */
    const uint8_t *const *sources;
    uint8_t *const *targets;
    size_t size;
} torus_erasure_job;

/* What a factor is prepared to, for each of the 256: 10 KiB, so that a plan only copies. */
static uint64_t torus_erasure_bits[256];
static uint8_t torus_erasure_halves[256][32];

static void torus_erasure_init_factors(void) {
    for (int factor = 0; factor < 256; factor++) {
        const uint8_t *products = torus_field_product[factor];
        for (int i = 0; i < 16; i++) {
            torus_erasure_halves[factor][i] = products[i];
            torus_erasure_halves[factor][16 + i] = products[i << 4];
        }
        /* Bit b of a product is the parity of the byte and of byte 7 - b of the matrix. */
        for (int bit = 0; bit < 8; bit++)
            for (int i = 0; i < 8; i++)
                torus_erasure_bits[factor] |= (uint64_t)(products[1 << i] >> bit & 1)
                    << (8 * (7 - bit) + i);
    }
}

/* Prepare the sums that `rows` rows of a matrix name, over `inputs` sources. */
static void torus_erasure_prepare(
    torus_erasure_plan *plan, const torus_field_row *matrix, unsigned inputs, unsigned rows) {
    plan->inputs = inputs;
    plan->rows = rows;
    for (unsigned j = 0; j < inputs; j++)
        for (unsigned r = 0; r < rows; r++) {
            uint8_t factor = matrix[r][j];
            plan->factors[j * rows + r] = factor;
            plan->bits[j * rows + r] = torus_erasure_bits[factor];
            memcpy(plan->halves[j * rows + r], torus_erasure_halves[factor], 32);
        }
}

/* Make the bytes of a job from `at` on one by one, in blocks that stay in the first cache. */
static void torus_erasure_from(const torus_erasure_job *job, size_t at) {
    const unsigned rows = job->plan->rows;
    for (size_t end; at < job->size; at = end) {
        end = job->size - at > 1024 ? at + 1024 : job->size;
        for (unsigned r = 0; r < rows; r++) {
            uint8_t *target = job->targets[r];
            if (!job->add) memset(target + at, 0, end - at);
            for (unsigned j = 0; j < job->inputs; j++) {
                const uint8_t *source = job->sources[j];
                const uint8_t *products =
                    torus_field_product[job->plan->factors[(job->input + j) * rows + r]];
                for (size_t i = at; i < end; i++) target[i] ^= products[source[i]];
            }
        }
    }
}

static size_t torus_erasure_none(const torus_erasure_job *job) {
    (void)job;
    return 0;
}

#if defined(__x86_64__)
#include <immintrin.h>
#ifndef TORUS_ERASURE_TARGET
#define TORUS_ERASURE_TARGET(features) __attribute__((target(features)))
#endif
#include "erasure_x86.h"
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include "erasure_neon.h"
#endif

typedef struct {
    const char *name;
    size_t (*run)(const torus_erasure_job *job);
    int usable;
} torus_erasure_kernel;

/* From the slowest to the fastest. */
static torus_erasure_kernel torus_erasure_kernels[] = {
    {"scalar", torus_erasure_none, 1},
#if defined(__x86_64__)
    {"ssse3", torus_erasure_ssse3_run, 0},
    {"avx2", torus_erasure_avx2_run, 0},
    {"gfni-avx2", torus_erasure_gfni_run, 0},
    {"gfni-avx512", torus_erasure_gfni512_run, 0},
#elif defined(__aarch64__) && defined(__ARM_NEON)
    {"neon", torus_erasure_neon_run, 1},
#endif
};
#define TORUS_ERASURE_KERNELS \
    ((int)(sizeof torus_erasure_kernels / sizeof *torus_erasure_kernels))

static void torus_erasure_init(void) {
    torus_field_init();
    torus_erasure_init_factors();
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = !!__builtin_cpu_supports("avx2"), gfni = !!__builtin_cpu_supports("gfni");
    torus_erasure_kernels[1].usable = !!__builtin_cpu_supports("ssse3");
    torus_erasure_kernels[2].usable = avx2;
    torus_erasure_kernels[3].usable = avx2 && gfni;
    torus_erasure_kernels[4].usable = gfni && __builtin_cpu_supports("avx512f")
        && __builtin_cpu_supports("avx512bw");
#endif
}

/* Carry out a job.  The buffers of targets and sources must not overlap. */
static void torus_erasure_run(const torus_erasure_kernel *kernel, const torus_erasure_job *job) {
    size_t done = kernel->run(job);
    if (done < job->size) torus_erasure_from(job, done);
}

#endif
