/* Cortex-M55, M85: Helium. */
#include <arm_mve.h>

#include "blocks_as_they_are.h"

static inline int32_t sc_block_dot_s8(const uint8_t *w, int8x16_t x0, int8x16_t x1) {
    uint8x16_t bytes = vldrbq_u8(w);
    int32_t dot = vmladavq_s8(vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))), x0);
    return vmladavaq_s8(dot, vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)), x1);
}

/* The dots of four rows become one vector, so that a start and a multiplier are an instruction for all. */
static inline void sc_block_sums_s8(const sc_block_x *x, const int32_t *starts, const uint8_t *w,
                                    const uint8_t *multipliers, uint32_t blocks, int32_t sums[SC_BLOCK_ROWS]) {
    int32x4_t all = vdupq_n_s32(0);
    for (; blocks > 0; blocks--, x += SC_BLOCK, w += SC_GROUP_BYTES, multipliers += SC_BLOCK_ROWS) {
        int8x16_t x0 = vldrbq_s8(x), x1 = vldrbq_s8(x + SC_BLOCK_BYTES);
        int32_t d0 = sc_block_dot_s8(w, x0, x1), d1 = sc_block_dot_s8(w + SC_BLOCK_BYTES, x0, x1);
        int32_t d2 = sc_block_dot_s8(w + 2 * SC_BLOCK_BYTES, x0, x1), d3 = sc_block_dot_s8(w + 3 * SC_BLOCK_BYTES, x0, x1);
        int32x4_t dots;
        /* the first register goes to the lower of the two elements */
        __asm__("vmov %q0[2], %q0[0], %1, %3\n\tvmov %q0[3], %q0[1], %2, %4" : "=w"(dots) : "r"(d0), "r"(d1), "r"(d2), "r"(d3));
        dots = vaddq_n_s32(dots, *starts++);
        all = vaddq_s32(all, vmulq_s32(dots, vreinterpretq_s32_u32(vldrbq_u32(multipliers))));
    }
    vstrwq_s32(sums, all);
}

/* Eight bytes are widened as they are loaded. */
static inline int32_t sc_block_dot_s16(int32_t dot, const uint8_t *w, int16x8_t x0, int16x8_t x1, int16x8_t x2,
                                       int16x8_t x3) {
    uint16x8_t bytes = vldrbq_u16(w), more = vldrbq_u16(w + 8), low = vdupq_n_u16(15);
    dot = vmladavaq_s16(dot, vreinterpretq_s16_u16(vandq_u16(bytes, low)), x0);
    dot = vmladavaq_s16(dot, vreinterpretq_s16_u16(vandq_u16(more, low)), x1);
    dot = vmladavaq_s16(dot, vreinterpretq_s16_u16(vshrq_n_u16(bytes, 4)), x2);
    return vmladavaq_s16(dot, vreinterpretq_s16_u16(vshrq_n_u16(more, 4)), x3);
}

static inline void sc_block_sums_s16(const int16_t *x, const int32_t *starts, const uint8_t *w,
                                     const uint8_t *multipliers, uint32_t blocks, int64_t sums[SC_BLOCK_ROWS]) {
    int64_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (; blocks > 0; blocks--, x += SC_BLOCK, w += SC_GROUP_BYTES, multipliers += SC_BLOCK_ROWS) {
        int16x8_t x0 = vldrhq_s16(x), x1 = vldrhq_s16(x + 8), x2 = vldrhq_s16(x + 16), x3 = vldrhq_s16(x + 24);
        int32_t start = *starts++;
        s0 += (int64_t)multipliers[0] * sc_block_dot_s16(start, w, x0, x1, x2, x3);
        s1 += (int64_t)multipliers[1] * sc_block_dot_s16(start, w + SC_BLOCK_BYTES, x0, x1, x2, x3);
        s2 += (int64_t)multipliers[2] * sc_block_dot_s16(start, w + 2 * SC_BLOCK_BYTES, x0, x1, x2, x3);
        s3 += (int64_t)multipliers[3] * sc_block_dot_s16(start, w + 3 * SC_BLOCK_BYTES, x0, x1, x2, x3);
    }
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}
