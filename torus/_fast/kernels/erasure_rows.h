/* The loop over the bytes, written once and compiled for each instruction set.
 *
 * Included by erasure_simd.h, which defines before it
 *   KERNEL(name)      the name of a function of this instruction set
 *   TARGET            the attribute that lets the compiler use it
 *   VECTOR            the type of a vector
 *   ROWS_AT_ONCE      how many sums of two vectors fit the registers
 * and the functions load, store, zero, sum, split (a vector into what `times` takes), and times.
 *
 * Two vectors of every source are read before the next source, and every sum is written once.
 * Shards lie at equal offsets of pages, so that a line of each falls into the same set of the
 * first cache: what is not read at once may have to be fetched again.
 */
TARGET __attribute__((always_inline)) static inline void KERNEL(rows)(
    const torus_erasure_job *job, const unsigned row, const unsigned rows) {
    const unsigned stride = job->plan->rows;
    const size_t size = job->size - job->size % (2 * sizeof(VECTOR));
    for (size_t at = 0; at < size; at += 2 * sizeof(VECTOR)) {
        VECTOR even[ROWS_AT_ONCE], odd[ROWS_AT_ONCE];
#pragma GCC unroll 8
        for (unsigned r = 0; r < rows; r++) {
            const uint8_t *target = job->targets[row + r] + at;
            even[r] = job->add ? KERNEL(load)(target) : KERNEL(zero)();
            odd[r] = job->add ? KERNEL(load)(target + sizeof(VECTOR)) : KERNEL(zero)();
        }
        unsigned factor = job->input * stride + row;
        for (unsigned j = 0; j < job->inputs; j++, factor += stride) {
            const uint8_t *source = job->sources[j] + at;
            KERNEL(parts) first = KERNEL(split)(KERNEL(load)(source));
            KERNEL(parts) second = KERNEL(split)(KERNEL(load)(source + sizeof(VECTOR)));
#pragma GCC unroll 8
            for (unsigned r = 0; r < rows; r++) {
                KERNEL(factor) by = KERNEL(factor_of)(job->plan, factor + r);
                even[r] = KERNEL(sum)(even[r], KERNEL(times)(first, by));
                odd[r] = KERNEL(sum)(odd[r], KERNEL(times)(second, by));
            }
        }
#pragma GCC unroll 8
        for (unsigned r = 0; r < rows; r++) {
            uint8_t *target = job->targets[row + r] + at;
            KERNEL(store)(target, even[r]);
            KERNEL(store)(target + sizeof(VECTOR), odd[r]);
        }
    }
}

/* Make the bytes of a job that are whole steps; return how many these are. */
TARGET static size_t KERNEL(run)(const torus_erasure_job *job) {
    for (unsigned row = 0; row < job->plan->rows; row += ROWS_AT_ONCE) {
        unsigned left = job->plan->rows - row;
        switch (left < ROWS_AT_ONCE ? left : ROWS_AT_ONCE) {
        case 1: KERNEL(rows)(job, row, 1); break;
        case 2: KERNEL(rows)(job, row, 2); break;
        case 3: KERNEL(rows)(job, row, 3); break;
#if ROWS_AT_ONCE > 3
        case 4: KERNEL(rows)(job, row, 4); break;
#endif
#if ROWS_AT_ONCE > 4
        case 5: KERNEL(rows)(job, row, 5); break;
        case 6: KERNEL(rows)(job, row, 6); break;
#endif
        }
    }
    return job->size - job->size % (2 * sizeof(VECTOR));
}

#undef KERNEL
#undef TARGET
#undef VECTOR
#undef ROWS_AT_ONCE
