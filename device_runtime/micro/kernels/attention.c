/* Attention over the kv_cache for the query heads of one key head: int16 queries by int8 keys, softmax in float32,
 * int16 probabilities by int8 values. Only positions that the query sees are computed: in the reference, the masked
 * ones come out of the softmax as 0. */
#include "dot.h"
#include "graph.h"
#include "numbers.h"

/* int16 scores of positions oldest … last into `scores`, whose element 0 is position `oldest`. */
static void score(const uint32_t *call, const sc_memory *m, const int16_t *query, uint32_t oldest,
                  int16_t *scores) {
    uint32_t dim = call[SC_ATTEND_HEAD_DIM], last = m->position;
    sc_scale scale = sc_scale_of(call[SC_ATTEND_SCORE_SCALE]);
    const int8_t *keys = (const int8_t *)(m->kv_cache + call[SC_ATTEND_KEYS]) + (size_t)oldest * dim;
    uint32_t count = last - oldest + 1;
#ifdef SC_HAS_SCORES
    if (dim <= SC_NARROW && dim % 8 == 0 && scale.high_multiplier != 0) {
        int16_t scratch[SC_NARROW];
        sc_scores(sc_ordered(query, scratch, dim), keys, dim, count, &scale, scores);
        return;
    }
#endif
    if (dim <= SC_NARROW && dim % 16 == 0) {
        int16_t scratch[SC_NARROW];
        const int16_t *ordered = sc_ordered(query, scratch, dim);
        SC_PASSES(count, dim) {
            int32_t sums[SC_ROWS];
            sc_dot_narrow(ordered, keys + (size_t)first * dim, pitch, dim, sums);
            for (uint32_t r = 0; r < pass_rows; r++) {
                scores[first + r] = (int16_t)sc_scaled(sums[r], &scale);
            }
        }
        return;
    }
    SC_PASSES(count, dim) {
        if (dim <= SC_NARROW) {
            int32_t sums[SC_ROWS];
            sc_dot_short(query, keys + (size_t)first * dim, pitch, dim, sums);
            for (uint32_t r = 0; r < pass_rows; r++) {
                scores[first + r] = (int16_t)sc_scaled(sums[r], &scale);
            }
        } else {
            int64_t sums[SC_ROWS];
            sc_dot_s16(query, keys + (size_t)first * dim, pitch, dim, sums);
            for (uint32_t r = 0; r < pass_rows; r++) {
                scores[first + r] = (int16_t)sc_requantized_s16(sums[r], scale.multiplier, scale.shift);
            }
        }
    }
}

/* In place: `count` int16 scores become int16 probabilities, in the upper half of the scratch and then the lower. */
static void softmax(const int16_t *scores, float *exps, int16_t *shares, uint32_t count, float step, float share_step) {
    float sum;
    int16_t largest = scores[0];
    for (uint32_t i = 1; i < count; i++) {
        largest = scores[i] > largest ? scores[i] : largest;
    }
    sum = sc_exps_below(scores, step, (float)largest * step, exps, count);
    for (uint32_t i = 0; i < count; i++) { /* graph.c keeps the steps within bounds: 0 to 2^16, and always a number */
        float steps = exps[i] / sum / share_step;
        int32_t whole = (int32_t)steps;
        float rest = steps - (float)whole;
        whole += (int32_t)(rest + rest);
        shares[i] = (int16_t)(whole < 32767 ? whole : 32767);
    }
}

void sc_run_attention(const uint32_t *call, const sc_memory *m) {
    uint32_t dim = call[SC_ATTEND_HEAD_DIM], stride = call[SC_ATTEND_VALUE_STRIDE], window = call[SC_ATTEND_WINDOW];
    sc_scale mixed = sc_scale_of(call[SC_ATTEND_MIXED_SCALE]);
    uint32_t oldest = m->position + 1 > window ? m->position + 1 - window : 0;
    uint32_t start = oldest & ~15u, count = m->position + 1 - oldest, used = (m->position - start + 16) & ~15u;
    const int16_t *queries = (const int16_t *)(const void *)(m->arena + call[SC_ATTEND_QUERIES]);
    const int8_t *values = (const int8_t *)(m->kv_cache + call[SC_ATTEND_VALUES]) + start;
    int16_t *out = (int16_t *)(void *)(m->arena + call[SC_ATTEND_OUT]);
    uint8_t *scratch = m->arena + call[SC_ATTEND_SCRATCH];
    float *exps = (float *)(void *)scratch;
    int16_t *shares = (int16_t *)(void *)scratch;
    int16_t *scores = (int16_t *)(void *)(scratch + 4 * (size_t)stride) - count; /* the last `count` of the scratch */
    for (uint32_t head = 0; head < call[SC_ATTEND_HEADS]; head++) {
        score(call, m, queries + (size_t)head * dim, oldest, scores);
        softmax(scores, exps, shares, count, sc_float_of(call[SC_ATTEND_SCORE_STEP]),
                sc_float_of(call[SC_ATTEND_SHARE_STEP]));
        /* values are read in groups of 16 positions: those that the query does not see have the probability 0 */
        if (oldest != start) {
            memmove(shares + (oldest - start), shares, count * sizeof *shares);
            memset(shares, 0, (oldest - start) * sizeof *shares);
        }
        memset(shares + (oldest - start) + count, 0, (used - (oldest - start) - count) * sizeof *shares);
        sc_ordered(shares, shares, used);
        SC_PASSES(dim, stride) {
            int64_t sums[SC_ROWS];
            sc_dot_ordered(shares, values + (size_t)first * stride, pitch, used, sums);
            for (uint32_t r = 0; r < pass_rows; r++) {
                out[(size_t)head * dim + first + r] =
                    (int16_t)(sums[r] == (int32_t)sums[r] ? sc_scaled((int32_t)sums[r], &mixed)
                                                           : sc_requantized_s16(sums[r], mixed.multiplier, mixed.shift));
            }
        }
    }
}
