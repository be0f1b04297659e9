/* What erasure_rows.h needs of NEON, which every aarch64 processor has: 16 bytes. */
#include <arm_neon.h>

#define INLINE __attribute__((always_inline)) static inline
#define KERNEL(name) torus_erasure_neon_##name
#define TARGET
#define VECTOR uint8x16_t
#define ROWS_AT_ONCE 6

typedef struct {
    uint8x16_t low, high;
} KERNEL(parts), KERNEL(factor);

INLINE uint8x16_t KERNEL(load)(const uint8_t *from) { return vld1q_u8(from); }
INLINE void KERNEL(store)(uint8_t *to, uint8x16_t vector) { vst1q_u8(to, vector); }
INLINE uint8x16_t KERNEL(zero)(void) { return vdupq_n_u8(0); }
INLINE uint8x16_t KERNEL(sum)(uint8x16_t a, uint8x16_t b) { return veorq_u8(a, b); }
INLINE KERNEL(parts) KERNEL(split)(uint8x16_t vector) {
    KERNEL(parts) parts;
    parts.low = vandq_u8(vector, vdupq_n_u8(0x0F));
    parts.high = vshrq_n_u8(vector, 4);
    return parts;
}
INLINE KERNEL(factor) KERNEL(factor_of)(const torus_erasure_plan *plan, unsigned at) {
    KERNEL(factor) factor;
    factor.low = vld1q_u8(plan->halves[at]);
    factor.high = vld1q_u8(plan->halves[at] + 16);
    return factor;
}
INLINE uint8x16_t KERNEL(times)(KERNEL(parts) parts, KERNEL(factor) by) {
    return veorq_u8(vqtbl1q_u8(by.low, parts.low), vqtbl1q_u8(by.high, parts.high));
}
#include "erasure_rows.h"

#undef INLINE
