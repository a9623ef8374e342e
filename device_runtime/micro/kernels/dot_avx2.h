/* x86-64 with AVX2. Weights are widened to 16 bits in registers; activations once, before the first row. */
#include <immintrin.h>

enum { SC_ROWS = 4 };
typedef int16_t sc_wide;

static inline const sc_wide *sc_widened(const int8_t *x, int16_t *scratch, uint32_t columns) {
    for (uint32_t c = 0; c < columns; c++) {
        scratch[c] = x[c];
    }
    return scratch;
}

static inline __m256i sc_products(__m256i x, const int8_t *w) {
    return _mm256_madd_epi16(x, _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)w)));
}

static inline int32_t sc_lanes(__m256i v) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

static inline void sc_dot_s8(const sc_wide *x, const int8_t *const w[SC_ROWS], uint32_t columns, int32_t sums[SC_ROWS]) {
    __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
    for (uint32_t c = 0; c < columns; c += 16) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(x + c));
        s0 = _mm256_add_epi32(s0, sc_products(v, w[0] + c));
        s1 = _mm256_add_epi32(s1, sc_products(v, w[1] + c));
        s2 = _mm256_add_epi32(s2, sc_products(v, w[2] + c));
        s3 = _mm256_add_epi32(s3, sc_products(v, w[3] + c));
    }
    sums[0] = sc_lanes(s0), sums[1] = sc_lanes(s1), sums[2] = sc_lanes(s2), sums[3] = sc_lanes(s3);
}

static inline int64_t sc_wide_lanes(__m256i v) {
    __m256i low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(v));
    __m256i sum = _mm256_add_epi64(low, _mm256_cvtepi32_epi64(_mm256_extracti128_si256(v, 1)));
    int64_t lanes[4];
    _mm256_storeu_si256((__m256i *)(void *)lanes, sum);
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

static inline void sc_dot_s16(const int16_t *x, const int8_t *const w[SC_ROWS], uint32_t columns, int64_t sums[SC_ROWS]) {
    uint32_t even = columns & ~15u;
    sums[0] = sums[1] = sums[2] = sums[3] = 0;
    for (uint32_t start = 0; start < even; start += 2048) { /* a lane gets 128 pairs of products, 2^30 at most */
        uint32_t stop = even - start < 2048 ? even : start + 2048;
        __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
        for (uint32_t c = start; c < stop; c += 16) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(x + c));
            s0 = _mm256_add_epi32(s0, sc_products(v, w[0] + c));
            s1 = _mm256_add_epi32(s1, sc_products(v, w[1] + c));
            s2 = _mm256_add_epi32(s2, sc_products(v, w[2] + c));
            s3 = _mm256_add_epi32(s3, sc_products(v, w[3] + c));
        }
        sums[0] += sc_wide_lanes(s0), sums[1] += sc_wide_lanes(s1);
        sums[2] += sc_wide_lanes(s2), sums[3] += sc_wide_lanes(s3);
    }
    for (uint32_t c = even; c < columns; c++) {
        for (unsigned r = 0; r < 4; r++) {
            sums[r] += (int32_t)x[c] * w[r][c];
        }
    }
}

static inline const int16_t *sc_ordered(const int16_t *x, int16_t *scratch, uint32_t columns) {
    (void)scratch, (void)columns;
    return x;
}

static inline void sc_dot_ordered(const int16_t *x, const int8_t *const w[SC_ROWS], uint32_t columns,
                                  int64_t sums[SC_ROWS]) {
    sc_dot_s16(x, w, columns, sums);
}
