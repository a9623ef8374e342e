/* ARM with NEON, 32 and 64 bits. Weights are widened to 16 bits in registers; activations once. */
#include <arm_neon.h>

enum { SC_ROWS = 4 };
typedef int16_t sc_wide;

static inline const sc_wide *sc_widened(const int8_t *x, int16_t *scratch, uint32_t columns) {
    for (uint32_t c = 0; c < columns; c++) {
        scratch[c] = x[c];
    }
    return scratch;
}

static inline int32x4_t sc_add_products(int32x4_t sum, int16x8_t x0, int16x8_t x1, const int8_t *w) {
    int8x16_t bytes = vld1q_s8(w);
    int16x8_t w0 = vmovl_s8(vget_low_s8(bytes)), w1 = vmovl_s8(vget_high_s8(bytes));
    sum = vmlal_s16(sum, vget_low_s16(w0), vget_low_s16(x0));
    sum = vmlal_s16(sum, vget_high_s16(w0), vget_high_s16(x0));
    sum = vmlal_s16(sum, vget_low_s16(w1), vget_low_s16(x1));
    return vmlal_s16(sum, vget_high_s16(w1), vget_high_s16(x1));
}

static inline int64_t sc_lanes(int32x4_t v) {
    int64x2_t pairs = vpaddlq_s32(v);
    return vgetq_lane_s64(pairs, 0) + vgetq_lane_s64(pairs, 1);
}

/* Four partial sums of a row; `columns` is a multiple of 16. */
static inline int32x4_t sc_row(const int16_t *x, const int8_t *w, uint32_t columns) {
    int32x4_t s0 = vdupq_n_s32(0), s1 = s0;
    uint32_t c = 0;
    for (; c + 32 <= columns; c += 32) {
        s0 = sc_add_products(s0, vld1q_s16(x + c), vld1q_s16(x + c + 8), w + c);
        s1 = sc_add_products(s1, vld1q_s16(x + c + 16), vld1q_s16(x + c + 24), w + c + 16);
    }
    if (c < columns) {
        s0 = sc_add_products(s0, vld1q_s16(x + c), vld1q_s16(x + c + 8), w + c);
    }
    return vaddq_s32(s0, s1);
}

static inline void sc_dot_s8(const sc_wide *x, const int8_t *w, size_t stride, uint32_t columns,
                             int32_t sums[SC_ROWS]) {
    for (unsigned r = 0; r < SC_ROWS; r++) {
        sums[r] = (int32_t)sc_lanes(sc_row(x, w + r * stride, columns));
    }
}

static inline void sc_dot_short(const int16_t *x, const int8_t *w, size_t stride, uint32_t columns,
                                int32_t sums[SC_ROWS]) {
    uint32_t even = columns & ~15u;
    for (unsigned r = 0; r < SC_ROWS; r++) {
        sums[r] = (int32_t)sc_lanes(sc_row(x, w + r * stride, even));
        for (uint32_t c = even; c < columns; c++) {
            sums[r] += (int32_t)x[c] * w[r * stride + c];
        }
    }
}

static inline const int16_t *sc_ordered(const int16_t *x, int16_t *scratch, uint32_t columns) {
    (void)scratch, (void)columns;
    return x;
}

#define sc_dot_narrow sc_dot_short
#define SC_HAS_DOT_ORDERED
static inline void sc_dot_ordered(const int16_t *x, const int8_t *w, size_t stride, uint32_t columns,
                                  int64_t sums[SC_ROWS]) {
    for (unsigned r = 0; r < SC_ROWS; r++) {
        sums[r] = 0;
        for (uint32_t start = 0; start < columns; start += 1024) { /* a lane gets 256 products, 2^30 at most */
            sums[r] += sc_lanes(sc_row(x + start, w + r * stride + start, columns - start < 1024 ? columns - start : 1024));
        }
    }
}
