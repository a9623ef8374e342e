/* ARM with NEON, 32 and 64 bits: 16 low and 16 high halves are a register each. */
#include <arm_neon.h>

#include "blocks_as_they_are.h"

static inline int8x16_t sc_block_low(uint8x16_t bytes) { return vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))); }

static inline int8x16_t sc_block_high(uint8x16_t bytes) { return vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)); }

/* A block of one row times x: eight partial sums of four products, below 2^13. */
static inline int16x8_t sc_block_products(const uint8_t *w, int8x16_t x0, int8x16_t x1) {
    uint8x16_t bytes = vld1q_u8(w);
    int8x16_t low = sc_block_low(bytes), high = sc_block_high(bytes);
    int16x8_t dot = vmull_s8(vget_low_s8(low), vget_low_s8(x0));
    dot = vmlal_s8(dot, vget_high_s8(low), vget_high_s8(x0));
    dot = vmlal_s8(dot, vget_low_s8(high), vget_low_s8(x1));
    return vmlal_s8(dot, vget_high_s8(high), vget_high_s8(x1));
}

static inline void sc_block_sums_s8(const sc_block_x *x, const int32_t *starts, const uint8_t *w,
                                    const uint8_t *multipliers, uint32_t blocks, int32_t sums[SC_BLOCK_ROWS]) {
    int32x4_t s[SC_BLOCK_ROWS];
    for (unsigned r = 0; r < SC_BLOCK_ROWS; r++) {
        s[r] = vdupq_n_s32(0);
        sums[r] = 0;
    }
    for (uint32_t b = 0; b < blocks; b++) {
        int8x16_t x0 = vld1q_s8(x + b * SC_BLOCK), x1 = vld1q_s8(x + b * SC_BLOCK + SC_BLOCK_BYTES);
        for (unsigned r = 0; r < SC_BLOCK_ROWS; r++, w += SC_BLOCK_BYTES) {
            int16x8_t dot = sc_block_products(w, x0, x1);
            int16_t multiplier = multipliers[b * SC_BLOCK_ROWS + r];
            s[r] = vmlal_n_s16(s[r], vget_low_s16(dot), multiplier);
            s[r] = vmlal_n_s16(s[r], vget_high_s16(dot), multiplier);
            sums[r] += starts[b] * multiplier;
        }
    }
    for (unsigned r = 0; r < SC_BLOCK_ROWS; r++) {
        int64x2_t pairs = vpaddlq_s32(s[r]);
        sums[r] = (int32_t)(sums[r] + vgetq_lane_s64(pairs, 0) + vgetq_lane_s64(pairs, 1));
    }
}

static inline int32x4_t sc_block_add(int32x4_t dot, int8x16_t w, const int16_t *x) {
    int16x8_t w0 = vmovl_s8(vget_low_s8(w)), w1 = vmovl_s8(vget_high_s8(w));
    int16x8_t x0 = vld1q_s16(x), x1 = vld1q_s16(x + 8);
    dot = vmlal_s16(dot, vget_low_s16(w0), vget_low_s16(x0));
    dot = vmlal_s16(dot, vget_high_s16(w0), vget_high_s16(x0));
    dot = vmlal_s16(dot, vget_low_s16(w1), vget_low_s16(x1));
    return vmlal_s16(dot, vget_high_s16(w1), vget_high_s16(x1));
}

static inline void sc_block_sums_s16(const int16_t *x, const int32_t *starts, const uint8_t *w,
                                     const uint8_t *multipliers, uint32_t blocks, int64_t sums[SC_BLOCK_ROWS]) {
    int64x2_t s[SC_BLOCK_ROWS];
    for (unsigned r = 0; r < SC_BLOCK_ROWS; r++) {
        s[r] = vdupq_n_s64(0);
        sums[r] = 0;
    }
    for (uint32_t b = 0; b < blocks; b++) {
        for (unsigned r = 0; r < SC_BLOCK_ROWS; r++, w += SC_BLOCK_BYTES) {
            uint8x16_t bytes = vld1q_u8(w);
            int32_t multiplier = multipliers[b * SC_BLOCK_ROWS + r];
            int32x4_t dot = sc_block_add(vdupq_n_s32(0), sc_block_low(bytes), x + b * SC_BLOCK);
            dot = sc_block_add(dot, sc_block_high(bytes), x + b * SC_BLOCK + SC_BLOCK_BYTES);
            s[r] = vmlal_n_s32(s[r], vget_low_s32(dot), multiplier);
            s[r] = vmlal_n_s32(s[r], vget_high_s32(dot), multiplier);
            sums[r] += (int64_t)starts[b] * multiplier;
        }
    }
    for (unsigned r = 0; r < SC_BLOCK_ROWS; r++) {
        sums[r] += vgetq_lane_s64(s[r], 0) + vgetq_lane_s64(s[r], 1);
    }
}
