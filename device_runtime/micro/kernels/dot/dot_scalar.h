/* Any processor. */
enum { SC_ROWS = 4 };
typedef int8_t sc_wide;

static inline const sc_wide *sc_widened(const int8_t *x, int16_t *scratch, uint32_t columns) {
    (void)scratch, (void)columns;
    return x;
}

static inline void sc_dot_s8(const sc_wide *x, const int8_t *w, size_t stride, uint32_t columns, int32_t sums[SC_ROWS]) {
    const int8_t *w0 = w, *w1 = w + stride, *w2 = w + 2 * stride, *w3 = w + 3 * stride;
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (uint32_t c = 0; c < columns; c++) {
        int32_t v = x[c];
        s0 += v * w0[c];
        s1 += v * w1[c];
        s2 += v * w2[c];
        s3 += v * w3[c];
    }
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

static inline void sc_dot_short(const int16_t *x, const int8_t *w, size_t stride, uint32_t columns,
                                int32_t sums[SC_ROWS]) {
    const int8_t *w0 = w, *w1 = w + stride, *w2 = w + 2 * stride, *w3 = w + 3 * stride;
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (uint32_t c = 0; c < columns; c++) {
        int32_t v = x[c];
        s0 += v * w0[c];
        s1 += v * w1[c];
        s2 += v * w2[c];
        s3 += v * w3[c];
    }
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

static inline const int16_t *sc_ordered(const int16_t *x, int16_t *scratch, uint32_t columns) {
    (void)scratch, (void)columns;
    return x;
}

#define sc_dot_narrow sc_dot_short
