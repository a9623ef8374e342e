/* Rows of int8 weights by one vector: the inner loop of every matmul. Which file gives it is decided here, when the
 * engine is compiled. A profile says how many rows it takes in one pass over the vector, and in what form it wants the
 * vector: activations are widened, or put in order, once for all rows.
 *
 *   SC_ROWS               rows of a pass; row r is at w + r * stride
 *   sc_wide               the type of int8 activations after sc_widened
 *   sc_widened            int8 [columns] -> sc_wide [columns], in `scratch` if need be
 *   sc_dot_s8             sums[r] = x · row r, for x from sc_widened; columns a multiple of 16
 *   sc_ordered            int16 [columns] in the order that the next one wants, in `scratch` if need be
 *   sc_dot_ordered        the same sums for x from sc_ordered, in 64 bits
 *   sc_dot_narrow         the same, columns at most 256, in 32 bits
 *   sc_dot_short          the same as sc_dot_narrow for x as it is and any number of columns
 *   sc_requantize_s8      sums of a pass -> int8
 *
 * The last pass over a matrix starts SC_ROWS rows before its end, so that a few sums are made twice; a matrix with fewer
 * rows is taken a row at a time, with a stride of 0 (SC_PASSES).
 *
 * Sums of int8 products fit 32 bits for 2^16 columns. Those of int16 products are added up in 64 bits every 256 columns:
 * 256 * 2^15 * 2^7 is 2^30.
 */
#ifndef SC_DOT_H
#define SC_DOT_H

#include <stddef.h>
#include <stdint.h>

#include "numbers.h"

enum { SC_NARROW = 256 }; /* columns whose sum of int16 products fits 32 bits */

#if defined(__ARM_FEATURE_MVE) && !defined(SC_SCALAR)
#include "dot_mve.h"
#elif defined(SC_USES_DSP)
#include "dot_dsp.h"
#elif defined(__AVX2__) && !defined(SC_SCALAR)
#include "dot_avx2.h"
#elif defined(__ARM_NEON) && !defined(SC_SCALAR)
#include "dot_neon.h"
#else
#include "dot_scalar.h"
#endif

/* For each pass over `rows` rows of `stride` bytes: `first` is its first row, `pass_rows` how many count, `pitch` its stride. */
#define SC_PASSES(rows, stride)                                                                        \
    const uint32_t pass_rows = (rows) < SC_ROWS ? 1 : SC_ROWS;                                         \
    const size_t pitch = (rows) < SC_ROWS ? 0 : (stride);                                              \
    for (uint32_t done = 0, first = 0; done < (rows);                                                  \
         done += pass_rows, first = (rows)-done < pass_rows && done < (rows) ? (rows)-pass_rows : done)

/* A sum of up to 256 columns each time, added up in 64 bits. */
#define SC_WIDE_SUMS(dot)                                                                     \
    int32_t some[SC_ROWS];                                                                    \
    dot(x, w, stride, columns < SC_NARROW ? columns : SC_NARROW, some);                       \
    for (unsigned r = 0; r < SC_ROWS; r++) {                                                  \
        sums[r] = some[r];                                                                    \
    }                                                                                         \
    for (uint32_t start = SC_NARROW; start < columns; start += SC_NARROW) {                   \
        const uint32_t left = columns - start;                                                \
        dot(x + start, w + start, stride, left < SC_NARROW ? left : SC_NARROW, some);         \
        for (unsigned r = 0; r < SC_ROWS; r++) {                                              \
            sums[r] += some[r];                                                               \
        }                                                                                     \
    }

#ifndef SC_HAS_DOT_ORDERED
static inline void sc_dot_ordered(const int16_t *x, const int8_t *w, size_t stride, uint32_t columns,
                                  int64_t sums[SC_ROWS]) {
    SC_WIDE_SUMS(sc_dot_narrow)
}
#endif

/* sc_dot_short for any number of columns. */
static inline void sc_dot_s16(const int16_t *x, const int8_t *w, size_t stride, uint32_t columns,
                              int64_t sums[SC_ROWS]) {
    SC_WIDE_SUMS(sc_dot_short)
}

enum { SC_GROUP = 8 * SC_ROWS }; /* rows whose sums are made before they are scaled, all at once */

/* For each group of `rows` rows: `first` is its first row, `group_rows` how many it has. Where too few are left for a
 * pass, some of those before them are taken again. */
#define SC_GROUPS(rows)                                                                                  \
    for (uint32_t first = 0, group_rows = sc_group(&first, rows); group_rows > 0;                        \
         first += group_rows, group_rows = sc_group(&first, rows))

static inline uint32_t sc_group(uint32_t *first, uint32_t rows) {
    uint32_t left = rows - *first;
    if (left > 0 && left < SC_ROWS && rows >= SC_ROWS) {
        *first = rows - SC_ROWS;
        return SC_ROWS;
    }
    return left < SC_GROUP ? left : SC_GROUP;
}

/* sc_dot_narrow of up to SC_GROUP rows */
static inline void sc_sums_narrow(const int16_t *x, const int8_t *w, uint32_t stride, uint32_t columns, uint32_t rows,
                                  int32_t sums[SC_GROUP]) {
    SC_PASSES(rows, stride) {
        sc_dot_narrow(x, w + (size_t)first * stride, pitch, columns, sums + first);
    }
}

#ifndef SC_HAS_SCALE_MANY
/* sc_scaled of each sum */
static inline void sc_scale_many(const int32_t *sums, uint32_t count, const sc_scale *scale, int16_t *out) {
    for (uint32_t i = 0; i < count; i++) {
        out[i] = (int16_t)sc_scaled(sums[i], scale);
    }
}
#endif

#ifndef SC_HAS_SCALE_EACH
/* sc_scaled_once of each sum */
static inline void sc_scale_each(const int32_t *sums, uint32_t count, const uint32_t *scales, int16_t *out) {
    for (uint32_t i = 0; i < count; i++) {
        out[i] = (int16_t)sc_scaled_once(sums[i], scales[i]);
    }
}
#endif

#ifndef SC_HAS_REQUANTIZE
/* bias may be NULL */
static inline void sc_requantize_s8(const int32_t *sums, const int32_t *bias, const int32_t *multipliers,
                                    const int8_t *shifts, int32_t zero_point, int8_t *out, uint32_t rows) {
    uint32_t r = 0;
#ifdef SC_REQUANTIZE_EIGHT
    for (; r + 8 <= rows; r += 8) {
        int32_t eight[8];
        __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(sums + r));
        __m256i shift = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(shifts + r)));
        if (bias != NULL) {
            x = _mm256_add_epi32(x, _mm256_loadu_si256((const __m256i *)(const void *)(bias + r)));
        }
        x = sc_requantized_eight(x, _mm256_loadu_si256((const __m256i *)(const void *)(multipliers + r)), shift);
        x = _mm256_max_epi32(_mm256_min_epi32(x, _mm256_set1_epi32(65536)), _mm256_set1_epi32(-65536));
        x = _mm256_add_epi32(x, _mm256_set1_epi32(zero_point));
        x = _mm256_max_epi32(_mm256_min_epi32(x, _mm256_set1_epi32(127)), _mm256_set1_epi32(-128));
        _mm256_storeu_si256((__m256i *)(void *)eight, x);
        for (uint32_t i = 0; i < 8; i++) {
            out[r + i] = (int8_t)eight[i];
        }
    }
#endif
    for (; r < rows; r++) {
        uint32_t sum = (uint32_t)sums[r] + (bias != NULL ? (uint32_t)bias[r] : 0);
        int32_t y = sc_requantized_s8((int32_t)sum, multipliers[r], shifts[r]);
        y = y < -65536 ? -65536 : y > 65536 ? 65536 : y; /* so that the zero point can be added to any number */
        y += zero_point;
        out[r] = (int8_t)(y < -128 ? -128 : y > 127 ? 127 : y);
    }
}
#endif

#endif
