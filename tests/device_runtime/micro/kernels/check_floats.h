/* Holds the loops of floats.h, as they are compiled for this processor, against those for any: the same bits for numbers
 * of every kind, at the ends of what rounds up, and for lengths that are no multiple of four. */
#include <string.h>

#include "floats.h"

enum { LENGTH = 67, ROUNDS = 400 };

static uint32_t random_state = 1;

static uint32_t random_word(void) {
    random_state = random_state * 1664525u + 1013904223u;
    return random_state ^ random_state >> 15;
}

/* Mostly of a size that activations have; of each 16, one below what is normal, one of any bits, a few of halves. */
static float random_float(int any) {
    uint32_t kind = random_word() & 15, word = random_word();
    if (kind == 0 && any) {
        return sc_float_of(word & 0x80ffffffu); /* denormal, or the smallest normal ones */
    }
    if (kind == 1 && any) {
        return sc_float_of(word);
    }
    if (kind < 5) { /* a half, and the floats beside it */
        return sc_float_of(sc_bits_of((float)(int32_t)(word % 512 - 256) + 0.5f) + word / 512 % 3 - 1);
    }
    return ((float)(int32_t)word) * 0x1p-25f;
}

/* As floats: what is not a number has no bits that it must have. */
static int same(const float *a, const float *b, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        if (sc_bits_of(a[i]) != sc_bits_of(b[i]) && (a[i] == a[i] || b[i] == b[i])) {
            return 0;
        }
    }
    return 1;
}

static int softmax_is_exact(void) {
    static int16_t scores[LENGTH + 1], shares[LENGTH + 1], expected_shares[LENGTH + 1];
    static float exps[LENGTH + 1], expected[LENGTH + 1];
    static const float steps[] = {0x1p-64f, 0x1p-40f, 1e-7f, 1.3e-3f, 0.0071f, 0.02f, 0.4f, 0x1p90f};
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint32_t count = 1 + random_word() % LENGTH, filled = (count + 3) & ~3u;
        float step = steps[round % 8], sum, expected_sum, most;
        float share_step = round % 3 == 0 ? 0x1p-15f : round % 3 == 1 ? 0x1.0002p-16f : 0.003f;
        for (uint32_t i = 0; i < count; i++) {
            scores[i] = (int16_t)(random_word() >> (16 + round % 5));
        }
        if (sc_largest(scores, count) != sc_largest_exact(scores, count)) {
            return 0;
        }
        most = (float)sc_largest(scores, count) * step;
        memset(exps, 0, sizeof exps), memset(expected, 0, sizeof expected);
        sum = sc_exps_below(scores, step, most, exps, count);
        expected_sum = sc_exps_below_exact(scores, step, most, expected, count);
        for (uint32_t i = 0; i < count; i++) {
            if (sc_bits_of(exps[i]) != sc_bits_of(sc_exp((float)scores[i] * step - most))) {
                return 0;
            }
        }
        if (!same(exps, expected, LENGTH + 1) || sc_bits_of(sum) != sc_bits_of(expected_sum)) {
            return 0;
        }
        sc_shares(exps, sum, share_step, shares, filled);
        sc_shares_exact(expected, sum, share_step, expected_shares, filled);
        for (uint32_t i = 0; i < filled; i += 4) {
            int16_t *e = expected_shares + i, *s = shares + i;
#ifdef SC_SHARES_ORDERED /* 0 2 1 3 */
            int16_t second = s[1];
            s[1] = s[2], s[2] = second;
#endif
            if (memcmp(e, s, 4 * sizeof *s) != 0) {
                return 0;
            }
        }
    }
    return 1;
}

/* Every half is rounded up, what is just below it down. */
static int halves_are_rounded(void) {
    for (uint32_t whole = 0; whole < 65536; whole++) {
        float half = (float)whole + 0.5f, below = sc_float_of(sc_bits_of(half) - 1);
        if ((uint32_t)(half + SC_BELOW_HALF) != whole + 1 || (uint32_t)(below + SC_BELOW_HALF) != whole) {
            return 0;
        }
    }
    return 1;
}

static int stores_are_exact(void) {
    static float x[LENGTH];
    static int8_t s8[LENGTH], expected_s8[LENGTH];
    static int16_t s16[LENGTH], expected_s16[LENGTH];
    static const float scales[] = {1.0f, 0.0117f, 0x1p-7f, 3e-5f, 0x1.fffffep-9f, 2e-39f, 0x1p-61f, 5e30f};
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint32_t count = 1 + random_word() % LENGTH;
        int32_t zero_point = (int32_t)(random_word() % 256) - 128;
        float scale = scales[round % 8];
        for (uint32_t i = 0; i < count; i++) {
            x[i] = random_float(1);
            x[i] = i % 3 != 0 ? x[i] * scale : x[i];
        }
        sc_to_s8(x, scale, zero_point, s8, count);
        sc_to_s8_exact(x, scale, zero_point, expected_s8, count);
        sc_to_s16(x, scale, zero_point, s16, count);
        sc_to_s16_exact(x, scale, zero_point, expected_s16, count);
        if (memcmp(s8, expected_s8, count) != 0 || memcmp(s16, expected_s16, count * sizeof *s16) != 0) {
            return 0;
        }
    }
    return 1;
}

/* An operation, and then exactly if it asks for that. */
static int operations_are_exact(void) {
    static float a[LENGTH + 1], b[LENGTH + 1], r[LENGTH + 1], expected[LENGTH + 1];
    static int8_t s8[LENGTH];
    static int16_t s16[LENGTH];
    unsigned again = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint32_t count = 1 + random_word() % LENGTH;
        float scale = round % 16 == 0 ? 1e-40f : 0.0313f, sum;
        int any = round % 2 != 0;
        for (uint32_t i = 0; i <= LENGTH; i++) {
            a[i] = random_float(any), b[i] = random_float(any);
        }
        for (uint32_t i = 0; i < LENGTH; i++) {
            s8[i] = (int8_t)random_word(), s16[i] = (int16_t)random_word();
        }
        for (uint32_t code = SC_OP_ADD; code <= SC_OP_NEG; code++) {
            sc_flags_clear();
            sc_each(code, r, a, b, count);
            if (sc_flags_set()) {
                sc_each_exact(code, r, a, b, count);
                again++;
            }
            sc_each_exact(code, expected, a, b, count);
            if (!same(r, expected, count)) {
                return 0;
            }
        }
        sc_flags_clear();
        sc_from_s8(s8, 3, scale, r, count);
        if (!sc_flags_set()) {
            sc_from_s8_exact(s8, 3, scale, expected, count);
            if (!same(r, expected, count)) {
                return 0;
            }
        }
        sc_flags_clear();
        sc_from_s16(s16, -9, scale, r, count);
        if (!sc_flags_set()) {
            sc_from_s16_exact(s16, -9, scale, expected, count);
            if (!same(r, expected, count)) {
                return 0;
            }
        }
        sum = sc_sum(a, 0.0f, count), expected[0] = sc_sum_exact(a, 0.0f, count);
        if (!same(&sum, expected, 1)) {
            return 0;
        }
    }
    return again < ROUNDS * (SC_OP_NEG - SC_OP_ADD); /* else all went the exact way */
}

/* 0, or which of these failed. */
static int check_floats(void) {
    return !halves_are_rounded() ? 1 : !softmax_is_exact() ? 2 : !stores_are_exact() ? 3 : !operations_are_exact() ? 4 : 0;
}
