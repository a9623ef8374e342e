/* Attention over the kv_cache for the query heads of one key head: int16 queries by int8 keys, softmax in float32,
 * int16 probabilities by int8 values. Only positions that the query sees are computed: in the reference, the masked
 * ones come out of the softmax as 0. */
#include "dot.h"
#include "graph.h"
#include "numbers.h"

/* int16 scores of positions first … last into `scores`, whose element 0 is position `first`. */
static void score(const uint32_t *call, const sc_memory *m, const int16_t *query, uint32_t first, int16_t *scores) {
    uint32_t dim = call[SC_ATTEND_HEAD_DIM], last = m->position;
    sc_scale scale = sc_scale_of(call[SC_ATTEND_SCORE_SCALE]);
    const int8_t *keys = (const int8_t *)(m->kv_cache + call[SC_ATTEND_KEYS]) + (size_t)first * dim;
    for (uint32_t position = first; position <= last; position += SC_ROWS, keys += SC_ROWS * (size_t)dim) {
        uint32_t rows = last - position + 1 < SC_ROWS ? last - position + 1 : SC_ROWS;
        const int8_t *key[SC_ROWS];
        for (uint32_t r = 0; r < SC_ROWS; r++) { /* past the last position, the last one again */
            key[r] = keys + (r < rows ? r : rows - 1) * (size_t)dim;
        }
        if (dim <= 256) {
            int32_t sums[SC_ROWS];
            sc_dot_short(query, key, dim, sums);
            for (uint32_t r = 0; r < rows; r++) {
                *scores++ = (int16_t)sc_scaled(sums[r], &scale);
            }
        } else {
            int64_t sums[SC_ROWS];
            sc_dot_s16(query, key, dim, sums);
            for (uint32_t r = 0; r < rows; r++) {
                *scores++ = (int16_t)sc_requantized_s16(sums[r], scale.multiplier, scale.shift);
            }
        }
    }
}

/* In place: `count` int16 scores become int16 probabilities, in the upper half of the scratch and then the lower. */
static void softmax(const int16_t *scores, float *exps, int16_t *shares, uint32_t count, float step, float share_step) {
    float most, sum = 0.0f;
    int16_t largest = scores[0];
    for (uint32_t i = 1; i < count; i++) {
        largest = scores[i] > largest ? scores[i] : largest;
    }
    most = (float)largest * step;
    for (uint32_t i = 0; i < count; i++) { /* scores lie after the exps that are written, never before them */
        exps[i] = sc_exp((float)scores[i] * step - most);
        sum += exps[i];
    }
    for (uint32_t i = 0; i < count; i++) {
        float share = exps[i] / sum;
        shares[i] = (int16_t)sc_rounded(share / share_step, -32768, 32767);
    }
}

void sc_run_attention(const uint32_t *call, const sc_memory *m) {
    uint32_t dim = call[SC_ATTEND_HEAD_DIM], stride = call[SC_ATTEND_VALUE_STRIDE], window = call[SC_ATTEND_WINDOW];
    uint32_t scale = call[SC_ATTEND_MIXED_SCALE];
    uint32_t first = m->position + 1 > window ? m->position + 1 - window : 0;
    uint32_t start = first & ~15u, count = m->position + 1 - first, used = (m->position - start + 16) & ~15u;
    const int16_t *queries = (const int16_t *)(const void *)(m->arena + call[SC_ATTEND_QUERIES]);
    const int8_t *values = (const int8_t *)(m->kv_cache + call[SC_ATTEND_VALUES]) + start;
    int16_t *out = (int16_t *)(void *)(m->arena + call[SC_ATTEND_OUT]);
    uint8_t *scratch = m->arena + call[SC_ATTEND_SCRATCH];
    float *exps = (float *)(void *)scratch;
    int16_t *shares = (int16_t *)(void *)scratch;
    int16_t *scores = (int16_t *)(void *)(scratch + 4 * (size_t)stride) - count; /* the last `count` of the scratch */
    for (uint32_t head = 0; head < call[SC_ATTEND_HEADS]; head++) {
        score(call, m, queries + (size_t)head * dim, first, scores);
        softmax(scores, exps, shares, count, sc_float_of(call[SC_ATTEND_SCORE_STEP]),
                sc_float_of(call[SC_ATTEND_SHARE_STEP]));
        /* values are read in groups of 16 positions: those that the query does not see have the probability 0 */
        memmove(shares + (first - start), shares, count * sizeof *shares);
        memset(shares, 0, (first - start) * sizeof *shares);
        memset(shares + (first - start) + count, 0, (used - (first - start) - count) * sizeof *shares);
        for (uint32_t d = 0; d < dim; d += SC_ROWS) {
            const int8_t *rows[SC_ROWS];
            int64_t sums[SC_ROWS];
            for (uint32_t r = 0; r < SC_ROWS; r++) {
                rows[r] = values + (size_t)(d + r < dim ? d + r : dim - 1) * stride;
            }
            sc_dot_s16(shares, rows, used, sums);
            for (uint32_t r = 0; r < SC_ROWS && d + r < dim; r++) {
                out[(size_t)head * dim + d + r] = (int16_t)sc_requantized_s16(sums[r], scale & 0xffff, scale >> 16);
            }
        }
    }
}
