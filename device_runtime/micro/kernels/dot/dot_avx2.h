/* x86-64 with AVX2. Weights are widened to 16 bits in registers; activations once, before the first row. Rows are read
 * one after the other, which is what the processor fetches ahead best, and a little further ahead by hand: a model is
 * larger than any cache, so reading is most of the work. */
#include <immintrin.h>

enum { SC_ROWS = 4, SC_AHEAD = 192 /* bytes */ };
typedef int16_t sc_wide;

static inline const sc_wide *sc_widened(const int8_t *x, int16_t *scratch, uint32_t columns) {
    for (uint32_t c = 0; c < columns; c++) {
        scratch[c] = x[c];
    }
    return scratch;
}

static inline __m256i sc_products(const int16_t *x, const int8_t *w) {
    return _mm256_madd_epi16(_mm256_loadu_si256((const __m256i *)(const void *)x),
                             _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)w)));
}

/* Eight partial sums of a row; `columns` is a multiple of 16. */
static inline __m256i sc_row(const int16_t *x, const int8_t *w, uint32_t columns) {
    __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
    uint32_t c = 0;
    for (; c + 64 <= columns; c += 64) {
        _mm_prefetch((const char *)(w + c + SC_AHEAD), _MM_HINT_T0); /* past the end it does nothing */
        s0 = _mm256_add_epi32(s0, sc_products(x + c, w + c));
        s1 = _mm256_add_epi32(s1, sc_products(x + c + 16, w + c + 16));
        s2 = _mm256_add_epi32(s2, sc_products(x + c + 32, w + c + 32));
        s3 = _mm256_add_epi32(s3, sc_products(x + c + 48, w + c + 48));
    }
    for (; c < columns; c += 16) {
        s0 = _mm256_add_epi32(s0, sc_products(x + c, w + c));
    }
    return _mm256_add_epi32(_mm256_add_epi32(s0, s1), _mm256_add_epi32(s2, s3));
}

static inline int32_t sc_lanes(__m256i v) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

static inline void sc_dot_s8(const sc_wide *x, const int8_t *w, size_t stride, uint32_t columns,
                             int32_t sums[SC_ROWS]) {
    __m256i s0 = sc_row(x, w, columns), s1 = sc_row(x, w + stride, columns);
    __m256i s2 = sc_row(x, w + 2 * stride, columns), s3 = sc_row(x, w + 3 * stride, columns);
    __m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(s0, s1), _mm256_hadd_epi32(s2, s3)); /* both halves, all rows */
    _mm_storeu_si128((__m128i *)(void *)sums,
                     _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1)));
}

static inline int64_t sc_wide_lanes(__m256i v) {
    __m256i low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(v));
    __m256i sum = _mm256_add_epi64(low, _mm256_cvtepi32_epi64(_mm256_extracti128_si256(v, 1)));
    __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    int64_t lanes[2];
    _mm_storeu_si128((__m128i *)(void *)lanes, half);
    return lanes[0] + lanes[1];
}

static inline void sc_dot_short(const int16_t *x, const int8_t *w, size_t stride, uint32_t columns,
                                int32_t sums[SC_ROWS]) {
    uint32_t even = columns & ~15u;
    for (unsigned r = 0; r < SC_ROWS; r++) {
        sums[r] = sc_lanes(sc_row(x, w + r * stride, even));
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
        for (uint32_t start = 0; start < columns; start += 2048) { /* a lane gets 128 pairs of products, 2^30 at most */
            sums[r] += sc_wide_lanes(sc_row(x + start, w + r * stride + start, columns - start < 2048 ? columns - start : 2048));
        }
    }
}

/* Eight rows of sc_requantized_s8: the products need 64 bits, so even and odd lanes go one after the other. */
static inline __m256i sc_requantized_eight(__m256i x, __m256i multipliers, __m256i shifts) {
    const __m256i none = _mm256_setzero_si256(), half = _mm256_set1_epi64x(1 << 30), one = _mm256_set1_epi32(1);
    __m256i left = _mm256_max_epi32(shifts, none), right = _mm256_sub_epi32(left, shifts), even, odd, high, mask, rest;
    x = _mm256_sllv_epi32(x, left);
    even = _mm256_add_epi64(_mm256_mul_epi32(x, multipliers), half);
    odd = _mm256_mul_epi32(_mm256_srli_epi64(x, 32), _mm256_srli_epi64(multipliers, 32));
    odd = _mm256_add_epi64(odd, half);
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 31), _mm256_slli_epi64(odd, 1), 0xaa); /* bits 31 to 62 */
    mask = _mm256_sub_epi32(_mm256_sllv_epi32(one, right), one);
    rest = _mm256_and_si256(high, mask);
    mask = _mm256_add_epi32(_mm256_srli_epi32(mask, 1), _mm256_srli_epi32(high, 31));
    return _mm256_sub_epi32(_mm256_srav_epi32(high, right), _mm256_cmpgt_epi32(rest, mask));
}

#define SC_REQUANTIZE_EIGHT
