/* Attention over the kv_cache for the query heads of one key head: int16 queries by int8 keys, softmax in float32,
 * int16 probabilities by int8 values. Only positions that the query sees are computed: in the reference, the masked
 * ones come out of the softmax as 0. */
#include "dot.h"
#include "floats.h"
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
        int16_t scratch[SC_NARROW] __attribute__((aligned(8)));
        sc_scores(sc_ordered(query, scratch, dim), keys, dim, count, &scale, scores);
        return;
    }
#endif
    if (dim <= SC_NARROW && dim % 16 == 0) {
        int16_t scratch[SC_NARROW] __attribute__((aligned(8)));
        const int16_t *ordered = sc_ordered(query, scratch, dim);
        SC_GROUPS(count) {
            int32_t sums[SC_GROUP];
            sc_sums_narrow(ordered, keys + (size_t)first * dim, dim, dim, group_rows, sums);
            sc_scale_many(sums, group_rows, &scale, scores + first);
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

/* `count` int16 scores, `before` positions after the start of the scratch's, become int16 probabilities in the order of
 * sc_ordered, `used` of them: 0 where there is no score. */
static void softmax(const int16_t *scores, uint32_t count, uint32_t before, uint32_t used, float step, float share_step,
                    float *exps, int16_t *shares) {
    uint32_t after = before + count, end = (after + 3) & ~3u;
    float sum;
    sum = sc_exps_below(scores, step, (float)sc_largest(scores, count) * step, exps + before, count);
    for (uint32_t i = 0; i < before; i++) {
        exps[i] = 0.0f;
    }
    for (; after < end; after++) {
        exps[after] = 0.0f;
    }
    sc_shares(exps, sum, share_step, shares, end);
    for (; end < used; end++) {
        shares[end] = 0;
    }
#ifndef SC_SHARES_ORDERED
    sc_ordered(shares, shares, used);
#endif
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
        /* values are read in groups of 16 positions */
        softmax(scores, count, oldest - start, used, sc_float_of(call[SC_ATTEND_SCORE_STEP]),
                sc_float_of(call[SC_ATTEND_SHARE_STEP]), exps, shares);
        if (used <= SC_NARROW) {
            SC_GROUPS(dim) {
                int32_t sums[SC_GROUP];
                sc_sums_narrow(shares, values + (size_t)first * stride, stride, used, group_rows, sums);
                sc_scale_many(sums, group_rows, &mixed, out + (size_t)head * dim + first);
            }
            continue;
        }
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
