/* x86-64 with AVX2: the 32 halves of a block are one register, the low ones first. VPMADDUBSW multiplies them with x as
 * they are, and VPMADDWD multiplies with the multiplier and adds in one. */
#include <immintrin.h>

#include "blocks_as_they_are.h"

static inline int32_t sc_block_word(const uint8_t *four) {
    int32_t word;
    memcpy(&word, four, sizeof word);
    return word;
}

/* A block of one row times x and its multiplier, which `pick` finds among the four: eight partial sums below 2^21. */
static inline __m256i sc_block_products(const uint8_t *w, __m256i x, __m256i four, __m256i pick) {
    const __m256i shifts = _mm256_set_epi32(4, 4, 4, 4, 0, 0, 0, 0), low = _mm256_set1_epi8(15);
    __m256i both = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)(const void *)w));
    __m256i halves = _mm256_and_si256(_mm256_srlv_epi32(both, shifts), low);
    return _mm256_madd_epi16(_mm256_maddubs_epi16(halves, x), _mm256_shuffle_epi8(four, pick));
}

static inline void sc_block_sums_s8(const sc_block_x *x, const int32_t *starts, const uint8_t *w,
                                    const uint8_t *multipliers, uint32_t blocks, int32_t sums[SC_BLOCK_ROWS]) {
    const __m256i pick0 = _mm256_set1_epi16((short)0x8000), pick1 = _mm256_set1_epi16((short)0x8001);
    const __m256i pick2 = _mm256_set1_epi16((short)0x8002), pick3 = _mm256_set1_epi16((short)0x8003);
    __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0, s;
    __m128i start = _mm_setzero_si128();
    for (uint32_t b = 0; b < blocks; b++, w += SC_GROUP_BYTES) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(x + b * SC_BLOCK));
        __m256i four = _mm256_set1_epi32(sc_block_word(multipliers + b * SC_BLOCK_ROWS));
        __m128i wide = _mm_cvtepu8_epi32(_mm256_castsi256_si128(four));
        _mm_prefetch((const char *)(w + 512), _MM_HINT_T0); /* past the end it does nothing */
        start = _mm_add_epi32(start, _mm_mullo_epi32(wide, _mm_set1_epi32(starts[b])));
        s0 = _mm256_add_epi32(s0, sc_block_products(w, v, four, pick0));
        s1 = _mm256_add_epi32(s1, sc_block_products(w + SC_BLOCK_BYTES, v, four, pick1));
        s2 = _mm256_add_epi32(s2, sc_block_products(w + 2 * SC_BLOCK_BYTES, v, four, pick2));
        s3 = _mm256_add_epi32(s3, sc_block_products(w + 3 * SC_BLOCK_BYTES, v, four, pick3));
    }
    s = _mm256_hadd_epi32(_mm256_hadd_epi32(s0, s1), _mm256_hadd_epi32(s2, s3)); /* both halves, all rows */
    start = _mm_add_epi32(start, _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1)));
    _mm_storeu_si128((__m128i *)(void *)sums, start);
}

/* The same by int16: four partial sums of 64 bits, in the even elements' place. */
static inline __m256i sc_block_wide_products(const uint8_t *w, const int16_t *x, __m256i multiplier) {
    const __m128i low = _mm_set1_epi8(15), bytes = _mm_load_si128((const __m128i *)(const void *)w);
    __m256i first = _mm256_cvtepu8_epi16(_mm_and_si128(bytes, low));
    __m256i second = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(bytes, 4), low));
    __m256i dot = _mm256_madd_epi16(first, _mm256_loadu_si256((const __m256i *)(const void *)x));
    second = _mm256_madd_epi16(second, _mm256_loadu_si256((const __m256i *)(const void *)(x + SC_BLOCK_BYTES)));
    dot = _mm256_add_epi32(dot, second);
    dot = _mm256_add_epi32(dot, _mm256_srli_epi64(dot, 32)); /* the even ones; below 2^22 */
    return _mm256_mul_epi32(dot, multiplier);
}

static inline int64_t sc_block_lanes(__m256i v) {
    __m128i half = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    int64_t lanes[2];
    _mm_storeu_si128((__m128i *)(void *)lanes, half);
    return lanes[0] + lanes[1];
}

static inline void sc_block_sums_s16(const int16_t *x, const int32_t *starts, const uint8_t *w,
                                     const uint8_t *multipliers, uint32_t blocks, int64_t sums[SC_BLOCK_ROWS]) {
    __m256i s[SC_BLOCK_ROWS], start = _mm256_setzero_si256();
    int64_t of_starts[SC_BLOCK_ROWS];
    for (unsigned r = 0; r < SC_BLOCK_ROWS; r++) {
        s[r] = _mm256_setzero_si256();
    }
    for (uint32_t b = 0; b < blocks; b++) {
        const uint8_t *four = multipliers + b * SC_BLOCK_ROWS;
        const int16_t *at = x + b * SC_BLOCK;
        __m256i wide = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(sc_block_word(four)));
        start = _mm256_add_epi64(start, _mm256_mul_epi32(wide, _mm256_set1_epi32(starts[b])));
        for (unsigned r = 0; r < SC_BLOCK_ROWS; r++, w += SC_BLOCK_BYTES) {
            s[r] = _mm256_add_epi64(s[r], sc_block_wide_products(w, at, _mm256_set1_epi32(four[r])));
        }
    }
    _mm256_storeu_si256((__m256i *)(void *)of_starts, start);
    for (unsigned r = 0; r < SC_BLOCK_ROWS; r++) {
        sums[r] = sc_block_lanes(s[r]) + of_starts[r];
    }
}
